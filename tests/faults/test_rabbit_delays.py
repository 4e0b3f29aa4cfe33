"""Delays on RabbitMQ wait in the broker, side by side, run when they are due, and outlive queue, worker and broker.

Real nodes and stock worker processes. Lateness is a task's start minus the time at which its send began, minus its
delay: one clock, the machine's.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable
from typing import Any

import pytest

from reliq.testing import eventually
from reliq.transport.rabbitmq.topology import LONGEST_MS, Ladder
from tests.faults.apps.s_quorum import stage_with_quorum_queues
from tests.faults.rabbit_census import connected
from tests.faults.rabbit_stage import RabbitStage
from tests.faults.stage import SLACK, Mode, message, stranded

HOUR_MS = 3_600_000
DAY_MS = 24 * HOUR_MS
LADDER = Ladder("quorum")

quorum_stage = pytest.fixture(stage_with_quorum_queues)


def started(stage: RabbitStage) -> dict[Any, float]:
    """Key -> when its last run began, Unix s."""
    return {entry.key: entry.at for entry in stage.log.entries() if entry.event == "start"}


def lateness(stage: RabbitStage, due: dict[int, float]) -> list[float]:
    """Seconds from due time to start, of all keys that have started, the least late first."""
    begun = started(stage)
    return sorted(begun[key] - at for key, at in due.items() if key in begun)


def percentile(ordered: list[float], share: float) -> float:
    """The value below which `share` of the values lie."""
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def held_by_workers(stage: RabbitStage) -> int:
    """Unacked messages, of all queues."""
    return sum(unacked for _, unacked in stage.busy().values())


def on_the_ladder(stage: RabbitStage) -> int:
    """Messages that wait on a level. At most 0.25 s old."""
    return sum(ready for name, (ready, _) in stage.busy().items() if name.startswith("reliq.delay."))


def dead(stage: RabbitStage) -> int:
    """Letters of `default`. At most 0.25 s old."""
    queues = {queue["name"]: queue["messages_ready"] for queue in stage.server.queues(stage.vhost)}
    return int(queues.get("default.dead", 0))


# -- many ------------------------------------------------------------------------------------------------------------


def test_ten_thousand_far_delays_hold_up_no_near_one(
    rabbit_stage: RabbitStage, figure: Callable[[object], None]
) -> None:
    """10,000 messages are due in an hour, then 200 in 2 s: 200 start within 1 s of their due time, none early, and the
    10,000 lie in the broker, none unacked by a worker."""
    stage = rabbit_stage
    stage.workers()
    stage.send("work", range(1_000, 11_000), delay=HOUR_MS)
    sent_at = time.time()
    near = stage.send("work", range(200), delay=2_000)
    accepted_at = time.time()
    stage.log.wait_for("end", 200, 20 * SLACK)
    late = lateness(stage, dict.fromkeys(near, sent_at + 2))
    eventually(lambda: not held_by_workers(stage), 10 * SLACK, what="the acks")
    waiting = on_the_ladder(stage)
    worst = late[-1] - (accepted_at - sent_at)
    figure(f"near {len(late)} of 200, {late[0]:.2f} to {worst:.2f} s late; far {waiting} in the broker, unacked 0")
    assert len(late) == 200
    assert late[0] >= 0
    assert worst < 1.0 * SLACK
    assert waiting == 10_000


@pytest.mark.full
def test_plain_dramatiq_runs_no_near_delay_behind_ten_thousand_far_ones(
    rabbit_stage: RabbitStage, figure: Callable[[object], None]
) -> None:
    """The same on plain Dramatiq with 8 threads: its worker holds 8,000 far delays unacked and sees no near one: 0 of
    200 have run 10 s after they were due."""
    stage = rabbit_stage
    stage.mode = "plain"
    stage.send("work", range(1_000, 11_000), delay=HOUR_MS)
    stage.send("work", range(200), delay=2_000)
    stage.workers(threads=8)
    stage.log.wait_for("end", 1, 12)
    unacked = stage.unacked("default.DQ")
    figure(f"near {stage.done()} of 200 run; unacked {unacked}")
    assert (stage.done(), unacked) == (0, 8_000)


# -- exact -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("number", "longest_ms"), [pytest.param(200, 5_000), pytest.param(500, 20_000, marks=pytest.mark.full)]
)
def test_a_delay_is_never_early_and_hardly_late(
    mortal_rabbit_stage: RabbitStage, figure: Callable[[object], None], number: int, longest_ms: int
) -> None:
    """Delays of 0.3 s up to 5 or 20 s on a broker and a worker of their own: all run, none early, the p99 at most 0.5 s
    late where the machine is idle. How idle it is tasks without a delay tell, sent meanwhile: they pass one queue, a
    delay up to seven."""
    stage = mortal_rabbit_stage
    stage.workers(direct=True)
    due = {}
    for key in range(number):
        delay_ms = 300 + key * (longest_ms - 300) // (number - 1)
        due[key] = time.time() + delay_ms / 1000
        stage.producer.enqueue(message("work", key), delay=delay_ms)
    at_once = {}
    for key in range(number, 2 * number):
        if time.time() > max(due.values()):
            break
        at_once[key] = time.time()
        stage.producer.enqueue(message("work", key))
        time.sleep(0.1)  # sleep-ok: the rhythm of the tasks without a delay
    counted = stage.finish([*due, *at_once], (longest_ms / 1000 + 5) * SLACK)
    late, at_once_p99 = lateness(stage, due), percentile(lateness(stage, at_once), 0.99)
    p50, p99 = percentile(late, 0.5), percentile(late, 0.99)
    figure(
        f"{counted}; {late[0] * 1000:.0f} ms late at least, p50 {p50 * 1000:.0f}, p99 {p99 * 1000:.0f} ms; p99 of "
        f"{len(at_once)} without a delay {at_once_p99 * 1000:.0f} ms"
    )
    assert (counted.done, counted.runs) == (number + len(at_once), number + len(at_once))
    assert late[0] >= 0
    assert p99 <= 0.5 * SLACK + 6 * at_once_p99


# -- longer than the ladder, and of others ---------------------------------------------------------------------------


def test_a_delay_beyond_the_ladder_goes_up_again_when_it_comes_down(
    rabbit_stage: RabbitStage, figure: Callable[[object], None]
) -> None:
    """A message is due in 100 days, the ladder holds 48.5: it waits at the top. Taken from there and put where the
    ladder would put it after 48.5 days, it goes up to the top again; one whose last 2 s are left when it comes down
    goes up for 2 s and runs, not early; none runs before, none is held by a worker."""
    stage = rabbit_stage
    stage.workers()
    stage.send("work", [1], delay=100 * DAY_MS)
    hops = 0
    for _ in range(2):
        eventually(lambda: top_of_the_ladder(stage) == 1, 10 * SLACK, what="the message at the top")
        come_down(stage)
        hops += 1
    eventually(lambda: top_of_the_ladder(stage) == 1, 10 * SLACK, what="the message at the top again")
    due = time.time() + 2
    come_down(stage, eta_ms=int(due * 1000))
    assert stage.log.wait_for("end", 1, 10 * SLACK)
    stage.wait_idle(10 * SLACK)
    counted = stage.count([1])
    late = lateness(stage, {1: due})[0]
    figure(f"{counted}; {hops + 1} times up again, {late:.2f} s late at the end")
    assert (counted.done, counted.runs, counted.lost) == (1, 1, 0)
    assert 0 <= late < 1.0 * SLACK


def top_of_the_ladder(stage: RabbitStage) -> int:
    """How many messages the longest level holds."""
    with connected(stage.server, stage.vhost) as connection:
        return int(connection.channel().queue_declare(LADDER.levels()[0], passive=True).method.message_count)


def come_down(stage: RabbitStage, eta_ms: int | None = None) -> None:
    """Do to the message at the top what 48.5 days on the ladder do: the exchange below has it as it is. `eta_ms`
    moves its due time."""
    with connected(stage.server, stage.vhost) as connection:
        channel = connection.channel()
        method, properties, body = channel.basic_get(LADDER.levels()[0])
        fields = json.loads(body)
        assert fields["options"]["eta"] > (time.time() + LONGEST_MS / 1000) * 1000
        if eta_ms is not None:
            fields["options"]["eta"] = eta_ms
        channel.confirm_delivery()
        channel.basic_publish(LADDER.out, method.routing_key, json.dumps(fields).encode(), properties, mandatory=True)
        channel.basic_ack(method.delivery_tag)


def test_stock_delays_are_moved_onto_the_ladder_and_run_at_their_time(
    rabbit_stage: RabbitStage, figure: Callable[[object], None]
) -> None:
    """20 delays of a stock producer and 20 retries of a stock worker, killed with them in its memory, are in
    `default.DQ`: a reliq worker moves them to the ladder at once and holds none; 40 done, none early."""
    stage = rabbit_stage
    env = {"APP_MIN_BACKOFF": "12000", "APP_MAX_BACKOFF": "12000"}  # plain Dramatiq: 6 to 12 s
    stage.mode, stage.confirm = "plain", True
    stage.send("flaky", range(20))
    stage.send("work", range(20, 40), delay=8_000)
    stock = stage.workers(env=env)
    assert stage.log.wait_for("fail", 20, 10 * SLACK)
    eventually(lambda: stage.busy() == {"default.DQ": (0, 40)}, 10 * SLACK, what="all delays in the stock worker")
    stock.kill()
    eventually(lambda: stage.busy() == {"default.DQ": (40, 0)}, 10 * SLACK, what="the broker to have them back")
    etas = {int(place.key): json.loads(place.body)["options"]["eta"] / 1000 for place in stage.census()}
    stage.workers(mode="reliq", env=env)
    eventually(lambda: "default.DQ" not in stage.busy(), 10 * SLACK, what="the stock queue to be empty")
    moved_at = time.time()
    ahead = sum(at > moved_at for at in etas.values())
    assert stage.log.wait_for("end", 40, 20 * SLACK)
    stage.wait_idle(10 * SLACK)
    counted = stage.count(range(40))
    early = [key for key, at in etas.items() if started(stage)[key] < at]
    late = lateness(stage, {key: max(at, moved_at) for key, at in etas.items()})[-1]
    figure(f"{counted}; moved before they were due {ahead}, early {len(early)}, at most {late:.2f} s late")
    assert (counted.done, counted.lost, stranded(counted), counted.twice, early) == (40, 0, 0, 0, [])
    assert ahead > 0
    assert late < 2.0 * SLACK


# -- through crashes and deletions -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "delays_s",
    [pytest.param((2, 8, 20)), pytest.param((5, 20, 60), marks=[pytest.mark.full, pytest.mark.timeout(300)])],
)
def test_delays_outlive_the_broker(
    mortal_rabbit_stage: RabbitStage, figure: Callable[[object], None], delays_s: tuple[int, ...]
) -> None:
    """10 delays of each length and 10 retries wait, the broker is killed -9 and started again: all run at their time,
    or when the broker is back; none early, none lost, none twice. (A level's clock runs on while the broker is away,
    the next one's does not: none is later than its due time and the outage.)"""
    stage = mortal_rabbit_stage
    backoff = str(delays_s[1] * 1000)
    stage.workers(direct=True, env={"APP_MIN_BACKOFF": backoff, "APP_MAX_BACKOFF": backoff})
    retried = stage.send("flaky", range(10))
    assert stage.log.wait_for("fail", 10, 10 * SLACK)
    due = {}
    for index, delay_s in enumerate(delays_s):
        sent_at = time.time()
        due.update(dict.fromkeys(stage.send("work", ten(index + 1), delay=delay_s * 1000), sent_at + delay_s))
    eventually(lambda: on_the_ladder(stage) == 10 + len(due), 5 * SLACK, what="all to wait in the broker")
    failed = {entry.key: entry.at for entry in stage.log.entries() if entry.event == "fail"}
    due.update({key: failed[key] + delays_s[1] for key in retried})
    killed_at = time.time()
    stage.node.restart()
    back_at = time.time()
    counted = stage.finish(list(due), (max(delays_s) + 10) * SLACK)
    begun = started(stage)
    early = [key for key, at in due.items() if begun[key] < at]
    late = lateness(stage, {key: max(at, back_at) for key, at in due.items()})
    in_outage = sum(at < back_at for at in due.values())
    figure(
        f"{counted}; away {back_at - killed_at:.0f} s, due meanwhile {in_outage}, early {len(early)}, at most "
        f"{late[-1]:.1f} s late"
    )
    assert (counted.done, counted.lost, stranded(counted), counted.twice) == (len(due), 0, 0, 0)
    assert early == []
    assert late[-1] < 2.0 * SLACK
    assert lateness(stage, due)[-1] < back_at - killed_at + 2.0 * SLACK


def ten(number: int) -> Iterable[int]:
    """The number-th ten keys."""
    return range(number * 10, number * 10 + 10)


@pytest.mark.parametrize("mode", [pytest.param("plain", marks=pytest.mark.full), "reliq"])
def test_delays_outlive_their_queue(rabbit_stage: RabbitStage, figure: Callable[[object], None], mode: Mode) -> None:
    """200 delays and, with reliq, 20 retries wait while a worker runs; the queue is deleted a second before the first
    are due: all run. Plain: the worker declares the queue again 3 s later; what came due until then is lost."""
    stage = rabbit_stage
    stage.mode = mode
    stage.workers(env={"APP_MIN_BACKOFF": "6000", "APP_MAX_BACKOFF": "6000"})
    retried = stage.send("flaky", range(1_000, 1_020)) if mode == "reliq" else []
    assert stage.log.wait_for("fail", len(retried), 10 * SLACK)
    sent_at = time.time()
    keys = stage.send("work", range(200), delay=3_000)
    time.sleep(max(0.0, sent_at + 2 - time.time()))  # sleep-ok: until a second before they are due
    stage.server.delete_queue(stage.vhost, "default")
    if mode == "plain":
        counted = stage.give_up(keys, quiet=6, timeout=30)
        figure(str(counted))
        assert counted.lost == 200
        return
    counted = stage.finish([*keys, *retried], 10 * SLACK)
    figure(str(counted))
    assert (counted.done, counted.lost, stranded(counted), counted.twice) == (220, 0, 0, 0)


@pytest.mark.parametrize("kind", ["classic", pytest.param("quorum", marks=pytest.mark.full)])
def test_delays_that_come_down_without_their_queue_are_caught_and_given_back(
    request: pytest.FixtureRequest, figure: Callable[[object], None], kind: str
) -> None:
    """10 retries and 200 delays wait, no worker runs, the queue is deleted, declared again by plain Dramatiq, which
    binds it to no ladder, and they come due: all are in `reliq.unrouted.q`; a worker that starts runs them."""
    stage = request.getfixturevalue("rabbit_stage" if kind == "classic" else "quorum_stage")
    env = {"APP_MIN_BACKOFF": "6000", "APP_MAX_BACKOFF": "6000"}
    first = stage.workers(env=env)
    retried = stage.send("flaky", range(1_000, 1_010))
    eventually(lambda: on_the_ladder(stage) == 10, 5 * SLACK, what="the retries to wait in the broker")
    keys = stage.send("work", range(200), delay=4_000)
    first.kill()
    stage.server.delete_queue(stage.vhost, "default")
    plain = stage.broker(mode="plain")
    plain.declare_queue("default", ensure=True)
    eventually(lambda: stage.busy() == {LADDER.unrouted: (210, 0)}, 10 * SLACK, what="all to be caught")
    stage.workers(env=env)
    counted = stage.finish([*keys, *retried], 20 * SLACK)
    figure(f"{counted}; caught 210")
    assert (counted.done, counted.lost, stranded(counted), counted.twice) == (210, 0, 0, 0)


def test_letters_whose_queue_is_gone_are_caught_and_given_back(
    rabbit_stage: RabbitStage, figure: Callable[[object], None]
) -> None:
    """30 tasks die after `default.dead` was deleted under a worker that had declared it: 30 letters, 0 lost."""
    stage = rabbit_stage
    stage.workers()
    stage.send("doomed", [0])
    eventually(lambda: dead(stage) == 1, 10 * SLACK, what="the first letter")
    stage.server.delete_queue(stage.vhost, "default.dead")
    keys = stage.send("doomed", range(1, 31))
    eventually(lambda: dead(stage) == 30, 10 * SLACK, what="the letters")
    stage.wait_idle(10 * SLACK)
    counted = stage.count(keys)
    figure(str(counted))
    assert (counted.dead, counted.lost) == (30, 0)
