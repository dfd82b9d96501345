"""Plugins as folders: `kinject plugins list|show|verify|export|push|pull`."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kinject.cli.parser import Parser, exit_code
from kinject.errors import InputError, printable

COLUMNS = ("folder", "method", "knowledge", "parameters", "host encoder", "head", "metrics")
EXAMPLES = """\
examples, after the quickstart:
  kinject plugins list runs/quickstart
  kinject plugins show runs/quickstart/biology_plugin
  kinject plugins verify runs/quickstart/biology_plugin --host runs/quickstart/host \\
      --knowledge runs/quickstart/biology/knowledge
  kinject plugins export runs/quickstart/biology_plugin --safetensors biology.safetensors
  kinject plugins push runs/quickstart/biology_plugin me/biology
  kinject plugins pull me/biology biology_plugin --revision main --host runs/quickstart/host

push and pull speak to Hugging Face's hub (hf auth login; HF_ENDPOINT names another). Nothing is sent or kept that does
not load strictly; pull takes no file that plugin.json does not name, and with --host and --knowledge only what fits.
verify reads every byte: 0 all is as it was written and fits, 2 something is not (one line says what).
"""


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """The arguments of the command line, checked; raises InputError for any that is wrong."""
    parser = Parser(
        prog="kinject plugins", description="Look at plugin folders, check and export them.", epilog=EXAMPLES
    )
    actions = parser.add_subparsers(
        dest="action", required=True, metavar="list|show|verify|export|push|pull", parser_class=Parser
    )
    every = actions.add_parser("list", help="every plugin below some folders")
    every.add_argument("folders", nargs="+", type=Path, metavar="DIR")
    every.add_argument("--json", action="store_true", help="one JSON object a line instead of the table")
    show = actions.add_parser("show", help="a plugin's card")
    show.add_argument("folder", type=Path, metavar="FOLDER")
    show.add_argument("--json", action="store_true", help="the whole plugin.json instead of the card")
    verify = actions.add_parser("verify", help="load strictly, check digests and what it belongs to")
    verify.add_argument("folder", type=Path, metavar="FOLDER")
    verify.add_argument("--host", metavar="DIR", help="the host that it shall fit")
    verify.add_argument("--knowledge", metavar="DIR", help="the knowledge base that it shall fit, itself verified")
    export = actions.add_parser("export", help="write a map-tuning plugin as one file without kinject")
    export.add_argument("folder", type=Path, metavar="FOLDER")
    export.add_argument("--safetensors", required=True, type=Path, metavar="OUT", help="a new file")
    push = actions.add_parser("push", help="upload a plugin to Hugging Face's hub")
    push.add_argument("folder", type=Path, metavar="FOLDER")
    push.add_argument("repository", metavar="OWNER/NAME", help="made where there is none")
    push.add_argument("--revision", metavar="BRANCH", help="default: the main branch")
    push.add_argument("--private", action="store_true", help="make a private repository")
    pull = actions.add_parser("pull", help="download a plugin from the hub, and verify it")
    pull.add_argument("repository", metavar="OWNER/NAME")
    pull.add_argument("folder", type=Path, metavar="FOLDER", help="a new folder")
    pull.add_argument("--revision", metavar="REVISION", help="branch, tag or commit (default: the main branch)")
    pull.add_argument("--host", metavar="DIR", help="the host that it shall fit")
    pull.add_argument("--knowledge", metavar="DIR", help="the knowledge base that it shall fit")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    arguments = sys.argv[1:] if argv is None else argv
    return exit_code(lambda: run(parse(arguments)))


def run(arguments: argparse.Namespace) -> None:
    """Does what is asked; raises InputError for what is wrong with a plugin."""
    actions = {"list": show_list, "show": show_one, "verify": verify, "export": export, "push": push, "pull": pull}
    actions[arguments.action](arguments)


def show_list(arguments: argparse.Namespace) -> None:
    """A line a plugin, in the order of their paths; one that cannot be read says why in its line."""
    for folder in arguments.folders:
        if not folder.is_dir():
            raise InputError(folder, "there is no such folder", "name one that holds plugins")
    found = [about(path.parent) for folder in arguments.folders for path in sorted(folder.rglob("plugin.json"))]
    if arguments.json:
        for one in found:
            print(json.dumps(one, ensure_ascii=False))
        return
    if not found:
        print("there is no plugin")
        return
    rows: list[tuple[str, ...]] = [COLUMNS]
    for one in found:
        if "error" in one:
            rows.append((one["folder"], one["error"]))
            continue
        metrics = ", ".join(f"{name} {value:.4g}" for name, value in one["metrics"].items())
        parts = (
            one["method"],
            one["knowledge"],
            f"{one['parameters']:,}",
            one["host"][:19],
            one["head"] or "-",
            metrics,
        )
        rows.append((one["folder"], *parts))
    whole = [row for row in rows if len(row) == len(COLUMNS)]
    widths = [max(map(len, column)) for column in zip(*whole, strict=True)]
    for row in rows:
        print("  ".join(f"{printable(cell):{width}}" for cell, width in zip(row, widths, strict=False)).rstrip())


def about(folder: Path) -> dict[str, Any]:
    """What a list says of one plugin."""
    import math

    from kinject.plugins.store import read_plugin_manifest

    try:
        manifest = read_plugin_manifest(folder)
        return {
            "folder": str(folder),
            "method": manifest["method"],
            "knowledge": str(manifest["knowledge"].get("name")),
            "parameters": sum(math.prod(leaf["shape"]) for leaf in manifest["parameters"].values()),
            "host": str(manifest["host"].get("encoder_fingerprint")),
            "head": (manifest.get("head") or {}).get("kind"),
            "metrics": manifest.get("metrics", {}),
        }
    except InputError as error:
        return {"folder": str(folder), "error": str(error)}
    except (KeyError, TypeError, AttributeError) as error:
        return {"folder": str(folder), "error": f"{folder / 'plugin.json'}: it is malformed ({error!r})"}


def show_one(arguments: argparse.Namespace) -> None:
    """Prints a plugin's card, or its whole manifest."""
    from kinject.plugins.manifest import card
    from kinject.plugins.store import read_plugin_manifest

    manifest = read_plugin_manifest(arguments.folder)
    print(json.dumps(manifest, indent=2, ensure_ascii=False) if arguments.json else card(manifest), end="\n")


def verify(arguments: argparse.Namespace) -> None:
    """Reads the plugin, its head, and the knowledge base whole, and loads the host."""
    from kinject.inference.host import knowledge_identity, open_host
    from kinject.knowledge.base import KnowledgeBase
    from kinject.plugins.store import load_plugin, read_head, read_plugin_manifest

    manifest, base, host = read_plugin_manifest(arguments.folder), None, None
    if arguments.knowledge is not None:
        base = KnowledgeBase.open(arguments.knowledge)
        if manifest["knowledge"].get("fingerprint") is None:
            raise InputError(arguments.folder, "it was trained without a knowledge base", "leave --knowledge out")
        base.verify()
    if arguments.host is not None:
        host = open_host(arguments.host).identity
    knowledge = None if base is None else knowledge_identity(base)
    stored = load_plugin(arguments.folder, host=host, knowledge=knowledge)
    if stored.manifest.get("head") is not None:
        read_head(stored)
    checked = [f"{len(manifest['files'])} files and {len(manifest['parameters'])} parameters"]
    checked += [f"host {arguments.host}"] * (host is not None) + [f"knowledge base {base}"] * (base is not None)
    print(f"{arguments.folder}: as it was written; checked: {', '.join(checked)}")


def export(arguments: argparse.Namespace) -> None:
    """Writes a map as one file, and prints its name."""
    from kinject.plugins.map_files import export_map
    from kinject.plugins.store import load_plugin

    print(export_map(load_plugin(arguments.folder), arguments.safetensors))


def push(arguments: argparse.Namespace) -> None:
    """Uploads a plugin, and prints where it is."""
    from kinject.plugins import hub

    print(hub.push(arguments.folder, arguments.repository, revision=arguments.revision, private=arguments.private))


def pull(arguments: argparse.Namespace) -> None:
    """Downloads a plugin, and prints where it is and which commit it is."""
    from kinject.inference.host import knowledge_identity, open_host
    from kinject.knowledge.base import KnowledgeBase
    from kinject.plugins import hub

    host = None if arguments.host is None else open_host(arguments.host).identity
    knowledge = None if arguments.knowledge is None else knowledge_identity(KnowledgeBase.open(arguments.knowledge))
    folder, commit = hub.pull(
        arguments.repository, arguments.folder, revision=arguments.revision, host=host, knowledge=knowledge
    )
    print(f"{folder}: {arguments.repository} at {commit}, as it was written")


if __name__ == "__main__":
    sys.exit(main())
