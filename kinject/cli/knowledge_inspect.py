"""`kinject knowledge inspect`: what a knowledge base holds, told to people or as JSON."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from kinject.errors import InputError

if TYPE_CHECKING:
    from kinject.knowledge.base import KnowledgeBase


def summary_lines(found: Mapping[str, Any]) -> list[str]:
    """A summary for people."""
    of = f", revision {found['revision']}" if "revision" in found else ""
    lines = [f"{found['name']}: {found['entities']:,} entities, {found['dim']} numbers a vector ({found['dtype']}){of}"]
    for what, count in found["with"].items():
        more = f"  {found['aliases']:,} in all" if what == "aliases" and count else ""
        lines.append(f"  with {what:13} {count:12,}  {found['share'][what]:7.1%}{more}")
    lines.append(f"  {found['triples']:,} triples of {found['relations']:,} relations")
    for key in ("provenance", "metrics"):
        if found[key]:
            lines.append(f"  {key}: " + "; ".join(f"{name} {_said(value)}" for name, value in found[key].items()))
    for key in ("source", "license", "normalisation"):
        if found[key]:
            lines.append(f"  {key}: {found[key]}")
    return [*lines, *_neighbour_lines(found["neighbours"])]


def _said(value: Any) -> str:
    return " ".join(f"{name} {one}" for name, one in value.items()) if isinstance(value, Mapping) else str(value)


def _neighbour_lines(found: Sequence[Mapping[str, Any]]) -> list[str]:
    lines = ["nearest neighbours (cosine):"] if found else []
    for one in found:
        near = ", ".join(f"{other['label'] or other['id']} {other['cosine']:.2f}" for other in one["near"])
        lines.append(f"  {one['label'] or one['id']} ({one['id']}): {near or 'it has no vector, or nobody else has'}")
    return lines


def inspect(arguments: argparse.Namespace) -> None:
    """Prints a summary, single entities, or neighbours."""
    from kinject.knowledge.base import KnowledgeBase
    from kinject.knowledge.summary import named_neighbours, summarise

    base = KnowledgeBase.open(arguments.folder)
    if arguments.verify:
        base.verify()
    rows = {one: _row(base, one) for one in (*arguments.entity, *arguments.near)}
    found: dict[str, Any] = {}
    if not rows:
        found = summarise(base)
    if arguments.entity:
        found["found"] = [_entity(base, rows[one], arguments.count) for one in arguments.entity]
    if arguments.near:
        near = [row for one, row in rows.items() if one in arguments.near]
        found["neighbours"] = named_neighbours(base, near, arguments.count)
    if arguments.json:
        print(json.dumps(found, ensure_ascii=False, indent=1))
        return
    lines = summary_lines(found) if not rows else []
    for one in found.get("found", ()):
        lines += _entity_lines(one)
    lines += _neighbour_lines(found["neighbours"]) if arguments.near else []
    print("\n".join([*lines, *(["verified: every file and the fingerprint"] if arguments.verify else [])]))


def _row(base: KnowledgeBase, one: str) -> int:
    (row,) = base.rows([one]).tolist()
    if row < 0:
        raise InputError(base.folder, f"there is no entity {one!r}", f"its ids are such as {base.ids([0])[0]}")
    return row


def _entity(base: KnowledgeBase, row: int, most: int) -> dict[str, Any]:
    import numpy as np

    from kinject.knowledge.summary import triples_of

    _, found = base.gather(np.array([row]))
    triples, count = triples_of(base, row, most)
    return {
        **base.entity(row)._asdict(),
        "row": row,
        "has_vector": bool(found[0]),
        **({"placed": base.overlay.placed[row]} if row in base.overlay.placed else {}),
        "in_triples": count,
        "triples": triples,
    }


def _entity_lines(one: Mapping[str, Any]) -> list[str]:
    lines = [f"{one['id']}  {one['label']}", f"  row {one['row']}, {'a' if one['has_vector'] else 'no'} vector"]
    lines += [f"  aliases: {' | '.join(one['aliases'])}"] if one["aliases"] else []
    lines += [f"  {one['description']}"] if one["description"] else []
    lines += [f"  {head} -- {relation} -> {tail}" for head, relation, tail in one["triples"]]
    more = one["in_triples"] - len(one["triples"])
    return [*lines, f"  … and {more:,} more triples"] if more else lines
