"""Torch's arms of a benchmark in a process of their own, which keeps its memory as the C library does by itself.

Ours tell it to keep what is freed, as training by command does. In the same process that would cost torch half of its
speed under bfloat16 autocast (measured on the machine of docs/performance.md), for reasons of its own.
"""

from __future__ import annotations

import importlib
import multiprocessing
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any


def serve(connection: Connection, module: str, options: tuple) -> None:
    """Makes arms (method of the module's `TorchArms`, its arguments) and runs them by number, until no one asks."""
    arms, made = importlib.import_module(module).TorchArms(*options), []  # it imports torch, which ours do without
    while True:
        try:
            asked, *given = connection.recv()
        except EOFError:
            return
        if asked == "run":
            connection.send(made[given[0]]())
        else:
            made.append(getattr(arms, asked)(*given[0], **given[1]))
            connection.send(len(made) - 1)


class ArmsElsewhere:
    """The `TorchArms` of a module, in another process.

    Args:
      module: by name.
      options: what its `TorchArms` takes.
    """

    def __init__(self, module: str, *options: Any):
        context = multiprocessing.get_context("spawn")
        self.connection, other = context.Pipe()
        self.process = context.Process(target=serve, args=(other, module, options), daemon=True)
        self.process.start()
        other.close()

    def __enter__(self) -> ArmsElsewhere:
        return self

    def __exit__(self, *_: object) -> None:
        """Lets the process end by itself: one that is killed leaves locks behind, of which Python warns."""
        self.connection.close()
        self.process.join()

    def arm(self, method: str, *arguments: Any, **options: Any) -> Callable[[], Any]:
        """The arm that a method makes there; called, it runs there."""
        number = self._asked(method, arguments, options)
        return lambda: self._asked("run", number)

    def _asked(self, *question: Any) -> Any:
        self.connection.send(question)
        return self.connection.recv()
