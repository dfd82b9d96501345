"""Which tensor of a Hugging Face checkpoint is which parameter of a host: the words that a family's table is made of.

The same table serves reading and writing. `{i}` stands for a layer's number on both sides.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np


class Sizes(Protocol):
    """What the way between two layouts depends on: `kinject.models.EncoderConfig` has it."""

    @property
    def hidden_size(self) -> int:
        """D."""

    @property
    def num_attention_heads(self) -> int:
        """H."""

    @property
    def head_dim(self) -> int:
        """Dh."""


To = Callable[[np.ndarray, Sizes], np.ndarray]


@dataclasses.dataclass(frozen=True)
class Transform:
    """How a tensor of theirs becomes one of ours, and back; shapes are [out, in] there and [in, …, out] here."""

    ours: To
    theirs: To


SAME = Transform(lambda t, _: t, lambda t, _: t)
DENSE = Transform(lambda t, _: t.T, lambda t, _: t.T)
HEADS_OUT = Transform(  # query, key or value kernel: [H * Dh, D] there, [D, H, Dh] here
    lambda t, c: t.T.reshape(-1, c.num_attention_heads, c.head_dim), lambda t, c: t.reshape(c.hidden_size, -1).T
)
HEADS_BIAS = Transform(lambda t, c: t.reshape(c.num_attention_heads, c.head_dim), lambda t, c: t.reshape(c.hidden_size))
HEADS_IN = Transform(  # output projection of the attention: [D, H * Dh] there, [H, Dh, D] here
    lambda t, c: t.T.reshape(c.num_attention_heads, c.head_dim, -1), lambda t, c: t.reshape(c.hidden_size, -1).T
)
FUSED_OUT = Transform(  # all three in one: [3 * H * Dh, D] there, [D, 3, H, Dh] here
    lambda t, c: t.T.reshape(-1, 3, c.num_attention_heads, c.head_dim), lambda t, c: t.reshape(c.hidden_size, -1).T
)
FUSED_BIAS = Transform(lambda t, c: t.reshape(3, c.num_attention_heads, c.head_dim), lambda t, c: t.reshape(-1))


@dataclasses.dataclass(frozen=True)
class Rule:
    """One tensor: `key` of theirs (without the family's prefix), `path` of ours, and the way between.

    `part` tells which slice of the parameter's axis `axis` the tensor is, where several share one parameter. `within`
    says of a head's tensor that transformers keeps it in the base model, under the prefix, as BERT's pooler.
    """

    key: str
    path: str
    transform: Transform = SAME
    part: int | None = None
    axis: int = 0
    within: bool = False

    def of_layer(self, i: int) -> Rule:
        """The rule of layer i."""
        number = str(i)
        return dataclasses.replace(self, key=self.key.replace("{i}", number), path=self.path.replace("{i}", number))


def dense(key: str, path: str, *, bias: bool = True, within: bool = False) -> tuple[Rule, ...]:
    """A dense layer's kernel and bias."""
    kernel = Rule(f"{key}.weight", f"{path}/kernel", DENSE, within=within)
    return (kernel, Rule(f"{key}.bias", f"{path}/bias", within=within)) if bias else (kernel,)


def norm(key: str, path: str, *, bias: bool = True) -> tuple[Rule, ...]:
    """A LayerNorm's scale and bias."""
    scale = Rule(f"{key}.weight", f"{path}/scale")
    return (scale, Rule(f"{key}.bias", f"{path}/bias")) if bias else (scale,)


def attention(
    projections: Sequence[str],
    output: str,
    ours: str,
    ways: Sequence[Transform] = (HEADS_OUT, HEADS_BIAS, HEADS_IN),
) -> tuple[Rule, ...]:
    """Queries, keys and values, which share one kernel here, and the output projection, without its LayerNorm.

    Args:
      projections: their names of the three.
      output: their name of the output projection.
      ours: path of the attention.
      ways: of a kernel of the three, of its bias, and of the output's kernel.
    """
    kernel, bias, back = ways
    return (
        *(
            rule
            for part, name in enumerate(projections)
            for rule in (
                Rule(f"{name}.weight", f"{ours}/qkv/kernel", kernel, part, axis=1),
                Rule(f"{name}.bias", f"{ours}/qkv/bias", bias, part),
            )
        ),
        Rule(f"{output}.weight", f"{ours}/output/kernel", back),
        Rule(f"{output}.bias", f"{ours}/output/bias"),
    )


def one_head(transform: Transform) -> Transform:
    """The same for an attention of one head, whatever the encoder has."""

    def of(way: To) -> To:
        return lambda t, c: way(t, _OneHead(c.hidden_size))

    return Transform(of(transform.ours), of(transform.theirs))


@dataclasses.dataclass(frozen=True)
class _OneHead:
    hidden_size: int
    num_attention_heads: int = 1

    @property
    def head_dim(self) -> int:
        """Dh, which is D."""
        return self.hidden_size
