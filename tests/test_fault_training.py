"""Damaged checkpoints, latest or best, are named, passed over and trained again: the same bits come out."""

import json
import os
import shutil

import numpy as np
import pytest
from fault_world import edit_json, flip, plugin_params
from tiny_world import plugin_stage, run_experiment

from kinject.errors import InputError
from kinject.plugins.store import load_plugin
from kinject.training.checkpoint import meta_digest

FIT = {"batch_size": 8, "steps": 6, "log_every": 1, "checkpoint_every": 2, "buckets": 1, "evaluate_every": 2}


@pytest.fixture(scope="module")
def world(small_world):
    return small_world


@pytest.fixture(scope="module")
def config(world):
    stage = plugin_stage(world, dev_data=(str(world / "dev.jsonl"),), fit=FIT)
    return {"seed": 0, "stages": {"plugin": stage}}


@pytest.fixture(scope="module")
def whole(config, tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole") / "run"
    run_experiment(config, folder)
    return folder


def cut_short(whole, tmp_path):
    """The run as a kill just before its end leaves it."""
    run = shutil.copytree(whole, tmp_path / "run")
    shutil.rmtree(run / "plugin")
    (run / "results.json").unlink()
    return run


def damaged_best(run):
    for path in (run / "checkpoints/plugin/best").glob("*/state/_METADATA"):
        path.write_text("x")


def other_position(run):
    edit_json(run / "checkpoints/plugin/last/6/meta/metadata", lambda j: j["data"].update(next_index=2))


def other_position_unsealed(run):
    other_position(run)
    (run / "checkpoints/plugin/last/6/seal.json").unlink()


def special_file(run):
    path = run / "checkpoints/plugin/last/6/state/manifest.ocdbt"
    path.unlink()
    os.mkfifo(path)


def flipped(run):
    for path in (run / "checkpoints/plugin/last/6/state").glob("**/d/*"):
        flip(path, 40)


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (damaged_best, "is damaged; what made it is trained again"),
        (other_position, "skipping damaged checkpoint"),
        (other_position_unsealed, "its JSON does not have the digest"),
        (special_file, "it is no plain file"),
        (flipped, "its content is not what was sealed"),
    ],
)
def test_a_damaged_checkpoint_is_trained_again(config, whole, tmp_path, caplog, damage, says):
    run = cut_short(whole, tmp_path)
    damage(run)
    run_experiment(config, run)
    assert says in caplog.text
    assert (run / "metrics.jsonl").read_bytes() == (whole / "metrics.jsonl").read_bytes()
    trained, expected = (plugin_params(load_plugin(one / "plugin").plugin) for one in (run, whole))
    assert [np.asarray(one[...]).tobytes() for one in trained] == [np.asarray(one[...]).tobytes() for one in expected]


def test_numbers_that_are_not_finite_stop_a_training_and_keep_what_was_good(world, config, tmp_path):
    stage = plugin_stage(world, fit=FIT | {"optimizer": {"learning_rate": 3e38}})
    says = r"plugin, step \d: the loss is not finite \(nan\), on the training data's examples \d+, .*lower the learning"
    with pytest.raises(InputError, match=says):
        run_experiment({"seed": 0, "stages": {"plugin": stage}}, tmp_path / "run")
    assert not (tmp_path / "run" / "plugin").exists()
    lines = (tmp_path / "run" / "metrics.jsonl").read_text()
    assert "NaN" not in lines and "Infinity" not in lines


def content(path):
    return path.read_bytes() if path.is_file() else None


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda path: path.unlink(), "has not the lines that plugin wrote until step 6; copy it again; or take checkp"),
        (lambda path: path.write_text(""), "has not the lines that plugin wrote until step 6"),
        (lambda path: path.write_text("".join(path.read_text().splitlines(True)[1:])), "has not the lines that plugin"),
        (lambda path: path.write_bytes(path.read_bytes().replace(b'"loss": ', b'"loss": 1', 1)), "has not the lines"),
        (lambda path: path.write_text('{"step": 6, "digest": "of another file"}'), "has not the lines that plugin"),
        (lambda path: path.write_bytes(b"\xff" + path.read_bytes()), "is no text"),
        (lambda path: (path.unlink(), path.mkdir()), "metrics.jsonl: it is no plain file"),
        (lambda path: (path.unlink(), os.mkfifo(path)), "metrics.jsonl: it is no plain file"),
        (lambda path: (path.unlink(), path.symlink_to("metrics.jsonl")), "metrics.jsonl: it is no plain file"),
        (lambda path: path.write_text("{}\n" + path.read_text()), "metrics.jsonl:1: it is no line of metrics"),
    ],
)
def test_what_was_logged_is_held_to_what_the_checkpoint_knows_of_it(config, whole, tmp_path, damage, says):
    run = cut_short(whole, tmp_path)
    damage(run / "metrics.jsonl")
    before = content(run / "metrics.jsonl")
    with pytest.raises(InputError, match=says):
        run_experiment(config, run)
    assert content(run / "metrics.jsonl") == before


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (
            lambda path: path.write_text(path.read_text().replace('"seconds"', '"seconds', 1)),
            r"provenance.jsonl:1: it is not JSON",
        ),
        (lambda path: path.write_bytes(b"\xff" + path.read_bytes()), r"provenance.jsonl:1: it is not JSON"),
        (lambda path: path.write_text("[]\n" + path.read_text()), r"provenance.jsonl:1: it has no stage"),
        (lambda path: (path.unlink(), os.mkfifo(path)), "provenance.jsonl: it is no plain file"),
    ],
)
def test_a_damaged_record_of_how_stages_were_made_is_told_before_any_runs(config, whole, tmp_path, damage, says):
    run = cut_short(whole, tmp_path)
    damage(run / "provenance.jsonl")
    before = content(run / "provenance.jsonl")
    with pytest.raises(InputError, match=says):
        run_experiment(config, run)
    assert content(run / "provenance.jsonl") == before and not (run / "plugin").exists()


def test_lines_of_other_stages_and_checkpoints_that_know_nothing_of_them_are_left_as_they_are(config, whole, tmp_path):
    run = cut_short(whole, tmp_path)
    path, other = run / "metrics.jsonl", '{"stage": "other", "step": 9, "loss": 1.0}\n'
    path.write_text(other + path.read_text() + '{"stage": "plugin", "ste')  # which a kill tore
    run_experiment(config, run)
    assert path.read_text() == other + (whole / "metrics.jsonl").read_text()
    earlier = cut_short(whole, tmp_path / "earlier")
    for folder in (earlier / "checkpoints/plugin/last").iterdir():
        meta = json.loads((folder / "meta/metadata").read_text())
        del meta["logged"]
        (folder / "meta/metadata").write_text(json.dumps({**meta, "meta_digest": meta_digest(meta)}))
        (folder / "seal.json").unlink()
    (earlier / "metrics.jsonl").write_text(other)
    run_experiment(config, earlier)
    assert (earlier / "metrics.jsonl").read_text() == other
