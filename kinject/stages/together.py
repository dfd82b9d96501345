"""Stage `together`: several plugins through one frozen host at the same time, each into `<stage>/<member>/`.

A member is what a `plugin` stage of its name would be, with its own task, data and order of batches, and becomes what
that would have made; the host is on the devices once, and one compiled step moves them all (training/together.py).
Plugins of one method, task and settings that differ in knowledge and data only are a stage `plugins`.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from kinject.errors import InputError
from kinject.inference.processes import alone
from kinject.stages.base import Stage, StageConfig
from kinject.stages.plugin import PluginConfig, PluginStage
from kinject.training.partition import TRAIN
from kinject.training.together import fit_together, hold_once


class TogetherConfig(StageConfig):
    """Which plugins, by name: settings as of a `plugin` stage, without the host, which is theirs in common.

    They may differ in all but the `dropout` of the host and `fit.compute_dtype`.
    """

    kind: Literal["together"] = "together"
    host: str
    members: dict[str, PluginConfig] = Field(min_length=1)

    @model_validator(mode="before")
    @classmethod
    def _one_host(cls, values: Any) -> Any:
        members = values.get("members") if isinstance(values, dict) else None
        if not isinstance(members, dict) or not all(isinstance(one, dict) for one in members.values()):
            return values
        host = values.get("host")
        for name, one in members.items():
            if not str(name).isidentifier():
                raise ValueError(f"{name!r} cannot be a member's name: use a word of letters, digits and _")
            if one.get("host", host) != host:
                raise ValueError(f"{name} names a host of its own, {one['host']}: members share one")
        return {**values, "members": {name: {"kind": "plugin", **one, "host": host} for name, one in members.items()}}

    @model_validator(mode="after")
    def _one_computation(self) -> TogetherConfig:
        if len({(one.dropout, one.fit.compute_dtype) for one in self.members.values()}) > 1:
            raise ValueError("members share a host: give all the same dropout and fit.compute_dtype")
        if any(one.fit.profile is not None for one in self.members.values()):
            raise ValueError("a profile is of one training: take it in a plugin stage")
        return self


class TogetherStage(Stage):
    """Tunes plugins together."""

    Config = TogetherConfig

    def members(self) -> dict[str, PluginStage]:
        """The stages that the members would be."""
        found = {name: PluginStage(f"{self.name}/{name}", one, self.run) for name, one in self.config.members.items()}
        for name, stage in found.items():
            stage.where = f"{self.where}.members.{name}"
        return found

    def check(self) -> None:
        super().check()
        if not alone():
            mend = "start one process, or use stages of kind plugin"
            raise InputError(self.where, "members are trained together by one process", mend)
        for stage in self.members().values():
            stage.check()

    def execute(self) -> dict[str, Any]:
        stages, made = self.members(), {}
        for name, stage in stages.items():
            made[name] = stage.prepare(list(made.values()))
            moved = [path for path, label in made[name].fit.labels.items() if label == TRAIN]
            if any(path.startswith("host/encoder/") for path in moved):
                mend = "train one in a plugin stage, or freeze host/encoder/.*"
                raise InputError(f"{stage.where}.train", "it moves the encoder that the members share", mend)
        fits = [one.fit for one in made.values()]
        hold_once(fits, [one.params for one in made.values()])
        results = dict(zip(made, fit_together(fits), strict=True))
        return {name: stage.finish(made[name], results[name]) for name, stage in stages.items()}
