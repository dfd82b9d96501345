"""A text with its mentions on its way to pieces: where the mentions lie, and what goes where it is too long.

Mentions are found from characters or words of the text to pieces of the tokenizer. What goes first is context far from
everything that matters.
"""

from __future__ import annotations

import dataclasses
import itertools
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Container, Sequence
from functools import cached_property
from itertools import accumulate, pairwise
from operator import itemgetter
from typing import Literal, get_args

import numpy as np

from kinject.data.records import Mention, check_mentions
from kinject.data.tokenizer import HostTokenizer, Pieces
from kinject.errors import InputError

Text = str | Sequence[str]
Rows = Callable[[list[str]], np.ndarray]  # ids of entities -> int32 rows of the knowledge base, -1 = no vector


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


START, END = itemgetter(0), itemgetter(1)  # of a piece's characters


Passage = TextInput  # its public name; a passage of a memory is kinject.memory.Passage


SlotForm = Literal["before", "instead", "behind"]
"""`[ENTITY] / mention` (map-tuning, E-BERT "concat"), `[ENTITY]` (E-BERT "replace"), `mention ( [ENTITY] )` (PELT)."""


@dataclasses.dataclass(frozen=True, slots=True)
class Insertion:
    """What goes around one mention: marker ids before it, which entity's slot (-1: none), marker ids behind it.

    `size` is how many positions the passage grows by.
    """

    opening: tuple[int, ...]
    slot: int
    closing: tuple[int, ...]
    size: int


class Spelling:
    """How a tokenizer spells what stands around mentions; a vocabulary without a slash serves texts without slots.

    Args:
      tokenizer: the host's.
      separator: what stands between a slot and the mention behind it.
      form: where slots stand.
      joined: as a byte-level BPE spells them in one string with the text; see `EntityEncoder`.

    """

    def __init__(self, tokenizer: HostTokenizer, separator: str, form: SlotForm, joined: bool):
        if form not in get_args(SlotForm):
            raise InputError("form", f"{form!r} is no form of a slot", f"choose from {', '.join(get_args(SlotForm))}")
        self.tokenizer, self.form, self.joined = tokenizer, form, joined and tokenizer.family == "bpe"
        self.separator = separator
        self._words: dict[tuple[str, bool], tuple[int, ...]] = {}

    @cached_property
    def ahead(self) -> tuple[int, ...]:
        """Ids before a mention with a slot; the slot's own is the unknown word's."""
        slash = self.word(self.separator, lone=self.joined) if self.form == "before" else ()
        return () if self.form == "behind" else (self.tokenizer.unk_id, *slash)

    @cached_property
    def behind(self) -> tuple[int, ...]:
        """Ids behind a mention with a slot."""
        return (*self.word("("), self.tokenizer.unk_id, *self.word(")")) if self.form == "behind" else ()

    @cached_property
    def at(self) -> int:
        """Place of the slot in whichever of the two has it."""
        return len(self.word("(")) if self.form == "behind" else 0

    def word(self, word: str, lone: bool = False) -> tuple[int, ...]:
        """Ids of a marker or separator, inside a text or (`lone`) with nothing before it; of "" none."""
        if (word, lone) not in self._words:
            self._words[word, lone] = self.tokenizer.word(word, lone) if word else ()
        return self._words[word, lone]

    def around(self, mention: Mention, slot: int, run: Run) -> Insertion:
        """What goes around a mention that stands at pieces [low, high) and has the slot (-1: none)."""
        low, high = run
        opening = self.word(mention.opening, lone=self.joined and low == 0)
        closing = self.word(mention.closing)
        size = len(opening) + len(closing)
        if slot >= 0:
            size += len(self.ahead) + len(self.behind) - (high - low if self.replaces(mention) else 0)
        return Insertion(opening, slot, closing, size)

    def replaces(self, mention: Mention) -> bool:
        """Whether the mention's pieces go where it has a slot; those that are asked for stay."""
        return self.form == "instead" and not mention.masked


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
        words: list[str] | None = None
        if isinstance(text, str):
            self.text, unit = text, "characters"
        else:
            words = list(text)
            self.text, unit = " ".join(words), "tokens"
        self.mentions = mentions
        self.order = check_mentions(mentions, len(self.text if words is None else words), where, unit, field)
        self.ranges = [_characters(self.text, words, mentions[i], f"{where}: {field}[{i}]") for i in self.order]
        self.pieces = Pieces([], [])
        self.runs: list[Run] = []

    def inserts_first(self, known: Container[str | None]) -> bool:
        """Whether the text begins with a mention that a marker goes before, or a slot, as those of `known` have."""
        if not self.order or self.text[: self.ranges[0][0]].strip():
            return False
        mention = self.mentions[self.order[0]]
        return bool(mention.opening) or (mention.slot and mention.entity in known)

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


def known_rows(sides: list[Side], rows: Rows | None, bare_slots: bool) -> dict[str, int]:
    """Returns the row of every entity of a batch that gets a slot; -1 for those without a vector (`bare_slots`)."""
    if rows is None:
        return {}
    mentions = (mention for side in sides for mention in side.mentions if mention.slot)
    entities = list(dict.fromkeys(mention.entity for mention in mentions if mention.entity is not None))
    if not entities:
        return {}
    found = np.asarray(rows(entities)).tolist()
    return {entity: row for entity, row in zip(entities, found, strict=True) if row >= 0 or bare_slots}


def cut_into_pieces(sides: Sequence[Side], tokenizer: HostTokenizer, spaced: Sequence[bool]) -> None:
    """Sets the pieces of every text, in one call; those that are `spaced` are cut as if a space stood before them."""
    texts = [f" {side.text}" if space else side.text for side, space in zip(sides, spaced, strict=True)]
    for side, space, found in zip(sides, spaced, tokenizer.pieces(texts), strict=True):
        if space:
            found = Pieces(found.ids, [(max(start - 1, 0), max(end - 1, 0)) for start, end in found.offsets])
        side.pieces = found


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
    offsets = side.pieces.offsets
    runs, whole = [], True
    for start, end in side.ranges:
        low, high = bisect_right(offsets, start, key=END), bisect_left(offsets, end, key=START)
        if low < high:
            # byte-level BPE spells a rare word's space as a piece of its own; it goes where the word goes
            lone = low > 0 and offsets[low - 1][1] == start and side.text[start - 1] == " "
            if lone and not side.text[offsets[low - 1][0] : start].strip():
                low -= 1
            beyond = side.text[offsets[low][0] : start] + side.text[end : offsets[high - 1][1]]
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


Run = tuple[int, int]  # pieces [low, high) of a mention
Doomed = list[int]  # indices of pieces, ascending
Truncate = Callable[[list[tuple[list[int], list[Run]]], int, int], list[Doomed] | None]
"""(piece ids and runs of each text, how many must go, mask id) -> for each text what goes; None if it cannot be."""


def doomed_pieces(
    sides: list[tuple[list[int], list[Run]]], excess: int, mask_id: int, left: bool = False
) -> list[Doomed] | None:
    """Chooses `excess` pieces to drop from the texts of a passage.

    Mentions and mask tokens stay. Of the rest, what lies outside of them goes before what lies between them, and the
    farthest from them goes first; a text without either keeps its beginning. Where a text or a pair has neither at all,
    the longer text is cut to the length of the shorter one, then both alike, as transformers does ("longest_first").

    Args:
      sides: for each text its piece ids and the runs of its mentions.
      excess: how many must go.
      mask_id: the host's mask token.
      left: texts without mentions and mask tokens lose their beginning, not their end.

    Returns:
      For each text the indices to drop; None if there are not so many.
    """
    sizes = [len(ids) for ids, _ in sides]
    if sum(sizes) < excess:
        return None
    if len(sides) <= 2 and not any(runs or mask_id in ids for ids, runs in sides):
        kept = _longest_first(sizes, sum(sizes) - excess)
        cuts = zip(sizes, kept, strict=True)
        return [list(range(size - keep)) if left else list(range(keep, size)) for size, keep in cuts]
    ranked = []
    for number, (ids, runs) in enumerate(sides):
        ranked += [(*rank, number, index) for index, rank in _ranks(ids, runs, mask_id)]
    if len(ranked) < excess:
        return None
    ranked.sort(reverse=True)
    gone: list[Doomed] = [[] for _ in sides]
    for *_, number, index in ranked[:excess]:
        gone[number].append(index)
    return [sorted(doomed) for doomed in gone]


def _longest_first(sizes: Sequence[int], room: int) -> list[int]:
    """How many pieces each of one or two texts keeps; of two that are cut, the longer one has the odd piece."""
    if len(sizes) == 1:
        return [room]
    short = min(sizes)
    if 2 * short <= room:
        return [short, room - short] if sizes[0] <= sizes[1] else [room - short, short]
    halves = [room // 2, room - room // 2]
    return halves if sizes[0] <= sizes[1] else halves[::-1]


def doomed_in_turn(sides: list[tuple[list[int], list[Run]]], excess: int, mask_id: int) -> list[Doomed] | None:
    """As `doomed_pieces`, but a text loses nothing while one before it has a piece that may go.

    For what is asked of a passage: the passage goes before the question, and the question before the answer.
    """
    gone: list[Doomed] = []
    for ids, runs in sides:
        ranked = sorted(((rank, index) for index, rank in _ranks(ids, runs, mask_id)), reverse=True)[:excess]
        gone.append(sorted(index for _, index in ranked))
        excess -= len(ranked)
    return None if excess else gone


def cut(ids: list[int], runs: list[Run], doomed: Doomed) -> tuple[list[int], list[Run]]:
    """Returns pieces and runs of a text without its doomed pieces, none of which lies in a run."""
    drop = set(doomed)
    kept = [piece for index, piece in enumerate(ids) if index not in drop]
    moved = [(low - bisect_left(doomed, low), high - bisect_left(doomed, low)) for low, high in runs]
    return kept, moved


def _ranks(ids: list[int], runs: list[Run], mask_id: int) -> list[tuple[int, tuple[bool, int]]]:
    """Returns (index, (lies outside, distance)) of every piece that may go."""
    stays = [piece == mask_id for piece in ids]
    for low, high in runs:
        stays[low:high] = [True] * (high - low)
    anchors = [index for index, stay in enumerate(stays) if stay]
    if not anchors:
        return [(index, (True, index + 1)) for index in range(len(ids))]
    ranks = [(index, (True, anchors[0] - index)) for index in range(anchors[0])]
    for left, right in itertools.pairwise(anchors):
        ranks += [(index, (False, min(index - left, right - index))) for index in range(left + 1, right)]
    ranks += [(index, (True, index - anchors[-1])) for index in range(anchors[-1] + 1, len(ids))]
    return ranks
