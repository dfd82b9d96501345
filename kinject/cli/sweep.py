"""Runs configs with several seeds and gathers their results into one table.

python -m kinject.sweep --config configs/quickstart.py --seeds 0,1,2 --workdir runs/seeds
"""

from __future__ import annotations

import argparse
import itertools
import json
import shlex
import signal
import statistics
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from kinject.cli.parser import Parser, exit_code, typed
from kinject.errors import InputError
from kinject.inference.processes import EXIT_AGAIN, end_with_parent
from kinject.reports import plots
from kinject.reports.html import write_report
from kinject.reports.results import run_folder

EXAMPLES = """\
examples:
  python -m kinject.sweep --config configs/quickstart.py --seeds 0,1,2 --workdir runs/seeds
  python -m kinject.sweep --config configs/delivery.py --config configs/delivery.py:no_answer_triples \\
      --seeds 0,1,2 --workdir runs/both
  kinject sweep --config own:my,host=runs/own/host --vary stages.plugin.initialise=ridge_mention,zero \\
      --seeds 0,1,2 --workdir runs/starts
  python -m kinject.sweep ... --lines          one command a run, for a cluster's scheduler; gather afterwards with
  python -m kinject.sweep ... --gather         the same arguments

--vary PLACE=VALUE,VALUE runs every config with each of the values of an entry; given more than once, with all their
combinations. --config.a.b=VALUE replaces an entry in all runs, as of kinject train.

Each run has a workdir of its own below --workdir. The same command again resumes what was cut short and skips what is
done. The table is written to results.md, results.csv and results.parquet: one row a config and measure, mean and
standard deviation over the seeds; with matplotlib, report.html shows it with plots.
"""


@dataclass(frozen=True)
class SweepRun:
    """One config with one seed.

    Attributes:
      config: as it was given.
      overrides: `a.b=value` of its entries, the same in all runs.
      changes: the same of what is varied.
    """

    config: str
    seed: int
    workdir: Path
    overrides: tuple[str, ...]
    changes: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """What its row is called."""
        return row_of(self.config, self.changes)

    @property
    def command(self) -> list[str]:
        """The arguments of Python that run it."""
        flags = [f"--config.seed={self.seed}", *(f"--config.{one}" for one in self.overrides + self.changes)]
        return ["-m", "kinject.train", "--config", self.config, *flags, "--workdir", str(self.workdir)]

    @property
    def results(self) -> Path:
        """Where its results will be."""
        return self.workdir / "results.json"


def parse(argv: Sequence[str]) -> tuple[argparse.Namespace, tuple[str, ...]]:
    """Returns the arguments, and the overrides that every run gets."""
    parser = Parser(
        prog=" ".join(typed("sweep")),
        description="Run configs with several seeds, and gather one table.",
        epilog=EXAMPLES,
    )
    parser.add_argument("--config", required=True, action="append", metavar="FILE.py[:ARG]", help="may be repeated")
    parser.add_argument(
        "--vary", action="append", default=[], metavar="PLACE=V,V,…", help="an entry's values, each in runs of its own"
    )
    parser.add_argument("--seeds", default="0", metavar="N,N,…", help="seeds of every config (default 0)")
    parser.add_argument("--workdir", required=True, type=Path, metavar="DIR", help="a folder for all runs")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--lines", action="store_true", help="print one command a run instead of running it")
    what.add_argument("--gather", action="store_true", help="only gather what is done")
    known, rest = parser.parse_known_args(argv)
    for argument in rest:
        if not argument.startswith("--config."):
            raise InputError(argument, "unknown argument", "see --help")
    return known, tuple(argument.removeprefix("--config.") for argument in rest)


def varied(vary: Sequence[str]) -> list[tuple[str, ...]]:
    """`PLACE=V,V` of each entry -> the overrides of each combination; one empty combination where nothing varies."""
    choices = []
    for one in vary:
        place, equals, values = one.partition("=")
        given = [value for value in values.split(",") if value]
        if not equals or not place or len(set(given)) < max(len(given), 1):
            raise InputError(f"--vary {one}", "it names no entry with different values", "write --vary a.b=1,2,3")
        choices.append([f"{place}={value}" for value in given])
    places = [one.partition("=")[0] for one in vary]
    if twice := next((one for one in places if places.count(one) > 1), None):
        raise InputError(f"--vary {twice}", "it is given twice", "put all its values behind one =")
    return list(itertools.product(*choices))


def row_of(config: str, changes: Sequence[str]) -> str:
    """What the row of a config with some entries replaced is called: as a config with an argument."""
    return config if not changes else f"{config}{',' if ':' in config else ':'}{','.join(changes)}"


def plan(
    configs: Sequence[str], seeds: str, workdir: Path, overrides: tuple[str, ...], vary: Sequence[str] = ()
) -> list[SweepRun]:
    """The runs, each with a workdir named after its config, what is varied of it, and its seed.

    Raises:
      InputError: no such config, an entry that it has not, or seeds that are none.
    """
    from kinject.config import config_file, read_config

    try:
        numbers = [int(part) for part in seeds.split(",")]
    except ValueError:
        raise InputError(f"--seeds {seeds}", "they are whole numbers with commas between") from None
    if min(numbers) < 0 or len(set(numbers)) < len(numbers):
        raise InputError(f"--seeds {seeds}", "they are different whole numbers from 0")
    runs = []
    for config, changes in itertools.product(configs, varied(vary)):
        config_file(config.partition(":")[0], config)
        if changes:
            read_config(config, changes)  # an entry that there is not is told before anything runs
        folders = [run_folder(workdir, row_of(config, changes), one) for one in numbers]
        runs += [SweepRun(config, *one, overrides, changes) for one in zip(numbers, folders, strict=True)]
    return runs


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code: that of the first run that failed, after all were tried."""
    return exit_code(lambda: run(*parse(sys.argv[1:] if argv is None else argv)))


def run(arguments: argparse.Namespace, overrides: tuple[str, ...]) -> int:
    """Runs what is asked for and gathers it; returns the exit code."""
    runs = plan(arguments.config, arguments.seeds, arguments.workdir, overrides, arguments.vary)
    if arguments.lines:
        print("\n".join(shlex.join(["python", *each.command]) for each in runs))
        return 0
    failed = 0
    if not arguments.gather:
        failed, stopped = train([[sys.executable, *each.command] for each in runs])
        if stopped:
            return failed
    print(gather(runs, arguments.workdir))
    return failed


def train(commands: Iterable[Sequence[str]]) -> tuple[int, bool]:
    """Runs commands one after the other; returns the exit code of the first that failed, and whether it was stopped.

    SIGTERM and Ctrl-C go to the run that is at it, as SIGTERM, upon which a training saves; no other is begun. A run
    does not outlive this process either: the same command, given again, would find its folder in use.
    """
    codes, told = list[int](), list[int]()
    running: list[subprocess.Popen] = []

    def notice(number: int, frame: FrameType | None) -> None:
        told.append(number)
        for process in running:
            process.send_signal(signal.SIGTERM)

    before = {number: signal.signal(number, notice) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        for command in commands:
            if told:
                break
            running[:] = [subprocess.Popen(command, preexec_fn=end_with_parent)]
            if told:  # meanwhile
                running[0].send_signal(signal.SIGTERM)
            codes.append(running[0].wait())
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return next((code for code in codes if code), EXIT_AGAIN if told else 0), bool(told)


def gather(runs: Sequence[SweepRun], folder: Path) -> str:
    """Writes `results.{md,csv,parquet}` and `report.html` from the runs that are done, and returns the Markdown.

    Raises:
      InputError: no run is done.
    """
    import pyarrow as pa
    import pyarrow.csv
    import pyarrow.parquet

    rows = list(summarise(runs))
    if not rows:
        raise InputError(folder, "no run is done", "run the sweep first")
    table = pa.Table.from_pylist(rows)
    folder.mkdir(parents=True, exist_ok=True)
    pyarrow.csv.write_csv(table, folder / "results.csv")
    pyarrow.parquet.write_table(table, folder / "results.parquet")
    text = markdown(rows)
    (folder / "results.md").write_text(text)
    if plots.available():
        write_report(folder)
    return text


def summarise(runs: Sequence[SweepRun]) -> Iterator[dict[str, Any]]:
    """One row a config and measure: mean, sample standard deviation (0 for one seed), number of seeds, published."""
    found: dict[tuple[str, str], dict[int, float]] = {}
    published: dict[str, Mapping[str, float]] = {}
    for run in runs:
        if run.results.exists():
            published[run.name] = json.loads((run.workdir / "config.json").read_text()).get("published", {})
            for measure, value in numbers_in(json.loads(run.results.read_text())):
                found.setdefault((run.name, measure), {})[run.seed] = value
    for (config, measure), by_seed in found.items():
        values = list(by_seed.values())
        deviation = statistics.stdev(values) if len(values) > 1 else 0.0
        yield {
            "config": config,
            "measure": measure,
            "mean": statistics.fmean(values),
            "deviation": deviation,
            "seeds": len(values),
            "published": published[config].get(measure),
        }


def numbers_in(value: Any, place: str = "") -> Iterator[tuple[str, float]]:
    """All numbers of nested results with their dotted places."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from numbers_in(inner, f"{place}.{key}" if place else str(key))
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield place, float(value)


def markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    """The evaluated measures, one line a config and measure; what others published beside ours, where a config says."""
    shown = [row for row in rows if row["measure"].startswith(("evaluate", "compare"))] or list(rows)
    beside = any(row["published"] is not None for row in shown)
    lines = [
        "| config | measure | mean | deviation | seeds |" + " published |" * beside,
        "|---|---|---:|---:|---:|" + "---:|" * beside,
    ]
    for row in shown:
        deviation = f"{row['deviation']:.2g}" if row["seeds"] > 1 else ""
        numbers = f"{row['mean']:.4g} | {deviation} | {row['seeds']}"
        if beside:
            numbers += " | " + ("" if row["published"] is None else f"{row['published']:.4g}")
        lines.append(f"| {row['config']} | {row['measure']} | {numbers} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
