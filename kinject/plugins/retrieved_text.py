"""Retrieved text: what the knowledge base says in words, behind the input. The baseline of every other method.

`[CLS] input [SEP] name: description ; head relation tail ; … [SEP]`, one such text an entity, each with a fixed budget
of tokens; the input is never cut for it. Related forms: the evidence of K-Adapter's CosmosQA, and Onoe et al. 2023, who
prepend a definition.

Seam: none, the text alone. Trained: nothing. It serves a host that never saw such texts (text at test only) and one
that was trained with them (stage `host` with this as its `plugin`). Needs of the knowledge base: labels, and
descriptions or triples.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from kinject.data.facts import FactReader, append_texts
from kinject.knowledge.facts import Form
from kinject.models.seams import Plugin
from kinject.plugins.base import register

if TYPE_CHECKING:
    from kinject.data.pipeline import Examples
    from kinject.data.records import Record
    from kinject.knowledge.base import KnowledgeBase
    from kinject.models.seams import FrozenHost


@register("retrieved_text")
class RetrievedText(Plugin):
    """Facts in words, put behind the input; nothing is trained."""

    @dataclass(frozen=True)
    class Config:
        """Which texts.

        Attributes:
          form: facts of an entity: its description, its triples, or both.
          entities: texts an example, linked entities first.
          budget: tokens a text may take.
          retrieve: whether BM25 finds entities where an example links fewer.
          drop_answers: leave out facts that hold the gold answer.
        """

        form: Form = "all"
        entities: int = 1
        budget: int = 64
        retrieve: bool = True
        drop_answers: bool = False

        def __post_init__(self) -> None:
            if min(self.entities, self.budget) < 1:
                raise ValueError(f"entities {self.entities} and budget {self.budget} must be 1 or more")

    def prepare(
        self, examples: Examples, records: Sequence[Record], host: FrozenHost, knowledge: KnowledgeBase | None
    ) -> Examples:
        """Puts each record's texts behind its example's tokens."""
        config = self.config
        reader = FactReader.of(config, knowledge)
        texts = [
            [[" ; ".join(group) for group in groups if group] for groups in choices] for choices in reader.read(records)
        ]
        longest = host.tokenizer.max_length
        return append_texts(examples, texts, host.tokenizer, budget=config.budget, longest=longest)
