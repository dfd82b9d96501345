"""Wikipedia2Vec text files: word2vec's text format in which an entity is written `ENTITY/Title_With_Underscores`.

E-BERT fits its matrix on the words and applies it to the entities, so both can be imported.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from kinject.errors import InputError, did_you_mean
from kinject.knowledge.importers.spool import VectorSpool
from kinject.knowledge.importers.text_vectors import text_vectors
from kinject.knowledge.write import write_knowledge

PREFIX = "ENTITY/"
KEEP = ("entities", "words", "both")


def import_wikipedia2vec(folder_out: Path, *, vectors: Path, keep: str = "entities", **about: Any) -> Path:
    """Imports Wikipedia2Vec vectors.

    Args:
      folder_out: the knowledge base to write.
      vectors: the text file; gzipped if it ends in .gz.
      keep: "entities" (id = `Title_With_Underscores`), "words" (id = word), or "both" (entities keep `ENTITY/` in
        front of their id, as a word may be spelled like a title). Labels are titles with spaces, and words.
      about: name, source, license and the like, as in `write_knowledge`.

    Raises:
      InputError: naming file and line of what is wrong.
    """
    if keep not in KEEP:
        raise InputError("wikipedia2vec", f"keep is {keep!r}", did_you_mean(keep, KEEP))
    vectors = Path(vectors)
    labels: list[str] = []
    with VectorSpool(Path(folder_out)) as spool:
        for where, key, numbers in text_vectors(vectors, separator=" ", header=2):
            is_entity = key.startswith(PREFIX)
            if is_entity == (keep == "words") and keep != "both":
                continue
            title = key.removeprefix(PREFIX) if is_entity else key
            spool.add(where, key if keep == "both" else title, numbers)
            labels.append(title.replace("_", " ") if is_entity else title)
        ids, table, _ = spool.finish(vectors)
        return write_knowledge(folder_out, ids=ids, labels=labels, vectors=table, **about)
