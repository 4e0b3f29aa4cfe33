"""Promises about what is sent while a message ends: it joins the settle, or goes with it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import dramatiq
import pytest
from dramatiq.errors import ConnectionClosed
from dramatiq.middleware import Middleware, SkipMessage
from dramatiq.middleware.shutdown import Shutdown

import reliq
from tests.transport.promises.sending import Ear, Refuser
from tests.transport.rig import Stage

Make = Callable[..., Stage]


class Sender(Middleware):
    """Sends a message whenever a run has ended."""

    def __init__(self, *args: Any, actor: str = "told") -> None:
        self.args, self.actor = args, actor

    def after_process_message(self, broker: Any, message: Any, *, result: Any = None, exception: Any = None) -> None:
        if message.actor_name != self.actor:
            broker.get_actor(self.actor).send(*self.args)


def actors(error: BaseException | None = None, **options: Any) -> tuple[Any, Any]:
    """An actor that ends as it is told to, on its own queue, and one to call back."""

    def work() -> None:
        if error is not None:
            raise error

    told = dramatiq.actor(lambda *args: None, actor_name="told", queue_name="told")
    refused = dramatiq.actor(lambda *args: None, actor_name="refused", queue_name="told")
    del refused
    return dramatiq.actor(work, actor_name="work", **options), told


class Callbacks:
    """Captured sends."""

    def test_a_callback_is_stored_in_the_step_that_ends_its_message(
        self, make: Make, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """While the settle fails neither is the callback there nor the message gone; then both, once."""
        monkeypatch.setattr("reliq.transport.consumer.SETTLE_PATIENCE_S", 0.0)
        monkeypatch.setattr("dramatiq.worker.POST_PROCESS_MESSAGE_RETRY_DELAY_SECS", 0.01)
        stage = make()
        work, _ = actors(on_success="told")
        work.send()
        settle, seen = stage.transport.settle, []

        def failing(settlement: Any) -> bool:
            seen.append((stage.counts(), stage.counts("told")))
            if len(seen) < 4:
                raise ConnectionClosed("away")
            return settle(settlement)

        monkeypatch.setattr(stage.transport, "settle", failing)
        stage.hand().run()
        assert seen == [((0, 1, 0, 0), (0, 0, 0, 0))] * 4
        assert (stage.counts(), stage.counts("told")) == ((0, 0, 0, 0), (1, 0, 0, 0))

    def test_a_callback_is_told_of_after_it_is_stored(self, make: Make) -> None:
        """before_enqueue when it is captured, after_enqueue once durable, each once."""
        ear = Ear()
        stage = make(more=[ear])
        work, _ = actors(on_success="told")
        work.send()
        ear.before.clear()
        ear.after.clear()
        stage.hand().run()
        assert len(ear.before) == 1
        assert ear.before == ear.after

    @pytest.mark.parametrize("error", [reliq.Defer(delay=60_000), Shutdown()], ids=["deferred", "returned"])
    def test_what_was_sent_goes_with_a_run_that_does_not_count(self, make: Make, error: BaseException) -> None:
        """Deferred or handed back: nothing of what its end sent is stored."""
        stage = make(more=[Sender("x")])
        work, _ = actors(error, on_failure="told")
        work.send()
        stage.hand().run()
        assert stage.counts("told") == (0, 0, 0, 0)
        assert sum(count or 0 for count in stage.counts()) == 1

    @pytest.mark.parametrize(
        ("error", "counts"),
        [(ValueError("x"), (0, 0, 1, 0)), (reliq.Permanent("x"), (0, 0, 0, 1))],
        ids=["retried", "dead"],
    )
    def test_a_failure_callback_is_stored_with_the_retry_or_the_letter(
        self, make: Make, error: BaseException, counts: tuple[int, ...]
    ) -> None:
        """on_failure: one message, on every failed attempt."""
        stage = make()
        work, _ = actors(error, on_failure="told", min_backoff=60_000, max_backoff=60_000)
        work.send()
        stage.hand().run()
        assert (stage.counts(), stage.counts("told")) == (counts, (1, 0, 0, 0))

    def test_a_callback_that_cannot_be_encoded_becomes_a_letter_of_its_own(self, make: Make) -> None:
        """The finished message is gone; the callback lies in its own queue's letters, `rejected`, its text kept."""
        stage = make(more=[Sender(object())])
        work, _ = actors()
        work.send()
        stage.hand().run()
        assert stage.counts() == (0, 0, 0, 0)
        (letter,) = stage.letters("told")
        assert (letter["reason"], letter["error"]) == ("rejected", "TypeError")
        assert letter["queue"] == "told"

    def test_a_callback_that_a_hook_refuses_becomes_a_letter_of_its_own(self, make: Make) -> None:
        """before_enqueue raised SkipMessage: `rejected`, arguments kept; the finished message is gone."""
        stage = make(more=[Sender(7, actor="refused"), Refuser(SkipMessage("not today"))])
        work, _ = actors()
        work.send()
        stage.hand().run()
        assert stage.counts() == (0, 0, 0, 0)
        (letter,) = stage.letters("told")
        assert (letter["reason"], letter["actor"], letter["args"]) == ("rejected", "refused", [7])
        assert letter["error_message"] == "not today"

    def test_a_task_s_own_sends_leave_at_once(self, make: Make) -> None:
        """What the actor sends is there before it ends, and stays though it fails."""
        stage, seen = make(), []
        told = dramatiq.actor(lambda: None, actor_name="told", queue_name="told")

        @dramatiq.actor(min_backoff=60_000, max_backoff=60_000)
        def work() -> None:
            told.send()
            seen.append(stage.counts("told"))
            raise ValueError("after sending")

        work.send()
        stage.hand().run()
        assert (seen, stage.counts("told"), stage.counts()) == ([(1, 0, 0, 0)], (1, 0, 0, 0), (0, 0, 1, 0))

    def test_a_callback_does_not_carry_the_record_of_its_message(self, make: Make) -> None:
        """on_retry_exhausted gets the message as a dict: without `options["reliq"]`."""
        stage, got = make(), []

        def work() -> None:
            raise ValueError("x")

        dramatiq.actor(lambda message, about: got.append((message, about)), actor_name="told", queue_name="told")
        failing = dramatiq.actor(work, max_retries=0, on_retry_exhausted="told")
        failing.send()
        stage.worker()
        stage.broker.join("told", timeout=10_000)
        stage.wait_for(0, 0, 0, 1)
        stage.broker.join("told", timeout=10_000)
        ((message, about),) = got
        assert "reliq" not in message["options"]
        assert about == {"retries": 0, "max_retries": 0}
