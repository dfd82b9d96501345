"""Word vectors as text: word2vec and fastText (a first line with count and dimension) and GloVe (without one)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from kinject.knowledge.importers.spool import VectorSpool
from kinject.knowledge.importers.text_vectors import text_vectors
from kinject.knowledge.write import write_knowledge


def import_word2vec(folder_out: Path, *, vectors: Path, dim: int | None = None, **about: Any) -> Path:
    """Imports word vectors; a word is both id and label.

    Args:
      folder_out: the knowledge base to write.
      vectors: text, one word and its numbers a line, separated by spaces; gzipped if it ends in .gz.
      dim: numbers a line; needed only for a file without a first line of counts whose first word holds a space.
      about: name, source, license and the like, as in `write_knowledge`.

    Raises:
      InputError: naming file and line of what is wrong.
    """
    vectors = Path(vectors)
    with VectorSpool(Path(folder_out)) as spool:
        for where, word, numbers in text_vectors(vectors, separator=" ", header=2, dim=dim):
            spool.add(where, word, numbers)
        ids, table, _ = spool.finish(vectors)
        return write_knowledge(folder_out, ids=ids, labels=ids, vectors=table, **about)
