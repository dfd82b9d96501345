"""Indexes that are made of a knowledge base once and kept beside it, in `<knowledge base>.<name>/`.

Each holds the hashes of the files that it was made of, and is made anew when those have changed. Revisions change none
of them: who reads an index looks at what a revision says as well.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from kinject.errors import InputError
from kinject.integrity import read_seal, refuse_special, tell_unsealed, write_seal
from kinject.knowledge.view import View

SOURCE_HASHES = "made_of.json"
log = logging.getLogger("kinject")


def derived_path(base: View, name: str) -> Path:
    """Where an index of a knowledge base is kept: `<knowledge base>.<name>`, beside it."""
    return base.folder.with_name(f"{base.folder.name}.{name}")


def ensure_derived(base: View, name: str, make: Callable[[Path], object], later: Sequence[str] = ()) -> Path:
    """The folder of an index, made first where there is none of the knowledge base as it is now.

    Args:
      base: the knowledge base.
      name: of the index.
      make: writes the index into an empty folder, which takes its place in one step when all is written.
      later: large files that the caller checks block by block when it reads them, by `read_seal`; all others are
        checked here, and an index that is damaged is made anew.

    Raises:
      OSError: the folder cannot be written.
    """
    folder = derived_path(base, name)
    if _is_current(folder, base, later):
        return folder
    partial = folder.with_name(f".{folder.name}.partial-{os.getpid()}")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    try:
        make(partial)
        (partial / SOURCE_HASHES).write_text(json.dumps(source_hashes(base.manifest)))
        write_seal(partial)
        shutil.rmtree(folder, ignore_errors=True)
        partial.replace(folder)
    except OSError:
        if not _is_current(folder, base, later):  # else another process was quicker, and made the same
            raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return folder


def source_hashes(manifest: Mapping[str, Any]) -> dict[str, str]:
    """The hashes of all files of a knowledge base, labels and triples included, by its manifest."""
    return {name: str(facts.get("sha256")) for name, facts in manifest["files"].items()}


def _is_current(folder: Path, base: View, later: Sequence[str]) -> bool:
    """Whether `folder` was made of the knowledge base as it is now, and is whole; a damaged one is named."""
    try:
        if not (folder / SOURCE_HASHES).is_file():
            return False
        if json.loads((folder / SOURCE_HASHES).read_text()) != source_hashes(base.manifest):
            return False
        refuse_special(folder)
        seal = read_seal(folder)
        if seal is None:
            tell_unsealed(folder, "its content")
        else:
            seal.verify(name for name in seal.files if name not in later)
    except (OSError, ValueError):
        return False
    except InputError as error:
        log.warning("%s; it is made anew", error)
        return False
    return True
