"""Sends while Redis is away: one error type, in time, that says whether the message may have been stored.

On plain Dramatiq each send waits for itself and raises whatever redis-py does; after a timeout the message is stored
all the same.
"""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import redis
from dramatiq.brokers.redis import RedisBroker
from dramatiq.errors import ConnectionClosed

import reliq
from reliq.testing import eventually
from tests.faults.stage import SLACK, Stage, calls, message

SEND_TIMEOUT_S = 3.0
KNOWN_AWAY_S = 0.25

WAYS = ["killed", "frozen", "blackholed", "refused"]


@dataclass(frozen=True)
class Outcome:
    key: int
    took_s: float
    error: str | None

    @property
    def refused_at_once(self) -> bool:
        """Whether it was not even tried."""
        return self.error is not None and "has been away since" in self.error


class Sender:
    """Sends tasks with rising keys and notes what became of each; safe from many threads."""

    def __init__(self, broker: RedisBroker) -> None:
        self._broker = broker
        self._lock = threading.Lock()
        self.outcomes: list[Outcome] = []
        self._next = 0

    def send(self, delay: int | None = None) -> Outcome:
        with self._lock:
            key, self._next = self._next, self._next + 1
        began = time.monotonic()
        error = None
        try:
            self._broker.enqueue(message("work", key), delay=delay)
        except ConnectionClosed as exc:  # any other type fails the test
            error = str(exc)
        outcome = Outcome(key, time.monotonic() - began, error)
        with self._lock:
            self.outcomes.append(outcome)
        return outcome

    def accepted(self) -> set[int]:
        return {outcome.key for outcome in self.outcomes if outcome.error is None}

    def refused(self) -> set[int]:
        """Keys of which the error said that they are not stored."""
        return {o.key for o in self.outcomes if o.error is not None and "not stored" in o.error}


def take_away(stage: Stage, how: str) -> Callable[[], object]:
    """Let Redis go away; returns what brings it back."""
    if how == "killed":
        stage.server.kill()
        return stage.server.start
    if how == "frozen":
        stage.server.pause()
        return stage.server.resume
    if how == "blackholed":
        stage.proxy.blackhole()
    else:
        stage.proxy.refuse()
    return stage.proxy.heal


def hammer(sender: Sender, seconds: float) -> None:
    """Four threads send for so long."""
    until = time.monotonic() + seconds

    def run() -> None:
        while time.monotonic() < until:
            sender.send()
            time.sleep(0.01)  # sleep-ok: leaves the processor to others

    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


@pytest.mark.parametrize("how", WAYS)
def test_sends_fail_alike_and_in_time_while_redis_is_away(
    stage: Stage, figure: Callable[[object], None], how: str
) -> None:
    """faults.md row 18: `ConnectionClosed` within `send_timeout` (3 s) that tells whether it may have been stored; then
    the process's sends fail within 250 ms but for one probe a second; what was accepted is stored, what was called not
    stored is not, and sends work again when Redis is back.

    killed 0.7 s, frozen 2.1 s, blackholed 2.1 s, refused 0.7 s; known away: at most 27 ms.
    """
    stage.server.client().config_set("appendfsync", "always")
    broker = RedisBroker(url=stage.proxy.url(), middleware=[])
    reliq.install(broker)
    sender = Sender(broker)
    for _ in range(5):
        assert sender.send().error is None
    bring_back = take_away(stage, how)
    first = sender.send()
    assert first.error is not None
    assert first.took_s <= SEND_TIMEOUT_S * SLACK
    # A request that was taken and not answered may be executed later; one that was not taken cannot.
    expected = "may have been stored" if how in ("frozen", "blackholed") else "stored"
    assert expected in first.error
    began = time.monotonic()
    hammer(sender, 3)
    away_s = time.monotonic() - began
    hammered = sender.outcomes[6:]
    at_once = [outcome.took_s for outcome in hammered if outcome.refused_at_once]
    probes = [outcome for outcome in hammered if not outcome.refused_at_once]
    assert all(outcome.error for outcome in hammered)
    assert max(at_once) <= KNOWN_AWAY_S * SLACK
    assert 1 <= len(probes) <= away_s + 1
    assert max(outcome.took_s for outcome in probes) <= SEND_TIMEOUT_S * SLACK

    bring_back()
    back_at = time.monotonic()
    eventually(lambda: sender.send().error is None, 5 * SLACK, 0.1, "a send to be accepted again")
    back_s = time.monotonic() - back_at
    assert all(sender.send().error is None for _ in range(5))
    stored = {place.key for place in stage.census()}
    figure(
        f"{how}: first {first.took_s:.2f} s, {len(at_once)} more at most {max(at_once) * 1000:.0f} ms, "
        f"{len(probes)} probes in {away_s:.1f} s, works again after {back_s:.1f} s; accepted {len(sender.accepted())} "
        f"stored {len(sender.accepted() & stored)}, told not stored {len(sender.refused())} "
        f"stored {len(sender.refused() & stored)}"
    )
    assert sender.accepted() <= stored
    assert not sender.refused() & stored


@pytest.mark.parametrize("delay", [None, 1_000])
def test_the_first_send_of_a_process_fails_in_time_too(
    stage: Stage, figure: Callable[[object], None], delay: int | None
) -> None:
    """A process whose very first send, delayed or not, meets a frozen Redis waits no longer than `send_timeout`.

    2.1 s each.
    """
    broker = RedisBroker(url=stage.server.url, middleware=[])
    reliq.install(broker)
    sender = Sender(broker)
    stage.server.pause()
    outcomes = [sender.send(delay) for _ in range(2)]
    stage.server.resume()
    figure(f"delay {delay}: " + ", ".join(f"{outcome.took_s:.2f} s" for outcome in outcomes))
    assert all(outcome.error is not None for outcome in outcomes)
    assert outcomes[0].took_s <= SEND_TIMEOUT_S + 1  # less slack: twice the timeout is the mistake looked for
    assert outcomes[1].took_s <= KNOWN_AWAY_S * SLACK


def test_a_send_whose_reply_is_lost_is_told_of_and_stored_once(stage: Stage, figure: Callable[[object], None]) -> None:
    """Every third reply is lost: the caller is told that the message may be stored; nothing is sent a second time,
    because a worker may have run the first already. The other sends go on.

    100 sends, 33 replies lost: 67 accepted, 33 told that it may be stored, 100 stored once.
    """
    broker = RedisBroker(url=stage.proxy.url(), middleware=[])
    reliq.install(broker)
    sender = Sender(broker)
    rule = stage.proxy.drop_replies(calls("publish"), nth=3, every=True)
    outcomes = [sender.send() for _ in range(100)]
    stored = [place.key for place in stage.census()]
    told = [outcome.error for outcome in outcomes if outcome.error is not None]
    figure(f"{len(sender.accepted())} accepted, {rule.fired} replies lost, {len(told)} told, {len(stored)} stored")
    assert rule.fired == len(told) >= 33
    assert all("may have been stored" in str(error) for error in told)
    assert sorted(stored) == list(range(100))


@pytest.mark.full
@pytest.mark.parametrize("how", WAYS)
def test_plain_dramatiq_raises_what_the_client_raises(stage: Stage, figure: Callable[[object], None], how: str) -> None:
    """The same on plain Dramatiq: raw errors of redis-py; frozen, after 5 s, and the message is stored all the same."""
    broker = RedisBroker(url=stage.proxy.url(), middleware=[])
    broker.enqueue(message("work", 1))
    bring_back = take_away(stage, how)
    began = time.monotonic()
    with pytest.raises(redis.RedisError) as caught:
        broker.enqueue(message("work", 2))
    figure(f"{how}: {type(caught.value).__name__} after {time.monotonic() - began:.1f} s")
    bring_back()
    broker.client.close()
