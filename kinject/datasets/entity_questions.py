"""EntityQuestions (Sciavolino et al., EMNLP 2021) with linked subjects, as map-tuning uses it (ACL 2023, section 4).

The subject of a question is what fills its relation's template, and is looked up, case and all, in the authors' map of
mentions to Wikidata ids. Which answer is one vocabulary entry depends on the tokenizer and is left to the task.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import ClassVar

import tensorflow_datasets as tfds

from kinject.data.records import Record, parse_record
from kinject.datasets.builder import RecordBuilder, Splits, expect
from kinject.datasets.files import check, need, read_json, take
from kinject.errors import InputError
from kinject.knowledge.files import at
from kinject.text_files import read_lines

SPLITS = {"train": "train", "validation": "dev", "test": "test"}
QUESTIONS = {"train": 176_560, "validation": 22_068, "test": 22_075}
TEMPLATE_FILE, MAP_FILE = "relation_query_templates.json", "entity_map.txt"
SUBJECT = "[X]"


class EntityQuestions(RecordBuilder):
    """Records: text (the question), one mention, `answers`, `relation`, `id` (relation/index in its file)."""

    DESCRIPTION = "EntityQuestions: questions about one fact of one entity, 24 relations."
    HOMEPAGE = "https://github.com/princeton-nlp/EntityQuestions"
    LICENSE = "MIT"
    CITATION = "Sciavolino et al., Simple Entity-Centric Questions Challenge Dense Retrievers, EMNLP 2021"
    MANUAL_DOWNLOAD_INSTRUCTIONS = """\
    The folders train, dev and test of https://nlp.cs.princeton.edu/projects/entity-questions/dataset.zip (files
    P17.train.json, …), relation_query_templates.json of https://github.com/princeton-nlp/EntityQuestions, and
    entity_map.txt of wikipedia/ in knowledge_embedding.tar (see https://github.com/thunlp/Knowledge-Plugin).
    """
    BUILDER_CONFIGS: ClassVar[list[tfds.core.BuilderConfig]] = [
        tfds.core.BuilderConfig(
            name="linked", description="questions whose subject is in entity_map.txt, as published"
        ),
        tfds.core.BuilderConfig(name="all", description="all questions; a subject that is not in the map is unlinked"),
    ]

    def files(self, folder: Path) -> list[Path]:
        questions = [path for split in SPLITS for path in self._question_files(folder, split).values()]
        return [need(folder, TEMPLATE_FILE), need(folder, MAP_FILE), *questions]

    def splits(self, folder: Path) -> Splits:
        templates = read_templates(need(folder, TEMPLATE_FILE))
        self.labels = list(templates)
        subjects, read = set(), {}
        for split in SPLITS:
            files = self._question_files(folder, split)
            for relation, path in files.items():
                if relation not in templates:
                    raise InputError(path, f"relation {relation} has no template in {TEMPLATE_FILE}")
            parts = [partial(questions, files[name], name, templates[name]) for name in templates if name in files]
            count = 0
            for part in parts:
                for line, _ in part():
                    subjects.add(subject_of(line))
                    count += 1
            if self.check:
                expect(folder / SPLITS[split], "questions", count, QUESTIONS[split])
            read[split] = parts
        ids = read_entity_map(need(folder, MAP_FILE), subjects)
        return {split: partial(self._records, parts, ids) for split, parts in read.items()}

    def _question_files(self, folder: Path, split: str) -> dict[str, Path]:
        name = SPLITS[split]
        found = sorted((folder / name).glob(f"*.{name}.json"))
        if not found:
            raise InputError(folder / name, f"no file P….{name}.json there", "unpack dataset.zip in the manual folder")
        return {path.name.removesuffix(f".{name}.json"): path for path in found}

    def _records(self, parts: list[partial], ids: dict[str, str]) -> Iterator[Record]:
        for part in parts:
            for line, where in part():
                entity = ids.get(subject_of(line))
                if entity is None and self.builder_config.name == "linked":
                    self.left_out[f"subject not in {MAP_FILE}"] += 1
                    continue
                line["mentions"][0]["entity"] = entity
                yield parse_record(line, where)


def read_templates(path: Path) -> dict[str, str]:
    """Relation -> question with [X] for the subject.

    Raises:
      InputError: a template that is not a string or has not one [X].
    """
    templates = check(read_json(path), dict, "the whole file", str(path))
    for relation, template in templates.items():
        if check(template, str, relation, str(path)).count(SUBJECT) != 1:
            raise InputError(path, f"the template of {relation} is {template!r}", f"it must have one {SUBJECT}")
    return templates


def questions(path: Path, relation: str, template: str) -> Iterator[tuple[dict, str]]:
    """Yields (record line whose mention is not linked yet, where) of one file.

    Raises:
      InputError: a missing field, a wrong type, a question that is not of the template.
    """
    before, after = template.split(SUBJECT)
    items = check(read_json(path), list, "the whole file", str(path))
    if not items:
        raise InputError(path, "the file is empty: there is no question in it", "download it again")
    for index, item in enumerate(items):
        where = f"{path}:[{index}]"
        item = check(item, dict, "the question", where)
        text, answers = take(item, "question", str, where), take(item, "answers", list, where)
        for number, answer in enumerate(answers):
            check(answer, str, f"answers[{number}]", where)
        start, end = len(before), len(text) - len(after)
        if not (start < end and text.startswith(before) and text.endswith(after)):
            raise InputError(where, f"field 'question' is {text!r}, not of the template {template!r} of {relation}")
        mention = {"start": start, "end": end}
        fields = {"answers": answers, "relation": relation, "id": f"{relation}/{index}"}
        yield {"text": text, "mentions": [mention], **fields}, where


def subject_of(line: dict) -> str:
    """The text of a line's mention."""
    mention = line["mentions"][0]
    return line["text"][mention["start"] : mention["end"]]


def read_entity_map(path: Path, wanted: set[str]) -> dict[str, str]:
    """Streams `entity_map.txt` (tab-separated, mention first, id last) and keeps what is wanted; later lines win.

    Raises:
      InputError: a line without a tab, an empty file.
    """
    found, number = {}, 0
    for number, line in read_lines(path):
        fields = line.strip().split("\t")
        if fields[0] in wanted:
            if len(fields) < 2:
                raise InputError(at(path, number), f"no tab after {fields[0]!r}", "a line is mention, tab, …, id")
            found[fields[0]] = fields[-1]
    if not number:
        raise InputError(path, "the file is empty", "download it again")
    return found
