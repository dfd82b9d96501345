"""Faults at length: `python -m tests.faults --rounds 1000`, each in a process of its own; writes docs/reliability.md.

The process that forks has imported what it needs and has started no thread of JAX. A child that dies of a signal, takes
longer than a minute, or more than one and a half times the memory of reading the whole world, is told as such.
"""

import argparse
import collections
import json
import os
import random
import resource
import signal
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).resolve()
sys.path.insert(0, str(HERE.parents[1]))

from faults import injection  # noqa: E402 (tests stand beside each other on the path)

LONGEST = 60  # seconds of a round
MEMORY = 1.5  # of the memory of a healthy read
PAGE = HERE.parents[2] / "docs" / "reliability.md"


def apart(work, seconds=LONGEST, kill_after=None):
    """Runs `work()` in a child; returns (its JSON, or why there is none; its peak memory in MB)."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            os.close(read)
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, 1)
            os.dup2(null, 2)
            with os.fdopen(write, "w") as out:
                json.dump(work(), out)
            code = 0
        finally:
            os._exit(code)
    os.close(write)
    started, killed = time.monotonic(), False
    while True:
        done, status, usage = os.wait4(child, os.WNOHANG)
        if done:
            break
        limit = seconds if kill_after is None else kill_after
        if time.monotonic() - started > limit and not killed:
            os.kill(child, signal.SIGKILL)
            killed = True
        time.sleep(0.002)
    with os.fdopen(read) as answer:
        text = answer.read()
    if killed:
        return "killed" if kill_after is not None else "hang", usage.ru_maxrss / 1024
    if os.WIFSIGNALED(status):
        return f"crash: signal {os.WTERMSIG(status)}", usage.ru_maxrss / 1024
    return (json.loads(text) if text else "no answer"), usage.ru_maxrss / 1024


def make_world(folder):
    from fault_world import write_fault_world

    write_fault_world(folder)
    injection.write_wide(folder)
    return injection.expected(folder)


def main():
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--kills", type=int, default=None, help="default: a fifth of the rounds")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=PAGE)
    arguments = parser.parse_args()
    kills = arguments.rounds // 5 if arguments.kills is None else arguments.kills
    import kinject.cli.verify
    import kinject.knowledge
    import kinject.linking
    import kinject.memory
    import kinject.serving  # noqa: F401

    with tempfile.TemporaryDirectory() as scratch:
        world, copy = Path(scratch) / "world", Path(scratch) / "copy"
        wanted, _ = apart(lambda: make_world(world), 600)
        if not isinstance(wanted, dict):
            sys.exit(f"the world could not be made: {wanted}")
        healthy = {part: apart(lambda part=part: injection.read_part(world, part))[1] for part in injection.PARTS}
        seeds = range(arguments.seed, arguments.seed + arguments.rounds)
        rounds = [one_round(world, copy, seed, wanted, healthy) for seed in seeds]
        ended = [one_kill(world, copy, arguments.seed + number, wanted) for number in range(kills)]
    arguments.out.write_text(page(rounds, ended, arguments))
    bad = [one for one in rounds if one.outcome not in injection.FINE]
    for one in bad:
        print(*one, sep="\t")
    print(f"{len(rounds)} faults, {len(bad)} bad; {len(ended)} kills, {sum(one[1] not in GOOD for one in ended)} bad")
    return bool(bad) or any(one[1] not in GOOD for one in ended)


GOOD = ("whole", "nothing")
TEXT = """
in one file of a copy of a small world (a host, a plugin, knowledge bases below and above the size of a block with the
index of their names, a passage memory), read afterwards in a process of its own as its users read it. *Refused* is one
line of an `InputError`; *same* is the answer of the whole world, to the bit, as for a byte that nothing reads or an
index that is made anew. Bad would be another answer, a traceback, a signal, a minute, or more than 1.5 times the memory
of a healthy read. `tests/test_fault_injection.py` does some rounds with every run of the tests.
"""


def one_round(world, copy, seed, wanted, healthy):
    injection.copied(world, copy)
    told, memory = apart(lambda: list(injection.judged(copy, seed, wanted)))
    if not isinstance(told, list):
        injection.copied(world, copy)
        fault, file = injection.inject(copy, seed)
        return injection.Round(seed, fault, file, told)
    found = injection.Round(*told)
    part = injection.READ.get(found.file.split("/")[0], found.file.split("/")[0])
    if memory > MEMORY * healthy[part]:
        return found._replace(outcome=f"memory: {memory:.0f} MB")
    return found


def one_kill(world, copy, seed, wanted):
    draw = random.Random(seed)
    what = draw.choice(injection.WRITERS)
    injection.copied(world, copy)
    told, _ = apart(lambda: injection.write_and_check(copy, what), kill_after=draw.uniform(0.0, 0.5))
    after, _ = apart(lambda: injection.after_kill(copy, what, wanted))
    return what, after, told == "killed"


def page(rounds, ended, arguments):
    """docs/reliability.md: what was injected, and what came of it."""
    table = collections.Counter((one.fault, one.outcome if one.outcome in injection.FINE else "bad") for one in rounds)
    by_part = collections.Counter((one.file.split("/")[0], one.outcome in injection.FINE) for one in rounds)
    lines = [
        "# Reliability",
        "",
        f"Written by `python -m tests.faults --rounds {arguments.rounds} --seed {arguments.seed}`: each fault",
        *TEXT.strip().splitlines(),
        "",
        "| fault | refused | same | bad |",
        "|---|---|---|---|",
    ]
    for fault in injection.FAULTS:
        lines.append(f"| {fault} | {table[fault, 'refused']} | {table[fault, 'same']} | {table[fault, 'bad']} |")
    lines += ["", "| folder | faults | bad |", "|---|---|---|"]
    for part in (*injection.PARTS, *injection.READ):
        lines.append(f"| `{part}` | {by_part[part, True] + by_part[part, False]} | {by_part[part, False]} |")
    lines += ["", f"{len(ended)} writers were killed (SIGKILL) at a random moment of their first half second:", ""]
    lines += ["| writer | kills | of them in the middle | whole or nothing afterwards |", "|---|---|---|---|"]
    for what in injection.WRITERS:
        some = [one for one in ended if one[0] == what]
        middle, good = sum(one[2] for one in some), sum(one[1] in GOOD for one in some)
        lines.append(f"| {what} | {len(some)} | {middle} | {good} |")
    bad = [one for one in rounds if one.outcome not in injection.FINE]
    if bad:
        lines += [
            "",
            "Bad:",
            "",
            *(f"- seed {one.seed}: {one.fault} in `{one.file}`: {one.outcome} {one.said}" for one in bad),
        ]
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
    return "\n".join([*lines, "", f"The largest process took {peak:.0f} MB.", ""])


if __name__ == "__main__":
    sys.exit(main())
