"""Stage `corpus`: text out of an installed package becomes records, `<stage>/records/{train,test}.jsonl`.

A record's `entity` is what it is about, so that a file of records is a file of passages too.
"""

from __future__ import annotations

import json
import zlib
from typing import Any, Literal

from pydantic import Field

from kinject.data.sources import CORPORA, read_corpus
from kinject.errors import InputError, did_you_mean
from kinject.stages.base import Stage, StageConfig


class CorpusConfig(StageConfig):
    """Which text, and what is kept out of it.

    `source` is one of kinject.data.sources.CORPORA. What is about one thing (a synset) is all in `train` or all in
    `test`, by a hash of its id. Nothing is kept that is about an entity of the records in `exclude`, or links one:
    questions asked later about those are then about things that were not read of here. Of the things one in `every` is
    taken, by the same hash, so that corpora of one source are about the same things.
    """

    kind: Literal["corpus"] = "corpus"
    source: str
    exclude: tuple[str, ...] = ()
    test_share: float = Field(0.02, gt=0, lt=1)
    every: int = Field(1, ge=1)


class CorpusStage(Stage[CorpusConfig]):
    """Reads a corpus."""

    def check(self) -> None:
        super().check()
        if self.config.source not in CORPORA:
            mend = did_you_mean(self.config.source, CORPORA)
            raise InputError(f"{self.where}.source", f"there is no corpus {self.config.source!r}", mend)

    def execute(self) -> dict[str, Any]:
        config, folder = self.config, self.fresh_folder() / "records"
        excluded = self._excluded()
        folder.mkdir(parents=True)
        counts = {"train": 0, "test": 0, "excluded": 0}
        with (folder / "train.jsonl").open("w") as train, (folder / "test.jsonl").open("w") as test:
            files = {"train": train, "test": test}
            for about, record in read_corpus(config.source):
                chosen = zlib.crc32(about.encode())
                linked = {mention["entity"] for mention in record.get("mentions", ())}
                if about in excluded or linked & excluded:
                    counts["excluded"] += 1
                elif chosen % config.every == 0:
                    split = "test" if chosen < config.test_share * 2**32 else "train"
                    counts[split] += 1
                    files[split].write(json.dumps({**record, "entity": about}, ensure_ascii=False) + "\n")
        self.run.reporter.say(f"{self.name}: " + ", ".join(f"{count:,} {name}" for name, count in counts.items()))
        return counts

    def _excluded(self) -> set[str]:
        if not self.config.exclude:
            return set()
        records = self.run.records(self.config.exclude, (), f"{self.where}.exclude")
        return {mention.entity for record in records for mention in record.mentions if mention.entity}
