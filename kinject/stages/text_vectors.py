"""Stage `text_vectors`: a knowledge base whose vectors are a host's own outputs over texts (PELT), nothing trained.

Ye et al. 2022 (see `kinject.inference.occurrences`); `kinject knowledge build --from-text` does the same. Writes
`<stage>/knowledge`; a stage that was interrupted goes on.
"""

from __future__ import annotations

import shutil
from typing import Any, Literal

from pydantic import Field

from kinject.datasets.records import is_dataset
from kinject.inference.host import open_host
from kinject.inference.occurrences import Reading, build_from_text
from kinject.knowledge.base import KnowledgeBase
from kinject.stages.base import Stage, StageConfig


class TextVectorsConfig(StageConfig):
    """Whose outputs, over which texts.

    `texts` are records with linked mentions, as a `passages` stage writes them. Of an entity's occurrences `most` are
    read, drawn by the run's seed, of texts of `least` words or more, cut to `max_length` pieces.
    """

    kind: Literal["text_vectors"] = "text_vectors"
    host: str
    texts: tuple[str, ...] = Field(min_length=1)
    most: int = Field(256, ge=1)
    least: int = Field(8, ge=1)
    max_length: int = Field(64, ge=4)
    batch_size: int = Field(64, ge=1)


class TextVectorsStage(Stage[TextVectorsConfig]):
    """Reads vectors off a host."""

    def execute(self) -> dict[str, Any]:
        config = self.config
        host = open_host(self.run.model(config.host, f"{self.where}.host"), head="masked_lm")
        files = [one if is_dataset(one) else self.run.path(one, f"{self.where}.texts") for one in config.texts]
        reading = Reading(
            most=config.most,
            max_length=config.max_length,
            least=config.least,
            seed=self.seed,
            batch_size=config.batch_size,
        )
        shutil.rmtree(self.folder / "knowledge", ignore_errors=True)  # not all of it: what was read so far is kept
        folder = build_from_text(self.folder / "knowledge", host, files, reading, name=self.name)
        made = KnowledgeBase.open(folder)
        vectors = made.size if made.has_vector is None else int(made.has_vector.sum())
        self.run.reporter.say(f"{self.name}: {vectors:,} of {made.size:,} entities have a vector")
        return {"entities": made.size, "vectors": vectors}
