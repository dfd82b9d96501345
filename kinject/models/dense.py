"""The dense layers of an encoder, each of which can carry a low-rank addition beside its kernel (models/lora.py)."""

from __future__ import annotations

from typing import Any, Protocol

import jax
from flax import nnx

from kinject.models.kernels.products import dot_general, promote


class Addition(Protocol):
    """What may be put at a dense layer's `lora`."""

    def add(self, outputs: jax.Array, inputs: jax.Array, key: jax.Array | None, start: int = 0) -> jax.Array:
        """Returns the layer's outputs with what is added to them.

        Args:
          outputs: what the kernel yields: all of it, or of a fused kernel the parts from `start` on.
          inputs: what the layer reads.
          key: dropout key, None = no dropout.
          start: first of the parts.
        """

    def merged(self, kernel: jax.Array) -> jax.Array:
        """The kernel that does the same alone, in its own dtype."""


class _Extensible:
    """Mixin: `lora` is None in a plain host, and then not among the attributes of the instance."""

    lora: Addition | None = None

    def __init__(self, *args: Any, **options: Any):
        super().__init__(*args, promote_dtype=promote, dot_general=dot_general, **options)  # type: ignore[call-arg]  # nnx.Linear's

    def __call__(self, inputs: jax.Array, key: jax.Array | None = None) -> jax.Array:
        outputs = super().__call__(inputs)  # type: ignore[misc]  # nnx.Linear's
        return outputs if self.lora is None else self.lora.add(outputs, inputs, key)


class Dense(_Extensible, nnx.Linear):
    """`nnx.Linear` with an optional addition."""

    @property
    def is_plain(self) -> bool:
        """Whether it is kernel and bias and nothing else."""
        return self.lora is None and self.bias is not None

    def promoted(self, hidden: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Kernel and bias in the dtype that a stream is multiplied in."""
        assert self.bias is not None
        return self.promote_dtype((hidden, self.kernel[...], self.bias[...]), dtype=self.dtype)[1:]


class JoinedProjection(_Extensible, nnx.LinearGeneral):
    """The attention's output projection, kernel [H, Dh, D], with an optional addition."""


class FusedProjection(_Extensible, nnx.LinearGeneral):
    """Queries, keys and values from one kernel [D, 3, H, Dh], whole or only some of the three."""

    def part(self, hidden: jax.Array, start: int, stop: int, key: jax.Array | None = None) -> jax.Array:
        """Projects [B, L, D] with kernels `start` to `stop` (exclusive) of the three: [B, L, stop - start, H, Dh]."""
        kernel = self.kernel[...][:, start:stop]
        bias = None if self.bias is None else self.bias[...][start:stop]
        inputs, kernel, bias = self.promote_dtype((hidden, kernel, bias), dtype=self.dtype)
        outputs = dot_general(inputs, kernel, (((inputs.ndim - 1,), (0,)), ((), ())))
        outputs = outputs if bias is None else outputs + bias
        return outputs if self.lora is None else self.lora.add(outputs, hidden, key, start)
