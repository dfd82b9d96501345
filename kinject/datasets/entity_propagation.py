"""Entity Inferences and ECBD as Onoe et al. (ACL 2023) use them: new entities, their definitions, probe sentences."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

from kinject.data.records import Record, parse_record
from kinject.data.tokenizer import MASK_LITERAL
from kinject.datasets.builder import RecordBuilder, Splits, expect
from kinject.datasets.files import check, need, read_json_lines, take
from kinject.errors import InputError

BLANK, END = "<extra_id_0>", "<extra_id_1>"
RELEASE = "https://github.com/yasumasaonoe/entity_knowledge_propagation"
INFERENCES = {
    "disaster_explicit": ("disaster_explicit_attribute_independent.json", 27),
    "disaster_implicit": ("disaster_implicit_attribute_independent.json", 27),
    "fake_person_explicit": ("fake_person_explicit_attribute_dependent.json", 12),
    "fake_person_implicit": ("fake_person_implicit_attribute_dependent_adjective.json", 12),
    "tv_show_explicit": ("tv_show_explicit_attribute_dependent.json", 46),
    "tv_show_implicit": ("tv_show_implicit_attribute_dependent_adjective.json", 46),
}
ECBD = {
    "np": ("all_ent_2020_2021_np_500samples.json", 500),
    "random": ("all_ent_2020_2021_random_500samples.json", 500),
    "np_easy": ("all_ent_2020_2021_np_easy.json", 114),
    "random_easy": ("all_ent_2020_2021_random_easy.json", 38),
    "specificity": ("specificity_popular_20np_20random.json", 40),
}
CITATION = "Onoe et al., Can LMs Learn New Entities from Descriptions?, ACL 2023"


class Probes(RecordBuilder):
    """Records: text (a probe with [MASK]), `label`, `definition`, `choices` where there are any, one mention, `id`.

    `definition_blank` is the definition with [MASK] for the span that the files hide of it, `definition_answer`: what
    fine-tuning on it asks for. The mention is the entity's first place in the probe; its id is the entity's name, as
    the files have no other for all of them. Split `definitions`: the definition of each entity as a text with its
    mention, for what makes vectors of texts, and as `description`.
    """

    FOLDER: ClassVar[str]
    HOMEPAGE = RELEASE
    CITATION = CITATION

    def __init_subclass__(cls, **options: Any) -> None:
        cls.MANUAL_DOWNLOAD_INSTRUCTIONS = f"The folder data/{cls.FOLDER} of {RELEASE}."
        super().__init_subclass__(**options)

    def files(self, folder: Path) -> list[Path]:
        return [self._file(folder)]

    def splits(self, folder: Path) -> Splits:
        path = self._file(folder)
        count = sum(1 for _ in read_json_lines(path))
        if self.check:
            expect(path, "examples", count, self.FILES[self.builder_config.name][1])
        return {"test": partial(self._probes, path), "definitions": partial(definitions, path)}

    def _file(self, folder: Path) -> Path:
        name, _ = self.FILES[self.builder_config.name]
        inner = folder / self.FOLDER
        return need(inner if inner.is_dir() else folder, name)

    def _probes(self, path: Path) -> Iterator[Record]:
        for number, where, line in read_json_lines(path):
            probes = take(line, "probe_sentences", dict, where)
            for name, probe in probes.items():
                at = f"probe_sentences.{name}"
                yield self._probe(line, check(probe, dict, at, where), at, f"{number}/{name}", where)

    def _probe(self, line: dict[str, Any], probe: dict[str, Any], at: str, one: str, where: str) -> Record:
        text = take(probe, "probe_sentence", str, where, at)
        if text.count(BLANK) != 1:
            raise InputError(where, f"field '{at}.probe_sentence' has {text.count(BLANK)} {BLANK}, not one")
        fields: dict[str, Any] = {"definition": definition(line, where), "id": one}
        fields["definition_blank"] = definition(line, where, MASK_LITERAL)
        fields["definition_answer"] = span(take(line, "def_target", str, where), where)
        if "labels" in probe:
            options = take(probe, "labels", list, where, at)
            fields["choices"] = [span(check(option, str, f"{at}.labels", where), where) for option in options]
            fields["label"] = span(take(line, "label", str, where), where)
            if fields["label"] not in fields["choices"]:
                raise InputError(where, f"field 'label' is {fields['label']!r}, none of '{at}.labels'")
        else:
            fields["label"] = span(take(probe, "label", str, where, at), where)
        text = text.replace(BLANK, MASK_LITERAL)
        return parse_record({"text": text, "mentions": mention_of(line, text, where), **fields}, where)


class EntityInferences(Probes):
    """Choices: which of 6 to 12 answers fits, said in the definition (explicit) or implied by it (implicit)."""

    DESCRIPTION = "Entity Inferences: 170 probes about entities that are defined in a sentence."
    FILES = INFERENCES
    FOLDER = "entity_inferences"


class Ecbd(Probes):
    """Spans: how likely a masked span of a real sentence about the entity is."""

    DESCRIPTION = "ECBD 2020 to 2021: masked spans in sentences about entities that are new since 2020."
    FILES = ECBD
    FOLDER = "ecbd"


def definitions(path: Path) -> Iterator[Record]:
    """The definition of each entity, once, with its mention."""
    seen = set()
    for number, where, line in read_json_lines(path):
        name, text = take(line, "ent_str", str, where), definition(line, where)
        if name in seen:
            continue
        seen.add(name)
        mentions = mention_of(line, text, where)
        yield parse_record({"text": text, "mentions": mentions, "description": text, "id": str(number)}, where)


def definition(line: dict[str, Any], where: str, target: str | None = None) -> str:
    """The definition with its blank filled in, with `target` in the place of what the file says.

    Raises:
      InputError: a missing field, no blank.
    """
    text, said = take(line, "definition", str, where), span(take(line, "def_target", str, where), where)
    if BLANK not in text:
        raise InputError(where, f"field 'definition' has no {BLANK}")
    return " ".join(text.replace(BLANK, f" {said if target is None else target} ", 1).split())


def span(text: str, where: str) -> str:
    """`<extra_id_0> words <extra_id_1>` -> words.

    Raises:
      InputError: another form.
    """
    words = text.strip().removeprefix(BLANK).removesuffix(END).strip()
    if not text.strip().startswith(BLANK) or not words:
        raise InputError(where, f"an answer is {text!r}", f"its form is {BLANK} words {END}")
    return words


def mention_of(line: dict[str, Any], text: str, where: str) -> list[dict[str, Any]]:
    """The entity's first place in a text, as a list of one mention; none where it is not called by its name."""
    name = take(line, "ent_str", str, where)
    at = text.find(name) if name else -1
    return [] if at < 0 else [{"start": at, "end": at + len(name), "entity": name}]
