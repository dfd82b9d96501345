"""Span extraction: where in a passage, or in which of several passages, the answer to a question stands.

`[CLS] question [SEP] passage [SEP]`, scores of each position as start and as end, cross-entropy on both. A long passage
is read in overlapping windows. A window without the answer is trained towards its first token. The answer to a question
is its best span over all windows of all its passages (largest sum of start and end score); exact match and token F1 as
in SQuAD (Rajpurkar et al. 2016). SearchQA and Quasar-T in K-Adapter: several passages a question, answers as texts.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from kinject.data.encode import Encoded, EntityEncoder, Passage, origins_of
from kinject.data.pipeline import Examples, make_examples
from kinject.data.windows import cut_windows
from kinject.errors import InputError, Misplaced
from kinject.models.heads import HEAD_SITE, PlainHead
from kinject.models.layers import site
from kinject.tasks.base import (
    Answer,
    Extent,
    Shapes,
    Task,
    head_of,
    pad_rows,
    plain_passages,
    register_task,
    slot_rows,
)
from kinject.tasks.fields import strings, unique_ids
from kinject.tasks.protocol import untruncated
from kinject.tasks.span_answers import NEVER, best_sums, candidates, read_answers
from kinject.tasks.squad_metrics import best, exact_match, null_scores, token_f1

if TYPE_CHECKING:
    from kinject.data.records import Record
    from kinject.data.tokenizer import HostTokenizer
    from kinject.knowledge.base import KnowledgeBase
    from kinject.models.heads import HostModel
    from kinject.models.seams import Plugin

UNKNOWN = ()  # in the place of a list of answers: a question that is asked, and not a record with its answer


@dataclass(frozen=True, eq=False)
class Window:
    """What scoring must know of one window.

    Attributes:
      question: whose window it is: the record's `question_id`, or a number of its own.
      text: the passage.
      characters: int32 [L, 2]: of the passage, for each position; -1 where none stands.
      answers: the right ones.
    """

    question: Any
    text: str
    characters: np.ndarray
    answers: tuple[str, ...]


@register_task("span_extraction")
class SpanExtraction(Task):
    """Records are passages; they need `question` and `answers`, a list of texts. Linked mentions get slots.

    With `starts`, character offsets of the answers in the passage, training is on the first of them; without, on the
    first place in each window where one of the answers stands, in any case (distant supervision). Passages with one
    `question_id` are of one question.

    What is served is transformers' question-answering pipeline: see `kinject.tasks.span_answers`. With `no_answer`, ""
    is an answer among others (its `handle_impossible_answer`); `threshold` is of measuring alone.

    Args:
      stride: positions from one window's start to the next one's.
      overlap: pieces that a window shares with the next one, in the place of `stride`; at most half of the window.
      window: positions of a window, question included; None = all that the host has.
      question_length: pieces of a question that are read.
      longest: positions of an answer, at most.
      no_answer: whether `answers` may be empty, as in SQuAD 2.0 (see `kinject.tasks.squad_metrics`). The first token's
        scores are then those of no answer; of a question it is the lowest of all its windows.
      threshold: of the doubt, above which nothing is answered.
    """

    head = "span"
    answer = "spans"
    required = ("question", "answers")
    metric = "f1"

    def __init__(
        self,
        stride: int = 128,
        question_length: int = 64,
        longest: int = 30,
        no_answer: bool = False,
        threshold: float = 0.0,
        overlap: int | None = None,
        window: int | None = None,
    ):
        lengths = {"stride": stride, "question_length": question_length, "longest": longest}
        lengths |= {name: value for name, value in (("overlap", overlap), ("window", window)) if value is not None}
        for name, value in lengths.items():
            if type(value) is not int or value < 1:
                raise InputError(f"task_options.{name}", f"it must be a whole number from 1, got {value!r}")
        if type(no_answer) is not bool:
            raise InputError("task_options.no_answer", f"it must be true or false, got {no_answer!r}")
        if isinstance(threshold, bool) or not isinstance(threshold, (int, float)) or not math.isfinite(threshold):
            raise InputError("task_options.threshold", f"it must be a number, got {threshold!r}")
        self.stride, self.question_length, self.longest = stride, question_length, longest
        self.no_answer, self.threshold = no_answer, float(threshold)
        self.overlap, self.window = overlap, window

    def examples(
        self, records: Sequence[Record], encoder: EntityEncoder, knowledge: KnowledgeBase | None, *, buckets: int = 3
    ) -> Examples:
        records = list(records)
        unique_ids(records)
        windows: list[tuple[Encoded, Window]] = []
        labels: list[tuple[int, int]] = []
        owners: list[int] = []
        for number, cut in enumerate(self._cut(records, encoder, knowledge)):
            record = records[number]
            asked = record.fields["answers"] == UNKNOWN
            places = [] if asked else answer_places(record, self.no_answer)
            answers, question = tuple(record.fields["answers"]), record.fields.get("question_id", record.where)
            for one in cut:
                windows.append((one, Window(question, record.text, origins_of(one)[:, 1:], answers)))
                labels.append(label_of(one, places))
                owners.append(number)
        wanted = np.array(labels, np.int32)

        def arrays(index: Sequence[int], length: int) -> Mapping[str, np.ndarray]:
            rows = [windows[i][0] for i in index]
            answerable = np.zeros((len(rows), length), np.int32)
            for row, one in enumerate(rows):
                answerable[row, : len(one)] = origins_of(one)[:, 0] == 1
            padded = pad_rows(encoder, rows, length)
            return {**padded, "answerable": answerable, "labels": wanted[index]}

        made = make_examples([len(one) for one, _ in windows], arrays, buckets=buckets)
        return replace(made, record_index=np.array(owners), references={"windows": [window for _, window in windows]})

    def _cut(
        self, records: Sequence[Record], encoder: EntityEncoder, knowledge: KnowledgeBase | None
    ) -> list[list[Encoded]]:
        """The windows of each record."""
        whole, rows = untruncated(encoder), slot_rows(knowledge)
        for record in records:
            question = record.fields.get("question")
            if not isinstance(question, str) or not question.strip():
                raise InputError(record.where, f"field question is {question!r}", "it must be a text, and not empty")
            if not record.text.strip():
                raise InputError(record.where, "its text is empty, so that no answer stands there", "drop the record")
        questions = whole.encode_batch([Passage(one.fields["question"], where=one.where) for one in records])
        passages = plain_passages(records)
        encoded = whole.encode_batch(passages, rows, origins=True)
        length = encoder.max_length if self.window is None else min(self.window, encoder.max_length)
        shared = None if self.overlap is None else min(self.overlap, length // 2)
        sizes = (self.stride, self.question_length)
        return [
            cut_windows(question, passage, encoder, *sizes, length=length, shared=shared)
            for question, passage in zip(questions, encoded, strict=True)
        ]

    def batch_shapes(self, extent: Extent) -> Shapes:
        return {**extent.tokens(), "answerable": extent.whole(extent.length), "labels": extent.whole(2)}

    def outputs(
        self,
        host: HostModel,
        plugin: Plugin | None,
        batch: Mapping[str, jax.Array],
        key: jax.Array | None = None,
        start: int = 0,
    ) -> jax.Array:
        """Scores float32 [B, L, 2] of each position as start and as end; padding can be neither."""
        scores = head_of(host, PlainHead).logits(
            host.encoder(batch, plugin, key, start=start).last, site(key, HEAD_SITE)
        )
        return jnp.where((batch["segment_ids"] > 0)[:, :, None], scores, NEVER)

    def loss(self, outputs: jax.Array, batch: Mapping[str, jax.Array]) -> tuple[jax.Array, jax.Array]:
        """Mean of both cross-entropies."""
        both = optax.softmax_cross_entropy_with_integer_labels(jnp.moveaxis(outputs, 2, 1), batch["labels"])
        return both.mean(-1), batch["weights"]

    def predict(self, outputs: jax.Array, batch: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
        """First and last position of each window's best span of passage pieces, its score, and that of no answer."""
        here = batch["answerable"] > 0
        starts, ends = (jnp.where(here, outputs[:, :, side], NEVER) for side in (0, 1))
        score, first, last = (one[:, 0] for one in best_sums(starts, ends, self.longest, 1))
        return {"first": first, "last": last, "score": score, "null": outputs[:, 0].sum(-1)}

    def unanswered(self, record: Record, tokenizer: HostTokenizer) -> Mapping[str, Any]:
        return {"answers": UNKNOWN}

    def found(self, outputs: jax.Array, batch: Mapping[str, jax.Array], top: int) -> dict[str, jax.Array]:
        return candidates(outputs, batch, self.longest, top)

    def spans(
        self, record: Record, rows: Sequence[tuple[Mapping[str, np.ndarray], Any]], top: int, tokenizer: HostTokenizer
    ) -> list[Answer]:
        return read_answers(record.text, rows, top, tokenizer, self.no_answer)

    def score(self, predictions: Mapping[str, Any]) -> dict[str, float]:
        """Exact match and token F1 over the questions, each against the right answer that fits best.

        With `no_answer` also what `kinject.tasks.squad_metrics.null_scores` adds.
        """
        found: dict[Any, tuple[float, str]] = {}
        answers: dict[Any, dict[str, None]] = {}
        null: dict[Any, float] = {}
        names = ("first", "last", "score", "null", "windows")
        for first, last, score, none, window in zip(*(predictions[name] for name in names), strict=True):
            question = window.question
            answers.setdefault(question, {}).update(dict.fromkeys(window.answers))
            null[question] = min(null.get(question, math.inf), float(none))
            if question not in found or score > found[question][0]:
                low, high = window.characters[first, 0], window.characters[last, 1]
                found[question] = (float(score), window.text[low:high] if low >= 0 else "")
        given = [(found[question][1], list(rights) or [""]) for question, rights in answers.items()]
        worth = {
            name: np.array([best(measure, answer, rights) for answer, rights in given])
            for name, measure in (("exact_match", exact_match), ("f1", token_f1))
        }
        if not self.no_answer:
            return {name: float(values.mean()) for name, values in worth.items()}
        doubt = np.array([null[question] - found[question][0] for question in answers])
        return null_scores(doubt, worth, np.array([not rights for rights in answers.values()]), self.threshold)


def answer_places(record: Record, may_have_none: bool = False) -> list[tuple[int, int]]:
    """Characters [start, end) of the answers in a passage: the first of `starts`, or else all occurrences, in order.

    Args:
      record: with `answers`.
      may_have_none: whether the list may be empty.

    Raises:
      InputError: no answer, `starts` that are not where the answers stand.
    """
    answers, text = strings(record, "answers"), record.text
    if may_have_none and not answers:
        return []
    if not answers or not all(answer.strip() for answer in answers):
        raise InputError(record.where, f"field answers is {answers!r}", "a question has an answer, and none is empty")
    starts = record.fields.get("starts")
    if starts is not None:
        if not isinstance(starts, list) or len(starts) != len(answers) or any(type(one) is not int for one in starts):
            raise InputError(record.where, f"field starts is {starts!r}", "it must be a list with one number an answer")
        for number, (start, answer) in enumerate(zip(starts, answers, strict=True)):
            if start < 0 or text[start : start + len(answer)] != answer:
                problem = f"field starts[{number}] is {start}, where the passage has no {answer[:40]!r}"
                raise Misplaced(record.where, problem, "offsets count characters of the passage from 0")
        return [(starts[0], starts[0] + len(answers[0]))]
    # lower-casing may change the length of a text, and with it every place behind
    lowered = "".join(letter.lower() if len(letter.lower()) == 1 else letter for letter in text)
    places = []
    for answer in dict.fromkeys(one.strip().lower() for one in answers):
        at = lowered.find(answer)
        while at >= 0:
            if _whole_words(lowered, at, at + len(answer)):
                places.append((at, at + len(answer)))
            at = lowered.find(answer, at + 1)
    return sorted(places)


def label_of(one: Encoded, places: Sequence[tuple[int, int]]) -> tuple[int, int]:
    """First and last position of the first of these places that a window shows whole; (0, 0) where it shows none."""
    positions = np.flatnonzero(origins_of(one)[:, 0] == 1)
    starts, ends = origins_of(one)[positions, 1], origins_of(one)[positions, 2]
    for low, high in places:
        first = int(np.searchsorted(ends, low, side="right"))
        last = int(np.searchsorted(starts, high, side="left")) - 1
        if first <= last < len(positions) and starts[first] <= low and ends[last] >= high:
            return int(positions[first]), int(positions[last])
    return 0, 0


def _whole_words(text: str, start: int, end: int) -> bool:
    """Whether [start, end) does not begin or end inside a word: "art" does not stand in "party"."""
    before, after = text[start - 1 : start] if start else "", text[end : end + 1]
    return not (before.isalnum() and text[start].isalnum()) and not (after.isalnum() and text[end - 1].isalnum())
