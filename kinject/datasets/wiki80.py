"""Wiki80: 80 Wikidata relations x 700 sentences, classified (OpenNRE; Zhang et al., ACL 2023, section 4).

Its sentences are those of FewRel 1.0's training and validation sets, so that it can be made from them too.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import ClassVar

import tensorflow_datasets as tfds

from kinject.data.records import Record
from kinject.datasets.builder import RecordBuilder, Splits, expect
from kinject.datasets.fewrel import Fewrel, check_published, place, read_relations
from kinject.datasets.files import find, need, read_json_lines, read_labels, take
from kinject.datasets.relation_lines import fewrel_record, opennre_record
from kinject.errors import InputError, did_you_mean

RELATIONS, SENTENCES = 80, 56_000
FILES = {
    "train": ("train.txt", "wiki80_train.txt"),
    "validation": ("dev.txt", "val.txt", "wiki80_val.txt"),
    "test": ("test.txt", "wiki80_test.txt"),
}
LABEL_FILES = ("rel2id.json", "wiki80_rel2id.json")
SHARES = {"train": 0.7, "validation": 0.1, "test": 0.2}
FEWREL_FILES = ("train_wiki.json", "val_wiki.json")


class Wiki80(RecordBuilder):
    """Records: tokens, mentions (head, tail), `label` (relation), `id`."""

    DESCRIPTION = "Wiki80: relation classification between two linked entities, 80 relations."
    HOMEPAGE = "https://github.com/thunlp/OpenNRE"
    LICENSE = "MIT"
    CITATION = "Han et al., OpenNRE: An Open and Extensible Toolkit for Neural Relation Extraction, EMNLP 2019"
    MANUAL_DOWNLOAD_INSTRUCTIONS = """\
    Config `files`: train.txt, dev.txt, test.txt and rel2id.json of the folder Wiki80 of PlugDataset.tar (see the
    README of https://github.com/thunlp/Knowledge-Plugin), or OpenNRE's wiki80_train.txt, wiki80_val.txt and
    wiki80_rel2id.json, which have no test split.
    Config `from_fewrel`: train_wiki.json and val_wiki.json of https://github.com/thunlp/FewRel; each relation's 700
    sentences are dealt 490/70/140 to train, validation and test by a fixed shuffle. Not the published split.
    """
    BUILDER_CONFIGS: ClassVar[list[tfds.core.BuilderConfig]] = [
        tfds.core.BuilderConfig(name="files", description="the published files"),
        tfds.core.BuilderConfig(name="from_fewrel", description="made from FewRel 1.0; another split"),
    ]

    @classmethod
    def configs_for(cls, folder: Path) -> list[str]:
        fewrel_only = find(folder, *FEWREL_FILES) and not find(folder, *FILES["train"])
        return ["from_fewrel" if fewrel_only else "files"]

    def files(self, folder: Path) -> list[Path]:
        if self.builder_config.name == "from_fewrel":
            return [need(folder, name) for name in FEWREL_FILES]
        return [need(folder, *LABEL_FILES), *self._split_files(folder).values()]

    def splits(self, folder: Path) -> Splits:
        if self.builder_config.name == "from_fewrel":
            return self._splits_of_fewrel(folder)
        label_file = need(folder, *LABEL_FILES)
        self.labels = read_labels(label_file)
        files = self._split_files(folder)
        if self.check:
            expect(label_file, "labels", len(self.labels), RELATIONS)
            lines = sum(1 for path in files.values() for _ in read_json_lines(path))
            expect(folder, f"sentences in {', '.join(path.name for path in files.values())}", lines, SENTENCES)
        return {split: partial(self._records, split, path) for split, path in files.items()}

    def _split_files(self, folder: Path) -> dict[str, Path]:
        found = {split: need(folder, *FILES[split]) for split in ("train", "validation")}
        test = find(folder, *FILES["test"])
        return {**found, "test": test} if test else found

    def _records(self, split: str, path: Path) -> Iterator[Record]:
        known = set(self.labels)
        for number, where, line in read_json_lines(path):
            label = take(line, "relation", str, where)
            if label not in known:
                raise InputError(
                    where, f"field 'relation' is {label!r}, not in rel2id.json", did_you_mean(label, known)
                )
            record = opennre_record(line, where, label=label, id=f"{split}/{number}")
            if self._usable(record, where):
                yield record

    def _usable(self, record: Record | None, where: str) -> bool:
        if record is None:
            self.leave_out_overlap(where)
        return record is not None

    def _splits_of_fewrel(self, folder: Path) -> Splits:
        dealt: dict[str, list[tuple[str, str, object]]] = {split: [] for split in SHARES}
        for name, path in zip(FEWREL_FILES, self.files(folder), strict=True):
            relations = read_relations(path)
            if self.check:
                check_published(path, relations, Fewrel.builder_configs[name.removesuffix(".json")])
            for relation, instances in relations.items():
                if relation in self.labels:
                    raise InputError(path, f"relation {relation!r} is in {FEWREL_FILES[0]} already")
                self.labels.append(relation)
                for split, indices in deal(relation, len(instances)).items():
                    dealt[split] += [(relation, place(path, relation, index), instances[index]) for index in indices]
        self.labels.sort()
        return {split: partial(self._records_of_fewrel, split, items) for split, items in dealt.items()}

    def _records_of_fewrel(self, split: str, items: list[tuple[str, str, object]]) -> Iterator[Record]:
        for number, (relation, where, item) in enumerate(items):
            record = fewrel_record(item, where, "Q", label=relation, id=f"{split}/{number}")
            if self._usable(record, where):
                yield record


def deal(relation: str, count: int) -> dict[str, list[int]]:
    """Deals the indices 0..count-1 to the splits by their shares, ascending in each; the same on every machine."""
    indices = list(range(count))
    random.Random(f"wiki80 {relation}").shuffle(indices)
    first, second = round(count * SHARES["train"]), round(count * (SHARES["train"] + SHARES["validation"]))
    parts = (indices[:first], indices[first:second], indices[second:])
    return {split: sorted(part) for split, part in zip(SHARES, parts, strict=True)}
