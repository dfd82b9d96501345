"""What the benchmarks are made of: a tokenizer of made-up words, and hosts with random weights."""

from __future__ import annotations

import json
from pathlib import Path

import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from kinject.models.config import EncoderConfig
from kinject.models.encoder import Encoder
from kinject.models.heads import HostModel, build_head

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "#", "$", "/")


def words(count: int) -> list[str]:
    """The words that the tokenizer knows, one piece each."""
    return [f"w{i}" for i in range(count)]


def tokenizer_folder(folder: Path, count: int) -> Path:
    """A tokenizer of `count` words and the special ones, as Hugging Face writes it."""
    vocabulary = {word: i for i, word in enumerate([*SPECIAL, *words(count)])}
    backend = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    folder.mkdir(parents=True, exist_ok=True)
    backend.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "BertTokenizer"}')
    config = {"model_type": "bert", "vocab_size": len(vocabulary), "max_position_embeddings": 512}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def shape_of(layers: int, hidden: int, vocabulary: int) -> EncoderConfig:
    """BERT's proportions: 12 heads, feed-forwards of four times the width."""
    return EncoderConfig(
        vocab_size=vocabulary,
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=12,
        intermediate_size=4 * hidden,
    )


def random_host(
    config: EncoderConfig, head: str, labels: int | None = None, dtype: DTypeLike = jnp.float32
) -> HostModel:
    """A host whose weights are drawn, with seed 0 for the encoder and 1 for the head; `dtype` is of its activations."""
    made = {} if labels is None else {"num_labels": labels}
    encoder = Encoder(config, rngs=nnx.Rngs(0), dtype=dtype)
    return HostModel(encoder, build_head(head, config, rngs=nnx.Rngs(1), **made))
