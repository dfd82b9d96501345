"""`kinject.train --config C --aot v5e:4x4`: compiles the steps of a config for TPUs or GPUs that are not here."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import jax

from kinject.errors import InputError
from kinject.inference.mesh import ONE_AXIS, MeshConfig, Placement
from kinject.inference.vectors import choose
from kinject.reports.console import Reporter, sized
from kinject.stages.abstract import AbstractModel, abstract_model
from kinject.stages.base import TrainingConfig
from kinject.stages.experiment import read_mesh, read_stages
from kinject.training.aot import Cost, compile_step
from kinject.training.aot_targets import Target, open_target
from kinject.training.hlo import total_by_kind


def compile_ahead(
    config: Mapping[str, Any], slice_name: str, names: Sequence[str] | None, reporter: Reporter
) -> list[dict[str, Any]]:
    """Compiles the step of each training stage (or of those named) and says what it costs on each device.

    A batch is padded to `max_length`, so what is said is the most that a bucket can take.

    Returns:
      One JSON-like dict a stage.

    Raises:
      InputError: a bad config, no such devices, no stage that trains.
    """
    stages = read_stages(config)
    chosen = [name for name, stage in stages.items() if isinstance(stage, TrainingConfig)]
    if names is not None:
        for name in names:
            if name not in chosen:
                raise InputError(f"--stage {name}", "it is no stage that trains", f"there is {', '.join(chosen)}")
        chosen = [name for name in chosen if name in names]
    if not chosen:
        raise InputError("config.stages", "no stage trains anything")
    models = [abstract_model(name, stages) for name in chosen]  # what is wrong in one is told before the first compiles
    mesh = read_mesh(config)
    where = open_target(slice_name)
    rows = []
    for one in models:
        cost = compile_abstract(one, where, mesh)
        rows.append(row_of(one, where, cost))
        reporter.say(described(one, where, cost))
    return rows


def compile_abstract(one: AbstractModel, where: Target, mesh: MeshConfig = ONE_AXIS) -> Cost:
    """Compiles a stage's step for a slice, its devices arranged as the config's section `mesh` says."""
    place = Placement.over(None, mesh, where.devices)
    rows = place.round_up(one.fit.batch_size)
    batch = {name: jax.ShapeDtypeStruct((rows, *one.shape[1:]), one.dtype) for name, one in one.batch.items()}
    table = one.table
    if table is not None and choose(one.vectors, table, place, _device_memory(where)).on == "host":
        table = None
    return compile_step(
        one.program,
        one.params,
        list(one.rules),
        one.fit,
        batch,
        place,
        where=f"stages.{one.name}.train",
        table=table,
    )


def _device_memory(where: Target) -> int:
    return where.chip.memory * where.chips // len(where.devices)


def row_of(one: AbstractModel, where: Target, cost: Cost) -> dict[str, Any]:
    """What `--json` holds of a stage; everything but rows and trained bytes is of one device.

    The two times are those at the chip's published peaks, each by itself: a model, of which a run reaches a part.
    """
    rows, length = one.fit.batch_size, one.batch["token_ids"].shape[-1]
    share = len(where.devices) / where.chips  # on TPU v4 a chip is two devices
    return {
        "stage": one.name,
        "slice": where.name,
        "devices": len(where.devices),
        "rows": rows,
        "length": length,
        "compute_dtype": one.fit.compute_dtype,
        "device_memory": _device_memory(where),
        "arithmetic_ms": 1e3 * cost.flops * share / where.chip.flops,
        "traffic_ms": 1e3 * cost.traffic * share / where.chip.bandwidth,
        **cost.to_json(),
    }


def described(one: AbstractModel, where: Target, cost: Cost) -> str:
    """The same for a person."""
    row = row_of(one, where, cost)
    moved = [
        f"{kind} {total['count']} x, {sized(total['bytes'])}" for kind, total in total_by_kind(cost.collectives).items()
    ]
    share, table = (100 * size / row["device_memory"] for size in (cost.peak, cost.table))
    portioned = isinstance(one.fit.micro_batch, int)
    vectors = f"on the devices: {one.table}, {sized(cost.table)} of the arguments, {table:.1f} % of memory"
    return "\n".join(
        [
            f"{one.name}: {row['rows']} x {row['length']} tokens on {where.name}, {row['devices']} devices; of each:",
            f"  memory       {sized(cost.peak)} at the peak, {share:.1f} % (arguments {sized(cost.arguments)}, "
            f"temporaries {sized(cost.temporaries)}, outputs {sized(cost.outputs)}, code {sized(cost.code)})",
            *([f"  vectors      {vectors}"] if cost.table else []),
            f"  work         {cost.flops / 1e9:,.1f} GFLOP, {sized(cost.accessed)} read and written, "
            f"{sized(cost.traffic)} of it in device memory",
            f"  at best      {row['arithmetic_ms']:,.2f} ms to compute, {row['traffic_ms']:,.2f} ms to read and write",
            *(["  note         fit.micro_batch makes a loop: work and bytes are of one turn"] if portioned else []),
            f"  collectives  {'; '.join(moved) or 'none'} (trained parameters: {sized(cost.trained)})",
            f"  compiled in  {cost.seconds:.0f} s",
        ]
    )


def to_json(rows: Sequence[Mapping[str, Any]]) -> str:
    """The rows as text for a file."""
    return json.dumps(rows, indent=2) + "\n"
