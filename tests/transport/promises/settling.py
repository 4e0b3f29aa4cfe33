"""Promises about settling: each verdict ends a delivery in one way, once, whoever asks again."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import dramatiq
import pytest
from dramatiq.middleware.shutdown import Shutdown

import reliq
from tests.transport.promises.needs import needs
from tests.transport.rig import SOON, Stage

Make = Callable[..., Stage]

#: What an actor raises -> (ready, unacked, delayed, dead) afterwards.
ENDS = {
    "done": (None, (0, 0, 0, 0)),
    "retried": (ValueError("once"), (0, 0, 1, 0)),
    "deferred": (reliq.Defer(delay=60_000), (0, 0, 1, 0)),
    "dead": (reliq.Permanent("never"), (0, 0, 0, 1)),
    "returned": (Shutdown(), (1, 0, 0, 0)),
}


def raiser(error: BaseException | None) -> Callable[[int], None]:
    """An actor's function that raises `error`, or does not."""

    def work(number: int) -> None:
        if error is not None:
            raise error

    return work


def options_in(body: bytes) -> dict[str, Any]:
    """The options of an encoded message."""
    options: dict[str, Any] = json.loads(body)["options"]
    return options


class Settling:
    """Verdicts."""

    @pytest.mark.parametrize("outcome", ENDS)
    def test_each_verdict_ends_a_delivery_in_its_own_way(self, make: Make, outcome: str) -> None:
        """One message in, one message out, in the place that its verdict names."""
        error, counts = ENDS[outcome]
        stage = make()
        actor = dramatiq.actor(raiser(error), actor_name="work", min_backoff=60_000, max_backoff=60_000)
        actor.send(1)
        hand = stage.hand()
        message = hand.take()
        assert stage.counts() == (0, 1, 0, 0)
        hand.run(message)
        stage.wait_for(*counts)

    def test_a_letter_nobody_wants_is_dropped(self, make: Make) -> None:
        """dead_letter=False: gone, without a letter."""
        stage = make()
        actor = dramatiq.actor(raiser(reliq.Permanent("never")), actor_name="work", dead_letter=False)
        actor.send(1)
        stage.hand().run()
        assert stage.counts() == (0, 0, 0, 0)

    @pytest.mark.parametrize("outcome", ENDS)
    def test_settling_again_changes_nothing(self, make: Make, outcome: str) -> None:
        """ack, nack and settle, repeated: still one message in one place."""
        error, counts = ENDS[outcome]
        stage = make()
        actor = dramatiq.actor(raiser(error), actor_name="work", min_backoff=60_000, max_backoff=60_000)
        actor.send(1)
        hand = stage.hand()
        message = hand.run()
        stage.wait_for(*counts)
        for _ in range(2):
            hand.consumer.ack(message)
            hand.consumer.nack(message)
            if message.settlement is not None:
                stage.transport.settle(message.settlement)
        assert stage.counts() == counts

    def test_a_message_that_was_given_back_is_not_settled_by_its_old_run(self, make: Make) -> None:
        """A run that ends after its message went back writes nothing: the message lies in its queue, once."""
        stage = make()
        actor = dramatiq.actor(raiser(ValueError("late")), actor_name="work", **SOON)
        actor.send(1)
        hand = stage.hand()
        message = hand.take()
        hand.consumer.requeue([message])
        stage.wait_for(1, 0, 0, 0)
        hand.run(message)
        stage.wait_for(1, 0, 0, 0)

    def test_a_retry_carries_its_counts_and_keeps_what_was_sent(self, make: Make) -> None:
        """Same id, arguments and options; retries counted for stock and for reliq."""
        stage = make()
        actor = dramatiq.actor(raiser(ValueError("boo")), actor_name="work", max_retries=1, **SOON)
        sent = actor.send_with_options(args=(1,), note="mine")
        hand = stage.hand()
        hand.run()
        stage.maker.promote(stage.broker, "default") if stage.counts()[2] else None
        message = hand_take_due(stage, hand)
        assert (message.message_id, message.args, message.options["note"]) == (sent.message_id, (1,), "mine")
        assert message.options["retries"] == 1
        assert [(item["error"], item["message"]) for item in message.record.attempts] == [("ValueError", "boo")]
        hand.run(message)
        (letter,) = stage.letters()
        assert (letter["reason"], letter["attempts"], letter["options"]) == ("retries_exhausted", 2, {"note": "mine"})
        assert [attempt["message"] for attempt in letter["attempts_log"]] == ["boo", "boo"]

    def test_a_deferral_spends_no_attempt(self, make: Make) -> None:
        """Deferred 3 times with max_retries=0, then done: no letter."""
        stage, runs = make(), []

        @dramatiq.actor(actor_name="work", max_retries=0)
        def work() -> None:
            runs.append(1)
            if len(runs) < 4:
                raise reliq.Defer(delay=20)

        work.send()
        stage.worker()
        stage.broker.join("default", timeout=10_000)
        assert (len(runs), stage.counts()) == (4, (0, 0, 0, 0))

    @needs("hands_back_in_order")
    def test_a_message_handed_back_is_the_next_to_run_and_byte_for_byte_the_same(self, make: Make) -> None:
        """Shutdown: no attempt spent, nothing rewritten, first in its queue."""
        stage = make()
        actor = dramatiq.actor(raiser(Shutdown()), actor_name="work", max_retries=0)
        actor.send(1)
        actor.send(2)
        (first, second) = stage.maker.ready(stage.broker, "default")
        stage.hand(prefetch=1).run()
        stage.wait_for(2, 0, 0, 0)
        assert stage.maker.ready(stage.broker, "default") == [first, second]

    def test_a_body_too_large_for_the_broker_sheds_its_record_first(self, make: Make) -> None:
        """Limit below body + traceback: the retry is stored without them, its count kept. Limit below the bare body:
        a letter `too_large`, body whole."""
        stage = make()
        actor = dramatiq.actor(raiser(ValueError("boo" * 100)), actor_name="work", max_retries=5, **SOON)
        actor.send("x" * 2_000)
        (plain,) = stage.maker.ready(stage.broker, "default")
        stage.transport.max_body = len(plain) + 350
        hand = stage.hand()
        hand.run()
        message = hand_take_due(stage, hand)
        assert (message.options["retries"], message.record.attempts) == (1, [])
        assert "traceback" not in message.options
        stage.transport.max_body = 1_000
        hand.run(message)
        (letter,) = stage.letters()
        assert (letter["reason"], letter["args"], letter["error"]) == ("too_large", ["x" * 2_000], "ValueError")


def hand_take_due(stage: Stage, hand: Any) -> Any:
    """The next message, once its delay is over."""
    from reliq.testing import eventually

    def look() -> Any:
        stage.maker.promote(stage.broker, "default")
        return hand.look()

    return eventually(look, 10, 0.01, "the delayed message")
