"""Tags of pieces -> the names in a text, as transformers' token-classification pipeline puts them together.

`none` gives each piece; `simple` joins neighbours of one type, where no tag begins a new one (B-). `first`, `max` and
`average` give all pieces of a word one tag before that: that of its first piece, of the piece with the highest score,
or of the mean of their scores.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from kinject.data.tokenizer import HostTokenizer
from kinject.errors import InputError, did_you_mean
from kinject.tasks.base import Answer

Aggregation = Literal["none", "simple", "first", "max", "average"]
OUTSIDE = "O"


@dataclass(frozen=True, eq=False)
class TextPieces:
    """The pieces of a text that tags are of.

    Attributes:
      text: the text.
      ids: int32 [P].
      characters: int32 [P, 2]: where each stands, end exclusive.
    """

    text: str
    ids: np.ndarray
    characters: np.ndarray


def checked_aggregation(value: object) -> Aggregation:
    """The value, if it is one of `Aggregation`; raises InputError if not."""
    if value not in get_args(Aggregation):
        hint = did_you_mean(str(value), get_args(Aggregation))
        raise InputError("task_options.aggregation", f"there is no {value!r}", hint)
    found: Aggregation = value  # type: ignore[assignment]  # one of its words, as was just asked
    return found


def names_in(
    pieces: TextPieces, scores: np.ndarray, labels: Sequence[str], aggregation: Aggregation, tokenizer: HostTokenizer
) -> list[Answer]:
    """The names in a text, in its order; what is outside of all names (`O`) is left out.

    Args:
      pieces: of the text.
      scores: float32 [P, labels]: probabilities of each piece's tags.
      labels: what the tags are called.
      aggregation: see above.
      tokenizer: the host's.
    """
    if aggregation in ("first", "max", "average"):
        words = word_runs(pieces, tokenizer)
    else:
        words = [(i, i + 1) for i in range(len(pieces.ids))]
    found = []
    for low, high in words:
        row = _of_word(scores[low:high], aggregation)
        tag = int(np.argmax(row))
        start, end = int(pieces.characters[low, 0]), int(pieces.characters[high - 1, 1])
        found.append((labels[tag], row[tag], start, end))
    if aggregation != "none":
        found = [_joined(group) for group in _groups(found)]
    return [Answer(label, float(score), start, end) for label, score, start, end in found if label != OUTSIDE]


def word_runs(pieces: TextPieces, tokenizer: HostTokenizer) -> list[tuple[int, int]]:
    """Runs [low, high) of pieces that are one word.

    Where the tokenizer marks pieces inside a word (`##`), a piece that is longer or shorter than its characters goes on
    with the word before; elsewhere one before which no space stands. The unknown word always begins one.
    """
    model, text, starts = tokenizer.backend.model, pieces.text, []
    marks = bool(getattr(model, "continuing_subword_prefix", None))
    for number, (piece, (start, end)) in enumerate(zip(pieces.ids.tolist(), pieces.characters.tolist(), strict=True)):
        if piece == tokenizer.unk_id:
            inside = False
        elif marks:
            inside = len(tokenizer.backend.id_to_token(piece) or "") != end - start
        else:
            inside = start > 0 and " " not in text[start - 1 : start + 1]
        if not inside or number == 0:
            starts.append(number)
    return list(itertools.pairwise([*starts, len(pieces.ids)]))


Found = tuple[str, np.floating, int, int]


def _of_word(scores: np.ndarray, aggregation: Aggregation) -> np.ndarray:
    """The scores [labels] that count for a word of pieces with these, [P, labels]."""
    if aggregation == "max":
        return scores[int(np.argmax(scores.max(-1)))]
    return scores.mean(0) if aggregation == "average" else scores[0]


def _groups(found: Sequence[Found]) -> list[list[Found]]:
    groups: list[list[Found]] = []
    for one in found:
        if groups and not one[0].startswith("B-") and _type(one[0]) == _type(groups[-1][-1][0]):
            groups[-1].append(one)
        else:
            groups.append([one])
    return groups


def _joined(group: Sequence[Found]) -> Found:
    return group[0][0].split("-", 1)[-1], np.mean([one[1] for one in group]), group[0][2], group[-1][3]


def _type(label: str) -> str:
    return label[2:] if label.startswith(("B-", "I-")) else label
