"""SocialIQA (Sap et al., EMNLP 2019) with retrieved knowledge, as Kformer reads it: JSON lines."""

from __future__ import annotations

from typing import Any

from kinject.data.records import Record
from kinject.datasets.choices import choice_record, choice_texts, right_choice, texts
from kinject.datasets.files import take
from kinject.datasets.split_files import SplitFiles


class Socialiqa(SplitFiles):
    """Records: text (the context), `question`, `choices` (three), `label` (from 0), `facts` (for all), `id`."""

    DESCRIPTION = "SocialIQA: what people feel, want or do in everyday situations, three choices, with knowledge texts."
    HOMEPAGE = "https://maartensap.com/social-iqa/"
    LICENSE = "CC BY 4.0"
    CITATION = "Sap et al., Social IQa, EMNLP 2019; Yao et al., Kformer, NLPCC 2022"
    MANUAL_DOWNLOAD_INSTRUCTIONS = """\
    train.jsonl, valid.jsonl and test.jsonl of the data of https://github.com/zjunlp/Kformer: a line has context,
    question, choices (each with text), AnswerKey (counted from 1) and knowledges, texts that all choices share.
    """

    def record(self, line: dict[str, Any], where: str, identity: str) -> Record:
        choices = choice_texts(line, where)
        facts = [texts(line["knowledges"], "knowledges", where)] if "knowledges" in line else None
        label = right_choice(line, "AnswerKey", len(choices), where, first=1)
        fields = {"question": take(line, "question", str, where), "id": str(line.get("id", identity))}
        return choice_record(where, take(line, "context", str, where), choices, label, facts, **fields)
