"""Entity typing: OpenEntity and FIGER as ERNIE and K-Adapter read them, and Wiki-ET."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import tensorflow_datasets as tfds

from kinject.data.records import Record, parse_record
from kinject.datasets.builder import RecordBuilder, SplitFiles, Splits, expect
from kinject.datasets.files import check, check_label, need, read_json_lines, read_labels, take, texts
from kinject.datasets.relation_lines import check_span
from kinject.errors import InputError
from kinject.knowledge.files import at, whole_number
from kinject.text_files import read_lines


class TypedMentions(SplitFiles):
    """The form that OpenEntity and FIGER share: one mention a sentence, its types, perhaps links of entities.

    Records: text, one mention, `labels` (types, perhaps none), `id`.
    """

    def record(self, line: dict[str, Any], where: str, identity: str) -> Record:
        text, start, end = _sentence(line, where)
        labels = texts(take(line, "labels", list, where), "labels", where)
        self.known(((f"labels[{i}]", label) for i, label in enumerate(labels)), where)
        mention = {"start": start, "end": end, "entity": _linked(line, (start, end), where)}
        return parse_record({"text": text, "mentions": [mention], "labels": labels, "id": identity}, where)


def _sentence(line: dict[str, Any], where: str) -> tuple[str, int, int]:
    """The text of a line, and the characters [start, end) of its mention."""
    text = take(line, "sent", str, where)
    start, end = take(line, "start", int, where), take(line, "end", int, where)
    check_span((start, end), len(text), "start, end", where)
    return text, start, end


def _linked(line: dict[str, Any], span: tuple[int, int], where: str) -> str | None:
    """The entity that `ents`, a list of [id, start, end, score], gives the mention itself; None where it gives none."""
    for i, entity in enumerate(check(line.get("ents", []), list, "ents", where)):
        given: list[Any] = [*check(entity, list, f"ents[{i}]", where), None, None, None]
        found = tuple(check(given[j], int, f"ents[{i}][{j}]", where) for j in (1, 2))
        if found == span:
            return check(given[0], str, f"ents[{i}][0]", where) or None
    return None


class OpenEntity(TypedMentions):
    """OpenEntity (Choi et al., ACL 2018), nine general types."""

    DESCRIPTION = "OpenEntity: general types of a mention in its sentence, nine of them."
    HOMEPAGE = "https://www.cs.utexas.edu/~eunsol/html_pages/open_entity.html"
    CITATION = "Choi et al., Ultra-Fine Entity Typing, ACL 2018"
    LABELS = 9
    MANUAL_DOWNLOAD_INSTRUCTIONS = """\
    train.json, dev.json and test.json of the folder OpenEntity of the data of https://github.com/thunlp/ERNIE or
    https://github.com/microsoft/K-Adapter: arrays of {"sent", "start", "end" (exclusive), "labels"}, perhaps with
    "ents": [[id, start, end, score], …], which link the mention where one of them is the mention.
    """


class Figer(TypedMentions):
    """FIGER (Ling & Weld, AAAI 2012), 113 fine types."""

    DESCRIPTION = "FIGER: fine types of a mention in its sentence, distantly supervised training data."
    HOMEPAGE = "https://github.com/xiaoling/figer"
    CITATION = "Ling and Weld, Fine-Grained Entity Recognition, AAAI 2012"
    MANUAL_DOWNLOAD_INSTRUCTIONS = """\
    train.json, dev.json and test.json of the folder FIGER of the data of https://github.com/thunlp/ERNIE or
    https://github.com/microsoft/K-Adapter, in the form of OpenEntity. With a label2id.json beside them, a type that it
    does not have is refused; without, the types are those that occur.
    """


FILES = {"train": "train.json", "validation": "dev.json", "test": "test.json"}
LABEL_FILE, ROW_FILE = "label2id.json", "entity2id.txt"
LABELS = 68


class WikiEt(RecordBuilder):
    """Types of a linked mention, several at once (Xin et al., AAAI 2018; Zhang et al., ACL 2023, section 4).

    Records: text, one mention, `labels` (types), `id`. The files name an entity by its row in the authors' embedding
    table. With their `entity2id.txt` rows become Wikidata ids, so that one knowledge base serves every data set; the
    config `rows` keeps the numbers.
    """

    DESCRIPTION = "Wiki-ET: entity typing in Wikipedia sentences, 68 types, several for one mention."
    HOMEPAGE = "https://github.com/thunlp/Knowledge-Plugin"
    LICENSE = "MIT"
    CITATION = "Xin et al., Improving Neural Fine-Grained Entity Typing With Knowledge Attention, AAAI 2018"
    MANUAL_DOWNLOAD_INSTRUCTIONS = """\
    train.json, dev.json, test.json and label2id.json of the folder WikiET of PlugDataset.tar (see the README of
    https://github.com/thunlp/Knowledge-Plugin). For the config `wikidata` also entity2id.txt of wikipedia/ in
    knowledge_embedding.tar; the config `rows` needs none and names entities by row number.
    """
    BUILDER_CONFIGS: ClassVar[list[tfds.core.BuilderConfig]] = [
        tfds.core.BuilderConfig(name="wikidata", description="entities are Wikidata ids"),
        tfds.core.BuilderConfig(name="rows", description="entities are row numbers of the authors' table"),
    ]

    def files(self, folder: Path) -> list[Path]:
        names = [LABEL_FILE, *([ROW_FILE] if self.builder_config.name == "wikidata" else []), *FILES.values()]
        return [need(folder, name) for name in names]

    def splits(self, folder: Path) -> Splits:
        label_file = need(folder, LABEL_FILE)
        self.labels = read_labels(label_file)
        if self.check:
            expect(label_file, "labels", len(self.labels), LABELS)
        name = wikidata_ids(need(folder, ROW_FILE)) if self.builder_config.name == "wikidata" else same_row
        return {split: partial(self._records, split, need(folder, file), name) for split, file in FILES.items()}

    def _records(self, split: str, path: Path, name: Callable[[str, str], str]) -> Iterator[Record]:
        known = set(self.labels)
        for number, where, line in read_json_lines(path):
            labels = take(line, "labels", list, where)
            for index, label in enumerate(labels):
                field = f"labels[{index}]"
                check_label(check(label, str, field, where), known, field, LABEL_FILE, where)
            made = partial(_line, line, where, name, id=f"{split}/{number}", labels=labels)
            yield from self.placed(lambda: parse_record(made(), where))  # noqa: B023 (called at once)


def _line(line: dict[str, Any], where: str, name: Callable[[str, str], str], **fields: Any) -> dict[str, Any]:
    text, start, end = _sentence(line, where)
    entity = name(str(check(line.get("id"), str | int, "id", where)), where)
    return {"text": text, "mentions": [{"start": start, "end": end, "entity": entity}], **fields}


def same_row(row: str, where: str) -> str:
    """The row number itself as an entity's id."""
    return str(_row(row, where))


def wikidata_ids(path: Path) -> Callable[[str, str], str]:
    """Reads `entity2id.txt` (a header, then id and row a line) into eight bytes a row.

    Returns:
      (row as it stands in the data, where) -> Wikidata id.

    Raises:
      InputError: a line of another form, a row named twice; when called: a row that the file does not have.
    """
    lines = read_lines(path)
    numbers = array("q", bytes(8 * _count(path, next(lines, (1, ""))[1])))
    for number, line in lines:
        if not line.strip():
            continue
        one, _, row_text = line.strip().replace("\t", " ").partition(" ")
        row = whole_number(at(path, number), row_text.strip(), "the row")
        if row >= len(numbers):
            raise InputError(at(path, number), f"row {row}, but the first line counts {len(numbers)} rows")
        if not (one.startswith("Q") and one[1:].isascii() and one[1:].isdigit() and len(one) < 19):
            raise InputError(at(path, number), f"the id is {one!r}, not Q and digits")
        if numbers[row]:
            raise InputError(at(path, number), f"row {row} belongs to both Q{numbers[row] - 1} and {one}")
        numbers[row] = int(one[1:]) + 1  # 0 is a row that no line names

    def name(row_text: str, where: str) -> str:
        row = _row(row_text, where)
        if row >= len(numbers) or not numbers[row]:
            raise InputError(where, f"field 'id' is row {row}, which {path.name} does not have", "take both together")
        return f"Q{numbers[row] - 1}"

    return name


def _count(path: Path, header: str) -> int:
    """How many rows the first line promises; no more than there are bytes, or the table would not fit anywhere."""
    count = whole_number(at(path, 1), header.strip(), "the header (how many rows there are)")
    if path.suffix != ".gz" and count > path.stat().st_size:
        raise InputError(at(path, 1), f"the header counts {count} rows, the file has fewer bytes", "download it again")
    return count


def _row(text: str, where: str) -> int:
    return whole_number(where, text, "field 'id' (a row of the embedding table)")
