"""What a person waits for before anything is computed: imports, the first training step, a host, a plugin's swap.

    python benchmarks/start_up.py --json OUT

Every start is a fresh process; told are medians over processes, by the clock and by the CPU's time (user and system),
which other work on the machine changes less. The first training step of a config is its host's: from the
start of `python -m kinject.train` to the first line of `metrics.jsonl` that its stage writes, so imports, reading and
encoding the questions, computing the frozen layers once and compiling all count. Its data are made before (with one
epoch of TransE: the graphs' quality changes nothing here). "Cold" starts with an empty compilation cache, "warm" with
what the run before left. Needs `pip install -e '.[quickstart]'` and the quickstart's model.

A swap is `host.plug(another plugin)` and the parameters that the next answer is computed with, ready on the device; the
number of compiled programs must not change. What a plugin adds is measured at equal length: texts of which one with a
slot is padded to the same positions as one without, and the compiled programs on the very same batch.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from rows import row, write

ROOT = Path(__file__).resolve().parents[1]
IMPORTS = {  # ours: (what to run, the same of others, the goal)
    "import kinject": ("import kinject", "import transformers", "<= 1.5"),
    "import what training needs": (
        "import kinject.cli.train, kinject.stages.experiment",
        "import torch; from transformers import BertForMaskedLM, Trainer",
        "",
    ),
}
LOADS = {
    "ours": "import sys, time, kinject.serving; began = time.perf_counter(); "
    "import kinject; kinject.Host.load(sys.argv[1]); print(time.perf_counter() - began)",
    "theirs": "import sys, time, torch; "
    "from transformers import AutoModelForSequenceClassification as Model, AutoTokenizer as Tokenizer, BertModel; "
    "began = time.perf_counter(); Model.from_pretrained(sys.argv[1]); Tokenizer.from_pretrained(sys.argv[1]); "
    "print(time.perf_counter() - began)",
}
LONGEST = 600


class Taken(NamedTuple):
    """Seconds of one process."""

    wall: float
    cpu: float
    out: str = ""


def started(
    command: list[str], cache: Path | None = None, until: Callable[[], bool] | None = None, log: Path | None = None
) -> Taken:
    """Runs a process to its end, or `until` something is so: then it is killed."""
    paths = [str(ROOT), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths)), "HF_HUB_OFFLINE": "1"}
    if cache is not None:
        environment["KINJECT_COMPILATION_CACHE"] = str(cache)
        environment.pop("JAX_COMPILATION_CACHE_DIR", None)
    with tempfile.TemporaryFile("w+") as out, (log or Path(os.devnull)).open("w") as errors:
        began, reached, status = time.perf_counter(), False, 0
        process = subprocess.Popen(command, env=environment, cwd=ROOT, stdout=out, stderr=errors)
        while True:
            ended, status, used = os.wait4(process.pid, os.WNOHANG if until else 0)
            wall = time.perf_counter() - began
            if ended:
                break
            if not reached and until():
                reached, found = True, wall
                process.send_signal(signal.SIGKILL)
            if wall > LONGEST:
                process.send_signal(signal.SIGKILL)
            time.sleep(0.005)
        process.returncode = os.waitstatus_to_exitcode(status)  # it was waited for above
        out.seek(0)
        text = out.read()
    if process.returncode and not reached:
        more = log.read_text()[-2000:] if log is not None else ""
        raise SystemExit(f"{' '.join(command)} ended with {process.returncode}\n{more}")
    return Taken(found if reached else wall, used.ru_utime + used.ru_stime, text)


def median(taken: list[Taken]) -> dict[str, float]:
    return {
        "wall": statistics.median(one.wall for one in taken),
        "cpu": statistics.median(one.cpu for one in taken),
    }


def seconds_row(name: str, ours: dict[str, float], theirs: dict[str, float] | None, goal: str, **more: Any) -> dict:
    """Wall seconds, and CPU seconds beside them."""
    cpu = {"ours": ours["cpu"]} | ({} if theirs is None else {"theirs": theirs["cpu"]})
    unit = f"s ({ours['cpu']:.2f} s of CPU time)"
    other = None if theirs is None else theirs["wall"]
    return row(f"start_up, {name}", ours["wall"], other, unit, less=True, goal=goal, cpu_seconds=cpu, **more)


def imports(rounds: int) -> Iterator[dict[str, Any]]:
    for name, (ours, theirs, goal) in IMPORTS.items():
        taken: dict[str, list[Taken]] = {"ours": [], "theirs": []}
        for side, code in [("ours", ours), ("theirs", theirs)] * (rounds + 1):
            taken[side].append(started([sys.executable, "-c", code]))
        found = {side: median(some[1:]) for side, some in taken.items()}  # the first brings the files into memory
        yield seconds_row(name, found["ours"], found["theirs"], goal, beside=theirs, rounds=rounds)


def loading(folder: Path, rounds: int) -> Iterator[dict[str, Any]]:
    """A host from its folder, in processes that have imported everything."""
    taken: dict[str, list[Taken]] = {side: [] for side in LOADS}
    for side, code in list(LOADS.items()) * (rounds + 1):
        one = started([sys.executable, "-c", code, str(folder)])
        taken[side].append(Taken(float(one.out.split()[-1]), one.cpu))
    found = {side: statistics.median(one.wall for one in some[1:]) for side, some in taken.items()}
    unit = "s, MiniLM's shape, after imports; ours also checks what belongs together"
    yield row("start_up, load of a host", found["ours"], found["theirs"], unit, less=True, rounds=rounds)


def first_steps(config: str, cold: int, warm: int, goals: tuple[str, str] = ("", "")) -> Iterator[dict[str, Any]]:
    """The first training step of a config that tunes a host on both domains."""
    with tempfile.TemporaryDirectory() as scratch:
        place = Path(scratch)
        workdir, cache, log = place / "run", place / "cache", place / "log"
        command = [
            sys.executable,
            "-m",
            "kinject.train",
            "--config",
            f"configs/{config}.py",
            "--workdir",
            str(workdir),
        ]
        command += ["--quiet", "--config.stages.host.fit.log_every=1"]
        command += [f"--config.stages.{domain}.graph.epochs=1" for domain in ("geography", "biology")]
        prepare = ["--stage", "geography", "--stage", "biology"]
        started([*command, *prepare], cache=place / "other_cache", log=log)

        def stepped() -> bool:
            path = workdir / "metrics.jsonl"
            lines = path.read_text().splitlines(keepends=True) if path.exists() else []
            return any(json.loads(line).get("stage") == "host" for line in lines if line[-1] == "\n")

        def first(into: Path) -> Taken:
            taken = started([*command, "--stage", "host"], cache=into, until=stepped, log=log)
            (workdir / "metrics.jsonl").unlink()
            return taken

        colds = [first(place / f"cold{i}") for i in range(cold)]
        first(cache)
        warms = [first(cache) for _ in range(warm)]
    name = f"{config}'s first training step"
    yield seconds_row(f"{name}, warm compilation cache", median(warms), None, goals[0], rounds=warm)
    yield seconds_row(f"{name}, cold compilation cache", median(colds), None, goals[1], rounds=cold)


def serving(folder: Path, repeats: int) -> Iterator[dict[str, Any]]:
    """A swap, and what a plugin adds."""
    import kinject
    from kinject.inference.host import knowledge_identity, open_host
    from kinject.knowledge.base import KnowledgeBase
    from kinject.plugins.base import make_plugin
    from kinject.plugins.store import save_plugin

    base = KnowledgeBase.open(folder / "knowledge")
    about = {"host": open_host(folder / "host").identity, "knowledge": knowledge_identity(base)}
    made = make_plugin({"name": "map_tuning"}, hidden_size=384, knowledge_dim=base.dim, seed=5)
    save_plugin(folder / "other", made, **about, config={}, metrics={})
    host = kinject.Host.load(folder / "host", max_length=128)
    # each is loaded anew, as what is kept of one that was in before would make its swap a shorter one
    plugins = [kinject.Plugin.load(folder / ("plugin", "other")[number % 2]) for number in range(repeats + 2)]
    yield swapping(host, plugins, base)
    host.plug(plugins[0], knowledge=base, name="one")
    yield from adding(host, kinject.Host.load(folder / "host", max_length=128), repeats)


def swapping(host: Any, plugins: list[Any], base: Any) -> dict[str, Any]:
    import jax
    from predict import questions

    (asked,), answers, taken, cpu = questions(1), set(), [], []
    for number, plugin in enumerate(plugins):  # the first two compile whatever there is to compile
        compiled = host.engine.programs.compiled
        began, used = time.perf_counter(), time.process_time()
        host.plug(plugin, knowledge=base, name="one")
        jax.block_until_ready(host.engine.model(host._arrangement.plugin)[1])
        taken.append(time.perf_counter() - began)
        cpu.append(time.process_time() - used)
        answers.add(host.predict(asked).score)
        if number > 1 and host.engine.programs.compiled != compiled:
            raise SystemExit("a swap compiled a program")
    if len(answers) != 2:
        raise SystemExit(f"two plugins gave {len(answers)} answers")
    milliseconds = sorted(1e3 * one for one in taken[2:])
    more = {"compilations": 0, "slowest": milliseconds[-1], "repeats": len(milliseconds)}
    unit = f"ms ({1e3 * statistics.median(cpu[2:]):.2f} ms of CPU time)"
    return row("serving, swap of a plugin", statistics.median(milliseconds), None, unit, goal="<= 1", **more)


def adding(plugged: Any, plain: Any, repeats: int) -> Iterator[dict[str, Any]]:
    """What a plugin adds to an answer's time where the padded length is the same with and without its slot."""
    from dataclasses import replace

    from predict import questions

    records = [one for one in questions(400) if 57 <= len(one.source.split()) + 2 <= 62]  # 64 positions in either case
    records = [replace(records[i % len(records)], where=f"made:{i}") for i in range(32)]
    hosts = {"ours": plugged, "theirs": plain}
    for count in (1, 32):
        some = records[:count]
        ways = {side: lambda host=host, some=some: list(host.predict(some)) for side, host in hosts.items()}
        name = f"serving, an answer with a plugin / without, {count} text{'s' * (count > 1)} of 64 positions"
        yield added(name, "ms, texts to labels", ways, repeats)
    yield on_one_batch(plugged, some, repeats)


def on_one_batch(host: Any, records: list[Any], repeats: int) -> dict[str, Any]:
    """The compiled programs alone, on one batch with slots that the host alone does not read."""
    import jax

    arrangement, engine = host._arrangement, host.engine
    examples = engine.examples(records, arrangement)
    gather, pad = arrangement.knowledge.gather, host.ready.tokenizer.pad_id
    (_, batch), *_ = engine._dealer(arrangement).batches(examples, gather, pad)
    batch = engine.place.batch(batch, len(batch["weights"]))
    models = {"ours": engine.model(arrangement.plugin), "theirs": engine.model(None)}

    def way(program: Any, params: Any) -> Callable[[], Any]:
        step = engine.programs.answer(program, 5)
        return lambda: jax.block_until_ready(step(params, batch))

    ways = {side: way(*model) for side, model in models.items()}
    return added("serving, compiled programs, 32 texts of 64 positions", "ms", ways, repeats)


def added(name: str, unit: str, ways: dict[str, Callable[[], Any]], repeats: int) -> dict[str, Any]:
    """The row of what is added by ours to theirs."""
    ours, theirs, ratio = paired(ways, repeats)
    made = row(name, 1e3 * ours, 1e3 * theirs, f"{unit}, CPU time", less=True)
    percent = 100 * (ratio - 1)
    return {**made, "ratio": 1 / ratio, "goal": "added <= 5 %", "met": percent <= 5, "added_percent": percent}


def paired(ways: dict[str, Callable[[], Any]], repeats: int) -> tuple[float, float, float]:
    """Median CPU seconds of each way, in turns, and the median of the ratios within turns."""
    taken: dict[str, list[float]] = {side: [] for side in ways}
    for number in range(repeats + 1):
        for side in list(ways) if number % 2 else list(reversed(ways)):
            began = time.process_time()
            ways[side]()
            taken[side].append(time.process_time() - began)
    kept = {side: some[1:] for side, some in taken.items()}  # the first compiles
    ratio = statistics.median(a / b for a, b in zip(kept["ours"], kept["theirs"], strict=True))
    return statistics.median(kept["ours"]), statistics.median(kept["theirs"]), ratio


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="processes of each kind, after one that is not counted")
    parser.add_argument("--cold", type=int, default=2, help="first steps with an empty compilation cache")
    parser.add_argument("--repeats", type=int, default=30, help="swaps and answers")
    parser.add_argument("--part", nargs="+", choices=("imports", "load", "first_step", "serving"), help="default: all")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    parts = arguments.part or ["imports", "load", "first_step", "serving"]
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        if "imports" in parts:
            rows += imports(arguments.rounds)
        if "first_step" in parts:
            rows += first_steps("quickstart", arguments.cold, arguments.rounds, ("<= 5", "<= 10"))
            rows += first_steps("delivery", arguments.cold, arguments.rounds)
        if {"load", "serving"} & set(parts):
            from predict import write_files

            write_files(folder, 384, 6)
        if "load" in parts:
            rows += loading(folder / "host", arguments.rounds)
        if "serving" in parts:
            rows += serving(folder, arguments.repeats)
    write(arguments.json, rows)


if __name__ == "__main__":
    main()
