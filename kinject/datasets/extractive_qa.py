"""Questions whose answers stand in a passage: SQuAD and whatever has its JSON, SQuAD 2.0, Quasar-T and SearchQA."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import tensorflow_datasets as tfds

from kinject.data.records import Record, parse_record
from kinject.datasets.builder import RecordBuilder, SplitFiles, Splits
from kinject.datasets.files import check, find, need, read_json, read_json_lines, take
from kinject.errors import InputError, Misplaced
from kinject.json_file import parse
from kinject.text_files import read_lines


class SquadJson(SplitFiles):
    """Answers marked in their passage, in SQuAD's own JSON (Rajpurkar et al., EMNLP 2016).

    Records: text (the passage), `question`, `answers`, `starts` (their characters), `id`.
    """

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
            found, low = take(answer, "text", str, where, field), take(answer, "answer_start", int, where, field)
            answers.append(found)
            starts.append(low)
            if not found.strip() or low < 0 or text[low : low + len(found)] != found:
                problem = f"field '{field}.answer_start' is {low}, where the passage has no {found[:40]!r}"
                raise Misplaced(where, problem, "it counts characters of the passage from 0")
        fields = {"question": take(line, "question", str, where), "id": take(line, "id", str, where)}
        if not answers and not self.KEEPS_UNANSWERED:
            self.left_out["no answer"] += 1
            return None
        return parse_record({"text": text, "answers": answers, "starts": starts, **fields}, where)


class SquadV2(SquadJson):
    """SQuAD 2.0 (Rajpurkar et al., ACL 2018): SQuAD with questions that their passage does not answer.

    Records as of `squad_json`; a question without an answer has none in `answers` and `starts`.
    """

    DESCRIPTION = "SQuAD 2.0, or any data set in its JSON: questions, of which some have no answer in their passage."
    LICENSE = "CC BY-SA 4.0"
    CITATION = "Rajpurkar et al., Know What You Don't Know: Unanswerable Questions for SQuAD, ACL 2018"
    SPLITS: ClassVar[dict[str, tuple[str, ...]]] = {
        "train": ("train-v2.0.json", "train.json"),
        "validation": ("dev-v2.0.json", "dev.json"),
        "test": ("test.json",),
    }
    COUNTS: ClassVar[dict[str, int]] = {"train": 130_319, "validation": 11_873}
    KEEPS_UNANSWERED = True
    MANUAL_DOWNLOAD_INSTRUCTIONS = """\
    train-v2.0.json and dev-v2.0.json; or, with --no-check, train.json, dev.json and test.json in the same form, that of
    squad_json. Train with task_options no_answer=True.
    """


OPEN_QA_FILES = {"train": "train", "validation": "dev", "test": "test"}


class OpenQa(RecordBuilder):
    """Trivia questions with passages that a search found, answers as texts.

    Records: text (a passage), `question`, `question_id` (split/line), `answers`, `id` (split/line/passage). The files
    have the form of Lin et al. (ACL 2018), on which K-Adapter's comparison rests: a file of questions and a file of
    passages, line by line of one another. Each passage is a record, and those of one question share `question_id`.
    """

    DESCRIPTION = "Quasar-T and SearchQA: questions, the passages that a search found, answers without their places."
    HOMEPAGE = "https://github.com/thunlp/OpenQA"
    CITATION = "Dhingra et al., Quasar, 2017; Dunn et al., SearchQA, 2017; Lin et al., ACL 2018, pages 1736-1745"
    MANUAL_DOWNLOAD_INSTRUCTIONS = """\
    train.txt, dev.txt, test.txt (a line is {"question": …, "answers": […]}) and train.json, dev.json, test.json (a line
    is [{"question": …, "document": …}, …], the passages of the same line's question) of the folder quasart or searchqa
    of OpenQA_data.tar.gz, see https://github.com/thunlp/OpenQA. Texts are lists of tokens or strings. dev and test may
    be missing.
    """
    BUILDER_CONFIGS: ClassVar[list[tfds.core.BuilderConfig]] = [
        tfds.core.BuilderConfig(name="quasar_t", description="Quasar-T, files of the folder quasart"),
        tfds.core.BuilderConfig(name="searchqa", description="SearchQA, files of the folder searchqa"),
    ]

    def files(self, folder: Path) -> list[Path]:
        return [path for pair in self._pairs(folder).values() for path in pair]

    def splits(self, folder: Path) -> Splits:
        return {split: partial(self._records, split, *pair) for split, pair in self._pairs(folder).items()}

    def _pairs(self, folder: Path) -> dict[str, tuple[Path, Path]]:
        need(folder, "train.txt")
        there = {split: name for split, name in OPEN_QA_FILES.items() if find(folder, f"{name}.txt")}
        return {split: (need(folder, f"{name}.txt"), need(folder, f"{name}.json")) for split, name in there.items()}

    def _records(self, split: str, questions: Path, passages: Path) -> Iterator[Record]:
        for asked, found in itertools.zip_longest(read_json_lines(questions), _lists(passages)):
            if asked is None or found is None:
                short, long = (questions, passages) if asked is None else (passages, questions)
                raise InputError(short, f"has fewer lines than {long.name}", "take both files of one release")
            number, where, line = asked
            question = _text(take(line, "question", str | list, where), "question", where)
            answers = [_text(one, f"answers[{i}]", where) for i, one in enumerate(take(line, "answers", list, where))]
            if not answers or not all(answer.strip() for answer in answers):
                raise InputError(
                    where, f"field 'answers' is {answers!r}", "a question has an answer, and none is empty"
                )
            identity = f"{split}/{number}"
            shared = {"question": question, "question_id": identity, "answers": answers}
            yield from self._passages(found, questions.name, shared)

    def _passages(self, found: tuple[str, list[Any]], name: str, shared: dict[str, Any]) -> Iterator[Record]:
        where, items = found
        kept = 0
        for i, item in enumerate(items):
            at = f"[{i}]"
            item = check(item, dict, at, where)
            if _text(take(item, "question", str | list, where, at), f"{at}.question", where) != shared["question"]:
                problem = f"field '{at}.question' is not the question of {name} in the same line"
                raise InputError(where, problem, "take both files of one release")
            text = _text(take(item, "document", str | list, where, at), f"{at}.document", where)
            if not text.strip():
                self.left_out["empty passage"] += 1
                continue
            kept += 1
            yield parse_record({"text": text, **shared, "id": f"{shared['question_id']}/{i}"}, where)
        self.left_out.update({"question without a passage": 1} if not kept else {})


def _lists(path: Path) -> Iterator[tuple[str, list[Any]]]:
    """("file:line", list) of each line that is not blank."""
    for number, line in read_lines(path):
        if line.strip():
            where = f"{path}:{number}"
            try:
                value = parse(line)
            except (ValueError, RecursionError) as error:
                raise InputError(where, f"not JSON: {error}") from None
            yield where, check(value, list, "the line", where)


def _text(value: str | list[Any], field: str, where: str) -> str:
    """A text, or tokens joined by spaces."""
    if isinstance(value, str):
        return value
    return " ".join(check(token, str, f"{field}[{i}]", where) for i, token in enumerate(value))
