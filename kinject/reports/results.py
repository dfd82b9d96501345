"""What runs and sweeps left on disk, read back: what plots, reports and notebooks stand on. Imports no JAX.

The files are described in docs/formats.md. Reading is strict: what is not as kinject writes it is an `InputError`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kinject.errors import InputError, did_you_mean, first_line
from kinject.json_file import parse, read_object

ROWS = {
    "majority": "most frequent answer",
    "host": "host alone (no plugin)",
    "plugin": "host + plugin",
    "plugin_one_kind": "host + plugin, tuned on one kind",
    "general_plugin": "host + general plugin (no labels)",
    "shuffled": "host + plugin, wrong vectors",
    "shuffled_follows_vector": "… and it says the wrong one's answer",
    "nearest_neighbour": "nearest neighbour, no model",
    "nearest_neighbour_of_kind": "… told the kind of question",
    "classifier_plugin_data": "classifier on [text; vector], the plugin's data",
    "classifier_all_data": "… and the host's data",
    "classifier_one_kind": "… one kind of question",
    "classifier_vector": "classifier on the entity vector",
    "classifier_mention": "classifier on the mention, no vector",
    "classifier_mention_vector": "classifier on [mention; entity vector]",
    "classifier_sentence_vector": "classifier on [sentence; entity vector]",
    "name_substituted": "a known name put for the entity's",
    "text": "facts as text",
    "added": "host + plugin, entities added after training",
    "values_of_others": "the first, every passage saying what another says",
    "retrieved_first": "the own passage is found first",
    "retrieved": "… is among those found",
}
CONTROL = "shuffled"  # the first plugin with wrong vectors; of another plugin it is `<row>_shuffled`
ORDER = (
    "majority",
    "host",
    "plugin",
    "shuffled",
    "shuffled_follows_vector",
    "nearest_neighbour",
    "nearest_neighbour_of_kind",
)
NOT_ROWS = ("n", "metric", "coverage", "examples", "kinds", "settings")
TABLES = ("evaluate", "memory_evaluate", "typing_rivals", "folds")  # kinds of stages that report rows by domain
NOT_FRACTIONS = ("negative_loss",)
PROVENANCE, NOTED = "provenance.jsonl", ("stage", "command")  # and what each of its lines says

Domains = Mapping[str, Mapping[str, Any]]
"""What an `evaluate` stage reports: {domain: {"n", "metric", row: value, …}}."""


@dataclass(frozen=True)
class FinishedRun:
    """A workdir with at least one finished stage.

    Attributes:
      config: `config.json`.
      results: `results.json`.
      metrics: the lines of `metrics.jsonl`; none where nothing was trained.
      provenance: the lines of `provenance.jsonl`: by which command and on what hardware; none in older workdirs.
    """

    folder: Path
    config: Mapping[str, Any]
    results: Mapping[str, Any]
    metrics: Sequence[Mapping[str, Any]]
    provenance: Sequence[Mapping[str, Any]]

    @classmethod
    def open(cls, folder: Path | str) -> FinishedRun:
        """Reads a workdir.

        Raises:
          InputError: no run there, none of whose stages is finished, or a file that is not as kinject writes it.
        """
        folder = Path(folder)
        if not folder.is_dir():
            raise InputError(folder, "there is no such folder", "name a --workdir")
        if not (folder / "config.json").is_file():
            raise InputError(folder, "it holds no run: there is no config.json", "name a --workdir")
        if not (folder / "results.json").is_file():
            raise InputError(folder, "no stage is finished: there is no results.json", "run it, or wait")
        mend = "name a --workdir of kinject"
        config, results = (read_object(folder / name, mend) for name in ("config.json", "results.json"))
        if not isinstance(config.get("stages"), dict):
            raise InputError(folder / "config.json", "it names no stages", "name a --workdir of kinject")
        metrics = tuple(read_log(folder / "metrics.jsonl", ("stage", "step")))
        return cls(folder, config, results, metrics, tuple(read_log(folder / PROVENANCE, NOTED)))

    @property
    def name(self) -> str:
        """What the run is called."""
        return str(self.config.get("name", self.folder.name))

    def of_kind(self, *kinds: str) -> dict[str, Any]:
        """What the finished stages of some kinds reported, by stage."""
        stages = self.config["stages"].items()
        return {name: self.results[name] for name, one in stages if one.get("kind") in kinds and name in self.results}

    def tables(self) -> dict[str, Domains]:
        """The tables of rows by domain, by stage."""
        return self.of_kind(*TABLES)

    def table(self) -> Domains:
        """The only such table.

        Raises:
          InputError: there is none, or there are several.
        """
        found = self.tables()
        if len(found) != 1:
            raise InputError(self.folder, f"it has {len(found)} tables of an evaluate stage", "one is needed")
        return next(iter(found.values()))

    def curve(self, stage: str, measure: str) -> tuple[list[int], list[float]]:
        """Steps and values of one measure of `metrics.jsonl`.

        Raises:
          InputError: nothing of that name was logged.
        """
        found = [(one["step"], one[measure]) for one in self.metrics if one["stage"] == stage and measure in one]
        if not found:
            known = {key for one in self.metrics if one["stage"] == stage for key in one}
            mend = (
                did_you_mean(measure, known) if known else did_you_mean(stage, {one["stage"] for one in self.metrics})
            )
            raise InputError(self.folder / "metrics.jsonl", f"stage {stage} logged no {measure}", mend)
        steps, values = zip(*found, strict=True)
        return list(steps), list(values)


@dataclass(frozen=True)
class FinishedSweep:
    """A folder that `kinject sweep` gathered.

    Attributes:
      rows: `results.parquet`: {"config", "measure", "mean", "deviation", "seeds", "published"} a row.
      runs: the runs by config and seed.
    """

    folder: Path
    rows: Sequence[Mapping[str, Any]]
    runs: Mapping[str, Mapping[int, FinishedRun]]

    @classmethod
    def open(cls, folder: Path | str) -> FinishedSweep:
        """Reads a sweep's folder.

        Raises:
          InputError: none there, not gathered, or a file that is not as kinject writes it.
        """
        import pyarrow as pa
        import pyarrow.parquet

        folder = Path(folder)
        path = folder / "results.parquet"
        if not path.is_file():
            raise InputError(folder, "it holds no gathered sweep: there is no results.parquet", "see kinject sweep")
        try:
            rows = pyarrow.parquet.read_table(path).to_pylist()
        except (pa.ArrowException, OSError) as error:
            raise InputError(path, f"it is not parquet: {first_line(error)}", "gather again: --gather") from None
        if not rows or not {"config", "measure", "mean", "deviation", "seeds"} <= set(rows[0]):
            raise InputError(path, "it is not the table of a sweep", "gather again: --gather")
        configs = dict.fromkeys(row["config"] for row in rows)
        return cls(folder, rows, {config: dict(_runs_of(folder, config)) for config in configs})

    def value(self, config: str, measure: str) -> tuple[float, float] | None:
        """Mean and deviation over the seeds; None where that config has no such measure."""
        found = [row for row in self.rows if row["config"] == config and row["measure"] == measure]
        return (found[0]["mean"], found[0]["deviation"]) if found else None

    def evaluated(self) -> dict[str, dict[str, Any]]:
        """The tables by place, `stage.domain` as measures begin: an example of each, with the rows of all configs."""
        found: dict[str, dict[str, Any]] = {}
        for runs in self.runs.values():
            for run in runs.values():
                for stage, domains in run.tables().items():
                    for domain, rows in domains.items():
                        found.setdefault(f"{stage}.{domain}", {}).update(rows)
        return found


def open_results(folder: Path | str) -> FinishedRun | FinishedSweep:
    """Reads a folder that holds a run, or a gathered sweep.

    Raises:
      InputError: neither is there, or a file is not as kinject writes it.
    """
    sweep = (Path(folder) / "results.parquet").is_file() and not (Path(folder) / "config.json").is_file()
    return FinishedSweep.open(folder) if sweep else FinishedRun.open(folder)


def run_folder(folder: Path, config: str, seed: int | str) -> Path:
    """Where a sweep runs a config, `FILE.py[:ARG]`, with a seed: the file's stem, its argument and the seed."""
    file, _, arg = config.partition(":")
    slug = re.sub(r"[^A-Za-z0-9_.=-]+", "_", Path(file).stem + (f"-{arg}" if arg else ""))
    return folder / f"{slug}-seed{seed}"


def row_names(domains: Domains) -> list[str]:
    """Rows in the order in which they are read: controls around the plugins, plugins in the config's order."""
    found = [row for rows in domains.values() for row in rows if row not in NOT_ROWS]
    extra = [row for row in dict.fromkeys(found) if row not in ORDER]
    return [row for row in (*ORDER[:3], *extra, *ORDER[3:]) if row in found]


def row_title(row: str) -> str:
    """A row's name for a person."""
    if row not in ROWS and row.endswith(f"_{CONTROL}"):
        return f"{row_title(row.removesuffix(f'_{CONTROL}'))}, wrong vectors"
    return ROWS.get(row, row.replace("_", " "))


def kinds_of(rows: Mapping[str, Any]) -> Domains:
    """One domain's rows by kind of question, each kind in the place of a domain; empty where it has none."""
    return {kind: {"metric": rows["metric"], **found} for kind, found in rows.get("kinds", {}).items()}


def title_of(domains: Domains) -> str:
    """What the numbers are: the tasks' metric, in percent where it is a fraction."""
    metrics = dict.fromkeys(rows["metric"] for rows in domains.values())
    return ", ".join(metric if metric in NOT_FRACTIONS else f"{metric}, %" for metric in metrics)


def shown(rows: Mapping[str, Any], row: str) -> str:
    """A row's value for a person; empty where it has none."""
    value = rows.get(row)
    if value is None:
        return ""
    return f"{value:.3f}" if rows["metric"] in NOT_FRACTIONS else f"{100 * value:.1f}"


def spread(found: tuple[float, float], scale: float, seeds: int) -> str:
    """Mean and deviation for a person; of one seed there is no deviation."""
    mean, deviation = found
    return f"{scale * mean:.1f} ± {scale * deviation:.1f}" if seeds > 1 else f"{scale * mean:.1f}"


def _runs_of(folder: Path, config: str) -> Iterator[tuple[int, FinishedRun]]:
    start = run_folder(folder, config, "").name
    for path in sorted(folder.iterdir()):
        seed = path.name.removeprefix(start)
        if path.name.startswith(start) and seed.isdigit() and (path / "results.json").is_file():
            yield int(seed), FinishedRun.open(path)


def read_log(path: Path, fields: Sequence[str]) -> Iterator[dict[str, Any]]:
    """The objects of a file of JSON lines, if there is one; a last line that was torn by a kill is left out.

    Raises:
      InputError: no plain file, a line that is no JSON object, or one without one of the fields.
    """
    if not path.exists():
        return
    if not path.is_file():
        raise InputError(path, "it is no plain file", "take it away")
    lines = path.read_bytes().splitlines(keepends=True)
    for number, line in enumerate(lines, 1):
        try:
            found = parse(line.decode())
        except (ValueError, RecursionError) as error:
            if number == len(lines) and not line.endswith(b"\n"):
                return
            raise InputError(f"{path}:{number}", f"it is not JSON: {first_line(error)}", "mend the line") from None
        for field in fields:
            if not isinstance(found, dict) or field not in found:
                raise InputError(f"{path}:{number}", f"it has no {field}", "mend the line")
        yield found
