"""Answers texts, one JSON object a line: `kinject predict --host HOST --plugin PLUGIN --knowledge KB < in > out`."""

from __future__ import annotations

import argparse
import json
import os
import stat
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, BinaryIO, TextIO

from kinject.cli.parser import (
    ENGINES,
    EXIT_INTERRUPTED,
    MOST_DEVICES,
    PRECISIONS,
    Parser,
    add_plugs,
    chosen,
    exit_code,
    whole,
)
from kinject.errors import InputError

if TYPE_CHECKING:
    from kinject.knowledge.base import KnowledgeBase
    from kinject.linking import Linker
    from kinject.serving import Host, Prediction, Refused

NAME = "stdin"
EXAMPLES = """\
examples, after the quickstart:
  Q=runs/quickstart
  echo '{"text": "the otter is a kind of [MASK] ."}' \\
      | kinject predict --host $Q/host --plugin $Q/biology_plugin --knowledge $Q/biology/knowledge --compare
  kinject predict --host $Q/host --plugin $Q/geography_plugin --plugin $Q/biology_plugin --knowledge \\
      $Q/geography/knowledge --knowledge $Q/biology/knowledge --explain < $Q/biology/records/test.jsonl > out.jsonl

A line is {"text": ...}, with "mentions" and the task's fields where it has some (docs/formats.md), and no answer. What
cannot be answered is told with its line on standard error and as {"error", "line"}; the rest is answered. Exit codes:
0 something was answered, 2 nothing could be, or an argument is at fault.
"""


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """The arguments of the command line, checked; raises InputError for any that is wrong."""
    parser = Parser(
        prog="kinject predict",
        description="Answer texts with a host and plugins: JSON lines from standard input to standard output.",
        epilog=EXAMPLES,
    )
    add_plugs(parser, "plugin folder; may be repeated", required=False)
    links = parser.add_mutually_exclusive_group()
    links.add_argument("--link", action="store_true", help="link by the knowledge bases' names also without a plugin")
    links.add_argument("--no-link", action="store_true", help="link no names (default: those of plugins' bases)")
    parser.add_argument("--follow", action="store_true", help="a line at once, with what the knowledge bases say then")
    parser.add_argument("--compare", action="store_true", help="add what the host alone answers")
    parser.add_argument("--explain", action="store_true", help="add what each entity, or which passages, did")
    parser.add_argument("--top", type=whole(1), default=5, metavar="N", help="labels an answer, at most (default 5)")
    parser.add_argument("--plain", action="store_true", help="a line is a text, not JSON")
    parser.add_argument("--task", metavar="NAME", help="task (default: that of the host's folder)")
    parser.add_argument(
        "--option", action="append", default=[], metavar="NAME=VALUE", help="of the task, such as aggregation=simple"
    )
    parser.add_argument("--head", metavar="DIR", help="answer under the head that came with this plugin")
    parser.add_argument("--labels", metavar="FILE", help="names of the host's labels, where its folder has none")
    parser.add_argument("--max-length", type=whole(1), metavar="L", help="tokens a text (default: the host's maximum)")
    parser.add_argument(
        "--batch-size",
        type=whole(1, 65_536),
        default=32,
        metavar="B",
        help="texts a batch, fewer of long ones (default 32)",
    )
    parser.add_argument(
        "--window",
        type=whole(1),
        default=1024,
        metavar="W",
        help="texts sorted by length together (default 1024); 1: at once",
    )
    parser.add_argument("--precision", default="float32", choices=PRECISIONS)
    parser.add_argument(
        "--engine",
        default="jax",
        choices=ENGINES,
        help="who runs the host's layers: XLA (default), ONNX Runtime (extra onnx), or the faster one here",
    )
    parser.add_argument(
        "--devices", type=whole(1, MOST_DEVICES), default=1, metavar="N", help="devices that share a batch (default 1)"
    )
    parser.add_argument(
        "--no-compilation-cache", action="store_true", help="keep no compiled programs (default: in ~/.cache/kinject)"
    )
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    return exit_code(lambda: run(parse(sys.argv[1:] if argv is None else argv), sys.stdin.buffer, sys.stdout))


def run(arguments: argparse.Namespace, source: BinaryIO, out: TextIO) -> int:
    """Answers every line of `source` on `out`, in order, in bounded memory.

    Raises:
      InputError: host, plugins and knowledge bases do not fit, or nothing could be answered.
    """
    from kinject.inference.xla import keep_compiled
    from kinject.json_file import to_line
    from kinject.serving import Refused
    from kinject.serving.queries import read_lines
    from kinject.text_files import unpacked

    if not arguments.no_compilation_cache:
        keep_compiled()
    host = load(arguments)
    if arguments.engine == "auto":
        print(f"kinject: {host.engine.told}", file=sys.stderr)
    linker = plug(host, arguments)
    at_once = arguments.window == 1 or arguments.follow or out.isatty()
    answered = refused = 0
    try:
        with progress(unpacked(source, NAME)) as (stream, update):
            lines = read_lines(stream, NAME, plain=arguments.plain)
            for one in answers(host, arguments, lines, linker):
                out.write(to_line(one.to_json()) + "\n")
                if at_once:
                    out.flush()
                if isinstance(one, Refused):
                    refused += 1
                    print(f"kinject: {one.error}", file=sys.stderr)
                else:
                    answered += 1
                update(answered, refused)
        out.flush()
    except BrokenPipeError:  # who reads wants no more; Python would complain again when it closes the stream
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        print(f"kinject: interrupted after {answered:,} answers", file=sys.stderr)
        return EXIT_INTERRUPTED
    if not answered:
        problem = f"none of its {refused:,} lines could be answered" if refused else "there is no line in it"
        raise InputError(NAME, problem, 'a line is {"text": "…"}')
    if refused or sys.stderr.isatty():
        print(f"kinject: {answered:,} answered, {refused:,} refused", file=sys.stderr)
    return 0


def answers(
    host: Host, arguments: argparse.Namespace, lines: Iterator[tuple[int, Any]], linker: Linker | None
) -> Iterator[Prediction | Refused]:
    """What the host answers to numbered lines; with --follow it looks for new revisions before each."""
    said: dict[str, Any] = {"top": arguments.top, "compare": arguments.compare, "explain": arguments.explain}
    if not arguments.follow:
        yield from host.answer(lines, NAME, errors="yield", linker=linker, **said)
        return
    for line in lines:
        host.refresh()
        yield from host.answer([line], NAME, errors="yield", linker=linker, **said)


def load(arguments: argparse.Namespace) -> Host:
    """The host that the arguments name; raises InputError as `Host.load` does."""
    from kinject.serving import Host

    options = {**dict(map(option, arguments.option)), **({"labels": arguments.labels} if arguments.labels else {})}
    return Host.load(
        arguments.host,
        task_options=options,
        **chosen(arguments, "task", "max_length", "batch_size", "window", "precision", "engine", "devices", "head"),
    )


def option(given: str) -> tuple[str, Any]:
    """NAME=VALUE -> both, the value read as JSON where it is that, else as a word; raises InputError without a `=`."""
    name, equals, value = given.partition("=")
    if not equals:
        raise InputError(f"--option {given}", "it has no value", f"write --option {given}=VALUE")
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value


def plug(host: Host, arguments: argparse.Namespace) -> Linker | None:
    """Plugs the plugins in, each with the knowledge base it was trained on.

    Returns:
      What links mentions where no plugin does: the first knowledge base's names, for a host alone.

    Raises:
      InputError: a plugin whose knowledge base is not given, a knowledge base or memory that nobody reads.
    """
    from kinject.knowledge.base import KnowledgeBase
    from kinject.serving import Plugin
    from kinject.serving.plugin import pair

    bases = [KnowledgeBase.open(folder) for folder in arguments.knowledge]
    plugins = [Plugin.load(folder) for folder in arguments.plugin]
    if arguments.link and not bases:
        raise InputError("--link", "there is no knowledge base whose names could be linked", "name one: --knowledge")
    if arguments.memory and not plugins:
        raise InputError("--memory", "there is no plugin that reads it", "name one: --plugin")
    read, unread = pair(plugins, bases)
    for plugin, base in zip(plugins, read, strict=True):
        linker: Any = None if arguments.no_link else "names"
        if arguments.link and base is not None:
            linker = by_names(base)  # asked for: what stands in its way is said
        host.plug(plugin, knowledge=base, memory=arguments.memory, linker=linker)
    if unread and not (arguments.link and not plugins):
        raise InputError(f"--knowledge {unread[0].folder}", "no plugin was trained on it", "leave it out")
    return by_names(unread[0]) if unread else None


def by_names(base: KnowledgeBase) -> Linker:
    """Links the names and aliases of a knowledge base."""
    from kinject.linking import AliasLinker

    return AliasLinker(base)


@contextmanager
def progress(source: BinaryIO) -> Iterator[tuple[Any, Callable[[int, int], None]]]:
    """Yields the stream to read from, and `update(answered, refused)`: a bar on a terminal, else nothing."""
    if not sys.stderr.isatty():
        yield source, lambda answered, refused: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    columns = [TextColumn("{task.fields[said]}"), BarColumn(bar_width=30), TimeElapsedColumn(), TimeRemainingColumn()]
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        counted = Counted(source)
        task = bar.add_task("", total=size_of(source), said="reading")

        def update(answered: int, refused: int) -> None:
            speed = answered / max(bar.tasks[0].elapsed or 0.0, 1e-9)
            said = f"{answered:,} answered, {refused:,} refused, {speed:,.0f} a second"
            bar.update(task, completed=counted.read, said=said)

        yield counted, update


class Counted:
    """A stream that counts the bytes that were read of it."""

    def __init__(self, stream: BinaryIO):
        self.stream, self.read = stream, 0

    def readline(self, limit: int) -> bytes:
        """The next line, at most `limit` bytes of it."""
        line = self.stream.readline(limit)
        self.read += len(line)
        return line


def size_of(source: BinaryIO) -> int | None:
    """Bytes of a file that standard input was redirected to; None of a pipe or a terminal."""
    try:
        about = os.fstat(source.fileno())
    except (OSError, ValueError):
        return None
    return about.st_size if stat.S_ISREG(about.st_mode) else None


if __name__ == "__main__":
    sys.exit(main())
