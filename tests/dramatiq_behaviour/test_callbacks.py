"""on_success, on_failure and on_retry_exhausted: when, how often, and with what."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import dramatiq
import pytest

import reliq
from reliq.testing import eventually
from tests.transport.rig import SOON, Stage

Make = Callable[..., Stage]


def listen() -> list[tuple[str, Any]]:
    """Actors to be called back; what they hear."""
    heard: list[tuple[str, Any]] = []
    dramatiq.actor(lambda message, result: heard.append(("success", result)), actor_name="succeeded")
    dramatiq.actor(lambda message, error: heard.append(("failure", error)), actor_name="failed")
    dramatiq.actor(lambda message, about: heard.append(("exhausted", about)), actor_name="exhausted")
    return heard


CALLBACKS = {"on_success": "succeeded", "on_failure": "failed", "on_retry_exhausted": "exhausted"}


def test_success_is_told_once_with_the_result(make: Make) -> None:
    """on_success alone."""
    stage = make()
    heard = listen()
    dramatiq.actor(lambda: 42, actor_name="work", **CALLBACKS).send()
    stage.worker()
    stage.broker.join("default", timeout=10_000)
    assert heard == [("success", 42)]


def test_failure_is_told_on_every_attempt_and_exhaustion_on_the_last(make: Make) -> None:
    """max_retries=2: 3 on_failure, 1 on_retry_exhausted, and no success."""
    stage = make()
    heard = listen()

    def work() -> None:
        raise ValueError("boo")

    dramatiq.actor(work, max_retries=2, **SOON, **CALLBACKS).send()
    stage.worker()
    stage.wait_for(0, 0, 0, 1)
    kinds = sorted(kind for kind, _ in heard)
    assert kinds == ["exhausted", "failure", "failure", "failure"]
    assert ("failure", {"type": "ValueError", "message": "boo"}) in heard
    assert ("exhausted", {"retries": 2, "max_retries": 2}) in heard


def test_a_failure_that_is_mended_is_told_as_both(make: Make) -> None:
    """One on_failure, then one on_success."""
    stage, runs = make(), []
    heard = listen()

    def work() -> str:
        runs.append(1)
        if len(runs) == 1:
            raise ValueError("once")
        return "done"

    dramatiq.actor(work, **SOON, **CALLBACKS).send()
    stage.worker()
    stage.broker.join("default", timeout=10_000)
    assert [kind for kind, _ in heard] == ["failure", "success"]


@pytest.mark.parametrize("error", [reliq.Permanent("no"), KeyError("expected")], ids=["permanent", "throws"])
def test_what_is_not_retried_is_a_failure_but_no_exhaustion(make: Make, error: Exception) -> None:
    """As in Dramatiq's throws: on_failure once."""
    stage = make()
    heard = listen()

    def work() -> None:
        raise error

    dramatiq.actor(work, throws=KeyError, **CALLBACKS).send()
    stage.worker()
    stage.wait_for(0, 0, 0, 1)
    assert [kind for kind, _ in heard] == ["failure"]


def test_a_deferral_is_nobody_s_business(make: Make) -> None:
    """Deferred twice, then done: on_success only."""
    stage, runs = make(), []
    heard = listen()

    def work() -> str:
        runs.append(1)
        if len(runs) < 3:
            raise reliq.Defer(delay=20)
        return "done"

    dramatiq.actor(work, **CALLBACKS).send()
    stage.worker()
    stage.broker.join("default", timeout=10_000)
    assert heard == [("success", "done")]


def test_message_options_override_those_of_the_actor(make: Make) -> None:
    """on_success, max_retries and backoff of one message."""
    stage, runs = make(), []
    heard = listen()

    def work(fail: bool) -> None:
        runs.append(fail)
        if fail:
            raise ValueError("boo")

    actor = dramatiq.actor(work, max_retries=50, min_backoff=3_600_000, max_backoff=3_600_000)
    actor.send_with_options(args=(False,), on_success="succeeded")
    actor.send_with_options(args=(True,), max_retries=1, on_retry_exhausted="exhausted", **SOON)
    stage.worker()
    stage.wait_for(0, 0, 0, 1)
    eventually(lambda: len(heard) == 2, what="both callbacks")
    assert runs.count(True) == 2
    assert ("success", None) in heard
    assert [kind for kind, _ in heard].count("exhausted") == 1


def test_a_callback_to_an_actor_that_is_not_declared_does_not_hold_its_message_up(make: Make) -> None:
    """Logged; the message ends as it would."""
    stage = make()
    dramatiq.actor(lambda: None, actor_name="work", on_success="nobody").send()

    def fails() -> None:
        raise ValueError("boo")

    dramatiq.actor(fails, max_retries=0, on_retry_exhausted="nobody").send()
    stage.worker()
    stage.wait_for(0, 0, 0, 1)
    assert stage.letters()[0]["reason"] == "retries_exhausted"
