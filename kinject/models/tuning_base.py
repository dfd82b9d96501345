"""What a way of tuning a host is: what it adds to the encoder, and which parameters it trains unless told otherwise."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

from flax import nnx

from kinject.config import Section
from kinject.errors import InputError
from kinject.models.heads import HostModel, head_kind
from kinject.models.layers import Layer

Rules = tuple[tuple[str, str], ...]
"""(regex of parameter paths, "train" | "freeze"), the first match counts: see training/partition.py."""


class Tuning(Section, ABC):
    """Settings of one way of tuning; a subclass is one way.

    Attributes:
      name: what a config calls it.
      adds: whether it adds parameters to the encoder, which then are saved beside the host's own.
    """

    name: ClassVar[str]
    adds: ClassVar[bool] = False

    def check(self, host: HostModel) -> None:
        """Raises InputError where it would train nothing of the host's encoder."""

    def attach(self, host: HostModel, rngs: nnx.Rngs) -> None:
        """Adds fresh parameters to the encoder of a plain host, in place. No path of the host's own changes.

        Raises:
          InputError: the settings do not fit the host's shape.
        """

    @abstractmethod
    def rules(self, head: str | None) -> Rules:
        """Which parameters it trains in a host with this kind of head (table in models/tuning.py)."""

    def to_json(self) -> dict[str, Any]:
        """The settings as a config or `host.json` has them."""
        return {"name": self.name, **self.model_dump(mode="json")}


def chosen_layers(host: HostModel, numbers: tuple[int, ...] | None) -> Iterator[Layer]:
    """The layers with these numbers, or all.

    Raises:
      InputError: the encoder has no such layer.
    """
    layers = host.encoder.layers
    for number in range(len(layers)) if numbers is None else numbers:
        if not 0 <= number < len(layers):
            raise InputError("tuning.layers", f"there is no layer {number}", f"layers are 0 to {len(layers) - 1}")
        yield layers[number]


def own_output(head: str | None) -> Rules:
    """The rule that trains a head's own output layer, where it has one."""
    return (("host/head/output/.*", "train"),) if head is not None and head_kind(head).own_output else ()


class Full(Tuning):
    """Everything trains."""

    name: ClassVar[str] = "full"

    def rules(self, head: str | None) -> Rules:
        return (("host/.*", "train"), (".*", "freeze"))


class BitFit(Tuning):
    """BitFit (Ben Zaken et al. 2022): only biases train, those of LayerNorms too, and the head."""

    name: ClassVar[str] = "bitfit"

    def check(self, host: HostModel) -> None:
        config = host.encoder.config
        if not (config.attention_bias or config.mlp_bias or config.norm_bias):
            problem = f"bitfit trains biases, and the encoder of a {config.model_type} has none"
            raise InputError("tuning.name", problem, "use lora, houlsby or full")

    def rules(self, head: str | None) -> Rules:
        trained = (("host/head/.*", "train"),) if head == "masked_lm" else own_output(head)
        return (("host/.*/bias", "train"), *trained, (".*", "freeze"))


def attach(host: HostModel, tuning: Tuning, rngs: nnx.Rngs) -> None:
    """Makes a host ready for a tuning, in place: adds to the encoder what the tuning adds, freshly drawn.

    Raises:
      InputError: the host has an addition already, the settings do not fit its shape, or nothing of it would train.
    """
    tuning.check(host)
    if not tuning.adds:
        return
    if host.tuning is not None:
        problem = f"the host has {host.tuning.name} in it already, and gets no {tuning.name} on top"
        raise InputError("tuning", problem, "merge that first, or tune it on with the name full and rules of your own")
    tuning.attach(host, rngs)
    host.tuning = tuning


def rules_for(tuning: Tuning, head: str | None, fresh: Sequence[str] = ()) -> Rules:
    """What a tuning trains by default.

    Args:
      tuning: which.
      head: kind of the host's head.
      fresh: paths in the host of parameters that were drawn at random, `LoadedHost.fresh`.
    """
    drawn = "|".join(map(re.escape, fresh))
    return ((f"host/({drawn})", "train"), *tuning.rules(head)) if fresh else tuning.rules(head)
