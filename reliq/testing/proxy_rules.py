"""Decide which request of a connection meets a fault.

Callers: `FaultProxy` (makes rules), its links (cut the client's bytes into requests and ask the rules).
Guarantee: each request is counted by a rule at most once, also when it arrives in several pieces. Nothing
here does I/O or waits.

Redis commands are cut exactly: a connection whose first byte is `*` is taken for RESP, and every command
counts by itself, in a pipeline too. Any other protocol is matched piece by piece as it arrives, with the last
bytes of the piece before, so that a pattern on the seam is found.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Literal

Match = bytes | Callable[[bytes], bool]
Action = Literal["drop_request", "drop_reply", "call_before", "call_after", "call_replied"]

TAIL = 4096  # bytes of the piece before that a match may reach back


class Rule:
    """One fault waiting for its request; made by `FaultProxy`, taken away with `remove()` or `heal()`.

    `seen` counts matching requests, `fired` those that met the fault.
    """

    def __init__(
        self,
        action: Action,
        match: Match,
        *,
        nth: int = 1,
        every: bool = False,
        limit: int | None = None,
        callback: Callable[[], object] | None = None,
    ) -> None:
        if nth < 1:
            raise ValueError(f"nth must be at least 1 (the first matching request), got {nth}")
        if limit is not None and limit < 1:
            raise ValueError(f"limit must be at least 1 or None (no limit), got {limit}")
        self.action = action
        self.callback = callback
        self.seen = 0
        self.fired = 0
        self._match = match
        self._nth = nth
        self._every = every
        self._limit = limit
        self._removed = False
        self._lock = threading.Lock()

    def remove(self) -> None:
        """Never fire again."""
        self._removed = True

    def meets(self, request: bytes, seam: int = 0) -> bool:
        """Whether `request` matches, whatever the count. Its first `seam` bytes are old."""
        if isinstance(self._match, bytes):
            return request.find(self._match, max(0, seam - len(self._match) + 1)) >= 0
        return bool(self._match(request))

    def count(self) -> bool:
        """Note one matching request; True when this one is to meet the fault."""
        with self._lock:
            if self._removed:
                return False
            self.seen += 1
            due = self.seen % self._nth == 0 if self._every else self.seen == self._nth
            if not due or (self._limit is not None and self.fired >= self._limit):
                return False
            self.fired += 1
            return True

    def __repr__(self) -> str:
        which = f"every {self._nth}" if self._every else f"number {self._nth}"
        return f"<Rule {self.action} {self._match!r} {which}, seen {self.seen}, fired {self.fired}>"


class Requests:
    """Cuts one connection's client bytes into requests, and asks rules about each."""

    def __init__(self) -> None:
        self._resp: bool | None = None  # unknown until the first byte
        self._rest = b""  # RESP: start of a command not yet complete. Invariant: not yet forwarded
        self._tail = b""  # not RESP: last bytes already forwarded
        self._answered = False

    def feed(self, data: bytes) -> list[bytes]:
        """The requests complete so far; over all calls they hold each fed byte once, in order."""
        if self._resp is None:
            self._resp = data[:1] == b"*"
        if not self._resp:
            return [data]
        data = self._rest + data
        start = 0
        requests: list[bytes] = []
        while start < len(data):
            end = resp_command_end(data, start)
            if end < 0:  # not RESP after all: hand on as it comes
                self._resp, self._rest = False, b""
                return [*requests, data[start:]]
            if end == 0:
                break
            requests.append(data[start:end])
            start = end
        self._rest = data[start:]
        return requests

    def take_rest(self) -> bytes:
        """The bytes of an unfinished command, when no more will come."""
        rest, self._rest = self._rest, b""
        return rest

    def due(self, rules: list[Rule], request: bytes) -> list[Rule]:
        """The rules that fire on this request; each rule that matches counts it once."""
        if self._resp:
            return [rule for rule in rules if rule.meets(request) and rule.count()]
        if self._answered:  # the bytes before belong to a request that is over
            self._tail, self._answered = b"", False
        window = self._tail + request
        met = [rule for rule in rules if rule.meets(window, seam=len(self._tail))]
        self._tail = b"" if met else window[-TAIL:]
        return [rule for rule in met if rule.count()]

    def answered(self) -> None:
        """A reply passed: the next bytes begin a new request."""
        self._answered = True


def resp_command_end(data: bytes, start: int = 0) -> int:
    """Where the RESP command that begins at `start` ends; 0: not complete, -1: no such command."""
    if data[start : start + 1] != b"*":
        return -1
    position = data.find(b"\r\n", start)
    if position < 0:
        return 0 if len(data) - start < 32 else -1
    try:
        arguments = int(data[start + 1 : position])
        position += 2
        for _ in range(arguments):
            if position >= len(data):
                return 0
            if data[position] != 0x24:  # b"$"
                return -1
            line_end = data.find(b"\r\n", position)
            if line_end < 0:
                return 0 if len(data) - position < 32 else -1
            position = line_end + 2 + int(data[position + 1 : line_end]) + 2
    except ValueError:
        return -1
    return position if position <= len(data) else 0
