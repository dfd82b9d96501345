"""Reads BRAT's standoff annotations: `name.ann` beside `name.txt`.

`T1<tab>Type start end<tab>words` is a mention, in characters of the text; `N1<tab>Reference T1 Wikidata:Q90<tab>name`
gives its entity, what stands behind the colon. Relations, events and notes are passed over.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from kinject.data.records import Mention
from kinject.errors import InputError
from kinject.linking.document import Document


def read_brat(path: Path) -> Iterator[Document | InputError]:
    """Yields the errors of single annotations, which are left out, and then the document.

    Args:
      path: the .ann file.
    """
    text_path = path.with_suffix(".txt")
    try:
        text = text_path.read_bytes().decode("utf-8")  # as it is: line ends count in the offsets
        lines = path.read_text(encoding="utf-8").split("\n")
    except OSError as error:
        yield InputError(error.filename, f"cannot be read ({error.strerror})", "name.ann and name.txt go together")
        return
    except UnicodeDecodeError as error:
        yield InputError(path, f"it or its .txt is not UTF-8 ({error.reason})", "convert both: iconv -t UTF-8")
        return
    mentions: dict[str, Mention] = {}
    for number, line in enumerate(lines, 1):
        try:
            _read(line.rstrip("\r"), f"{path}:{number}", text, mentions)
        except InputError as error:
            yield error
    kept: list[Mention] = []
    for one in sorted(mentions.values(), key=lambda one: (one.start, -one.end)):
        if kept and one.start < kept[-1].end:
            inside = f"characters {one.start} to {one.end} overlap {kept[-1].start} to {kept[-1].end}"
            yield InputError(path, inside, "only the first was kept")
        else:
            kept.append(one)
    yield Document(text, tuple(kept), {"id": path.stem})


def _read(line: str, where: str, text: str, mentions: dict[str, Mention]) -> None:
    """Takes in one line; `mentions` are by their number, T1, T2, …"""
    number, _, rest = line.partition("\t")
    if number.startswith("T"):
        about, _, words = rest.partition("\t")
        fields = about.split(" ")
        if ";" in about:
            raise InputError(where, f"{number} is in several pieces", "kinject's mentions are in one; it is left out")
        if len(fields) != 3 or not all(field.isdigit() for field in fields[1:]):
            raise InputError(where, f"{about!r} is not a type, a start and an end", "T1<tab>Type 0 5<tab>words")
        start, end = int(fields[1]), int(fields[2])
        if not start < end <= len(text) or text[start:end].split() != words.split():
            found = text[start:end] if start < end <= len(text) else "nothing"
            problem = f"{number} is {words!r}, but characters {start} to {end} of the text are {found!r}"
            raise InputError(where, problem, "is the .txt the one that was annotated, with its line ends?")
        mentions[number] = Mention(start, end)
    elif number.startswith("N"):
        fields = rest.partition("\t")[0].split(" ")
        entity = fields[-1].partition(":")[2]
        if len(fields) != 3 or fields[1] not in mentions or not entity:
            raise InputError(where, f"{rest!r} refers to no mention above", "N1<tab>Reference T1 Wikidata:Q90<tab>name")
        old = mentions[fields[1]]
        mentions[fields[1]] = Mention(old.start, old.end, entity)
