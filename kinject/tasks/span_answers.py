"""Scores of positions -> answers to a question with their probabilities, as the pipeline of transformers 4 gave them.

A window's answer has the probability of its first position times that of its last, each a softmax over the window's
positions of the passage and the first token, which stands for no answer. Answers grow to whole words; those of the same
words, in any case and in any window, are added up.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from kinject.tasks.base import Answer

if TYPE_CHECKING:
    from kinject.data.tokenizer import HostTokenizer

NEVER = -1e9  # the score of a position that cannot be an answer's
OUT = -1e4  # the same as the pipeline has it, before its softmax
SPARE = 10  # so many candidates a window, and twice those asked for, as some turn out to be the same words


def best_sums(starts: jax.Array, ends: jax.Array, longest: int, top: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The spans with the largest sums of a score of their first and one of their last position.

    Args:
      starts: float32 [B, L].
      ends: float32 [B, L].
      longest: positions of a span, at most.
      top: how many.

    Returns:
      (sums float32 [B, top], first and last positions int32 [B, top]), largest first; fewer where there are fewer.
    """
    length = starts.shape[1]
    shifted = [
        jnp.pad(ends[:, more:], ((0, 0), (0, more)), constant_values=NEVER) for more in range(min(longest, length))
    ]
    sums = starts[:, :, None] + jnp.stack(shifted, -1)  # [B, L, longest]: by first position and length less one
    flat = sums.reshape(len(sums), -1)
    if top == 1:  # argmax compiles to less
        at = flat.argmax(-1)[:, None]
        found = jnp.take_along_axis(flat, at, axis=1)
    else:
        found, at = jax.lax.top_k(flat, min(top, flat.shape[1]))
    first, more = jnp.divmod(at, len(shifted))
    return found, first, first + more


def candidates(scores: jax.Array, batch: Mapping[str, jax.Array], longest: int, top: int) -> dict[str, jax.Array]:
    """The most probable spans of each window, and the probability that it has no answer.

    Args:
      scores: float32 [B, L, 2] of each position as start and as end.
      batch: reads `answerable` and `token_ids`, int32 [B, L].
      longest: positions of an answer, at most.
      top: how many answers a question may have.

    Returns:
      `first`, `last` int32 [B, n], `log` float32 [B, n], logarithms of their probabilities, and `none` float32 [B].
    """
    here, ids = batch["answerable"] > 0, batch["token_ids"]
    read = here | (ids == ids[:, :1])  # the first token, wherever it stands
    logs = [jax.nn.log_softmax(jnp.where(read, scores[:, :, side], OUT), axis=-1) for side in (0, 1)]
    starts, ends = (jnp.where(here, one, NEVER) for one in logs)
    found, first, last = best_sums(starts, ends, longest, 2 * top + SPARE)
    return {"first": first, "last": last, "log": found, "none": jnp.exp(logs[0][:, 0] + logs[1][:, 0])}


def read_answers(
    text: str,
    rows: Sequence[tuple[Mapping[str, np.ndarray], Any]],
    top: int,
    tokenizer: HostTokenizer,
    may_have_none: bool,
) -> list[Answer]:
    """The answers that a passage holds, most probable first, at most `top`.

    Args:
      text: the passage.
      rows: of each window, its row of `candidates` and what has its `characters` int32 [L, 2].
      top: see above.
      tokenizer: the host's.
      may_have_none: whether no answer is one too, with its lowest probability of all windows.
    """
    encoding = tokenizer.backend.encode(text, add_special_tokens=False)
    words: dict[tuple[int, int], int | None] = dict(zip(encoding.offsets, encoding.word_ids, strict=True))
    found: dict[str, Answer] = {}
    for row, window in rows:
        places = [tuple(one) for one in window.characters.tolist()]
        for first, last, log in zip(row["first"].tolist(), row["last"].tolist(), row["log"].tolist(), strict=True):
            if log < OUT / 2:
                continue
            while _same_word(places, first - 1, first, words):
                first -= 1
            while _same_word(places, last, last + 1, words):
                last += 1
            start, end = places[first][0], places[last][1]
            words_of = text[start:end]
            known = found.setdefault(words_of.lower(), Answer(words_of, 0.0, start, end))
            found[words_of.lower()] = known._replace(score=known.score + math.exp(log))
    answers = list(found.values())
    if may_have_none:
        answers.append(Answer("", min(float(row["none"]) for row, _ in rows), 0, 0))
    return sorted(answers, key=lambda one: -one.score)[:top]


def _same_word(
    places: Sequence[tuple[int, int]], one: int, other: int, words: Mapping[tuple[int, int], int | None]
) -> bool:
    """Whether two positions of a window are pieces of one word; a word that a window cuts off ends there."""
    if one < 0 or other >= len(places):
        return False
    word = words.get(places[one])
    return word is not None and word == words.get(places[other])
