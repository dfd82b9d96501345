"""One text at a time: what each takes, and how much of that is Python."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

import kinject


def singly(score: Callable[[str], float], texts: list[str], taken: list[float]) -> list[float]:
    """Scores of texts one at a time; what each took is noted in `taken`."""
    made = []
    for text in texts:
        started = time.perf_counter()
        made.append(score(text))
        taken.append(time.perf_counter() - started)
    return made


def p99(seconds: list[float]) -> float:
    """The 99th percentile, in ms."""
    return 1e3 * float(np.percentile(seconds, 99))


def around(host: kinject.Host, texts: list[str]) -> dict[str, float]:
    """This thread's CPU milliseconds of `Host.predict` of one text, its answers being there already: Python alone."""
    programs, known, taken = host.engine.programs, {}, []
    answer = programs.answer

    def there(program: Any, top: int) -> Callable[..., Any]:
        step = answer(program, top)

        def known_or_made(params: Any, batch: Any) -> Any:
            shape = batch["token_ids"].shape
            if shape not in known:
                known[shape] = jax.tree.map(np.asarray, step(params, batch))
            return known[shape]

        return known_or_made

    programs.answer = there
    try:
        for turn in range(11):
            for text in texts:
                started = time.thread_time()
                host.predict(text)
                taken += [time.thread_time() - started] * (turn > 0)
    finally:
        programs.answer = answer
    return {"p50": 1e3 * statistics.median(taken), "p99": p99(taken)}
