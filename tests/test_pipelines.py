"""A fine-tuned folder as transformers saves it answers as transformers' own pipelines do, on the same 200 texts."""

import random
import shutil

import numpy as np
import pytest
import torch
from tiny_tokenizers import STEMS, byte_level_folder, wordpiece_folder
from transformers import (
    AutoTokenizer,
    BertConfig,
    BertForMaskedLM,
    BertForMultipleChoice,
    BertForSequenceClassification,
    BertForTokenClassification,
    RobertaConfig,
    RobertaForSequenceClassification,
    RobertaForTokenClassification,
    pipeline,
)

import kinject
from kinject.errors import InputError

SIZES = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 48}
SIZES |= {"initializer_range": 0.3}
CLOSE = 1e-5


def texts(count=200, seed=0, longest=3):
    """Of few lengths, so that few programs are compiled: empty, of a word, of some, and longer than the host reads."""
    draw = random.Random(seed)

    def text(i):
        words = 100 if i % 40 == 39 else draw.choice([1, longest])
        ends = ["", ",", "!"]
        return " ".join("".join(draw.choices(STEMS, k=draw.randint(1, 2))) + draw.choice(ends) for _ in range(words))

    return ["", *(text(i) for i in range(1, count))]


def folder_of(tmp_path, cls, **values):
    """A host of this class with random weights, and its tokenizer, as transformers saves both."""
    roberta = cls.__name__.startswith("Roberta")
    make, config = (byte_level_folder, RobertaConfig) if roberta else (wordpiece_folder, BertConfig)
    tokenizer = make(tmp_path / "tokenizer")
    size = AutoTokenizer.from_pretrained(tokenizer).vocab_size
    positions = {"max_position_embeddings": 66, "pad_token_id": 1} if roberta else {"max_position_embeddings": 64}
    torch.manual_seed(0)
    model = cls(config(vocab_size=size, **SIZES, **positions, **values))
    with torch.no_grad():
        for one in model.parameters():
            one.add_(0.1 * torch.randn_like(one))
    model.save_pretrained(tmp_path / "host")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(tokenizer / name, tmp_path / "host")
    return tmp_path / "host"


NAMES = {"id2label": {0: "good", 1: "bad", 2: "neither"}, "label2id": {"good": 0, "bad": 1, "neither": 2}}
CLASSIFIERS = [
    {**NAMES},
    {**NAMES, "problem_type": "multi_label_classification"},
    {"num_labels": 1},
    {"num_labels": 1, "problem_type": "regression"},
]


@pytest.mark.parametrize(
    ("cls", "values"),
    [*((BertForSequenceClassification, one) for one in CLASSIFIERS), (RobertaForSequenceClassification, NAMES)],
)
def test_text_classification(tmp_path, cls, values):
    folder = folder_of(tmp_path, cls, **values)
    theirs = pipeline("text-classification", model=str(folder), tokenizer=str(folder), top_k=None)
    asked = texts()
    host = kinject.Host.load(folder)
    made = list(host.predict(asked, top=9))
    for ours, wanted in zip(made, theirs(asked, truncation=True, max_length=64), strict=True):
        scores = {one["label"]: one["score"] for one in wanted}
        assert {one.label for one in ours.labels} == set(scores)
        assert [one.score for one in ours.labels] == sorted((one.score for one in ours.labels), reverse=True)
        for one in ours.labels:
            assert abs(one.score - scores[one.label]) < CLOSE


def test_text_pairs(tmp_path):
    folder = folder_of(tmp_path, BertForSequenceClassification, **NAMES)
    theirs = pipeline("text-classification", model=str(folder), tokenizer=str(folder), top_k=None)
    # an empty second text is none to transformers for a text alone, and one for a list of texts; here it is one
    pairs = [(a, b) for a, b in zip(texts(), texts(seed=1), strict=True) if b]
    made = kinject.Host.load(folder).predict([{"text": a, "pair": b} for a, b in pairs])
    wanted = theirs([{"text": a, "text_pair": b} for a, b in pairs], truncation=True, max_length=64)
    for ours, them in zip(made, wanted, strict=True):
        assert {one.label: pytest.approx(one.score, abs=CLOSE) for one in ours.labels} == {
            one["label"]: one["score"] for one in them
        }


def test_fill_mask(tmp_path):
    folder = folder_of(tmp_path, BertForMaskedLM)
    theirs = pipeline("fill-mask", model=str(folder), tokenizer=str(folder), top_k=5)
    asked = [f"{a} [MASK] {b}" for a, b in zip(texts(), texts(seed=1), strict=True)]
    asked = [text for text in asked if len(theirs.tokenizer(text)["input_ids"]) <= 64]
    assert len(asked) > 180
    for ours, wanted in zip(kinject.Host.load(folder).predict(asked), theirs(asked), strict=True):
        assert [one.label for one in ours.labels] == [one["token_str"] for one in wanted]
        np.testing.assert_allclose([one.score for one in ours.labels], [one["score"] for one in wanted], atol=CLOSE)


@pytest.mark.parametrize("cls", [BertForTokenClassification, RobertaForTokenClassification])
def test_token_classification_of_words(tmp_path, cls):
    """The tag of a word is that of its first piece, and its score that piece's."""
    tags = {0: "O", 1: "B-PER", 2: "I-PER"}
    folder = folder_of(tmp_path, cls, id2label=tags, label2id={name: i for i, name in tags.items()})
    theirs = pipeline("token-classification", model=str(folder), tokenizer=str(folder), aggregation_strategy="none")
    asked = [text.split() for text in texts(210) if text]
    asked = [words for words in asked if len(words) <= 3]
    host = kinject.Host.load(folder)
    theirs._postprocess_params["ignore_labels"] = []
    for words, ours in zip(asked, host.predict([{"tokens": words} for words in asked]), strict=True):
        found = {}
        for one in theirs(" ".join(words)):
            if one["end"] > one["start"]:  # byte-level BPE may have a piece for the space alone
                found.setdefault(one["start"], one)
        starts = np.cumsum([0, *(len(word) + 1 for word in words)])[:-1]
        assert [one.label for one in ours.labels] == [found[int(start)]["entity"] for start in starts]
        for one, start in zip(ours.labels, starts, strict=True):
            assert abs(one.score - found[int(start)]["score"]) < CLOSE


def test_multiple_choice(tmp_path):
    """transformers has no pipeline for it: its model, on (text, choice) pairs."""
    folder = folder_of(tmp_path, BertForMultipleChoice)
    tokenizer, model = AutoTokenizer.from_pretrained(folder), BertForMultipleChoice.from_pretrained(folder).eval()
    asked = list(zip(texts(230), texts(230, 1, 2), texts(230, 2, 2), strict=True))
    asked = [one for one in asked if all(one) and sum(map(len, one)) < 200 and one[1] != one[2]]
    made = kinject.Host.load(folder).predict([{"text": a, "choices": [b, c]} for a, b, c in asked])
    for (text, *choices), ours in zip(asked, made, strict=True):
        inputs = {k: v[None] for k, v in tokenizer([text] * 2, choices, return_tensors="pt", padding=True).items()}
        with torch.no_grad():
            scores = model(**inputs).logits[0].softmax(-1)
        wanted = dict(zip(choices, scores.tolist(), strict=True))
        assert {one.label: pytest.approx(one.score, abs=CLOSE) for one in ours.labels} == wanted


def test_a_bare_encoder_tells_of_no_task(tmp_path):
    from transformers import BertModel

    folder = folder_of(tmp_path, BertModel)
    with pytest.raises(
        InputError, match=r"its task is not known: host\.json names none, and architectures .* BertModel"
    ):
        kinject.Host.load(folder)


def test_answering_questions_is_evaluated_and_not_served(tmp_path):
    from transformers import BertForQuestionAnswering

    folder = folder_of(tmp_path, BertForQuestionAnswering)
    with pytest.raises(InputError, match="the task span_extraction cannot be served"):
        kinject.Host.load(folder)
