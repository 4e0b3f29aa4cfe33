"""Places for messages that were fetched and are not over, counted without a lock on the way of each message.

Callers: the consumers. A place is taken by the thread that fetches and left by the thread that ends the run; whoever
wants places waits until few enough are taken. One thread at a time waits on a room.
"""

from __future__ import annotations

import threading

_NOBODY_WAITS = -1


class Room:
    """The messages in hand, by token."""

    def __init__(self) -> None:
        #: Adding to a set, taking from it and asking its size are each one step of the interpreter.
        self._taken: set[str] = set()
        self._wanted = _NOBODY_WAITS
        self._left = threading.Event()

    def __len__(self) -> int:
        return len(self._taken)

    def __repr__(self) -> str:
        return f"<Room taken={len(self._taken)}>"

    def take(self, token: str) -> None:
        """A message has come."""
        self._taken.add(token)

    def leave(self, token: str) -> None:
        """A message is over. Repeating it is harmless."""
        self._taken.discard(token)
        if len(self._taken) <= self._wanted:
            self._left.set()

    def wait(self, at_most: int, timeout_s: float) -> bool:
        """Wait until at most so many places are taken; returns whether they are."""
        if len(self._taken) <= at_most:
            return True
        self._left.clear()
        self._wanted = at_most
        # Looked at again now: who left in between saw nobody waiting.
        if len(self._taken) > at_most:
            self._left.wait(timeout_s)
        self._wanted = _NOBODY_WAITS
        return len(self._taken) <= at_most
