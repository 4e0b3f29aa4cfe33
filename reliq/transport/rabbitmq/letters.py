"""What lies in a queue of dead letters, as `DeadLetter`s: ours, plain Dramatiq's, and those the broker made. Pure."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable
from typing import Any

from dramatiq.message import Message

from ...message.letter import DeadLetter
from ...message.record import Record
from ..delivered import Unreadable, from_fields
from .frames import META
from .subscription import Arrival


def letter_of(
    arrival: Arrival, queue_name: str, source: str, opened: Callable[[bytes], Message[Any]], twins: Counter[str]
) -> DeadLetter:
    """The letter in an arrival. `source` goes by where it lies; `opened` decodes a body, or raises; `twins` counts
    bodies that are alike, of which the second is told from the first by its id."""
    headers = arrival.properties.headers or {}
    message = _opened(arrival.body, opened)
    dead = _json_object(headers.get(META))
    if dead is None and message is not None:
        dead = Record.read(message.options).dead
    if dead is None and message is None:
        dead = _by_headers(headers)
    if dead is not None and isinstance(dead.get("id"), str) and isinstance(dead.get("died_at"), int):
        return DeadLetter(dead["id"], queue_name, source, arrival.body, message, dead, dead["died_at"])
    digest = hashlib.sha256(arrival.body).hexdigest()[:16]
    twins[digest] += 1
    letter_id = digest if twins[digest] == 1 else f"{digest}-{twins[digest]}"
    return DeadLetter(letter_id, queue_name, source, arrival.body, message, None, died_at_ms(headers))


#: What one death is known by: of two letters of one, one of them marked (see copies.py), one is shown.
Death = tuple[str, ...]


def death_of(letter: DeadLetter) -> Death:
    """A message's id and how often it had been run and replayed; a body that is no message is like no other."""
    if letter.message is None or letter.dead is None:
        return (letter.id,)
    replay = Record.read(letter.message.options).replay or {}
    return letter.message.message_id, str(letter.dead.get("attempts")), str(replay.get("n"))


def died_at_ms(headers: dict[str, Any]) -> int | None:
    """When the broker put it aside, by its own header: whole seconds."""
    deaths = headers.get("x-death")
    if not isinstance(deaths, list) or not deaths or not isinstance(deaths[0], dict):
        return None
    try:
        return int(deaths[0]["time"].timestamp() * 1000)
    except (KeyError, AttributeError, ValueError, OverflowError):
        return None


def _by_headers(headers: dict[str, Any]) -> dict[str, Any]:
    """What the small headers tell of a letter whose body only the application's encoder reads."""
    told = {name: headers.get(f"x-reliq-{name}") for name in ("id", "reason", "error", "fingerprint", "queue")}
    return {**told, "died_at": headers.get("x-reliq-died-at")}


def _opened(body: bytes, opened: Callable[[bytes], Message[Any]]) -> Message[Any] | None:
    try:
        return opened(body)
    except Exception:
        # Whatever an encoder or a restore() raises: the letter is shown by what JSON says of it, or by its bytes.
        try:
            return from_fields(_json_object(body))
        except Unreadable:
            return None


def _json_object(text: Any) -> dict[str, Any] | None:
    try:
        value = json.loads(text) if isinstance(text, (str, bytes)) else None
    except (ValueError, RecursionError):  # a hostile body may be nested beyond reading
        return None
    return value if isinstance(value, dict) else None


def groups_of(letters: list[DeadLetter], queue_name: str) -> list[dict[str, Any]]:
    """Letters by cause, in the order of their first death. Letters of others form one group."""
    groups: dict[str | None, dict[str, Any]] = {}
    for letter in letters:
        ours = letter.source == "reliq"
        fingerprint = letter.fingerprint if ours else None
        group = groups.setdefault(
            fingerprint,
            {
                "fingerprint": fingerprint,
                "queue": queue_name,
                "actor": letter.actor if fingerprint else None,
                "error": (letter.dead or {}).get("error") if ours else None,
                "reason": letter.reason if ours else None,
                "count": 0,
                "first_seen_ms": letter.died_at_ms,
                "last_seen_ms": None,
                "sample": None,
                "versions": [],
            },
        )
        group["count"] += 1
        group["last_seen_ms"] = letter.died_at_ms
        group["sample"] = letter.id
        version = ((letter.dead or {}).get("worker") or {}).get("version")
        if version and version not in group["versions"]:
            group["versions"].append(version)
    return list(groups.values())
