"""From a verdict to what must be stored: the plan of a settlement, the same for every broker.

`plan` decides nothing about retries; it turns what the middlewares decided into bodies. It does no I/O; the
transport writes the result in one step. In order, for a message whose run has ended:

    verdict -> the copy to run again, or the letter -> captured sends -> announcements of the letter -> Settlement

Nothing that cannot be encoded, or that a `before_enqueue` hook refuses, is dropped: it becomes a letter.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from dramatiq.errors import ActorNotFound
from dramatiq.logging import get_logger
from dramatiq.message import Message
from dramatiq.middleware import AgeLimit, SkipMessage
from dramatiq.middleware import Retries as StockRetries

from ..errors import OptionError
from ..message.failure import error_message
from ..message.letter import death
from ..message.record import KEY, Record, with_record
from ..message.verdict import Failure, Reason, Verdict
from .delivered import Delivered, Unreadable, decode
from .settlement import Bury, Outcome, Publish, Settlement, Store, Unstorable

if TYPE_CHECKING:
    from .base import Transport


class Refused(Exception):
    """A message that cannot be given to the broker; the cause is attached."""

    def __init__(self, reason: Reason, cause: BaseException) -> None:
        super().__init__(str(cause))
        self.reason = reason
        self.__cause__ = cause


# -- sends -----------------------------------------------------------------------------------------------------


def outgoing(transport: Transport[Any], message: Message[Any], delay: int | None) -> Publish:
    """A send: its envelope, `before_enqueue`, its body. What a hook or the encoder raises goes to the caller."""
    check_delay(message, delay)
    # What is overdue runs at once, as in Dramatiq.
    delay_ms = None if delay is None else max(0, math.ceil(delay))
    envelope = transport.envelope(message, delay_ms)
    transport.broker.emit_before("enqueue", envelope, delay)
    return Publish(envelope, transport.encode(envelope), delay_ms)


def check_delay(message: Message[Any], delay: object) -> None:
    """Refuse a delay that is no number of ms, before anything is written."""
    if delay is None:
        return
    if isinstance(delay, bool) or not isinstance(delay, (int, float)) or not abs(delay) < 2**53:
        raise OptionError(
            f"actor {message.actor_name!r} (queue {message.queue_name!r}): delay must be a number of ms, "
            f"got {delay!r}; pass milliseconds or a timedelta to send_with_options."
        )


def captured_send(transport: Transport[Any], message: Message[Any], delay: int | None) -> Store:
    """A send made while another message ends: encoded now, stored with the settle. One that cannot be sent becomes a
    letter of its own, so that the message that ends ends as it would."""
    try:
        return outgoing(transport, message, delay)
    except Exception as exc:
        get_logger(__name__).error("A callback of actor %r cannot be sent: %s", message.actor_name, exc, exc_info=True)
        return _rejected(transport, message, exc)


def _rejected(transport: Transport[Any], message: Message[Any], exc: BaseException) -> Bury:
    failure = Failure.of(message.actor_name, exc)
    dead = _death(transport, message.queue_name, message.actor_name, "rejected", failure, attempts=0)
    record = Record.read(message.options)
    try:
        return _letter(transport, message, record, dead)
    except Exception:
        # Not even its arguments can be encoded: their text is kept, for a person to read. It must not be run for them.
        dead["only_text"] = True
        body = json.dumps(message.asdict(), default=repr, skipkeys=True).encode()
        return Bury(message.queue_name, dead, body, None, meta=_meta(dead))


# -- the plan --------------------------------------------------------------------------------------------------


def plan(transport: Transport[Any], delivered: Delivered) -> Settlement:
    """What becomes of a message whose run has ended. Repeating it gives an equal plan."""
    captured = tuple(delivered.captured or ())
    verdict = _verdict(transport, delivered)
    captured += tuple(told for item in captured if isinstance(item, Bury) for told in announced(transport, item))
    if verdict is None:
        return _settlement(delivered, "done", captured)
    if verdict.action == "return":
        return _settlement(delivered, "returned")
    try:
        if verdict.action == "retry":
            return _settlement(delivered, "retried", (_again(transport, delivered, verdict.delay_ms), *captured))
        if verdict.action == "defer":
            return _settlement(delivered, "deferred", (_again(transport, delivered, verdict.delay_ms),))
    except Refused as refused:
        # What the run raised says more than what refused its copy; a deferral that cannot be stored raised neither.
        cause = delivered.exception or refused.__cause__ or refused
        verdict = Verdict.dead(refused.reason, Failure.of(delivered.actor_name, cause))
    if not transport.letters.wanted(delivered.options, delivered.actor_name):
        return _settlement(delivered, "dropped", captured)
    bury = bury_delivered(transport, delivered, verdict)
    return _settlement(delivered, "dead", (bury, *captured, *announced(transport, bury)))


def mended(transport: Transport[Any], settlement: Settlement, refused: Unstorable) -> Settlement:
    """A settlement without what the broker does not take. A message that cannot be stored again becomes a letter, what
    was sent on its behalf a letter of its own. Raises `refused` where not even the bytes that came are taken."""
    delivered = settlement.delivered
    assert delivered is None or isinstance(delivered, Delivered)
    item = settlement.store[refused.index]
    if refused.limit is not None and delivered is not None and item.body != delivered.body:
        transport.max_body = refused.limit
        return plan(transport, delivered)
    store = list(settlement.store)
    if isinstance(item, Publish) and (refused.index > 0 or settlement.outcome == "done" or delivered is None):
        store[refused.index] = _rejected(transport, item.message, refused)
        return replace(settlement, store=tuple(store))
    if delivered is None or (isinstance(item, Bury) and item.body == delivered.body):
        raise refused
    reason: Reason = "rejected" if refused.limit is None else "too_large"
    if isinstance(item, Publish):
        # What the run raised says more than what refused its copy.
        failure = Failure.of(delivered.actor_name, delivered.exception or refused)
        bury = bury_delivered(transport, delivered, Verdict.dead(reason, failure))
        return replace(settlement, outcome="dead", store=(bury, *store[1:], *announced(transport, bury)))
    unstorable = Unreadable(reason, str(refused), delivered.message)
    store[refused.index] = bury_raw(transport, settlement.queue_name, delivered.body, unstorable)
    return replace(settlement, outcome="dead", store=tuple(store))


def _settlement(delivered: Delivered, outcome: Outcome, store: tuple[Store, ...] = ()) -> Settlement:
    return Settlement(delivered.queue_name, delivered.token, outcome, store, delivered)


def _verdict(transport: Transport[Any], delivered: Delivered) -> Verdict | None:
    """The verdict left on the message, or what `fail()` without one means."""
    verdict = delivered.verdict
    if not delivered.failed or (verdict is not None and verdict.action == "dead"):
        return verdict
    exception = delivered.exception
    failure = Failure.of(delivered.actor_name, exception) if exception else None
    if isinstance(exception, SkipMessage) and _is_too_old(transport, delivered):
        return Verdict.dead("expired", failure)
    if exception is None or isinstance(exception, SkipMessage):
        return Verdict.dead("rejected", failure)
    if any(isinstance(m, StockRetries) for m in transport.broker.middleware) and not _throws(delivered, exception):
        # Dramatiq's own Retries, kept on purpose, has counted to its end.
        return Verdict.dead("retries_exhausted", failure)
    return Verdict.dead("permanent", failure)


def _throws(delivered: Delivered, exception: BaseException) -> bool:
    actor = delivered.consumer.transport.broker.actors.get(delivered.actor_name)
    throws = actor.options.get("throws") if actor is not None else None
    try:
        return throws is not None and isinstance(exception, throws)
    except TypeError:
        return False


def _is_too_old(transport: Transport[Any], delivered: Delivered) -> bool:
    limits = [m.max_age for m in transport.broker.middleware if isinstance(m, AgeLimit)]
    if not limits:
        return False
    try:
        actor = transport.broker.get_actor(delivered.actor_name)
        limit = delivered.options.get("max_age") or actor.options.get("max_age", limits[0])
        return bool(limit) and time.time() * 1000 - delivered.message_timestamp >= limit
    except (ActorNotFound, TypeError):
        return False


def bury_delivered(transport: Transport[Any], delivered: Delivered, verdict: Verdict) -> Bury:
    """The letter of a message that was opened."""
    assert verdict.reason is not None
    record = delivered.record
    dead = _death(
        transport,
        delivered.message.queue_name,
        delivered.actor_name,
        verdict.reason,
        verdict.failure,
        _attempts(delivered, verdict),
    )
    try:
        return _letter(transport, delivered.message, record, dead)
    except Exception as exc:
        # A middleware or the actor left something in the options or arguments that no JSON holds: what came is kept.
        get_logger(__name__).warning(
            "Message %r of actor %r cannot be encoded as it stands (%s); its letter holds what was received.",
            delivered.message_id,
            delivered.actor_name,
            exc,
        )
        return Bury(delivered.message.queue_name, dead, delivered.body, delivered.message, meta=_meta(dead))


def _attempts(delivered: Delivered, verdict: Verdict) -> int:
    """How many runs ended badly. Dramatiq counts those that could have been retried; the last one of a message that
    is beyond help comes on top, if it was a run and not a refusal to run."""
    counted = delivered.options.get("retries")
    retries = counted if isinstance(counted, int) and not isinstance(counted, bool) and counted >= 0 else 0
    ran = delivered.started_mono is not None and not isinstance(delivered.exception, SkipMessage)
    uncounted = verdict.reason == "permanent" or (verdict.reason == "rejected" and delivered.exception is None)
    return retries + 1 if ran and uncounted else retries


def bury_raw(transport: Transport[Any], queue_name: str, body: bytes, unreadable: Unreadable) -> Bury:
    """The letter of a body that cannot be opened: byte for byte, its record beside it."""
    actor = unreadable.message.actor_name if unreadable.message is not None else "_unknown"
    dead = _death(transport, queue_name, actor, unreadable.reason, None, attempts=0)
    dead["error_message"] = error_message(unreadable)
    return Bury(queue_name, dead, body, unreadable.message, meta=_meta(dead))


def announced(transport: Transport[Any], bury: Bury) -> tuple[Store, ...]:
    """What is sent to `on_dead_letter` actors in the same step as the letter."""
    letter = bury.letter()
    try:
        options = bury.message.options if bury.message is not None else {}
        messages = transport.letters.announcements(transport.shown(letter.as_dict()), options, letter.actor)
    except Exception:
        get_logger(__name__).critical("Announcing dead letter %s failed.", letter.id, exc_info=True)
        return ()
    return tuple(captured_send(transport, message, None) for message in messages)


# -- bodies ----------------------------------------------------------------------------------------------------


def _again(transport: Transport[Any], delivered: Delivered, delay_ms: int) -> Publish:
    """The copy to run again."""
    record = delivered.record
    record.eligible_at = transport.now_ms() + delay_ms
    if delivered.started_mono is not None:
        # It ran: some worker knows its actor.
        record.unknown_since = None
    message = delivered.message
    again: Message[Any] = Message(**{**message.asdict(), "options": with_record(message.options, record)})
    try:
        publish = _within_limit(transport, again, record, None, lambda m: outgoing(transport, m, delay_ms))
    except Refused:
        raise
    except (TypeError, ValueError, OverflowError) as exc:
        # Something that no JSON holds was put into the options or arguments while it ran: what was received can be
        # encoded, and gets the counts.
        get_logger(__name__).warning(
            "Message %r of actor %r cannot be encoded as it stands (%s); it is run again as it was received.",
            delivered.message_id,
            delivered.actor_name,
            exc,
        )
        try:
            publish = outgoing(transport, _as_received(transport, delivered, record), delay_ms)
        except Exception as worse:
            raise Refused("rejected", worse) from worse
    except Exception as exc:
        raise Refused("rejected", exc) from exc
    return publish


#: What Retries counts in the options, beside the record.
_COUNTED = ("retries", "traceback", "requeue_timestamp")


def _as_received(transport: Transport[Any], delivered: Delivered, record: Record) -> Message[Any]:
    received = transport.restored(decode(delivered.body, transport.encoder))
    counted = {key: delivered.options[key] for key in _COUNTED if key in delivered.options}
    options = with_record({**received.options, **counted}, record)
    options.pop("eta", None)
    return Message(**{**received.asdict(), "queue_name": delivered.message.queue_name, "options": options})


def _letter(transport: Transport[Any], message: Message[Any], record: Record, dead: dict[str, Any]) -> Bury:
    options = {key: value for key, value in message.options.items() if key != KEY}
    if record.is_newer:
        # Its record may not be touched, so the death is written beside it.
        kept = message.copy(options=record.dump() and {KEY: record.dump()})
        return Bury(message.queue_name, dead, transport.encode(kept), kept, meta=_meta(dead))
    record.dead = dead
    with_dead: Message[Any] = Message(**{**message.asdict(), "options": with_record(options, record)})

    def build(candidate: Message[Any]) -> Publish:
        return Publish(candidate, transport.encode(candidate))

    publish = _within_limit(transport, with_dead, record, dead, build)
    return Bury(message.queue_name, dead, publish.body, publish.message)


def _within_limit(
    transport: Transport[Any],
    message: Message[Any],
    record: Record,
    dead: dict[str, Any] | None,
    build: Callable[[Message[Any]], Publish],
) -> Publish:
    """Build the body; one that grew too large sheds first the traceback, then the attempts log."""
    publish = build(message)
    limit = transport.max_body
    if limit is None or len(publish.body) <= limit:
        return publish
    for shed in (_shed_traceback, _shed_attempts):
        message = shed(message, record, dead)
        publish = build(message)
        if len(publish.body) <= limit:
            return publish
    raise Refused("too_large", ValueError(f"the body has {len(publish.body)} bytes, the broker takes {limit}"))


def _shed_traceback(message: Message[Any], record: Record, dead: dict[str, Any] | None) -> Message[Any]:
    options = {key: value for key, value in message.options.items() if key != "traceback"}
    if dead is not None:
        dead["traceback"] = None
    return Message(**{**message.asdict(), "options": with_record(options, record)})


def _shed_attempts(message: Message[Any], record: Record, dead: dict[str, Any] | None) -> Message[Any]:
    record.shed()
    if dead is not None:
        dead["cause_chain"] = []
    return Message(**{**message.asdict(), "options": with_record(message.options, record)})


def _death(
    transport: Transport[Any], queue: str, actor: str, reason: Reason, failure: Failure | None, attempts: int
) -> dict[str, Any]:
    return death(
        reason=reason,
        actor=actor,
        queue=queue,
        attempts=attempts,
        failure=failure,
        broker=transport.kind,
        version=transport.settings.version,
    )


def _meta(dead: dict[str, Any]) -> bytes:
    return json.dumps(dead, separators=(",", ":")).encode()
