"""Promises about sending: accepted means stored, in order, never early, and hooks hear of it once."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from typing import Any

import dramatiq
import pytest
from dramatiq.middleware import Middleware, MiddlewareError, SkipMessage

import reliq
from reliq.testing import eventually
from tests.transport.rig import Stage, as_handed_out

Make = Callable[..., Stage]


class Ear(Middleware):
    """Hears what is enqueued."""

    def __init__(self) -> None:
        self.before: list[Any] = []
        self.after: list[Any] = []

    def before_enqueue(self, broker: Any, message: Any, delay: Any) -> None:
        self.before.append((message.message_id, delay))

    def after_enqueue(self, broker: Any, message: Any, delay: Any) -> None:
        self.after.append((message.message_id, delay))


class Refuser(Middleware):
    """Raises what it is told to before a message of the actor `refused` is enqueued."""

    def __init__(self, error: BaseException) -> None:
        self.error = error

    def before_enqueue(self, broker: Any, message: Any, delay: Any) -> None:
        if message.actor_name == "refused":
            raise self.error


class Sending:
    """`send`, `publish_many`, delays."""

    def test_a_sent_message_lies_in_the_broker_and_runs_once(self, make: Make) -> None:
        """sent 1, done 1."""
        stage, ran = make(), []
        actor = dramatiq.actor(lambda x, y=None: ran.append((x, y)), actor_name="work")
        sent = actor.send(1, y="é")
        assert stage.counts() == (1, 0, 0, 0)
        stage.worker()
        stage.broker.join(actor.queue_name, timeout=10_000)
        assert ran == [(1, "é")]
        assert stage.counts() == (0, 0, 0, 0)
        assert sent.actor_name == "work"

    def test_messages_run_in_the_order_they_were_sent(self, make: Make) -> None:
        """100 sent, 100 done, in order."""
        stage, ran = make(), []
        actor = dramatiq.actor(ran.append, actor_name="work")
        for number in range(100):
            actor.send(number)
        stage.worker(threads=1)
        stage.broker.join("default", timeout=20_000)
        assert as_handed_out(ran) == list(range(100))

    def test_publish_many_keeps_the_order_and_tells_of_each(self, make: Make) -> None:
        """250 published in one call: 250 outcomes, 250 done, in order."""
        stage, ran = make(), []
        actor = dramatiq.actor(ran.append, actor_name="work")
        items = [stage.transport.outgoing(actor.message(number)) for number in range(250)]
        assert stage.transport.publish_many(items) == [None] * 250
        stage.worker(threads=1)
        stage.broker.join("default", timeout=20_000)
        assert as_handed_out(ran) == list(range(250))

    def test_publish_many_of_nothing_does_nothing(self, make: Make) -> None:
        """An empty list is no error."""
        assert make().transport.publish_many([]) == []

    def test_a_delayed_message_is_never_early_and_runs(self, make: Make) -> None:
        """30 delays in no order: 0 early, 30 done."""
        stage, late = make(), []
        actor = dramatiq.actor(lambda due: late.append(time.time() - due), actor_name="work")
        chance = random.Random(4)
        for _ in range(30):
            delay = chance.randrange(0, 600)
            actor.send_with_options(args=(time.time() + delay / 1000,), delay=delay)
        stage.worker(threads=4)
        stage.broker.join("default", timeout=20_000)
        assert len(late) == 30
        assert min(late) >= 0
        assert stage.counts() == (0, 0, 0, 0)

    def test_far_delays_never_hold_up_a_near_one(self, make: Make) -> None:
        """3,000 due in an hour, 5 now: the 5 run, none of the 3,000 is in a worker's hands."""
        stage, ran = make(), []
        actor = dramatiq.actor(ran.append, actor_name="work")
        far = [stage.transport.outgoing(actor.message(-number), 3_600_000) for number in range(1, 3_001)]
        stage.transport.publish_many(far)
        stage.worker(threads=1)
        for number in range(5):
            actor.send_with_options(args=(number,), delay=50)
        eventually(lambda: sorted(ran) == [0, 1, 2, 3, 4], 10, what="the near ones")
        stage.wait_for(0, 0, 3_000, 0)

    def test_a_negative_delay_runs_at_once(self, make: Make) -> None:
        """As on plain Dramatiq, also for what a pipeline sends while its step ends: 2 of 2 run."""
        stage, ran = make(), []
        actor = dramatiq.actor(lambda number: ran.append(number), actor_name="work")
        last = actor.message_with_options(args=(2,), delay=-5_000, pipe_ignore=True)
        stage.broker.enqueue((actor.message(1) | last).messages[0], delay=-5)
        stage.worker()
        eventually(lambda: ran == [1, 2], what="both steps")

    @pytest.mark.parametrize("delay", [float("nan"), float("inf"), "5", True, 2**60])
    def test_a_delay_that_is_no_number_of_ms_is_refused(self, make: Make, delay: Any) -> None:
        """Nothing is stored, and the error names the actor."""
        stage = make()
        actor = dramatiq.actor(lambda: None, actor_name="work")
        with pytest.raises(reliq.OptionError, match="actor 'work'.*pass milliseconds"):
            stage.broker.enqueue(actor.message(), delay=delay)
        assert stage.counts() == (0, 0, 0, 0)

    def test_hooks_hear_once_of_a_send_with_its_delay(self, make: Make) -> None:
        """before_enqueue and after_enqueue, once each, delay as given."""
        ear = Ear()
        make(more=[ear])
        actor = dramatiq.actor(lambda: None, actor_name="work")
        plain = actor.send()
        late = actor.send_with_options(delay=60_000)
        assert ear.before == ear.after == [(plain.message_id, None), (late.message_id, 60_000)]

    @pytest.mark.parametrize("error", [SkipMessage("no"), MiddlewareError("no")], ids=["skip", "error"])
    def test_a_hook_that_refuses_a_send_is_heard_by_the_sender(self, make: Make, error: Exception) -> None:
        """Nothing is stored, after_enqueue is not called."""
        ear = Ear()
        stage = make(more=[ear, Refuser(error)])
        actor = dramatiq.actor(lambda: None, actor_name="refused")
        with pytest.raises(type(error)):
            actor.send()
        assert (stage.counts(), ear.after) == ((0, 0, 0, 0), [])

    def test_what_cannot_be_encoded_is_the_senders_error(self, make: Make) -> None:
        """Nothing is stored."""
        stage = make()
        actor = dramatiq.actor(lambda x: None, actor_name="work")
        with pytest.raises(TypeError):
            actor.send(object())
        assert stage.counts() == (0, 0, 0, 0)
