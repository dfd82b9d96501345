"""Faults at length: `python -m tests.faults --rounds 1000 --kills 200`; writes docs/reliability.md.

A run may be cut short anywhere: what was done is kept in `--state`, and the same command goes on. Rounds run in
children of a process that has imported what it needs and never starts JAX itself, many in each; one that dies of a
signal or says nothing for a minute is told as a crash or a hang of the round that it was at, and the next child goes on
behind it. A round may take 1.5 times the memory that the healthy read of its part takes (of a run
without checkpoints, of a base without its index of names, as damaged ones are made anew), and eight megabytes for what
allocators keep.
"""

import argparse
import json
import os
import shutil
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve()
sys.path.insert(0, str(HERE.parents[1]))

A_CHILD = 250  # rounds
MEMORY, SLACK = 1.5, 8.0  # of the healthy read, and MB
PAGE = HERE.parents[2] / "docs" / "reliability.md"


def main():
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--kills", type=int, default=0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=float("inf"), help="stop after so long; run again to go on")
    parser.add_argument("--state", type=Path, default=Path("runs/faults"), help="folder of what was done")
    parser.add_argument("--out", type=Path, default=PAGE)
    arguments = parser.parse_args()
    state = arguments.state.absolute()
    state.mkdir(parents=True, exist_ok=True)
    for name, value in (
        ("JAX_COMPILATION_CACHE_DIR", state / "jit"),
        ("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", 0),
        ("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", -1),
        ("JAX_PLATFORMS", "cpu"),
        ("FAULTS_WORLD", state / "world"),
    ):
        os.environ.setdefault(name, str(value))

    from faults.page import written

    deadline = time.monotonic() + arguments.seconds
    wanted = prepared(state)
    rounds = Done(state / "rounds.jsonl")
    seeds = [seed for seed in range(arguments.seed, arguments.seed + arguments.rounds) if seed not in rounds.found]
    while seeds and time.monotonic() < deadline:
        seeds = some_rounds(state, seeds, wanted, rounds, deadline)
    kills = Done(state / "kills.jsonl")
    if arguments.kills:
        from faults.kills import some_kills

        some_kills(state, range(arguments.seed, arguments.seed + arguments.kills), kills, deadline)
    bad = written(arguments.out, list(rounds.found.values()), list(kills.found.values()), arguments.seed)
    for one in bad:
        print(json.dumps(one))
    print(f"{len(rounds.found)} faults and {len(kills.found)} kills so far, {len(bad)} bad")
    return int(bool(bad))


class Done:
    """What was done, by seed, kept in a file of JSON lines."""

    def __init__(self, path):
        self.path = path
        lines = path.read_text().splitlines() if path.exists() else []
        self.found = {one["seed"]: one for one in map(json.loads, lines)}

    def add(self, one):
        self.found[one["seed"]] = one
        with self.path.open("a") as file:
            file.write(json.dumps(one) + "\n")


def prepared(state):
    """Makes the world, once; returns what reading each part of it comes to."""
    import kinject.cli.verify
    import kinject.knowledge
    import kinject.linking
    import kinject.memory
    import kinject.serving
    import kinject.stages.experiment  # noqa: F401
    from faults import injection, world
    from faults.apart import apart

    def make():
        world.write_world(state / "world")
        parts = {}
        for part in injection.PARTS:
            folder = injection.copied(state / "world", state / "copy", part)
            parts[part] = injection.read_part(folder, part)
        return parts

    if not (state / "wanted.json").exists():
        shutil.rmtree(state / "world", ignore_errors=True)
        (state / "wanted.json").write_text(json.dumps(apart(make)))
    return json.loads((state / "wanted.json").read_text())


def some_rounds(state, seeds, wanted, rounds, deadline=float("inf")):
    """Runs a child's worth of rounds; returns the seeds that are left."""
    from faults import injection
    from faults.apart import Peak, listened

    world, copy, kept = state / "world", state / "copy", state / "healthy.json"

    def healthy_read(part):
        folder = injection.copied(world, copy, part)
        for again in (f"{part}/checkpoints", f"{part.removesuffix('.names')}.names"):
            shutil.rmtree(folder / again, ignore_errors=True)  # a damaged one is trained or made anew
        with Peak() as peak:
            injection.read_part(folder, part)
        return peak.grown

    def work(say):
        healthy = json.loads(kept.read_text()) if kept.exists() else {}
        for seed in seeds[:A_CHILD]:
            if time.monotonic() > deadline:
                break
            part, fault, name = injection.chosen(world, seed)
            say({"begun": seed, "fault": fault, "file": str(name)})
            if part not in healthy:
                healthy_read(part)  # compiles
                healthy[part] = healthy_read(part)
                kept.write_text(json.dumps(healthy))
            started = time.process_time()
            with Peak() as peak:
                found = injection.judged(world, copy, seed, wanted)._asdict()
            if peak.grown > MEMORY * healthy[part] + SLACK:  # once more, both: what was freed is used again or is not
                healthy[part] = max(healthy[part], healthy_read(part))
                with Peak() as peak:
                    injection.judged(world, copy, seed, wanted)
            if peak.grown > MEMORY * healthy[part] + SLACK:
                found["outcome"] = f"memory: {peak.grown:.0f} MB, {healthy[part]:.0f} MB healthy"
            say({**found, "memory": round(peak.grown, 1), "seconds": round(time.process_time() - started, 2)})

    at = None
    for said in listened(work):
        if isinstance(said, dict) and "begun" in said:
            at = said
        elif isinstance(said, dict):
            rounds.add(said)
            at = None
        elif at is not None:
            rounds.add({"seed": at["begun"], "fault": at["fault"], "file": at["file"], "outcome": said, "said": ""})
    return [seed for seed in seeds if seed not in rounds.found]


if __name__ == "__main__":
    sys.exit(main())
