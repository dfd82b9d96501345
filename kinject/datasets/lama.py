"""LAMA (Petroni et al., EMNLP 2019): facts as cloze questions, of Google-RE, T-REx, ConceptNet and SQuAD.

LAMA-UHN (Poerner et al. 2020) are the questions of the first two that the subject's name does not give away; its files
have LAMA's form.
"""

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
GOOGLE_FOLDERS = {"google_re": "Google_RE", "google_re_uhn": "Google_RE_UHN"}
TREX_FOLDERS = {"trex": "TREx", "trex_uhn": "TREx_UHN"}
SENTENCE_FOLDERS = {"conceptnet": "ConceptNet", "squad": "Squad"}
TEMPLATE_FILE = "relations.jsonl"
GOOGLE_RE = {
    "place_of_birth": "[X] was born in [Y] .",
    "date_of_birth": "[X] (born [Y]).",
    "place_of_death": "[X] died in [Y] .",
}


class Lama(RecordBuilder):
    """Records: text (the template with subject and [MASK]), one mention (the subject), `label`, `relation`, `id`.

    The subject is linked where the file names its Wikidata id (`sub_uri` or `sub_w`); ConceptNet's to `/c/en/subject`,
    where the sentence holds it. A sentence of ConceptNet or SQuAD has its own mask; of several the first is asked.
    """

    DESCRIPTION = "LAMA: facts of Google-RE (3 relations), T-REx (41), ConceptNet and SQuAD as cloze questions."
    HOMEPAGE = "https://github.com/facebookresearch/LAMA"
    LICENSE = "CC BY-NC 4.0"
    CITATION = "Petroni et al., Language Models as Knowledge Bases?, EMNLP 2019, pages 2463-2473"
    MANUAL_DOWNLOAD_INSTRUCTIONS = """\
    Of data.zip (see https://github.com/facebookresearch/LAMA), config `google_re`: the folder Google_RE with
    place_of_birth_test.jsonl, date_of_birth_test.jsonl and place_of_death_test.jsonl; config `trex`: the folder TREx
    with P17.jsonl, … and beside it relations.jsonl, whose templates are used (for Google-RE too, where it has them);
    configs `conceptnet` and `squad`: the folders ConceptNet and Squad with test.jsonl. Configs `google_re_uhn` and
    `trex_uhn`: the folders Google_RE_UHN and TREx_UHN with LAMA-UHN's files, called as LAMA's (see
    https://github.com/NPoe/ebert).
    """
    BUILDER_CONFIGS: ClassVar[list[tfds.core.BuilderConfig]] = [
        tfds.core.BuilderConfig(name="google_re", description="Google-RE: birth and death"),
        tfds.core.BuilderConfig(name="trex", description="T-REx: relations of Wikidata"),
        tfds.core.BuilderConfig(name="conceptnet", description="ConceptNet: commonsense in sentences of OMCS"),
        tfds.core.BuilderConfig(name="squad", description="SQuAD: questions rewritten as sentences"),
        tfds.core.BuilderConfig(name="google_re_uhn", description="Google-RE without telling names"),
        tfds.core.BuilderConfig(name="trex_uhn", description="T-REx without telling names"),
    ]

    @classmethod
    def configs_for(cls, folder: Path) -> list[str]:
        folders = GOOGLE_FOLDERS | TREX_FOLDERS | SENTENCE_FOLDERS
        return [name for name, inner in folders.items() if (folder / inner).is_dir()] or ["trex"]

    def files(self, folder: Path) -> list[Path]:
        if self.builder_config.name in SENTENCE_FOLDERS:
            return [self._sentences(folder)]
        templates = find(folder, TEMPLATE_FILE)
        relations = self._relations(folder)
        return [*([templates] if templates else []), *(path for path, _ in relations.values())]

    def _sentences(self, folder: Path) -> Path:
        return need(folder / SENTENCE_FOLDERS[self.builder_config.name], "test.jsonl")

    def splits(self, folder: Path) -> Splits:
        if self.builder_config.name in SENTENCE_FOLDERS:
            return {"test": partial(self._masked, self._sentences(folder))}
        relations = self._relations(folder)
        self.labels = list(relations)
        return {"test": partial(self._records, relations)}

    def _relations(self, folder: Path) -> dict[str, tuple[Path, str]]:
        """Relation -> its file and template, in the order of the templates; those without a file are left out."""
        name = self.builder_config.name
        if name in GOOGLE_FOLDERS:
            templates, inner = read_templates(folder, GOOGLE_RE), folder / GOOGLE_FOLDERS[name]
            return {one: (need(inner, f"{one}_test.jsonl"), templates[one]) for one in GOOGLE_RE}
        need(folder, TEMPLATE_FILE)
        templates = read_templates(folder, {})
        inner = folder / TREX_FOLDERS[name]
        there = {one: find(inner, f"{one}.jsonl") for one in templates}
        found = {one: (path, templates[one]) for one, path in there.items() if path}
        if not found:
            raise InputError(inner, "no file of a relation is there", "unpack data.zip of LAMA")
        return found

    def _records(self, relations: dict[str, tuple[Path, str]]) -> Iterator[Record]:
        for relation, (path, template) in relations.items():
            for number, where, line in read_json_lines(path):
                yield fact_record(line, template, where, relation=relation, id=f"{relation}/{number}")

    def _masked(self, path: Path) -> Iterator[Record]:
        name = self.builder_config.name
        for number, where, line in read_json_lines(path):
            sentences, label = take(line, "masked_sentences", list, where), take(line, "obj_label", str, where)
            text = check(sentences[0], str, "masked_sentences[0]", where) if sentences else ""
            if text.count(MASK_LITERAL) != 1 or not label.strip():
                self.left_out["not one mask in its first sentence, or no answer"] += 1
                continue
            subject = line.get("sub")
            at = text.lower().find(subject.lower()) if isinstance(subject, str) and subject else -1
            mentions = []
            if name == "conceptnet" and isinstance(subject, str) and at >= 0 and len(text.lower()) == len(text):
                concept = f"/c/en/{subject.lower().replace(' ', '_')}"
                mentions = [{"start": at, "end": at + len(subject), "entity": concept}]
            fields = {"label": label.strip(), "relation": name, "id": f"{name}/{number}"}
            yield parse_record({"text": text, "mentions": mentions, **fields}, where)


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
