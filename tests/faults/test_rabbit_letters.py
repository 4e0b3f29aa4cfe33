"""Letters on RabbitMQ are read as often as one likes and lie where they lay; a message's properties go with it.

RabbitMQ shows what a queue holds only by delivering it, and a quorum queue counts deliveries. Real nodes; letters are
made by stock worker processes.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

import dramatiq
import pika
import pytest
from dramatiq.errors import ConnectionClosed

from reliq.testing import eventually
from reliq.transport.rabbitmq.reading import Reading
from reliq.transport.rabbitmq.topology import Ladder
from reliq.transport.settling import outgoing
from tests.faults.apps.s_quorum import stage_with_quorum_queues
from tests.faults.rabbit_census import connected
from tests.faults.rabbit_stage import RabbitStage
from tests.faults.stage import SLACK, Mode, message

READER = "tests.faults.apps.s_reader"
ROOT = Path(__file__).parents[2]

quorum_stage = pytest.fixture(stage_with_quorum_queues)


def count_of(stage: RabbitStage, queue_name: str) -> int:
    """How many messages are ready in a queue, by its own word; 0 where there is none."""
    with connected(stage.server, stage.vhost) as connection:
        try:
            return int(connection.channel().queue_declare(queue_name, passive=True).method.message_count)
        except pika.exceptions.ChannelClosedByBroker:
            return 0


def make_letters(stage: RabbitStage, number: int) -> list[int]:
    """So many tasks fail for good. Returns their keys once all are letters and the worker has gone."""
    keys = stage.send("doomed", range(number))
    group = stage.workers(direct=True)
    eventually(lambda: count_of(stage, "default.dead") == number, 40 * SLACK, 0.1, "the letters")
    group.terminate()
    group.wait(20)
    return keys


@contextmanager
def reader(stage: RabbitStage, how: str) -> Iterator[subprocess.Popen[str]]:
    """A process that reads letters; killed -9 at the end."""
    env = {**os.environ, "PYTHONPATH": str(ROOT), **stage.environment(direct=True)}
    process = subprocess.Popen([sys.executable, "-m", READER, how], env=env, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def read_lines(process: subprocess.Popen[str], number: int) -> None:
    """Wait until it has told of so many letters."""
    assert process.stdout is not None
    for _ in range(number):
        assert process.stdout.readline(), "the reader has ended"


# -- read often ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("number", "times"), [(60, 25), pytest.param(300, 50, marks=pytest.mark.full)])
def test_letters_of_a_quorum_queue_are_listed_again_and_again(
    quorum_stage: RabbitStage, figure: Callable[[object], None], number: int, times: int
) -> None:
    """60 or 300 letters in a quorum `.dead`, listed 25 or 50 times: all of them each time, in one and the same order,
    by time of death; and all lie there afterwards."""
    stage = quorum_stage
    make_letters(stage, number)
    first = stage.letters()
    listings = {tuple(letter["id"] for letter in first)}
    for _ in range(times - 1):
        listings.add(tuple(letter["id"] for letter in stage.letters()))
    left = count_of(stage, "default.dead")
    kinds = {queue["name"]: queue["type"] for queue in stage.server.queues(stage.vhost)}
    figure(f"letters {number}, listed {times} times, orders {len(listings)}, left {left}, lost {number - left}")
    assert kinds["default.dead"] == "quorum"
    assert {letter["args"][0] for letter in first} == set(range(number))
    assert [letter["died_at"] for letter in first] == sorted(letter["died_at"] for letter in first)
    assert len(listings) == 1
    assert left == number


@pytest.mark.full
def test_a_quorum_queue_with_a_delivery_limit_loses_what_is_read_often(
    quorum_stage: RabbitStage, figure: Callable[[object], None]
) -> None:
    """What RabbitMQ 4 does by default, here by a policy: plain Dramatiq's dead letter queue with a delivery limit of 20
    loses 3 of 3 after 21 looks. It is why `.dead` has none."""
    stage = quorum_stage
    stage.mode = "plain"
    stage.server.set_policy(stage.vhost, "as-on-4", r"\.XQ$", {"delivery-limit": 20})
    stage.send("doomed", range(3))
    stage.workers(direct=True)
    eventually(lambda: count_of(stage, "default.XQ") == 3, 10 * SLACK, what="the letters")
    for _ in range(21):
        with connected(stage.server, stage.vhost) as connection:
            channel = connection.channel()
            while channel.basic_get("default.XQ")[0] is not None:
                pass
    eventually(lambda: count_of(stage, "default.XQ") == 0, 10 * SLACK, what="the loss")
    figure(f"letters 3, looked at 21 times, left {count_of(stage, 'default.XQ')}")


@pytest.mark.parametrize("kind", ["classic", "quorum"])
def test_a_reading_that_is_broken_off_changes_no_order(
    rabbit_stage: RabbitStage, figure: Callable[[object], None], kind: str
) -> None:
    """2,500 messages, read by one who goes after the first, then by one who goes after 900, while further ones come:
    all are there, in their order. (A quorum queue gives 2,000 to who asks for no number.)"""
    stage = rabbit_stage
    parameters = pika.URLParameters(stage.server.url(stage.vhost))
    with connected(stage.server, stage.vhost) as connection:
        channel = connection.channel()
        channel.confirm_delivery()
        channel.queue_declare("letters", durable=True, arguments={"x-queue-type": kind})
        numbers = iter(range(2_502))
        for number in islice(numbers, 2_500):
            channel.basic_publish("", "letters", str(number).encode())
        for look in (1, 900):
            with Reading(parameters, "letters") as reading:
                assert len(list(islice(reading.arrivals(), look))) == look
                channel.basic_publish("", "letters", str(next(numbers)).encode())
    eventually(lambda: count_of(stage, "letters") == 2_502, 10 * SLACK, what="all to be back")
    with Reading(parameters, "letters") as reading:
        found = [int(arrival.body) for arrival in reading.arrivals()]
    misplaced = sum(number != place for place, number in enumerate(found))
    figure(f"{kind}: messages 2502, readings broken off 2, found {len(found)}, misplaced {misplaced}")
    assert found == list(range(2_502))


def test_two_readers_at_once_are_told_and_a_killed_one_loses_nothing(
    quorum_stage: RabbitStage, figure: Callable[[object], None]
) -> None:
    """While one process reads 120 letters, a second is told that it does; killed -9 half way, all 120 are there at
    once, in their order."""
    stage = quorum_stage
    make_letters(stage, 120)
    before = [letter["id"] for letter in stage.letters()]
    with reader(stage, "look") as process:
        read_lines(process, 60)
        with pytest.raises(ConnectionClosed, match="'default.dead' is being read by somebody else"):
            stage.letters()
    eventually(lambda: count_of(stage, "default.dead") == 120, 10 * SLACK, what="the broker to have them back")
    after = [letter["id"] for letter in stage.letters()]
    figure(f"letters 120, a reader killed half way, left {len(after)}, lost {len(set(before) - set(after))}")
    assert after == before


def test_a_replay_killed_half_way_loses_nothing(rabbit_stage: RabbitStage, figure: Callable[[object], None]) -> None:
    """A process that replays 150 letters is killed -9 after 50: each message is back in its queue or still a letter,
    at most one is both; the rest can be replayed at once."""
    stage = rabbit_stage
    keys = make_letters(stage, 150)
    with reader(stage, "replay") as process:
        read_lines(process, 50)
    eventually(lambda: count_of(stage, "default.dead") + count_of(stage, "default") >= 150, 10 * SLACK, what="all")
    places = stage.census().places
    back = {place.key for place in places if place.state == "ready"}
    dead = {place.key for place in places if place.state == "dead"}
    lost = set(keys) - back - dead
    figure(f"letters 150, replayed {len(back)}, still letters {len(dead)}, both {len(back & dead)}, lost {len(lost)}")
    assert not lost
    assert len(back) >= 50
    assert len(back & dead) <= 1
    assert len(places) == len(back) + len(dead)


# -- properties ------------------------------------------------------------------------------------------------------

#: What a foreign producer writes beside a body.
FOREIGN: dict[str, Any] = {
    "content_type": "application/vnd.shop+json",
    "content_encoding": "utf-8",
    "headers": {"tenant": "acme", "depth": 3, "tags": ["a", "b"]},
    "priority": 7,
    "correlation_id": "order-17",
    "reply_to": "answers",
    "message_id": "foreign-1",
    "timestamp": 1_700_000_000,
    "type": "order.placed",
    "app_id": "shop",
}


@pytest.mark.parametrize("mode", [pytest.param("plain", marks=pytest.mark.full), "reliq"])
def test_a_foreign_producers_properties_survive_retries_and_lie_in_the_letter(
    rabbit_stage: RabbitStage, figure: Callable[[object], None], mode: Mode
) -> None:
    """A message with all properties that AMQP has fails, is retried twice and dies: they are with it on the ladder each
    time and in the letter, what the broker writes about its way (`x-death`) is not sent again. Plain: the first retry
    has none of them."""
    stage = rabbit_stage
    stage.mode = mode
    stage.producer.declare_queue("default", ensure=True)
    fields = message("flaky", 1, times=9).asdict() | {"options": {"max_retries": 2}}
    stage.workers(env={"APP_MIN_BACKOFF": "1500", "APP_MAX_BACKOFF": "1500"})
    with connected(stage.server, stage.vhost) as connection:
        channel = connection.channel()
        channel.confirm_delivery()
        properties = pika.BasicProperties(delivery_mode=1, **FOREIGN)
        channel.basic_publish("", "default", json.dumps(fields).encode(), properties, mandatory=True)
    if mode == "plain":
        eventually(lambda: "failure 1 of" in stage.groups[0].log(), 10 * SLACK, what="the first failure")
        eventually(lambda: stage.unacked("default.DQ") == 1, 10 * SLACK, what="its retry")
        stage.kill_workers()
        kept = kept_of(at(stage, "default.DQ"))
        figure(f"kept by the first retry: {kept}")
        assert kept == []
        return
    ways = []
    for attempt in (1, 2):
        assert stage.log.wait_for("fail", attempt, 10 * SLACK, distinct=False)
        ways.append(eventually(lambda: on_a_level(stage), 10 * SLACK, what="the retry on the ladder"))
    eventually(lambda: count_of(stage, "default.dead") == 1, 10 * SLACK, what="the letter")
    letter = at(stage, "default.dead")
    figure(
        f"kept by 2 retries and the letter: {len(kept_of(ways[0]))}, {len(kept_of(ways[1]))}, {len(kept_of(letter))}"
    )
    for each in (*ways, letter):
        assert kept_of(each) == sorted(FOREIGN)
        assert each.delivery_mode == 2
        assert not [name for name in each.headers if name.startswith(("x-death", "x-first-death", "x-last-death"))]
    assert [name for name in letter.headers if name not in FOREIGN["headers"] and not name.startswith("x-reliq-")] == []
    assert letter.headers["x-reliq-reason"] == "retries_exhausted"


def kept_of(properties: Any) -> list[str]:
    """Which of the foreign producer's properties are there as they were; headers may have others beside them."""
    found = {name: getattr(properties, name) for name in FOREIGN}
    headers = found["headers"] or {}
    found["headers"] = {name: headers[name] for name in FOREIGN["headers"] if name in headers}
    return sorted(name for name, value in found.items() if value == FOREIGN[name])


def at(stage: RabbitStage, queue_name: str) -> Any:
    """The properties of the first message of a queue, which stays where it is; None when there is none."""
    with connected(stage.server, stage.vhost) as connection:
        return connection.channel().basic_get(queue_name)[1]


def on_a_level(stage: RabbitStage) -> Any:
    """The properties of a message that has been put on the ladder and has not gone down a level, or None."""
    ladder = Ladder("quorum")
    return at(stage, ladder.route(1_500, "default")[0])


# -- larger than the broker takes ------------------------------------------------------------------------------------

LIMIT = 65_536


@pytest.fixture
def small_bodies(mortal_rabbit_stage: RabbitStage) -> Iterator[RabbitStage]:
    """A stage on a node that takes bodies of 64 KiB and no larger."""
    node = mortal_rabbit_stage.node
    # RabbitMQ 3 looks at the one at each message, RabbitMQ 4 at the other.
    limit = "application:set_env(rabbit, max_message_size, {0}), persistent_term:put(max_message_size, {0})."
    node.ctl("eval", limit.format(LIMIT))
    yield mortal_rabbit_stage
    node.ctl("eval", limit.format(16 * 1024 * 1024))


def padded(actor: str, key: int, size: int, **options: Any) -> dramatiq.Message[Any]:
    """A message whose body has so many bytes."""
    bare = message(actor, key, pad="").copy(options=options)
    return bare.copy(kwargs={"pad": "x" * (size - len(bare.encode()))})


@pytest.mark.parametrize("mode", [pytest.param("plain", marks=pytest.mark.full), "reliq"])
def test_a_retry_that_the_broker_finds_too_large_sheds_its_record_or_becomes_a_letter(
    small_bodies: RabbitStage, figure: Callable[[object], None], mode: Mode
) -> None:
    """The broker takes 64 KiB. Tasks whose body leaves 2,000, 400 and 150 bytes fail once: they run again without
    traceback, or without the log of attempts. One that leaves 5 bytes cannot even carry its count: a letter
    `too_large`. One that leaves 5 bytes and fails for good is a letter too; 50 neighbours that fail once are done.
    Plain: what has no room for a traceback is lost, at times with neighbours."""
    stage = small_bodies
    stage.mode = mode
    sizes = {1: LIMIT - 2_000, 2: LIMIT - 400, 3: LIMIT - 150, 4: LIMIT - 5}
    for key, size in sizes.items():
        stage.producer.enqueue(padded("large", key, size))
    stage.producer.enqueue(padded("large_and_doomed", 5, LIMIT - 5))
    neighbours = stage.send("flaky", range(100, 150))
    keys = [*sizes, 5, *neighbours]
    stage.workers("tests.faults.apps.s_tasks", direct=True)
    if mode == "plain":
        counted = stage.give_up(keys, quiet=6, timeout=60)
        figure(f"{counted}; lost {sorted(counted.which('lost'))}")
        assert counted.which("lost") >= {2, 3, 4}
        return
    eventually(lambda: stage.done() == 53, 20 * SLACK, what="all that can run again")
    stage.wait_idle(20 * SLACK)
    counted = stage.count(keys)
    reasons = {letter["args"][0]: letter["reason"] for letter in stage.letters()}
    figure(f"{counted}; letters {reasons}")
    assert (counted.done, counted.dead, counted.lost) == (53, 2, 0)
    assert counted.which("dead") == {4, 5}
    assert reasons == {4: "too_large", 5: "retries_exhausted"}


def test_a_send_that_the_broker_finds_too_large_harms_no_other(
    small_bodies: RabbitStage, figure: Callable[[object], None]
) -> None:
    """A body of 80 kB alone, and one among 400 sends of four threads in a batch of 300: it is refused with both sizes,
    what follows is not concerned. What was on its way before it when the broker closed the channel may be told "it may
    have been stored", never "not stored"; all 700 have been, and run."""
    stage = small_bodies
    transport = stage.transport
    with pytest.raises(ConnectionClosed, match=rf"not stored.*80000.*{LIMIT}"):
        stage.producer.enqueue(padded("work", 0, 80_000))
    batch = [outgoing(transport, message("work", key), None) for key in range(1_000, 1_300)]
    batch.insert(150, outgoing(transport, padded("work", 0, 80_000), None))
    told: list[Exception] = []

    def send(first: int) -> None:
        for key in range(first, first + 100):
            try:
                stage.producer.enqueue(message("work", key))
            except ConnectionClosed as exc:
                told.append(exc)

    threads = [threading.Thread(target=send, args=(first,)) for first in (100, 200, 300, 400)]
    for thread in threads:
        thread.start()
    outcomes = transport.publish_many(batch)
    for thread in threads:
        thread.join()
    stage.workers(direct=True)
    counted = stage.finish([*range(100, 500), *range(1_000, 1_300)], 20 * SLACK)
    unsure = [*told, *filter(None, outcomes[:150])]
    figure(f"{counted}; refused {int(outcomes[150] is not None)}, good sends: not sure of {len(unsure)}, refused 0")
    assert re.search(rf"not stored.*80000.*{LIMIT}", str(outcomes[150]))
    assert outcomes[151:] == [None] * 150
    assert all("it may have been stored" in str(each) for each in unsure)
    assert (counted.done, counted.lost) == (700, 0)
    assert counted.runs <= 1_400


def test_headers_that_fill_a_frame_keep_no_message_from_its_end(
    rabbit_stage: RabbitStage, figure: Callable[[object], None]
) -> None:
    """A foreign producer's headers leave 100 bytes of the 128 KiB that a frame has, too few for ours: one such message
    fails once and is done, one that fails for good is a letter; 20 neighbours that fail once are done, and nobody's
    line is lost over it."""
    stage = rabbit_stage
    stage.producer.declare_queue("default", ensure=True)
    bodies = [message("flaky", 1).encode(), message("doomed", 2).encode()]
    with connected(stage.server, stage.vhost) as connection:
        channel = connection.channel()
        channel.confirm_delivery()
        properties = pika.BasicProperties(delivery_mode=2, headers={"tenant": "acme", "blob": "x" * 130_900})
        for body in bodies:
            channel.basic_publish("", "default", body, properties, mandatory=True)
    neighbours = stage.send("flaky", range(100, 120))
    group = stage.workers(direct=True)
    counted = stage.finish([1, *neighbours], 10 * SLACK)
    eventually(lambda: count_of(stage, "default.dead") == 1, 10 * SLACK, what="the letter")
    (letter,) = stage.letters()
    figure(f"{counted}; letters 1, lines lost {group.log().count('connection to RabbitMQ is lost')}")
    assert (counted.done, counted.lost) == (21, 0)
    assert (letter["args"], letter["reason"], letter["error"]) == ([2], "retries_exhausted", "ValueError")
    assert "connection to RabbitMQ is lost" not in group.log()
