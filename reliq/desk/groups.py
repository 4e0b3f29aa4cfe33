"""Dead letters by cause: one row for all that died of the same thing.

Callers: the command line, `letters.count`. A question that the transport's index can answer reads no letter, so that
a million letters group as fast as ten; ages, ids and arguments need the letters.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from ..message.letter import DeadLetter, iso
from ..transport.base import Transport
from .letters import queues_of, select
from .selector import Selector


def groups(transport: Transport[Any], selector: Selector) -> list[dict[str, Any]]:
    """Dicts of fingerprint, queue, actor, error, reason, count, first_seen, last_seen (ISO-8601), sample (the id of
    the newest letter), versions (of the code, sorted), note (null), the earliest death first.

    Letters of plain Dramatiq form one group per queue, without a fingerprint.
    """
    rows = _scanned(transport, selector) if selector.needs_letters else _indexed(transport, selector)
    rows.sort(key=lambda row: (row["first_seen_ms"] or 0, row["queue"], row["fingerprint"] or ""))
    return [_shown(row) for row in rows]


def _indexed(transport: Transport[Any], selector: Selector) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for queue in queues_of(transport, selector):
        for group in transport.dead_groups(queue):
            if group["fingerprint"] is None and selector.actor is not None:
                # The index does not know the actors of stock letters; they themselves do.
                stock = (letter for letter in transport.dead_letters(queue) if letter.fingerprint is None)
                rows.extend(_grouped(letter for letter in stock if selector.matches(letter)))
            elif _is_meant(selector, group):
                rows.append(group)
    return rows


def _is_meant(selector: Selector, group: dict[str, Any]) -> bool:
    return all(
        wanted is None or wanted == group[name]
        for name in ("fingerprint", "actor", "error", "reason")
        for wanted in (getattr(selector, name),)
    )


def _scanned(transport: Transport[Any], selector: Selector) -> list[dict[str, Any]]:
    return _grouped(select(transport, selector))


def _grouped(letters: Iterable[DeadLetter]) -> list[dict[str, Any]]:
    rows: dict[tuple[str, str | None], dict[str, Any]] = {}
    for letter in letters:
        dead = letter.dead or {}
        key = letter.queue, letter.fingerprint
        row = rows.get(key)
        if row is None:
            row = rows[key] = {
                "fingerprint": letter.fingerprint,
                "queue": letter.queue,
                "actor": letter.actor,
                "error": dead.get("error"),
                "reason": letter.reason,
                "count": 0,
                "first_seen_ms": letter.died_at_ms,
                "versions": set(),
            }
        elif row["actor"] != letter.actor:
            row["actor"] = None
        row["count"] += 1
        row["last_seen_ms"] = letter.died_at_ms
        row["sample"] = letter.id
        worker = dead.get("worker")
        version = worker.get("version") if isinstance(worker, dict) else None
        if isinstance(version, str):
            row["versions"].add(version)
    return list(rows.values())


def _shown(row: dict[str, Any]) -> dict[str, Any]:
    return {
        "fingerprint": row["fingerprint"],
        "queue": row["queue"],
        "actor": row["actor"],
        "error": row["error"],
        "reason": row["reason"],
        "count": row["count"],
        "first_seen": iso(row["first_seen_ms"]),
        "last_seen": iso(row["last_seen_ms"]),
        "sample": row["sample"],
        "versions": sorted(row.get("versions", ())),
        "note": None,
    }
