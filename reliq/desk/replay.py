"""Move dead letters: replay them into their queues, or discard them for good.

Callers: the command line (later `reliq.Desk` and the web desk). An operation has two passes: `plan` reads and counts,
`replay` or `discard` does what was planned.

Guarantee: a killed operation has lost nothing, and running it again goes on with the rest. On Redis each letter moves
in one step, so that nothing is doubled either; on RabbitMQ the message is confirmed before its letter is removed, and
the one letter between the two is replayed again. It ends: letters that die while it runs, of its own replays too, are
not touched.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any, NoReturn

from dramatiq.errors import BrokerConnectionError
from dramatiq.message import Message

from ..errors import LetterError
from ..message.failure import error_message, error_name
from ..message.letter import DeadLetter, new_letter_id
from ..message.record import Record, with_record
from ..transport.base import Transport
from .letters import look_up, select
from .selector import Selector, SelectorError

#: What the life that ended, and the broker it ended on, left in the options. The record starts over by itself.
_DROPPED = frozenset({"retries", "traceback", "requeue_timestamp", "eta", "redis_message_id"})


@dataclass(frozen=True)
class Plan:
    """What an operation would do: `matched` letters, by (queue, actor) in `counts`; `unknown` ids name no letter."""

    selector: Selector
    matched: int
    counts: Counter[tuple[str, str | None]]
    newest_ms: int
    unknown: tuple[str, ...] = ()


@dataclass
class Outcome:
    """How far an operation is. Invariant: done + failed + gone <= matched.

    `gone` letters were taken by somebody else meanwhile. `stopped`: it was asked to stop before the end; `error`: the
    broker went away.
    """

    id: str
    matched: int
    done: int = 0
    failed: int = 0
    gone: int = 0
    stopped: bool = False
    error: BrokerConnectionError | None = None

    @property
    def tried(self) -> int:
        """How many letters it has dealt with."""
        return self.done + self.failed + self.gone

    def as_dict(self) -> dict[str, Any]:
        """`{id, matched, done, failed}`."""
        return {"id": self.id, "matched": self.matched, "done": self.done, "failed": self.failed}


def _go_on(outcome: Outcome) -> bool:
    return True


def _say_nothing(letter: DeadLetter, why: str) -> None:
    return None


@dataclass(frozen=True)
class Watch:
    """Who looks on: `after_each` is called after every letter and may say False to stop there; `failed` hears of each
    letter that could not be moved, and why."""

    after_each: Callable[[Outcome], bool] = field(default=_go_on)
    failed: Callable[[DeadLetter, str], None] = field(default=_say_nothing)


_NOBODY = Watch()


def plan(transport: Transport[Any], selector: Selector, *, everything: bool = False) -> Plan:
    """Count what is meant. A selector that means every letter is refused (`SelectorError`) unless `everything`."""
    if selector.is_empty and not everything:
        refuse_everything()
    selector = selector.frozen()
    letters: Iterable[DeadLetter]
    unknown: tuple[str, ...] = ()
    if selector.ids:
        letters, unknown = look_up(transport, selector)
    else:
        letters = select(transport, selector)
    counts: Counter[tuple[str, str | None]] = Counter()
    newest_ms = 0
    for letter in letters:
        counts[letter.queue, letter.actor] += 1
        newest_ms = max(newest_ms, letter.died_at_ms or 0)
    return Plan(selector, counts.total(), counts, newest_ms, unknown)


def refuse_everything() -> NoReturn:
    """Raise what `plan` raises for an empty selector, before a broker is asked anything."""
    raise SelectorError("without a selector this means every dead letter of every queue; narrow it, or say --all")


def replay(transport: Transport[Any], planned: Plan, watch: Watch = _NOBODY) -> Outcome:
    """Give the letters' messages back to their queues, each in the step that removes its letter.

    A message runs with all its retries again, under its own message id, and its age counts from now. A letter that
    cannot be replayed stays where it is and counts as failed.
    """
    outcome = Outcome(new_letter_id(int(time.time() * 1000)), planned.matched)

    def act(letter: DeadLetter) -> bool:
        message = revived(letter, outcome.id, transport.settings.aliases, int(time.time() * 1000))
        publish = transport.outgoing(message)
        if not transport.replay(letter, publish):
            return False
        transport.broker.emit_after("enqueue", publish.message, None)
        return True

    return _run(transport, planned, watch, outcome, act)


def discard(transport: Transport[Any], planned: Plan, watch: Watch = _NOBODY) -> Outcome:
    """Delete the letters for good."""
    outcome = Outcome(new_letter_id(int(time.time() * 1000)), planned.matched)
    return _run(transport, planned, watch, outcome, transport.discard)


def revived(letter: DeadLetter, operation: str, aliases: Any, now_ms: int) -> Message[Any]:
    """The message of a letter as it is sent again. Raises `LetterError` where there is none."""
    message = letter.message
    if message is None:
        raise LetterError(
            f"its body ({len(letter.body)} bytes) cannot be read as a message; `reliq dlq show {letter.id}` shows it. "
            "A body that is not JSON is read with the application's encoder: -b, or --encoder"
        )
    if (letter.dead or {}).get("only_text"):
        raise LetterError("its arguments could not be encoded, the letter holds their text only; send it anew")
    record = Record.read(message.options)
    record.start_over({"from": letter.id, "op": operation, "n": _times_replayed(record) + 1})
    kept = {key: value for key, value in message.options.items() if key not in _DROPPED}
    return Message(
        **{
            **message.asdict(),
            # Where it died, whatever its body says: a stock delay queue's name, or a foreign one.
            "queue_name": letter.queue,
            "actor_name": aliases.get(message.actor_name, message.actor_name),
            "options": with_record(kept, record),
            "message_timestamp": now_ms,
        }
    )


def _times_replayed(record: Record) -> int:
    times = (record.replay or {}).get("n")
    return times if isinstance(times, int) and not isinstance(times, bool) and 0 <= times < 2**31 else 0


def _run(
    transport: Transport[Any], planned: Plan, watch: Watch, outcome: Outcome, act: Callable[[DeadLetter], bool]
) -> Outcome:
    if not planned.matched:
        return outcome
    try:
        with closing(select(transport, planned.selector)) as letters:
            for letter in letters:
                if outcome.tried >= planned.matched or (letter.died_at_ms or 0) > planned.newest_ms:
                    break
                if _sent_by(outcome.id, letter):
                    continue
                _move(letter, watch, outcome, act)
                if not watch.after_each(outcome) and outcome.tried < planned.matched:
                    outcome.stopped = True
                    break
    except BrokerConnectionError as exc:
        outcome.error = exc
    return outcome


def _move(letter: DeadLetter, watch: Watch, outcome: Outcome, act: Callable[[DeadLetter], bool]) -> None:
    """One letter. Its own trouble is its own; only a broker that is away ends the operation."""
    try:
        if act(letter):
            outcome.done += 1
        else:
            outcome.gone += 1
    except BrokerConnectionError:
        raise
    except LetterError as exc:
        outcome.failed += 1
        watch.failed(letter, str(exc))
    except Exception as exc:
        # A hook that refuses it, an encoder that cannot take it: whatever the application's own code raises.
        outcome.failed += 1
        watch.failed(letter, f"{error_name(exc)}: {error_message(exc)}")


def _sent_by(operation: str, letter: DeadLetter) -> bool:
    """Whether it died again since this operation replayed it."""
    if letter.message is None:
        return False
    return (Record.read(letter.message.options).replay or {}).get("op") == operation
