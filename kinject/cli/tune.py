"""`kinject tune`: a plugin for a host of your own and labelled records, without a config file."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kinject.cli.parser import Parser, exit_code
from kinject.errors import InputError

EXAMPLES = """\
examples:
  kinject tune --host my/classifier --knowledge my/knowledge --data my/plugin.jsonl --out my/plugin
  kinject tune --host my/classifier --knowledge my/knowledge --data my/plugin.jsonl --dev my/dev.jsonl --auto \\
      --test my/test.jsonl --out my/plugin
  kinject tune --host my/classifier --entities my/customers.csv --knowledge my/knowledge \\
      --data my/requests.csv --out my/plugin
  kinject tune … --epochs=20 --learning_rate=1e-3 --batch_size=32

The host answers its own task and stays as it is. Records are JSON lines, or a table (.csv, .tsv, .xlsx, .parquet,
SQLite) with a column `text` and one for the answer, such as `label`; without `mentions` they are linked by the
knowledge base's names.
--auto tries a few settings and keeps what --dev scores highest; the plugin's card says what was tried. Any option of a
config's `fit` section or of its optimizer (docs/options.md) may be given by its name. --test prints the host alone,
with the plugin, and with wrong vectors. It is what `kinject.tune` does in Python; a config has more stages.
"""


def parse(argv: Sequence[str]) -> tuple[argparse.Namespace, dict[str, Any]]:
    """The arguments, and the options of `fit` among them."""
    from kinject.config import value_of

    parser = Parser(prog="kinject tune", description="Tune a plugin through a frozen host.", epilog=EXAMPLES)
    parser.add_argument("--host", required=True, metavar="DIR", help="host folder (or hub id)")
    parser.add_argument("--knowledge", metavar="DIR", help="knowledge base; not for methods that read none")
    parser.add_argument(
        "--data", required=True, type=Path, metavar="FILE", help="labelled records: JSON lines, or a table"
    )
    parser.add_argument("--dev", type=Path, metavar="FILE", help="records that choose the best evaluation")
    parser.add_argument("--test", type=Path, metavar="FILE", help="records that are evaluated at the end")
    parser.add_argument("--out", required=True, type=Path, metavar="DIR", help="the plugin's folder; must not exist")
    parser.add_argument("--entities", metavar="FILE", help="a table of entities: --knowledge is built of it first")
    parser.add_argument("--task", metavar="NAME", help="task (default: the host's own)")
    parser.add_argument("--method", default="map_tuning", metavar="NAME", help="default map_tuning; or kformer, …")
    parser.add_argument("--initialise", metavar="START", help="default: what suits the task")
    parser.add_argument("--auto", action="store_true", help="try a few settings; --dev chooses")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="default 0")
    parser.add_argument("--workdir", type=Path, metavar="DIR", help="keep checkpoints there, to go on after a kill")
    parser.add_argument("--quiet", action="store_true", help="print only the result")
    known, rest = parser.parse_known_args(argv)
    fit = {}
    for one in rest:
        name, equals, value = one.removeprefix("--").partition("=")
        if not one.startswith("--") or not equals:
            raise InputError(one, "unknown argument", "options of fit are --NAME=VALUE; see --help")
        fit[name] = value_of(value)
    return known, fit


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    return exit_code(lambda: run(*parse(sys.argv[1:] if argv is None else argv)))


def run(arguments: argparse.Namespace, fit: dict[str, Any]) -> None:
    """Tunes, saves and evaluates."""
    if arguments.out.exists():
        raise InputError(
            f"--out {arguments.out}", "it exists already", "choose another folder; nothing was overwritten"
        )
    if arguments.entities is not None:
        build_knowledge(arguments)
    from kinject.api import tune
    from kinject.inference.xla import keep_compiled, tune_malloc
    from kinject.serving import Host

    tune_malloc()
    keep_compiled()
    host = Host.load(arguments.host, task=arguments.task)
    given = {
        name: getattr(arguments, name) for name in ("dev", "method", "initialise", "auto", "seed", "workdir", "quiet")
    }
    plugin = tune(host, arguments.knowledge, arguments.data, **given, **fit)
    folder = plugin.save(arguments.out)
    for one in plugin.manifest["config"].get("tried", ()):
        print(f"tried {one['settings']}: {one['score']:.4g}")
    print(f"written: {folder}  ({plugin.trainable_parameters():,} parameters)")
    if arguments.test is not None:
        print(plugin.evaluate(host, arguments.knowledge, arguments.test))


def build_knowledge(arguments: argparse.Namespace) -> None:
    """Builds the knowledge base as `kinject knowledge build --entities FILE --out DIR` does."""
    from kinject.cli import knowledge

    if arguments.knowledge is None:
        raise InputError("--entities", "the knowledge base that it becomes has no place", "add --knowledge DIR")
    if Path(arguments.knowledge).exists():
        problem = "it exists already, and --entities would build it"
        raise InputError(f"--knowledge {arguments.knowledge}", problem, "leave --entities out, or name another folder")
    given = ["build", "--entities", arguments.entities, "--out", arguments.knowledge]
    knowledge.run(knowledge.parse([*given, "--quiet"] if arguments.quiet else given))


if __name__ == "__main__":
    sys.exit(main())
