"""Read dead letters over one queue or all, oldest death first.

Callers: the command line, `groups.py`, `replay.py`. Reading changes nothing.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from typing import Any

from ..errors import LetterError
from ..message.letter import DeadLetter
from ..transport.base import Transport
from .selector import Selector


def select(transport: Transport[Any], selector: Selector) -> Iterator[DeadLetter]:
    """The letters that are meant, oldest death first over all queues. Raises `BrokerConnectionError`."""
    if selector.ids:
        found, _ = look_up(transport, selector)
        return iter(found)
    chosen = selector.frozen()
    every = (transport.dead_letters(queue) for queue in queues_of(transport, selector))
    return (letter for letter in heapq.merge(*every, key=_death) if chosen.matches(letter))


def look_up(transport: Transport[Any], selector: Selector) -> tuple[list[DeadLetter], tuple[str, ...]]:
    """The letters with the selector's ids that match it otherwise, oldest death first; and the ids that name none."""
    found: dict[tuple[str, str, str], DeadLetter] = {}
    unknown = []
    for wanted in selector.ids:
        letter = transport.find_letter(wanted, selector.queue)
        if letter is None:
            unknown.append(wanted)
        elif selector.matches(letter):
            found[letter.queue, letter.source, letter.id] = letter
    return sorted(found.values(), key=_death), tuple(unknown)


def find(transport: Transport[Any], letter_id: str, queue: str | None = None) -> DeadLetter:
    """The letter with this id, or with this message id. Raises `LetterError`, which says what to type."""
    letter = transport.find_letter(letter_id, queue)
    if letter is None:
        raise LetterError(unknown_letter(letter_id, queue))
    return letter


def unknown_letter(letter_id: str, queue: str | None) -> str:
    """The sentence for a letter that is not there."""
    where = f" on queue {queue!r}" if queue is not None else ""
    return f"there is no dead letter {letter_id!r}{where}: it may be replayed or discarded; `reliq dlq list` shows all"


def count(transport: Transport[Any], selector: Selector) -> int:
    """How many letters are meant; from the index of groups where that knows the answer."""
    from .groups import groups

    if selector.needs_letters:
        return sum(1 for _ in select(transport, selector))
    return sum(group["count"] for group in groups(transport, selector))


def queues_of(transport: Transport[Any], selector: Selector) -> list[str]:
    """The queues to look into."""
    return [selector.queue] if selector.queue is not None else transport.queue_names()


def _death(letter: DeadLetter) -> int:
    return letter.died_at_ms or 0
