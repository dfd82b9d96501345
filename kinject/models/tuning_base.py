"""What a way of tuning a host is: what it adds to the encoder, and which parameters it trains unless told otherwise."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, ClassVar

from flax import nnx

from kinject.config import Section
from kinject.errors import InputError
from kinject.models.heads import head_kind

if TYPE_CHECKING:
    from kinject.models.encoder import Layer
    from kinject.models.heads import HostModel

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
