"""docs/your_own.md as a newcomer would follow it: its commands are run as they stand, on a small model for MiniLM."""

import io
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from own_files import COUNTRIES, FORMS, REQUESTS, SYLLABLES, TRADES
from tiny import random_host, tiny_config
from tiny_world import run_experiment

from kinject.cli import predict
from kinject.cli.main import main
from kinject.config import read_config
from kinject.errors import InputError
from kinject.models.saving import save_host
from kinject.stages.experiment import Experiment

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "your_own.md"
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "/", ".", "?", "from"]


def write_small_model(folder):
    """A random encoder that has a piece for every word of the files; names are made of syllables."""
    words = {word.strip(".?") for text in REQUESTS for word in text.split()} - {"{}"}
    cities = {city for _, both in COUNTRIES.values() for city in both}
    syllables = [piece for one in SYLLABLES for piece in (one.capitalize(), f"##{one}")]
    vocabulary = dict.fromkeys([*SPECIAL, *syllables, *sorted(words | cities | {*COUNTRIES, *TRADES, *FORMS})])
    tokenizer = folder.with_name("tokenizer")
    tokenizer.mkdir(parents=True)
    (tokenizer / "vocab.txt").write_text("\n".join(vocabulary) + "\n")
    (tokenizer / "tokenizer_config.json").write_text(json.dumps({"do_lower_case": False}))
    return save_host(
        random_host(tiny_config(vocab_size=len(vocabulary))),
        folder,
        tokenizer_files_from=tokenizer,
    )


def the_commands():
    (block,) = re.findall(r"<!-- run -->\n```bash\n(.*?)```", PAGE.read_text(), re.DOTALL)
    return block


@pytest.fixture(scope="module")
def followed(tmp_path_factory):
    """The folder in which the page was followed, and what was printed."""
    folder = tmp_path_factory.mktemp("newcomer")
    for name in ("configs", "tests"):
        (folder / name).symlink_to(ROOT / name)
    base = write_small_model(folder / "models" / "small")
    fits = ("host.base=" + str(base), "host.fit.epochs=30", "host.fit.optimizer.learning_rate=0.003")
    fits += ("host.fit.buckets=1", "plugin.fit.buckets=1")
    small = shlex.join(f"--config.stages.{one}" for one in (*fits, "plugin.fit.optimizer.learning_rate=0.03"))
    script = f"""set -e
        python() {{ "{sys.executable}" "$@"; }}
        kinject() {{ if [ $1 = train ]; then set -- "$@" {small}; fi; python -m kinject "$@"; }}\n"""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "utf-8"}
    done = subprocess.run(
        ["bash", "-c", script + the_commands()],
        **{"cwd": folder, "env": environment, "capture_output": True, "text": True, "timeout": 1800},
    )
    assert done.returncode == 0, done.stderr
    assert not done.stderr
    return folder, done.stdout


def test_it_is_short():
    assert len(the_commands().splitlines()) < 20


def test_what_a_newcomer_gets(followed):
    folder, printed = followed
    rows = json.loads((folder / "runs/own/results.json").read_text())["evaluate"]["own"]
    assert rows["n"] == 100 and rows["coverage"] == 1
    assert rows["plugin"] > rows["host"] + 0.2, "customers that neither was tuned on"
    assert rows["shuffled"] < rows["plugin"] - 0.2, "it is their vectors that do it"
    answers = [json.loads(line) for line in printed.splitlines() if line.startswith('{"labels"')]
    assert [one["entities"][0]["entity"] for one in answers] == ["C199", "C198", "C197"]
    assert all(one["labels"] != one["before"] for one in answers)


def test_a_customer_more_is_right_in_two_commands_and_so_is_a_changed_fact(followed, monkeypatch):
    """The page's commands, in this process; nothing of host and plugin changes."""
    folder, _ = followed
    monkeypatch.chdir(folder)
    kept = {path: path.read_bytes() for part in ("host", "plugin") for path in files(folder / "runs/own" / part)}
    answers = []
    for block in re.findall(r"<!-- run afterwards -->\n```bash\n(.*?)```", PAGE.read_text(), re.DOTALL):
        change, ask = block.splitlines()
        assert main(shlex.split(change)[1:]) == 0
        text, _, command = ask.partition(" | ")
        out = io.StringIO()
        arguments = predict.parse([*shlex.split(command)[2:], "--no-compilation-cache"])
        predict.run(arguments, io.BytesIO(shlex.split(text)[1].encode()), out)
        answers.append(json.loads(out.getvalue()))
    assert [one["labels"][0]["label"] for one in answers] == ["nordics", "benelux"]
    assert [[one["entity"], one["name"]] for one in answers[0]["entities"]] == [["C200", "Huparsol Works"]]
    assert {path: path.read_bytes() for path in kept} == kept


def files(folder):
    return [path for path in folder.rglob("*") if path.is_file()]


def test_the_host_may_be_a_classifier_that_transformers_wrote(followed, tmp_path):
    """Label names are then those of its config.json; there is no host stage, and no `host.jsonl` is needed."""
    folder, _ = followed
    host = shutil.copytree(folder / "runs/own/host", tmp_path / "classifier")
    for ours in ("host.json", "seal.json"):
        (host / ours).unlink()
    own = shutil.copytree(folder / "my", tmp_path / "my")
    (own / "host.jsonl").unlink()
    config = read_config(f"{ROOT / 'configs/own.py'}:{own},host={host}")
    del config["stages"]["evaluate"]
    config["stages"]["plugin"]["fit"] |= {"epochs": None, "steps": 2}
    assert run_experiment(config, tmp_path / "run")["plugin"]["steps"] == 2


@pytest.mark.parametrize(
    ("arg", "said"), [("my,hots=x", "unknown setting 'hots=x'"), ("none", "there is no none/host")]
)
def test_what_is_wrong_is_told_before_anything_runs(arg, said, tmp_path):
    with pytest.raises(InputError, match=said):
        Experiment.open(read_config(f"{ROOT / 'configs/own.py'}:{arg}"), tmp_path / "run", devices=1, quiet=True)
