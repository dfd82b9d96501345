"""What OpenEntity and FIGER share: one mention a sentence, its types, and perhaps links of the sentence's entities."""

from __future__ import annotations

from typing import Any

from kinject.data.records import Record, parse_record
from kinject.datasets.choices import texts
from kinject.datasets.files import check, take
from kinject.datasets.relation_lines import check_span
from kinject.datasets.split_files import SplitFiles


class TypedMentions(SplitFiles):
    """Records: text, one mention, `labels` (types, perhaps none), `id`."""

    def record(self, line: dict[str, Any], where: str, identity: str) -> Record:
        text = take(line, "sent", str, where)
        start, end = take(line, "start", int, where), take(line, "end", int, where)
        check_span((start, end), len(text), "start, end", where)
        labels = texts(take(line, "labels", list, where), "labels", where)
        self.known(((f"labels[{i}]", label) for i, label in enumerate(labels)), where)
        mention = {"start": start, "end": end, "entity": _linked(line, (start, end), where)}
        return parse_record({"text": text, "mentions": [mention], "labels": labels, "id": identity}, where)


def _linked(line: dict[str, Any], span: tuple[int, int], where: str) -> str | None:
    """The entity that `ents`, a list of [id, start, end, score], gives the mention itself; None where it gives none."""
    for i, entity in enumerate(check(line.get("ents", []), list, "ents", where)):
        one, start, end, *_ = [*check(entity, list, f"ents[{i}]", where), None, None, None]
        check(start, int, f"ents[{i}][1]", where)
        check(end, int, f"ents[{i}][2]", where)
        if (start, end) == span:
            return check(one, str, f"ents[{i}][0]", where) or None
    return None
