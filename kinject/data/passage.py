"""A text with its mentions, as it is encoded: the mentions' characters or words become pieces of the tokenizer."""

from __future__ import annotations

import dataclasses
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from itertools import accumulate, pairwise

from kinject.data.records import Mention, check_mentions
from kinject.data.tokenizer import HostTokenizer, Pieces
from kinject.data.truncate import Doomed, Run, cut
from kinject.errors import InputError

Text = str | Sequence[str]


@dataclasses.dataclass(frozen=True, slots=True)
class TextInput:
    """What is encoded: a text (a string, or words that single spaces join), its mentions, perhaps a second text.

    Mentions count in characters of a string and in items of a word list. `where` stands in messages ("file:line").
    `further` are texts behind the pair, without mentions: a question about a passage, then an answer to it.
    """

    text: Text
    mentions: Sequence[Mention] = ()
    pair: Text | None = None
    pair_mentions: Sequence[Mention] = ()
    where: str = "text"
    further: Sequence[Text] = ()


Passage = TextInput  # its public name; a passage of a memory is kinject.memory.Passage


class Side:
    """One text of an input on its way from characters to pieces.

    Attributes:
      mentions: as given; `order` lists their indices in the order of the text.
      ranges: characters [start, end) of the mentions in that order, white space around them left out.
      pieces: set by the encoder, then by `locate` and `shorten`.
      runs: pieces [low, high) of the mentions in that order, set by `locate`.
    """

    __slots__ = ("mentions", "order", "pieces", "ranges", "runs", "text")

    def __init__(self, text: Text, mentions: Sequence[Mention], where: str, field: str):
        words = None if isinstance(text, str) else list(text)
        self.text: str = text if isinstance(text, str) else " ".join(text)
        self.mentions = mentions
        unit = "characters" if words is None else "tokens"
        self.order = check_mentions(mentions, len(self.text if words is None else words), where, unit, field)
        self.ranges = [_characters(self.text, words, mentions[i], f"{where}: {field}[{i}]") for i in self.order]
        self.pieces = Pieces([], [])
        self.runs: list[Run] = []

    def locate(self, tokenizer: HostTokenizer, where: str) -> None:
        """Finds the pieces of each mention; cuts the text at its mentions where a piece reaches across an end.

        Raises:
          InputError: a mention of which the tokenizer keeps nothing.
        """
        if not self.order:
            return
        runs, whole = _runs(self)
        if not whole:
            self.pieces = _split_pieces(self, tokenizer)
            runs, _ = _runs(self)
        for number, (low, high) in zip(self.order, runs, strict=True):
            if low >= high:
                mention = self.mentions[number]
                problem = f"the tokenizer keeps nothing of the mention {mention.start}:{mention.end}"
                raise InputError(where, problem, "drop the mention")
        self.runs = runs

    def shorten(self, doomed: Doomed) -> None:
        """Drops pieces, none of which belongs to a mention."""
        if doomed:
            ids, self.runs = cut(self.pieces.ids, self.runs, doomed)
            gone = set(doomed)
            offsets = [each for index, each in enumerate(self.pieces.offsets) if index not in gone]
            self.pieces = Pieces(ids, offsets)


def sides_of(passage: TextInput) -> list[Side]:
    """Returns one side a text; raises InputError for mentions that are outside their text or overlap."""
    sides = [Side(passage.text, passage.mentions, passage.where, "mentions")]
    if passage.pair is not None:
        sides.append(Side(passage.pair, passage.pair_mentions, passage.where, "pair_mentions"))
    elif passage.pair_mentions:
        raise InputError(passage.where, "pair_mentions without a pair", "give the second text")
    return [*sides, *(Side(text, (), passage.where, "") for text in passage.further)]


def _characters(text: str, words: list[str] | None, mention: Mention, where: str) -> tuple[int, int]:
    start, end = mention.start, mention.end
    if words is not None:
        # one space stands before every word but the first
        starts = [0, *accumulate(len(word) + 1 for word in words[:end])]
        start, end = starts[start], starts[end] - 1
    name = text[start:end]
    kept = name.strip()
    if not kept:
        raise InputError(where, "is only white space", "drop the mention")
    start += name.index(kept)
    return start, start + len(kept)


def _runs(side: Side) -> tuple[list[Run], bool]:
    """Returns the pieces that touch each mention, and whether none of them reaches beyond its mention."""
    starts = [start for start, _ in side.pieces.offsets]
    ends = [end for _, end in side.pieces.offsets]
    runs, whole = [], True
    for start, end in side.ranges:
        low, high = bisect_right(ends, start), bisect_left(starts, end)
        if low < high:
            # byte-level BPE spells a rare word's space as a piece of its own; it goes where the word goes
            lone = low > 0 and ends[low - 1] == start and side.text[start - 1] == " "
            if lone and not side.text[starts[low - 1] : start].strip():
                low -= 1
            beyond = side.text[starts[low] : start] + side.text[end : ends[high - 1]]
            whole = whole and not beyond.strip()  # some tokenizers count the space before a word to its piece
        runs.append((low, high))
    return runs, whole


def _split_pieces(side: Side, tokenizer: HostTokenizer) -> Pieces:
    cuts = [0]
    for start, end in side.ranges:
        while start > cuts[-1] and side.text[start - 1].isspace():
            start -= 1  # byte-level BPE spells a word with the space before it
        cuts += [start, end]
    cuts.append(len(side.text))
    parts = tokenizer.pieces([side.text[low:high] for low, high in pairwise(cuts)])
    ids = [piece for part in parts for piece in part.ids]
    offsets = [(low + a, low + b) for low, part in zip(cuts[:-1], parts, strict=True) for a, b in part.offsets]
    return Pieces(ids, offsets)
