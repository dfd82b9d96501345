"""A fine-tuned folder as transformers saves it answers as transformers' own pipelines do, on the same 200 texts."""

import numpy as np
import pytest
import torch
from pipeline_folders import CLOSE, folder_of, texts
from transformers import (
    AutoConfig,
    AutoTokenizer,
    BertForMaskedLM,
    BertForMultipleChoice,
    BertForSequenceClassification,
    RobertaForSequenceClassification,
    pipeline,
)

import kinject
from kinject.errors import InputError
from kinject.models.saving import save_host

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
    # written again, transformers makes the same of it
    again = save_host(
        host.ready.loaded.host,
        tmp_path / "again",
        tokenizer_files_from=folder,
        host_json={"labels": host.task.labels},
    )
    before, after = (AutoConfig.from_pretrained(one) for one in (folder, again))
    ids = ("bos_token_id", "eos_token_id", "pad_token_id")
    assert [getattr(before, name) for name in ids] == [getattr(after, name) for name in ids]
    single = None if before.num_labels == 1 else "single_label_classification"
    assert after.problem_type == (before.problem_type or single)
    assert after.id2label == before.id2label


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
