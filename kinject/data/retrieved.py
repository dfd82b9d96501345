"""Texts put behind encoded examples: `[CLS] input [SEP] text [SEP]`. The input stays as it is, piece by piece."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from kinject.data.pipeline import Examples
from kinject.data.tokenizer import HostTokenizer
from kinject.errors import InputError

PER_TOKEN = ("token_ids", "segment_ids", "position_ids", "type_ids", "entity_slot")


def append_texts(
    examples: Examples, texts: Sequence[Sequence[Sequence[str]]], tokenizer: HostTokenizer, *, budget: int, longest: int
) -> Examples:
    """Appends texts to every row of tokens.

    Args:
      examples: whose token arrays are [n, L] or [n, C, L].
      texts: for each example, for each of its rows, texts in order of preference; a single row's list serves all.
      tokenizer: the host's.
      budget: pieces a text may take, its separator not counted; what is beyond is cut.
      longest: positions a row may take; texts that do not fit are cut or left out, the input never is.

    Raises:
      InputError: examples whose tokens are only made when they are dealt.
    """
    if examples.complete is not None:
        raise InputError("task", "its rows are made as they are dealt", "retrieved text serves tasks with fixed rows")
    pieces = _pieces(texts, tokenizer, budget)
    buckets = tuple(
        _appended(bucket, [pieces[i] for i in bucket["index"]], tokenizer, longest) for bucket in examples.buckets
    )
    lengths = tuple(bucket["token_ids"].shape[-1] for bucket in buckets)
    return replace(examples, buckets=buckets, lengths=lengths)


def mean_length(examples: Examples) -> float:
    """Mean number of tokens of a row that is no padding."""
    real = [(bucket["segment_ids"] > 0).sum(-1).reshape(-1) for bucket in examples.buckets]
    lengths = np.concatenate(real)
    return float(lengths[lengths > 0].mean())


def _pieces(texts: Sequence, tokenizer: HostTokenizer, budget: int) -> list[list[list[list[int]]]]:
    """The ids of every text, cut to the budget, in one call of the tokenizer."""
    distinct = list(dict.fromkeys(text for rows in texts for row in rows for text in row))
    ids = {text: one.ids[:budget] for text, one in zip(distinct, tokenizer.pieces(distinct), strict=True)}
    return [[[ids[text] for text in row if ids[text]] for row in rows] for rows in texts]


def _appended(
    bucket: Mapping[str, np.ndarray], texts: list[list[list[list[int]]]], tokenizer: HostTokenizer, longest: int
) -> dict[str, np.ndarray]:
    several = bucket["token_ids"].shape[:-1]
    flat = {name: bucket[name].reshape(-1, bucket[name].shape[-1]) for name in PER_TOKEN}
    each = int(np.prod(several[1:], dtype=int))
    sizes = (flat["segment_ids"] > 0).sum(1)
    before = tokenizer.between[len(tokenizer.after) :]  # the input ends with a separator already
    added = []
    for row, size in enumerate(sizes.tolist()):
        own = texts[row // each]
        some = own[row % each] if len(own) > 1 else own[0]
        added.append(_joined(some, before, tokenizer.after, longest - size) if size else [])
    length = int(max(size + len(more) for size, more in zip(sizes.tolist(), added, strict=True)))
    fills = {"token_ids": tokenizer.pad_id, "entity_slot": -1}
    wide = {name: _widened(values, length, fills.get(name, 0)) for name, values in flat.items()}
    for row, (size, more) in enumerate(zip(sizes.tolist(), added, strict=True)):
        here = slice(size, size + len(more))
        wide["token_ids"][row, here] = more
        wide["segment_ids"][row, here] = wide["segment_ids"][row, size - 1] if size else 0
        wide["position_ids"][row, here] = np.arange(size, size + len(more))
        wide["type_ids"][row, here] = tokenizer.pair_type
    return {**bucket, **{name: values.reshape(*several, length) for name, values in wide.items()}}


def _joined(texts: list[list[int]], before: Sequence[int], after: Sequence[int], room: int) -> list[int]:
    """`before text after` of each text that fits; the last one may be cut."""
    made: list[int] = []
    for ids in texts:
        left = room - len(made) - len(before) - len(after)
        if left < 1:
            break
        made += [*before, *ids[:left], *after]
    return made


def _widened(values: np.ndarray, length: int, fill: int) -> np.ndarray:
    wide = np.full((len(values), length), fill, values.dtype)
    kept = min(length, values.shape[1])
    wide[:, :kept] = values[:, :kept]
    return wide
