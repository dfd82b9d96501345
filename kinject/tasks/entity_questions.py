"""Entity questions: a question about one entity whose answer is one piece of the host's vocabulary.

EntityQuestions in the paper (section 4.1): `… $ [ENTITY] / mention $ … ? [MASK]`, cross-entropy at the mask over the
whole vocabulary, accuracy. What is dropped and counted: a question whose mention is linked to no entity, and one none
of whose answers is one piece.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from kinject.data.encode import Encoded, EntityEncoder, Passage
from kinject.data.pipeline import Examples
from kinject.data.tokenizer import MASK_LITERAL
from kinject.errors import InputError
from kinject.tasks.base import register_task
from kinject.tasks.cloze import Cloze, blank_examples
from kinject.tasks.fields import ENTITY_MARKER, marked, single_pieces, some_word, strings, unique_ids
from kinject.tasks.protocol import Thunlp, protocol_named

if TYPE_CHECKING:
    from kinject.data.records import Record
    from kinject.data.tokenizer import HostTokenizer
    from kinject.knowledge.base import KnowledgeBase


@register_task("entity_questions")
class EntityQuestions(Cloze):
    """Records need one mention and `answers`, a list of strings; the text is the question, without a mask.

    The label is the first answer that is one piece. By the protocol "thunlp" that is an answer whose lowercase form is
    an entry of the vocabulary; by ours, one that the host's tokenizer, with its own rules of case and accents, makes
    one piece of as it stands inside a text: theirs finds no answer of a cased host and loses every accented one.

    Args:
      protocol: "thunlp" or "kinject"; see `kinject.tasks.protocol`.
    """

    required = ("answers",)

    def __init__(self, protocol: str = "kinject"):
        self.protocol = protocol_named(protocol)

    def examples(
        self, records: Sequence[Record], encoder: EntityEncoder, knowledge: KnowledgeBase | None, *, buckets: int = 3
    ) -> Examples:
        records = list(records)
        unique_ids(records)
        numbers, labels, dropped = self._answerable(records, encoder.tokenizer)
        kept = [records[number] for number in numbers]
        passages = [Passage(self._question(one), marked(one, (ENTITY_MARKER,)), where=one.where) for one in kept]
        encoded = self.protocol.encode(passages, encoder, knowledge)
        for record, one in zip(kept, encoded, strict=True):
            _check_blank(record, one)
        made = blank_examples(encoded, labels, encoder, buckets)
        return replace(made, notes=dict(dropped), record_index=np.array(numbers))

    def _answerable(
        self, records: Sequence[Record], tokenizer: HostTokenizer
    ) -> tuple[list[int], np.ndarray, Counter[str]]:
        """Returns the numbers of the records that stay, their labels int32 [n], and how many were dropped for what."""
        answers = [strings(record, "answers") for record in records]
        known = self._find(tokenizer, list(dict.fromkeys(answer for some in answers for answer in some)))
        kept, labels = [], []
        dropped: Counter[str] = Counter()
        for number, (record, some) in enumerate(zip(records, answers, strict=True)):
            marked(record, (ENTITY_MARKER,))
            label = next((known[answer] for answer in some if answer in known), None)
            if record.mentions[0].entity is None:
                dropped["dropped: mention without entity"] += 1
            elif label is None:
                dropped["dropped: no answer of one piece"] += 1
            else:
                kept.append(number)
                labels.append(label)
        if records and not kept:
            problem = ", ".join(f"{reason.removeprefix('dropped: ')} ({count})" for reason, count in dropped.items())
            raise InputError(records[0].where, f"no question can be used: {problem}", "use another host or data set")
        return kept, np.array(labels, np.int32), dropped

    def _find(self, tokenizer: HostTokenizer, answers: list[str]) -> dict[str, int]:
        """The answers that are one piece, with that piece's id."""
        return (_entries if isinstance(self.protocol, Thunlp) else single_pieces)(tokenizer, answers)

    def unanswered(self, record: Record, tokenizer: HostTokenizer) -> Mapping[str, Any]:
        return {"answers": [some_word(tokenizer, self._find)]}

    def _question(self, record: Record) -> str | tuple[str, ...]:
        text = self.protocol.text(record.source)
        return f"{text} {MASK_LITERAL}" if isinstance(text, str) else (*text, MASK_LITERAL)

    def predict(self, outputs: jax.Array, batch: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
        return {"chosen": outputs[:, 0].argmax(-1), "right": batch["labels"][:, 0]}

    def score(self, predictions: Mapping[str, np.ndarray]) -> dict[str, float]:
        return {"accuracy": float((predictions["chosen"] == predictions["right"]).mean())}


def _entries(tokenizer: HostTokenizer, answers: list[str]) -> dict[str, int]:
    """The answers whose lowercase form is an entry of the vocabulary, with its id."""
    found = ((answer, tokenizer.backend.token_to_id(answer.lower())) for answer in answers)
    return {answer: piece for answer, piece in found if piece is not None}


def _check_blank(record: Record, one: Encoded) -> None:
    if len(one.blanks) > 1:
        raise InputError(record.where, f"field text holds a {MASK_LITERAL} of its own", "take it out")
    if not len(one.blanks):
        raise InputError(record.where, "the question is cut before its mask", "raise max_length")
