"""The end of a run: tables and a plot of what was evaluated, printed and saved, with the command that made them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from kinject.reports import plots
from kinject.reports.console import Reporter
from kinject.reports.html import write_report
from kinject.reports.results import TABLES, kinds_of, row_names, row_title, shown, title_of


@dataclass(frozen=True)
class Ended:
    """A run that came to its end.

    Attributes:
      stages: {name: kind}, in the order of the config.
      results: `results.json`.
      seconds: what this call took.
    """

    name: str
    workdir: Path
    stages: Mapping[str, str]
    results: Mapping[str, Any]
    command: str
    seconds: float


def report(run: Ended, reporter: Reporter) -> None:
    """Prints examples, table, time, command and workdir; writes `results.md`, `results.png` and `results.svg`.

    With several such stages the files of each are `results_<stage>.md`, `.png` and `.svg`.
    """
    tables = [name for name, kind in run.stages.items() if kind in TABLES]
    for name in tables:
        if name in run.results:
            path = run.workdir / ("results.md" if len(tables) == 1 else f"results_{name}.md")
            domains = run.results[name]
            _examples(domains, reporter)
            by_kind = {domain: kinds_of(rows) for domain, rows in domains.items() if "kinds" in rows}
            for domain, one in (("", domains), *by_kind.items()):
                for part in tables_within(reporter.console.width, one, domain):
                    reporter.console.print(part)
            pages = [markdown(domains), *(f"## {domain}\n\n{markdown(one)}" for domain, one in by_kind.items())]
            path.write_text("\n".join([f"# {run.name}\n\n`{run.command}`\n", *pages]))
            if plots.available():
                drawn, _ = plots.save(plots.result_bars(domains), path.with_suffix(""))
                reporter.say(f"plot:    {drawn}")
    for name, kind in run.stages.items():
        if kind == "compare" and name in run.results:
            text = "\n".join(comparison(domain, found) for domain, found in run.results[name].items())
            (run.workdir / f"{name}.md").write_text(f"# {run.name}\n\n`{run.command}`\n\n{text}")
            reporter.say(text)
    taken = run.results.get("seconds", {})
    stages = ", ".join(f"{name} {value:.0f}" for name, value in taken.items() if name != "total")
    reporter.say(f"seconds: {taken.get('total', 0):.0f} in stages ({stages}); this call {run.seconds:.0f}")
    reporter.say(f"command: {run.command}")
    reporter.say(f"workdir: {run.workdir}")
    if plots.available():
        reporter.say(f"report:  {write_report(run.workdir)}")
    else:
        reporter.say(f"report:  pip install 'kinject[plots]', then kinject report {run.workdir}")


def _examples(domains: Mapping[str, Mapping[str, Any]], reporter: Reporter) -> None:
    for name, rows in domains.items():
        for one in rows.get("examples", ()):
            mark = "right" if one["plugin"] == one["label"] else f"wrong, it is {one['label']}"
            reporter.say(f"{name}: {one['text']}  host: {one['host']}  + plugin: {one['plugin']} ({mark})")


def tables_within(width: int, domains: Mapping[str, Mapping[str, Any]], title: str = "") -> list[Table]:
    """The metric by row and column, in as many tables of at most `width` characters as it takes: no cell is cut."""
    whole = table(domains, title)
    if len(domains) < 2 or Console(width=10_000).measure(whole).maximum <= width:
        return [whole]
    first = max(len(row_title(row)) for row in row_names(domains)) + 4
    parts: list[dict[str, Mapping[str, Any]]] = []
    left = 0
    for name, rows in domains.items():
        needed = max(len(name), len(f"(n={rows['n']})"), 6) + 3
        if not parts or left < needed:
            parts.append({})
            left = width - first
        parts[-1][name] = rows
        left -= needed
    return [table(part, title, "\n") for part in parts]


def table(domains: Mapping[str, Mapping[str, Any]], title: str = "", apart: str = " ") -> Table:
    """The metric by row and domain; `apart` stands between a column's name and its number of examples."""
    made = Table(title=f"{title}{title and ', '}held-out {title_of(domains)}", title_justify="left")
    made.add_column("", no_wrap=bool(apart.strip(" ")))
    for name, rows in domains.items():
        made.add_column(f"{name}{apart}(n={rows['n']})", justify="right")
    for row in row_names(domains):
        made.add_row(row_title(row), *[shown(rows, row) for rows in domains.values()])
    return made


def markdown(domains: Mapping[str, Mapping[str, Any]]) -> str:
    """The same table in Markdown."""
    head = [f"held-out {title_of(domains)}", *(f"{name} (n={rows['n']})" for name, rows in domains.items())]
    lines = [f"| {' | '.join(head)} |", f"|---|{'---:|' * len(domains)}"]
    for row in row_names(domains):
        cells = [row_title(row), *(shown(rows, row) for rows in domains.values())]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def comparison(name: str, found: Mapping[str, Any]) -> str:
    """One domain of a `compare` stage in Markdown: a row a method, with what it costs."""
    head = [
        f"{name} (n={found['n']})",
        f"{found['metric']}, %",
        "others' knowledge, %",
        "trained parameters",
        "training s",
        "latency, x host",
        "tokens",
        "prepare ms",
    ]
    lines = [f"| {' | '.join(head)} |", "|---|" + "---:|" * (len(head) - 1)]
    for row, values in found["methods"].items():
        cells = [
            row.replace("_", " "),
            f"{100 * values['score']:.1f}",
            f"{100 * values['shuffled']:.1f}" if "shuffled" in values else "",
            f"{values['parameters']:,}",
            f"{values['training_seconds']:.0f}" if "training_seconds" in values else "",
            f"{values['latency_ratio']:.2f}",
            f"{values['tokens']:.1f}",
            f"{values['prepare_milliseconds']:.2f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"
