"""What newcomers are told is so: files and links are there, the config is read, CI runs the README's command."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from kinject import __version__
from kinject.stages.experiment import read_stages

ROOT = Path(__file__).resolve().parents[1]
PAGES = ("CONTRIBUTING.md", "CHANGELOG.md")


@pytest.mark.parametrize("name", PAGES)
def test_what_a_page_names_is_there(name):
    text = (ROOT / name).read_text()
    links = re.findall(r"\]\((?!http)([^)#]+)(?:#[^)]*)?\)", text)
    files = re.findall(r"(?:kinject|tests|docs|configs|\.ci|\.github)/[\w./-]*\w\.\w+", text)
    assert links and files
    named = {path for path in [*links, *files] if "NAME" not in path and "test_X" not in path}
    missing = {path for path in named if not (ROOT / path).exists()}
    assert not missing


def test_anchors_are_headings():
    text = (ROOT / "CONTRIBUTING.md").read_text()
    anchors = re.findall(r"\]\((docs/[\w.]+)#([\w-]+)\)", text)
    assert anchors
    for page, anchor in anchors:
        headings = re.findall(r"(?m)^#+ (.+)$", (ROOT / page).read_text())
        assert anchor in {re.sub(r"[^\w -]", "", one).lower().replace(" ", "-") for one in headings}, (page, anchor)


def test_the_config_of_a_new_method_is_read():
    block = re.search(r"```python\n(.*?)```", (ROOT / "CONTRIBUTING.md").read_text(), re.DOTALL)[1]
    names = {}
    exec(re.sub(r"(?m)^   ", "", block).replace('"NAME"', '"kformer"'), names)
    stages = read_stages(names["get_config"]())
    assert list(stages) == ["mine", "control", "compare"]
    mine, control = (stages[name].model_dump(exclude={"method"}) for name in ("mine", "control"))
    assert mine == control, "a control is trained alike"


def test_the_changelog_tells_of_this_version():
    headings = re.findall(r"(?m)^## \[([^\]]+)\]", (ROOT / "CHANGELOG.md").read_text())
    assert headings[0] == "Unreleased" and __version__ in headings


def test_the_lowest_versions_are_listed():
    command = [sys.executable, ".ci/lowest.py", "test"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    assert len(listed) > 30 and len({one.partition("==")[0] for one in listed}) == len(listed)
    assert all(re.fullmatch(r"[\w.-]+==[\w.]+", one) for one in listed)


def test_ci_runs_the_checks_of_the_hooks():
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "tests.yml").read_text())
    (job,) = workflow["jobs"].values()
    assert any(step.get("run") == "bash .ci/run" for step in job["steps"])
    assert {one["dependencies"] for one in job["strategy"]["matrix"]["include"]} == {"lowest", "newest"}
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"][0]["hooks"]
    script = (ROOT / ".ci" / "run").read_text()
    assert [hook["id"] for hook in hooks] == ["ruff-check", "ruff-format", "mypy"]
    assert "ruff check ." in script and "ruff format --check ." in script
