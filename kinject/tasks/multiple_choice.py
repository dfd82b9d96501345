"""Multiple choice: which of a few answers to a question about a passage is right.

`[CLS] passage [SEP] question [SEP] choice [SEP]`, one score a choice on the first token, softmax cross-entropy over the
choices, accuracy. A batch is [B, C, L] and takes one forward of B * C rows (the releases take one a choice). Forms:

- CosmosQA in K-Adapter (examples/run_finetune_cosmosqa_adapter.py): as above, single separators.
- SocialIQA in Kformer: `<s> context </s> Q: question </s> A: choice </s>`; MedQA, which has no passage:
  `<s> Q: question </s> A: choice </s>`. The prefixes are options.

What is too long loses the passage's pieces first, then the question's, the choice's last.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from kinject.data.encode import EntityEncoder, Passage
from kinject.data.passage import doomed_in_turn
from kinject.data.pipeline import Examples, make_examples
from kinject.errors import InputError
from kinject.models.heads import logits
from kinject.tasks.base import Extent, Shapes, Task, flat_rows, register_task, slot_rows
from kinject.tasks.fields import strings, unique_ids

if TYPE_CHECKING:
    from kinject.data.encode import Encoded
    from kinject.data.records import Mention, Record
    from kinject.data.tokenizer import HostTokenizer
    from kinject.knowledge.base import KnowledgeBase
    from kinject.models.heads import HostModel
    from kinject.models.seams import Plugin

NO_CHOICE = -1e9  # the score of a choice that a record does not have


@register_task("multiple_choice")
class MultipleChoice(Task):
    """Records need `choices`, a list of texts, and `label`, the number of the right one from 0.

    The record's text is the passage, and `question` stands beside it; without `question` the text is the question.
    Knowledge texts, where there are any, are in `facts`; see `choice_facts`.

    Args:
      question_prefix: what stands before every question, such as "Q: ".
      choice_prefix: what stands before every choice, such as "A: ".
    """

    head = "multiple_choice"
    required = ("choices", "label")

    def __init__(self, question_prefix: str = "", choice_prefix: str = ""):
        for name, value in (("question_prefix", question_prefix), ("choice_prefix", choice_prefix)):
            if not isinstance(value, str):
                raise InputError(f"task_options.{name}", f"is {value!r}", "it must be a text")
        self.question_prefix, self.choice_prefix = question_prefix, choice_prefix

    def examples(
        self, records: Sequence[Record], encoder: EntityEncoder, knowledge: KnowledgeBase | None, *, buckets: int = 3
    ) -> Examples:
        records = list(records)
        unique_ids(records)
        for record in records:
            choice_facts(record)
        labels = np.array([_label(record) for record in records], np.int32)
        encoder = single_separators(encoder)
        passages = [self._passages(record) for record in records]
        encoded = encoder.encode_batch([one for some in passages for one in some], slot_rows(knowledge))
        counts = np.array([len(some) for some in passages])
        groups = [encoded[stop - count : stop] for stop, count in zip(np.cumsum(counts), counts, strict=True)]
        widest = counts.max(initial=0)

        def arrays(index: Sequence[int], length: int) -> Mapping[str, np.ndarray]:
            return {**pad_groups([groups[i] for i in index], widest, length, encoder), "labels": labels[index]}

        return make_examples([max(map(len, some)) for some in groups], arrays, buckets=buckets)

    def _passages(self, record: Record) -> list[Passage]:
        """One passage a choice."""
        question = record.fields.get("question")
        if not isinstance(question, str | None):
            raise InputError(record.where, f"field question is {question!r}", "it must be a text")
        text, mentions = record.source, record.mentions
        further: tuple[str, ...] = (f"{self.question_prefix}{question}",)
        if question is None:
            text, mentions = prefixed(self.question_prefix, text, mentions)
            further = ()
        return [
            Passage(text, mentions, texts[0], where=record.where, further=texts[1:])
            for choice in strings(record, "choices")
            for texts in [(*further, f"{self.choice_prefix}{choice}")]
        ]

    def batch_shapes(self, extent: Extent) -> Shapes:
        return {**extent.tokens(extent.choices), "labels": extent.whole()}

    def rows(self, batch: Mapping[str, jax.Array]) -> Mapping[str, jax.Array]:
        return flat_rows(batch)

    def outputs(
        self,
        host: HostModel,
        plugin: Plugin | None,
        batch: Mapping[str, jax.Array],
        key: jax.Array | None = None,
        start: int = 0,
    ) -> jax.Array:
        """Scores float32 [B, C] of a batch whose arrays are [B, C, …]."""
        scores = logits(host, self.rows(batch), plugin, key, start=start)
        scores = scores.reshape(batch["token_ids"].shape[:-1])
        return jnp.where((batch["segment_ids"] > 0).any(-1), scores, NO_CHOICE)

    def loss(self, outputs: jax.Array, batch: Mapping[str, jax.Array]) -> tuple[jax.Array, jax.Array]:
        return optax.softmax_cross_entropy_with_integer_labels(outputs, batch["labels"]), batch["weights"]

    def predict(self, outputs: jax.Array, batch: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
        return {"chosen": outputs.argmax(-1), "right": batch["labels"]}

    def unanswered(self, record: Record, tokenizer: HostTokenizer) -> Mapping[str, Any]:
        return {"label": 0}

    def choices(self, outputs: jax.Array, batch: Mapping[str, jax.Array]) -> jax.Array:
        return outputs

    def choice_name(self, number: int, record: Record, tokenizer: HostTokenizer) -> str:
        return record.fields["choices"][number]

    def score(self, predictions: Mapping[str, np.ndarray]) -> dict[str, float]:
        return {"accuracy": float((predictions["chosen"] == predictions["right"]).mean())}


def choice_facts(record: Record) -> list[list[str]]:
    """The knowledge texts of each choice: `facts`, one list a choice, or one list that all choices share.

    Returns:
      One list a choice, empty ones where the record has no facts; a shared list is the same object in every place.

    Raises:
      InputError: another form, or another number of lists than one or that of the choices.
    """
    facts, count = record.fields.get("facts", [[]]), len(strings(record, "choices"))
    if not isinstance(facts, list) or not all(isinstance(some, list) for some in facts):
        raise InputError(record.where, f"field facts is {facts!r}"[:200], "it must be a list of lists of texts")
    for number, some in enumerate(facts):
        if any(not isinstance(fact, str) for fact in some):
            raise InputError(record.where, f"field facts[{number}] is {some!r}"[:200], "it must be a list of texts")
    if len(facts) not in (1, count):
        problem = f"field facts has {len(facts)} lists for {count} choices"
        raise InputError(record.where, problem, "give one a choice, or a single one for all")
    return facts * count if len(facts) == 1 else facts


def pad_groups(
    groups: Sequence[Sequence[Encoded]], widest: int, length: int, encoder: EntityEncoder
) -> dict[str, np.ndarray]:
    """Stacks the passages of several examples: int32 arrays [examples, widest, …]; a missing passage is padding."""
    here = [one for some in groups for one in some]
    entities = max(len(one.entities) for one in here)
    places = [number * widest + i for number, some in enumerate(groups) for i in range(len(some))]
    padded, filled = encoder.pad(here, length, entities), encoder.pad([], length, entities, len(groups) * widest)
    for name, values in filled.items():
        values[places] = padded[name]
    return {name: values.reshape(len(groups), widest, values.shape[1]) for name, values in filled.items()}


def single_separators(encoder: EntityEncoder) -> EntityEncoder:
    """The encoder with one separator between texts, also for RoBERTa, whose tokenizer puts two there."""
    tokenizer = replace(encoder.tokenizer, between=(encoder.tokenizer.sep_id,))
    return encoder.like(tokenizer=tokenizer, truncate=doomed_in_turn)


def prefixed(
    prefix: str, source: str | tuple[str, ...], mentions: tuple[Mention, ...]
) -> tuple[str | tuple[str, ...], tuple[Mention, ...]]:
    """Returns a text with something before it, and its mentions where they now are."""
    words = tuple(prefix.split())
    shift = len(prefix if isinstance(source, str) else words)
    moved = tuple(replace(one, start=one.start + shift, end=one.end + shift) for one in mentions)
    return (prefix + source if isinstance(source, str) else words + source), moved


def _label(record: Record) -> int:
    label, count = record.fields["label"], len(strings(record, "choices"))
    if count < 2:
        raise InputError(record.where, f"field choices has {count} of them", "a question has two or more")
    if type(label) is not int or not 0 <= label < count:
        problem = f"field label is {label!r}, and there are {count} choices"
        raise InputError(record.where, problem, "it must be the number of the right one, from 0")
    return label
