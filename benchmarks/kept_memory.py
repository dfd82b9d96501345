"""What a CPU's training step gains from memory that is kept between steps (kinject/inference/xla.py).

    python benchmarks/kept_memory.py --json OUT            (bert-base's shape)

Two processes train the same map on the same sentences in turns, pass by pass: one lets glibc keep what is freed, as
training by command does, and one leaves it as it is. Told are the median of the ratios of neighbouring passes, and how
many fresh pages a pass was given by the kernel.
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import jax
from made_up import shape_of
from map_tuning import World, ours

from kinject.inference.xla import cores, split_cpu, tune_malloc

ARMS = ("kept", "fresh")


class Pass(NamedTuple):
    """Of one pass over the sentences: how many a second, fresh pages, mean loss."""

    rate: float
    pages: float
    loss: float


def child(arm: str, arguments: argparse.Namespace) -> None:
    """Trains a pass for each line that comes in, and tells about it."""
    if arm == "kept" and not tune_malloc():
        raise SystemExit("this C library cannot be told to keep memory, or a variable tells it otherwise")
    split_cpu(arguments.devices)
    with tempfile.TemporaryDirectory() as folder:
        world = World(Path(folder), shape_of(arguments.layers, arguments.hidden, 30_522), arguments.sentences, 4)
        run = ours(world, "bfloat16_dots", arguments.batch)
    print("ready", flush=True)
    for _ in sys.stdin:
        before, started = resource.getrusage(resource.RUSAGE_SELF).ru_minflt, time.perf_counter()
        sentences, loss = run()
        seconds, pages = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
        print(sentences / seconds, pages, loss, flush=True)


def passes(arguments: argparse.Namespace) -> dict[str, list[Pass]]:
    """Of each arm, in turns; the first of each, which warms up, is left out."""
    command = [sys.executable, *sys.argv, "--arm"]
    running = {arm: subprocess.Popen([*command, arm], stdin=-1, stdout=-1, text=True) for arm in ARMS}
    found: dict[str, list[Pass]] = {arm: [] for arm in ARMS}
    try:
        for arm, process in running.items():
            if process.stdout.readline().strip() != "ready":
                raise SystemExit(f"the arm {arm!r} did not start")
        for turn in range(arguments.rounds + 1):
            for arm in ARMS if turn % 2 else ARMS[::-1]:
                running[arm].stdin.write("\n")
                running[arm].stdin.flush()
                found[arm].append(Pass(*map(float, running[arm].stdout.readline().split())))
    finally:
        for process in running.values():
            process.kill()
    return {arm: those[1:] for arm, those in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sentences", type=int, default=128, help="a pass")
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--hidden", type=int, default=768)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--devices", type=int, default=cores(), help="a core each")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--arm", choices=ARMS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.arm is not None:
        child(arguments.arm, arguments)
        return
    found = passes(arguments)
    kept, fresh = (found[arm] for arm in ARMS)
    ratio = statistics.median(one.rate / other.rate for one, other in zip(kept, fresh, strict=True))
    rates, pages = (
        [statistics.median(getattr(one, of) for one in found[arm]) for arm in ARMS] for of in Pass._fields[:2]
    )
    losses = [statistics.fmean(one.loss for one in found[arm]) for arm in ARMS]
    row = {
        "name": "kept_memory, map-tuning step, kept / fresh",
        "ratio": ratio,
        "ours": rates[0],
        "theirs": rates[1],
        "unit": "sentences a second, mention-masked LM, training step, bfloat16_dots",
        "hardware": f"cpu, {platform.machine()}, {cores()} cores",
        "versions": f"jax {jax.__version__}, {' '.join(platform.libc_ver())}",
        "shape": f"{arguments.layers} x {arguments.hidden}, batches of {arguments.batch}",
        "fresh_pages_a_pass": {"ours": pages[0], "theirs": pages[1]},
        "loss": {"ours": losses[0], "theirs": losses[1]},
    }
    print(f"{row['name']}: {rates[0]:.1f} / {rates[1]:.1f} sentences/s, {ratio:.2f}x (median of pairs)")
    print(f"  fresh pages a pass: {pages[0]:,.0f} / {pages[1]:,.0f}; losses: {losses[0]:.4f} / {losses[1]:.4f}")
    if arguments.json:
        arguments.json.write_text(json.dumps([row], indent=2) + "\n")


if __name__ == "__main__":
    main()
