"""Stage `folds`: the mean over folds of what their stages reported, one table of a cross-validation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from pydantic import Field

from kinject.errors import InputError, did_you_mean
from kinject.stages.base import Stage, StageConfig

TOLD = ("metric",)


class FoldsConfig(StageConfig):
    """Which stages: a list for each fold; those of one fold have rows of one table, under the same domain."""

    kind: Literal["folds"] = "folds"
    folds: tuple[tuple[str, ...], ...] = Field(min_length=1)


class FoldsStage(Stage[FoldsConfig]):
    """Averages."""

    def check(self) -> None:
        super().check()
        for number, names in enumerate(self.config.folds):
            for name in names:
                if name not in self.run.stages:
                    where = f"{self.where}.folds[{number}]"
                    raise InputError(where, f"there is no stage {name}", did_you_mean(name, self.run.stages))

    def execute(self) -> dict[str, Any]:
        found = []
        for number, names in enumerate(self.config.folds):
            missing = [name for name in names if name not in self.run.results]
            if missing:
                where = f"{self.where}.folds[{number}]"
                raise InputError(
                    where, f"the stage {missing[0]} has not run yet", f"run it first: --stage {missing[0]}"
                )
            found.append(joined([self.run.results[name] for name in names]))
        return {domain: mean_rows([one[domain] for one in found], self.where) for domain in found[0]}


def joined(tables: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """The rows of several tables {domain: {row: value}} in one."""
    found: dict[str, dict[str, Any]] = {}
    for table in tables:
        for domain, rows in table.items():
            found.setdefault(domain, {}).update(rows)
    return found


def mean_rows(folds: Sequence[Mapping[str, Any]], where: str) -> dict[str, Any]:
    """The mean of every row over the folds, which count alike; `n` is their sum.

    Raises:
      InputError: a row that not every fold has.
    """
    found: dict[str, Any] = {}
    for row, value in folds[0].items():
        if any(row not in fold for fold in folds):
            raise InputError(where, f"not every fold has a row {row}", "give each the same stages")
        if row in TOLD:
            found[row] = value
        elif isinstance(value, int | float):
            values = [fold[row] for fold in folds]
            found[row] = sum(values) if row == "n" else sum(values) / len(values)
    return found
