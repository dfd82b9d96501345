"""The command `kinject`: its verbs, its help, and what it says to one that there is not."""

import subprocess
import sys
from importlib.metadata import Distribution
from pathlib import Path

import pytest

from kinject.cli.main import VERBS, main
from kinject.errors import EXIT_BAD_INPUT

ROOT = Path(__file__).resolve().parents[1]


def run(*arguments, cwd=ROOT):
    command = [sys.executable, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=1800, cwd=cwd)


def test_help_names_every_verb_and_imports_nothing_heavy():
    code = (
        "import sys\nfrom kinject.cli.main import main\ncode = main(['--help'])\n"
        "print(code, [name for name in ('jax', 'numpy', 'torch', 'tensorflow', 'transformers') if name in sys.modules])"
    )
    done = run("-c", code)
    assert done.returncode == 0, done.stderr
    *lines, last = done.stdout.splitlines()
    assert last == "0 []"
    for name in VERBS:
        assert sum(line.startswith(f"  {name} ") for line in lines) == 1
    assert sum(line.startswith("  kinject ") for line in lines) == 2, "two examples"


def test_python_m_kinject_is_the_command():
    done = run("-m", "kinject")
    assert done.returncode == 0 and done.stdout.startswith("usage: kinject VERB")
    assert run("-m", "kinject", "--version").stdout.startswith("kinject 0.")


def test_an_unknown_verb_is_one_line_with_the_nearest(capsys):
    assert main(["evalute"]) == EXIT_BAD_INPUT
    told = capsys.readouterr()
    assert told.out == "" and told.err == "kinject: evalute: there is no such verb; did you mean evaluate?\n"


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_a_module_whose_main_tells_how_it_is_used(verb, capsys):
    with pytest.raises(SystemExit) as ended:
        main([verb, "--help"])
    assert ended.value.code == 0
    told = capsys.readouterr().out
    assert told.startswith("usage: ") and "example" in told


def test_a_verb_does_what_its_module_does_and_returns_its_code(capsys):
    assert main(["data", "list", "fewrel"]) == 0
    assert capsys.readouterr().out.startswith("fewrel: ")
    assert main(["train", "--config", "nowhere.py", "--workdir", "nowhere"]) == EXIT_BAD_INPUT
    assert "nowhere.py" in capsys.readouterr().err


def test_the_package_installs_the_command(tmp_path):
    done = run("setup.py", "-q", "egg_info", "--egg-base", tmp_path)
    assert done.returncode == 0, done.stderr
    (entry,) = Distribution.at(tmp_path / "kinject.egg-info").entry_points.select(group="console_scripts")
    assert entry.name == "kinject" and entry.load() is main
