"""LAMA (Petroni et al., EMNLP 2019): facts as cloze questions, of Google-RE and of T-REx."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import tensorflow_datasets as tfds

from kinject.data.records import Record, parse_record
from kinject.data.tokenizer import MASK_LITERAL
from kinject.datasets.builder import RecordBuilder, Splits
from kinject.datasets.files import check, find, need, read_json_lines, take
from kinject.errors import InputError

SUBJECT, OBJECT = "[X]", "[Y]"
TEMPLATE_FILE = "relations.jsonl"
GOOGLE_RE = {
    "place_of_birth": "[X] was born in [Y] .",
    "date_of_birth": "[X] (born [Y]).",
    "place_of_death": "[X] died in [Y] .",
}


class Lama(RecordBuilder):
    """Records: text (the template with subject and [MASK]), one mention (the subject), `label`, `relation`, `id`.

    The subject is linked where the file names its Wikidata id (`sub_uri` or `sub_w`).
    """

    DESCRIPTION = "LAMA: facts of Google-RE (3 relations) and T-REx (41 relations) as cloze questions."
    HOMEPAGE = "https://github.com/facebookresearch/LAMA"
    LICENSE = "CC BY-NC 4.0"
    CITATION = "Petroni et al., Language Models as Knowledge Bases?, EMNLP 2019, pages 2463-2473"
    MANUAL_DOWNLOAD_INSTRUCTIONS = """\
    Of data.zip (see https://github.com/facebookresearch/LAMA), config `google_re`: the folder Google_RE with
    place_of_birth_test.jsonl, date_of_birth_test.jsonl and place_of_death_test.jsonl; config `trex`: the folder TREx
    with P17.jsonl, … and beside it relations.jsonl, whose templates are used (for Google-RE too, where it has them).
    """
    BUILDER_CONFIGS: ClassVar[list[tfds.core.BuilderConfig]] = [
        tfds.core.BuilderConfig(name="google_re", description="Google-RE: birth and death"),
        tfds.core.BuilderConfig(name="trex", description="T-REx: relations of Wikidata"),
    ]

    @classmethod
    def configs_for(cls, folder: Path) -> list[str]:
        folders = {"google_re": "Google_RE", "trex": "TREx"}
        return [name for name, inner in folders.items() if (folder / inner).is_dir()] or ["trex"]

    def files(self, folder: Path) -> list[Path]:
        templates = find(folder, TEMPLATE_FILE)
        relations = self._relations(folder)
        return [*([templates] if templates else []), *(path for path, _ in relations.values())]

    def splits(self, folder: Path) -> Splits:
        relations = self._relations(folder)
        self.labels = list(relations)
        return {"test": partial(self._records, relations)}

    def _relations(self, folder: Path) -> dict[str, tuple[Path, str]]:
        """Relation -> its file and template, in the order of the templates; those without a file are left out."""
        if self.builder_config.name == "google_re":
            templates = read_templates(folder, GOOGLE_RE)
            return {one: (need(folder / "Google_RE", f"{one}_test.jsonl"), templates[one]) for one in GOOGLE_RE}
        need(folder, TEMPLATE_FILE)
        templates = read_templates(folder, {})
        there = {one: find(folder / "TREx", f"{one}.jsonl") for one in templates}
        found = {one: (path, templates[one]) for one, path in there.items() if path}
        if not found:
            raise InputError(folder / "TREx", "no file of a relation is there", "unpack data.zip of LAMA")
        return found

    def _records(self, relations: dict[str, tuple[Path, str]]) -> Iterator[Record]:
        for relation, (path, template) in relations.items():
            for number, where, line in read_json_lines(path):
                yield fact_record(line, template, where, relation=relation, id=f"{relation}/{number}")


def read_templates(folder: Path, known: dict[str, str]) -> dict[str, str]:
    """Relation -> template of relations.jsonl, over what is known without; each has one [X] and one [Y].

    Raises:
      InputError: a missing field, a template of another form, a relation that stands twice.
    """
    path = find(folder, TEMPLATE_FILE)
    templates = dict(known)
    named: set[str] = set()
    for _, where, line in read_json_lines(path) if path else ():
        relation, template = take(line, "relation", str, where), take(line, "template", str, where)
        if template.count(SUBJECT) != 1 or template.count(OBJECT) != 1:
            raise InputError(where, f"field 'template' is {template!r}", f"it must have one {SUBJECT} and one {OBJECT}")
        if relation in named:
            raise InputError(where, f"field 'relation': {relation} stands twice", "keep one of them")
        named.add(relation)
        templates[relation] = template
    return templates


def fact_record(line: dict[str, Any], template: str, where: str, **fields: Any) -> Record:
    """A fact -> its question: the template with the subject for [X] and the mask for [Y].

    Raises:
      InputError: a missing or empty field, a wrong type.
    """
    subject, answer = (take(line, name, str, where) for name in ("sub_label", "obj_label"))
    for name, value in (("sub_label", subject), ("obj_label", answer)):
        if not value.strip():
            raise InputError(where, f"field {name!r} is empty", "drop the line")
    before, _, after = template.replace(OBJECT, MASK_LITERAL).partition(SUBJECT)
    entity = line.get("sub_uri") or line.get("sub_w")
    if entity is not None:
        check(entity, str, "sub_uri", where)
    mention = {"start": len(before), "end": len(before) + len(subject), "entity": entity}
    return parse_record({"text": before + subject + after, "mentions": [mention], "label": answer, **fields}, where)
