"""PyTorch-BigGraph's TSV export: `entity<TAB>number<TAB>number…`.

The published Wikidata file starts with a line of three counts (entities, relations, dimension) and goes on with
relation parameters after the entities; those are left out.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from kinject.errors import InputError
from kinject.knowledge.importers.spool import VectorSpool
from kinject.knowledge.importers.text_vectors import text_vectors
from kinject.knowledge.write import write_knowledge


def import_biggraph(folder_out: Path, *, vectors: Path, pattern: str | None = None, **about: Any) -> Path:
    r"""Imports a PyTorch-BigGraph TSV export.

    Args:
      folder_out: the knowledge base to write.
      vectors: the TSV file; gzipped if it ends in .gz.
      pattern: regular expression; only entities it matches whole are kept, and its first group, where it has one, is
        the id: `<http://www\.wikidata\.org/entity/(Q\d+)>` keeps Wikidata's items as Q1, Q2, ….
      about: name, source, license and the like, as in `write_knowledge`.

    Raises:
      InputError: naming file and line of what is wrong.
    """
    vectors = Path(vectors)
    try:
        wanted = re.compile(pattern or "(.*)")
    except re.error as error:
        raise InputError("biggraph", f"pattern {pattern!r} is no regular expression: {error}") from None
    with VectorSpool(Path(folder_out)) as spool:
        for where, key, numbers in text_vectors(vectors, separator="\t", header=3, only_counted=True):
            match = wanted.fullmatch(key)
            if match:
                spool.add(where, match[1] if wanted.groups else key, numbers)
        ids, table, _ = spool.finish(vectors)
        return write_knowledge(folder_out, ids=ids, vectors=table, **about)
