"""What outwits XLA: computations that could be left to the compiler, written out because it did them worse.

Nothing else in kinject has a gradient of its own, an optimization barrier or a shape chosen for a compiler. Each kernel
stands in for a plain formula, which is computed instead while `plain` is on, or in a whole process with
`KINJECT_PLAIN=1`: so a wrong number is traced to this folder or away from it. `tests/test_kernels.py` runs a host both
ways; what each kernel is compared with is in the test named beside it.

- `elementwise.from_input`: XLA keeps two wide arrays for the gradient of a GELU [1]; tests/test_own_gradients.py
- `elementwise.coarse_gelu`: before a product in bfloat16 the error function costs a CPU as much as the product: 0.49 ms
  instead of 1.45 [2]; tests/test_precision.py
- `products.attention_scores`, `products.attention_context`: on a CPU, derived gradients of keys and values leave XLA's
  fast kernels and come out transposed [3]; tests/test_attention_products.py
- `products.attention_probabilities`: XLA keeps float32 scores beside the result [1]; tests/test_attention_products.py
- `elementwise.cross_entropy`: XLA scatters into an array of all scores [1]; tests/test_own_gradients.py
- `products.rounded_dot`: derived gradients would be products in float32, which matrix units for bfloat16 do not take: a
  map-tuning step has both rows in docs/performance.md; tests/test_precision.py
- `products.rounded_dot`, a single row taken twice: 3 ms of a vocabulary's product instead of 27 on a CPU;
  tests/test_precision.py
- `products.dot_general`, contracted axes made one: XLA would transpose the kernel in each step [3];
  tests/test_precision.py
- `short_attention.short_attention`: on GPUs, XLA makes twelve passes over memory of attention and its gradient [4];
  tests/test_short_attention.py
- `feed_forward.feed_forward`, `tiled.tiled`: on GPUs, XLA reads and writes for GELU and its slope what is four times as
  wide as the stream, in passes of their own [4]; tests/test_feed_forward.py
- `vocabulary.word_losses`: on GPUs, XLA writes a float32 score of each word and reads it four times [4];
  tests/test_vocabulary_losses.py
- `rows.by_rows`: XLA cannot split a kernel of Triton's over devices, nor JAX map it; tests/test_short_attention.py
- `elementwise.kept`, a mask that is a hash: JAX's generators write their bits to memory, 2.4 ms instead of
  55.7 [2]; tests/test_dropout.py. The switch leaves it alone: which elements a seed drops is meaning, not speed.

[1] Together: a map-tuning step of bert-base (256 x 32, bfloat16), compiled for an H100 moves 17.1 GB, not 20.9, with
2.2 GB of temporaries instead of 3.4; for a v5e chip (64 x 64) 16.3 GB instead of 19.5; on a CPU 13% fewer bytes.
[2] docs/performance.md, "What a step is spent on, on a CPU".
[3] Little: `python benchmarks/cpu_parts.py --repetitions 40`, thrice, float32, two quiet cores of a Sapphire Rapids:
1.0x to 1.1x of the plain gradient's speed for the products and 0.9x for the merged axes, which save 5% of the frozen
prefix's temporaries (tests/costs.json).
[4] The step of [1] moves 13.7 GB with that attention instead of 17.1, with that feed-forward 12.0, without scores 10.6.
What kernels read and write is counted from the program's text. No GPU was at hand: none of the four was ever timed.

A precision is meaning, too: a plain product rounds its factors as `rounded_dot` does, and JAX derives the gradient.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator

import jax
from jax.sharding import AbstractDevice, AbstractMesh, use_abstract_mesh

_switch = {"plain": os.environ.get("KINJECT_PLAIN", "") not in ("", "0"), "ahead": False}


def is_plain() -> bool:
    """Whether kernels are left out; asked while a function is traced."""
    return _switch["plain"]


@contextlib.contextmanager
def plain(on: bool = True) -> Iterator[None]:
    """Leaves all kernels out (or, with `on=False`, puts them back) until the block ends, in every thread.

    What was compiled before is compiled anew, here and afterwards; a function that was compiled ahead stays as it is.
    """
    before, _switch["plain"] = _switch["plain"], on
    jax.clear_caches()
    try:
        yield
    finally:
        _switch["plain"] = before
        jax.clear_caches()


def for_gpus() -> bool:
    """Whether what is traced may be compiled for NVIDIA's GPUs, so that it should offer kernels for them.

    Older ones than Ampere (compute capability 8.0) multiply no bfloat16 and get none.
    """
    if is_plain() or _switch["ahead"]:
        return not is_plain()
    return jax.default_backend() == "gpu" and all(map(_is_ampere, jax.local_devices()))


def _is_ampere(device: jax.Device) -> bool:
    capability = re.fullmatch(r"(\d+)\.\d+", str(getattr(device, "compute_capability", "")))  # AMD's are words
    return capability is not None and int(capability[1]) >= 8


@contextlib.contextmanager
def ahead(platform: str, kind: str = "NVIDIA H100") -> Iterator[None]:
    """Until the block ends, functions are traced for devices that may not be here, and in this thread lowered for them.

    Args:
      platform: of the devices.
      kind: theirs, which Pallas asks for from jax 0.11 on: those that are here are of another.
    """
    before, _switch["ahead"] = _switch["ahead"], platform in ("cuda", "gpu")
    mesh = AbstractMesh((), (), abstract_device=AbstractDevice(kind, None, "gpu"))
    try:
        with use_abstract_mesh(mesh) if _switch["ahead"] else contextlib.nullcontext():
            yield
    finally:
        _switch["ahead"] = before
