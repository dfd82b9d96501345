"""Relations between two marked mentions of a sentence: Wiki80, wiki20m, TACRED and T-REx-rc."""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import tensorflow_datasets as tfds

from kinject.data.records import Record, short
from kinject.datasets.builder import RecordBuilder, SplitFiles, Splits, expect
from kinject.datasets.fewrel import Fewrel, check_published, place, read_relations
from kinject.datasets.files import check, check_label, find, need, read_json, read_json_lines, read_labels, take
from kinject.datasets.relation_lines import fewrel_record, opennre_record, subject_object_record
from kinject.errors import InputError

RELATIONS, SENTENCES = 80, 56_000
WIKI80_FILES = {
    "train": ("train.txt", "wiki80_train.txt"),
    "validation": ("dev.txt", "val.txt", "wiki80_val.txt"),
    "test": ("test.txt", "wiki80_test.txt"),
}
WIKI80_LABEL_FILES = ("rel2id.json", "wiki80_rel2id.json")
SHARES = {"train": 0.7, "validation": 0.1, "test": 0.2}
FEWREL_FILES = ("train_wiki.json", "val_wiki.json")


class Wiki80(RecordBuilder):
    """80 Wikidata relations x 700 sentences, classified (OpenNRE; Zhang et al., ACL 2023, section 4).

    Records: tokens, mentions (head, tail), `label` (relation), `id`. The sentences are those of FewRel 1.0's training
    and validation sets, so that it can be made from them too.
    """

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
        fewrel_only = find(folder, *FEWREL_FILES) and not find(folder, *WIKI80_FILES["train"])
        return ["from_fewrel" if fewrel_only else "files"]

    def files(self, folder: Path) -> list[Path]:
        if self.builder_config.name == "from_fewrel":
            return [need(folder, name) for name in FEWREL_FILES]
        return [need(folder, *WIKI80_LABEL_FILES), *self._split_files(folder).values()]

    def splits(self, folder: Path) -> Splits:
        if self.builder_config.name == "from_fewrel":
            return self._splits_of_fewrel(folder)
        label_file = need(folder, *WIKI80_LABEL_FILES)
        self.labels = read_labels(label_file)
        files = self._split_files(folder)
        if self.check:
            expect(label_file, "labels", len(self.labels), RELATIONS)
            lines = sum(1 for path in files.values() for _ in read_json_lines(path))
            expect(folder, f"sentences in {', '.join(path.name for path in files.values())}", lines, SENTENCES)
        return {split: partial(self._records, split, path) for split, path in files.items()}

    def _split_files(self, folder: Path) -> dict[str, Path]:
        found = {split: need(folder, *WIKI80_FILES[split]) for split in ("train", "validation")}
        test = find(folder, *WIKI80_FILES["test"])
        return {**found, "test": test} if test else found

    def _records(self, split: str, path: Path) -> Iterator[Record]:
        known = set(self.labels)
        for number, where, line in read_json_lines(path):
            label = take(line, "relation", str, where)
            check_label(label, known, "relation", "rel2id.json", where)
            record = opennre_record(line, where, label=label, id=f"{split}/{number}")
            yield from self.unless_overlap(record, where)

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
            yield from self.unless_overlap(record, where)


def deal(relation: str, count: int) -> dict[str, list[int]]:
    """Deals the indices 0..count-1 to the splits by their shares, ascending in each; the same on every machine."""
    indices = list(range(count))
    random.Random(f"wiki80 {relation}").shuffle(indices)
    first, second = round(count * SHARES["train"]), round(count * (SHARES["train"] + SHARES["validation"]))
    parts = (indices[:first], indices[first:second], indices[second:])
    return {split: sorted(part) for split, part in zip(SHARES, parts, strict=True)}


WIKI20M_FILES = {"train": "wiki20m_train.txt", "validation": "wiki20m_val.txt", "test": "wiki20m_test.txt"}


class Wiki20m(RecordBuilder):
    """Sentences with two linked entities: general map-tuning's corpus (Zhang et al., ACL 2023, section 3.2).

    Records: tokens, mentions (head, tail), `label` where the line has a relation, `id`. The files are read as streams,
    so that any corpus in this form can be used, however large.

    The paper trains on the three splits together: `?split=train+validation+test`. Entities come from distant
    supervision, so a sentence whose head and tail overlap is no fault of the file: it is left out and counted.
    """

    DESCRIPTION = "wiki20m: Wikipedia sentences with two linked entities, for mention-masked language modelling."
    HOMEPAGE = "https://github.com/thunlp/OpenNRE"
    LICENSE = "MIT"
    CITATION = "Gao et al., Manual Evaluation Matters: Reviewing Test Protocols of Distantly Supervised RE, ACL 2021"
    MANUAL_DOWNLOAD_INSTRUCTIONS = """\
    wiki20m_train.txt, wiki20m_val.txt and wiki20m_test.txt of OpenNRE (benchmark/download_wiki20m.sh) or of the folder
    wiki20m of PlugDataset.tar (see the README of https://github.com/thunlp/Knowledge-Plugin). The training file is
    needed, the others may be missing; any may be packed (.gz).
    """

    def files(self, folder: Path) -> list[Path]:
        need(folder, WIKI20M_FILES["train"])
        return [path for name in WIKI20M_FILES.values() if (path := find(folder, name))]

    def splits(self, folder: Path) -> Splits:
        self.files(folder)
        found = {split: find(folder, name) for split, name in WIKI20M_FILES.items()}
        return {split: partial(self._records, split, path) for split, path in found.items() if path}

    def _records(self, split: str, path: Path) -> Iterator[Record]:
        for number, where, line in read_json_lines(path):
            relation = check(line.get("relation", ""), str, "relation", where)
            fields = {"label": relation} if relation else {}
            record = opennre_record(line, where, id=f"{split}/{number}", **fields)
            if record is None:
                self.left_out["head and tail overlap"] += 1
            else:
                yield record


class Tacred(SplitFiles):
    """TACRED (Zhang et al., EMNLP 2017), where most pairs have no relation.

    Records: tokens, two mentions (subject, object), `label`, `id`.
    """

    DESCRIPTION = "TACRED: 41 relations and no_relation between a subject and an object of one sentence."
    HOMEPAGE = "https://nlp.stanford.edu/projects/tacred/"
    LICENSE = "LDC User Agreement"
    CITATION = "Zhang et al., Position-aware Attention and Supervised Data Improve Slot Filling, EMNLP 2017"
    HAS_OWN_IDS = True
    COUNTS: ClassVar[dict[str, int]] = {"train": 68_124, "validation": 22_631, "test": 15_509}
    LABELS = 42
    MANUAL_DOWNLOAD_INSTRUCTIONS = """\
    train.json, dev.json and test.json of the folder data/json of LDC2018T24, or of a corrected version (Re-TACRED,
    TACREV; with --no-check): arrays of {"id", "token", "relation", "subj_start", "subj_end" (inclusive), "obj_start",
    "obj_end"}.
    """

    def record(self, line: dict[str, Any], where: str, identity: str) -> Record | None:
        label = take(line, "relation", str, where)
        self.known([("relation", label)], where)
        record = subject_object_record(line, where, label=label, id=take(line, "id", str, where))
        return next(self.unless_overlap(record, where, "subject and object"), None)


TOO_GENERAL, FEWEST, TRAIN_SHARE = "P31", 50, 0.9
TREX_RC_SPLITS = ("train", "validation")
_WIKIDATA_ID = re.compile(r"(?:.*/)?(Q\d+)")


class TrexRc(RecordBuilder):
    """Sentences of Wikipedia that express a relation of Wikidata: K-Adapter's factual pretraining.

    Records: tokens, mentions (subject, object; linked where the label is a Wikidata id), `label`, `id`. Wang et al.,
    "K-Adapter", Findings of ACL 2021, section 3.2, made it from T-REx (Elsahar et al., LREC 2018). As they do, the
    builder drops P31 (instance of) and relations with fewer than 50 sentences. With `check=False`
    relations of any number of sentences stay.
    """

    DESCRIPTION = "T-REx-rc: sentences with a Wikidata relation between two mentions, for K-Adapter's factual adapter."
    HOMEPAGE = "https://github.com/microsoft/K-Adapter"
    LICENSE = "CC BY-SA 4.0 (T-REx)"
    CITATION = "Wang et al., K-Adapter, Findings of ACL 2021, pages 1405-1418; Elsahar et al., T-REx, LREC 2018"
    MANUAL_DOWNLOAD_INSTRUCTIONS = """\
    train.json and dev.json, each one JSON array of {"token": [...], "relation": "P17", "subj_start", "subj_end",
    "obj_start", "obj_end", "docid", "subj_label", "obj_label"}, ends inclusive. Without dev.json one sentence in ten of
    train.json is the validation set, at random but the same on every machine.
    """

    def files(self, folder: Path) -> list[Path]:
        dev = find(folder, "dev.json")
        return [need(folder, "train.json"), *([dev] if dev else [])]

    def splits(self, folder: Path) -> Splits:
        files = self.files(folder)
        relations = [_relations(path) for path in files]
        counts = Counter(relation for each in relations for relation in each)
        fewest = FEWEST if self.check else 1
        self.labels = sorted(one for one, count in counts.items() if one != TOO_GENERAL and count >= fewest)
        if not self.labels:
            raise InputError(folder, f"no relation has {fewest} sentences", "prepare with --no-check")
        self.left_out.update(
            {
                f"relation {TOO_GENERAL}": counts[TOO_GENERAL],
                f"relations of fewer than {fewest} sentences": sum(c for c in counts.values() if c < fewest),
            }
        )
        self.left_out += Counter()  # drops what counts nothing
        if len(files) == 2:
            return {
                split: partial(self._records, split, path) for split, path in zip(TREX_RC_SPLITS, files, strict=True)
            }
        chosen = range(len(relations[0]))
        train = frozenset(random.Random("trex_rc").sample(chosen, round(TRAIN_SHARE * len(chosen))))
        parts = (train, frozenset(chosen) - train)
        return {
            split: partial(self._records, split, files[0], part)
            for split, part in zip(TREX_RC_SPLITS, parts, strict=True)
        }

    def _records(self, split: str, path: Path, part: frozenset[int] | None = None) -> Iterator[Record]:
        known = set(self.labels)
        for index, item in enumerate(read_json(path)):
            if (part is None or index in part) and item["relation"] in known:
                entities = (_linked(item.get("subj_label")), _linked(item.get("obj_label")))
                about = {"label": item["relation"], "id": f"{split}/{index}"}
                record = subject_object_record(item, f"{path}[{index}]", entities=entities, **about)
                if record is None:
                    self.left_out["subject and object overlap"] += 1
                else:
                    yield record


def _linked(label: Any) -> str | None:
    """The id in a label such as `http://www.wikidata.org/entity/Q42`; None where it has none."""
    found = _WIKIDATA_ID.fullmatch(str(label))
    return found.group(1) if found else None


def _relations(path: Path) -> list[str]:
    """The relation of every instance of a file, in order.

    Raises:
      InputError: another form, or a relation that is no property of Wikidata.
    """
    found = []
    for index, item in enumerate(check(read_json(path), list, "the whole file", str(path))):
        where = f"{path}[{index}]"
        relation = check(item, dict, "the instance", where).get("relation")
        if not isinstance(relation, str) or not re.fullmatch(r"P\d+", relation):
            hint = "take the files with Wikidata's ids, such as P17; the authors' cleaner writes numbers in their place"
            raise InputError(where, f"field 'relation' is {short(relation)}", hint)
        found.append(relation)
    if not found:
        raise InputError(path, "there is no sentence in it", "download it again")
    return found
