"""A run or a sweep as one HTML page that needs nothing else.

Tables with their control rows, curves, ablation bars, config, command, hardware and versions. Plots are inside the file
(SVG), styles too; it asks no network for anything, and prints.
"""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kinject.errors import InputError
from kinject.reports import plots
from kinject.reports.results import (
    NOT_FRACTIONS,
    FinishedRun,
    FinishedSweep,
    kinds_of,
    open_results,
    row_names,
    row_title,
    shown,
    spread,
    title_of,
)
from kinject.version import __version__

if TYPE_CHECKING:
    from matplotlib.figure import Figure

STYLE = """\
body { font: 15px/1.45 system-ui, sans-serif; color: #1a1a1a; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; }
h1, h2 { line-height: 1.2; } h2 { margin-top: 2.2rem; border-bottom: 1px solid #bbb; }
table { border-collapse: collapse; margin: .8rem 0; } caption { text-align: left; font-weight: 600; padding: .3rem 0; }
th, td { padding: .2rem .7rem; border-bottom: 1px solid #ddd; text-align: left; vertical-align: top; }
td.number, th.number { text-align: right; font-variant-numeric: tabular-nums; } tr.plugin td { font-weight: 600; }
figure { margin: 1rem 0; } img { max-width: 100%; } figcaption { color: #555; }
pre, code { font: 13px/1.4 ui-monospace, monospace; } pre { overflow-x: auto; background: #f4f4f4; padding: .7rem; }
.wide { overflow-x: auto; } @media print { details { display: none; } body { margin: 0; } h2 { break-after: avoid; } }
"""
CONTROLS = """\
Wrong vectors: every question's entity is given the vector of another question's. What the plugin still gets right then,
it does not owe to the knowledge."""


def write_report(folder: Path | str, out: Path | None = None) -> Path:
    """Writes the report of a run or a sweep, whole or not at all, and returns its file.

    Args:
      folder: a run's workdir, or the folder of a gathered sweep.
      out: the file; None: `report.html` in that folder.

    Raises:
      InputError: neither is there, a file is not as kinject writes it, or `out` cannot be written.
    """
    found = open_results(folder)
    page = html(found)
    path = Path(folder) / "report.html" if out is None else out
    partial = path.with_name(path.name + ".partial")
    try:
        partial.write_text(page, encoding="utf-8")
        partial.replace(path)
    except OSError as error:
        raise InputError(f"--out {path}", f"it cannot be written: {error.strerror}") from None
    return path


def html(found: FinishedRun | FinishedSweep) -> str:
    """The whole page."""
    name = found.name if isinstance(found, FinishedRun) else found.folder.name
    parts = list(_of_run(found) if isinstance(found, FinishedRun) else _of_sweep(found))
    if not plots.available():
        parts.insert(0, "<p>matplotlib is not installed, so there are no plots: pip install 'kinject[plots]'.</p>")
    kind = "run" if isinstance(found, FinishedRun) else "sweep"
    head = f"<h1>{escape(name)}</h1><p>A {kind} of kinject, in <code>{escape(str(found.folder))}</code>.</p>"
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(name)}</title>\n'
        f'<meta name="viewport" content="width=device-width"><style>\n{STYLE}</style></head>\n<body>\n{head}\n'
        + "\n".join(parts)
        + f"\n<p><small>Written by kinject {__version__}.</small></p>\n</body></html>\n"
    )


def _of_run(run: FinishedRun) -> Iterable[str]:
    for stage, domains in run.tables().items():
        yield f"<h2>{escape(stage)}</h2>"
        yield _domains(domains)
        if any("shuffled" in values for values in domains.values()):
            yield f"<p>{CONTROLS}</p>"
        yield from _plot(partial(plots.result_bars, domains), "The same as bars.")
        for domain, values in domains.items():
            if "kinds" in values:
                yield f"<h3>{escape(domain)}, by kind of question</h3>{_domains(kinds_of(values))}"
        yield from _examples(domains)
    for stage, domains in run.of_kind("compare").items():
        for domain, values in domains.items():
            yield f"<h2>{escape(stage)}: {escape(domain)} (n={values['n']})</h2>"
            yield _methods(values)
            caption = "Score over trained parameters; the line joins the methods that no other beats at their size."
            yield from _plot(partial(plots.pareto, [run], domain), caption)
    if run.metrics:
        yield "<h2>Training</h2>"
        caption = "What metrics.jsonl logged; losses are means between lines."
        yield from _plot(partial(plots.training_curves, run), caption)
    yield "<h2>Stages</h2>"
    yield _stages(run)
    yield "<h2>How it was made</h2>"
    yield from _provenance([run])
    yield _folded("The whole config", json.dumps(run.config, indent=2, ensure_ascii=False))


def _of_sweep(sweep: FinishedSweep) -> Iterable[str]:
    runs = [run for seeds in sweep.runs.values() for run in seeds.values()]
    for place, table in sweep.evaluated().items():
        rows, scale = row_names({place: table}), 1 if table["metric"] in NOT_FRACTIONS else 100
        yield f"<h2>{escape(place)}</h2>"
        heads = [f"config, {title_of({place: table})}", *(row_title(row) for row in rows), "seeds"]
        cells = []
        for config, seeds in sweep.runs.items():
            found = [sweep.value(config, f"{place}.{row}") for row in rows]
            if any(found):
                texts = [spread(one, scale, len(seeds)) if one else "" for one in found]
                cells.append([config, *texts, str(len(seeds))])
        yield _table(heads, cells)
        if "shuffled" in table:
            several = any(len(seeds) > 1 for seeds in sweep.runs.values())
            yield f"<p>{'Mean ± sample deviation over seeds. ' if several else ''}{CONTROLS}</p>"
        caption = "Bars are means, whiskers deviations; a row that is the same everywhere is a line."
        yield from _plot(partial(plots.ablation_bars, sweep, place), caption)
    if any(run.tables() for run in runs):
        yield from _coverage(runs)
    for config, seeds in sweep.runs.items():
        tables = [found for one in seeds.values() for found in one.of_kind("compare").values()]
        for domain in dict.fromkeys(one for table in tables for one in table):
            yield f"<h2>{escape(config)}: {escape(domain)}</h2>"
            caption = "Score over trained parameters, mean and deviation over seeds."
            yield from _plot(partial(plots.pareto, list(seeds.values()), domain), caption)
    yield "<h2>How it was made</h2>"
    yield from _provenance(runs)
    lines = [
        [row["config"], row["measure"], f"{row['mean']:.4g}", f"{row['deviation']:.2g}", str(row["seeds"])]
        for row in sweep.rows
    ]
    everything = _table(["config", "measure", "mean", "deviation", "seeds"], lines, texts=2)
    yield f"<details><summary>All measures</summary>{everything}</details>"


def _coverage(runs: Sequence[FinishedRun]) -> Iterable[str]:
    """The gain over coverage, where coverage differs."""
    tables = [rows for run in runs for domains in run.tables().values() for rows in domains.values()]
    if len({round(rows["coverage"], 3) for rows in tables if "coverage" in rows and "plugin" in rows}) > 1:
        yield "<h2>Coverage and gain</h2>"
        yield from _plot(lambda: plots.coverage_and_gain(runs), "A point is a table's domain over all its runs.")


def _domains(domains: Mapping[str, Any]) -> str:
    """Rows by domain, or by kind of question."""
    rows = [[row_title(row), *(shown(values, row) for values in domains.values())] for row in row_names(domains)]
    heads = [f"held-out {title_of(domains)}", *(f"{name} (n={values['n']})" for name, values in domains.items())]
    strong = [n for n, row in enumerate(row_names(domains)) if row.endswith("plugin")]
    return _table(heads, rows, strong=strong)


def _examples(domains: Mapping[str, Any]) -> Iterable[str]:
    rows = [
        [one["text"], one["label"], one["host"], one["plugin"]]
        for values in domains.values()
        for one in values.get("examples", ())
    ]
    if rows:
        yield _table(["drawn by the seed", "right", "host alone", "host + plugin"], rows, texts=4)


def _methods(values: Mapping[str, Any]) -> str:
    heads = [f"method, {values['metric']} in %", "score", "others' knowledge", "trained parameters", "training s"]
    heads += ["latency, x host", "tokens"]
    rows = []
    for name, one in values["methods"].items():
        control = f"{100 * one['shuffled']:.1f}" if "shuffled" in one else ""
        trained = f"{one['training_seconds']:.0f}" if "training_seconds" in one else ""
        costs = [f"{one['parameters']:,}", trained, f"{one['latency_ratio']:.2f}", f"{one['tokens']:.1f}"]
        rows.append([name.replace("_", " "), f"{100 * one['score']:.1f}", control, *costs])
    return _table(heads, rows)


def _stages(run: FinishedRun) -> str:
    """Every stage's numbers in a line, and how long it took."""
    seconds, rows = run.results.get("seconds", {}), []
    for name, stage in run.config["stages"].items():
        found = run.results.get(name)
        numbers = found if isinstance(found, Mapping) else {}
        texts = [f"{key} {_number(value)}" for key, value in numbers.items() if isinstance(value, int | float)]
        told = ", ".join(texts) if found is not None else "not finished"
        rows.append([name, str(stage.get("kind", "")), told, f"{seconds[name]:.0f}" if name in seconds else ""])
    return _table(["stage", "kind", "reported", "seconds"], rows, texts=3)


def _number(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"


def _provenance(runs: Sequence[FinishedRun]) -> Iterable[str]:
    """Commands, hardware and versions, each once."""
    lines = [one for run in runs for one in run.provenance]
    if not lines:
        yield "<p>These runs did not note command, hardware and versions (they are of an older kinject).</p>"
        return
    commands = dict.fromkeys(one["command"] for one in lines if one["command"])
    if commands:
        yield f"<pre>{escape(chr(10).join(commands))}</pre>"
    machines = dict.fromkeys(_machine(one.get("hardware", {})) for one in lines)
    versions = dict.fromkeys(", ".join(f"{k} {v}" for k, v in one.get("versions", {}).items()) for one in lines)
    finished = sorted(one["finished"] for one in lines if "finished" in one)
    rows = [["hardware", one] for one in machines] + [["versions", one] for one in versions]
    rows += [["finished", f"{finished[0]} to {finished[-1]}"]] if finished else []
    yield _table(["", ""], rows, texts=2)


def _machine(found: Mapping[str, Any]) -> str:
    devices = ", ".join(f"{count} x {kind}" for kind, count in found.get("devices", {}).items())
    return f"{found.get('processor', 'unknown')}, {found.get('cores', '?')} cores; devices: {devices or 'unknown'}"


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]], *, texts: int = 1, strong: Sequence[int] = ()) -> str:
    """A table whose first columns are texts and the others numbers; `strong` lines stand out."""

    def line(cells: Sequence[str], tag: str) -> str:
        kinds = ["" if place < texts else ' class="number"' for place in range(len(cells))]
        return "".join(f"<{tag}{kind}>{escape(cell)}</{tag}>" for kind, cell in zip(kinds, cells, strict=True))

    body = "\n".join(
        f"<tr{' class=plugin' if n in strong else ''}>{line(cells, 'td')}</tr>" for n, cells in enumerate(rows)
    )
    head = f"<thead><tr>{line(heads, 'th')}</tr></thead>" if any(heads) else ""
    return f'<div class="wide"><table>{head}<tbody>{body}</tbody></table></div>'


def _plot(make: Callable[[], Figure], caption: str) -> Iterable[str]:
    """The figure as an SVG inside the page; nothing where matplotlib is not installed."""
    if not plots.available():
        return
    from matplotlib import rc_context

    written = io.BytesIO()
    with rc_context({"svg.hashsalt": "kinject"}):
        make().savefig(written, format="svg", metadata={"Date": None})
    data = base64.b64encode(written.getvalue()).decode()
    text = escape(caption)
    yield f'<figure><img alt="{text}" src="data:image/svg+xml;base64,{data}"><figcaption>{text}</figcaption></figure>'


def _folded(title: str, text: str) -> str:
    return f"<details><summary>{escape(title)}</summary><pre>{escape(text)}</pre></details>"
