"""Token and sequence classification, LAMA: places, losses and metrics against independent computations."""

import numpy as np
import pytest
from encoding_cases import both, steady, stem_words
from encoding_cases import host as tokenizer_of
from hypothesis import given
from hypothesis import strategies as st
from task_files import write
from task_runs import WORDS, TaskWorld, as_device, check_run, check_shapes, parsed, prepared, row
from tiny import fast_jit
from tiny_world import question

from kinject.data.encode import EntityEncoder, Mention, Passage
from kinject.datasets.records import read_dataset
from kinject.errors import InputError
from kinject.models.heads import logits
from kinject.models.pretrained import load_host
from kinject.tasks.base import make_task
from kinject.tasks.token_classification import first_pieces

TAGS = ["O", "B-city", "I-city", "B-land"]
LABELS = ["near", "far"]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return TaskWorld(tmp_path_factory.mktemp("texts"))


def tagged(i=1, **fields):
    tokens = [f"city{i}", "faraway", "is", "in", f"land{i % 5}", "."]
    mention = {"start": 0, "end": 2, "entity": f"Q{i}"}
    return {"tokens": tokens, "mentions": [mention], "tags": ["B-city", "I-city", "O", "O", "B-land", "O"], **fields}


def classified(i=1, label="far", **fields):
    mention = {"start": 0, "end": len(f"city{i}"), "entity": f"Q{i}"}
    return {"text": f"city{i} is far .", "mentions": [mention], "label": label, **fields}


def fact(i=1, relation="P1", **fields):
    return {**question(i), "relation": relation, **fields}


# ---- token classification ---------------------------------------------------------------------------------------


def test_tags_stand_at_first_pieces(world):
    batch = world.batch(make_task("token_classification", labels=TAGS), [tagged(3), {**tagged(4), "tags": ["O"] * 6}])
    assert row(batch, 0) == "[CLS] E3 / city3 far ##away is in land3 . [SEP]"
    assert [WORDS[batch["token_ids"][0, at]] for at in batch["positions"][0]] == [
        "city3",
        "far",
        "is",
        "in",
        "land3",
        ".",
    ]
    assert batch["labels"].tolist() == [[1, 2, 0, 0, 3, 0], [0] * 6] and (batch["weights"] == 1).all()


@both
@steady
@given(st.data())
def test_first_pieces_are_those_of_the_tokenizers_library(family, data):
    words = data.draw(st.lists(stem_words, min_size=1, max_size=12))
    start = data.draw(st.integers(0, len(words) - 1))
    tokenizer = tokenizer_of(family)
    mention = Mention(start, data.draw(st.integers(start + 1, len(words))), "Q1", "#", "#")
    encoder = EntityEncoder(tokenizer)
    rows = lambda ids: np.zeros(len(ids), np.int32)  # noqa: E731
    (one,) = encoder.encode_batch([Passage(words, [mention])], rows, origins=True)
    places = first_pieces(words, one)
    given = [word if family == "wordpiece" or not n else f" {word}" for n, word in enumerate(words)]
    apart = [tokenizer.backend.encode(word, add_special_tokens=False).ids for word in given]
    ends = [*places[1:].tolist(), len(one)]
    for place, end, ids in zip(places, ends, apart, strict=True):
        assert one.token_ids[place : place + len(ids)].tolist() == ids and place + len(ids) <= end


def test_cut_and_unreadable_words_count_as_outside(world):
    task = make_task("token_classification", labels=TAGS)
    nothing = {"tokens": ["\u200b", "is"], "tags": ["B-city", "O"]}  # BERT's tokenizer keeps nothing of the first
    short = world.batch(task, [{**tagged(3), "mentions": []}, nothing], max_length=6)
    assert short["weights"].tolist() == [[1, 1, 1, 0, 0, 0], [0, 1, 0, 0, 0, 0]]
    assert short["labels"].tolist() == [[1, 2, 0, 0, 3, 0], [1, 0, -1, -1, -1, -1]]
    outputs = np.zeros((2, 6, 4), np.float32)
    outputs[..., 3] = 1
    found = {name: np.asarray(value) for name, value in task.predict(outputs, short).items()}
    assert found["chosen"].tolist() == [[3, 3, 3, 0, 0, 0], [0, 3, 0, 0, 0, 0]]
    assert task.score(found)["accuracy"] == pytest.approx(2 / 8)
    examples = task.examples(parsed(nothing), world.host.encoder(None), None)
    assert examples.notes == {"words (not records) are cut off or unreadable": 1}
    with pytest.raises(InputError, match=r"file\.jsonl:1: the tokenizer keeps nothing of its words"):
        task.examples(parsed({"tokens": ["\u200b"], "tags": ["O"]}), world.host.encoder(None), None)


def entities(tags):
    """The names of a sentence, tag by tag: (type, first, last)."""
    found, begun = set(), None
    for i, tag in enumerate([*tags, "O"]):
        kind = tag[2:]
        if begun and (tag[0] != "I" or kind != begun[0]):
            found.add((*begun, i - 1))
            begun = None
        if tag != "O" and begun is None:
            begun = (kind, i)
    return found


def test_token_metrics():
    draw = np.random.default_rng(2)
    right, chosen = draw.integers(0, 4, (2, 40, 9))
    lengths = draw.integers(1, 10, 40)
    beyond = np.arange(9) >= lengths[:, None]
    right[beyond], chosen[beyond] = -1, -1
    found = make_task("token_classification", labels=TAGS).score({"right": right, "chosen": chosen})
    pairs = [
        [entities([TAGS[tag] for tag in one[:n]]) for one in (r, c)]
        for r, c, n in zip(right, chosen, lengths, strict=True)
    ]
    hits, meant, given = (
        sum(map(len, sets)) for sets in ([r & c for r, c in pairs], [r for r, _ in pairs], [c for _, c in pairs])
    )
    expected = [hits / given, hits / meant, 2 * hits / (given + meant)]
    assert [found[name] for name in ("precision", "recall", "f1")] == pytest.approx(expected) and hits
    assert found["accuracy"] == pytest.approx((right == chosen)[~beyond].mean())


# ---- sequence classification ------------------------------------------------------------------------------------


def test_texts_and_pairs(world):
    task = make_task("sequence_classification", labels=LABELS)
    batch = world.batch(task, [classified(3), classified(4, "near", pair="a place")])
    assert row(batch, 0) == "[CLS] E3 / city3 is far . [SEP]"
    assert row(batch, 1) == "[CLS] E4 / city4 is far . [SEP] a place [SEP]"
    assert batch["labels"].tolist() == [1, 0] and batch["type_ids"][1].sum() == 3


def test_sequence_metrics_are_of_the_confusion_matrix():
    draw = np.random.default_rng(0)
    right, chosen = draw.integers(0, 3, 50), draw.integers(0, 3, 50)
    task = make_task("sequence_classification", labels=[*"abcd"], metric="macro_f1")  # nobody has or predicts d
    found = task.score({"right": right, "chosen": chosen})
    each = [2 * ((right == i) & (chosen == i)).sum() / ((right == i).sum() + (chosen == i).sum()) for i in range(3)]
    same = (right == chosen).mean()
    assert found == pytest.approx({"accuracy": same, "macro_f1": np.mean(each), "micro_f1": same})
    assert task.metric == "macro_f1"
    with pytest.raises(InputError, match=r"task_options\.metric: there is no 'f1'"):
        make_task("sequence_classification", metric="f1")


@pytest.mark.parametrize(
    ("name", "values", "labels"),
    [
        ("sequence_classification", [classified(1), classified(2, "near")], LABELS),
        ("token_classification", [tagged(1), {"tokens": ["city2"], "tags": ["B-city"]}], TAGS),
    ],
)
def test_the_loss_is_torchs(name, values, labels, world):
    torch = pytest.importorskip("torch")
    task = make_task(name, labels=labels)
    host = load_host(world.folder / "raw", head=task.head, num_labels=len(labels), fresh_head=True, seed=3).host
    batch = as_device(world.batch(task, values))
    outputs = fast_jit(lambda batch: task.outputs(host, None, batch))(batch)
    losses, weights = (np.asarray(one) for one in task.loss(outputs, batch))
    scores = torch.tensor(np.asarray(outputs)).reshape(-1, len(labels))
    wanted = torch.tensor(np.asarray(batch["labels"])).long().reshape(-1)  # -1 where there is no word
    expected = torch.nn.functional.cross_entropy(scores, wanted, ignore_index=-1)
    assert (losses * weights).sum() / weights.sum() == pytest.approx(float(expected), rel=1e-5)


# ---- LAMA -------------------------------------------------------------------------------------------------------


def lama(world, *, candidates=None):
    task = make_task("lama", **({"candidates": str(candidates)} if candidates else {}))
    return task.for_host(load_host(world.folder / "raw"), "host")


def test_lama_ranks_and_means(world, tmp_path):
    words = [f"land{i}" for i in range(4)] + ["far", "place", "faraway", "nowhere"]
    (tmp_path / "vocabulary.txt").write_text("\n".join(words) + "\n\n")
    values = [fact(i, f"P{i % 3 % 2}") for i in range(20)]  # every fifth has land4, which is no candidate
    for task, allowed in (
        (lama(world), range(len(WORDS))),
        (lama(world, candidates=tmp_path / "vocabulary.txt"), None),
    ):
        kept = values if allowed else [value for value in values if value["label"] != "land4"]
        allowed = allowed or [WORDS.index(word) for word in words[:6]]
        batch = world.batch(task, values)
        host = load_host(world.folder / "raw", head="masked_lm").host
        outputs = fast_jit(lambda batch, host=host: logits(host, batch))(as_device(batch))
        found = {name: np.asarray(value) for name, value in task.predict(outputs, batch).items()}
        scores = np.asarray(outputs)[:, 0]
        for at, value in enumerate(kept):
            ranking = sorted(allowed, key=lambda piece: -scores[at, piece])
            assert ranking.index(WORDS.index(value["label"])) == found["better"][at]
            assert found["chosen"][at] == ranking[0]
        metrics = task.score(found)
        by_relation = {}
        for value, better in zip(kept, found["better"], strict=True):
            by_relation.setdefault(value["relation"], []).append(better)
        for most in (1, 10):
            means = [np.mean([better < most for better in some]) for some in by_relation.values()]
            assert metrics[f"p_at_{most}"] == pytest.approx(np.mean(means))
            assert metrics[f"weighted_p_at_{most}"] == pytest.approx((found["better"] < most).mean())
        assert len({len(some) for some in by_relation.values()}) == 2  # else both means are the same
        examples = task.examples(parsed(*values), world.host.encoder(None), None)
        notes, owners = examples.notes, range(20) if examples.record_index is None else examples.record_index
        assert [values[i] for i in owners] == kept
        assert notes == ({} if len(kept) == 20 else {"dropped: the answer is no candidate of one piece": 4})


def test_lama_vocabularies_that_cannot_be(world, tmp_path):
    for content, message in ((b"nowhere\nfaraway\n", "holds no word that is one piece"), (b"\xff", "byte 1 is not")):
        (tmp_path / "words.txt").write_bytes(content)
        with pytest.raises(InputError, match=rf"words\.txt: {message}"):
            lama(world, candidates=tmp_path / "words.txt")
    with pytest.raises(InputError, match=r"task_options\.candidates: there is no file"):
        make_task("lama", candidates=str(tmp_path / "none.txt"))
    with pytest.raises(InputError, match=r"file\.jsonl:1: field label: no answer is one piece"):
        world.batch(make_task("lama"), [fact(label="faraway")])


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("lama", fact(relation=None), "field relation is None"),
        ("lama", fact(label=3), "field label is 3"),
        ("lama", {**fact(), "text": "city1"}, r"field text has 0 \[MASK\]"),
        ("sequence_classification", classified(label="fra"), r"field label is 'fra', .* did you mean far\?"),
        ("sequence_classification", classified(pair=["x"]), r"field pair is \['x'\]"),
        ("token_classification", {**tagged(), "tags": ["O"]}, "field tags has 1 of them for 6 tokens"),
        ("token_classification", {"tokens": [], "tags": []}, "field tags has 0 of them for 0 tokens"),
        ("token_classification", {"text": "a", "tags": ["O"]}, "it has a text, not tokens"),
        ("token_classification", {**tagged(), "tags": ["O"] * 5 + ["B-town"]}, r"field tags\[5\] is 'B-town'"),
    ],
)
def test_bad_records_are_told(name, value, message, world):
    options = {"lama": {}, "sequence_classification": {"labels": LABELS}, "token_classification": {"labels": TAGS}}
    with pytest.raises(InputError, match=rf"^file\.jsonl:1: {message}"):
        world.batch(make_task(name, **options[name]), [value])
    with pytest.raises(InputError, match=r"task_options\.labels: there is no tag 'O'"):
        make_task("token_classification", labels=["B-x"])


# ---- all three, from published files ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "value", "options"),
    [
        ("token_classification", tagged(), {"labels": TAGS}),
        ("sequence_classification", classified(), {"labels": LABELS}),
        ("lama", fact(), {}),
    ],
)
def test_shapes_without_data(name, value, options, world):
    check_shapes(world, make_task(name, **options), [value] * 3, 6)


def test_token_classification_trains_and_is_measured(world):
    values = [
        {**tagged(i), "tokens": tagged(i)["tokens"] + ["."] * i, "tags": tagged(i)["tags"] + ["O"] * i}
        for i in range(9)
    ]
    reference = prepared(world, "ner", lambda folder: write(folder / "train.jsonl", values), "cities")
    records = list(read_dataset(f"{reference}?split=train"))
    host, _ = check_run(world, "token_classification", records, {"labels": reference})
    assert {"precision", "recall", "f1", "accuracy"} < host.keys()


def test_sequence_classification_trains_and_is_measured(world):
    values = [classified(i, LABELS[i % 2]) for i in range(8)]
    reference = prepared(world, "text_classification", lambda folder: write(folder / "train.jsonl", values), "cities")
    records = list(read_dataset(f"{reference}?split=train"))
    host, _ = check_run(world, "sequence_classification", records, {"labels": reference, "metric": "macro_f1"})
    assert {"accuracy", "macro_f1", "micro_f1"} < host.keys()


def test_lama_trains_and_is_measured(world):
    def files(folder):
        write(folder / "relations.jsonl", [{"relation": "P1", "template": "[X] is in [Y] ."}])
        facts = [{"sub_label": f"city{i}", "obj_label": f"land{i % 5}", "sub_uri": f"Q{i}"} for i in range(10)]
        write(folder / "TREx/P1.jsonl", facts)
        write(folder / "words.txt", "".join(f"land{i}\n" for i in range(4)))

    records = list(read_dataset(prepared(world, "lama", files, "trex")))
    options = {"candidates": str(world.folder / "files/lama/words.txt")}
    host, plugged = check_run(world, "lama", records, options)
    assert host["p_at_10"] == plugged["p_at_10"] == 1  # there are four candidates
    assert host["p_at_1"] == host["weighted_p_at_1"]  # of one relation
