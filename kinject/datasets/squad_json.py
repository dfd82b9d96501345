"""Questions with their answers marked in a passage, in SQuAD's own JSON (Rajpurkar et al., EMNLP 2016)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

from kinject.data.records import Record, parse_record
from kinject.datasets.files import check, read_json, take
from kinject.datasets.split_files import SplitFiles
from kinject.errors import InputError


class SquadJson(SplitFiles):
    """Records: text (the passage), `question`, `answers`, `starts` (their characters), `id`."""

    DESCRIPTION = "Any data set in SQuAD's JSON: questions, passages, answers with their places."
    HOMEPAGE = "https://rajpurkar.github.io/SQuAD-explorer/"
    CITATION = "Rajpurkar et al., SQuAD: 100,000+ Questions for Machine Comprehension of Text, EMNLP 2016"
    HAS_OWN_IDS = True
    KEEPS_UNANSWERED: ClassVar[bool] = False
    SPLITS: ClassVar[dict[str, tuple[str, ...]]] = {
        "train": ("train-v1.1.json", "train-v2.0.json", "train.json"),
        "validation": ("dev-v1.1.json", "dev-v2.0.json", "dev.json"),
        "test": ("test.json",),
    }
    MANUAL_DOWNLOAD_INSTRUCTIONS = """\
    train-v1.1.json and dev-v1.1.json, or train.json, dev.json and test.json in the same form: {"data": [{"paragraphs":
    [{"context", "qas": [{"id", "question", "answers": [{"text", "answer_start"}]}]}]}]}. Questions without an answer
    (SQuAD 2.0) are left out and counted; squad_v2 keeps them.
    """

    def objects(self, path: Path) -> Iterator[tuple[int, str, dict[str, Any]]]:
        """One object a question, with its passage under `context`."""
        content = check(read_json(path), dict, "the whole file", str(path))
        number = 0
        for i, article in enumerate(take(content, "data", list, str(path))):
            at = f"{path}:data[{i}]"
            for j, paragraph in enumerate(take(check(article, dict, "article", at), "paragraphs", list, at)):
                at = f"{path}:data[{i}].paragraphs[{j}]"
                context = take(check(paragraph, dict, "paragraph", at), "context", str, at)
                for k, question in enumerate(take(paragraph, "qas", list, at)):
                    where = f"{at}.qas[{k}]"
                    yield number, where, {**check(question, dict, "question", where), "context": context}
                    number += 1
        if not number:
            raise InputError(path, "there is no question in it", "download it again")

    def record(self, line: dict[str, Any], where: str, identity: str) -> Record | None:
        text, answers, starts = line["context"], [], []
        for i, answer in enumerate(take(line, "answers", list, where)):
            answer, field = check(answer, dict, f"answers[{i}]", where), f"answers[{i}]"
            answers.append(take(answer, "text", str, where, field))
            starts.append(take(answer, "answer_start", int, where, field))
            low, high = starts[-1], starts[-1] + len(answers[-1])
            if not answers[-1].strip() or low < 0 or text[low:high] != answers[-1]:
                problem = f"field '{field}.answer_start' is {low}, where the passage has no {answers[-1][:40]!r}"
                raise InputError(where, problem, "it counts characters of the passage from 0")
        fields = {"question": take(line, "question", str, where), "id": take(line, "id", str, where)}
        if not answers and not self.KEEPS_UNANSWERED:
            self.left_out["no answer"] += 1
            return None
        return parse_record({"text": text, "answers": answers, "starts": starts, **fields}, where)
