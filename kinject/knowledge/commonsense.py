"""Commonsense graphs as triples: ATOMIC-2020, ATOMIC-10X and ConceptNet 5.7, streamed from their own files.

Heads and tails are phrases, and any string may be a relation (NovaCOMET's open format, West et al. 2023). An entity's
id is its phrase, in ConceptNet `/c/en/dog`, whose label is `dog`. Phrases of events are no names that a text could be
linked by; they are found by their words (BM25) or by keys.

- ATOMIC-2020 (Hwang et al., AAAI 2021; CC BY): TSV of head, relation, tail. A tail `none`: annotators saw none.
- ATOMIC-10X (West et al., NAACL 2022): JSON lines with `head`, `relation`, `tail`, and `p_valid_model` as weight.
- ConceptNet 5.7 (Speer et al., AAAI 2017; CC BY-SA): `assertions.csv.gz`, five columns with tabs between: edge,
  relation, head, tail, and JSON with `weight`.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple

from kinject.errors import InputError
from kinject.json_file import parse
from kinject.knowledge.files import at
from kinject.text_files import read_lines

TriplesFormat = Literal["tsv", "atomic", "atomic10x", "conceptnet"]
NOTHING = "none"  # the tail of an ATOMIC triple that says there is none
SAID = {  # ATOMIC's relations in words; others are their names, cut at capitals
    "xNeed": "before that PersonX needed",
    "xAttr": "so PersonX is seen as",
    "xEffect": "as a result PersonX",
    "xReact": "so PersonX feels",
    "xWant": "then PersonX wants",
    "xIntent": "because PersonX wanted",
    "xReason": "because PersonX",
    "oEffect": "as a result others",
    "oReact": "so others feel",
    "oWant": "then others want",
    "isAfter": "happens after",
    "isBefore": "happens before",
    "HinderedBy": "is hindered by",
    "isFilledBy": "can be filled by",
    "ObjectUse": "is used for",
    "AtLocation": "is found at",
    "Causes": "causes",
    "HasSubEvent": "includes",
}


class Filter(NamedTuple):
    """Which triples are read.

    Attributes:
      least: weight that a triple must have; ATOMIC-2020's have none, and are all read.
      language: of both of ConceptNet's concepts, as in `/c/en/…`; "" = any.
    """

    least: float = 0.0
    language: str = "en"


Triple = tuple[str, str, str, str]  # where, head, relation, tail


def atomic(path: Path, keep: Filter, left_out: Counter[str]) -> Iterator[Triple]:
    """Streams ATOMIC-2020; a first line `head_event` or `head` is a header.

    Raises:
      InputError: a line that is not three columns.
    """
    del keep
    for number, line in read_lines(path):
        fields = [field.strip() for field in line.split("\t")]
        if not line.strip() or (number == 1 and fields[0] in ("head", "head_event")):
            continue
        if len(fields) != 3 or not fields[0] or not fields[1]:
            problem = f"{line[:60]!r} is not head, relation and tail with tabs between"
            raise InputError(at(path, number), problem, "take train.tsv of ATOMIC-2020")
        if fields[2] in ("", NOTHING):
            left_out["tail is none"] += 1
            continue
        yield at(path, number), fields[0], fields[1], fields[2]


def atomic10x(path: Path, keep: Filter, left_out: Counter[str]) -> Iterator[Triple]:
    """Streams ATOMIC-10X.

    Raises:
      InputError: a line that is no such object.
    """
    for number, line in read_lines(path):
        if not line.strip():
            continue
        value = _object(line, at(path, number))
        head, relation, tail = (_text(value, name, at(path, number)) for name in ("head", "relation", "tail"))
        if _number(value.get("p_valid_model", 1.0), "p_valid_model", at(path, number)) < keep.least:
            left_out["less valid than asked for"] += 1
        else:
            yield at(path, number), head, relation, tail


def conceptnet(path: Path, keep: Filter, left_out: Counter[str]) -> Iterator[Triple]:
    """Streams ConceptNet; concepts lose what tells their sense (`/c/en/dog/n/wn/animal` is `/c/en/dog`).

    Raises:
      InputError: a line that is not of five columns, concepts that are none, a weight that is no number.
    """
    for number, line in read_lines(path):
        if not line.strip():
            continue
        where, fields = at(path, number), line.split("\t")
        if len(fields) != 5:
            problem = f"it has {len(fields)} columns, not edge, relation, head, tail and JSON"
            raise InputError(where, problem, "take assertions.csv.gz of ConceptNet 5.7")
        _, relation, head, tail, about = fields
        if not relation.startswith("/r/"):
            raise InputError(where, f"the relation is {relation!r}", "it begins with /r/")
        ends = [_concept(one, name, where) for one, name in ((head, "head"), (tail, "tail"))]
        if None in ends or (keep.language and any(end.split("/")[2] != keep.language for end in ends if end)):
            left_out["of another language, or no concept"] += 1
        elif _number(_object(about, where).get("weight", 1.0), "weight", where) < keep.least:
            left_out["of less weight than asked for"] += 1
        else:
            yield where, str(ends[0]), relation, str(ends[1])


READERS: dict[str, Callable[[Path, Filter, Counter[str]], Iterator[Triple]]] = {
    "atomic": atomic,
    "atomic10x": atomic10x,
    "conceptnet": conceptnet,
}


def label_of(entity: str) -> str:
    """What an entity is called: `/c/en/ice_cream` is `ice cream`, and a phrase is itself."""
    parts = entity.split("/")
    return parts[3].replace("_", " ") if entity.startswith("/c/") and len(parts) > 3 else entity


def relation_label(relation: str) -> str:
    """A relation in words: `/r/UsedFor` is `used for`."""
    name = relation.removeprefix("/r/").rpartition("/")[2]
    return SAID.get(name) or re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name).lower()


def _concept(one: str, name: str, where: str) -> str | None:
    """`/c/en/dog/n` -> `/c/en/dog`; None for what is no concept, such as a web address."""
    if not one.startswith("/"):
        if "://" in one:
            return None
        raise InputError(where, f"the {name} is {one!r}", "it begins with /c/")
    parts = one.split("/")
    return "/".join(parts[:4]) if len(parts) > 3 and parts[1] == "c" and parts[3] else None


def _object(text: str, where: str) -> dict[str, Any]:
    try:
        value = parse(text)
    except (ValueError, RecursionError):
        raise InputError(where, f"{text[:60]!r} is no JSON") from None
    if not isinstance(value, dict):
        raise InputError(where, f"{text[:60]!r} is no JSON object")
    return value


def _text(value: dict[str, Any], name: str, where: str) -> str:
    found = value.get(name)
    if not isinstance(found, str) or not found.strip():
        raise InputError(where, f"field {name!r} is {found!r}", "it must be a text")
    return " ".join(found.split())


def _number(value: object, name: str, where: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise InputError(where, f"field {name!r} is {value!r}", "it must be a number")
    return float(value)
