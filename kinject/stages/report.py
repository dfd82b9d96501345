"""The end of a run: a table and a plot of what was evaluated, printed and saved, with the command that made them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.table import Table

from kinject import plots
from kinject.page import write_report
from kinject.results import TABLES, row_names, row_title, shown, title_of
from kinject.stages import compare
from kinject.stages.base import Run


def report(run: Run, config: Mapping[str, Any], command: str, seconds: float) -> None:
    """Prints examples, table, time, command and workdir; writes `results.md`, `results.png` and `results.svg`.

    With several such stages the files of each are `results_<stage>.md`, `.png` and `.svg`.
    """
    tables = [name for name, stage in run.stages.items() if stage.kind in TABLES]
    for name in tables:
        if name in run.results:
            path = run.workdir / ("results.md" if len(tables) == 1 else f"results_{name}.md")
            domains = run.results[name]
            _examples(run, domains)
            run.reporter.console.print(table(domains))
            path.write_text(f"# {config['name']}\n\n`{command}`\n\n{markdown(domains)}")
            if plots.available():
                drawn, _ = plots.save(plots.result_bars(domains), path.with_suffix(""))
                run.reporter.say(f"plot:    {drawn}")
    for name, stage in run.stages.items():
        if stage.kind == "compare" and name in run.results:
            text = "\n".join(compare.table(domain, found) for domain, found in run.results[name].items())
            (run.workdir / f"{name}.md").write_text(f"# {config['name']}\n\n`{command}`\n\n{text}")
            run.reporter.say(text)
    taken = run.results.get("seconds", {})
    stages = ", ".join(f"{name} {value:.0f}" for name, value in taken.items() if name != "total")
    run.reporter.say(f"seconds: {taken.get('total', 0):.0f} in stages ({stages}); this call {seconds:.0f}")
    run.reporter.say(f"command: {command}")
    run.reporter.say(f"workdir: {run.workdir}")
    if plots.available():
        run.reporter.say(f"report:  {write_report(run.workdir)}")
    else:
        run.reporter.say(f"report:  pip install 'kinject[plots]', then kinject report {run.workdir}")


def table(domains: Mapping[str, Mapping[str, Any]]) -> Table:
    """The metric by row and domain."""
    made = Table(title=f"held-out {title_of(domains)}", title_justify="left")
    made.add_column("")
    for name, rows in domains.items():
        made.add_column(f"{name} (n={rows['n']})", justify="right")
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


def _examples(run: Run, domains: Mapping[str, Mapping[str, Any]]) -> None:
    for name, rows in domains.items():
        for one in rows.get("examples", ()):
            mark = "right" if one["plugin"] == one["label"] else f"wrong, it is {one['label']}"
            run.reporter.say(f"{name}: {one['text']}  host: {one['host']}  + plugin: {one['plugin']} ({mark})")
