"""The uses of map-tuning, end to end on the tiny world, and what each task trains on."""

import json
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from test_store import contents
from tiny import fast_jit
from tiny_world import (
    CITIES,
    VOCABULARY,
    as_device,
    evaluate_stage,
    plugin_stage,
    question,
    run_experiment,
    sentence,
    vectors,
    write_records,
)

from kinject.data.pipeline import Feed
from kinject.data.records import parse_record
from kinject.errors import InputError
from kinject.inference.host import open_host
from kinject.inference.program import evaluate, split_program
from kinject.knowledge.base import KnowledgeBase, write_knowledge
from kinject.models.heads import logits
from kinject.plugins.base import make_plugin
from kinject.plugins.store import StoredPlugin, load_plugin
from kinject.stages.plugin import take_over
from kinject.tasks.base import Task, make_task, register_task


def parsed(values):
    return [parse_record(value, f"test:{number}") for number, value in enumerate(values, 1)]


def pairs(low, high):
    return [sentence(i, (i * 7 + k) % 40) for k in range(low, high) for i in range(40) if i != (i * 7 + k) % 40]


def metrics_of(workdir: Path, stage: str) -> list[dict]:
    lines = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
    return [line for line in lines if line["stage"] == stage]


def spelled(i, j):
    """A sentence in which the words themselves stand where slots would stand."""
    tokens = sentence(i, j)["tokens"]
    tokens = [f"city{i}", "/", *tokens[:6], f"city{j}", "/", *tokens[6:]]
    mentions = [{"start": 2, "end": 3, "entity": f"Q{i}"}, {"start": 10, "end": 11, "entity": f"Q{j}"}]
    return {"tokens": tokens, "mentions": mentions}


def host_stage(base, data, steps, **changes):
    fit = {"batch_size": 20, "steps": steps, "buckets": 1, "log_every": 20, "checkpoint_every": 200}
    fit["optimizer"] = {"learning_rate": 0.01}
    return {"kind": "host", "task": "cloze", "base": str(base), "data": (str(data),), "fit": fit, **changes}


@pytest.fixture(scope="module")
def general(world, tmp_path_factory):
    """A masked language model that reads what stands before a slash, and general map-tuning through it."""
    folder = tmp_path_factory.mktemp("general")
    words = write_records(folder / "words.jsonl", [spelled(i, (i * 7 + k) % 60) for k in (1, 2, 3) for i in range(60)])
    data = write_records(folder / "data.jsonl", pairs(1, 4))
    dev = write_records(folder / "dev.jsonl", pairs(5, 6))
    reader = host_stage(world / "raw_host", words, 120, task="mention_masked_lm")
    fit = {"batch_size": 40, "steps": 60, "log_every": 20, "checkpoint_every": 60, "evaluate_every": 20, "buckets": 1}
    stage = {"task": "mention_masked_lm", "host": "@reader", "data": (str(data),)}
    general = plugin_stage(world, **stage, dev_data=(str(dev),), fit=fit | {"optimizer": {"learning_rate": 0.05}})
    table = evaluate_stage(world, {"plugin": "@general"}, task="mention_masked_lm", host="@reader")
    table["domains"]["cities"] |= {"data": (str(dev),), "reference_data": ()}
    stages = {"reader": reader, "general": general, "table": table}
    results = run_experiment({"seed": 0, "stages": stages}, folder / "run")
    return folder / "run", results


def test_general_map_tuning_lowers_the_held_out_loss(general):
    workdir, results = general
    rows = results["table"]["cities"]
    assert rows["plugin"] > rows["host"] + 1  # negative losses, in nats a piece
    assert rows["plugin"] > rows["shuffled"] + 0.3, "it is not the knowledge that lowers it"
    assert results["general"]["dev_negative_loss"] == pytest.approx(rows["plugin"], rel=1e-5)
    lines = [line["dev_loss"] for line in metrics_of(workdir, "general") if "dev_loss" in line]
    assert len(lines) == 3 and min(lines) == pytest.approx(-rows["plugin"], rel=1e-5), "the best evaluation's is kept"


def test_general_plug_and_play_accepts_the_plugin_through_the_hosts_lineage(world, general, tmp_path):
    """Tuned through one host, plugged into another that was fine-tuned from it, with no training of the plugin."""
    folder = general[0] / "general"
    before = contents(folder)
    stages = {
        "tuned": host_stage(general[0] / "reader", world / "train.jsonl", 20),
        "table": evaluate_stage(world, {"plugin": str(folder)}, host="@tuned"),
    }
    results = run_experiment({"stages": stages}, tmp_path / "run")
    reader, tuned = open_host(general[0] / "reader"), open_host(tmp_path / "run" / "tuned")
    assert tuned.identity.lineage[1:] == reader.identity.lineage
    assert load_plugin(folder).manifest["host"]["encoder_fingerprint"] == reader.identity.encoder_fingerprint
    assert 0 <= results["table"]["cities"]["plugin"] <= 1
    assert contents(folder) == before
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["tuned"]
    assert {line["stage"] for line in map(json.loads, (tmp_path / "run" / "metrics.jsonl").open())} == {"tuned"}
    with pytest.raises(InputError, match="nor one that it was made from"):  # a sibling: raw -> reader, raw -> host
        load_plugin(folder, host=open_host(world / "host").identity)


@pytest.fixture(scope="module")
def raw_start(world, tmp_path_factory):
    """A plugin of the raw host, as it is drawn but for two tiny steps: something to start from."""
    folder = tmp_path_factory.mktemp("raw") / "run"
    stage = plugin_stage(world, host=str(world / "raw_host"), initialise="ridge_mention", fit=STILL)
    run_experiment({"seed": 7, "stages": {"raw": stage}}, folder)
    return folder / "raw"


STILL = {"steps": 2, "log_every": 2, "buckets": 1, "optimizer": {"name": "sgd", "learning_rate": 1e-12}}


def test_task_specific_map_tuning_starts_from_a_plugin_folder(world, raw_start, tmp_path):
    """Steps of a vanishing size show where it starts; a real run then learns the task."""
    stages = {
        "still": plugin_stage(world, initialise=str(raw_start), fit=STILL),
        "moving": plugin_stage(world, initialise=str(raw_start), fit={"steps": 80, "buckets": 1}),
        "table": evaluate_stage(world, {"plugin": "@moving", "start": "@still"}),
    }
    results = run_experiment({"stages": stages}, tmp_path / "run")
    given, found = load_plugin(raw_start).plugin.mapper, load_plugin(tmp_path / "run" / "still").plugin.mapper
    np.testing.assert_allclose(found.kernel[...], given.kernel[...], atol=1e-7)
    np.testing.assert_allclose(found.bias[...], given.bias[...], atol=1e-7)
    rows = results["table"]["cities"]
    assert rows["plugin"] >= 0.8 and rows["plugin"] > rows["start"] and rows["plugin"] > rows["host"]
    with pytest.raises(InputError, match="nor one that it was made from"):  # not the other way round
        load_plugin(tmp_path / "run" / "moving", host=open_host(world / "raw_host").identity)


def test_an_affine_start_fits_a_residual_mapper_and_not_the_other_way_round(raw_start, tmp_path):
    stored = load_plugin(raw_start)
    residual = make_plugin({"name": "map_tuning", "mapper": "residual_mlp"}, hidden_size=16, knowledge_dim=8, seed=3)
    take_over(residual, stored, "initialise")
    np.testing.assert_array_equal(residual.map(vectors()), stored.plugin.map(vectors()))
    affine = make_plugin({"name": "map_tuning"}, hidden_size=16, knowledge_dim=8, seed=3)
    with pytest.raises(InputError, match=r"initialise: .* a parameter down/kernel of shape .* this plugin has none"):
        take_over(affine, StoredPlugin(residual, stored.manifest, raw_start), "initialise")
    with pytest.raises(InputError, match="is a plugin of other, not of map_tuning"):
        take_over(affine, StoredPlugin(affine, {"method": "other"}, raw_start), "initialise")


@pytest.fixture(scope="module")
def with_mapper(world, raw_start, tmp_path_factory):
    """Fine-tuning with a frozen mapping network, from the raw host."""
    folder = tmp_path_factory.mktemp("with_mapper")
    before = contents(raw_start)
    plugged = {"plugin": str(raw_start), "knowledge": str(world / "knowledge")}
    table = evaluate_stage(world, {"plugin": str(raw_start)}, host="@tuned")
    tuned = host_stage(world / "raw_host", world / "train.jsonl", 150, **plugged)
    tuned["fit"]["optimizer"] = {"learning_rate": 0.003}  # with 0.01 the last digit of a step decides what is learned
    stages = {"tuned": tuned, "table": table}
    results = run_experiment({"seed": 1, "stages": stages}, folder / "run")
    assert contents(raw_start) == before, "the frozen plugin's folder was touched"
    return folder / "run", results


def test_fine_tuning_with_a_frozen_mapper_moves_the_host_alone(world, with_mapper):
    workdir, results = with_mapper
    raw, tuned = open_host(world / "raw_host"), open_host(workdir / "tuned")
    assert tuned.identity.encoder_fingerprint != raw.identity.encoder_fingerprint
    assert tuned.identity.lineage[1:] == raw.identity.lineage
    (line, *_) = (workdir / "checkpoints" / "tuned" / "last").iterdir()
    leaves = json.loads((line / "meta" / "metadata").read_text())["leaves"]
    assert any("host/encoder" in name for name in leaves) and not any("plugin" in name for name in leaves)
    rows = results["table"]["cities"]
    # unseen cities: only the vectors tell, and only the host could learn to read them
    assert rows["plugin"] >= 0.8 and rows["host"] <= 0.4 and rows["shuffled"] <= 0.4


def test_a_tuned_host_is_one_of_transformers(with_mapper):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    folder = with_mapper[0] / "tuned"
    model, report = transformers.BertForMaskedLM.from_pretrained(folder, output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    host = open_host(folder)
    examples = make_task("cloze").examples(parsed([question(1), question(2)]), host.encoder(None), None, buckets=1)
    batch = Feed(examples).batch(0, np.arange(2))
    ours = fast_jit(lambda batch: logits(host.loaded.host, batch))(as_device(batch))
    with torch.no_grad():
        theirs = model.eval()(
            input_ids=torch.tensor(batch["token_ids"]).long(), attention_mask=torch.tensor(batch["segment_ids"] > 0)
        ).logits.numpy()
    places = batch["positions"][:, 0]
    np.testing.assert_allclose(ours[:, 0], theirs[np.arange(2), places], rtol=1e-4, atol=1e-4)


def test_knowledge_without_a_plugin_and_a_plugin_without_its_knowledge_are_refused(world, tmp_path, raw_start):
    stage = host_stage(world / "raw_host", world / "train.jsonl", 2, knowledge=str(world / "knowledge"))
    with pytest.raises(InputError, match=r"stages\.host: .*plugin and knowledge go together"):
        run_experiment({"stages": {"host": stage}}, tmp_path / "run")
    stage = host_stage(world / "raw_host", world / "train.jsonl", 2, plugin=str(raw_start))
    with pytest.raises(InputError, match="it reads the knowledge base 'cities', and none is named"):
        run_experiment({"stages": {"host": stage}}, tmp_path / "run")


def described(i: int) -> dict:
    name = f"city{i}"
    mention = {"start": 0, "end": len(name), "entity": f"Q{i}"}
    return {"text": name, "mentions": [mention], "description": f"a place in land{i % 5} ."}


def test_description_matching_learns_what_vectors_tell(world, tmp_path):
    data = write_records(tmp_path / "data.jsonl", map(described, range(40)))
    dev = write_records(tmp_path / "dev.jsonl", map(described, [40, 41, 42, 43, 44]))
    fit = {"batch_size": 20, "steps": 80, "log_every": 20, "checkpoint_every": 80, "evaluate_every": 20, "buckets": 1}
    changes = {"task": "description_matching", "host": str(world / "raw_host"), "fit": fit}
    options = {"temperature": 0.2, "description_length": 12}
    stage = plugin_stage(world, **changes, data=(str(data),), dev_data=(str(dev),), task_options=options)
    table = evaluate_stage(
        world, {"plugin": "@matching"}, task="description_matching", task_options=options, host=str(world / "raw_host")
    )
    table["domains"]["cities"] |= {"data": (str(dev),), "reference_data": ()}
    results = run_experiment({"stages": {"matching": stage, "table": table}}, tmp_path / "run")
    losses = [line["dev_loss"] for line in metrics_of(tmp_path / "run", "matching") if "dev_loss" in line]
    assert losses[-1] < losses[0]
    rows = results["table"]["cities"]
    assert rows["plugin"] >= 0.8 > rows["host"], "five descriptions: the host alone cannot tell unseen names apart"
    assert rows["plugin"] > rows["shuffled"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mentions": []}, "test:1: it has 0 mentions"),
        ({"description": 3}, "test:1: field description is 3, not a text"),
    ],
)
def test_description_matching_names_the_bad_record(world, change, message):
    with pytest.raises(InputError, match=message):
        make_task("description_matching").examples(
            parsed([described(1) | change]), open_host(world / "raw_host").encoder(None), None
        )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"label": "faraway"}, "test:1: field label: 'faraway' is 2 pieces"),
        ({"label": "nowhere"}, "test:1: field label: the host's vocabulary cannot spell 'nowhere'"),
        ({"label": ["land1"]}, r"test:1: field label is \['land1'\], not a word"),
        ({"label": " "}, "test:1: field label is ' ', not a word"),
        ({"text": "city1 is in .", "mentions": []}, r"test:1: field text has 0 \[MASK\]"),
        ({"text": "city1 [MASK] [MASK]", "mentions": []}, r"test:1: field text has 2 \[MASK\]"),
    ],
)
def test_cloze_names_the_bad_record(world, change, message):
    with pytest.raises(InputError, match=message):
        make_task("cloze").examples(parsed([question(1) | change]), open_host(world / "host").encoder(None), None)


@pytest.fixture(scope="module")
def host(world):
    return open_host(world / "raw_host")


@pytest.fixture(scope="module")
def gaps(tmp_path_factory):
    """A knowledge base that has no vector of city3."""
    folder = write_knowledge(
        tmp_path_factory.mktemp("gaps") / "knowledge",
        name="gaps",
        ids=[f"Q{i}" for i in range(CITIES)],
        vectors=vectors(),
        has_vector=np.arange(CITIES) != 3,
        source="made up",
        license="none",
    )
    return KnowledgeBase.open(folder)


def masked(host, knowledge, values, max_length=None, **options):
    """Each example's tokens, and its labels by position, in the order in which the task makes them."""
    task = make_task("mention_masked_lm", **options)
    (bucket,) = task.examples(parsed(values), host.encoder(max_length), knowledge, buckets=1).buckets
    found = []
    for row in range(len(bucket["index"])):
        tokens = [VOCABULARY[i] for i in bucket["token_ids"][row]]
        asked = {
            int(place): VOCABULARY[label]
            for place, label, weight in zip(
                *(bucket[key][row] for key in ("positions", "labels", "weights")), strict=True
            )
            if weight
        }
        slots = {int(i): int(bucket["entity_ids"][row][s]) for i, s in enumerate(bucket["entity_slot"][row]) if s >= 0}
        found.append((" ".join(tokens), asked, slots))
    return found


def test_three_maskings_in_the_authors_order(host, gaps):
    both, tail, head = masked(host, gaps, [sentence(1, 2)])
    slots = {1: 1, 9: 2}
    frame = "[CLS] [UNK] / {} is in a place of [UNK] / {} . [SEP]"
    assert both == (frame.format("[MASK]", "[MASK]"), {3: "city1", 11: "city2"}, slots)
    assert tail == (frame.format("city1", "[MASK]"), {11: "city2"}, slots)
    assert head == (frame.format("[MASK]", "city2"), {3: "city1"}, slots)


def test_a_mention_of_several_pieces_is_masked_piece_by_piece(host, gaps):
    tokens = ["faraway", "is", "in", "city2", "."]
    mentions = [{"start": 0, "end": 1, "entity": "Q1"}]
    (one,) = masked(host, gaps, [{"tokens": tokens, "mentions": mentions}])
    assert one == ("[CLS] [UNK] / [MASK] [MASK] is in city2 . [SEP]", {3: "far", 4: "##away"}, {1: 1})


def test_a_mention_without_a_vector_is_masked_but_has_no_slot(host, gaps):
    both, tail, head = masked(host, gaps, [sentence(1, 3)])
    assert both[0] == "[CLS] [UNK] / [MASK] is in a place of [MASK] . [SEP]"
    assert both[1] == {3: "city1", 9: "city3"} and both[2] == {1: 1}
    assert tail[0] == "[CLS] [UNK] / city1 is in a place of [MASK] . [SEP]" and tail[1] == {9: "city3"}
    assert head[0] == "[CLS] [UNK] / [MASK] is in a place of city3 . [SEP]" and head[1] == {3: "city1"}


def test_a_sentence_without_vectors_is_skipped(host, gaps):
    found = masked(host, gaps, [sentence(3, 3), sentence(1, 2), {"text": "far", "mentions": []}])
    assert found == masked(host, gaps, [sentence(1, 2)])
    with pytest.raises(InputError, match="no sentence has a mention with a vector"):
        masked(host, gaps, [sentence(3, 3)])


def test_an_overlong_sentence_is_skipped_not_shortened(host, gaps):
    longer = {**sentence(1, 2), "tokens": [*sentence(1, 2)["tokens"], "far"]}
    size = len(masked(host, gaps, [sentence(1, 2)])[0][0].split())
    assert masked(host, gaps, [longer, sentence(4, 5)], max_length=size) == masked(host, gaps, [sentence(4, 5)])
    assert len(masked(host, gaps, [longer, sentence(4, 5)], max_length=size + 1)) == 6


def test_the_control_masks_the_same_pieces_of_the_same_sentences(host, gaps):
    values = [sentence(1, 3), sentence(3, 3), sentence(4, 5)]
    with_slots, without = masked(host, gaps, values), masked(host, gaps, values, slots=False)
    assert [list(one[1].values()) for one in with_slots] == [list(one[1].values()) for one in without]
    assert all(not one[2] and "/" not in one[0] for one in without)
    assert [one[0].replace("[UNK] / ", "").replace(" [PAD]", "") for one in with_slots] == [
        one[0].replace(" [PAD]", "") for one in without
    ]


def test_the_loss_is_plain_cross_entropy_over_the_masked_pieces(host, gaps):
    task = make_task("mention_masked_lm")
    tokens = ["faraway", "is", "in", "city2", "."]
    long = {"tokens": tokens, "mentions": [{"start": 0, "end": 1, "entity": "Q1"}]}
    records = parsed([sentence(1, 2), long, sentence(1, 3)])
    plugin = make_plugin({"name": "map_tuning"}, hidden_size=16, knowledge_dim=8, seed=1)
    feed = Feed(task.examples(records, host.encoder(None), gaps, buckets=2), gaps.gather)
    program, params = split_program(host.loaded.host, plugin, task)
    found, _ = evaluate(program, params, feed, 4)
    lost, right = [], []
    everywhere = fast_jit(lambda batch: logits(host.loaded.host, batch, plugin))
    for number, bucket in enumerate(feed.examples.buckets):
        batch = feed.batch(number, np.arange(len(bucket["index"])))
        length = batch["token_ids"].shape[1]
        rows = len(batch["token_ids"])
        whole = {**batch, "positions": np.tile(np.arange(length, dtype=np.int32), (rows, 1))}
        scores = np.asarray(everywhere({key: jnp.asarray(value) for key, value in whole.items()}), np.float64)
        labels = np.full((rows, length), -100)  # as torch marks what is not asked
        for row in range(rows):
            for place, label, weight in zip(
                *(batch[key][row] for key in ("positions", "labels", "weights")), strict=True
            ):
                if weight:
                    labels[row, place] = label
        asked = scores[labels != -100]
        wanted = labels[labels != -100]
        lost += (np.log(np.exp(asked).sum(-1)) - asked[np.arange(len(wanted)), wanted]).tolist()
        right += (asked.argmax(-1) == wanted).tolist()
    assert len(lost) == 4 + 2 + 4
    assert found["loss"] == pytest.approx(np.mean(lost), rel=1e-5)
    assert found["negative_loss"] == pytest.approx(-np.mean(lost), rel=1e-5)
    assert found["accuracy"] == pytest.approx(np.mean(right))


def test_unknown_tasks_and_options_are_one_line():
    with pytest.raises(InputError, match="no task 'clozee'; did you mean cloze"):
        make_task("clozee")
    with pytest.raises(InputError, match=r"the task mention_masked_lm refuses its options: .*'sloots'"):
        make_task("mention_masked_lm", sloots=True)


def test_a_task_that_says_several_is_refused_and_not_scored_as_if_answers_excluded_each_other():
    class Tags(Task):
        several = True

    with pytest.raises(ValueError, match=r"Tags\.several: the attribute is called multi_label now"):
        register_task("tags")(Tags)
    with pytest.raises(InputError, match="no task 'tags'"):
        make_task("tags")
