"""CosmosQA (Huang et al., EMNLP 2019), as K-Adapter reads it: JSON lines."""

from __future__ import annotations

from typing import Any

from kinject.data.records import Record
from kinject.datasets.choices import choice_record, right_choice
from kinject.datasets.files import check, take
from kinject.datasets.split_files import SplitFiles

ANSWERS = tuple(f"answer{number}" for number in range(4))


class Cosmosqa(SplitFiles):
    """Records: text (the context), `question`, `choices` (four), `label` (number from 0), `facts`, `id`.

    `facts` are K-Adapter's retrieved sentences (`answer0_searched_evidence.basic[].text`, …), where files have them.
    """

    DESCRIPTION = "CosmosQA: questions about everyday narratives whose answers must be inferred, four choices."
    HOMEPAGE = "https://wilburone.github.io/cosmos/"
    LICENSE = "CC BY 4.0"
    CITATION = (
        "Huang et al., Cosmos QA: Machine Reading Comprehension with Contextual Commonsense Reasoning, EMNLP 2019"
    )
    MANUAL_DOWNLOAD_INSTRUCTIONS = """\
    train, valid (or dev) and test, as .jsonl or .json, of https://github.com/wilburOne/cosmosqa; where its release has
    .csv files, convert them to one JSON object a line with the same columns: id, context, question, answer0 to answer3,
    label. The test file has no labels.
    """

    def record(self, line: dict[str, Any], where: str, identity: str) -> Record:
        choices = [take(line, name, str, where) for name in ANSWERS]
        facts = [_evidence(line, f"{name}_searched_evidence", where) for name in ANSWERS]
        fields = {"question": take(line, "question", str, where), "id": str(line.get("id", identity))}
        label = right_choice(line, "label", len(choices), where)
        return choice_record(where, take(line, "context", str, where), choices, label, facts, **fields)


def _evidence(line: dict[str, Any], name: str, where: str) -> list[str]:
    if name not in line:
        return []
    found = take(take(line, name, dict, where), "basic", list, where, name)
    field = f"{name}.basic"
    return [
        take(check(one, dict, f"{field}[{i}]", where), "text", str, where, f"{field}[{i}]")
        for i, one in enumerate(found)
    ]
