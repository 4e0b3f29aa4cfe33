"""Read dead letters over one queue or all, oldest death first.

Callers: the command line, `groups.py`, `replay.py`. Reading changes nothing. Some brokers hold letters while they are
read, so that nobody else can: whoever stops before the end of `select` closes it (`contextlib.closing`).
"""

from __future__ import annotations

import heapq
from collections.abc import Generator, Iterator
from contextlib import ExitStack, closing
from typing import Any

from ..errors import LetterError
from ..message.letter import DeadLetter
from ..transport.base import Transport
from .selector import Selector


def select(transport: Transport[Any], selector: Selector) -> Generator[DeadLetter, None, None]:
    """The letters that are meant, oldest death first over all queues. Raises `BrokerConnectionError`."""
    if selector.ids and transport.has_letter_index:
        yield from look_up(transport, selector)[0]
        return
    chosen = selector.frozen()
    with closing(_every(transport, selector)) as every:
        for letter in every:
            if chosen.matches(letter):
                yield letter


def look_up(transport: Transport[Any], selector: Selector) -> tuple[list[DeadLetter], tuple[str, ...]]:
    """The letters with the selector's ids that match it otherwise, oldest death first; and the ids that name none."""
    if not transport.has_letter_index:
        return _read_for(transport, selector)
    found: dict[tuple[str, str, str], DeadLetter] = {}
    unknown = []
    for wanted in selector.ids:
        letter = transport.find_letter(wanted, selector.queue)
        if letter is None:
            unknown.append(wanted)
        elif selector.matches(letter):
            found[letter.queue, letter.source, letter.id] = letter
    return sorted(found.values(), key=_death), tuple(unknown)


def _read_for(transport: Transport[Any], selector: Selector) -> tuple[list[DeadLetter], tuple[str, ...]]:
    """The same where a letter is found by reading them all: once, however many ids there are."""
    found: list[DeadLetter] = []
    unknown = dict.fromkeys(selector.ids)
    with closing(_every(transport, selector)) as every:
        for letter in every:
            for name in (letter.id, letter.message.message_id if letter.message is not None else None):
                unknown.pop(name or "", None)
            if selector.matches(letter):
                found.append(letter)
    return found, tuple(unknown)


def _every(transport: Transport[Any], selector: Selector) -> Generator[DeadLetter, None, None]:
    """All letters of the queues that are meant, oldest death first; each queue is let go at the end."""
    with ExitStack() as stack:
        readers = []
        for queue in queues_of(transport, selector):
            reader = transport.dead_letters(queue)
            readers.append(reader)
            if isinstance(reader, Generator):
                stack.callback(reader.close)
        yield from heapq.merge(*readers, key=_death)


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


def count_rest(transport: Transport[Any], selector: Selector, found: Iterator[DeadLetter], taken: int) -> int:
    """How many are meant beside the `taken` ones that were read from `found` (of `select`): asked of the index, where
    there is none read on."""
    if transport.has_letter_index:
        return max(0, count(transport, selector) - taken)
    return sum(1 for _ in found)


def queues_of(transport: Transport[Any], selector: Selector) -> list[str]:
    """The queues to look into."""
    return [selector.queue] if selector.queue is not None else transport.queue_names()


def _death(letter: DeadLetter) -> int:
    return letter.died_at_ms or 0
