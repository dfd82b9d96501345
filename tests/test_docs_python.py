"""docs/python.md runs as it stands, on a small random classifier; the commands of docs/jobs.md are there."""

import importlib
import json
import re
import shlex
from pathlib import Path

import jax
import numpy as np
import own_files
import pytest
from test_your_own import write_small_model
from tiny import random_host, tiny_config

from kinject.cli.main import VERBS, main
from kinject.errors import InputError
from kinject.models.pretrained import load_host
from kinject.models.saving import save_host
from kinject.plugins.store import load_plugin

DOCS = Path(__file__).resolve().parents[1] / "docs"


def test_the_example_from_a_table_to_a_saved_plugin(tmp_path, monkeypatch, capsys):
    (block,) = re.findall(r"<!-- run by .* -->\n```python\n(.*?)```", (DOCS / "python.md").read_text(), re.DOTALL)
    assert len([line for line in block.splitlines() if line.strip()]) <= 20
    own_files.write(tmp_path / "my")
    small = write_small_model(tmp_path / "small")
    desks = sorted({desk for desk, _ in own_files.COUNTRIES.values()})
    config = tiny_config(vocab_size=load_host(small).config.vocab_size)
    about = {"task": "sequence_classification", "labels": desks}
    made = random_host(config, "classification", len(desks))
    save_host(made, tmp_path / "my" / "classifier", tokenizer_files_from=small, host_json=about)
    monkeypatch.chdir(tmp_path)
    made = {}
    exec(compile(block, "python.md", "exec"), made)
    said = capsys.readouterr().out
    assert "knowledge: accuracy of 100 answers, 100.0% of the mentions have a vector" in said
    assert "host + plugin, wrong vectors" in said and "plugged in: knowledge (200 entities)" in said
    assert "entity='C" in said and (tmp_path / "my" / "plugin" / "plugin.json").is_file()
    (config,) = re.findall(r"<!-- the same -->\n```bash\n(.*?)```", (DOCS / "python.md").read_text(), re.DOTALL)
    monkeypatch.setattr("kinject.inference.xla.keep_compiled", lambda: None)
    for line in config.replace("\\\n", "").splitlines():
        as_on_the_page(line, capsys)
    theirs, rows = load_plugin(Path("runs/same/plugin")), json.loads(Path("runs/same/results.json").read_text())
    mine = jax.tree.leaves(load_plugin(Path("my/plugin")).plugin)
    assert all(map(np.array_equal, mine, jax.tree.leaves(theirs.plugin))), "the same bits"
    found = made["plugin"].evaluate(made["host"], made["base"], made["test"]).rows
    assert {name: rows["evaluate"]["own"][name] for name in found} == found and found["n"] == 100


def as_on_the_page(line, capsys):
    """`kinject link … > FILE` or `kinject train …`, and `sed -n A,Bp FILE > FILE`, in this process."""
    words = shlex.split(line)
    if words[0] == "sed":
        first, last = map(int, words[2].removesuffix("p").split(","))
        lines = Path(words[3]).read_text().splitlines(keepends=True)
        Path(words[5]).write_text("".join(lines[first - 1 : last]))
        return
    target = words.pop() if ">" in words else None
    one = ["--devices", "1"] if words[1] == "train" else []  # tests have several, and a split batch rounds otherwise
    assert main([word for word in words[1:] if word != ">"] + one) == 0
    out = capsys.readouterr().out
    if target is not None:
        Path(target).write_text(out)


COMMANDS = [
    line
    for block in re.findall(r"```bash\n(.*?)```", (DOCS / "jobs.md").read_text(), re.DOTALL)
    for line in block.splitlines()
    if "kinject" in line
]


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_of_a_job_is_one_that_there_is(command):
    """Its verb parses its options: a misspelt or missing one would be refused."""
    name, verb, *words = shlex.split(re.split(r" [<>] ", command.rpartition(" | ")[2])[0])
    assert name == "kinject" and verb in VERBS
    module = importlib.import_module(VERBS[verb].module)
    assert module.parse(words) is not None
    with pytest.raises(InputError):
        module.parse([*words, "--no-such-option"])
