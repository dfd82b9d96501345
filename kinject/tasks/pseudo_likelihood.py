"""Pseudo-log-likelihood of answers of several pieces: which answer fits a blank, and how well.

`within_word_l2r` (Kauf and Ivanova, ACL 2023): a masked language model scores a word piece by piece, each with itself
and the pieces of the same word to its right masked, as what it would otherwise see of a rare word gives the rest away
(Salazar et al., ACL 2020, mask one piece alone: "original"). Other words of the answer stay to be seen. An answer's
score is the sum over its pieces. Answers of any length thus share one measure, at one forward pass a piece.

`at_one_blank` is the cheap measure, one forward pass a question: all pieces of all answers at a single [MASK].
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from kinject.data.encode import Encoded, EntityEncoder, Mention, Passage, origins_of
from kinject.data.pipeline import Examples, make_examples
from kinject.data.tokenizer import MASK_LITERAL
from kinject.errors import InputError
from kinject.models.kernels.elementwise import cross_entropy
from kinject.tasks.base import Extent, Shapes, Task, first_span, pad_rows, register_task, slot_rows
from kinject.tasks.fields import strings
from kinject.tasks.multiple_choice import NO_CHOICE

if TYPE_CHECKING:
    from kinject.data.records import Record
    from kinject.data.tokenizer import HostTokenizer
    from kinject.knowledge.base import KnowledgeBase

Masking = Literal["within_word_l2r", "original"]
PARTS = ("question", "choice", "right")  # of a row: which record, which of its answers, whether that is the right one


class Piece(NamedTuple):
    """One forward pass: a piece of an answer is asked for.

    Attributes:
      text: number of the encoded text, which has the answer in its blank.
      place: position of the piece.
      masked: positions that are masked for it, its own among them.
    """

    text: int
    place: int
    masked: tuple[int, ...]


def filled(record: Record, text: str, answer: str) -> Passage:
    """The text with the answer in its one `[MASK]`; the answer is the last of the mentions and has no slot.

    Raises:
      InputError: no blank or several; an answer without a letter.
    """
    if text.count(MASK_LITERAL) != 1:
        problem = f"field text has {text.count(MASK_LITERAL)} {MASK_LITERAL}, a question has one"
        raise InputError(record.where, problem, "mend the text")
    if not answer.strip():
        raise InputError(record.where, "an answer is empty", "drop it")
    start, answer = text.index(MASK_LITERAL), answer.strip()
    grown, moved = len(answer) - len(MASK_LITERAL), len(text) - len(record.text)  # what was put before moves mentions
    mentions = []
    for mention in record.mentions:
        shift = moved + (grown if mention.start + moved > start else 0)
        mentions.append(replace(mention, start=mention.start + shift, end=mention.end + shift))
    whole = text[:start] + answer + text[start + len(MASK_LITERAL) :]
    blank = Mention(start, start + len(answer), slot=False)
    return Passage(whole, [*mentions, blank], where=record.where)


def pieces_of(number: int, one: Encoded, text: str | Sequence[str], masking: Masking) -> list[Piece]:
    """The forward passes that score the last mention of an encoded text."""
    low, high = (int(place) for place in one.spans[-1])
    origins = origins_of(one)
    if not isinstance(text, str):
        raise TypeError("an answer is filled into a text, not into tokens")
    words = [text[: int(origins[place, 2])].rstrip().count(" ") for place in range(low, high)]
    made = []
    for place in range(low, high):
        masked = [place]
        if masking == "within_word_l2r":
            masked += [later for later in range(place + 1, high) if words[later - low] == words[place - low]]
        made.append(Piece(number, place, tuple(masked)))
    return made


@register_task("pseudo_likelihood")
class PseudoLikelihood(Task):
    """Records need a text with one `[MASK]` and `label`, the answer; with `choices` among them the label is chosen.

    Metrics: `accuracy` over the questions with choices (the best sum of log-probabilities), `perplexity` of the right
    answers, exp of the mean over questions of a piece's mean negative log-probability, and the negative of that mean,
    `likelihood`, which is what checkpoints are compared on where there are no choices.

    Args:
      masking: "within_word_l2r", or "original", which masks a piece alone.
    """

    head = "masked_lm"
    required: ClassVar[tuple[str, ...]] = ("label",)
    metric = "likelihood"
    joins: ClassVar[bool] = True

    def __init__(self, masking: Masking = "within_word_l2r"):
        if masking not in ("within_word_l2r", "original"):
            raise InputError("task_options.masking", f"it is {masking!r}", "choose within_word_l2r or original")
        self.masking = masking

    def texts(self, records: Sequence[Record]) -> list[str]:
        """What is asked for each record: its text, or with something before it."""
        return [record.text for record in records]

    def examples(
        self, records: Sequence[Record], encoder: EntityEncoder, knowledge: KnowledgeBase | None, *, buckets: int = 3
    ) -> Examples:
        """One example a piece of each answer of each record."""
        records = list(records)
        asked = [(number, *each) for number, record in enumerate(records) for each in enumerate(answers_of(record))]
        texts = self.texts(records)
        passages = [filled(records[number], texts[number], answer) for number, _, answer in asked]
        encoded = encoder.encode_batch(passages, slot_rows(knowledge), origins=True)
        rows = [
            piece
            for number, (one, passage) in enumerate(zip(encoded, passages, strict=True))
            for piece in pieces_of(number, one, passage.text, self.masking)
        ]
        right = [answer == records[number].fields["label"] for number, _, answer in asked]
        mask = encoder.tokenizer.mask_id

        def arrays(index: Sequence[int], length: int) -> Mapping[str, np.ndarray]:
            some = [rows[i] for i in index]
            read = [encoded[one.text] for one in some]
            batch = pad_rows(encoder, read, length)
            labels = np.array([[own.token_ids[one.place]] for one, own in zip(some, read, strict=True)], np.int32)
            for row, one in enumerate(some):
                batch["token_ids"][row, list(one.masked)] = mask
            about = [(*asked[one.text][:2], right[one.text]) for one in some]
            return {
                **batch,
                "positions": np.array([[one.place] for one in some], np.int32),
                "labels": labels,
                "mention_spans": np.stack([first_span(own) for own in read]),
                **dict(zip(PARTS, np.array(about, np.int32).T.copy(), strict=True)),
            }

        lengths = [len(encoded[one.text]) for one in rows]
        made = make_examples(lengths, arrays, buckets=buckets)
        return replace(made, record_index=np.array([asked[one.text][0] for one in rows]))

    def batch_shapes(self, extent: Extent) -> Shapes:
        read = {name: extent.whole(1) for name in ("positions", "labels")}
        return {**extent.tokens(), **read, "mention_spans": extent.whole(2), **{name: extent.whole() for name in PARTS}}

    def loss(self, outputs: jax.Array, batch: Mapping[str, jax.Array]) -> tuple[jax.Array, jax.Array]:
        """Of the pieces of right answers; those of wrong ones weigh nothing."""
        losses = cross_entropy(outputs, batch["labels"])
        return losses, jnp.broadcast_to((batch["weights"] * batch["right"])[:, None], losses.shape)

    def predict(self, outputs: jax.Array, batch: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
        likely = jax.nn.log_softmax(outputs[:, 0].astype(jnp.float32))
        found = jnp.take_along_axis(likely, batch["labels"], axis=1)[:, 0]
        return {"likely": found, **{name: batch[name] for name in PARTS}}

    def score(self, predictions: Mapping[str, np.ndarray]) -> dict[str, float]:
        sums, counts, right = answer_scores(predictions)
        gold = right.argmax(1)
        rows = np.arange(len(gold))
        mean = float((sums[rows, gold] / counts[rows, gold]).mean())
        found = {"perplexity": float(np.exp(-mean)), "likelihood": mean}
        several = (counts > 0).sum(1) > 1
        if several.any():
            found["accuracy"] = float((sums.argmax(1) == gold)[several].mean())
        return found

    def of_records(self, predictions: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Of each record `likely`, a piece's mean log-probability in the right answer; `predicted` and `label`.

        The last two are numbers of choices, and there only where every record has several.
        """
        sums, counts, right = answer_scores(predictions)
        gold = right.argmax(1)
        rows = np.arange(len(gold))
        found = {"likely": sums[rows, gold] / counts[rows, gold]}
        if ((counts > 0).sum(1) > 1).all():
            found |= {"predicted": sums.argmax(1), "label": gold}
        return found

    def choice_name(self, number: int, record: Record, tokenizer: HostTokenizer) -> str:
        return answers_of(record)[number]


@register_task("answer_choices")
class AnswerChoices(PseudoLikelihood):
    """As `pseudo_likelihood`, of records that all have `choices`: the best sum of log-probabilities is the answer."""

    metric = "accuracy"
    required: ClassVar[tuple[str, ...]] = ("label", "choices")


def answer_scores(predictions: Mapping[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What pieces say of answers.

    Args:
      predictions: `likely` float [n], and `question`, `choice`, `right` int [n], of n pieces.

    Returns:
      (sums of log-probabilities float64 [Q, C], -inf where there is no answer; their pieces int [Q, C]; bool [Q, C]).
    """
    _, question = np.unique(predictions["question"], return_inverse=True)
    choice = predictions["choice"]
    shape = (int(np.max(question)) + 1, int(np.max(choice)) + 1)
    sums, counts, right = np.zeros(shape), np.zeros(shape, np.int64), np.zeros(shape, bool)
    np.add.at(sums, (question, choice), predictions["likely"].astype(np.float64))
    np.add.at(counts, (question, choice), 1)
    right[question, choice] = predictions["right"] > 0
    return np.where(counts > 0, sums, -np.inf), counts, right


def answers_of(record: Record) -> list[str]:
    """The answers that are scored: the choices, or the label alone.

    Raises:
      InputError: a label that is no text or none of the choices, choices that are no texts or name one twice.
    """
    label = record.fields["label"]
    if not isinstance(label, str) or not label.strip():
        raise InputError(record.where, f"field label is {label!r}", "it must be the answer")
    if record.fields.get("choices") is None:
        return [label]
    choices = strings(record, "choices")
    if len(set(choices)) < len(choices):
        raise InputError(record.where, "field choices names an answer twice", "name each once")
    if label not in choices:
        raise InputError(record.where, f"field label: {label!r} is none of the choices", "name it among them")
    return choices


def choice_pieces(records: Sequence[Record], encoder: EntityEncoder) -> np.ndarray:
    """int32 [n, C, P]: the pieces of each record's choices, filled up with -1.

    Raises:
      InputError: a choice that the host's vocabulary cannot spell.
    """
    known: dict[str, tuple[int, ...]] = {}
    for record in records:
        for choice in strings(record, "choices"):
            if choice not in known:
                try:
                    known[choice] = encoder.tokenizer.word(choice)
                except InputError:
                    problem = f"field choices: the host's vocabulary cannot spell {choice!r}"
                    raise InputError(record.where, problem, "drop the record") from None
    most = max((len(strings(record, "choices")) for record in records), default=0)
    made = np.full((len(records), most, max(map(len, known.values()), default=0)), -1, np.int32)
    for row, record in enumerate(records):
        for column, choice in enumerate(strings(record, "choices")):
            made[row, column, : len(known[choice])] = known[choice]
    return made


def at_one_blank(outputs: jax.Array, pieces: jax.Array) -> jax.Array:
    """The mean log-probability of each answer's pieces at one blank, so that its length counts neither way.

    The order of the pieces says nothing, and an answer's pieces do not see each other.

    Args:
      outputs: [B, V], logits there.
      pieces: int32 [B, C, P] of C answers, -1 behind each one's last.

    Returns:
      float32 [B, C], `NO_CHOICE` where there is no answer.
    """
    likely = jax.nn.log_softmax(outputs.astype(jnp.float32))
    there = pieces >= 0
    found = jnp.take_along_axis(likely[:, None], jnp.maximum(pieces, 0), axis=-1)
    mean = jnp.where(there, found, 0.0).sum(-1) / jnp.maximum(there.sum(-1), 1)
    return jnp.where(there.any(-1), mean, NO_CHOICE)
