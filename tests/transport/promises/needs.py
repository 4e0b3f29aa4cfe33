"""Marks a test of the contract that only brokers with a capability can pass."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T", bound=Callable[..., object])


def needs(capability: str) -> Callable[[T], T]:
    """The test belongs to classes that declare `capability` (see `CAPABILITIES` in contract.py)."""

    def mark(test: T) -> T:
        test.needs_capability = capability  # type: ignore[attr-defined]
        return test

    return mark
