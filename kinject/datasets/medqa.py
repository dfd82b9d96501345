"""MedQA-USMLE (Jin et al., 2021) with retrieved knowledge, as Kformer reads it: JSON lines."""

from __future__ import annotations

from typing import Any

from kinject.data.records import Record
from kinject.datasets.choices import choice_record, choice_texts, right_choice, texts
from kinject.datasets.files import take
from kinject.datasets.split_files import SplitFiles


class Medqa(SplitFiles):
    """Records: text (the question), `choices`, `label` (number from 0), `facts` (one list a choice), `id`."""

    DESCRIPTION = "MedQA-USMLE: questions of the US medical licensing examination, with knowledge texts a choice."
    HOMEPAGE = "https://github.com/jind11/MedQA"
    LICENSE = "MIT"
    CITATION = (
        "Jin et al., What Disease does this Patient Have?, Applied Sciences 2021; Yao et al., Kformer, NLPCC 2022"
    )
    MANUAL_DOWNLOAD_INSTRUCTIONS = """\
    train.jsonl, valid.jsonl and test.jsonl of the data of https://github.com/zjunlp/Kformer: a line has question,
    choices (each with text and knowledge, a list of texts) and answer_idx (counted from 0).
    """

    def record(self, line: dict[str, Any], where: str, identity: str) -> Record:
        choices = choice_texts(line, where)
        facts = [
            texts(one["knowledge"], f"choices[{i}].knowledge", where)
            if isinstance(one, dict) and "knowledge" in one
            else []
            for i, one in enumerate(line["choices"])
        ]
        label = right_choice(line, "answer_idx", len(choices), where)
        return choice_record(
            where, take(line, "question", str, where), choices, label, facts, id=str(line.get("id", identity))
        )
