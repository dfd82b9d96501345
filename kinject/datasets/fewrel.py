"""FewRel 1.0 (Han et al., EMNLP 2018) and 2.0 (Gao et al., EMNLP 2019): one config a published file.

Order within a file is kept, for the paper's episodes draw relations and instances by index.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import ClassVar

import tensorflow_datasets as tfds

from kinject.data.records import Record
from kinject.datasets.builder import RecordBuilder, Splits, expect
from kinject.datasets.files import check, find, need, read_json, sha256
from kinject.datasets.relation_lines import fewrel_record
from kinject.errors import InputError


@dataclasses.dataclass(eq=False)
class FewrelConfig(tfds.core.BuilderConfig):
    """One file.

    Attributes:
      split: what its one split is called.
      entities: "Q" for Wikidata ids, "C" for UMLS concepts, None for a file without ids.
      relations, instances: how many the published file has, where that is known.
      digest: SHA-256 of the published file, where it is known.
    """

    split: str = "train"
    entities: str | None = "Q"
    relations: int | None = None
    instances: int | None = None
    digest: str | None = None

    @property
    def file(self) -> str:
        """The name of the published file."""
        return f"{self.name}.json"


class Fewrel(RecordBuilder):
    """Records: tokens, mentions (head, tail), `label` (relation), `id` (relation/index in the file)."""

    DESCRIPTION = "FewRel: sentences that express a relation between two linked entities, for few-shot classification."
    HOMEPAGE = "https://thunlp.github.io/fewrel.html"
    LICENSE = "MIT"
    CITATION = "Han et al., FewRel, EMNLP 2018, pages 4803-4809; Gao et al., FewRel 2.0, EMNLP 2019, pages 6251-6256"
    MANUAL_DOWNLOAD_INSTRUCTIONS = """\
    From https://github.com/thunlp/FewRel (folder data): train_wiki.json, val_wiki.json (FewRel 1.0), val_pubmed.json,
    val_nyt.json, val_semeval.json, pubmed_unsupervised.json (2.0). Those present are prepared, one config each.
    The hidden test set test_wiki.json and the map-tuning authors' own train_fewPubmed.json, val_fewPubmed.json and
    test_fewPubmed.json are read too, if you have them.
    """
    BUILDER_CONFIGS: ClassVar[list[FewrelConfig]] = [
        FewrelConfig(
            name="train_wiki",
            description="FewRel 1.0 training: Wikipedia, Wikidata ids",
            relations=64,
            instances=44_800,
        ),
        FewrelConfig(
            name="val_wiki",
            description="FewRel 1.0 validation: Wikipedia, Wikidata ids",
            split="validation",
            relations=16,
            instances=11_200,
            digest="76bb44c2485b6faed358a3ce040eadafcc8a8835245cd7e6afc1bef672d4a0bf",
        ),
        FewrelConfig(
            name="test_wiki",
            description="FewRel 1.0 test: not public",
            split="test",
            relations=20,
            instances=14_000,
        ),
        FewrelConfig(
            name="val_pubmed",
            description="FewRel 2.0 validation: PubMed, UMLS concepts",
            split="validation",
            entities="C",
            relations=10,
            instances=1_000,
            digest="fc0f13b534f6664fe0d8aec231d7590313bc6510d00dbc1b6746147f6a2b46e6",
        ),
        FewrelConfig(
            name="val_nyt",
            description="FewRel 2.0: New York Times, Wikidata ids",
            split="validation",
            relations=25,
            instances=2_500,
            digest="b519adc61a2bab0f05178e33a3cd8f284338b635629493e9e09616ba81bb428e",
        ),
        FewrelConfig(
            name="val_semeval",
            description="SemEval 2010 task 8 in FewRel's form: no ids, mentions are not linked",
            split="validation",
            entities=None,
            relations=17,
            instances=8_851,
            digest="fd79cf35481f6596c23b92cd3ded3265481f3027a4b78d99921104f8fe632eb5",
        ),
        FewrelConfig(
            name="pubmed_unsupervised",
            description="FewRel 2.0: PubMed sentences without a relation, UMLS concepts",
            entities="C",
            relations=0,
            instances=2_500,
            digest="fa3555941364024c2ac1b1857396515ecc65a515bc742e9da0502568fad5dd1f",
        ),
        *(
            FewrelConfig(
                name=name,
                description="the map-tuning authors' own split of FewRel 2.0: PubMed, UMLS concepts",
                split=split,
                entities="C",
            )
            for name, split in {
                "train_fewPubmed": "train",
                "val_fewPubmed": "validation",
                "test_fewPubmed": "test",
            }.items()
        ),
    ]

    @classmethod
    def configs_for(cls, folder: Path) -> list[str]:
        """The configs whose files are there; the first one (whose absence is then an error) if none is."""
        found = [config.name for config in cls.BUILDER_CONFIGS if find(folder, config.file)]
        return found or [cls.BUILDER_CONFIGS[0].name]

    def files(self, folder: Path) -> list[Path]:
        return [need(folder, self.builder_config.file)]

    def splits(self, folder: Path) -> Splits:
        return {self.builder_config.split: partial(self._records, self.files(folder)[0])}

    def _records(self, path: Path) -> Iterator[Record]:
        config = self.builder_config
        relations = read_relations(path)
        self.labels = [relation for relation in relations if relation]
        if self.check:
            check_published(path, relations, config)
        for relation, instances in relations.items():
            for index, item in enumerate(instances):
                fields = {"label": relation} if relation else {}
                where = place(path, relation, index)
                record = fewrel_record(item, where, config.entities, id=f"{relation}/{index}".lstrip("/"), **fields)
                yield from self.unless_overlap(record, where)


def read_relations(path: Path) -> dict[str, list]:
    """A FewRel file's instances by relation, in its order; under "" those of a file that is a plain list.

    Raises:
      InputError: another form, no instance, or a relation that stands twice.
    """
    content = read_json(path)
    if isinstance(content, list):
        content = {"": content}
    check(content, dict, "the whole file", str(path))
    for relation, instances in content.items():
        if not check(instances, list, relation, str(path)):
            raise InputError(path, f"relation {relation!r} has no instance")
    if not content:
        raise InputError(path, "the file is empty: there is no relation in it", "download it again")
    return content


def check_published(path: Path, relations: dict[str, list], config: FewrelConfig) -> None:
    """Raises InputError when the file is not the published one."""
    if config.relations is not None:
        expect(path, "relations", len([relation for relation in relations if relation]), config.relations)
    if config.instances is not None:
        expect(path, "instances", sum(map(len, relations.values())), config.instances)
    if config.digest is not None and path.suffix != ".gz" and sha256(path) != config.digest:
        problem = f"its SHA-256 is not that of the published file, {config.digest}"
        raise InputError(path, problem, "download it again, or prepare with --no-check")


def place(path: Path, relation: str, index: int) -> str:
    """Names an instance for messages: "file:relation[index]"."""
    return f"{path}:{relation}[{index}]"
