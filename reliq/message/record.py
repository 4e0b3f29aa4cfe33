"""What reliq knows about a message's past: `message.options["reliq"]`.

The way of a message that fails:

1. It is sent without a record: a message that never fails never carries one.
2. A run raises. `Retries` writes the attempt into the record and leaves a verdict; the transport stores the retry
   with the record in it and removes the original, in one step where the broker can.
3. While it waits nothing changes it. When it comes up again the record is read; hostile values are dropped.
4. Deferrals (a limit, an unknown actor, `reliq.Defer`) count in `deferrals` and never in `attempts`.
5. It succeeds, and the record goes with it; or it dies, and the record with the key `dead` lies in the dead letter.
6. A replay removes `dead` and the counts of its first life, and writes `replay`.

Dramatiq's own `retries`, `traceback` and `requeue_timestamp` stay maintained beside the record, so that a fleet of
stock and reliq workers counts once. Unknown keys are kept; a record with a newer `v` is never rewritten.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

KEY = "reliq"
VERSION = 1

#: How many attempts the log keeps; older ones go first.
MAX_ATTEMPTS_KEPT = 10
#: The most that a record may weigh as JSON, in bytes.
MAX_RECORD_BYTES = 16 * 1024

#: Field -> what it holds. Milliseconds since the epoch unless said otherwise.
_TIMES = ("first_failed_at", "unknown_since", "eligible_at", "deadline")
_COUNTS = ("deferrals", "deferred_ms", "crashes", "suspicions")
_TEXTS = ("effect_key",)
_TABLES = ("replay", "celery", "trace", "dead")

_ATTEMPT_FIELDS = ("at", "error", "message", "host", "pid", "duration_ms", "version")


class Record:
    """The record of one message, read from its options and written back by `dump()`.

    Reading never raises: what has the wrong type or an impossible value is left out. Attributes:
    `first_failed_at`, `unknown_since`, `eligible_at`, `deadline` (ms since the epoch or None); `deferrals`,
    `crashes`, `suspicions` (counts), `deferred_ms` (ms spent deferred in all); `attempts` (dicts with at, error,
    message, host, pid, duration_ms, version; the last 10); `replay`, `celery`, `trace`, `dead` (dicts or None).
    """

    __slots__ = (*_TIMES, *_COUNTS, *_TEXTS, *_TABLES, "attempts", "_extra", "_newer")

    def __init__(self, raw: object = None) -> None:
        data: dict[str, Any] = dict(raw) if isinstance(raw, Mapping) else {}
        version = data.pop("v", VERSION)
        # A record from a newer reliq: its fields may mean something else, so it is carried, not touched.
        newer = isinstance(version, int) and not isinstance(version, bool) and version > VERSION
        self._newer: dict[str, Any] | None = dict(raw) if newer and isinstance(raw, Mapping) else None
        if newer:
            data = {}
        for name in _TIMES:
            setattr(self, name, _whole(data.pop(name, None)))
        for name in _COUNTS:
            setattr(self, name, _whole(data.pop(name, None)) or 0)
        for name in _TEXTS:
            value = data.pop(name, None)
            setattr(self, name, value if isinstance(value, str) and len(value) <= 200 else None)
        for name in _TABLES:
            value = data.pop(name, None)
            setattr(self, name, value if isinstance(value, dict) else None)
        self.attempts: list[dict[str, Any]] = _attempts(data.pop("attempts", None))
        self._extra = {key: value for key, value in data.items() if isinstance(key, str)}

    first_failed_at: int | None
    unknown_since: int | None
    eligible_at: int | None
    deadline: int | None
    deferrals: int
    deferred_ms: int
    crashes: int
    suspicions: int
    effect_key: str | None
    replay: dict[str, Any] | None
    celery: dict[str, Any] | None
    trace: dict[str, Any] | None
    dead: dict[str, Any] | None

    @classmethod
    def read(cls, options: Mapping[str, Any]) -> Record:
        """The record in a message's options; an empty one where there is none."""
        return cls(options.get(KEY))

    @property
    def is_newer(self) -> bool:
        """Whether a newer reliq wrote it, so that nothing may be changed in it."""
        return self._newer is not None

    def add_attempt(self, **fields: Any) -> None:
        """Append one failed attempt (`at` in ms), keeping the last 10, and stamp `first_failed_at` once."""
        self.attempts = [*self.attempts, {key: fields.get(key) for key in _ATTEMPT_FIELDS}][-MAX_ATTEMPTS_KEPT:]
        if self.first_failed_at is None:
            self.first_failed_at = fields.get("at")

    def start_over(self, replay: dict[str, Any]) -> None:
        """Forget the life that ended in a dead letter: a replayed message has all its retries again."""
        self.attempts = []
        self.first_failed_at = self.unknown_since = self.eligible_at = None
        self.deferrals = self.deferred_ms = self.crashes = self.suspicions = 0
        self.dead = None
        self.replay = replay

    def shed(self) -> None:
        """Drop the attempts log; the counts stay. What a body that grew too large gives up second."""
        self.attempts = []

    def dump(self) -> dict[str, Any]:
        """The value for `options["reliq"]`; an empty dict when there is nothing to say."""
        if self._newer is not None:
            return self._newer
        data: dict[str, Any] = {}
        for name in (*_TIMES, *_TEXTS, *_TABLES):
            if (value := getattr(self, name)) is not None:
                data[name] = value
        for name in _COUNTS:
            if value := getattr(self, name):
                data[name] = value
        if self.attempts:
            # The death has a limit of its own; what others wrote is theirs.
            beside = {"v": VERSION, "attempts": [], **data, "dead": None}
            data["attempts"] = _within(self.attempts, MAX_RECORD_BYTES - len(json.dumps(beside, default=str)))
        data = {**self._extra, **data}
        return {"v": VERSION, **data} if data else {}


def with_record(options: Mapping[str, Any], record: Record) -> dict[str, Any]:
    """A copy of `options` that carries `record`, or none where the record is empty."""
    merged = {key: value for key, value in options.items() if key != KEY}
    if data := record.dump():
        merged[KEY] = data
    return merged


def _whole(value: object) -> int | None:
    """A non-negative whole number within 64 bits, or None: what a hostile producer wrote is not believed."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return int(value) if 0 <= value < 2**63 else None


def _attempts(value: object) -> list[dict[str, Any]]:
    if not isinstance(value, list):
        return []
    return [dict(item) for item in value if isinstance(item, dict)][-MAX_ATTEMPTS_KEPT:]


def _within(attempts: list[dict[str, Any]], limit: int) -> list[dict[str, Any]]:
    """The newest attempts that fit into `limit` bytes of JSON."""
    kept = list(attempts)
    while kept and len(json.dumps(kept, default=str)) > limit:
        kept.pop(0)
    return kept
