"""docs/reliability.md: what was injected and killed, and what came of it. Its other sections are kept as they stand."""

import collections
from pathlib import Path

from faults import injection

BEGIN, END = "<!-- written by python -m tests.faults -->", "<!-- end of what it writes -->"
GOOD = ("whole", "nothing", "same")
TEXT = """
in one file of a copy of a small world, which is then read as its users read it: hosts and plugins by answers, knowledge
bases by all their vectors, words, names and revisions, memories by their passages, checkpoints by the training that
goes on from them, texts and tables by what is made of them. *Refused* is one line of an `InputError`. *Same* is the
answer of the whole world, to the bit: of a byte that nothing reads, an index that is made anew, a checkpoint that is
passed over. *As it stands* is a text that is another good one now, read as Python's own readers read it. Bad would be
any other answer, a traceback, a signal, a minute without an answer, or more than 1.5 times the memory of the healthy
read and 8 MB (of the making, where an index of names or what checkpoints hold must be made anew).
`tests/test_fault_injection.py` does some rounds with every run of the tests.
"""


def written(path: Path, rounds: list, kills: list, seed: int) -> list:
    """Writes the tables between the page's two marks; returns what was bad."""
    bad = [one for one in rounds if one["outcome"] not in injection.FINE]
    lost = [one for one in kills if one["outcome"] not in GOOD]
    command = f"python -m tests.faults --rounds {len(rounds)} --kills {len(kills)} --seed {seed}"
    lines = [BEGIN, "", f"Written by `{command}`: each fault", *TEXT.strip().splitlines(), ""]
    columns = [*injection.FINE, "bad"]
    by_fault = collections.Counter((one["fault"], _column(one, bad)) for one in rounds)
    lines += ["| fault | " + " | ".join(columns) + " |", "|---|" + "---|" * len(columns)]
    lines += [_row(fault, [by_fault[fault, column] for column in columns]) for fault in injection.FAULTS]
    lines += [_row("all", [sum(by_fault[fault, column] for fault in injection.FAULTS) for column in columns])]
    by_part = collections.Counter((one["file"].split("/")[0], _column(one, bad)) for one in rounds)
    large = collections.Counter(one["file"].split("/")[0] for one in rounds if one.get("large"))
    lines += ["", "| folder | faults | of them in files above a megabyte | " + " | ".join(columns) + " |"]
    lines += ["|---|---|---|" + "---|" * len(columns)]
    for part in injection.PARTS:
        counts = [by_part[part, column] for column in columns]
        lines.append(_row(f"`{part}`", [sum(counts), large[part], *counts]))
    if kills:
        lines += _killed(kills, lost)
    if bad or lost:
        lines += ["", "Bad:", ""]
        lines += [f"- seed {one['seed']}: {one.get('fault', one.get('what'))}: {one['outcome']}" for one in bad + lost]
    seconds = sum(one.get("seconds", 0) for one in rounds)
    most = max((one.get("memory", 0) for one in rounds), default=0)
    lines += ["", f"The rounds took {seconds:.0f} s of CPU; the one that took most memory {most:.0f} MB.", "", END]
    before, _, rest = path.read_text().partition(BEGIN) if path.exists() else ("# Reliability\n\n", "", "")
    path.write_text(before + "\n".join(lines) + (rest.partition(END)[2] or "\n"))
    return bad + lost


def _column(one, bad):
    return "bad" if one in bad else one["outcome"]


def _row(name, cells):
    return f"| {name} | " + " | ".join(map(str, cells)) + " |"


def _killed(kills, lost):
    lines = ["", f"{len(kills)} commands that write were killed (SIGKILL): half of them at a random one of the moments"]
    lines += [
        "when they open a file to write, rename, remove or make one, half at a random moment of the time that they"
    ]
    lines += [
        "take. What they had made was read, then the same command run again to its end; the bits are the same:",
        "",
    ]
    lines += ["| command | kills | of them in the middle | lost or differing |", "|---|---|---|---|"]
    for what in sorted({one["what"] for one in kills}):
        some = [one for one in kills if one["what"] == what]
        lines.append(_row(what, [len(some), sum(one["middle"] for one in some), sum(one in lost for one in some)]))
    return lines
