"""Shows what plugins do, in a browser: `kinject demo --host HOST --plugin PLUGIN --knowledge KB`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from kinject.cli.parser import Parser, add_plugs, exit_code, whole

EXAMPLES = """\
examples, after the quickstart:
  Q=runs/quickstart
  kinject demo --host $Q/host --plugin $Q/geography_plugin --plugin $Q/biology_plugin \\
      --knowledge $Q/geography/knowledge --knowledge $Q/biology/knowledge \\
      --examples $Q/geography/records/test.jsonl --examples $Q/biology/records/test.jsonl

Then open the address that it prints. Type a sentence as the host's task wants it (for the quickstart with one [MASK]:
"oudenaarde is in [MASK]."), and choose plugins. The page marks the entities that it found in the text, puts the host's
answers without and with the plugins beside each other, and says why: how much lower the first answer's score is without
each entity, or, for PlugLM, which passages were read. Choose another plugin, and the same sentence is asked again.

Nothing leaves this machine and nothing is loaded from elsewhere. The server listens on 127.0.0.1, where only this
machine reaches it; on a machine far away use ssh -L 8000:127.0.0.1:8000. There is no password: with --bind, whoever
reaches the port may ask. Needs the extra: pip install 'kinject[demo]'. Ctrl-C ends it.
"""


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """The arguments of the command line, checked; raises InputError for any that is wrong."""
    parser = Parser(
        prog="kinject demo",
        description="A page in the browser: a sentence, the linked entities, the host's answers before and after.",
        epilog=EXAMPLES,
    )
    add_plugs(parser, "plugin folder to choose from; may be repeated", required=True)
    parser.add_argument("--task", metavar="NAME", help="task (default: the host's own)")
    parser.add_argument(
        "--examples",
        action="append",
        default=[],
        metavar="FILE",
        help="records whose first texts the page offers; may be repeated",
    )
    parser.add_argument("--bind", default="127.0.0.1", metavar="ADDRESS", help="listen here (default 127.0.0.1)")
    parser.add_argument(
        "--port", type=whole(0, 65_535), default=8000, metavar="N", help="default 8000; 0: any free one"
    )
    parser.add_argument(
        "--no-compilation-cache", action="store_true", help="keep no compiled programs (default: in ~/.cache/kinject)"
    )
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    return exit_code(lambda: run(parse(sys.argv[1:] if argv is None else argv)))


def run(arguments: argparse.Namespace) -> None:
    """Serves the page until it is interrupted.

    Raises:
      InputError: host, plugins, knowledge bases and examples do not fit, the port is taken, the extra is missing.
    """
    from kinject.demo.demo import Demo
    from kinject.demo.server import address, listen, make_server
    from kinject.inference.xla import keep_compiled

    with listen(arguments.bind, arguments.port) as listening:
        if not arguments.no_compilation_cache:
            keep_compiled()
        demo = Demo.load(
            arguments.host,
            arguments.plugin,
            arguments.knowledge,
            arguments.memory,
            task=arguments.task,
            examples=arguments.examples,
        )
        server = make_server(demo, arguments.bind)
        print(f"kinject demo: {address(listening)} (Ctrl-C ends it)", flush=True)
        try:
            server.run(sockets=[listening])
        except KeyboardInterrupt:  # uvicorn has closed everything by then
            return


if __name__ == "__main__":
    sys.exit(main())
