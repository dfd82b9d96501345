"""Plots of what runs and sweeps reported. Each function returns a figure; `save` writes it as PNG and SVG.

They read results as kinject writes them (results.py), and are made to be printed: what colour tells apart, shade and
hatching or marks tell apart too. matplotlib (extra `plots`) is imported when a plot is made.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kinject.errors import InputError
from kinject.reports.results import (
    NOT_FRACTIONS,
    ORDER,
    Domains,
    FinishedRun,
    FinishedSweep,
    row_names,
    row_title,
    shown,
    spread,
    title_of,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SHADES = ("#12395b", "#c8d6e0", "#3f8fc4", "#e8b04a", "#6d7680")  # neighbours differ in lightness
MARKS = ("o", "s", "^", "D", "v")
LINES = ("-", "--", ":", "-.", (0, (1, 1)))
CONTROL = "#6d7680"
NOT_DRAWN = ("majority", "shuffled_follows_vector", "nearest_neighbour")  # among ablation bars
FILLS = {
    "host": {"color": SHADES[1]},
    "plugin": {"color": SHADES[2]},
    "general_plugin": {"color": SHADES[0]},
    "shuffled": {"color": "white", "hatch": "////"},
}
OTHER_FILLS = ({"color": SHADES[3], "hatch": "..."}, {"color": SHADES[4], "hatch": "xx"})


def available() -> bool:
    """Whether matplotlib is installed."""
    from importlib.util import find_spec

    return find_spec("matplotlib") is not None


def save(figure: Figure, path: Path | str, dpi: int = 150) -> tuple[Path, Path]:
    """Writes `<path>.png` and `<path>.svg`, whole or not at all; returns both. The same figure gives the same bytes."""
    from matplotlib import rc_context

    stem = Path(path)
    stem.parent.mkdir(parents=True, exist_ok=True)
    written = []
    for kind, fixed in (("png", {"Software": None}), ("svg", {"Date": None})):
        target = stem.with_name(f"{stem.name}.{kind}")
        partial = stem.with_name(f".{stem.name}.partial.{kind}")
        with rc_context({"svg.hashsalt": "kinject"}):
            figure.savefig(partial, dpi=dpi, metadata=fixed)
        written.append(partial.replace(target))
    return written[0], written[1]


def result_bars(domains: Domains) -> Figure:
    """The table of one run as bars by row, one panel a domain."""
    names = row_names(domains)[::-1]
    figure, panels = _figure(5.2 * len(domains), 0.5 * len(names) + 1.4, columns=len(domains), sharey=True)
    others = {*ORDER, *(row for row in names if row.endswith("_shuffled"))} - {"plugin"}
    colours = [SHADES[1] if row in others else SHADES[2] for row in names]
    for axes, (name, rows) in zip(panels, domains.items(), strict=True):
        scale = 1 if rows["metric"] in NOT_FRACTIONS else 100
        values = [scale * rows.get(row, 0) for row in names]
        bars = axes.barh([row_title(row) for row in names], values, color=colours, edgecolor="black", linewidth=0.5)
        axes.bar_label(bars, [shown(rows, row) for row in names], padding=3)
        axes.set(xlabel=title_of({name: rows}), title=f"{name} (n={rows['n']})")
        if scale == 100:
            axes.set_xlim(0, 112)
    return figure


def training_curves(run: FinishedRun) -> Figure:
    """What a run logged while it trained: a panel a stage for losses, another for development scores.

    Raises:
      InputError: nothing was trained.
    """
    stages = dict.fromkeys(one["stage"] for one in run.metrics)
    if not stages:
        raise InputError(run.folder / "metrics.jsonl", "nothing was logged", "there is nothing to draw")
    drawn = [(stage, names) for stage in stages for names in _drawn_together(run, stage)]
    figure, panels = _figure(9, 2.5 * -(-len(drawn) // 2), rows=-(-len(drawn) // 2), columns=2)
    for axes, (stage, names) in zip(panels, drawn, strict=False):
        for place, name in enumerate(names):
            steps, values = run.curve(stage, name)
            line = _style(place) | ({"linestyle": "none"} if len(steps) == 1 else {})
            axes.plot(steps, values, label=name, markersize=4, **line)
        axes.set(title=stage, xlabel="step", ylabel=names[0] if len(names) == 1 else "")
        if len(names) > 1:
            axes.legend(frameon=False)
    for axes in panels[len(drawn) :]:
        axes.set_visible(False)
    return figure


def _drawn_together(run: FinishedRun, stage: str) -> list[list[str]]:
    """The measures of a stage by panel: losses, then development scores where there is more than one evaluation."""
    logged = [one for one in run.metrics if one["stage"] == stage]
    names = dict.fromkeys(key for one in logged for key in one if key not in ("stage", "step", "gradient_norm"))
    losses = [name for name in names if name.endswith("loss")]
    scores = [name for name in names if name not in losses and len(run.curve(stage, name)[0]) > 1]
    return [panel for panel in (losses, scores) if panel]


def accuracy_over_steps(
    runs: Mapping[str, Sequence[FinishedRun]], stage: str = "plugin", measure: str = "dev_accuracy"
) -> Figure:
    """A measure of `metrics.jsonl` over training steps, with the held-out host alone and control as level lines.

    Args:
      runs: {what they are: runs that differ in their seed only}: a line is their mean, the band their deviation; the
        levels are means over all.
      stage: the stage that was trained.
      measure: as it is logged; `fit.evaluate_every` says how often.

    Raises:
      InputError: a run without that measure.
    """
    figure, (axes,) = _figure(6.4, 4)
    for place, (name, seeds) in enumerate(runs.items()):
        curves = [run.curve(stage, measure) for run in seeds]
        steps = [step for step in curves[0][0] if all(step in curve[0] for curve in curves)]
        points = [[100 * curve[1][curve[0].index(step)] for curve in curves] for step in steps]
        means, deviations = zip(*map(_mean_deviation, points), strict=True)
        axes.plot(steps, means, label=name, **_style(place))
        low, high = ([mean + sign * one for mean, one in zip(means, deviations, strict=True)] for sign in (-1, 1))
        axes.fill_between(steps, low, high, color=_style(place)["color"], alpha=0.2, linewidth=0)
    tables = [
        rows for seeds in runs.values() for run in seeds for each in run.tables().values() for rows in each.values()
    ]
    for row, line in (("host", LINES[1]), ("shuffled", LINES[2])):
        level = [100 * rows[row] for rows in tables if row in rows]
        if level:
            name = f"{row_title(row)}, held out"
            axes.axhline(statistics.fmean(level), color=CONTROL, linestyle=line, label=name)
    axes.set(xlabel="step", ylabel=f"{measure.replace('_', ' ')}, %", ylim=(0, 102))
    axes.legend(frameon=False)
    return figure


def score_over_steps(
    sweep: FinishedSweep, place: str, configs: Sequence[str] | None = None, stage: str = "plugin"
) -> Figure:
    """Held-out score of configs that differ in how long they train: plugin, control and host alone.

    Args:
      sweep: the gathered sweep.
      place: `stage.domain` of the table, such as `evaluate.geography`.
      configs: those that are the points; None takes all.
      stage: whose `steps` are drawn along.

    Raises:
      InputError: no such measure.
    """
    figure, (axes,) = _figure(6.4, 4)
    rows = row_names({place: _table_at(sweep, place)})
    steps = {config: sweep.value(config, f"{stage}.steps") for config in (sweep.runs if configs is None else configs)}
    for number, row in enumerate(("plugin", "shuffled", "host")):
        reached = {config: found[0] for config, found in steps.items() if found and row in rows}
        measured = {config: sweep.value(config, f"{place}.{row}") for config in reached}
        points = sorted((reached[config], *value) for config, value in measured.items() if value)
        if points:
            along = [at for at, _, _ in points]
            percent = [100 * mean for _, mean, _ in points], [100 * deviation for _, _, deviation in points]
            axes.errorbar(along, percent[0], percent[1], label=row_title(row), capsize=3, **_style(number))
    if not axes.lines:
        raise InputError(sweep.folder, f"no config has {stage}.steps and {place}", "name another stage or place")
    axes.set_xscale("log", base=2)
    ticks = sorted({found[0] for found in steps.values() if found})
    axes.set_xticks(ticks, [f"{tick:.0f}" for tick in ticks])
    axes.minorticks_off()
    axes.set(xlabel="training steps", ylabel="held-out accuracy, %", ylim=(0, 102))
    axes.legend(frameon=False)
    return figure


def ablation_bars(sweep: FinishedSweep, place: str, configs: Mapping[str, str] | None = None) -> Figure:
    """Bars of the plugin and its control by config, with their deviations over seeds.

    A row that is the same in every config, as that of a host which they share, is a line.

    Args:
      sweep: the gathered sweep.
      place: `stage.domain` of the table, such as `evaluate.geography`.
      configs: {config: its name in the plot}, in the order drawn; None takes all, by their argument.

    Raises:
      InputError: the sweep has no such table or config.
    """
    if configs is None:
        configs = {config: config.partition(":")[2] or Path(config).stem for config in sweep.runs}
    missing = [config for config in configs if config not in sweep.runs]
    if missing:
        raise InputError(sweep.folder, f"it has no config {missing[0]}", "see its results.csv")
    table = _table_at(sweep, place)
    scale = 1 if table["metric"] in NOT_FRACTIONS else 100
    rows = [
        row
        for row in row_names({place: table})
        if row not in ("majority", "shuffled_follows_vector", "nearest_neighbour")
    ]
    found = {row: [sweep.value(config, f"{place}.{row}") for config in configs] for row in rows}
    everywhere = {row: values[0] for row, values in found.items() if len(configs) > 1 and len(set(values)) == 1}
    level = {row: value[0] for row, value in everywhere.items() if value}
    barred = [row for row in rows if row not in level]
    thick = 0.8 / max(1, len(barred))
    figure, (axes,) = _figure(7, 0.3 * len(configs) * max(1.6, len(barred)) + 1.5)
    for number, row in enumerate(barred):
        drawn = [(place, *pair) for place, pair in enumerate(found[row]) if pair]
        seeds = [len(sweep.runs[config]) for config, pair in zip(configs, found[row], strict=True) if pair]
        at = [one - 0.4 + thick * (number + 0.5) for one, _, _ in drawn]
        values, errors = ([scale * one[part] for one in drawn] for part in (1, 2))
        fill: dict[str, Any] = FILLS.get(row, OTHER_FILLS[number % 2]) | {"edgecolor": "black", "linewidth": 0.5}
        bars = axes.barh(at, values, thick, label=row_title(row), **fill)
        axes.errorbar(values, at, xerr=errors, fmt="none", color="black", capsize=2, linewidth=1)
        texts = [
            f" {spread((value, error), 1, count)}" for value, error, count in zip(values, errors, seeds, strict=True)
        ]
        for bar, text, error in zip(bars, texts, errors, strict=True):
            x, y = bar.get_width() + error, bar.get_y() + bar.get_height() / 2
            axes.text(x if x > 0 else 0, y, text, va="center", fontsize=7)
    for number, (row, value) in enumerate(level.items()):
        axes.axvline(scale * value, color=CONTROL, linestyle=LINES[1 + number % 4], label=row_title(row))
    axes.set_yticks(range(len(configs)), list(configs.values()))
    axes.invert_yaxis()
    axes.set(xlabel=f"held-out {title_of({place: table})}, mean ± deviation")
    if scale == 100:
        axes.set_xlim(0, 118)
        axes.set_xticks(range(0, 101, 20))
    figure.legend(loc="outside lower center", ncols=2, frameon=False)
    return figure


def coverage_and_gain(runs: Sequence[FinishedRun], row: str = "plugin") -> Figure:
    """What the plugin adds to the host alone, in points, over the share of mentions whose entity has a vector.

    Args:
      runs: their tables' domains of one name are one point: the mean over runs, with their deviation.
      row: the plugin's.

    Raises:
      InputError: no table has both coverage and that row.
    """
    points: dict[str, list[tuple[float, float]]] = {}
    for run in runs:
        for stage, domains in run.tables().items():
            for name, rows in domains.items():
                if "coverage" in rows and row in rows and rows["metric"] not in NOT_FRACTIONS:
                    pair = (100 * rows["coverage"], 100 * (rows[row] - rows["host"]))
                    points.setdefault(f"{stage}.{name}", []).append(pair)
    if not points:
        raise InputError(runs[0].folder if runs else "runs", f"no table has coverage and {row}", "evaluate a plugin")
    figure, (axes,) = _figure(6, 4)
    drawn = []
    for found in points.values():
        (x, wide), (y, high) = (_mean_deviation([pair[part] for pair in found]) for part in (0, 1))
        drawn.append((x, y))
        axes.errorbar(x, y, high, wide, fmt=MARKS[0], color=SHADES[0], capsize=3)
    axes.plot(*zip(*sorted(drawn), strict=True), color=SHADES[0], linewidth=1)
    axes.axhline(0, color=CONTROL, linestyle=LINES[1], label="host alone")
    axes.set(xlabel="coverage: mentions whose entity has a vector, %", ylabel="gain over the host alone, points")
    axes.set_xlim(-3, 103)
    axes.legend(frameon=False)
    return figure


def pareto(runs: Sequence[FinishedRun], domain: str | None = None) -> Figure:
    """Score over the number of trained parameters, by method of `compare` stages; the line joins the undominated.

    Args:
      runs: runs that differ in their seed only.
      domain: whose methods; None: the only one.

    Raises:
      InputError: no such stage, or another domain.
    """
    tables = [{d: rows for one in run.of_kind("compare").values() for d, rows in one.items()} for run in runs]
    if not any(tables):
        raise InputError(runs[0].folder if runs else "runs", "no stage compare is finished", "see configs/compare.py")
    domain = domain if domain is not None or len(tables[0]) > 1 else next(iter(tables[0]))
    if any(domain not in table for table in tables):
        raise InputError(runs[0].folder, f"no domain {domain}", f"it has {', '.join(tables[0])}")
    methods = list(tables[0][domain]["methods"])
    values = {m: [table[domain]["methods"][m] for table in tables if m in table[domain]["methods"]] for m in methods}
    points = {
        m: (found[0]["parameters"], *_mean_deviation([100 * one["score"] for one in found]))
        for m, found in values.items()
    }
    figure, (axes,) = _figure(7.2, 4.6)
    best = -1.0
    front = []
    for method, (size, score, _) in sorted(points.items(), key=lambda item: (item[1][0], -item[1][1])):
        if score > best:
            best = score
            front.append((size, score, method))
    axes.plot(
        [one[0] for one in front], [one[1] for one in front], color=CONTROL, linestyle="--", drawstyle="steps-post"
    )
    for method, (size, score, deviation) in points.items():
        on = method in [one[2] for one in front]
        inside = SHADES[0] if on else "white"
        mark = MARKS[0] if on else MARKS[1]
        axes.errorbar(size, score, deviation, fmt=mark, capsize=3, color=SHADES[0], markerfacecolor=inside)
    _name_points(axes, {name.replace("_", " "): (size, score) for name, (size, score, _) in points.items()})
    largest = max(size for size, _, _ in points.values())
    axes.set_xscale("symlog", linthresh=1000)
    axes.set_xticks([0, *(10**power for power in range(3, len(str(largest)) + 1))])
    axes.set(xlabel="trained parameters (0, then a log scale)", ylabel="held-out accuracy, %", ylim=(0, 105))
    axes.set_xlim(-200, 12 * largest + 2000)
    axes.set_title(f"{domain} (n={tables[0][domain]['n']})")
    axes.grid(alpha=0.3)
    return figure


def gains(groups: Mapping[str, tuple[int, float, float]]) -> Figure:
    """What a plugin adds by group of questions, such as a relation: from the host alone to the host with it.

    Args:
      groups: {name: (questions, accuracy before, accuracy after)}, drawn from the greatest gain to the least.
    """
    ordered = sorted(groups.items(), key=lambda item: item[1][2] - item[1][1])
    figure, (axes,) = _figure(6.8, 0.3 * len(ordered) + 1.4)
    for place, (_, (_, before, after)) in enumerate(ordered):
        axes.plot([100 * before, 100 * after], [place, place], color=CONTROL, linewidth=2, zorder=1)
    places = range(len(ordered))
    for part, row, fill in ((1, "host", "white"), (2, "plugin", SHADES[0])):
        at = [100 * one[part] for _, one in ordered]
        axes.scatter(at, places, marker=MARKS[part], color=fill, edgecolor=SHADES[0], label=row_title(row), zorder=2)
    axes.set_yticks(places, [f"{name} (n={one[0]})" for name, one in ordered])
    axes.set(xlabel="accuracy, %", xlim=(-3, 103), ylim=(-0.6, len(ordered) - 0.4))
    figure.legend(loc="outside lower center", ncols=2, frameon=False)
    return figure


def _name_points(axes: Axes, points: Mapping[str, tuple[float, float]], apart: float = 4.5) -> None:
    """Writes each point's name at its right; names of points at one place are moved apart downwards."""
    taken: dict[float, float] = {}
    for name, (x, y) in sorted(points.items(), key=lambda item: -item[1][1]):
        at = min(y, taken.get(x, 1e9) - apart)
        taken[x] = at
        behind = {"facecolor": "white", "edgecolor": "none", "pad": 0.5}
        axes.annotate(name, (x, at), (8, 0), textcoords="offset points", fontsize=8, va="center", bbox=behind)


def _figure(
    width: float, height: float, *, rows: int = 1, columns: int = 1, **options: Any
) -> tuple[Figure, list[Axes]]:
    """A figure with its panels in a row, drawn without a display."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        raise InputError("plots", "matplotlib is not installed", "pip install 'kinject[plots]'") from None
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    panels = list(figure.subplots(rows, columns, squeeze=False, **options).flat)
    for axes in panels:
        axes.spines[["top", "right"]].set_visible(False)
    return figure, panels


def _style(place: int) -> dict[str, Any]:
    return {"color": SHADES[(0, 3, 2, 4, 1)[place % 5]], "marker": MARKS[place % 5], "linestyle": LINES[place % 5]}


def _mean_deviation(values: Sequence[float]) -> tuple[float, float]:
    """Mean and sample deviation, 0 for one value."""
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else 0.0


def _table_at(sweep: FinishedSweep, place: str) -> Mapping[str, Any]:
    """A table of a sweep, as an example: its metric and rows.

    Raises:
      InputError: it has no such table.
    """
    known = sweep.evaluated()
    if place not in known:
        raise InputError(sweep.folder, f"it has no table {place}", f"there is {', '.join(known) or 'none'}")
    return known[place]
