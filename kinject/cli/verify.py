"""Checks artefacts in whole: `kinject verify FOLDER…`, each byte against its seal, then as what it is."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from kinject.cli.parser import Parser, exit_code
from kinject.errors import InputError

EXAMPLES = """\
examples:
  kinject verify runs/quickstart/host runs/quickstart/geography_plugin runs/quickstart/geography/knowledge

Reads every byte of hosts, knowledge bases (with the index of their names), plugins and passage memories: against the
seal (seal.json), then as what they are. Exit codes: 0 all is as it was sealed, 2 something is not (one line says what).
"""


class Kind(NamedTuple):
    """A kind of artefact: its name, what is outside of its seal, and what reads it strictly and whole."""

    name: str
    outside: tuple[str, ...]
    read: Callable[[Path], None]


def kind_of(folder: Path) -> Kind:
    """Which kind of artefact a folder is.

    Raises:
      InputError: none that is known.
    """
    from kinject.knowledge.manifest import OUTSIDE

    if not folder.is_dir():
        raise InputError(folder, "there is no such folder", "name the folder of an artefact")
    for file, kind in {
        "knowledge.json": Kind("knowledge base", OUTSIDE, _read_knowledge),
        "HEAD.json": Kind("knowledge base", OUTSIDE, _read_knowledge),
        "plugin.json": Kind("plugin", ("README.md",), _read_plugin),
        "memory.json": Kind("memory", (), _read_memory),
        "made_of.json": Kind("index", (), lambda folder: None),
        "config.json": Kind("host", ("README.md",), _read_host),
    }.items():
        if (folder / file).exists():
            return kind
    raise InputError(folder, "it is no host, knowledge base, plugin, memory or index", "name the folder of one")


def verify(folder: Path) -> str:
    """Reads all of an artefact; returns what was checked, in a line.

    Raises:
      InputError: the first thing that is not as it should be.
    """
    from kinject.integrity import read_seal

    kind, seal = kind_of(folder), read_seal(folder)
    if seal is not None:
        seal.verify()
    kind.read(folder)
    told = "no seal" if seal is None else f"{len(seal.files)} files as they were sealed"
    return f"{folder}: {kind.name}, {told}"


def _read_knowledge(folder: Path) -> None:
    from kinject.integrity import read_seal
    from kinject.knowledge import KnowledgeBase

    KnowledgeBase.open(folder).verify()
    for index in sorted(folder.parent.glob(f"{folder.name}.*/made_of.json")):
        seal = read_seal(index.parent)
        if seal is not None:
            seal.verify()


def _read_plugin(folder: Path) -> None:
    from kinject.plugins.store import load_plugin, read_head

    stored = load_plugin(folder)
    if stored.manifest.get("head") is not None:
        read_head(stored)


def _read_memory(folder: Path) -> None:
    from kinject.memory import PassageMemory

    for _ in PassageMemory.open(folder).passages():
        pass


def _read_host(folder: Path) -> None:
    from kinject.inference.host import open_host

    open_host(folder)


def for_each(folders: Parser, argv: Sequence[str] | None, work: Callable[[Path], str]) -> int:
    """The command line that does something to each of the folders named, and says a line of each; its exit code."""
    folders.add_argument("folders", nargs="+", type=Path, metavar="FOLDER")

    def run() -> None:
        for folder in folders.parse_args(argv).folders:
            print(work(folder))

    return exit_code(run)


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = Parser(prog="kinject verify", description="Check artefacts, every byte of them.", epilog=EXAMPLES)
    return for_each(parser, argv, verify)


if __name__ == "__main__":
    sys.exit(main())
