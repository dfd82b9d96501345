"""`tune(…, auto=True)`: a few settings, each tuned alike, of which the development records choose one."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from kinject.errors import InputError
from kinject.plugins.map_tuning import MapTuning
from kinject.plugins.store import load_plugin, save_again
from kinject.serving import Plugin
from kinject.training.config import OptimizerConfig, ready_fit

FACTORS = (1.0, 1 / 3, 3.0)  # of the learning rate that the method starts well with


def candidates(method: str) -> list[dict[str, Any]]:
    """The settings that are tried: learning rates around the method's own, and for map-tuning another start."""
    rate = ready_fit(method)["optimizer"].get("learning_rate", OptimizerConfig.model_validate({}).learning_rate)
    tried: list[dict[str, Any]] = [{"learning_rate": float(f"{rate * factor:.2g}")} for factor in FACTORS]
    if method == MapTuning.name:
        tried.append({"initialise": "zero", "learning_rate": rate})
    return tried


def choose(
    tune_one: Callable[[Mapping[str, Any], Path | None], Plugin], method: str, metric: str, workdir: Path | None
) -> Plugin:
    """Tunes with each of the `candidates` and keeps the plugin that development records score highest.

    Args:
      tune_one: (settings, workdir) -> the plugin that they make.
      method: the registered name.
      metric: of the task; larger is better.
      workdir: gets a folder a candidate and the one that was chosen; None = nothing stays.

    Returns:
      The plugin; its settings and its card say what was tried, with the scores.

    Raises:
      InputError: the workdir holds a chosen plugin of other trials.
    """
    tried, best = [], None
    for number, settings in enumerate(candidates(method)):
        made = tune_one(settings, None if workdir is None else workdir / f"trial{number}")
        score = made.metrics[f"dev_{metric}"]
        tried.append({"settings": settings, "score": score})
        if best is None or score > best[0]:
            best = score, made
    if best is None:
        raise InputError("tune", f"nothing is tried for {method}")
    found = best[1]
    keeps = tempfile.TemporaryDirectory(prefix="kinject-") if workdir is None else None
    folder = (Path(keeps.name) if keeps is not None else workdir or Path()) / "chosen"
    config = {**found.manifest["config"], "tried": tried}
    if folder.exists():
        there = load_plugin(folder)
        if there.manifest["config"].get("tried") != tried:
            raise InputError(folder, "it was chosen out of other trials", "choose another workdir")
    else:
        save_again(found.stored, folder, config=config)
    return Plugin(load_plugin(folder), name=found.name, knowledge=found.knowledge, keeps=keeps)
