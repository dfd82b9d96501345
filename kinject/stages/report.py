"""The end of a run: a table and a plot of what was evaluated, printed and saved, with the command that made them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.table import Table

from kinject.stages import compare
from kinject.stages.base import Run

ROWS = {
    "majority": "most frequent answer",
    "host": "host alone (no plugin)",
    "plugin": "host + plugin",
    "general_plugin": "host + general plugin (no labels)",
    "shuffled": "host + plugin, wrong vectors",
    "shuffled_follows_vector": "… and it says the wrong one's answer",
    "nearest_neighbour": "nearest neighbour, no model",
    "values_of_others": "the first, every passage saying what another says",
    "retrieved_first": "the own passage is found first",
    "retrieved": "… is among those found",
}
ORDER = ("majority", "host", "plugin", "shuffled", "shuffled_follows_vector", "nearest_neighbour")
NOT_ROWS = ("n", "metric", "coverage", "examples")
TABLES = ("evaluate", "memory_evaluate")  # kinds of stages that report rows by domain
NOT_FRACTIONS = ("negative_loss",)


def report(run: Run, config: Mapping[str, Any], command: str, seconds: float) -> None:
    """Prints examples, table, time, command and workdir; writes `results.md` and `results.png`.

    With several such stages the files of each are `results_<stage>.md` and `.png`.
    """
    tables = [name for name, stage in run.stages.items() if stage.kind in TABLES]
    for name in tables:
        if name in run.results:
            path = run.workdir / ("results.md" if len(tables) == 1 else f"results_{name}.md")
            domains = run.results[name]
            _examples(run, domains)
            run.reporter.console.print(table(domains))
            path.write_text(f"# {config['name']}\n\n`{command}`\n\n{markdown(domains)}")
            if plot(domains, path.with_suffix(".png")):
                run.reporter.say(f"plot:    {path.with_suffix('.png')}")
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


def row_names(domains: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Rows in the order in which they are read: controls around the plugins, plugins in the config's order."""
    found = [row for rows in domains.values() for row in rows if row not in NOT_ROWS]
    extra = [row for row in dict.fromkeys(found) if row not in ORDER]
    return [row for row in (*ORDER[:3], *extra, *ORDER[3:]) if row in found]


def title_of(domains: Mapping[str, Mapping[str, Any]]) -> str:
    """What the numbers are: the tasks' metric, in percent where it is a fraction."""
    metrics = dict.fromkeys(rows["metric"] for rows in domains.values())
    return ", ".join(metric if metric in NOT_FRACTIONS else f"{metric}, %" for metric in metrics)


def table(domains: Mapping[str, Mapping[str, Any]]) -> Table:
    """The metric by row and domain."""
    made = Table(title=f"held-out {title_of(domains)}", title_justify="left")
    made.add_column("")
    for name, rows in domains.items():
        made.add_column(f"{name} (n={rows['n']})", justify="right")
    for row in row_names(domains):
        made.add_row(ROWS.get(row, row.replace("_", " ")), *[_shown(rows, row) for rows in domains.values()])
    return made


def markdown(domains: Mapping[str, Mapping[str, Any]]) -> str:
    """The same table in Markdown."""
    head = [f"held-out {title_of(domains)}", *(f"{name} (n={rows['n']})" for name, rows in domains.items())]
    lines = [f"| {' | '.join(head)} |", f"|---|{'---:|' * len(domains)}"]
    for row in row_names(domains):
        cells = [ROWS.get(row, row.replace("_", " ")), *(_shown(rows, row) for rows in domains.values())]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def plot(domains: Mapping[str, Mapping[str, Any]], path: Path) -> bool:
    """Bars by row, one panel a domain; False when matplotlib is not installed."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        return False
    figure = Figure(figsize=(5.2 * len(domains), 0.5 * len(row_names(domains)) + 1.4), layout="constrained")
    FigureCanvasAgg(figure)
    names = row_names(domains)[::-1]
    labels = [ROWS.get(row, row.replace("_", " ")) for row in names]
    shades = ["#1b6ca8" if row not in ORDER or row == "plugin" else "#9aa5b1" for row in names]
    panels = figure.subplots(1, len(domains), squeeze=False, sharey=True)[0]
    for axes, (name, rows) in zip(panels, domains.items(), strict=True):
        scale = 1 if rows["metric"] in NOT_FRACTIONS else 100
        bars = axes.barh(labels, [scale * rows.get(row, 0) for row in names], color=shades)
        axes.bar_label(bars, [_shown(rows, row) for row in names], padding=3)
        axes.set(xlabel=title_of({name: rows}), title=f"{name} (n={rows['n']})")
        if scale == 100:
            axes.set_xlim(0, 112)
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=150)
    return True


def _shown(rows: Mapping[str, Any], row: str) -> str:
    value = rows.get(row)
    if value is None:
        return ""
    return f"{value:.3f}" if rows["metric"] in NOT_FRACTIONS else f"{100 * value:.1f}"


def _examples(run: Run, domains: Mapping[str, Mapping[str, Any]]) -> None:
    for name, rows in domains.items():
        for one in rows.get("examples", ()):
            mark = "right" if one["plugin"] == one["label"] else f"wrong, it is {one['label']}"
            run.reporter.say(f"{name}: {one['text']}  host: {one['host']}  + plugin: {one['plugin']} ({mark})")
