"""Names in a text and answers to questions, as transformers' own pipelines find them, on the same 200 texts."""

import json
import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from pipeline_folders import CLOSE, TAGS, folder_of, texts
from transformers import (
    AutoTokenizer,
    BertForQuestionAnswering,
    BertForTokenClassification,
    RobertaForQuestionAnswering,
    RobertaForTokenClassification,
    pipeline,
)
from transformers.pipelines.token_classification import AggregationStrategy

import kinject
from kinject.cli.predict import main, option
from kinject.errors import InputError

AS_TEXT = {"is_split_into_words": False}


@pytest.fixture(scope="module", params=[BertForTokenClassification, RobertaForTokenClassification])
def taggers(request, tmp_path_factory):
    """A host with tags, and transformers' pipeline of the same folder."""
    folder = tmp_path_factory.mktemp("tags")
    folder = folder_of(folder, request.param, id2label=TAGS, label2id={name: i for i, name in TAGS.items()})
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(settings | {"model_max_length": 64}))
    theirs = pipeline("token-classification", model=str(folder), tokenizer=str(folder))
    with torch.no_grad():  # once for all ways, which differ in what is made of its outputs
        outputs = {text: [theirs.forward(one) for one in theirs.preprocess(text, **AS_TEXT)] for text in texts(210)}

    def find(text, **options):
        return theirs.postprocess(outputs[text], **options)

    return SimpleNamespace(folder=folder, host=kinject.Host.load(folder), find=find)


@pytest.mark.filterwarnings("ignore:Tokenizer does not support real words")
@pytest.mark.parametrize("aggregation", ["none", "simple", "first", "max", "average"])
def test_names_in_a_text(taggers, aggregation, monkeypatch):
    """Labels, scores and characters; one host serves all ways, as they concern what its scores are made into."""
    monkeypatch.setattr(taggers.host.task, "aggregation", aggregation)
    asked, way = texts(), AggregationStrategy[aggregation.upper()]
    found = 0
    for text, ours in zip(asked, taggers.host.predict(asked), strict=True):
        them = taggers.find(text, aggregation_strategy=way)
        name = "entity" if aggregation == "none" else "entity_group"
        places = [(one[name], one["start"], one["end"]) for one in them]
        assert [(one.label, one.start, one.end) for one in ours.labels] == places, text
        np.testing.assert_allclose([one.score for one in ours.labels], [one["score"] for one in them], atol=CLOSE)
        found += len(places)
    assert found > 50


def test_the_way_is_an_option_of_the_task(taggers, capsys, monkeypatch, tmp_path):
    text = texts()[1]
    (tmp_path / "texts").write_text(f"{text}\n")
    with (tmp_path / "texts").open("rb") as file:
        monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=file))
        arguments = ["--host", str(taggers.folder), "--plain", "--no-compilation-cache"]
        assert main([*arguments, "--option", "aggregation=simple"]) == 0
    labels = json.loads(capsys.readouterr().out)["labels"]
    wanted = taggers.find(text, aggregation_strategy=AggregationStrategy.SIMPLE)
    assert [{**one, "score": pytest.approx(one["score"], abs=CLOSE)} for one in labels] == [
        {"label": one["entity_group"], "score": one["score"], "start": one["start"], "end": one["end"]}
        for one in wanted
    ]
    with pytest.raises(InputError, match=r"task_options\.aggregation: there is no 'simpel'; did you mean simple\?"):
        kinject.Host.load(taggers.folder, task_options={"aggregation": "simpel"})
    assert option("labels=[1, 2]") == ("labels", [1, 2]) and option("a=b=c") == ("a", "b=c")
    with pytest.raises(InputError, match=r"--option aggregation: it has no value"):
        option("aggregation")
    with pytest.raises(InputError, match="one label is explained"):
        taggers.host.predict(text, explain=True)


def test_tags_of_words(taggers):
    """The tag of a word is that of its first piece, and its score that piece's."""
    asked = [text.split() for text in texts(210) if text]
    asked = [words for words in asked if len(words) <= 3]
    for words, ours in zip(asked, taggers.host.predict([{"tokens": one} for one in asked]), strict=True):
        found = {}
        for one in taggers.find(" ".join(words), ignore_labels=[]):
            if one["end"] > one["start"]:  # byte-level BPE may have a piece for the space alone
                found.setdefault(one["start"], one)
        starts = np.cumsum([0, *(len(word) + 1 for word in words)])[:-1]
        assert [one.label for one in ours.labels] == [found[int(start)]["entity"] for start in starts]
        for one, start in zip(ours.labels, starts, strict=True):
            assert one.start is None and abs(one.score - found[int(start)]["score"]) < CLOSE


def answers(model, tokenizer, question, context, length, overlap, longest, top):
    """The question-answering pipeline of transformers 4 (5 has none), in torch and NumPy, of one question.

    Spans that begin after their end, to which it gives the probability 0, are left out.
    """
    encoded = tokenizer(
        question,
        context,
        truncation="only_second",
        max_length=length,
        stride=overlap,
        return_overflowing_tokens=True,
        return_offsets_mapping=True,
    )
    found, none = {}, []
    for number, ids in enumerate(encoded["input_ids"]):
        encoding = encoded.encodings[number]
        types = {name: torch.tensor([encoded[name][number]]) for name in encoded if name == "token_type_ids"}
        with torch.no_grad():
            made = model(input_ids=torch.tensor([ids]), **types)
        inside = np.array([one == 1 for one in encoding.sequence_ids])
        read = inside | (np.array(ids) == tokenizer.cls_token_id)
        starts, ends = (
            torch.tensor(np.where(read, scores[0].numpy(), -1e4)).softmax(-1).numpy()
            for scores in (made.start_logits, made.end_logits)
        )
        none.append(starts[0] * ends[0])
        sums = [
            (starts[i] * ends[j], i, j) for i in np.flatnonzero(inside) for j in range(i, min(i + longest, len(ids)))
        ]
        for score, i, j in sorted((one for one in sums if inside[one[2]]), reverse=True)[: 2 * top + 10]:
            start = encoding.word_to_chars(encoding.token_to_word(i), 1)[0]
            end = encoding.word_to_chars(encoding.token_to_word(j), 1)[1]
            one = found.setdefault(context[start:end].lower(), [context[start:end], 0.0, start, end])
            one[1] += score
    return [*map(tuple, found.values()), ("", min(none), 0, 0)]


@pytest.mark.parametrize("cls", [BertForQuestionAnswering, RobertaForQuestionAnswering])
def test_answers_to_questions(tmp_path, cls):
    """Words, probability and characters of the three best, in windows where a passage is long, "" among them."""
    folder = folder_of(tmp_path, cls)
    tokenizer, model = AutoTokenizer.from_pretrained(folder), cls.from_pretrained(folder).eval()
    host = kinject.Host.load(folder, task_options={"no_answer": True})
    asked = [pair for pair in zip(texts(221, seed=1)[1:], texts(220), strict=True) if all(pair) and len(pair[0]) < 200]
    asked = asked if cls is BertForQuestionAnswering else asked[:50]
    made = host.predict([{"text": context, "question": question} for question, context in asked], top=3)
    several = 0
    for (question, context), ours in zip(asked, made, strict=True):
        wanted = answers(model, tokenizer, question, context, 64, 32, 15, 3)
        found = [(one.label, one.start, one.end) for one in ours.labels]
        scores = {(one[0], *one[2:]): one[1] for one in wanted}  # two may be so close that either is the third
        assert set(found) <= set(scores)
        best = sorted(scores.values(), reverse=True)[:3]
        for wanted in (best, [scores[one] for one in found]):
            np.testing.assert_allclose([one.score for one in ours.labels], wanted, atol=CLOSE)
        several += len(context) > 300
    assert several
    some = host.predict({"text": asked[0][1], "question": asked[0][0]}, compare=True)
    assert some.before == some.labels and {"label", "score", "start", "end"} == set(some.to_json()["labels"][0])


EMPTY = [
    ({"text": "", "question": "who?"}, "its text is empty, so that no answer stands there"),
    ({"text": "ka mo", "question": " "}, "field question is ' '; it must be a text, and not empty"),
    ({"text": "ka mo"}, "field question is None; it must be a text"),
    ({"text": "ka mo", "question": "ka " * 80}, "a question of .* pieces leaves no room for a passage in 64 positions"),
]


def test_what_cannot_be_asked_is_refused_in_a_line(tmp_path):
    """As the pipeline refuses an empty question or passage; the others are answered."""
    host = kinject.Host.load(folder_of(tmp_path, BertForQuestionAnswering))
    asked = [one for one, _ in EMPTY]
    made = list(host.predict([*asked, {"text": "ka mo", "question": "ka?"}], errors="yield", top=1))
    for one, (_, message) in zip(made, EMPTY, strict=False):
        assert "\n" not in one.error and re.search(message, one.error), one.error
    assert made[-1].label and 0 < made[-1].score <= 1
