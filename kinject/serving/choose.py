"""Who runs a host's layers, XLA or ONNX Runtime: as `engine` says, or whichever is faster on this machine.

One text, batches and the many texts of a window are timed each, as they differ: between products one text has little
for XLA's threads to share, and of many texts XLA computes a batch a core, without their padding.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from kinject.errors import InputError
from kinject.inference.program import PlacedHost, Program
from kinject.inference.xla import ONE_CORE, cores
from kinject.models.encoder import Encoder
from kinject.models.heads import HostModel
from kinject.models.precision import Precision
from kinject.serving.runtime import JAX, EngineName, LayerInput, Layers
from kinject.tree import Flat

ENGINES = ("jax", "onnxruntime", "auto")
NAMES = {False: "jax", True: "onnxruntime"}
TIMED = ((1, 24), (32, 32))  # rows and positions of the batches that "auto" is timed on
PADDING = 3  # of 32 rows: as much of a batch of sorted texts is padding, which XLA leaves out where there are many
ROUNDS, LONGEST = 7, 2.0


def choose(
    asked: EngineName, host: HostModel, placed: PlacedHost, precision: Precision, where: object, vocabulary: int
) -> tuple[Layers | None, str]:
    """(what runs a host's layers: None = XLA, as everything else; that in one line).

    Args:
      asked: "auto" is timed here, on batches of made-up hidden states: of one short text, of 32, and of 32 a core.
      host: as it was loaded.
      placed: the host on its devices.
      precision: "int8" runs in int8; with any other but "bfloat16" the graph computes in float32.
      where: the host's folder.
      vocabulary: of its tokenizer.

    Raises:
      InputError: ONNX Runtime was asked for and cannot run this host.
    """
    if asked not in ENGINES:
        raise InputError("engine", f"there is no engine {asked!r}", f"choose from {', '.join(ENGINES)}")
    if asked == "jax":
        return None, "engine: jax"
    try:
        if precision == "bfloat16":
            raise InputError("engine", "onnxruntime computes in float32 or int8", f"take such a precision, or {JAX}")
        if jax.default_backend() != "cpu" or placed.devices > 1:
            raise InputError("engine", "onnxruntime runs on the CPU, as one device with all cores", JAX)
        layers = Layers(host, int8=precision == "int8", where=where, vocabulary=vocabulary)
    except InputError as error:
        if asked == "onnxruntime":
            raise
        return None, f"engine: jax, as {error}"
    if asked == "auto":
        return layers, _time(layers, placed, host.encoder)
    return layers, f"engine: onnxruntime{' in int8' if precision == 'int8' else ''}"


def _time(layers: Layers, placed: PlacedHost, encoder: Encoder) -> str:
    """Tells the layers which batches are theirs, because they are faster at them than XLA; says which."""
    program, params = placed.model(None)
    size = encoder.config.hidden_size
    step, alone = (jax.jit(partial(_run, program), compiler_options=how) for how in (None, ONE_CORE))
    ratios = []
    with ThreadPoolExecutor(cores()) as threads:
        for rows, length in TIMED:
            hidden = np.random.default_rng(0).normal(size=(rows, length, size)).astype(np.float32)
            segments, first = np.ones((rows, length), np.int32), np.zeros((rows, 1), np.int32)
            read = LayerInput(*map(jnp.asarray, (hidden, segments, first)))
            whole = partial(_fetched, step, params, read), partial(layers.run, read)
            arms = [partial(_timed, one) for one in whole]
            if rows > 1:
                packed = jax.tree.map(lambda one: one[PADDING:], read) if encoder.packs else read
                arms.append(partial(_side_by_side, threads, partial(_fetched, alone, params, packed)))
            ours, theirs, *shared = _seconds(arms)
            ratios += [ours / theirs, *(one / cores() / theirs for one in shared)]
    layers.strict, (layers.one, layers.many, layers.windows) = False, (ratio > 1 for ratio in ratios)
    named = [f"{NAMES[ratio > 1]} ({max(ratio, 1 / ratio):.2f}x as fast)" for ratio in ratios]
    return f"engine: {named[0]} for one text, {named[1]} for batches, {named[2]} for many texts"


def _run(program: Program, params: Flat, read: LayerInput) -> jax.Array:
    encoder = program.merge(params)[0].encoder
    batch = {"segment_ids": read.segments}
    return encoder.run(read.hidden.astype(encoder.dtype), batch, positions=read.positions)[-1]


def _timed(arm: Callable[[], Any]) -> float:
    started = time.perf_counter()
    arm()
    return time.perf_counter() - started


def _side_by_side(threads: ThreadPoolExecutor, arm: Callable[[], Any]) -> float:
    """Runs an arm in all cores at a time; returns what it takes one: none waits for another before the last batch."""
    return statistics.fmean(threads.map(_timed, [arm] * cores()))


def _fetched(step: Callable[[Flat, LayerInput], jax.Array], params: Flat, read: LayerInput) -> np.ndarray:
    return np.asarray(step(params, read))


def _seconds(arms: Sequence[Callable[[], float]]) -> list[float]:
    """The least that `ROUNDS` runs in turns return, after one; of three where they last `LONGEST` seconds.

    Not the median: what else a machine does in those seconds makes a run longer, and never shorter.
    """
    taken: list[list[float]] = [[] for _ in arms]
    began = time.perf_counter()
    for turn in range(ROUNDS + 1):
        if turn > 3 and time.perf_counter() - began > LONGEST:
            break
        for arm, some in zip(arms, taken, strict=True):
            some += [arm()] * (turn > 0)
    return [min(some) for some in taken]
