"""What the scripts are told to store, as their arguments. Pure; the other half is `store_items` in store.lua."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from dramatiq.common import dq_name, q_name

from ..settlement import Bury, Publish, Settlement, Store


def store_arguments(items: Sequence[Store]) -> list[Any]:
    """ARGV for `store_items`."""
    arguments: list[Any] = []
    for item in items:
        arguments.extend(_message(item) if isinstance(item, Publish) else _letter(item))
    return arguments


def settlement_arguments(namespace: str, broker_id: str, settlement: Settlement) -> list[Any]:
    """ARGV for settle.lua."""
    how = "return" if settlement.outcome == "returned" else "settle"
    return [
        broker_id,
        settlement.queue_name,
        settlement.token,
        how,
        *_witness(namespace, settlement),
        *store_arguments(settlement.store),
    ]


def _message(item: Publish) -> list[Any]:
    options = item.message.options
    queue = q_name(item.message.queue_name)
    due = "" if item.delay_ms is None else options["eta"]
    return ["m", queue, options["redis_message_id"], item.body, due]


def _letter(item: Bury) -> list[Any]:
    letter = item.letter()
    about = json.dumps({"actor": letter.actor, "error": item.dead["error"], "reason": item.dead["reason"]})
    fingerprint = item.dead["fingerprint"]
    version = item.dead["worker"]["version"] or ""
    return ["l", item.queue, letter.id, item.body, item.dead["died_at"], item.meta or "", fingerprint, about, version]


def _witness(namespace: str, settlement: Settlement) -> tuple[str, str]:
    """A key and field that are there once this settlement is stored: they tell a repeated settle from one that came
    too late."""
    if not settlement.store:
        return "", ""
    first = settlement.store[0]
    if isinstance(first, Bury):
        return f"{namespace}:{first.queue}.dead.msgs", first.dead["id"]
    queue = q_name(first.message.queue_name)
    suffix = ".msgs" if first.delay_ms is None else ".delayed.msgs"
    return f"{namespace}:{queue}{suffix}", first.message.options["redis_message_id"]


def stock_keys(queue_name: str) -> list[str]:
    """The keys of plain Dramatiq for a queue, without the namespace."""
    delayed = dq_name(queue_name)
    return [queue_name, f"{queue_name}.msgs", delayed, f"{delayed}.msgs", f"{queue_name}.XQ", f"{queue_name}.XQ.msgs"]
