"""Answers a FewRel leaderboard file: questions without labels in, class numbers out.

python -m kinject.leaderboard --host HOST --questions test_wiki_input-5-1.json --out pred-5-1.json
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from kinject.cli.parser import Parser, exit_code, typed, whole
from kinject.errors import InputError

if TYPE_CHECKING:
    from kinject.inference.host import HostBundle
    from kinject.knowledge.base import KnowledgeBase
    from kinject.models.seams import Plugin

EXAMPLES = """\
examples:
  python -m kinject.leaderboard --host runs/fewrel/host --questions test_wiki_input-5-1.json --out pred-5-1.json
  python -m kinject.leaderboard --host runs/fewrel/host --plugin runs/fewrel/plugin --knowledge runs/fewrel/kb \\
      --questions test_wiki_input-10-5.json --out pred-10-5.json

N and K are the file's. The host is one that was trained for few_shot_relations; without --plugin it answers alone.
A plugin that reads no entity vectors needs no --knowledge.
"""


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """The arguments of the command line, checked; raises InputError for any that is wrong."""
    parser = Parser(
        prog=" ".join(typed("leaderboard")),
        description="Answer the questions of a FewRel leaderboard.",
        epilog=EXAMPLES,
    )
    parser.add_argument("--host", required=True, metavar="DIR", help="host folder")
    parser.add_argument("--plugin", metavar="DIR", help="plugin folder")
    parser.add_argument("--knowledge", metavar="DIR", help="knowledge base folder of the plugin, where it reads one")
    parser.add_argument("--questions", required=True, type=Path, metavar="FILE", help="the leaderboard's file")
    parser.add_argument("--out", required=True, type=Path, metavar="FILE", help="a new file for the class numbers")
    parser.add_argument("--max-length", type=whole(1), metavar="L", help="tokens a pair (default: the host's maximum)")
    parser.add_argument(
        "--batch-size", type=whole(1, 65_536), default=25, metavar="B", help="questions a step (default 25)"
    )
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    return exit_code(lambda: run(parse(sys.argv[1:] if argv is None else argv)))


def run(arguments: argparse.Namespace) -> None:
    """Answers into the file `out`.

    Raises:
      InputError: a host of another task, a plugin of another host, a malformed question, an output file that exists.
    """
    from kinject.data.pipeline import Feed
    from kinject.datasets.leaderboard import write_predictions
    from kinject.inference.host import host_task, open_host
    from kinject.inference.program import evaluate, split_program
    from kinject.knowledge.base import KnowledgeBase
    from kinject.tasks.few_shot_relations import FewShotRelations

    if arguments.out.exists():
        raise InputError(f"--out {arguments.out}", "it exists", "choose another file; nothing was overwritten")
    if arguments.knowledge is not None and arguments.plugin is None:
        raise InputError("--knowledge", "there is no plugin to read it", "name one with --plugin, or leave it out")
    host = open_host(arguments.host)
    _, options = host_task(host.loaded.manifest)
    task = FewShotRelations(protocol=options.get("protocol", "kinject"))
    if host.loaded.manifest.get("head") != task.head:
        raise InputError(f"--host {arguments.host}", "it was not made for few_shot_relations", "train one for it")
    knowledge = None if arguments.knowledge is None else KnowledgeBase.open(arguments.knowledge)
    plugin = None if arguments.plugin is None else _plugin(arguments.plugin, host, knowledge)
    slots = knowledge if plugin is not None and plugin.reads_slots else None
    encoder = host.encoder(arguments.max_length, "before" if plugin is None else plugin.slot_form)
    examples = task.questions(arguments.questions, encoder, slots)
    program, params = split_program(host.loaded.host, plugin, task)
    feed = Feed(examples, None if slots is None else slots.gather)
    _, predictions = evaluate(program, params, feed, arguments.batch_size)
    written = write_predictions(arguments.out, predictions["chosen"])
    print(f"{examples.size} questions answered: {written}")


def _plugin(folder: str, host: HostBundle, knowledge: KnowledgeBase | None) -> Plugin:
    """Loads the plugin.

    Raises:
      InputError: none there, one of another host or knowledge base, or one that reads the facts of a single record.
    """
    from kinject.inference.host import knowledge_identity
    from kinject.models.seams import Plugin
    from kinject.plugins.base import plugin_class
    from kinject.plugins.store import load_plugin, read_plugin_manifest

    method = read_plugin_manifest(Path(folder))["method"]
    if plugin_class(method).prepare is not Plugin.prepare:
        problem = f"{method} reads facts that belong to one record, and a pair is made of two"
        raise InputError(f"--plugin {folder}", problem, "take a method that reads slots, or nothing, of an example")
    return load_plugin(folder, host=host.identity, knowledge=knowledge_identity(knowledge)).plugin


if __name__ == "__main__":
    sys.exit(main())
