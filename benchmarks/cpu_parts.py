"""What a training step is spent on, on a CPU: dropout, a feed-forward at once or in portions, GELU, attention.

    python benchmarks/cpu_parts.py --json OUT

Each part alone and compiled, against what it took the place of; the least of some repetitions, in turns.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from kinject.models import kernels
from kinject.models.kernels.elementwise import Dropout, coarse_gelu
from kinject.models.kernels.products import attention_context, attention_scores, dot_general, rounded_dot

SIZE, INNER = 384, 1536
LAST = (((2,), (0,)), ((), ()))


def least(arms: dict[str, Callable[[], Any]], repetitions: int) -> dict[str, float]:
    """Milliseconds of each arm."""
    found = {name: float("inf") for name in arms}
    for _ in range(repetitions + 1):  # the first one compiles, and is never the least
        for name, run in arms.items():
            started = time.perf_counter()
            jax.block_until_ready(run())
            found[name] = min(found[name], 1e3 * (time.perf_counter() - started))
    return found


def dropouts() -> dict[str, Callable[[], Any]]:
    """Forward and backward of one dropout on [64, 64, 1536]."""
    values = jnp.ones((64, 64, INNER))

    def bernoulli(values: jax.Array, key: jax.Array) -> jax.Array:
        return jnp.where(jax.random.bernoulli(key, 0.9, values.shape), values / 0.9, 0)

    def arm(drop: Callable[[jax.Array, jax.Array], jax.Array], kind: str) -> Callable[[], Any]:
        slope = jax.jit(jax.grad(lambda values, key: (drop(values * 1.5, key) ** 2).sum()))
        return partial(slope, values, jax.random.key(0, impl=kind))

    return {
        "dropout": arm(Dropout(0.1), "threefry2x32"),
        "threefry": arm(bernoulli, "threefry2x32"),
        "rbg": arm(bernoulli, "rbg"),
        "no dropout": arm(lambda values, key: values, "threefry2x32"),
    }


def feed_forwards() -> dict[str, Callable[[], Any]]:
    """Forward of MiniLM's feed-forward on 96 rows of 48 tokens, products in bfloat16."""
    rows = jnp.ones((96, 48, SIZE))
    up, down = jnp.ones((SIZE, INNER), jnp.bfloat16), jnp.ones((INNER, SIZE), jnp.bfloat16)

    def layer(rows: jax.Array) -> jax.Array:
        return rounded_dot(jax.nn.gelu(rounded_dot(rows, up, LAST), approximate=False), down, LAST)

    whole = jax.jit(layer)
    cut = jax.jit(lambda rows: lax.map(layer, rows.reshape(6, 16, 48, SIZE)))
    return {"six portions": partial(cut, rows), "at once": partial(whole, rows)}


def gelus() -> dict[str, Callable[[], Any]]:
    """Forward on [16, 48, 1536]."""
    values = jnp.linspace(-4, 4, 16 * 48 * INNER).reshape(16, 48, INNER)
    exact = jax.jit(partial(jax.nn.gelu, approximate=False))
    return {"polynomial": partial(jax.jit(coarse_gelu), values), "error function": partial(exact, values)}


def attention_products() -> dict[str, Callable[[], Any]]:
    """Gradients of attention's two products for queries, keys and values [32, 12, 64, 64], float32."""
    arrays = tuple(jnp.ones((32, 12, 64, 64)) * scale for scale in (0.1, 0.2, 0.3))

    def loss(queries: jax.Array, keys: jax.Array, values: jax.Array) -> jax.Array:
        context = attention_context(jax.nn.softmax(attention_scores(queries, keys)), values)
        return (jnp.swapaxes(context, 1, 2) ** 2).sum()

    return switched("keys and values turned around", loss, arrays)


def merged_axes() -> dict[str, Callable[[], Any]]:
    """Gradients of attention's output product for rows and kernel, [32, 64, 12, 64] by [12, 64, 768], float32."""
    arrays = (jnp.ones((32, 64, 12, 64)) * 0.1, jnp.ones((12, 64, 768)) * 0.2)
    both = (((2, 3), (0, 1)), ((), ()))
    return switched("two axes made one", lambda rows, kernel: (dot_general(rows, kernel, both) ** 2).sum(), arrays)


def switched(name: str, loss: Callable[..., jax.Array], arrays: tuple[jax.Array, ...]) -> dict[str, Callable[[], Any]]:
    """The compiled gradient of a loss with the kernels of `kinject.models.kernels`, and without."""
    slope = jax.grad(loss, argnums=tuple(range(len(arrays))))
    arms = {}
    for arm, on in ((name, False), ("plain", True)):
        with kernels.plain(on):
            arms[arm] = partial(jax.jit(slope).lower(*arrays).compile(), *arrays)
    return arms


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repetitions", type=int, default=10)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    rows = []
    for made in (dropouts, feed_forwards, gelus, attention_products, merged_axes):
        found = least(made(), arguments.repetitions)
        (ours, mine), *others = found.items()
        for theirs, taken in others:
            rows.append(
                {
                    "name": f"cpu_parts, {ours} / {theirs}",
                    "ratio": taken / mine,
                    "ours": mine,
                    "theirs": taken,
                    "unit": f"milliseconds: {made.__doc__}",
                    "hardware": f"{jax.default_backend()}, {platform.machine()}, {len(os.sched_getaffinity(0))} cores",
                    "versions": f"jax {jax.__version__}",
                }
            )
            print(f"{rows[-1]['name']}: {mine:.2f} / {taken:.2f} ms = {taken / mine:.1f}x")
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
