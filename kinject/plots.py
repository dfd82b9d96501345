"""`kinject.plots`: figures of what runs and sweeps left on disk, for notebooks. They are made in reports/plots.py."""

from kinject.reports.plots import (
    MARKS,
    SHADES,
    ablation_bars,
    accuracy_over_steps,
    available,
    coverage_and_gain,
    gains,
    pareto,
    result_bars,
    save,
    score_over_steps,
    training_curves,
)

__all__ = [
    "MARKS",
    "SHADES",
    "ablation_bars",
    "accuracy_over_steps",
    "available",
    "coverage_and_gain",
    "gains",
    "pareto",
    "result_bars",
    "save",
    "score_over_steps",
    "training_curves",
]
