"""Tensors of a Hugging Face folder: read one at a time by name, and the table of which is which parameter of a host.

Files are safetensors or torch's, whole or in shards. The table serves reading and writing alike.
"""

from __future__ import annotations

import dataclasses
import json
import re
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open

from kinject.errors import InputError, first_line
from kinject.models.config import EncoderConfig
from kinject.models.heads import DependencyHead, head_kind

FILES = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
FLOATS = ("float32", "float16", "bfloat16", "float64")


class Tensors(Mapping[str, np.ndarray]):
    """The tensors of one checkpoint; `tensors[key]` reads that one from disk.

    Attributes:
      path: the file or shard index they are from.
    """

    def __init__(self, path: Path, readers: dict[str, Callable[[], np.ndarray]]):
        self.path = path
        self._readers = readers

    def __getitem__(self, key: str) -> np.ndarray:
        try:
            array = self._readers[key]()
        except (SafetensorError, TypeError, ValueError, RuntimeError) as error:
            raise InputError(
                self.path, f"{key} cannot be read ({first_line(error, 200)})", "get the file again"
            ) from error
        if array.dtype.name not in FLOATS:
            raise InputError(self.path, f"{key} is of {array.dtype.name}", "weights must be floating point")
        return array

    def __iter__(self) -> Iterator[str]:
        return iter(self._readers)

    def __len__(self) -> int:
        return len(self._readers)


def open_tensors(folder: Path) -> Tensors:
    """Opens the weights of a folder; of several files the first of `FILES` counts.

    Raises:
      InputError: no weights, a shard that is missing, or a file that is truncated or of another format.
    """
    for name in FILES:
        path = folder / name
        if path.is_file():
            shards = _shards(path) if name.endswith(".json") else [path]
            break
    else:
        raise InputError(folder, "has no weights", f"put one of {', '.join(FILES)} there")
    readers: dict[str, Callable[[], np.ndarray]] = {}
    for shard in shards:
        opened = _safetensors(shard) if shard.suffix == ".safetensors" else _torch(shard)
        twice = readers.keys() & opened.keys()
        if twice:
            raise InputError(shard, f"{min(twice)} is in another shard too", "get the shards again")
        readers.update(opened)
    return Tensors(path, readers)


def open_file(path: Path) -> Tensors:
    """Opens one safetensors file."""
    return Tensors(path, _safetensors(path))


def _shards(index: Path) -> list[Path]:
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(index, "is no shard index (needs weight_map)", "get the file again") from error
    for name in names:
        # a name is joined to the folder and opened: it may not lead out of it
        if not isinstance(name, str) or Path(name).name != name or not (index.parent / name).is_file():
            raise InputError(index, f"names the shard {name!r}, which is not beside it", "get the shards again")
    return [index.parent / name for name in names]


def _safetensors(path: Path) -> dict[str, Callable[[], np.ndarray]]:
    try:
        opened = safe_open(path, framework="numpy")
    except (SafetensorError, OSError) as error:
        problem = f"is truncated or no safetensors file ({first_line(error, 200)})"
        raise InputError(path, problem, "get the file again") from error
    return {key: partial(opened.get_tensor, key) for key in opened.keys()}  # noqa: SIM118 (no mapping)


def _torch(path: Path) -> dict[str, Callable[[], np.ndarray]]:
    try:
        import torch
    except ImportError as error:
        mend = "install torch, or convert the weights to model.safetensors"
        raise InputError(path, "is a torch file, and torch is not installed", mend) from error
    try:
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except Exception as error:  # torch raises a dozen kinds for a bad file, and UnpicklingError for code in it
        problem = f"is no torch file of plain tensors ({first_line(error, 200)})"
        raise InputError(path, problem, "convert it to model.safetensors where you trust it") from error
    if not isinstance(state, Mapping) or not all(isinstance(v, torch.Tensor) for v in state.values()):
        raise InputError(path, "holds something other than a flat dict of tensors", "save the model's state_dict()")
    return {key: partial(_from_torch, tensor) for key, tensor in state.items()}


def _from_torch(tensor: Any) -> np.ndarray:
    import torch

    tensor = tensor.detach().contiguous()
    if tensor.dtype == torch.bfloat16:  # numpy knows none of its own
        return tensor.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    return tensor.numpy()


To = Callable[[np.ndarray, EncoderConfig], np.ndarray]


@dataclasses.dataclass(frozen=True)
class Transform:
    """How a tensor of theirs becomes one of ours, and back; shapes are [out, in] there and [in, …, out] here."""

    ours: To
    theirs: To


SAME = Transform(lambda t, _: t, lambda t, _: t)
DENSE = Transform(lambda t, _: t.T, lambda t, _: t.T)
HEADS_OUT = Transform(  # query, key or value kernel: [H * Dh, D] there, [D, H, Dh] here
    lambda t, c: t.T.reshape(-1, c.num_attention_heads, c.head_dim), lambda t, c: t.reshape(c.hidden_size, -1).T
)
HEADS_BIAS = Transform(lambda t, c: t.reshape(c.num_attention_heads, c.head_dim), lambda t, c: t.reshape(c.hidden_size))
HEADS_IN = Transform(  # output projection of the attention: [D, H * Dh] there, [H, Dh, D] here
    lambda t, c: t.T.reshape(c.num_attention_heads, c.head_dim, -1), lambda t, c: t.reshape(c.hidden_size, -1).T
)


def _single(transform: Transform) -> Transform:
    """The same for an attention of one head, whatever the encoder has."""

    def of(way: To) -> To:
        return lambda t, c: way(t, dataclasses.replace(c, num_attention_heads=1))

    return Transform(of(transform.ours), of(transform.theirs))


@dataclasses.dataclass(frozen=True)
class Rule:
    """One tensor: `key` of theirs (without `bert.` or `roberta.`), `path` of ours, and the way between.

    `part` tells which slice of the parameter's axis `axis` the tensor is, where several share one parameter.
    """

    key: str
    path: str
    transform: Transform
    part: int | None = None
    axis: int = 0


def _dense(key: str, path: str) -> tuple[Rule, ...]:
    return Rule(f"{key}.weight", f"{path}/kernel", DENSE), Rule(f"{key}.bias", f"{path}/bias", SAME)


def _norm(key: str, path: str) -> tuple[Rule, ...]:
    return Rule(f"{key}.weight", f"{path}/scale", SAME), Rule(f"{key}.bias", f"{path}/bias", SAME)


_EMBEDDING_RULES = (
    Rule("embeddings.word_embeddings.weight", "encoder/embeddings/word/embedding", SAME),
    Rule("embeddings.position_embeddings.weight", "encoder/embeddings/position/embedding", SAME),
    Rule("embeddings.token_type_embeddings.weight", "encoder/embeddings/type/embedding", SAME),
    *_norm("embeddings.LayerNorm", "encoder/embeddings/norm"),
)


def _attention(theirs: str, ours: str, kernel: Transform, bias: Transform, output: Transform) -> tuple[Rule, ...]:
    return (
        *(
            rule
            for part, name in enumerate(("query", "key", "value"))
            for rule in (
                Rule(f"{theirs}.self.{name}.weight", f"{ours}/qkv/kernel", kernel, part, axis=1),
                Rule(f"{theirs}.self.{name}.bias", f"{ours}/qkv/bias", bias, part),
            )
        ),
        Rule(f"{theirs}.output.dense.weight", f"{ours}/output/kernel", output),
        Rule(f"{theirs}.output.dense.bias", f"{ours}/output/bias", SAME),
        *_norm(f"{theirs}.output.LayerNorm", f"{ours}/norm"),
    )


def _layer_rules(i: int) -> tuple[Rule, ...]:
    theirs, ours = f"encoder.layer.{i}", f"encoder/layers/{i}"
    return (
        *_attention(f"{theirs}.attention", f"{ours}/attention", HEADS_OUT, HEADS_BIAS, HEADS_IN),
        *_dense(f"{theirs}.intermediate.dense", f"{ours}/feed_forward/up"),
        *_dense(f"{theirs}.output.dense", f"{ours}/feed_forward/down"),
        *_norm(f"{theirs}.output.LayerNorm", f"{ours}/feed_forward/norm"),
    )


_BERT_LM = (
    *_dense("cls.predictions.transform.dense", "head/transform"),
    *_norm("cls.predictions.transform.LayerNorm", "head/norm"),
    Rule("cls.predictions.bias", "head/bias", SAME),
)
_ROBERTA_LM = (
    *_dense("lm_head.dense", "head/transform"),
    *_norm("lm_head.layer_norm", "head/norm"),
    Rule("lm_head.bias", "head/bias", SAME),
)
_BERT_POOLED = (*_dense("pooler.dense", "head/pooler"), *_dense("classifier", "head/output"))
_ROBERTA_POOLED = (*_dense("classifier.dense", "head/pooler"), *_dense("classifier.out_proj", "head/output"))
_PLAIN = {"token_classification": _dense("classifier", "head/output"), "span": _dense("qa_outputs", "head/output")}
_JOINED = (*_dense("mentions.dense", "head/dense"), *_dense("mentions.output", "head/output"))  # the name is ours
_DEPENDENCY = (  # and so is this one
    *_attention("dependencies.attention", "head/attention", *map(_single, (HEADS_OUT, HEADS_BIAS, HEADS_IN))),
    *_dense("dependencies.dense", "head/dense"),
    *_dense("dependencies.output", "head/output"),
)

# What a checkpoint may hold beside what is asked for. Anything else there is an error, not a warning.
_BUFFERS = re.compile(r"embeddings\.(position_ids|token_type_ids)")
_OTHER_HEADS = re.compile(
    r"cls\.seq_relationship\.(weight|bias)|qa_outputs\.(weight|bias)|pooler\.dense\.(weight|bias)"
    r"|mentions\.(dense|output)\.(weight|bias)|dependencies\.(attention|dense|output)\..*"
    r"|classifier\.((dense|out_proj)\.)?(weight|bias)|lm_head\.((dense|layer_norm|decoder)\.)?(weight|bias)"
    r"|cls\.predictions\.((decoder|transform\.dense|transform\.LayerNorm)\.)?(weight|bias)"
)

# Tensors that are another one under a second name, where the masked-LM decoder is tied.
TIED = {
    "cls.predictions.decoder.weight": "embeddings.word_embeddings.weight",
    "cls.predictions.decoder.bias": "cls.predictions.bias",
    "lm_head.decoder.weight": "embeddings.word_embeddings.weight",
    "lm_head.decoder.bias": "lm_head.bias",
}


def rules(config: EncoderConfig, head: str | None) -> tuple[Rule, ...]:
    """Returns the table of a host with this shape and kind of head (None = bare encoder)."""
    layers = (rule for i in range(config.num_hidden_layers) for rule in _layer_rules(i))
    return (*_EMBEDDING_RULES, *layers, *_head_rules(config, head))


def _head_rules(config: EncoderConfig, head: str | None) -> tuple[Rule, ...]:
    if head is None:
        return ()
    roberta, kind = config.model_type == "roberta", head_kind(head)
    if not kind.own_output:
        return _ROBERTA_LM if roberta else _BERT_LM
    if kind.places:
        return _JOINED
    if kind.module is DependencyHead:
        return _DEPENDENCY
    if head in _PLAIN:
        return _PLAIN[head]
    # Hugging Face's RoBERTa pools for multiple choice as BERT does, and for classification in its own way
    return _ROBERTA_POOLED if roberta and head != "multiple_choice" else _BERT_POOLED


def architecture(config: EncoderConfig, head: str | None) -> str:
    """Returns the transformers class that holds the same parameters; the bare encoder's where none has the head."""
    family = {"bert": "Bert", "roberta": "Roberta"}[config.model_type]
    return f"{family}Model" if head is None else family + head_kind(head).architecture


def full_key(rule: Rule, config: EncoderConfig, head: str | None) -> str:
    """Returns the key as transformers writes it: prefixed where a head stands beside the encoder."""
    inside = rule.key.startswith(("embeddings.", "encoder.", "pooler."))
    return f"{config.model_type}.{rule.key}" if head is not None and inside else rule.key


def canonical(keys: Iterable[str], config: EncoderConfig, where: object) -> dict[str, str]:
    """Returns {key of the table's form: key in the file}, whatever age and class the checkpoint is from.

    Raises:
      InputError: two keys of the file name the same tensor.
    """
    found: dict[str, str] = {}
    for key in keys:
        name = key.removeprefix(f"{config.model_type}.")
        name = re.sub(r"(?<=\.LayerNorm\.)gamma$", "weight", name)
        name = re.sub(r"(?<=\.LayerNorm\.)beta$", "bias", name)
        if name in found:
            raise InputError(where, f"{found[name]} and {key} are the same tensor", "remove one of them")
        found[name] = key
    return found


def set_aside(names: Iterable[str], wanted: Iterable[str]) -> tuple[list[str], list[str]]:
    """Sorts names of a checkpoint that were not asked for into (other heads' weights, unexpected ones).

    Args:
      names: canonical keys of the checkpoint.
      wanted: canonical keys of the host's table.
    """
    rest = sorted(set(names) - set(wanted))
    rest = [name for name in rest if not _BUFFERS.fullmatch(name)]
    unused = [name for name in rest if _OTHER_HEADS.fullmatch(name)]
    return unused, sorted(set(rest) - set(unused))
