"""The floors of docs/architecture.md: what imports what, type-only imports included."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import grimp
import numpy as np
import pytest
from scipy.sparse import csr_array
from scipy.sparse.csgraph import connected_components

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def imports():
    """Which modules of kinject each imports, by name."""
    graph = grimp.build_graph("kinject", cache_dir=None)
    return {name: graph.find_modules_directly_imported_by(name) for name in sorted(graph.modules)}


def circles(imports):
    """Groups of modules that import each other, directly or through others of the group."""
    names = sorted(imports)
    number = {name: at for at, name in enumerate(names)}
    pairs = np.array([(number[one], number[other]) for one in names for other in imports[one]]).reshape(-1, 2)
    edges = csr_array((np.ones(len(pairs)), (pairs[:, 0], pairs[:, 1])), shape=(len(names), len(names)))
    _, group = connected_components(edges, connection="strong")
    found = {}
    for name, label in zip(names, group.tolist(), strict=True):
        found.setdefault(label, []).append(name)
    return [one for one in found.values() if len(one) > 1]


def test_each_room_imports_only_those_below():
    command = Path(sys.executable).with_name("lint-imports")
    done = subprocess.run([command, "--no-cache"], cwd=ROOT, capture_output=True, text=True, timeout=1800)
    assert done.returncode == 0, done.stdout


def test_no_circle_is_larger_than_two_files(imports):
    assert [one for one in circles(imports) if len(one) > 2] == []


def test_a_circle_would_be_found():
    made = {"a": {"b"}, "b": {"c"}, "c": {"a", "d"}, "d": set(), "e": {"f"}, "f": {"e"}}
    assert circles(made) == [["a", "b", "c"], ["e", "f"]]


def test_the_picture_shows_every_room():
    picture = (ROOT / "docs" / "architecture.md").read_text().split("```")[1]
    rooms = {path.parent.name for path in (ROOT / "kinject").glob("*/__init__.py")}
    assert rooms == set(re.findall(r"[│(] (\w+)/ ", picture))


def test_one_class_has_a_name():
    """A task and the data set that it is measured on may share one; `Plugin` is public twice."""
    found = {}
    for path in (ROOT / "kinject").rglob("*.py"):
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.ClassDef):
                found.setdefault(node.name, []).append(path.parent.name)
    twice = {name: sorted(rooms) for name, rooms in found.items() if len(rooms) > 1}
    assert twice.pop("Plugin") == ["models", "serving"]
    assert {name: rooms for name, rooms in twice.items() if rooms != ["datasets", "tasks"]} == {}


def test_no_file_is_longer_than_one_idea():
    """Four hundred lines; a longer file holds a second idea."""
    lengths = {str(path): len(path.read_text().splitlines()) for path in (ROOT / "kinject").rglob("*.py")}
    assert {name: length for name, length in lengths.items() if length > 400} == {}
