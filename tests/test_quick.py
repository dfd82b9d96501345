"""`python -m pytest -m quick` runs something of every package of kinject."""

import ast
import pkgutil
from pathlib import Path

import pytest
from conftest import QUICK, QUICK_TESTS

import kinject

HERE = Path(__file__).parent
PACKAGES = {module.name for module in pkgutil.iter_modules(kinject.__path__) if module.ispkg}


def test_every_package_has_quick_tests():
    assert QUICK.keys() == {"kinject"} | PACKAGES, "name quick tests of a new package in tests/conftest.py"
    assert all(QUICK.values())


@pytest.mark.parametrize("package", QUICK)
def test_they_are_there_and_use_the_package(package):
    texts = []
    for test in QUICK[package]:
        name, _, function = test.partition("::")
        texts.append((HERE / name).read_text())
        functions = {one.name for one in ast.parse(texts[-1]).body if isinstance(one, ast.FunctionDef)}
        assert function in functions or (not function and functions), test
    used = "kinject" if package == "kinject" else f"kinject.{package}"
    assert any(used in text for text in texts), f"no quick test of {package} imports it"


def test_they_are_marked(request):
    marked = {item.path.name for item in request.session.items if item.get_closest_marker("quick")}
    assert Path(__file__).name in marked and marked <= {test.partition("::")[0] for test in QUICK_TESTS}
