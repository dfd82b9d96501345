"""What of an experiment is a convention: the authors' (`protocol="thunlp"`), and ours where theirs is flawed.

Both share markers, labels, episodes, prediction rules and metrics. They differ in how a record becomes tokens. By the
authors' (github.com/thunlp/Knowledge-Plugin, code/formatter), then by ours:

- A linked entity without a vector has a zero vector, so its slot holds the map's bias, which general map-tuning never
  saw there. Ours: it has no slot.
- All text is lowercased, for RoBERTa too, and mentions keep their positions, which a letter that becomes two (İ) puts
  one off. Ours: the host's tokenizer decides.
- RoBERTa's text is one string with markers and slots in it, and a slot takes the space behind it: `/`, not `Ġ/`; a
  marker that begins a text has no space before it, the mention behind it has. Ours: as the words inside of a text.
- A text that is too long is cut at its right end, mention, marker or mask or not. Ours: it loses context, the farthest
  from any mention first.
- A pair that is too long loses the support's pieces before its first marker, or what looks like one, then those behind
  its last; then the query's alike. Ours: as a text.
- Between the texts of a RoBERTa pair stands one separator. Ours: what the tokenizer puts there, which is two.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from kinject.data.encode import Encoded, EntityEncoder, Passage
from kinject.data.passage import Doomed, Run
from kinject.errors import InputError, did_you_mean
from kinject.knowledge.base import KnowledgeBase
from kinject.tasks.base import slot_rows
from kinject.tasks.fields import HEAD_MARKER, TAIL_MARKER

ENDLESS = 1 << 30


class Protocol:
    """Our own conventions."""

    bare_slots = False

    def text(self, source: str | tuple[str, ...]) -> str | tuple[str, ...]:
        """The text of a record as it is encoded; its mentions' positions are read in what this returns."""
        return source

    def spelled(self, encoder: EntityEncoder) -> EntityEncoder:
        """The encoder with the convention's spelling of what stands around mentions."""
        return encoder

    def encode(
        self, passages: Sequence[Passage], encoder: EntityEncoder, knowledge: KnowledgeBase | None
    ) -> list[Encoded]:
        """Encodes single texts to at most `encoder.max_length` positions."""
        return encoder.encode_batch(passages, slot_rows(knowledge), bare_slots=self.bare_slots)

    def pair_encoder(self, encoder: EntityEncoder) -> EntityEncoder:
        """The encoder of pairs of texts."""
        return encoder


class Thunlp(Protocol):
    """The authors' conventions."""

    bare_slots = True

    def text(self, source: str | tuple[str, ...]) -> str | tuple[str, ...]:
        if isinstance(source, str):
            return source.lower()  # "İ" becomes two letters, and positions behind it stay what they were, as in theirs
        return tuple(token.lower() for token in source)

    def spelled(self, encoder: EntityEncoder) -> EntityEncoder:
        return encoder.like(joined=True)

    def encode(
        self, passages: Sequence[Passage], encoder: EntityEncoder, knowledge: KnowledgeBase | None
    ) -> list[Encoded]:
        encoded = super().encode(passages, untruncated(self.spelled(encoder)), knowledge)
        encoder.shortened |= {
            passage.where for passage, one in zip(passages, encoded, strict=True) if len(one) > encoder.max_length
        }
        return [cut_right(one, encoder) for one in encoded]

    def pair_encoder(self, encoder: EntityEncoder) -> EntityEncoder:
        tokenizer = encoder.tokenizer
        if len(tokenizer.between) > 1:  # RoBERTa's two
            tokenizer = replace(tokenizer, between=(tokenizer.sep_id,))
        markers = frozenset(piece for word in (HEAD_MARKER, TAIL_MARKER) for piece in tokenizer.word(word))
        return encoder.like(
            tokenizer=tokenizer,
            truncate=lambda sides, excess, _: support_first(sides, excess, markers),
            joined=True,
        )


PROTOCOLS: dict[str, Protocol] = {"kinject": Protocol(), "thunlp": Thunlp()}


def protocol_named(name: str) -> Protocol:
    """Returns the protocol, or raises InputError."""
    if name not in PROTOCOLS:
        raise InputError("task_options.protocol", f"there is no protocol {name!r}", did_you_mean(str(name), PROTOCOLS))
    return PROTOCOLS[name]


def untruncated(encoder: EntityEncoder) -> EntityEncoder:
    """The same encoder without a limit of length."""
    tokenizer = replace(encoder.tokenizer, max_length=ENDLESS)
    return encoder.like(tokenizer=tokenizer, max_length=ENDLESS)


def cut_right(one: Encoded, encoder: EntityEncoder) -> Encoded:
    """An encoded single text cut to `encoder.max_length` positions at its right end, special tokens kept.

    What lay beyond the cut is gone: spans end there (a mention beyond it has an empty one), markers are -1.
    """
    after = encoder.tokenizer.after
    keep = encoder.max_length - len(after)
    if len(one) <= encoder.max_length:
        return one

    def short(values: np.ndarray, end: Sequence[int]) -> np.ndarray:
        return np.concatenate([values[:keep], np.array(end, np.int32)])

    return replace(
        one,
        token_ids=short(one.token_ids, after),
        type_ids=short(one.type_ids, [one.type_ids[-1]] * len(after)),
        entity_slot=short(one.entity_slot, [-1] * len(after)),
        spans=np.minimum(one.spans, keep),
        markers=np.where(one.markers < keep, one.markers, -1),
        mask_positions=one.mask_positions[one.mask_positions < keep],
        label_ids=one.label_ids[one.mask_positions < keep],
        blanks=one.blanks[one.blanks < keep],
    )


def support_first(
    sides: list[tuple[list[int], list[Run]]], excess: int, markers: frozenset[int]
) -> list[Doomed] | None:
    """The authors' truncation of a pair: the second text's left end, then its right end, then the first text's alike.

    A literal marker in the text stops an end from being cut, as it does in their code. Nothing between mentions goes.

    Args:
      sides: piece ids and mention runs of both texts; see `kinject.data.passage.Truncate`.
      excess: how many pieces must go.
      markers: piece ids of the task's markers.

    Returns:
      For each text the indices that go; None where the ends are not enough.
    """
    doomed: list[Doomed] = [[] for _ in sides]
    for number in reversed(range(len(sides))):
        ids, runs = sides[number]
        first, last = (runs[0][0], runs[-1][1]) if runs else (len(ids), len(ids))
        left = next((i for i in range(first) if ids[i] in markers), first)
        taken = min(excess, left)
        excess -= taken
        right = next((i for i in reversed(range(last, len(ids))) if ids[i] in markers), last - 1)
        more = min(excess, len(ids) - 1 - right)
        excess -= more
        doomed[number] = [*range(taken), *range(len(ids) - more, len(ids))]
    return None if excess else doomed
