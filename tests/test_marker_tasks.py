"""K-Adapter's marker tasks: what the head reads, losses against torch, metrics against plain counting and sklearn."""

import numpy as np
import pytest
from task_files import write
from task_runs import WORDS, TaskWorld, as_device, check_run, check_stages, parsed, prepared, row
from tiny import fast_jit
from tiny_world import sentence

from kinject.datasets.records import read_dataset
from kinject.errors import InputError
from kinject.models.pretrained import load_host
from kinject.tasks.base import make_task

LANDS = ["land0", "land1", "land2"]
RELATIONS = ["no_relation", "in", "of"]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return TaskWorld(tmp_path_factory.mktemp("markers"))


def typed(i=1, labels=("land0", "land2"), **fields):
    mention = {"start": 11, "end": 11 + len(f"city{i}"), "entity": f"Q{i}"}
    return {"text": f"a place of city{i} far .", "mentions": [mention], "labels": [*labels], **fields}


def related(i=1, j=2, label="in", **fields):
    return {**sentence(i, j), "label": label, **fields}


def test_typing_reads_the_first_marker(world):
    batch = world.batch(make_task("marker_entity_typing", labels=LANDS), [typed(4), typed(5, [])])
    assert row(batch, 0) == "[CLS] a place of @ E4 / city4 @ far . [SEP]"
    assert batch["positions"].shape == (2, 1) and batch["labels"].tolist() == [[1, 0, 1], [0, 0, 0]]
    assert [WORDS[i] for i in np.take_along_axis(batch["token_ids"], batch["positions"], 1)[:, 0]] == ["@", "@"]
    bare = world.batch(make_task("marker_entity_typing", labels=LANDS), [typed(4)], slots=False)
    assert row(bare, 0) == "[CLS] a place of @ city4 @ far . [SEP]"


def test_relations_read_both_opening_markers_subject_first(world):
    value = related(7, 3)
    swapped = {**value, "mentions": value["mentions"][::-1]}
    batch = world.batch(make_task("marker_relations", labels=RELATIONS), [value, swapped])
    assert row(batch, 0) == "[CLS] @ E7 / city7 @ is in a place of # E3 / city3 # . [SEP]"
    assert row(batch, 1) == "[CLS] # E7 / city7 # is in a place of @ E3 / city3 @ . [SEP]"
    assert batch["positions"].tolist() == [[1, 11], [11, 1]]


@pytest.mark.parametrize(
    ("name", "values", "labels"),
    [
        ("marker_entity_typing", [typed(1), typed(2, ["land1"])], LANDS),
        ("marker_relations", [related(1, 2), related(4, 9, "of")], RELATIONS),
    ],
)
def test_the_loss_is_torchs(name, values, labels, world):
    torch = pytest.importorskip("torch")
    task = make_task(name, labels=labels)
    host = load_host(world.folder / "raw", head=task.head, num_labels=3, fresh_head=True, seed=3).host
    batch = as_device(world.batch(task, values))
    outputs = fast_jit(lambda batch: task.outputs(host, None, batch))(batch)
    losses, weights = task.loss(outputs, batch)
    # the head by hand, from the encoder's states everywhere
    states = fast_jit(lambda batch: host.encoder(batch).last)(batch)
    read = torch.tensor(np.asarray(states))[torch.arange(2)[:, None], torch.tensor(batch["positions"]).long()]
    weight = {key: torch.tensor(np.asarray(getattr(host.head, key).kernel[...])) for key in ("dense", "output")}
    bias = {key: torch.tensor(np.asarray(getattr(host.head, key).bias[...])) for key in ("dense", "output")}
    logits = (read.reshape(2, -1) @ weight["dense"] + bias["dense"]) @ weight["output"] + bias["output"]
    wanted = torch.tensor(np.asarray(batch["labels"]))
    if name == "marker_relations":
        expected = torch.nn.functional.cross_entropy(logits, wanted.long())
    else:
        expected = torch.nn.functional.binary_cross_entropy_with_logits(logits, wanted)
    assert float((losses * weights).mean()) == pytest.approx(float(expected), rel=1e-5)


def loose(pairs):
    """Ling & Weld's loose scores, set by set."""
    hits = [len(one & other) for one, other in pairs]
    micro = sum(hits) / max(sum(len(one) for one, _ in pairs), 1), sum(hits) / max(sum(len(o) for _, o in pairs), 1)
    shares = [(h / len(p) if p else 0.0, h / len(r) if r else 0.0) for h, (p, r) in zip(hits, pairs, strict=True)]
    macro = tuple(sum(column) / len(pairs) for column in zip(*shares, strict=True))
    return [2 * p * r / (p + r) if p + r else 0.0 for p, r in (micro, macro)]


@pytest.mark.parametrize("never_empty", [False, True])
def test_typing_metrics(never_empty):
    draw = np.random.default_rng(5)
    outputs, right = draw.normal(-0.4, 1, (60, 4)).round(1).astype(np.float32), draw.random((60, 4)) < 0.3
    task = make_task("marker_entity_typing", labels=[*"abcd"], never_empty=never_empty)
    found = task.predict(outputs, {"labels": right.astype(np.float32)})
    chosen = [{i for i, one in enumerate(r) if one > 0 or (never_empty and one == max(r))} for r in outputs.tolist()]
    assert [set(np.flatnonzero(one)) for one in np.asarray(found["chosen"])] == chosen
    assert never_empty == all(chosen) and not right.any(1).all()
    gold = [set(np.flatnonzero(one)) for one in right]
    scores = task.score({name: np.asarray(value) for name, value in found.items()})
    assert [scores["f1"], scores["macro_f1"]] == pytest.approx(loose(list(zip(chosen, gold, strict=True))))
    assert scores["accuracy"] == pytest.approx(np.mean([one == other for one, other in zip(chosen, gold, strict=True)]))


def test_relation_metrics_do_not_count_no_relation():
    right, chosen = np.array([0, 0, 1, 1, 2, 2, 2]), np.array([0, 1, 1, 0, 2, 1, 2])
    scores = make_task("marker_relations", labels=RELATIONS).score({"right": right, "chosen": chosen})
    # 5 predicted, 5 meant, 3 right: what is predicted where there is none, and missed where there is one, counts
    assert [scores[name] for name in ("precision", "recall", "f1")] == pytest.approx([3 / 5, 3 / 5, 3 / 5])
    assert scores["accuracy"] == pytest.approx(4 / 7)
    assert scores["macro_f1"] == pytest.approx((2 * 1 / (3 + 2) + 2 * 2 / (2 + 3)) / 2)
    named = make_task("marker_relations", labels=["at", "in", "of"]).score({"right": right, "chosen": chosen})
    assert named["f1"] == pytest.approx(4 / 7) == named["accuracy"]  # every label is a relation
    nothing = make_task("marker_relations", labels=RELATIONS).score(
        {"right": np.zeros(3, int), "chosen": np.zeros(3, int)}
    )
    assert nothing["f1"] == nothing["macro_f1"] == 0 and nothing["accuracy"] == 1


def test_only_so_many_negatives_train_and_all_are_measured(world):
    values = [related(i, i + 1, "no_relation" if i % 2 else "in") for i in range(8)]
    task = make_task("marker_relations", labels=RELATIONS, most_ignored=1)
    train = task.examples(parsed(*values), world.host.encoder(None), None, buckets=1)
    assert train.in_order("labels").tolist() == [1, 0, 1, 1, 1]
    assert train.notes == {"dropped: more than 1 no_relation": 3} and train.record_index.tolist() == [0, 1, 2, 4, 6]
    assert task.for_evaluation().examples(parsed(*values), world.host.encoder(None), None).size == 8
    with pytest.raises(InputError, match=r"task_options\.most_ignored: is -1"):
        make_task("marker_relations", labels=RELATIONS, most_ignored=-1)
    with pytest.raises(InputError, match=r"task_options\.never_empty: is 'yes'"):
        make_task("marker_entity_typing", labels=LANDS, never_empty="yes")


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        ("marker_relations", [related(label="inn")], r"1: field label is 'inn', .* did you mean in\?"),
        ("marker_relations", [{**related(), "mentions": related()["mentions"][:1]}], "1: field mentions has 1 of them"),
        ("marker_relations", [related(id=1), related(id=1)], "2: field id: 1 is that of"),
        ("marker_entity_typing", [typed(), typed(labels=["sea"])], r"2: field labels\[0\] is 'sea'"),
        ("marker_entity_typing", [{**typed(), "mentions": []}], "1: field mentions has 0 of them, 1"),
    ],
)
def test_bad_records_are_told(name, values, message, world):
    task = make_task(name, labels=RELATIONS if name == "marker_relations" else LANDS)
    with pytest.raises(InputError, match=rf"^file\.jsonl:{message}"):
        task.examples(parsed(*values), world.host.encoder(None), None)


def test_typing_trains_and_is_measured(world):
    def files(folder):
        values = [typed(i, [f"land{i % 3}"]) for i in range(12)]
        spans = [(one["mentions"][0]["start"], one["mentions"][0]["end"]) for one in values]
        lines = [
            {
                "sent": one["text"],
                "start": low,
                "end": high,
                "labels": one["labels"],
                "ents": [[f"Q{i}", low, high, 1.0]],
            }
            for i, (one, (low, high)) in enumerate(zip(values, spans, strict=True))
        ]
        write(folder / "train.json", lines)

    reference = prepared(world, "open_entity", files)
    records = list(read_dataset(f"{reference}?split=train"))
    host, _ = check_run(world, "marker_entity_typing", records, {"labels": reference})
    assert {"precision", "recall", "f1", "macro_f1", "accuracy"} < host.keys()


def test_relations_from_raw_model_to_table(world):
    pairs = [related(i, i + 12, RELATIONS[i % 3]) for i in range(12)]
    _, folder = check_stages(world, "marker_relations", pairs, {"labels": RELATIONS}, n=12, extra=("f1", "macro_f1"))
    head = load_host(folder / "host").host.head
    assert (head.kind, head.places, head.num_labels) == ("mention_pair", 2, 3)
