"""Compares host alone, host + plugin(s) and the shuffled-entities control on a data set.

python -m kinject.evaluate --host HOST --plugin PLUGIN --knowledge KB --data test.jsonl
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from kinject.cli.parser import PRECISIONS, Parser, exit_code, typed, whole
from kinject.errors import InputError

EXAMPLES = """\
example, after the quickstart:
  Q=runs/quickstart
  python -m kinject.evaluate --host $Q/host --plugin $Q/biology_plugin --plugin $Q/biology_general \\
      --knowledge $Q/biology/knowledge --data $Q/biology/records/test.jsonl

The shuffled row is the first plugin with every question's entity replaced by another question's: what it still gets
right there, it does not owe to the knowledge. A plugin of another host or knowledge base is refused.
"""


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """The arguments of the command line, checked; raises InputError for any that is wrong."""
    parser = Parser(
        prog=" ".join(typed("evaluate")),
        description="Host alone, host with plugins, and the control that tells knowledge from parameters.",
        epilog=EXAMPLES,
    )
    parser.add_argument("--host", required=True, metavar="DIR", help="host folder (or hub id)")
    parser.add_argument(
        "--plugin", required=True, action="append", metavar="DIR", help="plugin folder; may be repeated"
    )
    parser.add_argument(
        "--knowledge", metavar="DIR", help="knowledge base folder; not for plugins that were trained without one"
    )
    parser.add_argument("--data", required=True, action="append", metavar="FILE", help="records, JSON lines")
    parser.add_argument("--task", metavar="NAME", help="task (default: the host's own)")
    parser.add_argument(
        "--precision",
        default="float32",
        choices=PRECISIONS,
        help="what the host is held and computed in (default float32)",
    )
    parser.add_argument("--seed", type=whole(0), default=0, metavar="N", help="of the shuffle (default 0)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results there too")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    return exit_code(lambda: run(parse(sys.argv[1:] if argv is None else argv)))


def run(arguments: argparse.Namespace) -> None:
    """Evaluates and prints the table."""
    from kinject.inference.host import host_task, told_task
    from kinject.inference.mesh import Placement
    from kinject.inference.xla import tune_malloc
    from kinject.models.manifest import read_host_manifest
    from kinject.reports.console import Reporter
    from kinject.reports.tables import table
    from kinject.stages.base import Run
    from kinject.stages.evaluate import EvaluateConfig, EvaluateStage

    tune_malloc()
    named, options = host_task(read_host_manifest(Path(arguments.host)))
    task = arguments.task or named or told_task(arguments.host)[0]
    if arguments.json is not None and arguments.json.exists():
        raise InputError(f"--json {arguments.json}", "it exists", "choose another file; nothing was overwritten")
    plugins = {Path(folder).name: folder for folder in arguments.plugin}
    name = Path(arguments.data[0]).stem
    domain = {"knowledge": arguments.knowledge, "data": tuple(arguments.data), "plugins": plugins}
    settings = {
        "host": arguments.host,
        "task": task,
        "task_options": options,
        "compute_dtype": arguments.precision,
        "domains": {name: domain},
    }
    config = EvaluateConfig.model_validate(settings)
    reporter = Reporter()
    read_only = Run(Path.cwd(), arguments.seed, reporter, Placement.over(None), {})
    results = EvaluateStage("evaluate", config, read_only).execute()
    reporter.console.print(table(results))
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(results, indent=2, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    sys.exit(main())
