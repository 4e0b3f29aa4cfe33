"""The dead letter: how a death is written down, and how letters of every origin are read.

Writers: the transports, when they settle a verdict `dead` or meet a body they cannot open. Readers: the desk, the
command line, `on_dead_letter`. One form on every broker (`as_dict`); letters of plain Dramatiq lack most fields and
read as null there, never as an error.
"""

from __future__ import annotations

import base64
import os
import secrets
import socket
import threading
import time
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any

from dramatiq.message import Message

from . import failure as naming
from .record import Record
from .verdict import Failure, Reason

_CROCKFORD = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
_HOST = socket.gethostname()


class _Ulids:
    """ULIDs of one process: the time in ms, then chance, rising within one ms so that equal times keep their order."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._last_ms = 0
        self._tail = 0

    def next(self, now_ms: int) -> str:
        with self._lock:
            if now_ms <= self._last_ms:
                now_ms = self._last_ms
                self._tail += 1
            else:
                # The top bit stays free, so that counting up within one ms never overflows into the time.
                self._last_ms, self._tail = now_ms, secrets.randbits(79)
            value = (now_ms << 80) | (self._tail & ((1 << 80) - 1))
        return "".join(_CROCKFORD[(value >> shift) & 31] for shift in range(125, -5, -5))


_ulids = _Ulids()


def new_letter_id(now_ms: int) -> str:
    """A ULID (26 characters, sorts by time), rising within this process."""
    return _ulids.next(now_ms)


def worker_identity(version: str | None) -> dict[str, Any]:
    """Who runs here: host, pid and the code's version."""
    return {"host": _HOST, "pid": os.getpid(), "version": version}


def death(
    *,
    reason: Reason,
    actor: str,
    queue: str,
    attempts: int,
    failure: Failure | None,
    broker: str,
    version: str | None,
    died_at_ms: int | None = None,
) -> dict[str, Any]:
    """The value of `options["reliq"]["dead"]`: what is known at the moment of death. Times in ms."""
    died_at = int(time.time() * 1000) if died_at_ms is None else died_at_ms
    return {
        "id": new_letter_id(died_at),
        "reason": reason,
        "queue": queue,
        "error": failure.error if failure else None,
        "error_message": failure.message if failure else None,
        "traceback": failure.traceback if failure else None,
        "cause_chain": list(failure.cause_chain) if failure else [],
        "fingerprint": failure.fingerprint if failure else naming.fingerprint_of_reason(actor, reason),
        "attempts": attempts,
        "died_at": died_at,
        "worker": worker_identity(version),
        "broker": broker,
    }


@dataclass(frozen=True)
class DeadLetter:
    """One dead letter as it lies in a broker.

    `source` is "reliq" for ours and "stock" for what plain Dramatiq or the broker itself put aside. `body` is what
    the message was, byte for byte; `message` its decoded form or None; `dead` the record of its death or None.
    """

    id: str
    queue: str
    source: str
    body: bytes
    message: Message[Any] | None
    dead: dict[str, Any] | None
    died_at_ms: int | None

    @property
    def actor(self) -> str | None:
        """The actor that ran it, or None where the body cannot say."""
        return self.message.actor_name if self.message else None

    @property
    def reason(self) -> str | None:
        """Why it died, or None for letters of others."""
        return _text(self._dead("reason"))

    @property
    def fingerprint(self) -> str | None:
        """What it has in common with letters of the same cause."""
        return _text(self._dead("fingerprint"))

    def _dead(self, field: str) -> Any:
        return self.dead.get(field) if self.dead else None

    def as_dict(self) -> dict[str, Any]:
        """The letter in the form of `reliq dlq show -o json`: every field there, null where it is not known."""
        message, options = self.message, dict(self.message.options) if self.message else {}
        record = Record.read(options)
        letter: dict[str, Any] = {
            "id": self.id,
            "message_id": message.message_id if message else None,
            "queue": self.queue,
            "actor": self.actor,
            "args": list(message.args) if message else None,
            "kwargs": dict(message.kwargs) if message else None,
            "options": user_options(options) if message else None,
            "reason": self.reason,
            "error": _text(self._dead("error")),
            "error_message": _text(self._dead("error_message")),
            "traceback": _text(self._dead("traceback") or options.get("traceback")),
            "cause_chain": self._dead("cause_chain") or [],
            "fingerprint": self.fingerprint,
            "attempts": self._attempts(options),
            "attempts_log": [_attempt_shown(item) for item in record.attempts],
            "first_failed_at": iso(record.first_failed_at),
            "died_at": iso(self.died_at_ms),
            "worker": self._dead("worker"),
            "broker": _text(self._dead("broker")),
            "size_bytes": len(self.body),
        }
        if message is None:
            letter["body_base64"] = base64.b64encode(self.body).decode("ascii")
        if record.celery is not None:
            letter["celery"] = record.celery
        return letter

    def _attempts(self, options: dict[str, Any]) -> int | None:
        counted = self._dead("attempts")
        if counted is None:
            counted = options.get("retries")
        return counted if isinstance(counted, int) else None


#: What Dramatiq and reliq write into the options themselves; a letter's `options` are the user's.
_OWN_OPTIONS = frozenset({"reliq", "redis_message_id", "retries", "traceback", "requeue_timestamp", "eta"})


def user_options(options: dict[str, Any]) -> dict[str, Any]:
    """The options that the sender gave."""
    return {key: value for key, value in options.items() if key not in _OWN_OPTIONS}


def iso(at_ms: object) -> str | None:
    """ISO-8601 in UTC with milliseconds, or None for what is no time."""
    if isinstance(at_ms, bool) or not isinstance(at_ms, (int, float)):
        return None
    try:
        moment = datetime.fromtimestamp(at_ms / 1000, tz=timezone.utc)
    except (ValueError, OverflowError, OSError):
        return None
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _attempt_shown(attempt: dict[str, Any]) -> dict[str, Any]:
    return {**attempt, "at": iso(attempt.get("at"))}


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None
