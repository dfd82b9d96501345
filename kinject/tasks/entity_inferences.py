"""Entity propagation: is what a definition says of a new entity used where it is only implied?

Onoe et al., "Can LMs Learn New Entities from Descriptions? Challenges in Propagating Injected Knowledge", ACL 2023.
A probe sentence about an entity has a blank; with `choices` (Entity Inferences) the best answer is chosen, without
(ECBD) the perplexity of the masked span is measured. Answers are scored as `kinject.tasks.pseudo_likelihood` says, each
by its own pieces. (The release scores all options by logits that were computed with the first one as decoder input.)

The arms: the host alone; any plugin that knows the entity; the definition as text before the probe, and the definition
of another entity as its control.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np

from kinject.errors import InputError
from kinject.tasks.base import register_task
from kinject.tasks.pseudo_likelihood import AnswerChoices, Masking

if TYPE_CHECKING:
    from kinject.data.records import Record

Definition = Literal["none", "own", "other"]


@register_task("entity_inferences")
class EntityInferences(AnswerChoices):
    """Records need a text with one `[MASK]`, `label`, `choices`, and `definition` where that stands before the text.

    Args:
      definition: what stands before the probe: nothing, the entity's own definition, or that of another entity.
      seed: of whose definition that is.
      masking: see `kinject.tasks.pseudo_likelihood`.
    """

    def __init__(self, definition: Definition = "none", seed: int = 0, masking: Masking = "within_word_l2r"):
        super().__init__(masking)
        if definition not in ("none", "own", "other"):
            raise InputError("task_options.definition", f"it is {definition!r}", "choose none, own or other")
        self.definition, self.seed = definition, seed

    def texts(self, records: Sequence[Record]) -> list[str]:
        if self.definition == "none":
            return super().texts(records)
        said = [_definition(record) for record in records]
        whose = np.arange(len(said)) if self.definition == "own" else others(said, self.seed)
        return [f"{said[one]} {record.text}" for one, record in zip(whose, records, strict=True)]


@register_task("ecbd")
class Ecbd(EntityInferences):
    """As `entity_inferences`, without choices: the perplexity of the masked spans."""

    metric = "likelihood"
    required: ClassVar[tuple[str, ...]] = ("label",)


def others(said: Sequence[str], seed: int) -> np.ndarray:
    """For each definition the number of another one, drawn; int [n].

    Raises:
      InputError: there is no other.
    """
    if len(set(said)) < 2:
        raise InputError("task_options.definition", "all records have one definition", "`other` needs several")
    draw = np.random.default_rng(seed)
    chosen = np.empty(len(said), np.int64)
    for number, own in enumerate(said):
        found = number
        while said[found] == own:
            found = int(draw.integers(len(said)))
        chosen[number] = found
    return chosen


def _definition(record: Record) -> str:
    text = record.fields.get("definition")
    if not isinstance(text, str) or not text.strip():
        raise InputError(record.where, f"field definition is {text!r}", "it must be a text")
    return text.strip()
