"""SIGTERM: the notice that a preemptible machine gives before it goes.

While a loop trains, the notice is kept until the processes have agreed on the step after which all of them stop; at any
other time it ends the process at once, as nothing is half kept then.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from kinject.inference.mesh import DATA, MODEL, Placement
from kinject.inference.processes import Preempted, alone

_noticed = False
_watching = False


def listen() -> None:
    """Takes SIGTERM as a notice from now on; there has been none yet."""
    global _noticed
    _noticed = False

    def notice(number: int, frame: Any) -> None:
        global _noticed
        _noticed = True
        if not _watching:
            raise Preempted

    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, notice)


@contextmanager
def watched(place: Placement) -> Iterator[Watch]:
    """While it is open a notice waits to be asked for: `watch.stop(…)`."""
    global _watching
    _watching = True
    try:
        yield Watch(place)
    finally:
        _watching = False


class Watch:
    """Says whether to stop; all processes get the same answer at the same step."""

    def __init__(self, place: Placement):
        if not alone():
            if place.mesh is None:
                raise AssertionError("several processes train on a mesh")
            self.everywhere = NamedSharding(place.mesh, PartitionSpec((DATA, MODEL)))
            self.any = jax.jit(lambda flags: flags.max(), out_shardings=place.replicated)

    def stop(self, agree: bool) -> bool:
        """Whether any process has got a notice.

        Several processes ask each other only where they `agree` to, at a step whose results all have fetched: nothing
        else is then under way between them, so that no two collectives can meet in different orders, and asking costs
        one number more.
        """
        if alone():
            return _noticed
        if not agree:
            return False
        flags = np.full(jax.local_device_count(), _noticed, np.int8)
        return bool(self.any(jax.make_array_from_process_local_data(self.everywhere, flags)))
