"""Seals artefacts that have no seal, or that were changed on purpose: `kinject seal FOLDER…`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from kinject.cli.parser import Parser
from kinject.cli.verify import for_each, kind_of

EXAMPLES = """\
examples:
  kinject seal my/bert-base-uncased
  kinject seal runs/old/geography_plugin runs/old/geography/knowledge

Reads a host, knowledge base, plugin or passage memory strictly and whole, as kinject verify does but for the seal, and
writes seal.json: the size and hashes of every file. From then on whatever is changed, cut, added or removed is refused.
A seal that is there is written anew. Exit codes: 0 sealed, 2 something is wrong with it (nothing was changed).
"""


def seal(folder: Path) -> str:
    """Checks an artefact and seals it; returns a line about it. What is wrong leaves everything as it was.

    Raises:
      InputError: it cannot be read as what it is.
    """
    from kinject.integrity import SEAL, write_seal

    kind, path = kind_of(folder), folder / SEAL
    before = path.read_bytes() if path.is_file() else None
    hash = write_seal(folder, kind.outside)  # one replaces the other, so that a kill leaves one of them
    try:
        kind.read(folder)
    except BaseException:
        if before is None:
            path.unlink()
        else:
            aside = folder / f".{SEAL}.old"
            aside.write_bytes(before)
            aside.replace(path)
        raise
    return f"{folder}: {kind.name}, sealed as {hash}"


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = Parser(prog="kinject seal", description="Write seals: what is changed later is refused.", epilog=EXAMPLES)
    return for_each(parser, argv, seal)


if __name__ == "__main__":
    sys.exit(main())
