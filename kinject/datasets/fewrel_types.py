"""Types of the entities in naturally worded sentences: FewRel's sentences, CoDEx's entities and their Wikidata types.

A mention is of a fold by its entity, and nothing is learned from a sentence that mentions a tested entity too: it is of
one split, test before validation before train, and mentions of other splits in it are left out.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
import tensorflow_datasets as tfds

from kinject.data.records import Record, parse_record
from kinject.datasets.builder import RecordBuilder, Splits, expect
from kinject.datasets.fewrel import place, read_relations
from kinject.datasets.files import check, need, read_json, take, texts
from kinject.datasets.relation_lines import fewrel_record
from kinject.knowledge.triples import read_triples

SENTENCES = ("val_wiki.json", "fewrel_val_wiki.json")
TYPES = ("entity2types.json", "codex_entity_types.json")
NAMES = ("types.json", "codex_types.json")
TRIPLES = ("codex_m_triples.tsv", "triples.tsv")
FOLDS = 5
DEVELOPMENT = 8  # every eighth entity that is not tested
LEAST = 5  # entities that have a type; rarer types are `OTHER`
OTHER = "other"
SPLITS = ("train", "validation", "test")  # a sentence with mentions of several is of the last one alone
AROUND = 10  # words on either side of a mention that its text has
PER_ENTITY = 4  # mentions of an entity to learn from, so that no language or sport is most of them; tested are all
MENTIONS, ENTITIES = 1_792, 757  # of the published files


@dataclasses.dataclass(eq=False)
class FoldConfig(tfds.core.BuilderConfig):
    """Which fifth of the entities is tested."""

    fold: int = 0


class _Mention(NamedTuple):
    """A mention of an entity with a vector and types: where it stands, the whole sentence, and the record's parts."""

    where: str
    entity: str
    sentence: str
    fields: dict[str, Any]


class FewrelTypes(RecordBuilder):
    """Records: tokens around one mention, `labels` (names of types), `id` (relation/index/h or t)."""

    DESCRIPTION = (
        "Wikidata types of the mentions in FewRel's sentences whose entity is in CoDEx-M, five folds by entity."
    )
    HOMEPAGE = "https://github.com/tsafavi/codex"
    LICENSE = "MIT (FewRel, CoDEx); facts CC0"
    CITATION = "Han et al., FewRel, EMNLP 2018, pages 4803-4809; Safavi and Koutra, CoDEx, EMNLP 2020, pages 8328-8350"
    MANUAL_DOWNLOAD_INSTRUCTIONS = """\
    val_wiki.json of https://github.com/thunlp/FewRel (folder data), and of https://github.com/tsafavi/codex (folder
    data): types/entity2types.json, types/en/types.json, and codex_m_triples.tsv, which is triples/codex-m/train.txt,
    valid.txt and test.txt, one behind the other. A config, fold0 to fold4, is named by the fold that is tested.
    """
    BUILDER_CONFIGS: ClassVar[list[FoldConfig]] = [
        FoldConfig(name=f"fold{fold}", description=f"tests fold {fold} of the entities", fold=fold)
        for fold in range(FOLDS)
    ]

    @classmethod
    def configs_for(cls, folder: Path) -> list[str]:
        """All folds: they are of the same files."""
        del folder
        return [config.name for config in cls.BUILDER_CONFIGS]

    def files(self, folder: Path) -> list[Path]:
        return [need(folder, *names) for names in (SENTENCES, TYPES, NAMES, TRIPLES)]

    def splits(self, folder: Path) -> Splits:
        sentences, types_file, names_file, triples = self.files(folder)
        types = {entity: texts(found, entity, str(types_file)) for entity, found in _object(types_file).items()}
        known = set(read_triples(triples)[0]) & types.keys()
        mentions = list(_mentions(sentences, known))
        entities = sorted({one.entity for one in mentions})
        if self.check:
            expect(sentences, "mentions of entities with triples and types", len(mentions), MENTIONS)
            expect(sentences, "such entities", len(entities), ENTITIES)
        count = Counter(one for entity in entities for one in types[entity])
        frequent = [one for one, times in sorted(count.items(), key=lambda item: (-item[1], item[0])) if times >= LEAST]
        name = _named(frequent, names_file)
        self.labels = [*name.values(), OTHER]
        part = deal(entities, self.builder_config.fold)
        labels = {entity: [name[one] for one in frequent if one in types[entity]] or [OTHER] for entity in entities}
        return {split: partial(_records, mentions, part, labels, split) for split in SPLITS}


def deal(entities: list[str], fold: int) -> dict[str, str]:
    """Which split each entity is in where this fold is tested: a fifth `test`, an eighth of the others `validation`."""
    order = np.random.default_rng(0).permutation(len(entities))
    part = {entities[at]: "test" for at in order[fold::FOLDS]}
    others = [entities[at] for at in order if entities[at] not in part]
    return part | {one: "train" if number % DEVELOPMENT else "validation" for number, one in enumerate(others)}


def _object(path: Path) -> dict[str, Any]:
    return check(read_json(path), dict, "the whole file", str(path))


def _named(types: list[str], path: Path) -> dict[str, str]:
    """What each type is called; its id beside the name where another one has that name too."""
    said = _object(path)
    names = {}
    for one in types:
        about = check(said.get(one, {"label": one}), dict, one, str(path))
        names[one] = take(about, "label", str, str(path), one)
    count = Counter([*names.values(), OTHER])
    return {one: name if count[name] == 1 else f"{name} ({one})" for one, name in names.items()}


def _mentions(path: Path, known: set[str]) -> Iterator[_Mention]:
    """The heads and tails that are known entities; sentences in which head and tail overlap have none."""
    for relation, instances in read_relations(path).items():
        for index, item in enumerate(instances):
            where = place(path, relation, index)
            record = fewrel_record(item, where, "Q")
            for side, mention in zip("ht", record.mentions if record else (), strict=False):
                if mention.entity in known:
                    assert record is not None and mention.entity is not None  # it has mentions, and is known
                    first = max(0, mention.start - AROUND)
                    spot = {"start": mention.start - first, "end": mention.end - first, "entity": mention.entity}
                    tokens = list(record.source[first : mention.end + AROUND])
                    identity = f"{relation}/{index}/{side}".lstrip("/")
                    fields = {"tokens": tokens, "mentions": [spot], "id": identity}
                    yield _Mention(where, mention.entity, " ".join(record.source).lower(), fields)


def _records(
    mentions: list[_Mention], part: dict[str, str], labels: dict[str, list[str]], split: str
) -> Iterator[Record]:
    last: dict[str, int] = {}
    for one in mentions:
        last[one.sentence] = max(last.get(one.sentence, 0), SPLITS.index(part[one.entity]))
    taken: Counter[str] = Counter()
    for one in mentions:
        if part[one.entity] != split or SPLITS[last[one.sentence]] != split:
            continue
        taken[one.entity] += 1
        if split == "test" or taken[one.entity] <= PER_ENTITY:
            yield parse_record({**one.fields, "labels": labels[one.entity]}, one.where)
