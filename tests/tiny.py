"""Small random hosts, written as Hugging Face folders write them, and batches to feed them."""

from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from tiny_tokenizers import byte_level_folder, wordpiece_folder
from tokenizers import Tokenizer

from kinject.models.config import EncoderConfig
from kinject.models.encoder import Encoder
from kinject.models.heads import HostModel, build_head
from kinject.models.saving import save_host

# jax.jit for tests: LLVM's optimiser takes most of the time of a test, and XLA's own passes are what is tested
fast_jit = partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
TOKENIZERS = {"bert": wordpiece_folder, "roberta": byte_level_folder}


def tiny_config(model_type="bert", **values):
    roberta = model_type == "roberta"
    default = {
        "vocab_size": 120,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 48,
        "max_position_embeddings": 98 if roberta else 96,
        "type_vocab_size": 1 if roberta else 2,
        "pad_token_id": 1 if roberta else 0,
        "layer_norm_eps": 1e-5 if roberta else 1e-12,
        "hidden_dropout_prob": 0.1,
        "attention_probs_dropout_prob": 0.1,
    }
    return EncoderConfig(model_type, **(default | values))


def random_host(config, head=None, num_labels=None, *, seed=0, scale=0.15, **options):
    """A host whose every parameter is random, biases and norms too: nothing is hidden by a zero or a one."""

    def build():
        encoder = Encoder(config, rngs=nnx.Rngs(0), **options)
        return HostModel(encoder, None if head is None else build_head(head, config, num_labels, rngs=nnx.Rngs(0)))

    graph, state = nnx.split(nnx.eval_shape(build))  # drawing with jax would compile once a shape
    draw = np.random.default_rng(seed)
    flat = {}
    for path, leaf in nnx.to_flat_state(state):
        around = 1.0 if path[-1] == "scale" else 0.0
        flat[path] = jnp.asarray(around + scale * draw.standard_normal(leaf.shape), leaf.dtype)
    return nnx.merge(graph, nested(flat))


def nested(flat):
    tree = {}
    for path, value in flat.items():
        inner = tree
        for name in path[:-1]:
            inner = inner.setdefault(name, {})
        inner[path[-1]] = value
    return tree


def tiny_host_folder(folder: Path, model_type="bert", head=None, num_labels=None, *, seed=0, host_json=None, **values):
    """Writes a random host with a tokenizer of its own (cased WordPiece, or byte-level BPE) and returns its folder."""
    folder = Path(folder)
    source = TOKENIZERS[model_type](folder.parent / f"{folder.name}-tokenizer")
    vocab_size = Tokenizer.from_file(str(source / "tokenizer.json")).get_vocab_size()
    config = tiny_config(model_type, vocab_size=vocab_size, **values)
    host = random_host(config, head, num_labels, seed=seed)
    return save_host(host, folder, tokenizer_files_from=source, host_json=host_json)


def tiny_batch(config, lengths, length, seed=0):
    """Rows of random tokens, one sequence a row, padded to `length`; the second half of a row is of type 1."""
    draw = np.random.default_rng(seed)
    real = np.arange(length)[None] < np.asarray(lengths)[:, None]
    shape = real.shape
    token_ids = np.where(real, draw.integers(5, config.vocab_size, shape), config.pad_token_id)
    type_ids = np.arange(length)[None] >= np.asarray(lengths)[:, None] // 2
    arrays = {
        "token_ids": token_ids,
        "segment_ids": real,
        "position_ids": np.where(real, np.arange(length)[None], 0),
        "type_ids": real & type_ids & (config.type_vocab_size > 1),
    }
    return {name: jnp.asarray(array, jnp.int32) for name, array in arrays.items()}


def params_of(host):
    return nnx.to_pure_dict(nnx.state(host, nnx.Param))


def same_bits(a, b):
    leaves_a, leaves_b = jax.tree.leaves(params_of(a)), jax.tree.leaves(params_of(b))
    return len(leaves_a) == len(leaves_b) and all(
        np.asarray(x).tobytes() == np.asarray(y).tobytes() for x, y in zip(leaves_a, leaves_b, strict=True)
    )
