"""Wait for a condition instead of sleeping.

Callers: tests, and the rest of `reliq.testing`.
Guarantee: returns as soon as the condition holds (within one poll), or raises with what was waited for.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def eventually(
    condition: Callable[[], T],
    timeout: float = 10.0,
    every: float = 0.02,
    what: str = "the condition",
    ignore: tuple[type[Exception], ...] = (),
) -> T:
    """Call `condition` until it returns something truthy, and return that.

    `timeout` and `every` are seconds. Exceptions of the types in `ignore` count as "not yet" (a server that
    is still down, for instance); all others pass through at once. The condition is tried at least once, and
    once more at the deadline, so that a slow machine cannot turn a condition that holds into a failure.

    Raises `TimeoutError`, which names `what` and the last value or error.
    """
    deadline = time.monotonic() + timeout
    while True:
        last_chance = time.monotonic() >= deadline
        cause: Exception | None = None
        try:
            value = condition()
        except ignore as error:
            cause = error
        else:
            if value:
                return value
        if last_chance:
            seen = f"last error {cause!r}" if cause is not None else f"last value {value!r}"
            raise TimeoutError(f"waited {timeout:g} s for {what}; {seen}") from cause
        time.sleep(min(every, max(0.0, deadline - time.monotonic())))
