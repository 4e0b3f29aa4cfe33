"""What is said of a settlement once it is durable: hooks and log lines. Callers: the consumers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dramatiq.logging import get_logger

from .settlement import Bury, Publish, Settlement

if TYPE_CHECKING:
    from .base import Transport


def report(transport: Transport[Any], settlement: Settlement) -> None:
    """Tell hooks and log what is now durable. Never raises: the message is settled whatever is said about it."""
    broker = transport.broker
    for item in settlement.store:
        if isinstance(item, Publish):
            broker.emit_after("enqueue", item.message, item.delay_ms)
        else:
            _report_letter(transport, item)
    delivered = settlement.delivered
    if delivered is not None and settlement.outcome in ("retried", "deferred"):
        item = settlement.store[0]
        assert isinstance(item, Publish)
        get_logger(__name__).info(
            "Message %r of actor %r is %s; it runs again in %d ms.",
            delivered.message_id,
            delivered.actor_name,
            settlement.outcome,
            item.delay_ms or 0,
            extra={"reliq_outcome": settlement.outcome, "reliq_delay_ms": item.delay_ms},
        )
    elif delivered is not None and settlement.outcome in ("dropped", "returned"):
        get_logger(__name__).info(
            "Message %r of actor %r is %s.",
            delivered.message_id,
            delivered.actor_name,
            "dropped: it failed for good and dead_letter is off" if settlement.outcome == "dropped" else "handed back",
            extra={"reliq_outcome": settlement.outcome},
        )


def _report_letter(transport: Transport[Any], bury: Bury) -> None:
    logger = get_logger(__name__)
    letter = bury.letter()
    shown = transport.shown(letter.as_dict())
    logger.error(
        "Actor %r on queue %r: dead letter %s (%s%s) at %s: reliq dlq show %s",
        shown.get("actor"),
        letter.queue,
        letter.id,
        letter.reason,
        f", {shown['error']}" if shown.get("error") else "",
        shown.get("died_at"),
        letter.id,
        extra={"reliq_letter": letter.id, "reliq_reason": letter.reason, "reliq_queue": letter.queue},
    )
    for middleware in reversed(transport.broker.middleware):
        hook = getattr(middleware, "after_dead_letter", None)
        if hook is None:
            continue
        try:
            hook(transport.broker, bury.message, shown)
        except BaseException:
            # SystemExit too: it would end a thread of Dramatiq's, and the letter is written all the same.
            logger.critical("Unexpected failure in after_dead_letter of %r.", middleware, exc_info=True)
