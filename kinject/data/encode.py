"""Text and mentions -> ids, entity slots and spans. Nothing else in kinject turns text into ids.

The form is that of map-tuning (Zhang et al., ACL 2023): an entity with a vector takes one extra token position, the
slot, before a slash and the mention, `[ENTITY] / mention words`; task markers stand around all of it,
`# [ENTITY] / mention words #`. An entity without a vector gets neither slot nor slash.

The text is cut into pieces once, whole, and slots, slashes and markers are put between those pieces: what is inserted
can therefore not change a piece of the text or of the mention, for WordPiece as for byte-level BPE. Taken out again
they leave what the host's own tokenizer makes of the text. Only where a mention starts or ends inside a piece (the
`German` of `Germans`) is the text cut at its mentions first, so that a mention owns whole pieces; that too is the same
with and without slots.

The slot holds the host's unknown-word id, whose embedding the plugin replaces: the mask id would look like a blank.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, overload

import numpy as np

from kinject.data.passage import (
    Insertion,
    Passage,
    Rows,
    Run,
    Side,
    SlotForm,
    Spelling,
    Text,
    Truncate,
    cut_into_pieces,
    doomed_pieces,
    known_rows,
    sides_of,
)
from kinject.data.records import Mention
from kinject.data.tokenizer import HostTokenizer
from kinject.errors import InputError

if TYPE_CHECKING:
    from kinject.knowledge.base import KnowledgeBase

__all__ = ["Encoded", "EntityEncoder", "Mention", "Passage", "Rows", "origins_of", "rows_with_vector"]


NONE = np.empty(0, np.int32)
NONE.setflags(write=False)  # all texts share it


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Encoded:
    """One encoded passage of L positions, special tokens included; all arrays are int32.

    Args:
      token_ids [L], type_ids [L]: as the host wants them; a slot holds the unknown-word id.
      entity_slot [L]: -1, or which of `entities` stands here.
      entities: distinct ids with a slot, in the order of their first slot.
      entity_rows [len(entities)]: their rows in the knowledge base.
      spans [n, 2]: positions [start, end) of each mention's own pieces, mentions of `text` as given, then the pair's.
      markers [n, 2]: position of the first piece of the opening and of the closing marker; -1 where there is none.
      mask_positions [P], label_ids [P]: pieces of masked mentions, and the ids that stood there.
      blanks [Q]: mask tokens that the text itself had.
      origins [L, 3]: the text that a piece is of (0, 1, …; -1 for what no text has: special tokens, slots, markers) and
        the characters [start, end) of it that the piece stands for. None unless asked for.
    """

    token_ids: np.ndarray
    type_ids: np.ndarray
    entity_slot: np.ndarray
    entities: tuple[str, ...]
    entity_rows: np.ndarray
    spans: np.ndarray
    markers: np.ndarray
    mask_positions: np.ndarray
    label_ids: np.ndarray
    blanks: np.ndarray
    origins: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.token_ids)


def origins_of(one: Encoded) -> np.ndarray:
    """`Encoded.origins` of a passage that was encoded with them, int32 [L, 3]; ValueError where it was not."""
    if one.origins is None:
        raise ValueError("the passage was encoded without its origins")
    return one.origins


def rows_with_vector(knowledge: KnowledgeBase) -> Rows:
    """Returns the `rows` of a knowledge base for `encode_batch`: -1 also for entities it knows but has no vector of."""
    return partial(_rows_with_vector, knowledge)


def _rows_with_vector(knowledge: KnowledgeBase, entities: list[str]) -> np.ndarray:
    rows = knowledge.rows(entities)
    return np.where(knowledge.present(rows), rows, -1)


class EntityEncoder:
    """Encodes passages for one host.

    Args:
      tokenizer: the host's.
      max_length: positions a passage may take, special tokens included; the host's maximum when None.
      separator: what stands between slot and mention.
      max_entities: most distinct entities a passage may have (the M of a batch); those that come later in the text get
        no slot. None = no limit.
      truncate: chooses the pieces that go from a passage that is too long; see data/passage.py. None = `doomed_pieces`.
      joined: spell slots and markers as a byte-level BPE does where they stand in one string with the text, and a slot
        takes the space behind it: the slash has none before it, a marker that begins the text neither, and the mention
        behind one has. (For other tokenizers it changes nothing.)
      form: where slots stand; `[ENTITY] / mention` is "before".

    Raises:
      InputError: a length the host does not have; on encoding a slot, a separator that its vocabulary cannot spell.
    """

    def __init__(
        self,
        tokenizer: HostTokenizer,
        max_length: int | None = None,
        separator: str = "/",
        max_entities: int | None = None,
        truncate: Truncate | None = None,
        joined: bool = False,
        form: SlotForm = "before",
    ):
        self.tokenizer = tokenizer
        self.spelling = Spelling(tokenizer, separator, form, joined)
        self.separator = separator
        self.shortened: set[str] = set()  # `where` of the passages that lost pieces so far
        self.truncate = truncate or partial(doomed_pieces, left=tokenizer.cut_left)
        self.max_length = tokenizer.max_length if max_length is None else max_length
        least = len(tokenizer.before) + len(tokenizer.between) + len(tokenizer.after) + 1
        if not least <= self.max_length <= tokenizer.max_length:
            problem = f"{self.max_length} is not a length of this host"
            raise InputError("max_length", problem, f"choose from {least} to {tokenizer.max_length}")
        if max_entities is not None and max_entities < 0:
            raise InputError("max_entities", f"{max_entities} is negative", "give 0 or more")
        self.max_entities = max_entities

    def like(self, **changes: Any) -> EntityEncoder:
        """The same encoder but for some of its arguments; both tell of the same shortened passages."""
        names = ("tokenizer", "max_length", "separator", "max_entities", "truncate")
        own = {name: getattr(self, name) for name in names}
        made = EntityEncoder(**{**own, "joined": self.spelling.joined, "form": self.spelling.form, **changes})
        made.shortened = self.shortened
        return made

    def encode(
        self,
        text: Text,
        mentions: Sequence[Mention] = (),
        pair: Text | None = None,
        pair_mentions: Sequence[Mention] = (),
        *,
        rows: Rows | None = None,
    ) -> Encoded:
        """Encodes one passage; see `encode_batch`."""
        return self.encode_batch([Passage(text, mentions, pair, pair_mentions)], rows)[0]

    @overload
    def encode_batch(
        self,
        passages: Sequence[Passage],
        rows: Rows | None = None,
        *,
        skip_overlong: Literal[False] = False,
        bare_slots: bool = False,
        origins: bool = False,
    ) -> list[Encoded]: ...

    @overload
    def encode_batch(
        self,
        passages: Sequence[Passage],
        rows: Rows | None = None,
        *,
        skip_overlong: Literal[True],
        bare_slots: bool = False,
        origins: bool = False,
    ) -> list[Encoded | None]: ...

    def encode_batch(
        self,
        passages: Sequence[Passage],
        rows: Rows | None = None,
        *,
        skip_overlong: bool = False,
        bare_slots: bool = False,
        origins: bool = False,
    ) -> Sequence[Encoded | None]:
        """Encodes passages with one call of the tokenizer and one of `rows` for all of them.

        A passage longer than `max_length` loses context: first at the outer ends, the pieces farthest from any
        mention or mask token, then between mentions. Mentions, markers, slots and mask tokens always stay.

        Args:
          passages: any number.
          rows: which entities have a vector, see `rows_with_vector`; None = plugin off, no slots at all.
          skip_overlong: give None for a passage whose mentions alone do not fit, instead of raising.
          bare_slots: give a slot to linked entities without a vector too; their `entity_rows` are -1, so that a zero
            vector stands for them.
          origins: tell for every position which characters stand there (of words, of their texts joined by spaces).

        Raises:
          InputError: mentions outside their text, overlapping, without a visible character or too long to fit; a
            marker the host cannot spell; text that is no valid Unicode.
        """
        sides = [sides_of(passage) for passage in passages]
        flat = [side for group in sides for side in group]
        known = known_rows(flat, rows, bare_slots)
        cut_into_pieces(flat, self.tokenizer, [self.spelling.joined and side.inserts_first(known) for side in flat])
        for passage, group in zip(passages, sides, strict=True):
            for side in group:
                side.locate(self.tokenizer, passage.where)
        return [
            self._finish(passage, group, known, skip_overlong, origins)
            for passage, group in zip(passages, sides, strict=True)
        ]

    def pad(
        self, encoded: Sequence[Encoded], length: int, entities: int, rows: int | None = None
    ) -> dict[str, np.ndarray]:
        """Stacks passages into a batch, one segment a row.

        Args:
          encoded: up to `rows` passages.
          length: L of the batch.
          entities: M of the batch.
          rows: B; rows beyond the passages are padding (segment 0). `len(encoded)` when None.

        Returns:
          int32 `token_ids`, `segment_ids`, `position_ids`, `type_ids`, `entity_slot` [B, L], `entity_ids` [B, M].

        Raises:
          InputError: a passage longer than L or with more than M entities, or more passages than rows.
        """
        rows = len(encoded) if rows is None else rows
        if len(encoded) > rows:
            raise InputError("batch", f"{len(encoded)} passages for {rows} rows", "give more rows")
        batch = {name: np.zeros((rows, length), np.int32) for name in ("segment_ids", "position_ids", "type_ids")}
        batch["token_ids"] = np.full((rows, length), self.tokenizer.pad_id, np.int32)
        batch["entity_slot"] = np.full((rows, length), -1, np.int32)
        batch["entity_ids"] = np.full((rows, entities), -1, np.int32)
        count = np.arange(length, dtype=np.int32)
        for row, one in enumerate(encoded):
            size, number = len(one), len(one.entities)
            if size > length or number > entities:
                problem = f"passage {row} has {size} positions and {number} entities, the batch {length} and {entities}"
                raise InputError("batch", problem, "encode with max_length and max_entities of the batch")
            batch["token_ids"][row, :size] = one.token_ids
            batch["segment_ids"][row, :size] = 1
            batch["position_ids"][row, :size] = count[:size]
            batch["type_ids"][row, :size] = one.type_ids
            batch["entity_slot"][row, :size] = one.entity_slot
            batch["entity_ids"][row, :number] = one.entity_rows
        return batch

    def _finish(
        self, passage: Passage, sides: list[Side], known: dict[str, int], skip_overlong: bool, origins: bool
    ) -> Encoded | None:
        draft = _Draft(self.spelling, self.max_entities, known)
        plan = [draft.insertions(side) for side in sides]
        fixed = len(self.tokenizer.before) + len(self.tokenizer.after)
        fixed += len(self.tokenizer.between) * (len(sides) - 1)
        fixed += sum(inserted.size for side in plan for inserted in side)
        excess = fixed + sum(len(side.pieces.ids) for side in sides) - self.max_length
        if excess > 0:
            gone = self.truncate([(side.pieces.ids, side.runs) for side in sides], excess, self.tokenizer.mask_id)
            if gone is None:
                if skip_overlong:
                    return None
                problem = f"its mentions alone do not fit into {self.max_length} positions"
                raise InputError(passage.where, problem, "raise max_length or drop mentions")
            self.shortened.add(passage.where)
            for side, doomed in zip(sides, gone, strict=True):
                side.shorten(doomed)
        encoded = draft.write(sides, plan)
        return dataclasses.replace(encoded, origins=draft.origins(sides)) if origins else encoded


class _Draft:
    """Writes one passage, position by position."""

    def __init__(self, spelling: Spelling, limit: int | None, known: dict[str, int]):
        self.spelling, self.limit, self.known = spelling, limit, known
        self.entities: dict[str, int] = {}
        self.ids: list[int] = []
        self.slots: list[tuple[int, int]] = []
        self.copied: list[tuple[int, int, Run]] = []  # at which position, of which text, which of its pieces
        self.masked: list[int] = []
        self.labels: list[int] = []

    def insertions(self, side: Side) -> list[Insertion]:
        """What goes around each mention of a text."""
        mentions = [side.mentions[i] for i in side.order]
        slots = [self._entity(one.entity) if one.slot and one.entity in self.known else -1 for one in mentions]
        return [self.spelling.around(*each) for each in zip(mentions, slots, side.runs, strict=True)]

    def write(self, sides: list[Side], plan: list[list[Insertion]]) -> Encoded:
        tokenizer = self.spelling.tokenizer
        self.ids += tokenizer.before
        spans, markers = self._side(0, sides[0], plan[0])
        seconds = []
        for text in range(1, len(sides)):
            self.ids += tokenizer.between
            seconds.append(len(self.ids))
            more = self._side(text, sides[text], plan[text])
            spans, markers = spans + more[0], markers + more[1]
        self.ids += tokenizer.after
        return self._encoded(spans, markers, seconds[0] if seconds else len(self.ids))

    def origins(self, sides: list[Side]) -> np.ndarray:
        """`Encoded.origins` of what has been written."""
        found = np.full((len(self.ids), 3), -1, np.int32)
        for position, text, (low, high) in self.copied:
            found[position : position + high - low, 0] = text
            if low < high:
                found[position : position + high - low, 1:] = sides[text].pieces.offsets[low:high]
        return found

    def _side(self, text: int, side: Side, plan: list[Insertion]) -> tuple[list, list]:
        """Writes one text; returns spans and marker positions of its mentions in the order they were given."""
        ids, pieces = self.ids, side.pieces.ids
        spans: list = [None] * len(plan)
        markers: list = [None] * len(plan)
        done = 0
        for number, (low, high), insertion in zip(side.order, side.runs, plan, strict=True):
            self.copied.append((len(ids), text, (done, low)))
            ids += pieces[done:low]
            opening = len(ids) if insertion.opening else -1
            ids += insertion.opening
            spans[number] = self._mention(text, pieces, (low, high), side.mentions[number], insertion.slot)
            markers[number] = (opening, len(ids) if insertion.closing else -1)
            ids += insertion.closing
            done = high
        self.copied.append((len(ids), text, (done, len(pieces))))
        ids += pieces[done:]
        return spans, markers

    def _mention(self, text: int, pieces: list[int], run: Run, mention: Mention, slot: int) -> Run:
        """Writes a mention and its slot, if any; returns where its pieces stand, or the slot in their place."""
        ids, spelling, (low, high) = self.ids, self.spelling, run
        if slot >= 0 and spelling.ahead:
            self.slots.append((len(ids), slot))
            ids += spelling.ahead
            if spelling.replaces(mention):
                return len(ids) - 1, len(ids)
        span = (len(ids), len(ids) + high - low)
        self.copied.append((len(ids), text, run))
        self._pieces(pieces[low:high], mention.masked)
        if slot >= 0 and spelling.behind:
            self.slots.append((len(ids) + spelling.at, slot))
            ids += spelling.behind
        return span

    def _pieces(self, pieces: list[int], masked: bool) -> None:
        if masked:
            mask = self.spelling.tokenizer.mask_id
            hidden = [(len(self.ids) + i, piece) for i, piece in enumerate(pieces) if piece != mask]
            self.masked += [position for position, _ in hidden]
            self.labels += [piece for _, piece in hidden]
            pieces = [mask] * len(pieces)
        self.ids += pieces

    def _entity(self, entity: str) -> int:
        if entity not in self.entities and self.limit is not None and len(self.entities) >= self.limit:
            return -1
        return self.entities.setdefault(entity, len(self.entities))

    def _encoded(self, spans: list, markers: list, second: int) -> Encoded:
        tokenizer = self.spelling.tokenizer
        ids = np.array(self.ids, np.int32)
        types = np.zeros(len(ids), np.int32)
        types[second:] = tokenizer.pair_type
        slots = np.full(len(ids), -1, np.int32)
        for position, entity in self.slots:
            slots[position] = entity
        mask, masked = tokenizer.mask_id, frozenset(self.masked)
        blanks = [i for i, one in enumerate(self.ids) if one == mask and i not in masked] if mask in self.ids else []
        return Encoded(
            token_ids=ids,
            type_ids=types,
            entity_slot=slots,
            entities=tuple(self.entities),
            entity_rows=np.array([self.known[entity] for entity in self.entities], np.int32),
            spans=np.array(spans, np.int32).reshape(-1, 2),
            markers=np.array(markers, np.int32).reshape(-1, 2),
            mask_positions=np.array(self.masked, np.int32) if self.masked else NONE,
            label_ids=np.array(self.labels, np.int32) if self.masked else NONE,
            blanks=np.array(blanks, np.int32) if blanks else NONE,
        )
