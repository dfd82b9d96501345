import json
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet
import pytest
from tiny_world import evaluate_stage, plugin_stage

from kinject.cli.sweep import main
from kinject.reports.results import FinishedSweep, run_folder

CONFIG = """
import json
def get_config(arg="24"):
    config = json.loads({text!r})
    config["stages"]["plugin"]["fit"]["steps"] = int(arg)
    return config
"""


@pytest.fixture(scope="module")
def config(world, tmp_path_factory):
    stages = {"plugin": plugin_stage(world), "evaluate": evaluate_stage(world, {"plugin": "@plugin"})}
    path = tmp_path_factory.mktemp("sweep") / "config.py"
    path.write_text(CONFIG.format(text=json.dumps({"stages": stages})))
    return path


def test_runs_gathers_and_resumes(config, tmp_path, capfd):
    arguments = ["--config", str(config), "--seeds", "0,1", "--workdir", str(tmp_path / "sweep")]
    assert main(arguments) == 0
    runs = {
        seed: json.loads((tmp_path / "sweep" / f"config-seed{seed}" / "results.json").read_text()) for seed in (0, 1)
    }
    rows = pyarrow.parquet.read_table(tmp_path / "sweep" / "results.parquet").to_pylist()
    (loss,) = [row for row in rows if row["measure"] == "plugin.loss"]
    losses = [runs[seed]["plugin"]["loss"] for seed in (0, 1)]
    assert losses[0] != losses[1]
    assert loss["mean"] == pytest.approx(sum(losses) / 2)
    assert loss["deviation"] == pytest.approx(abs(losses[0] - losses[1]) / 2**0.5)
    assert "evaluate.cities.plugin" in (tmp_path / "sweep" / "results.md").read_text()
    capfd.readouterr()
    assert main(arguments) == 0
    assert "done already" in capfd.readouterr().out


def test_published_numbers_stand_beside_ours(config, world, tmp_path):
    stages = {"plugin": plugin_stage(world), "evaluate": evaluate_stage(world, {"plugin": "@plugin"})}
    theirs = tmp_path / "theirs.py"
    published = {"evaluate.cities.plugin": 0.926}
    theirs.write_text(CONFIG.format(text=json.dumps({"stages": stages, "published": published})))
    arguments = ["--config", f"{theirs}:4", "--config", f"{config}:4", "--workdir", str(tmp_path / "sweep")]
    assert main(arguments) == 0
    rows = pyarrow.parquet.read_table(tmp_path / "sweep" / "results.parquet").to_pylist()
    found = {row["config"]: row["published"] for row in rows if row["measure"] == "evaluate.cities.plugin"}
    assert found == {f"{theirs}:4": 0.926, f"{config}:4": None}
    lines = (tmp_path / "sweep" / "results.md").read_text().splitlines()
    assert lines[0].endswith("| published |")
    assert sum(line.endswith("| 0.926 |") for line in lines) == 1
    assert {line.count("|") for line in lines} == {7}


def test_an_entry_is_varied_and_each_value_is_a_row(config, tmp_path, capsys):
    vary = ["--vary", "stages.plugin.initialise=zero,random", "--vary", "stages.plugin.fit.steps=8,4"]
    arguments = ["--config", str(config), "--workdir", str(tmp_path / "s"), *vary]
    assert main([*arguments, "--lines"]) == 0
    lines = [shlex.split(line) for line in capsys.readouterr().out.splitlines()]
    assert len(lines) == 4 and len({line[-1] for line in lines}) == 4, "a workdir each"
    assert all("--config.stages.plugin.initialise=zero" in line for line in lines[:2])
    changed = f"{config}:stages.plugin.initialise=zero,stages.plugin.fit.steps=4"
    run = run_folder(tmp_path / "s", changed, 0)
    assert run == Path(lines[1][-1])
    run.mkdir(parents=True)
    (run / "config.json").write_text('{"stages": {"evaluate": {"kind": "evaluate"}}}')
    (run / "results.json").write_text('{"evaluate": {"own": {"n": 9, "metric": "accuracy", "plugin": 0.5}}}')
    assert main([*arguments, "--gather"]) == 0
    found = FinishedSweep.open(tmp_path / "s")
    assert found.value(changed, "evaluate.own.plugin") == (0.5, 0) and list(found.runs[changed]) == [0]


def test_lines_for_a_scheduler_run_nothing(config, tmp_path, capsys):
    assert main(["--config", f"{config}:8", "--seeds", "3", "--workdir", str(tmp_path / "x"), "--lines"]) == 0
    words = shlex.split(capsys.readouterr().out)
    assert words[:5] == ["python", "-m", "kinject.train", "--config", f"{config}:8"]
    assert "--config.seed=3" in words and not (tmp_path / "x").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--seeds", "one"], "whole numbers"),
        (["--gather"], "no run is done"),
        (["--lime"], "unknown argument"),
        (["--config", "nowhere.py"], "there is no file nowhere.py"),
        (["--vary", "stages.plugn.initialise=zero,random"], "did you mean stages.plugin.initialise?"),
        (["--vary", "seed"], "it names no entry with different values"),
        (["--vary", "seed=1,1"], "it names no entry with different values"),
    ],
)
def test_bad_arguments_are_one_line(config, tmp_path, capsys, arguments, message):
    assert main(["--config", str(config), "--workdir", str(tmp_path / "none"), *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 75), (signal.SIGINT, 75), (signal.SIGKILL, -9)])
def test_a_sweep_that_is_told_to_stop_or_killed_leaves_no_run_behind(config, tmp_path, number, code):
    command = [sys.executable, "-m", "kinject.sweep", "--config", f"{config}:1000000", "--seeds", "0,1"]
    sweep = subprocess.Popen(
        [*command, "--workdir", str(tmp_path)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 120
    while not list(tmp_path.glob("*seed0/checkpoints/plugin")):
        assert sweep.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    (run,) = Path(f"/proc/{sweep.pid}/task/{sweep.pid}/children").read_text().split()
    sweep.send_signal(number)
    assert sweep.wait(60) == code
    while Path(f"/proc/{run}").exists() and "Z" not in Path(f"/proc/{run}/stat").read_text().rpartition(")")[2][:3]:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert not list(tmp_path.glob("*seed1"))
