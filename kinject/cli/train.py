"""Runs a config: `python -m kinject.train --config configs/quickstart.py --workdir runs/quickstart`."""

from __future__ import annotations

import argparse
import json
import os
import shlex
import sys
import time
import traceback
from collections.abc import Sequence
from pathlib import Path

from kinject.cli.parser import EXIT_INTERRUPTED, MOST_DEVICES, Parser, of_this_machine, own_process, typed, whole
from kinject.errors import EXIT_BAD_INPUT, InputError
from kinject.inference.processes import (
    EXIT_AGAIN,
    Cluster,
    EndedByFirst,
    Preempted,
    first,
    joined,
    leave,
    listen,
    lost_peer,
)

EXAMPLES = """\
examples:
  kinject train --config own:my --workdir runs/own
  python -m kinject.train --config configs/quickstart.py --workdir runs/quickstart
  python -m kinject.train --config configs/delivery.py:no_answer_triples --workdir runs/two_hops
  python -m kinject.train --config configs/quickstart.py --config.seed=1 --workdir runs/seed1
  python -m kinject.train --config configs/quickstart.py --workdir runs/quickstart --stage geography_plugin
  python -m kinject.train --config configs/quickstart.py --aot v5e:4x4 --config.stages.host.fit.batch_size=1024

A config names stages; each is run unless the workdir holds its result. The same command again resumes a run that was
cut short, and reports one that is done. --config.a.b=VALUE replaces any entry of the config.

Several processes run one config when each is started with the same arguments and its own --process-id (launch/local.py
does so on one machine); all must see the same files. Exit codes: 0 done, 2 the input is at fault, 75 stopped by
SIGTERM or by the loss of another process: run it again, 130 interrupted.
"""


def parse(argv: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """Returns the arguments, and the overrides `a.b=value` of the config."""
    parser = Parser(
        prog=" ".join(typed("train")),
        description="Train hosts and knowledge plugins as a config file says.",
        epilog=EXAMPLES,
    )
    parser.add_argument(
        "--config",
        required=True,
        metavar="FILE.py[:ARG]",
        help="config file, or the name of one that comes along (own, quickstart, …), and its get_config(ARG)",
    )
    parser.add_argument("--workdir", type=Path, metavar="DIR", help="where everything is written")
    parser.add_argument("--stage", action="append", metavar="NAME", help="run only this stage (may be repeated)")
    parser.add_argument(
        "--devices", type=whole(1, MOST_DEVICES), metavar="N", help="use N devices (default: all); of a CPU, N parts"
    )
    parser.add_argument(
        "--no-compilation-cache", action="store_true", help="keep no compiled programs (default: in ~/.cache/kinject)"
    )
    parser.add_argument("--coordinator", metavar="HOST:PORT", help="of several processes: where process 0 listens")
    parser.add_argument("--processes", type=int, metavar="N", help="of several processes: how many")
    parser.add_argument("--process-id", type=int, metavar="I", help="of several processes: which this is, from 0")
    parser.add_argument(
        "--distributed", choices=("given", "auto"), default="given", help="auto: as TPU pods, GKE and Slurm tell JAX"
    )
    parser.add_argument("--quiet", action="store_true", help="print only the result")
    parser.add_argument("--aot", metavar="SLICE", help="only compile, for TPUs or GPUs such as v5e:4x4, h100:8")
    parser.add_argument("--json", type=Path, metavar="FILE", help="with --aot: write what it found there too")
    known, rest = parser.parse_known_args(argv)
    overrides = []
    for argument in rest:
        if not argument.startswith("--config."):
            mend = f"write {rest[0]}={argument}" if rest[0].startswith("--config.") and "=" not in rest[0] else ""
            if argument.startswith("--") and "." in argument.partition("=")[0]:
                mend = f"write --config.{argument.removeprefix('--')}"
            raise InputError(argument, "unknown argument", mend or "see --help")
        overrides.append(argument.removeprefix("--config."))
    if known.workdir is None and known.aot is None:
        parser.error("the following arguments are required: --workdir")
    return known, overrides


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    own_process()
    listen()  # before anything heavy is imported
    return leave(*_main(sys.argv[1:] if argv is None else argv))


def _main(argv: Sequence[str]) -> tuple[int, bool]:
    """The exit code, and whether the other processes, if there are any, end with the same."""
    try:
        arguments, overrides = parse(argv)
        if arguments.aot is not None:
            compile_only(arguments, overrides)
        else:
            run(arguments, overrides, command=shlex.join([*typed("train"), *argv]))
    except InputError as error:
        print(f"kinject: {error}", file=sys.stderr)
        return EXIT_BAD_INPUT, True  # what is wrong with a config or a file is so for all
    except EndedByFirst as error:
        return error.code, True
    except Preempted as notice:
        if notice.interrupted:
            print("kinject: interrupted; the same command goes on where it stopped", file=sys.stderr)
            return EXIT_INTERRUPTED, False
        if first():
            print("kinject: preempted; the same command goes on where it stopped", file=sys.stderr)
        return EXIT_AGAIN, notice.agreed
    except KeyboardInterrupt:
        print("kinject: interrupted; the same command goes on from the last checkpoint", file=sys.stderr)
        return EXIT_INTERRUPTED, False
    except Exception as error:
        told = of_this_machine(error)
        if told is not None and not joined():
            print(f"kinject: {told}", file=sys.stderr)
            return EXIT_BAD_INPUT, False
        if not joined():
            raise
        if not lost_peer(error):
            traceback.print_exc()
            return 1, False
        print("kinject: another process is gone; the same command goes on from the last checkpoint", file=sys.stderr)
        return EXIT_AGAIN, False
    return 0, True


def run(arguments: argparse.Namespace, overrides: Sequence[str], command: str) -> dict:
    """Runs the stages that are missing, reports, and returns the results."""
    started = time.monotonic()
    cluster = Cluster.read(arguments.coordinator, arguments.processes, arguments.process_id, arguments.distributed)
    from kinject.config import read_config
    from kinject.inference.xla import keep_compiled, split_cpu, tune_malloc
    from kinject.stages.experiment import Experiment

    tune_malloc()
    if arguments.devices is not None and cluster is None:
        split_cpu(arguments.devices)
    if not arguments.no_compilation_cache:
        keep_compiled()
    config = read_config(arguments.config, overrides)
    if cluster is not None:
        cluster.join()
    options = {"devices": arguments.devices, "quiet": arguments.quiet, "command": command}
    experiment = Experiment.open(config, arguments.workdir, **options)
    experiment.check_names(arguments.stage)
    with experiment:
        for stage in experiment.choose(arguments.stage):
            experiment.execute(stage)
        experiment.report(seconds=time.monotonic() - started)
    return json.loads((arguments.workdir / "results.json").read_text())


def compile_only(arguments: argparse.Namespace, overrides: Sequence[str]) -> list[dict]:
    """Compiles the steps of the config's training stages for devices that are not here, and returns what they cost."""
    os.environ["JAX_PLATFORMS"] = "cpu"  # nothing runs: leave this machine's own accelerator alone
    from kinject.config import read_config
    from kinject.reports.console import Reporter
    from kinject.stages.ahead import compile_ahead, to_json

    if arguments.json is not None and arguments.json.exists():
        raise InputError(f"--json {arguments.json}", "it exists", "choose another file; nothing was overwritten")
    config = read_config(arguments.config, overrides)
    found = compile_ahead(config, arguments.aot, arguments.stage, Reporter(quiet=arguments.quiet))
    if arguments.json is not None:
        arguments.json.write_text(to_json(found))
    return found


if __name__ == "__main__":
    sys.exit(main())
