"""Ask exceptions of others for what they carry.

Callers: `transient.py`, `retry_after.py`.
Guarantee: an attribute that is missing, raises or has a surprising type gives None; nothing here raises.
What is swallowed is the user's property failing on an exception whose run is over; its failure is already on
record.
Not here: what the answers mean.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

#: A chain or group longer than this says nothing new; one that closes on itself ends here.
FARTHEST = 32


def attribute(source: Any, *path: str) -> Any:
    """`source.a.b` for the path a, b. Compared with None on the way: a `requests` reply of 503 is falsy."""
    try:
        for name in path:
            if source is None:
                return None
            source = getattr(source, name, None)
    except BaseException:
        return None
    return source


def item(source: Any, *keys: str) -> Any:
    """`source["a"]["b"]` for the keys a, b, through dicts only."""
    try:
        for key in keys:
            source = source.get(key) if is_a(source, dict) else None
    except BaseException:
        return None
    return source


def called(source: Any, method: str) -> Any:
    """What the method answers without arguments."""
    try:
        return getattr(source, method)()
    except BaseException:
        return None


def is_a(value: Any, cls: type) -> bool:
    """As isinstance(), which however asks the value's `__class__`, and that may be a property that raises."""
    return issubclass(type(value), cls)


def whole_number(value: Any) -> int | None:
    """The value of an int or of a text of three digits, as the plain int it stands for."""
    if is_a(value, int) and not is_a(value, bool):
        return int.__add__(value, 0)
    if type(value) is str and len(value) == 3 and value.isascii() and value.isdigit():
        return int(value)
    return None


def leaves(error: BaseException) -> list[BaseException]:
    """The exceptions inside a group and its groups, 32 at most; of any other exception: itself."""
    found: list[BaseException] = []
    waiting = [error]
    for _ in range(2 * FARTHEST):
        if not waiting or len(found) == FARTHEST:
            break
        nearest = waiting.pop(0)
        members = attribute(nearest, "exceptions")
        inside = [m for m in members if is_a(m, BaseException)] if type(members) in (list, tuple) else []
        waiting[:0] = inside[:FARTHEST]
        if not inside:
            found.append(nearest)
    return found or [error]


def with_causes(error: BaseException) -> Iterator[BaseException]:
    """The exception, then what it was raised `from`, and so on.

    Not along `__context__`: what was being handled when an error was raised need not be its reason.
    """
    seen: set[int] = set()
    current: Any = error
    while is_a(current, BaseException) and id(current) not in seen and len(seen) < FARTHEST:
        seen.add(id(current))
        yield current
        current = attribute(current, "__cause__")
