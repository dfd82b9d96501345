"""`kinject.tune`: a plugin for a host that is at hand, tuned by the very stage that a config names.

With `auto=True` a few settings are tuned alike, and the development records choose one of them.
"""

from __future__ import annotations

import hashlib
import shutil
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from kinject.data.records import Record
from kinject.errors import InputError, did_you_mean
from kinject.knowledge.base import KnowledgeBase
from kinject.plugins.base import read_method
from kinject.plugins.map_tuning import MapTuning
from kinject.plugins.store import StoredPlugin, copy_plugin, load_plugin, save_again
from kinject.serving import Host, Plugin
from kinject.serving.evaluation import Inputs, labelled, open_base
from kinject.serving.host import Folder
from kinject.stages.experiment import Experiment
from kinject.training.config import FitConfig, OptimizerConfig, ready_fit

STAGE = "plugin"


def tune(
    host: Host,
    knowledge: KnowledgeBase | Folder | None,
    records: Inputs,
    *,
    dev: Inputs | None = None,
    method: str | Mapping[str, Any] = "map_tuning",
    initialise: str | None = None,
    max_length: int | None = None,
    train: Sequence[tuple[str, str]] | None = None,
    seed: int = 0,
    name: str | None = None,
    auto: bool = False,
    workdir: Folder | None = None,
    quiet: bool | None = None,
    **fit: Any,
) -> Plugin:
    """Tunes a plugin through a frozen host, by its own task, with the stage `plugin` of configs.

    A config with a stage `plugin` of the same settings, seed and records makes the same plugin, bit for bit.

    Args:
      host: stays as it is, and what is plugged in does not matter.
      knowledge: the knowledge base, or its folder; None for a method that reads none.
      records: labelled texts: dicts as a line of a record file has them, `Record`s, or such a file's path. Where one
        does not say its `mentions`, the knowledge base's names are looked for.
      dev: the same, to choose the best of the evaluations by; without it the last step's parameters are kept.
      method: a registered name, or `{"name": …, **its settings}`.
      initialise: the start, see `initialise` of a stage `plugin`; None = that stage's default.
      max_length: tokens a text; None = as the host was loaded.
      train: (regex, "train" | "freeze") rules over parameter paths; None = the plugin alone.
      seed: of the order of the records, of dropout, and of what is drawn.
      name: what the plugin is called; None = as its knowledge base.
      auto: try a few settings (`kinject.api.tune.candidates`) and keep what `dev` scores highest; the card says which.
      workdir: where checkpoints and the plugin's folder go: the same call again goes on where it was interrupted.
        None = nowhere that stays.
      quiet: print nothing; None = where there is no terminal.
      fit: options of the `fit` section of configs, such as `epochs`, `batch_size`; those of its `optimizer`, such as
        `learning_rate`, may stand here too. What is not given is taken from `ready_fit(method)`.

    Returns:
      The plugin, with its knowledge base at hand: `host.plug(plugin)` needs no more, and `save` writes its folder.

    Raises:
      InputError: a setting or record that cannot be used, or what does not go together.
    """
    base = None if knowledge is None else open_base(knowledge)
    settings = {"name": method} if isinstance(method, str) else dict(method)
    cls, _ = read_method(settings, "method")
    if auto:
        same = {"method": settings, "max_length": max_length, "train": train, "seed": seed, "name": name, **fit}
        same |= {"initialise": initialise, "quiet": quiet}
        return _tune_auto(host, base, records, dev, cls.name, workdir, same)
    told: dict[str, Any] = {"method": settings, "fit": read_fit(cls.name, fit, has_dev=dev is not None)}
    told["max_length"] = host.engine.max_length if max_length is None else max_length
    rules = None if train is None else tuple((regex, label) for regex, label in train)
    told |= {key: value for key, value in (("initialise", initialise), ("train", rules)) if value is not None}
    stage, given = _with_what_is_at_hand(told, host, base, records, dev)
    made, keeps = _kept(stage, seed, workdir, quiet, host, given)
    return Plugin(made, name=name or (cls.name if base is None else base.name), knowledge=base, keeps=keeps)


def _kept(
    stage: Mapping[str, Any],
    seed: int,
    workdir: Folder | None,
    quiet: bool | None,
    host: Host,
    given: Mapping[str, Any],
) -> tuple[StoredPlugin, tempfile.TemporaryDirectory[str] | None]:
    """The plugin that a stage makes, and the folder that goes when nobody holds it, where there is no workdir."""
    config = {"name": "kinject.tune", "seed": seed, "stages": {STAGE: stage}}
    quiet = not sys.stdout.isatty() if quiet is None else quiet
    options = {"devices": host.engine.place.devices, "quiet": quiet, "command": "kinject.tune", "given": given}
    if workdir is not None:
        return _run(config, Path(workdir), options), None
    keeps = tempfile.TemporaryDirectory(prefix="kinject-")
    made = _run(config, Path(keeps.name) / "run", options)
    kept = load_plugin(copy_plugin(made, Path(keeps.name) / STAGE))  # all that stays of it
    shutil.rmtree(Path(keeps.name) / "run")
    return kept, keeps


def _run(config: Mapping[str, Any], folder: Path, options: Mapping[str, Any]) -> StoredPlugin:
    """Runs the one stage of a config, unless the folder has its result, and returns the plugin that it wrote."""
    with Experiment.open(config, folder, **options) as experiment:
        for one in experiment.choose(None):
            experiment.execute(one)
    return load_plugin(folder / STAGE)


def _tune_auto(
    host: Host,
    base: KnowledgeBase | None,
    records: Inputs,
    dev: Inputs | None,
    method: str,
    workdir: Folder | None,
    same: Mapping[str, Any],
) -> Plugin:
    """`tune` with each of a few settings; `same` is what all of them share."""
    if dev is None:
        raise InputError("tune: auto", "there are no development records to choose by", "give dev")
    known, chosen_by = (labelled(some, base, None, host.task.required) for some in (records, dev))

    def tune_one(changes: Mapping[str, Any], folder: Path | None) -> Plugin:
        return tune(host, base, known, **{**same, **changes, "dev": chosen_by, "workdir": folder})

    return choose(tune_one, method, host.task.metric, None if workdir is None else Path(workdir))


def _with_what_is_at_hand(
    stage: Mapping[str, Any], host: Host, base: KnowledgeBase | None, records: Inputs, dev: Inputs | None
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The settings of a stage with what it refers to, and that by its reference."""
    task, options = host.task.made_as
    folder = str(host.ready.loaded.folder)
    stage = {"kind": "plugin", "task": task, "task_options": dict(options), "host": folder, **stage}
    given: dict[str, Any] = {folder: host.ready}
    if base is not None:
        stage["knowledge"] = str(base.folder)
        given[str(base.folder)] = base
    for field, some, called in (("data", records, "records"), ("dev_data", dev, "dev")):
        if some is not None:
            known = labelled(some, base, None, host.task.required, called)
            stage[field] = (described(known),)
            given[stage[field][0]] = known
    return stage, given


def read_fit(method: str, given: Mapping[str, Any], *, has_dev: bool) -> dict[str, Any]:
    """The `fit` section of a stage: what is given, and the rest as suits the method.

    Raises:
      InputError: an option that neither `fit` nor its `optimizer` has.
    """
    made = ready_fit(method)
    ours, theirs = FitConfig.__pydantic_fields__, OptimizerConfig.__pydantic_fields__
    optimizer = {**made.pop("optimizer"), **given.get("optimizer", {})}
    for key, value in given.items():
        if key in ours:
            made[key] = value
        elif key in theirs:
            optimizer[key] = value
        else:
            known = [*ours, *theirs, *(tune.__kwdefaults__ or {})]
            raise InputError(f"tune: {key}", "there is no such option", did_you_mean(key, known))
    if given.get("steps") is not None and "epochs" not in given:
        made["epochs"] = None
    if has_dev and "evaluate_every" not in given:
        made["evaluate_every"] = "epoch"
    return {**made, "optimizer": optimizer}


def described(records: Sequence[Record]) -> str:
    """What records from Python are called in settings and on the plugin's card: how many, and which."""
    digest = hashlib.sha256()
    for one in records:
        digest.update(repr((one.source, one.mentions, sorted(one.fields.items(), key=repr))).encode())
    return f"{len(records)} records given from Python (sha256:{digest.hexdigest()[:12]})"


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
