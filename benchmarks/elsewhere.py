"""The torch arms of map_tuning.py in a process of their own, which keeps its memory as the C library does by itself.

Ours tell it to keep what is freed, as training by command does. In the same process that would cost torch half of its
speed under bfloat16 autocast (measured on the machine of docs/performance.md), for reasons of its own.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

Run = Callable[[], tuple[int, float]]


def serve(connection: Connection, options: tuple) -> None:
    """Makes arms (method of `TorchArms`, its arguments) and runs them by number, until the other side is gone."""
    from map_tuning_torch import TorchArms  # torch and transformers, which ours do without

    arms, made = TorchArms(*options), []
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
    """`TorchArms`, in another process: what it takes, and its methods."""

    def __init__(self, *options: Any):
        context = multiprocessing.get_context("spawn")
        self.connection, other = context.Pipe()
        self.process = context.Process(target=serve, args=(other, options), daemon=True)
        self.process.start()
        other.close()

    def __enter__(self) -> ArmsElsewhere:
        return self

    def __exit__(self, *_: object) -> None:
        """Lets the process end by itself: one that is killed leaves locks behind, of which Python warns."""
        self.connection.close()
        self.process.join()

    def authors(self, *arguments: Any) -> Run:
        return self._made("authors", arguments, {})

    def vectorised(self, *arguments: Any, **options: Any) -> Run:
        return self._made("vectorised", arguments, options)

    def product(self, half: bool) -> Callable[[], float]:
        return self._made("product", (half,), {})

    def _made(self, method: str, arguments: tuple, options: dict[str, Any]) -> Callable[[], Any]:
        number = self._asked(method, arguments, options)
        return lambda: self._asked("run", number)

    def _asked(self, *question: Any) -> Any:
        self.connection.send(question)
        return self.connection.recv()
