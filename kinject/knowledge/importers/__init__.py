"""Importers: other people's embedding files into a knowledge base, one file a format."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from kinject.errors import InputError, did_you_mean
from kinject.knowledge.importers.arrays import import_npy, import_openke, import_pykeen, import_umls
from kinject.knowledge.importers.table import import_table
from kinject.knowledge.importers.text import import_biggraph, import_wikipedia2vec, import_word2vec
from kinject.knowledge.manifest import refuse_existing

__all__ = [
    "import_biggraph",
    "import_knowledge",
    "import_npy",
    "import_openke",
    "import_pykeen",
    "import_table",
    "import_umls",
    "import_wikipedia2vec",
    "import_word2vec",
]

IMPORTERS: dict[str, Callable[..., Path]] = {
    "biggraph": import_biggraph,
    "glove": import_word2vec,
    "npy": import_npy,
    "openke": import_openke,
    "pykeen": import_pykeen,
    "table": import_table,
    "umls": import_umls,
    "wikipedia2vec": import_wikipedia2vec,
    "word2vec": import_word2vec,
}
ABOUT = ("name", "source", "license", "dtype", "normalisation", "metrics")


def import_knowledge(format: str, folder_out: str | os.PathLike[str], **args: Any) -> Path:
    """Imports files of a format into a new knowledge base folder.

    Args:
      format: a key of `IMPORTERS`.
      folder_out: must not exist yet.
      args: the files and options of the format (see its importer), and any of `ABOUT` as in `write_knowledge`; the name
        is the folder's unless given.

    Returns:
      The folder.

    Raises:
      InputError: an unknown format or argument, a missing argument, or what the importer finds, by file and line.
    """
    if format not in IMPORTERS:
        raise InputError("import_knowledge", f"there is no format {format!r}", did_you_mean(format, IMPORTERS))
    importer = IMPORTERS[format]
    parameters = inspect.signature(importer).parameters.values()
    own = {one.name: one for one in parameters if one.kind is inspect.Parameter.KEYWORD_ONLY}
    for argument in args:
        if argument not in own and argument not in ABOUT:
            problem = f"format {format!r} takes no argument {argument!r}"
            raise InputError("import_knowledge", problem, did_you_mean(argument, [*own, *ABOUT]))
    for argument, parameter in own.items():
        if parameter.default is inspect.Parameter.empty and argument not in args:
            raise InputError("import_knowledge", f"format {format!r} needs the argument {argument!r}")
    folder = Path(folder_out)
    refuse_existing(folder)
    return importer(folder, **{"name": folder.name, **args})
