"""The dead letters at the end of the demo: their groups as a table, and one of them whole.

Callers: `command`. Reads through the transport, as every reader of letters does.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from dramatiq.broker import Broker

from reliq.transport.base import Transport
from reliq.wiring import transport_of

from .brokers import QUEUE
from .screen import printable

_COLUMNS = ("count", "reason", "actor", "error")


def _transport(broker: Broker) -> Transport[Any]:
    transport = transport_of(broker)
    assert transport is not None, "the demo reads the letters of the side that has reliq"
    return transport


def groups_of(broker: Broker) -> list[dict[str, Any]]:
    """The groups of dead letters, the largest first."""
    groups = _transport(broker).dead_groups(QUEUE)
    return sorted(groups, key=lambda group: (-group["count"], str(group["reason"])))


def table(groups: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """A line of names and one per group; the count stands to the right, what is not known is a dash."""
    cells = [_COLUMNS, *(tuple(printable(_shown(group.get(name))) for name in _COLUMNS) for group in groups)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(_COLUMNS))]
    for count, *rest in cells:
        yield "  ".join(
            [count.rjust(widths[0]), *(cell.ljust(width) for cell, width in zip(rest, widths[1:]))]
        ).rstrip()


def one_of(broker: Broker, groups: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """A letter of the group that tells most: one whose retries are used up, where there is any."""
    for group in sorted(groups, key=lambda group: group["reason"] != "retries_exhausted"):
        letter = _transport(broker).find_letter(group["sample"], QUEUE)
        if letter is not None:
            return letter.as_dict()
    return None


def pretty(letter: Mapping[str, Any]) -> str:
    """The letter as JSON of many lines. ASCII only, so that nothing in it can act on a terminal."""
    return json.dumps(letter, indent=2, ensure_ascii=True)


def _shown(value: object) -> object:
    return "-" if value is None else value
