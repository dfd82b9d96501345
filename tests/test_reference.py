"""The public API: docs/reference.md lists it, and every name is there."""

import importlib
import importlib.util
import pkgutil
import re
from pathlib import Path

import kinject

ROOT = Path(__file__).resolve().parents[1]


def load_hooks():
    specification = importlib.util.spec_from_file_location("docs_hooks", ROOT / "docs" / "hooks.py")
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


HOOKS = load_hooks()
PUBLIC = {f"{package}.{name}": made for package in HOOKS.PACKAGES for name, made in HOOKS.public(package)}


def test_the_page_is_what_the_packages_say():
    page = (ROOT / "docs" / "reference.md").read_text(encoding="utf-8")
    assert page == HOOKS.reference(), "write it anew: python docs/hooks.py"
    listed = set()
    for section in re.split(r"(?m)^## ", page)[1:]:
        package = section.splitlines()[0]
        module = importlib.import_module(package)
        names = re.findall(r"(?m)^\| `(\w+)` \| .+ \|$", section)
        assert sorted(names) == sorted(one for one in module.__all__ if not one.startswith("_")), package
        listed |= {f"{package}.{name}" for name in names}
        assert all(getattr(module, name) is not None for name in names)
    assert listed == set(PUBLIC)


def test_every_package_is_listed_or_private():
    packages = {one.name for one in pkgutil.walk_packages(kinject.__path__, "kinject.") if one.ispkg}
    private = {"kinject.data.sources", "kinject.demo"}
    assert packages - private == set(HOOKS.PACKAGES) - {"kinject"}
