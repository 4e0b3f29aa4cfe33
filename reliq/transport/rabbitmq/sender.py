"""Sends: what a message needs is declared, it is published and confirmed, and who sent it is told what became of it.

Callers: `RabbitTransport` (sends, replays), the settler (`frame`). Guarantee: no outcome takes longer than
`send_timeout`; None means confirmed and routed to a queue, every error says whether the message may be stored.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from dramatiq.common import q_name
from dramatiq.errors import ConnectionClosed
from dramatiq.logging import get_logger

from ..gate import AwayGate
from ..settlement import Publish, Store
from .errors import NOT_FOUND, Failure, Refusal, TooLarge
from .frames import letter_frame, message_frame
from .publisher import Batch, Frame, MaybeStored, NotStored, Unroutable

if TYPE_CHECKING:
    from .transport import RabbitTransport

#: The least share of `send_timeout` that a message on its way has to be confirmed, whatever came before.
LEAST_SHARE = 0.5
#: How many of a large batch are on their way at once; each such part has `send_timeout`.
MOST_PER_PART = 1_000


class Sender:
    """The sends of this process."""

    def __init__(self, transport: RabbitTransport) -> None:
        self._transport = transport
        self._logger = get_logger(__name__, type(self))
        #: Shut while the broker is known to be away; opened by the publisher, too, when it is connected again.
        self.gate = AwayGate()

    def send(self, items: Sequence[Publish], doing: str, came: Any = None) -> list[Exception | None]:
        """One outcome per item, in order. `came` are properties that they had come with."""
        outcomes: list[Exception | None] = []
        for start in range(0, len(items), MOST_PER_PART):
            outcomes += self._send(items[start : start + MOST_PER_PART], doing, came)
        return outcomes

    def _send(self, items: Sequence[Publish], doing: str, came: Any) -> list[Exception | None]:
        refused = self.gate.refuses()
        if refused is not None:
            away = f"{doing}: not stored, RabbitMQ has been away since an earlier send ({refused})"
            return [Failure(away) for _ in items]
        # A little is kept back for what follows the wait.
        deadline = time.monotonic() + self._transport.settings.send_timeout_ms * 0.95 / 1000
        outcomes: list[Any] = [None] * len(items)
        frames: dict[int, Frame] = {}
        for index, item in enumerate(items):
            try:
                frames[index] = self.frame(item, came)
            except Refusal as exc:
                outcomes[index] = _caused(f"not stored, {exc}", exc)
            except ConnectionClosed as exc:
                # The broker is away: so it is for the rest, which would wait as long.
                outcomes[index:] = [_caused(f"not stored, {exc}", exc) for _ in items[index:]]
                self.gate.failed(str(exc))
                break
        # A slow broker may have taken its time to declare what is needed; each of its answers came within the timeout.
        least = time.monotonic() + self._transport.settings.send_timeout_ms * LEAST_SHARE / 1000
        published = self._published(items, frames, max(deadline, least), came)
        for index, outcome in published.items():
            outcomes[index] = outcome
            if outcome is None and items[index].delay_ms:
                self._transport.note_delay(items[index])
        return [outcome and _told(doing, outcome) for outcome in outcomes]

    def _published(
        self, items: Sequence[Publish], frames: dict[int, Frame], deadline: float, came: Any
    ) -> dict[int, Any]:
        if not frames:
            return {}
        batch = Batch(list(frames.values()))
        self._deliver(batch, deadline)
        if missed(batch):
            # A queue was deleted, or an exchange of ours: declared again, and these once more.
            self.forget(batch, [items[index] for index in frames])
            try:
                batch.frames = [self.frame(items[index], came) for index in frames]
                self._deliver(batch, deadline)
            except ConnectionClosed as exc:
                self._logger.warning("What found no queue cannot be declared again: %s", exc)
        if any(not isinstance(outcome, MaybeStored | NotStored) for outcome in batch.outcomes):
            self.gate.passed()
        elif not any(outcome.answered for outcome in batch.outcomes):
            # Not the outcome's words: they are of this message, and the next one was not sent.
            self.gate.failed(self._transport.publisher.why or "it does not confirm")
        return dict(zip(frames, batch.outcomes))

    def _deliver(self, batch: Batch, deadline: float) -> None:
        publisher = self._transport.publisher
        waits_s = max(0.0, deadline - time.monotonic())
        publisher.submit(batch)
        if not batch.done.wait(waits_s):
            publisher.give_up(batch, waits_s)

    def forget(self, batch: Batch, items: Sequence[Store]) -> None:
        """What a batch missed is declared again at its next use."""
        declared = self._transport.declared
        delayed = any(isinstance(item, Publish) and item.delay_ms for item in items)
        if any(isinstance(each, Refusal) or (delayed and isinstance(each, Unroutable)) for each in batch.outcomes):
            # An exchange is gone, or a step of the ladder.
            declared.forget_all()
        for item in items:
            declared.forget(q_name(item.message.queue_name) if isinstance(item, Publish) else item.queue)

    def frame(self, item: Store, came: Any = None, *, again: bool = False) -> Frame:
        """Where an item goes, what it needs declared first. `came` are the properties that it was delivered with."""
        declared, limit = self._transport.declared, self._transport.max_body
        if isinstance(item, Publish) and len(item.body) > limit:
            # Asked, the broker would close the channel under all that is on its way.
            raise TooLarge(f"the body has {len(item.body)} bytes and RabbitMQ takes {limit}; send less", limit)
        if not isinstance(item, Publish):
            return letter_frame(item, declared.dead(item.queue), came, again=again)
        queue_name = q_name(item.message.queue_name)
        if item.delay_ms:
            return message_frame(item, declared.delays(queue_name), came, again=again)
        declared.queue(queue_name)
        return message_frame(item, None, came, again=again)


def missed(batch: Batch) -> bool:
    """Whether anything found no queue, or no exchange, and nothing would be stored twice by trying again."""
    failures = [outcome for outcome in batch.outcomes if isinstance(outcome, Failure)]
    if any(isinstance(each, MaybeStored) for each in failures):
        return False
    return any(isinstance(each, Unroutable) or _is_gone(each) for each in failures)


def _is_gone(failure: Failure) -> bool:
    return isinstance(failure, Refusal) and failure.code == NOT_FOUND


def _told(doing: str, outcome: Exception) -> Failure:
    return _caused(f"{doing}: {outcome}", outcome)


def _caused(text: str, cause: BaseException) -> Failure:
    error = Failure(text)
    error.__cause__ = cause
    return error
