"""A training step compiled for devices that are not here, and what the compiler says of it.

Nothing is run and no array is made: the parameters, the batch and the state are shapes with shardings.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from kinject.inference.mesh import Placement
from kinject.inference.program import Program
from kinject.inference.vectors import TABLE, LookUp, TableShape, table_sharding
from kinject.models.kernels import ahead
from kinject.models.precision import held
from kinject.training.config import FitConfig
from kinject.training.hlo import Collective, device_traffic, find_collectives, kernel_cost, total_by_kind
from kinject.training.partition import TRAIN, label_parameters, split
from kinject.training.step import initial_state, make_optimizer, make_train_step
from kinject.tree import Flat

STEPS = 1000  # of a schedule when the number of examples is not known; the step's program is the same


@dataclass(frozen=True)
class Cost:
    """One compiled step, per device; bytes and FLOPs are the compiler's own count.

    Attributes:
      arguments, temporaries, outputs, code: bytes of device memory; outputs that reuse an argument's buffer (the
        state's do) are not counted twice.
      peak: the most that is live at once, as the compiler reports it; arguments + temporaries + outputs + code where
        it does not.
      flops: floating-point operations; 0 where the compiler counts none.
      accessed: bytes that its operations read and write, in whatever memory: on-chip memory's are among them, and what
        is copied there and read again is counted at each step.
      traffic: bytes of them that are read from or written to device memory (HBM), at most; see `device_traffic`.
      collectives: the operations between devices, see `find_collectives`.
      trained: float32 bytes of all trained parameters, on all devices together.
      table: bytes of the arguments that are entity vectors on the devices; 0 where batches bring theirs.
    """

    arguments: int
    temporaries: int
    outputs: int
    code: int
    peak: int
    flops: float
    accessed: float
    traffic: int
    collectives: tuple[Collective, ...]
    trained: int
    seconds: float
    text: str
    table: int = 0

    def to_json(self) -> dict[str, Any]:
        """All but the program's text."""
        values = {name: value for name, value in vars(self).items() if name not in ("text", "collectives", "seconds")}
        return {**values, "collectives": total_by_kind(self.collectives), "compile_seconds": round(self.seconds, 1)}


def compile_step(
    program: Program,
    params: Flat,
    rules: list[tuple[str, str]],
    fit: FitConfig,
    batch: Mapping[str, jax.ShapeDtypeStruct],
    place: Placement,
    *,
    where: str = "train",
    table: TableShape | None = None,
) -> Cost:
    """Compiles the step that `Fit` would run.

    Args:
      program: from `split_program`.
      params: shapes of all parameters, flat.
      rules: what trains.
      fit: optimizer, dropout and compute dtype.
      batch: shapes of a batch, over all devices.
      place: where arrays live; its devices need not be here.
      where: config key for messages.
      table: of entity vectors on the devices; None = batches bring theirs.

    Raises:
      InputError: rules that do not fit the parameters.
    """
    started = time.monotonic()
    labels = label_parameters(params, rules, where, program.tables)
    train, frozen = split(params, labels)
    train = {path: jax.ShapeDtypeStruct(leaf.shape, jnp.float32) for path, leaf in train.items()}
    micro_batch = fit.micro_batch
    if micro_batch == "auto" and place.platform != "cpu":  # it would be what suits the machine that compiles
        micro_batch = "whole"
    look_up = None if table is None else LookUp(table.dim, place.mesh)
    program = replace(program, precision=fit.compute_dtype, micro_batch=micro_batch, vectors=look_up)
    frozen = {
        path: leaf if path in program.tables else jax.eval_shape(partial(held, fit.compute_dtype, path), leaf)
        for path, leaf in frozen.items()
    }
    optimizer = make_optimizer(fit.optimizer, labels, fit.steps or STEPS)
    state = jax.eval_shape(lambda leaves: initial_state(leaves, optimizer, labels), train)
    state = jax.tree_util.tree_map_with_path(lambda path, leaf: _placed_state(path, leaf, labels, place), state)
    step = make_train_step(
        program, optimizer, labels, seed=0, dropout=fit.dropout != "none", shardings=place.shardings(state)
    )
    arguments = {
        path: jax.tree.map(lambda part, path=path: _placed(part, place.parameter(path, part.shape, frozen=True)), leaf)
        for path, leaf in frozen.items()
    }
    if table is not None:
        vectors = jax.ShapeDtypeStruct(table.held(place), table.dtype)
        arguments[TABLE] = _placed(vectors, table_sharding(place.mesh))
        batch = {name: leaf for name, leaf in batch.items() if name != "entity_vectors"}
    with ahead(place.platform, place.kind):
        lowered = step.lower(state, arguments, {name: _placed(leaf, place.rows) for name, leaf in batch.items()})
    trained = sum(4 * int(np.prod(params[path].shape)) for path, label in labels.items() if label == TRAIN)
    cost = cost_of(lowered.compile(), trained, time.monotonic() - started)
    return cost if table is None else replace(cost, table=table.bytes_held(place))


def cost_of(compiled: jax.stages.Compiled, trained: int, seconds: float) -> Cost:
    """What a compiled program costs on each device."""
    memory, count, text = compiled.memory_analysis(), _counted(compiled), compiled.as_text()
    if memory is None or text is None:
        raise RuntimeError("the compiler gives neither this program's memory nor its text")
    outputs = memory.output_size_in_bytes - memory.alias_size_in_bytes
    parts = {
        "arguments": memory.argument_size_in_bytes,
        "temporaries": memory.temp_size_in_bytes,
        "outputs": outputs,
        "code": memory.generated_code_size_in_bytes,
    }
    peak = getattr(memory, "peak_memory_in_bytes", 0) or sum(parts.values())
    accessed, traffic = count.get("bytes accessed", 0.0), device_traffic(text)
    return Cost(
        **parts,
        peak=peak,
        flops=count.get("flops", 0.0),
        accessed=accessed,
        traffic=min(traffic, int(accessed)) if accessed else traffic,
        collectives=tuple(find_collectives(text)),
        trained=trained,
        seconds=seconds,
        text=text,
    )


def _counted(compiled: jax.stages.Compiled) -> dict[str, float]:
    """XLA's count of a program's FLOPs and bytes, by name; empty where it counts none.

    Of a program for GPUs its CPU client counts, as the CUDA one does not; what it takes for nothing, kernels, is added.
    """
    count = compiled.cost_analysis()
    if count is not None:
        return count
    try:
        from jax._src.lib import _jax  # not public, but nothing public counts a program for devices that are not here

        executable: Any = compiled.runtime_executable()
        (module,) = executable.hlo_modules()
        count = _jax.hlo_module_cost_analysis(jax.devices("cpu")[0].client, module)
    except (ImportError, AttributeError):  # another version of jax
        return {}
    flops, moved = kernel_cost(compiled.as_text() or "")
    return {**count, "flops": count["flops"] + flops, "bytes accessed": count["bytes accessed"] + moved}


def _placed_state(path: Sequence[Any], leaf: Any, labels: Mapping[str, str], place: Placement) -> jax.ShapeDtypeStruct:
    """A trainable leaf, or a moment of one, where the parameter lives; counters everywhere."""
    name = next((key.key for key in reversed(path) if getattr(key, "key", None) in labels), None)
    sharding = place.replicated if name is None else place.parameter(name, leaf.shape, frozen=False)
    return _placed(leaf, sharding)


def _placed(leaf: Any, sharding: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)
