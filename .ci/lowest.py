"""Prints the lowest version that setup.py allows of each dependency, as constraints for pip.

python .ci/lowest.py test > lowest.txt && pip install -c lowest.txt -e '.[test]'

Arguments are extras; the core is always among what is printed. A dependency without a lower bound is an error.
"""

import re
import sys
from pathlib import Path
from unittest import mock

ROOT = Path(__file__).resolve().parent.parent
NAME = re.compile(r"\s*([A-Za-z0-9._-]+)(?:\[[^\]]*\])?\s*([^;]*)")


def requirements(extras: list[str]) -> list[str]:
    """What setup.py gives to setuptools for the core and some extras."""
    path = ROOT / "setup.py"
    with mock.patch("setuptools.setup") as setup, mock.patch("setuptools.find_packages"):
        exec(compile(path.read_text(), path, "exec"), {"__file__": str(path), "__name__": "__main__"})
    given = setup.call_args.kwargs
    return [*given["install_requires"], *(one for extra in extras for one in given["extras_require"][extra])]


def lowest(requirement: str) -> str:
    """`name==version` for `name>=version,<other` or `name==version`."""
    name, bounds = NAME.fullmatch(requirement.partition(";")[0]).groups()
    for bound in bounds.split(","):
        operator, version = re.fullmatch(r"\s*([<>=!~]+)\s*(\S+)\s*", bound).groups()
        if operator in (">=", "=="):
            return f"{name}=={version}"
    raise ValueError(f"setup.py: {requirement} has no lower bound")


if __name__ == "__main__":
    print("\n".join(dict.fromkeys(lowest(one) for one in requirements(sys.argv[1:]))))
