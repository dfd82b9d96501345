"""Ways of making a task's host out of a pretrained model, by the name that a config gives them.

What each trains by default is what the authors of map-tuning trained (Zhang et al. 2023, thunlp/Knowledge-Plugin):

| tuning  | encoder                  | head with outputs      | masked-LM head |
|---------|--------------------------|------------------------|----------------|
| full    | all                      | all                    | all            |
| lora    | A and B                  | output, not the pooler | frozen         |
| houlsby | the adapters             | output, not the pooler | frozen         |
| bitfit  | every bias               | output, pooler's bias  | all            |

Parameters of a head that a checkpoint lacks and that were drawn at random train in any case: a frozen random layer is
nobody's wish. Rules of the config's own replace all of these.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from flax import nnx

from kinject.config import build
from kinject.errors import InputError, did_you_mean
from kinject.models.heads import HostModel, head_kind
from kinject.models.houlsby import Houlsby
from kinject.models.lora import Lora, merge_lora
from kinject.models.tuning_base import Rules, Tuning, own_output

__all__ = ["TUNINGS", "BitFit", "Full", "Houlsby", "Lora", "Tuning", "attach", "make_tuning", "merge_lora", "rules_for"]


class Full(Tuning):
    """Everything trains."""

    name: ClassVar[str] = "full"

    def rules(self, head: str | None) -> Rules:
        return (("host/.*", "train"), (".*", "freeze"))


class BitFit(Tuning):
    """BitFit (Ben Zaken et al. 2022): only biases train, those of LayerNorms too, and the head."""

    name: ClassVar[str] = "bitfit"

    def rules(self, head: str | None) -> Rules:
        masked_lm = head is not None and not head_kind(head).own_output
        trained = (("host/head/.*", "train"),) if masked_lm else own_output(head)
        return (("host/.*/bias", "train"), *trained, (".*", "freeze"))


TUNINGS: dict[str, type[Tuning]] = {cls.name: cls for cls in (Full, Lora, Houlsby, BitFit)}


def make_tuning(settings: Mapping[str, Any], where: str = "tuning") -> Tuning:
    """Reads `{"name": one of TUNINGS, **its settings}`.

    Raises:
      InputError: an unknown name or setting, or a value of the wrong type or range.
    """
    settings = dict(settings)
    name = settings.pop("name", None)
    if name not in TUNINGS:
        raise InputError(f"{where}.name", f"there is no tuning {name!r}", did_you_mean(str(name), TUNINGS))
    return build(TUNINGS[name], settings, where)


def attach(host: HostModel, tuning: Tuning, rngs: nnx.Rngs) -> None:
    """Makes a host ready for a tuning, in place: adds to the encoder what the tuning adds, freshly drawn.

    Raises:
      InputError: the host has an addition already, or the settings do not fit its shape.
    """
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
