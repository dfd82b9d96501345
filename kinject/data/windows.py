"""Long passages in overlapping windows, each behind its question: `[CLS] question [SEP] window [SEP]`.

Question and passage are encoded once and whole, and windows are cut out of what that gave, so that a piece, a slot or
an offset is the same in every window that shows it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from kinject.data.encode import Encoded, EntityEncoder, origins_of
from kinject.data.tokenizer import HostTokenizer
from kinject.errors import InputError


def cut_windows(
    question: Encoded,
    passage: Encoded,
    encoder: EntityEncoder,
    stride: int,
    question_length: int,
    *,
    length: int | None = None,
    shared: int | None = None,
) -> list[Encoded]:
    """Cuts a passage into windows of at most `length` positions, `encoder.max_length` where that is None.

    Args:
      question: encoded alone, of any length; its first `question_length` pieces are used.
      passage: encoded alone and with `origins`, of any length. The origins of a window are the passage's, with 1 for
        the text.
      encoder: of the host.
      stride: positions from one window's start to the next one's.
      question_length: see above.
      length: see above.
      shared: positions that a window shares with the next one, where that decides and not `stride`; half of what the
        question leaves, where it leaves no more than these.

    Raises:
      InputError: the question leaves no room.
    """
    tokenizer = encoder.tokenizer
    length = encoder.max_length if length is None else length
    low, high = len(tokenizer.before), len(tokenizer.after)
    asked = question.token_ids[low : len(question) - high][:question_length]
    head = [*tokenizer.before, *asked, *tokenizer.between]
    room = length - len(head) - high
    if room < 1:
        problem = f"a question of {len(asked)} pieces leaves no room for a passage in {length} positions"
        raise InputError("max_length", problem, "raise it, or lower task_options.question_length")
    if shared is not None:
        stride = room - (shared if shared < room else room // 2)
    size = len(passage) - low - high
    starts = [0]
    while starts[-1] + room < size:
        starts.append(starts[-1] + min(stride, room))
    return [_window(head, passage, slice(low + at, low + min(at + room, size)), tokenizer) for at in starts]


def _window(head: Sequence[int], passage: Encoded, part: slice, tokenizer: HostTokenizer) -> Encoded:
    def laid(fill: int, values: np.ndarray) -> np.ndarray:
        shape = values.shape[1:]
        before, after = (np.full((count, *shape), fill, np.int32) for count in (len(head), len(tokenizer.after)))
        return np.concatenate([before, values, after])

    slots = passage.entity_slot[part]
    used = np.unique(slots[slots >= 0])
    renumbered = np.full(len(passage.entities) + 1, -1, np.int32)  # the last one is for no slot, -1
    renumbered[used] = np.arange(len(used))
    types = np.full(len(head) + part.stop - part.start + len(tokenizer.after), tokenizer.pair_type, np.int32)
    types[: len(head)] = 0
    origins = origins_of(passage)[part].copy()
    origins[origins[:, 0] == 0, 0] = 1
    none = np.empty(0, np.int32)
    return dataclasses.replace(
        passage,
        token_ids=np.concatenate(
            [np.array(head, np.int32), passage.token_ids[part], np.array(tokenizer.after, np.int32)]
        ),
        type_ids=types,
        entity_slot=laid(-1, renumbered[slots]),
        entities=tuple(passage.entities[i] for i in used),
        entity_rows=passage.entity_rows[used],
        spans=none.reshape(0, 2),
        markers=none.reshape(0, 2),
        mask_positions=none,
        label_ids=none,
        blanks=none,
        origins=laid(-1, origins),
    )
