"""What an evaluation found: the host alone, with a plugin, and with wrong knowledge."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from kinject.reports.results import row_title, shown


@dataclass(frozen=True, repr=False)
class Evaluation:
    """How a host answers labelled records.

    Attributes:
      n: how many answers were asked for.
      metric: what is told of them; larger is better.
      host: of the host alone.
      plugin: of the host with the plugin.
      wrong_vectors: of the host with the plugin, every record with another's knowledge; None for a plugin that reads
        no knowledge of single records. What is still right there is not owed to the knowledge.
      says_the_wrong_ones: how often the answer is then what is right of the other entity; None where it has no label.
      coverage: share of the mentions whose entity has a vector; None without a knowledge base.
      rows: all of that by the names that results.json has for it.
      name: the plugin's.
    """

    n: int
    metric: str
    host: float
    plugin: float
    wrong_vectors: float | None
    says_the_wrong_ones: float | None
    coverage: float | None
    rows: Mapping[str, Any]
    name: str

    @classmethod
    def of(cls, rows: Mapping[str, Any], name: str) -> Evaluation:
        """Out of the rows of `Comparison.rows`."""
        wrong, theirs = rows.get("shuffled"), rows.get("shuffled_follows_vector")
        return cls(
            rows["n"], rows["metric"], rows["host"], rows["plugin"], wrong, theirs, rows.get("coverage"), rows, name
        )

    def __repr__(self) -> str:
        told = [name for name in ("host", "plugin", "shuffled", "shuffled_follows_vector") if name in self.rows]
        width = max(len(row_title(name)) for name in told)
        lines = [f"  {row_title(name):{width}}  {shown(self.rows, name):>6}" for name in told]
        covered = "" if self.coverage is None else f", {self.coverage:.1%} of the mentions have a vector"
        return "\n".join([f"{self.name}: {self.metric} of {self.n:,} answers{covered}", *lines])
