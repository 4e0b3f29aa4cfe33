"""Promises about actors that a worker does not know: waited for, renamed, or a letter."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import dramatiq

import reliq
from reliq.testing import eventually
from tests.transport.promises.settling import hand_take_due
from tests.transport.rig import Stage

Make = Callable[..., Stage]


def send_to(stage: Stage, actor_name: str, *args: Any) -> Any:
    """A message for an actor that this process may not know."""
    stage.broker.declare_queue("default")
    return stage.broker.enqueue(dramatiq.Message("default", actor_name, args, {}, {}))


class UnknownActors:
    """`unknown_actor_grace`, `aliases`."""

    def test_an_unknown_actor_without_grace_is_a_letter_and_its_neighbours_run(self, make: Make) -> None:
        """20 good, 1 unknown: 20 done, 1 letter `unknown_actor`."""
        stage, ran = make(reliq.Delivery(unknown_actor_grace=0)), []
        work = dramatiq.actor(ran.append, actor_name="work")
        for number in range(20):
            if number == 10:
                sent = send_to(stage, "nobody", 1)
            work.send(number)
        stage.worker()
        stage.wait_for(0, 0, 0, 1)
        eventually(lambda: len(ran) == 20, what="the neighbours")
        (letter,) = stage.letters()
        assert (letter["reason"], letter["actor"], letter["message_id"]) == ("unknown_actor", "nobody", sent.message_id)
        assert (letter["args"], letter["attempts"], letter["error"]) == ([1], 0, None)

    def test_an_unknown_actor_waits_for_a_worker_that_knows_it(self, make: Make) -> None:
        """Deferred, no attempt spent, the time it was first met kept; once the actor is declared it runs."""
        stage, ran = make(), []
        send_to(stage, "late", 5)
        hand = stage.hand()
        eventually(lambda: (hand.look(), stage.counts() == (0, 0, 1, 0))[1], what="the deferral")
        dramatiq.actor(ran.append, actor_name="late")
        # Due now, not in 5 s.
        (body,) = [body for body in stage.maker.stored(stage.broker) if b'"unknown_since"' in body]
        fields = json.loads(body)
        fields["options"].pop("eta", None)
        stage.broker.flush("default")
        stage.put_raw(json.dumps(fields).encode())
        message = hand.take()
        assert message.record.unknown_since is not None
        assert message.options.get("retries") is None
        hand.run(message)
        assert ran == [5]

    def test_the_grace_counts_from_the_first_meeting(self, make: Make) -> None:
        """A message first met longer ago than the grace is a letter at once."""
        stage = make(reliq.Delivery(unknown_actor_grace=1_000))
        stage.broker.declare_queue("default")
        options = {"reliq": {"v": 1, "unknown_since": stage.transport.now_ms() - 2_000}}
        stage.broker.enqueue(dramatiq.Message("default", "nobody", (), {}, options))
        hand = stage.hand()
        eventually(lambda: (hand.look(), stage.counts() == (0, 0, 0, 1))[1], what="the letter")

    def test_a_renamed_actor_runs_under_its_new_name(self, make: Make) -> None:
        """aliases={"old": "new"}: done by "new", and a retry carries the new name."""
        stage, ran = make(reliq.Delivery(aliases={"old": "new"})), []

        def work(number: int) -> None:
            ran.append(number)
            if len(ran) == 1:
                raise ValueError("once")

        dramatiq.actor(work, actor_name="new", min_backoff=20, max_backoff=20)
        send_to(stage, "old", 3)
        hand = stage.hand()
        hand.run()
        message = hand_take_due(stage, hand)
        assert message.actor_name == "new"
        hand.run(message)
        assert ran == [3, 3]
