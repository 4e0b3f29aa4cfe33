"""What an actor raises, and what becomes of its message: Dramatiq's options, and reliq's beside them."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import dramatiq
import pytest
from dramatiq.errors import RateLimitExceeded, Retry
from dramatiq.middleware import TimeLimit

import reliq
from reliq.testing import eventually
from tests.transport.rig import SOON, Stage

Make = Callable[..., Stage]


class CircuitBreakerError(Exception):
    """Named as pybreaker's."""


class Throttled(Exception):
    """Named by nobody, with a Retry-After."""

    headers = {"Retry-After": "7200"}  # noqa: RUF012


def reason_of(stage: Stage, error: BaseException, **options: Any) -> tuple[str | None, int]:
    """Send one message that raises `error` each time; the reason of its letter and how often it ran."""
    runs: list[float] = []

    def work() -> None:
        runs.append(time.monotonic())
        raise error

    dramatiq.actor(work, **{**SOON, **options}).send()
    stage.worker()
    stage.wait_for(0, 0, 0, 1)
    return stage.letters()[0]["reason"], len(runs)


@pytest.mark.parametrize(
    ("error", "options", "reason", "runs"),
    [
        # 1 run and its retries.
        (ValueError("x"), {"max_retries": 2}, "retries_exhausted", 3),
        (ValueError("x"), {"max_retries": 0}, "retries_exhausted", 1),
        # throws and Permanent: no retry.
        (KeyError("x"), {"throws": KeyError}, "permanent", 1),
        (KeyError("x"), {"throws": (OSError, LookupError)}, "permanent", 1),
        (reliq.Permanent("x"), {"max_retries": 9}, "permanent", 1),
        # retry_when is asked after each run with the retries so far: true, true, false.
        (ValueError("x"), {"retry_when": lambda retries, exc: retries < 2}, "retries_exhausted", 3),
        (ValueError("x"), {"retry_when": lambda retries, exc: False, "max_retries": 9}, "retries_exhausted", 1),
        # retry_for: outside it, permanent.
        (ValueError("x"), {"retry_for": (OSError,)}, "permanent", 1),
        (OSError("x"), {"retry_for": OSError, "max_retries": 1}, "retries_exhausted", 2),
        (ValueError("x"), {"retry_for": reliq.transient}, "permanent", 1),
        (ConnectionResetError("x"), {"retry_for": reliq.transient, "max_retries": 1}, "retries_exhausted", 2),
        (ValueError("x"), {"retry_for": lambda retries, exc: retries < 1 and 10}, "permanent", 2),
        # Dramatiq's Retry counts as a retry.
        (Retry(delay=10), {"max_retries": 2}, "retries_exhausted", 3),
        # A deferral counts none, and is bounded by the time it takes in all: 0 + 100 + 100, and 300 > 250.
        (reliq.Defer(delay=100), {"max_retries": 0, "defer_max": 250}, "expired", 3),
        (RateLimitExceeded("x"), {"max_retries": 0, "defer_max": 0}, "expired", 1),
        (CircuitBreakerError("x"), {"max_retries": 0, "defer_max": 0}, "expired", 1),
        # The first retry would be due later than max_elapsed after the first failure.
        (ValueError("x"), {"max_elapsed": 1}, "retries_exhausted", 1),
        (SystemExit(3), {"max_retries": 1}, "retries_exhausted", 2),
    ],
    ids=lambda value: None if callable(value) or isinstance(value, dict) else str(value)[:20],
)
def test_an_exception_leads_to_its_letter(
    make_stub: Make, error: BaseException, options: dict[str, Any], reason: str, runs: int
) -> None:
    """Each row: what is raised, the options, the letter's reason, how often it ran."""
    assert reason_of(make_stub(), error, **options) == (reason, runs)


@pytest.mark.parametrize(
    "error", [RateLimitExceeded("x"), CircuitBreakerError("x"), reliq.Defer()], ids=["rate", "breaker", "defer"]
)
def test_a_refusal_waits_a_second_or_two_and_spends_no_attempt(make_stub: Make, error: Exception) -> None:
    """min(30 s, 1 s * 2^0) * U(1, 2); retries untouched."""
    stage = make_stub()

    def work() -> None:
        raise error

    dramatiq.actor(work, max_retries=0).send()
    began = time.time() * 1000
    stage.hand().run()
    assert stage.counts() == (0, 0, 1, 0)
    (body,) = stage.broker.queues["default.DQ"].queue
    options = dramatiq.Message.decode(body).options
    assert 1_000 <= options["eta"] - began <= 2_000 + 2_000
    assert "retries" not in options
    assert options["reliq"]["deferrals"] == 1
    assert 1_000 <= options["reliq"]["deferred_ms"] <= 2_000


def test_that_a_refusal_is_a_deferral_is_said_once(make_stub: Make, caplog: pytest.LogCaptureFixture) -> None:
    """The log names the changed behaviour, once per class."""
    stage = make_stub()

    def work() -> None:
        raise RateLimitExceeded("x")

    actor = dramatiq.actor(work)
    actor.send()
    actor.send()
    hand = stage.hand()
    hand.run()
    hand.run()
    said = [record for record in caplog.records if "plain Dramatiq spends one" in record.getMessage()]
    assert len(said) == 1


def test_retry_says_when(make_stub: Make) -> None:
    """Retry(delay=3_600_000) waits an hour whatever the backoff; and the record says so."""
    stage = make_stub()

    def work() -> None:
        raise Retry("later", delay=3_600_000)

    dramatiq.actor(work, **SOON).send()
    stage.hand().run()
    (body,) = stage.broker.queues["default.DQ"].queue
    options = dramatiq.Message.decode(body).options
    assert 3_590_000 < options["eta"] - time.time() * 1000 <= 3_600_010
    assert options["retries"] == 1


def test_retry_after_is_honoured(make_stub: Make) -> None:
    """A header of two hours: no retry before that."""
    stage = make_stub()

    def work() -> None:
        raise Throttled

    dramatiq.actor(work, **SOON).send()
    stage.hand().run()
    (body,) = stage.broker.queues["default.DQ"].queue
    assert dramatiq.Message.decode(body).options["eta"] - time.time() * 1000 > 7_190_000


def test_a_predicate_that_raises_does_not_decide(make_stub: Make, caplog: pytest.LogCaptureFixture) -> None:
    """D1's other half: a broken retry_when leaves the message retried by count, and is logged."""

    def broken(retries: int, exc: BaseException) -> bool:
        raise RuntimeError("broken")

    assert reason_of(make_stub(), ValueError("x"), retry_when=broken, max_retries=1) == ("retries_exhausted", 2)
    assert any(record.levelname == "CRITICAL" for record in caplog.records)


def test_an_option_no_json_holds_does_not_lose_the_retry(make: Make) -> None:
    """A middleware or the actor puts an object into the options: run again as it was received."""
    stage, runs = make(), []

    class Spoiler(dramatiq.Middleware):
        def before_process_message(self, broker: Any, message: Any) -> None:
            message.options["spoiled"] = object()

    stage.broker.add_middleware(Spoiler())

    def work() -> None:
        runs.append(1)
        raise ValueError("x")

    dramatiq.actor(work, max_retries=1, **SOON).send()
    stage.worker()
    stage.wait_for(0, 0, 0, 1)
    assert len(runs) == 2
    assert stage.letters()[0]["attempts"] == 2


def test_a_message_past_its_max_age_is_a_letter_expired(make: Make) -> None:
    """AgeLimit fails it unrun."""
    stage, ran = make(), []
    actor = dramatiq.actor(ran.append, actor_name="work", max_age=30_000)
    old = dramatiq.Message("default", "work", (1,), {}, {}, message_timestamp=int(time.time() * 1000) - 60_000)
    stage.broker.enqueue(old)
    actor.send(2)
    stage.worker()
    stage.wait_for(0, 0, 0, 1)
    eventually(lambda: ran == [2], what="the young one")
    assert (stage.letters()[0]["reason"], stage.letters()[0]["args"]) == ("expired", [1])


def test_a_skipped_message_is_done(make: Make) -> None:
    """SkipMessage without fail(): acked, no letter."""
    stage, ran = make(), []

    class Skipper(dramatiq.Middleware):
        def before_process_message(self, broker: Any, message: Any) -> None:
            raise dramatiq.middleware.SkipMessage("not today")

    stage.broker.add_middleware(Skipper(), before=TimeLimit)
    dramatiq.actor(ran.append, actor_name="work").send(1)
    stage.worker()
    stage.wait_for(0, 0, 0, 0)
    assert ran == []


def test_a_message_that_a_middleware_fails_is_a_letter_rejected(make: Make) -> None:
    """fail() without an exception: not run."""
    stage, ran = make(), []

    class Failer(dramatiq.Middleware):
        def before_process_message(self, broker: Any, message: Any) -> None:
            message.fail()

    stage.broker.add_middleware(Failer(), before=TimeLimit)
    dramatiq.actor(ran.append, actor_name="work").send(1)
    stage.worker()
    stage.wait_for(0, 0, 0, 1)
    assert (ran, stage.letters()[0]["reason"]) == ([], "rejected")


def test_a_time_limit_is_retried(make_stub: Make) -> None:
    """TimeLimitExceeded counts as a failure; the thread goes on."""
    stage, runs = make_stub(), []
    for middleware in stage.broker.middleware:
        if isinstance(middleware, TimeLimit):
            middleware.manager.interval = 0.01
            middleware.manager.start()

    def work() -> None:
        runs.append(1)
        give_up = time.monotonic() + (10 if len(runs) == 1 else 0)
        while time.monotonic() < give_up:
            pass

    dramatiq.actor(work, time_limit=100, **SOON).send()
    stage.worker(threads=1)
    stage.broker.join("default", timeout=20_000)
    assert len(runs) == 2


class HalfMade(Retry):
    """A subclass that forgot its parent's constructor: it has no delay and no message."""

    def __init__(self) -> None:
        pass


class HalfMadeDefer(reliq.Defer):
    """The same of ours."""

    def __init__(self) -> None:
        pass


def test_an_exception_without_its_parts_does_not_lose_the_message(make_stub: Make) -> None:
    """A Retry and a Defer without a delay: run again by the usual wait, never taken for a success."""
    assert reason_of(make_stub(), HalfMade(), max_retries=2) == ("retries_exhausted", 3)
    assert reason_of(make_stub(), HalfMadeDefer(), defer_max=0) == ("expired", 1)


def test_a_predicate_that_ends_the_program_does_not_decide(make_stub: Make) -> None:
    """SystemExit from retry_when: the message is retried as if it were not set, and the thread goes on."""

    def leave(retries: int, exc: BaseException) -> bool:
        raise SystemExit(1)

    assert reason_of(make_stub(), ValueError("x"), retry_when=leave, max_retries=1) == ("retries_exhausted", 2)
