"""What tasks did, written by the tasks themselves and safe from kill -9.

Callers: actors in worker processes (`record`), the test that counts afterwards (everything else).
Guarantee: a `record` that returned is in the file whatever happens to the process then; lines of many
processes and threads never mix (one `write` to an O_APPEND descriptor each).
Not here: what was left in the broker (`census`), and what both together mean (`tallying`).
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from reliq.testing.waiting import eventually

Key = Hashable


@dataclass(frozen=True)
class Entry:
    """One line: `event` ("start", "end", "fail", ...) of task `key`, `at` Unix seconds, by `pid` and
    `thread`.

    `key` and what is in `fields` come back as JSON gives them, with tuples for lists.
    """

    event: str
    key: Key
    at: float
    pid: int
    thread: int
    fields: dict[str, Any] = field(default_factory=dict, compare=False)


class RunLog:
    """An append-only file of JSON lines. Give actors the same path, through the environment for instance."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self._lock = threading.Lock()
        self._fd: int | None = None
        self._read: list[Entry] = []
        self._offset = 0

    def record(self, event: str, key: Key = None, **fields: Any) -> None:
        """Append one line with the time, process and thread. `key` and `fields` must be JSON values."""
        line = json.dumps(
            {
                "event": event,
                "key": key,
                "at": time.time(),
                "pid": os.getpid(),
                "thread": threading.get_ident(),
                "fields": fields,
            }
        ).encode()
        line += b"\n"
        written = os.write(self._descriptor(), line)
        if written != len(line):  # a full disk; a torn line would be counted as nothing, silently
            raise OSError(f"only {written} of {len(line)} bytes of a record went to {self.path}")

    def entries(self) -> list[Entry]:
        """Every complete line so far, in the order of writing."""
        with self._lock:
            try:
                with self.path.open("rb") as file:
                    file.seek(self._offset)
                    data = file.read()
            except FileNotFoundError:
                return []
            complete = data[: data.rfind(b"\n") + 1]
            self._offset += len(complete)
            self._read.extend(_parse(line) for line in complete.splitlines())
            return list(self._read)

    def count(self, event: str) -> Counter[Key]:
        """How often each key has this event."""
        return Counter(entry.key for entry in self.entries() if entry.event == event)

    def keys(self, event: str) -> set[Key]:
        """The keys that have this event."""
        return set(self.count(event))

    def wait_for(
        self,
        what: str | Callable[[list[Entry]], bool],
        number: int = 1,
        timeout: float = 10.0,
        *,
        distinct: bool = True,
    ) -> bool:
        """Wait up to `timeout` seconds; whether it came true.

        `what` is a function of all entries, or an event that `number` different keys must have. Different
        keys, so that tasks which ran twice do not hide others that did not run; `distinct=False` counts
        lines.
        """
        if callable(what):
            met = what
        else:
            event = what

            def met(entries: list[Entry]) -> bool:
                seen = [entry.key for entry in entries if entry.event == event]
                return len(set(seen) if distinct else seen) >= number

        try:
            return eventually(lambda: met(self.entries()), timeout)
        except TimeoutError:
            return False

    def close(self) -> None:
        """Close the file; the next `record` opens it again."""
        with self._lock:
            if self._fd is not None:
                os.close(self._fd)
                self._fd = None

    def __repr__(self) -> str:
        counts = Counter(entry.event for entry in self.entries())
        text = ", ".join(f"{number} {event}" for event, number in counts.items())
        return f"<RunLog {self.path.name}: {text or 'empty'}>"

    def _descriptor(self) -> int:
        # Shared after a fork, which is fine: every write goes to the end of the file, not to a position of
        # ours.
        if self._fd is None:
            with self._lock:
                if self._fd is None:
                    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC
                    self._fd = os.open(self.path, flags, 0o644)
        return self._fd


def _parse(line: bytes) -> Entry:
    values = json.loads(line)
    return Entry(
        event=values["event"],
        key=hashable(values["key"]),
        at=values["at"],
        pid=values["pid"],
        thread=values["thread"],
        fields=values["fields"],
    )


def hashable(value: Any) -> Key:
    """A JSON value as something that can be a key: lists become tuples, objects tuples of sorted pairs."""
    if isinstance(value, list):
        return tuple(hashable(item) for item in value)
    if isinstance(value, dict):
        return tuple(sorted((name, hashable(item)) for name, item in value.items()))
    if isinstance(value, Hashable):
        return value
    raise TypeError(f"a key must be a JSON value, got {value!r}")
