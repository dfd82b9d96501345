"""The command line: every bad input is one line and exit code 2, and nothing that was there is changed."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from test_store import contents
from tiny_world import VOCABULARY, evaluate_stage, plugin_stage, question, write_base, write_records

from kinject.cli.train import main
from kinject.errors import EXIT_BAD_INPUT
from kinject.knowledge.base import write_knowledge
from kinject.stages.experiment import Experiment

FIT = {"batch_size": 8, "steps": 8, "log_every": 4, "checkpoint_every": 4, "buckets": 1}


def write_config(path: Path, config: dict) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"def get_config(arg=''):\n    return {config!r}\n")
    return path


def refused(capsys, *arguments) -> str:
    """The one line that a refused command leaves on standard error."""
    capsys.readouterr()
    code = main([str(argument) for argument in arguments])
    error = capsys.readouterr().err
    assert code == EXIT_BAD_INPUT, f"exit code {code}"
    assert error.startswith("kinject: ") and error.count("\n") == 1 and error.endswith("\n"), error
    return error.strip()


def run_command(*arguments, **options) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "kinject.train", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=1800, **options)


@pytest.fixture(scope="module")
def config(world):
    return {
        "name": "tiny",
        "seed": 0,
        "stages": {"plugin": plugin_stage(world, fit=FIT), "table": evaluate_stage(world, {"plugin": "@plugin"})},
    }


@pytest.fixture(scope="module")
def done(config, tmp_path_factory):
    """A config file and the workdir of its finished run, made by a real command; copied before it is changed."""
    folder = tmp_path_factory.mktemp("cli")
    path = write_config(folder / "config.py", config)
    ran = run_command("--config", path, "--workdir", folder / "run", "--devices", 1)
    assert ran.returncode == 0, ran.stderr
    assert ran.stderr == "", "a run that goes well says nothing on standard error"
    return path, folder / "run", ran.stdout


def test_what_a_run_says(done):
    path, workdir, output = done
    for part in ("144 trained", "plugin/mapper/kernel", "host alone (no plugin)", "host + plugin", "in stages (plugin"):
        assert part in output
    assert f"command: python -m kinject.train --config {path} --workdir {workdir}" in output
    assert f"workdir: {workdir}" in output


def test_what_a_run_leaves(done, config):
    _, workdir, _ = done
    names = {path.name for path in workdir.iterdir()} - {".lock"}
    written = {"config.json", "results.json", "metrics.jsonl", "results.md", "results.png", "results.svg"}
    written |= {"provenance.jsonl", "report.html", "checkpoints", "plugin"}
    assert names == written
    results = json.loads((workdir / "results.json").read_text())
    assert set(results) == {"plugin", "table", "seconds"} and set(results["seconds"]) == {"plugin", "table", "total"}
    assert results["plugin"]["steps"] == 8 and results["plugin"]["examples"] == 40
    assert 0 <= results["table"]["cities"]["plugin"] <= 1 and results["table"]["cities"]["n"] == 10
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    assert [set(line) for line in lines] == [{"stage", "step", "loss", "gradient_norm"}] * 2
    assert [(line["stage"], line["step"]) for line in lines] == [("plugin", 4), ("plugin", 8)]
    kept = json.loads((workdir / "config.json").read_text())
    assert (kept["name"], kept["seed"], list(kept["stages"])) == ("tiny", 0, ["plugin", "table"])
    assert kept["stages"]["plugin"]["fit"]["batch_size"] == 8 and kept["stages"]["plugin"]["initialise"] == "random"
    assert kept["stages"]["plugin"]["data"] == list(config["stages"]["plugin"]["data"])
    report = (workdir / "results.md").read_text()
    assert report.startswith("# tiny\n") and "| host + plugin |" in report and "--config" in report


def test_the_kept_config_is_a_config(done, tmp_path):
    """`config.json` read back is the same config: a run can be repeated from its workdir alone."""
    kept = json.loads((done[1] / "config.json").read_text())
    again = Experiment.open(kept, done[1], quiet=True)
    assert json.loads(json.dumps(again.config)) == kept


def test_a_done_run_only_reports(done, capsys):
    path, workdir, _ = done
    before = contents(workdir)
    assert main(["--config", str(path), "--workdir", str(workdir), "--devices", "1"]) == 0
    output = capsys.readouterr().out
    assert f"done already in {workdir}: plugin, table" in output and "host + plugin" in output
    assert "trained" not in output
    changed = {name for name, digest in contents(workdir).items() if before[name] != digest}
    assert changed <= {"results.md", "results.png", "results.svg", "report.html"}


def test_help_teaches(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["--help"])
    output = capsys.readouterr().out
    assert stop.value.code == 0
    for part in ("examples:", "configs/quickstart.py --workdir", "--config.a.b=VALUE", "--stage NAME", "resumes a run"):
        assert part in output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config.stages.plugin.fit.optimiser={}"], "fit.optimiser: unknown key optimiser; did you mean optimizer?"),
        (["--config.stages.plugin.fit.optimizer.learning_rat=1"], "learning_rat; did you mean learning_rate?"),
        (
            ["--config.stages.plugin.knowlege=x"],
            "plugin.knowlege: unknown key knowlege; did you mean knowledge?",
        ),
        (["--config.stages.table.domains.cities.dat=1"], "domains.cities.dat: unknown key dat; did you mean data?"),
        (["--config.sed=1"], "config.sed: unknown key sed; did you mean seed?"),
        (["--config.stages.plugni.seed=1"], "stages has no entry 'plugni'; did you mean plugin?"),
        (["--config.seed.x=1"], "--config.seed.x: seed is a value, not a section"),
        (["--config.seed"], "--config.seed: it has no value; write --config.seed=VALUE"),
        (["--config.seed", "1"], "1: unknown argument; write --config.seed=1"),
        (["--config.seed=-1"], "config.seed: it must be a whole number from 0, got -1"),
        (["--config.seed=True"], "config.seed: it must be a whole number from 0, got True"),
        (["--config.stages.plugin.fit.steps=many"], "fit.steps: input should be a valid integer"),
        (["--config.stages.plugin.fit.epochs=3"], "stages.plugin.fit: give either epochs or steps"),
        (["--config.stages.plugin.data=x.jsonl"], "stages.plugin.data: input should be a valid tuple"),
        (["--config.stages.plugin.data=()"], "stages.plugin.data: tuple should have at least 1 item"),
        (["--config.stages.plugin.train=(('plugin/.*','tune'),)"], "the label 'tune'; labels are 'train' and 'freeze'"),
        (
            ["--config.stages.plugin.train=(('plugni/.*','train'),('.*','freeze'))"],
            "no parameter; paths look like plugin/",
        ),
        (["--config.stages.plugin.kind=plugni"], "stages.plugin.kind: unknown kind 'plugni'; did you mean plugin?"),
        (["--config.stages.plugin.kind=[]"], "stages.plugin.kind: unknown kind []"),
        (["--config.stages.plugin.task=cloz"], "stages.plugin.task: there is no task 'cloz'; did you mean cloze?"),
        (["--config.stages.table.task=cloz"], "stages.table.task: there is no task 'cloz'; did you mean cloze?"),
        (["--config.stages.plugin.task_options={'x':1}"], "stages.plugin.task: the task cloze refuses its options"),
        (["--config.stages.plugin.method={'name':'map_tunin'}"], "method.name: there is no plugin called"),
        (
            ["--config.stages.plugin.method={'name':'map_tuning','mapper':'x'}"],
            "method.mapper: input should be",
        ),
        (["--config.stages.plugin.method={}"], "stages.plugin.method.name: it is missing"),
        (["--config.stages.plugin.initialise=ridge_lable"], "unknown start 'ridge_lable'; did you mean ridge_label?"),
        (["--config.stages.plugin.initialise=nowhere"], "stages.plugin.initialise: there is no nowhere"),
        (["--config.stages.plugin.data=('nowhere.jsonl',)"], "stages.plugin.data: there is no nowhere.jsonl"),
        (["--config.stages.plugin.host=./nowhere"], "stages.plugin.host: there is no nowhere"),
        (["--config.stages.plugin.host=no where"], "no where: there is no such folder; give a folder with config.json"),
        (["--config.stages.plugin.knowledge=nowhere"], "stages.plugin.knowledge: there is no nowhere"),
        (["--config.stages.plugin.knowledge=@tabel"], "@tabel names no stage; did you mean table?"),
        (
            ["--config.stages.table.domains.cities.plugins={'p':'@nobody'}"],
            "cities.plugins.p: @nobody names no stage",
        ),
        (["--config.stages.table.domains.cities.data=('nowhere',)"], "domains.cities.data: there is no nowhere"),
        (["--config.stages={}"], "config.stages: there is no stage"),
        (["--config.stages.total={'kind':'plugin'}"], "stages.total: it cannot be a stage's name"),
        (["--stage", "plugni"], "--stage plugni: the config has no such stage; did you mean plugin?"),
        (["--stage", "table"], "the stage plugin has not run yet; run it first: --stage plugin"),
        (["--plugin", "x"], "--plugin: unknown argument; see --help"),
        (["--quie"], "--quie: unknown argument; see --help"),
        (["--devices", "99"], "devices: 99 asked for, there are"),
        (["--devices", "0"], "argument --devices: 0 is not from 1 to 4096; see --help"),
        (["--devices", "two"], "argument --devices: 'two' is no whole number; see --help"),
    ],
    ids=lambda value: value[0][-40:] if isinstance(value, list) else "",
)
def test_bad_arguments(config, tmp_path, capsys, arguments, message):
    path = write_config(tmp_path / "config.py", config)
    line = refused(capsys, "--config", path, "--workdir", tmp_path / "run", "--quiet", *arguments)
    assert message in line
    left = {path.name for path in (tmp_path / "run").iterdir()} if (tmp_path / "run").exists() else set()
    assert left <= {"config.json", ".lock"}, "a refused command began to write"


def test_missing_arguments(tmp_path, capsys):
    assert "the following arguments are required: --workdir" in refused(capsys, "--config", "x.py")
    assert "expected one argument; see --help" in refused(capsys, "--config", "x.py", "--workdir")
    line = refused(capsys, "--config", tmp_path / "x.py", "--workdir", tmp_path)
    assert f"there is no file {tmp_path / 'x.py'}" in line


@pytest.mark.parametrize(
    ("text", "argument", "message"),
    [
        ("x = 1", "", "config.py: it has no get_config() function"),
        ("def get_config():\n  return {\n", "", "not valid Python"),
        ("import json\n\nmissing.name", "", "config.py:3: NameError: name 'missing' is not defined"),
        ("import nowhere_at_all", "", "config.py:1: ModuleNotFoundError: No module named 'nowhere_at_all'"),
        ("def get_config():\n  return None", "", "get_config() returned NoneType, not a dict"),
        ("def get_config():\n  return {}", ":small", "takes 0 positional arguments but 1 was given"),
        ("def get_config(arg):\n  return {'a': 1}[arg]", ":small", "config.py:2: KeyError: 'small'"),
        ("def get_config(arg):\n  raise ValueError('only big')", ":small", "only big"),
    ],
)
def test_bad_config_files(tmp_path, capsys, text, argument, message):
    (tmp_path / "config.py").write_text(text)
    line = refused(capsys, "--config", f"{tmp_path / 'config.py'}{argument}", "--workdir", tmp_path / "run")
    assert message in line and str(tmp_path / "config.py") in line
    assert not (tmp_path / "run").exists()


GOOD = json.dumps(question(1))
FAR = json.dumps(question(1) | {"mentions": [{"start": 0, "end": 99, "entity": "Q1"}]})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (f"{GOOD}\n{GOOD[:-9]}\n", "data.jsonl:2: not JSON"),
        (f"{GOOD}\n\n{FAR}\n", "data.jsonl:3: mentions[0]: start 0, end 99 in a text of 20 characters"),
        (f"{GOOD}\n[]\n", "data.jsonl:2: expected a JSON object"),
        ('{"text": "far [MASK]"}\n', "data.jsonl:1: field 'label' is missing"),
        ("", "data.jsonl: there is no record in it"),
        ("\n \n", "data.jsonl: there is no record in it"),
        (json.dumps(question(1) | {"label": "faraway"}), "data.jsonl:1: field label: 'faraway' is 2 pieces"),
        (json.dumps(question(1) | {"label": "xyz"}), "data.jsonl:1: field label: the host's vocabulary cannot spell"),
        (json.dumps(question(1) | {"label": ["land1"]}), "data.jsonl:1: field label is ['land1'], not a word"),
        (GOOD.replace("[MASK]", "land1"), "data.jsonl:1: field text has 0 [MASK]"),
    ],
)
def test_bad_data_names_file_and_line_and_can_be_mended(config, tmp_path, capsys, text, message):
    (tmp_path / "data.jsonl").write_text(text)
    path = write_config(tmp_path / "config.py", config)
    override = f"--config.stages.plugin.data=({str(tmp_path / 'data.jsonl')!r},)"
    line = refused(capsys, "--config", path, "--workdir", tmp_path / "run", "--quiet", override)
    assert message in line and str(tmp_path / "data.jsonl") in line
    assert {path.name for path in (tmp_path / "run").iterdir()} == {"config.json", ".lock"}
    # nothing was made, so the same workdir serves once the config is mended
    assert Experiment.open(config, tmp_path / "run", quiet=True).config["name"] == "tiny"


def cut(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:1000])


def other_shape(folder):
    tensors = load_file(folder / "model.safetensors")
    name = next(name for name in tensors if name.endswith("word_embeddings.weight"))
    save_file({**tensors, name: np.ascontiguousarray(tensors[name][:, :8])}, folder / "model.safetensors")


def other_weights(folder):
    tensors = load_file(folder / "model.safetensors")
    name = next(name for name in tensors if name.endswith("word_embeddings.weight"))
    save_file({**tensors, name: tensors[name] + 1}, folder / "model.safetensors")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (cut, "model.safetensors: is truncated or no safetensors file"),
        (other_shape, f"has shape [{len(VOCABULARY)}, 8], and config.json says [{len(VOCABULARY)}, 16]"),
        (other_weights, "host.json: encoder_fingerprint is"),
        (lambda folder: (folder / "config.json").unlink(), "config.json: is missing"),
        (lambda folder: (folder / "vocab.txt").unlink(), "vocab.txt: it is missing; the folder is damaged"),
    ],
)
def test_bad_hosts(world, config, tmp_path, capsys, change, message):
    change(shutil.copytree(world / "host", tmp_path / "host"))
    path = write_config(tmp_path / "config.py", config)
    override = f"--config.stages.plugin.host={tmp_path / 'host'}"
    line = refused(capsys, "--config", path, "--workdir", tmp_path / "run", "--quiet", override)
    assert message in line and str(tmp_path / "host") in line


def wider_base(folder):
    draw = np.random.default_rng(0).normal(size=(60, 9)).astype(np.float32)
    ids = [f"Q{i}" for i in range(60)]
    return write_knowledge(folder, name="wide", ids=ids, vectors=draw, source="made up", license="none")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (wider_base, "knowledge_dim is 8, the knowledge base has 9"),
        (lambda folder: write_base(folder, seed=1), "it was trained on the knowledge base 'cities'"),
    ],
)
def test_a_knowledge_base_of_another_space(world, done, tmp_path, capsys, make, message):
    make(tmp_path / "knowledge")
    stage = evaluate_stage(world, {"plugin": str(done[1] / "plugin")})
    stage["domains"]["cities"]["knowledge"] = str(tmp_path / "knowledge")
    path = write_config(tmp_path / "config.py", {"stages": {"table": stage}})
    line = refused(capsys, "--config", path, "--workdir", tmp_path / "run", "--quiet")
    assert message in line and "plugin.json" in line


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("--config.seed=1", "config.seed was 0 and is 1"),
        ("--config.stages.plugin.fit.steps=9", "config.stages.plugin.fit.steps was 8 and is 9"),
        (
            "--config.stages.more={'kind':'evaluate','host':'@plugin','task':'cloze','domains':{}}",
            "more is only in the new",
        ),
    ],
)
def test_a_workdir_of_another_config_is_left_alone(done, tmp_path, capsys, override, message):
    workdir = shutil.copytree(done[1], tmp_path / "run")
    before = contents(workdir)
    line = refused(capsys, "--config", done[0], "--workdir", workdir, override)
    assert message in line and "choose another --workdir" in line
    assert contents(workdir) == before


def test_a_workdir_of_something_else_is_left_alone(config, tmp_path, capsys):
    path = write_config(tmp_path / "config.py", config)
    (tmp_path / "run" / "plugin").mkdir(parents=True)
    (tmp_path / "run" / "plugin" / "thesis.txt").write_text("years of work")
    before = contents(tmp_path / "run")
    line = refused(capsys, "--config", path, "--workdir", tmp_path / "run", "--quiet")
    assert "run/plugin: it is there, but not of a run of kinject; choose another --workdir" in line
    assert contents(tmp_path / "run") == before
    file = tmp_path / "file"
    file.write_text("a file")
    assert "it is a file" in refused(capsys, "--config", path, "--workdir", file, "--quiet")
    assert "it cannot be written" in refused(capsys, "--config", path, "--workdir", file / "run", "--quiet")
    assert file.read_text() == "a file"


@pytest.mark.parametrize("name", ["config.json", "results.json"])
def test_a_damaged_workdir_is_left_alone(done, tmp_path, capsys, name):
    workdir = shutil.copytree(done[1], tmp_path / "run")
    (workdir / name).write_text("{")
    before = contents(workdir)
    assert f"{workdir / name}: it is not JSON" in refused(capsys, "--config", done[0], "--workdir", workdir)
    assert contents(workdir) == before


def test_two_runs_do_not_share_a_workdir(done, config, tmp_path, capsys):
    workdir = shutil.copytree(done[1], tmp_path / "run")
    with Experiment.open(config, workdir, quiet=True):
        before = contents(workdir)
        line = refused(capsys, "--config", done[0], "--workdir", workdir)
        other = run_command("--config", done[0], "--workdir", workdir)
        assert contents(workdir) == before
    assert line == f"kinject: {workdir}: another run is using this workdir; wait, or choose another"
    assert (other.returncode, other.stderr.strip()) == (EXIT_BAD_INPUT, line)
    assert main(["--config", str(done[0]), "--workdir", str(workdir), "--quiet"]) == 0  # it is free again


def test_a_damaged_plugin_is_one_line_of_a_real_command_too(world, done, tmp_path):
    """Orbax, absl and asyncio have things to say of a damaged folder; none of them reaches the user."""
    folder = shutil.copytree(done[1] / "plugin", tmp_path / "plugin")
    (victim,) = (folder / "params" / "d").iterdir()
    victim.write_bytes(victim.read_bytes()[:100])
    path = write_config(tmp_path / "config.py", {"stages": {"table": evaluate_stage(world, {"plugin": str(folder)})}})
    ran = run_command("--config", path, "--workdir", tmp_path / "run", "--quiet")
    assert ran.returncode == EXIT_BAD_INPUT
    assert ran.stderr.count("\n") == 1 and "Traceback" not in ran.stderr, ran.stderr
    assert f"kinject: {victim}: its content is not what plugin.json was written for" in ran.stderr


def test_a_malformed_line_is_one_line_of_a_real_command_too(config, tmp_path):
    data = write_records(tmp_path / "data.jsonl", [question(1)])
    data.write_text(data.read_text() + '{"text": \n')
    path = write_config(tmp_path / "config.py", config)
    override = f"--config.stages.plugin.data=({str(data)!r},)"
    ran = run_command("--config", path, "--workdir", tmp_path / "run", override)
    assert (ran.returncode, ran.stderr.count("\n")) == (EXIT_BAD_INPUT, 1), ran.stderr
    assert ran.stderr.startswith(f"kinject: {data}:2: not JSON")


def test_two_tables_keep_their_own_files(world, done, tmp_path):
    stage = evaluate_stage(world, {"plugin": str(done[1] / "plugin")})
    path = write_config(tmp_path / "config.py", {"stages": {"one": stage, "two": stage}})
    assert main(["--config", str(path), "--workdir", str(tmp_path / "run"), "--quiet"]) == 0
    names = {path.name for path in (tmp_path / "run").iterdir()}
    assert {"results_one.md", "results_one.png", "results_two.md", "results_two.png"} <= names
    assert "results.md" not in names
