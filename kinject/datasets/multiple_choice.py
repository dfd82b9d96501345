"""Multiple choice, JSON lines: CosmosQA as K-Adapter reads it, SocialIQA and MedQA as Kformer does, CommonsenseQA."""

from __future__ import annotations

from typing import Any, ClassVar

from kinject.data.records import Record, parse_record
from kinject.datasets.builder import SplitFiles
from kinject.datasets.files import check, take, texts
from kinject.errors import InputError


def choice_record(
    where: str, text: str, choices: list[str], label: int | None, facts: list[list[str]] | None, **fields: Any
) -> Record:
    """A record of the task multiple_choice; `label` and `facts` are left out where there are none."""
    given = {"label": label, "facts": facts if facts and any(facts) else None}
    given = {name: value for name, value in given.items() if value is not None}
    return parse_record({"text": text, "choices": choices, **given, **fields}, where)


def choice_texts(line: dict[str, Any], where: str) -> list[str]:
    """`choices`: a list of texts, or of objects with `text`."""
    choices = take(line, "choices", list, where)
    if len(choices) < 2:
        raise InputError(where, f"field 'choices' has {len(choices)} of them", "a question has two or more")
    return [
        take(one, "text", str, where, f"choices[{i}]")
        if isinstance(one, dict)
        else check(one, str, f"choices[{i}]", where)
        for i, one in enumerate(choices)
    ]


def right_choice(line: dict[str, Any], name: str, count: int, where: str, first: int = 0) -> int | None:
    """The number of the right choice from 0, a whole number or one in a string; None where the field is missing.

    Args:
      line: the object.
      name: of its field; published test files do not have it.
      count: how many choices there are.
      where: file and place.
      first: what the file counts from.
    """
    if line.get(name) is None:
        return None
    given = check(line[name], str | int, name, where)
    number = int(given) if str(given).isascii() and str(given).isdigit() else -1
    if not first <= number < first + count:
        problem = f"field {name!r} is {given!r}, and there are {count} choices"
        raise InputError(where, problem, f"they are counted from {first}")
    return number - first


ANSWERS = tuple(f"answer{number}" for number in range(4))


class Cosmosqa(SplitFiles):
    """CosmosQA (Huang et al., EMNLP 2019).

    Records: text (the context), `question`, `choices` (four), `label` (number from 0), `facts`, `id`.

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


class Socialiqa(SplitFiles):
    """SocialIQA (Sap et al., EMNLP 2019) with retrieved knowledge.

    Records: text (the context), `question`, `choices` (three), `label` (from 0), `facts` (for all), `id`.
    """

    DESCRIPTION = "SocialIQA: what people feel, want or do in everyday situations, three choices, with knowledge texts."
    HOMEPAGE = "https://maartensap.com/social-iqa/"
    LICENSE = "CC BY 4.0"
    CITATION = "Sap et al., Social IQa, EMNLP 2019; Yao et al., Kformer, NLPCC 2022"
    MANUAL_DOWNLOAD_INSTRUCTIONS = """\
    train.jsonl, valid.jsonl and test.jsonl of the data of https://github.com/zjunlp/Kformer: a line has context,
    question, choices (each with text), AnswerKey (counted from 1) and knowledges, texts that all choices share. Or the
    published train.jsonl and dev.jsonl, whose lines have context, question, answerA, answerB and answerC; put the
    answers, which are files of their own there (train-labels.lst), into the lines as AnswerKey.
    """

    def record(self, line: dict[str, Any], where: str, identity: str) -> Record:
        apart = [f"answer{letter}" for letter in "ABC"]
        published = "choices" not in line and apart[0] in line
        choices = [take(line, name, str, where) for name in apart] if published else choice_texts(line, where)
        facts = [texts(line["knowledges"], "knowledges", where)] if "knowledges" in line else None
        label = right_choice(line, "AnswerKey", len(choices), where, first=1)
        fields = {"question": take(line, "question", str, where), "id": str(line.get("id", identity))}
        return choice_record(where, take(line, "context", str, where), choices, label, facts, **fields)


class Commonsenseqa(SplitFiles):
    """CommonsenseQA (Talmor et al., NAACL 2019).

    Records: text (the question), `choices` (five), `label` (from 0; test files have none), `concept`, `id`.
    """

    DESCRIPTION = "CommonsenseQA: questions made of ConceptNet's relations, five choices."
    HOMEPAGE = "https://www.tau-nlp.org/commonsenseqa"
    LICENSE = "CC BY-SA 4.0"
    CITATION = "Talmor et al., CommonsenseQA, NAACL 2019"
    MANUAL_DOWNLOAD_INSTRUCTIONS = """\
    train_rand_split.jsonl, dev_rand_split.jsonl and test_rand_split_no_answers.jsonl (see
    https://www.tau-nlp.org/commonsenseqa): a line has id, answerKey (A to E) and question, with stem,
    question_concept and choices, each with label and text.
    """
    SPLITS: ClassVar[dict[str, tuple[str, ...]]] = {
        "train": ("train_rand_split.jsonl", "train.jsonl"),
        "validation": ("dev_rand_split.jsonl", "dev.jsonl"),
        "test": ("test_rand_split_no_answers.jsonl", "test.jsonl"),
    }

    def record(self, line: dict[str, Any], where: str, identity: str) -> Record:
        question = take(line, "question", dict, where)
        given = take(question, "choices", list, where, "question")
        names = [
            take(check(one, dict, f"question.choices[{i}]", where), "label", str, where, f"question.choices[{i}]")
            for i, one in enumerate(given)
        ]
        choices = choice_texts({"choices": given}, where)
        key, label = line.get("answerKey"), None
        if key:
            if key not in names:
                problem = f"field 'answerKey' is {key!r}, and the choices are {', '.join(names)}"
                raise InputError(where, problem, "name one of them")
            label = names.index(key)
        fields = {"concept": question.get("question_concept", ""), "id": str(line.get("id", identity))}
        return choice_record(where, take(question, "stem", str, where, "question"), choices, label, None, **fields)


class Medqa(SplitFiles):
    """MedQA-USMLE (Jin et al., 2021) with retrieved knowledge.

    Records: text (the question), `choices`, `label` (number from 0), `facts` (one list a choice), `id`.
    """

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
