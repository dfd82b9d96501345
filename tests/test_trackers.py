"""What is logged is in metrics.jsonl always, and read back by TensorBoard's and Weights & Biases' own readers."""

import importlib.util
import json
import struct

import pytest
import wandb
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from test_cli import refused, write_config
from tiny_world import plugin_stage, run_experiment

from kinject.errors import InputError
from kinject.stages.experiment import Experiment
from kinject.training.metrics import MetricsFile, check_trackers

FIT = {"batch_size": 8, "steps": 8, "log_every": 4, "checkpoint_every": 4, "buckets": 1}


def scalars(folder):
    """{name: {step: value}} as TensorBoard shows it."""
    read = EventAccumulator(str(folder), purge_orphaned_data=True)
    read.Reload()
    return {name: {one.step: one.value for one in read.Scalars(name)} for name in read.Tags()["scalars"]}


def test_tensorboard_reads_what_was_logged_and_a_run_goes_on_without(world, tmp_path):
    stage = plugin_stage(world, fit=FIT | {"trackers": ("tensorboard",)})
    run_experiment({"stages": {"plugin": stage}}, tmp_path / "run")
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    found = scalars(tmp_path / "run" / "tensorboard" / "plugin")
    assert set(found) == {"loss", "gradient_norm"}
    for line in lines:
        assert found["loss"][line["step"]] == pytest.approx(line["loss"])
    assert len(found["loss"]) == len(lines) == 2
    without = {"stages": {"plugin": plugin_stage(world, fit=FIT)}}
    assert Experiment.open(without, tmp_path / "run", quiet=True).choose(None) == []


def test_steps_that_run_again_are_shown_once(tmp_path):
    """A killed run wrote beyond its checkpoint; the rerun's values count."""
    for after, values in ((0, {1: 0.5, 2: 0.4, 3: 0.3}), (1, {2: 0.25})):
        file = MetricsFile(tmp_path / "metrics.jsonl", trackers=("tensorboard",))
        file.rewind("plugin", after)
        for step, value in values.items():
            file.write("plugin", step, {"loss": value})
        file.close()
    assert scalars(tmp_path / "tensorboard" / "plugin")["loss"] == {1: 0.5, 2: 0.25}
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert {line["step"]: line["loss"] for line in lines} == {1: 0.5, 2: 0.25}


def test_weights_and_biases_keeps_what_was_logged_offline(tmp_path, monkeypatch):
    """The library itself, offline: its file is read by its own reader."""
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_CACHE_DIR", str(tmp_path / "cache"))
    for limit in ("WANDB__SERVICE_WAIT", "WANDB_INIT_TIMEOUT"):
        monkeypatch.setenv(limit, "1800")  # its service starts as fast as the machine lets it
    file = MetricsFile(tmp_path / "metrics.jsonl", trackers=("wandb",))
    file.rewind("plugin", 0)
    file.write("plugin", 4, {"loss": 0.5})
    file.write("plugin", 8, {"dev_accuracy": 0.75})
    file.close()
    wandb.teardown()  # its service has then written all
    (written,) = (tmp_path / "wandb").glob("offline-run-*/run-*.wandb")
    assert kept_lines(written) == [{"step": 4, "loss": 0.5}, {"step": 8, "dev_accuracy": 0.75}]


def kept_lines(path):
    """The history of a `.wandb` file: a log in LevelDB's format (7 bytes of header) of wandb's own messages."""
    from wandb.proto import wandb_internal_pb2

    data, place, found = path.read_bytes(), 7, []
    while place + 7 <= len(data):
        length, kind = struct.unpack_from("<HB", data, place + 4)
        assert kind == 1, "a record that is whole: the file is shorter than a block"
        record = wandb_internal_pb2.Record.FromString(data[place + 7 : place + 7 + length])
        place += 7 + length
        if record.WhichOneof("record_type") == "history":
            items = {one.key or "/".join(one.nested_key): json.loads(one.value_json) for one in record.history.item}
            found.append({name: value for name, value in items.items() if not name.startswith("_")})
    return found


def test_an_unknown_tracker_is_one_line_with_the_nearest(world, tmp_path, capsys):
    stage = plugin_stage(world, fit=FIT | {"trackers": ("tensorbord",)})
    path = write_config(tmp_path / "config.py", {"stages": {"plugin": stage}})
    line = refused(capsys, "--config", path, "--workdir", tmp_path / "run")
    assert "stages.plugin.fit.trackers.0" in line and "did you mean tensorboard?" in line


def test_a_missing_library_names_its_extra(monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr("kinject.training.metrics.find_spec", lambda name: None if name == "wandb" else find(name))
    check_trackers(("tensorboard",), "fit.trackers")
    with pytest.raises(InputError, match=r"fit\.trackers: wandb needs wandb; pip install 'kinject\[wandb\]'"):
        check_trackers(("tensorboard", "wandb"), "fit.trackers")
