"""Queues on RabbitMQ that plain Dramatiq and reliq share, and users and vhosts that are not as they should be.

In-process workers, each application in a vhost of its own on the shared node. A stock queue's arguments are those that
plain Dramatiq gives, whoever declares first; what reliq may not declare is named, with the right that is missing, and
nothing is lost over it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
from dramatiq.brokers.rabbitmq import RabbitmqBroker
from dramatiq.errors import ConnectionClosed

from reliq.testing import RabbitmqApi, eventually
from reliq.wiring import transport_of
from tests.faults.rabbit_applications import Application
from tests.faults.rabbit_census import connected
from tests.faults.stage import SLACK, message

WEEK_MS = 604_800_000


class QuorumBroker(RabbitmqBroker):
    """An application's own subclass, whose queues are quorum queues."""

    def _build_queue_arguments(self, queue_name: str) -> dict[str, Any]:
        return {**super()._build_queue_arguments(queue_name), "x-queue-type": "quorum"}


@pytest.fixture
def user(shared_rabbitmq: RabbitmqApi, vhost: str) -> Iterator[Callable[..., str]]:
    """Makes this test's user, or changes its rights: `name:password` for a URL."""
    name = vhost.replace("test", "user")

    def make(**rights: str) -> str:
        shared_rabbitmq.add_user(name, "secret", vhost, **rights)
        return f"{name}:secret"

    yield make
    shared_rabbitmq.api("DELETE", "users", name)


def arguments(server: RabbitmqApi, vhost: str) -> dict[str, dict[str, Any]]:
    """Stock queue -> its arguments. RabbitMQ 4 says of each classic queue that it is one."""
    return {
        queue["name"]: {key: value for key, value in queue["arguments"].items() if value != "classic"}
        for queue in server.queues(vhost)
        if not queue["name"].startswith("reliq.") and not queue["name"].endswith(".dead")
    }


def ready(server: RabbitmqApi, vhost: str) -> dict[str, int]:
    """Queue -> how many messages it holds, of those that hold any."""
    counts = {
        queue["name"]: queue["messages_ready"] + queue["messages_unacknowledged"] for queue in server.queues(vhost)
    }
    return {name: count for name, count in counts.items() if count}


def letters(app: Application) -> list[tuple[int, str]]:
    """(key, reason) of the letters of `default`."""
    transport = transport_of(app.broker)
    assert transport is not None
    found = [letter.as_dict() for letter in transport.dead_letters("default")]
    return [(letter["args"][0], letter["reason"]) for letter in found]


# -- the same queues, whoever is first -------------------------------------------------------------------------------

KINDS: dict[str, tuple[int, type[RabbitmqBroker], dict[str, Any]]] = {
    "stock": (20, RabbitmqBroker, {}),
    "priorities": (4, RabbitmqBroker, {"max_priority": 10}),
    # Without confirms plain Dramatiq may lose what it sends to a quorum queue that it has just declared.
    "quorum-subclass": (2, QuorumBroker, {"confirm_delivery": True}),
    "confirming": (4, RabbitmqBroker, {"confirm_delivery": True}),
}
#: Of the others this in `make test`: another type.
SHORT = {("plain", "quorum-subclass")}
ORDERS = [
    pytest.param(kind, first, marks=() if kind == "stock" or (first, kind) in SHORT else pytest.mark.full)
    for kind in KINDS
    for first in ("plain", "reliq")
]


@pytest.mark.parametrize(("kind", "first"), ORDERS)
def test_queues_declared_by_either_first_stay_as_plain_dramatiq_declares_them(
    shared_rabbitmq: RabbitmqApi,
    vhost: str,
    application: Callable[..., Application],
    figure: Callable[[object], None],
    caplog: pytest.LogCaptureFixture,
    kind: str,
    first: str,
) -> None:
    """Workers of both kinds on the same queues, one after the other, and then a sender of the first kind: every task
    runs, with reliq delays and letters too; no 406; the arguments of q, q.DQ and q.XQ are plain Dramatiq's at each
    step."""
    number, cls, options = KINDS[kind]
    queues = [f"q{index}" for index in range(number)]
    stock = cls(url="amqp://", **options)
    expected = {f"{name}{suffix}": stock._build_queue_arguments(name) for name in queues for suffix in ("", ".DQ")}
    expected |= {f"{name}.XQ": {"x-message-ttl": WEEK_MS} for name in queues}
    sent = ran = 0
    second = "reliq" if first == "plain" else "plain"
    for mode in (first, second):
        app = application(mode, queues, cls=cls, **options)
        with app.working():
            for key, queue in enumerate(queues):
                app.send("work", queue, key)
                app.send("work", queue, key + 1_000, delay=20)
            app.send("doomed", queues[0], 0)
            eventually(partial(app.has_run, 2 * number), 10 * SLACK, what="every queue's tasks")
        sent, ran = sent + 2 * number, ran + len(set(app.ran))
        assert arguments(shared_rabbitmq, vhost) == expected
    again = application(first, queues, cls=cls, **options)
    for queue in queues:
        again.send("work", queue, 0)
    assert arguments(shared_rabbitmq, vhost) == expected
    refused = [record.getMessage() for record in caplog.records if "PRECONDITION" in record.getMessage()]
    figure(f"{kind}, {first} first: sent {sent} done {ran} lost {sent - ran}, 406 {len(refused)}, arguments changed 0")
    assert ran == sent
    assert refused == []


def test_a_queue_that_is_gone_is_declared_again_as_it_was(
    shared_rabbitmq: RabbitmqApi, vhost: str, application: Callable[..., Application]
) -> None:
    """A sender that has declared a queue meets it deleted, and sends a delay, a task and a delay again: the queue has
    plain Dramatiq's arguments, plain Dramatiq can use it, and all three run."""
    app = application()
    app.send("work", "default", 1)
    shared_rabbitmq.delete_queue(vhost, "default")
    app.send("work", "default", 2, delay=200)
    before = arguments(shared_rabbitmq, vhost)["default"]
    app.send("work", "default", 3)
    app.send("work", "default", 4, delay=200)
    plain = application("plain", confirm_delivery=True)
    plain.send("work", "default", 5)
    with app.working():
        eventually(lambda: len(app.ran) == 4, 10 * SLACK, what="what was sent after the queue was gone")
    assert sorted(app.ran) == [2, 3, 4, 5]
    assert before == plain.broker._build_queue_arguments("default")


# -- rights that are missing -----------------------------------------------------------------------------------------

#: What plain Dramatiq needs, and no more.
STOCK_RIGHTS = {"configure": "^default.*", "write": r"^(default.*|amq\.default)$", "read": "^default.*"}
#: A right that is missing -> the user's rights.
MISSING = {
    "all-of-ours": STOCK_RIGHTS,
    "configure": {**STOCK_RIGHTS, "write": ".*", "read": ".*"},
    "write": {**STOCK_RIGHTS, "configure": ".*", "read": ".*"},
    "read": {**STOCK_RIGHTS, "configure": ".*", "write": ".*"},
}


@pytest.mark.parametrize(
    "missing", [pytest.param(missing, marks=pytest.mark.full if missing == "read" else ()) for missing in MISSING]
)
def test_a_delay_without_rights_to_the_ladder_is_refused_in_clear_words(
    shared_rabbitmq: RabbitmqApi,
    vhost: str,
    application: Callable[..., Application],
    user: Callable[..., str],
    figure: Callable[[object], None],
    missing: str,
) -> None:
    """Sending a delay raises an error that names the exchange and the rights, and stores nothing; a send without a
    delay is not concerned; once the rights are given the same sender's delay runs."""
    app = application(user=user(**MISSING[missing]))
    app.send("work", "default", 1)
    with pytest.raises(ConnectionClosed, match="not stored") as refused:
        app.send("work", "default", 2, delay=200)
    text = str(refused.value)
    assert "'reliq." in text
    assert "configure, write and read" in text
    assert "add_vhost" not in text
    app.send("work", "default", 3)
    eventually(lambda: ready(shared_rabbitmq, vhost) == {"default": 2}, what="the two that were stored")
    user()
    app.send("work", "default", 4, delay=200)
    with app.working():
        eventually(lambda: len(app.ran) == 3, 10 * SLACK, what="all that was accepted")
    figure(f"without {missing}: sent 4 refused 1 done {len(app.ran)} lost {3 - len(app.ran)}")
    assert sorted(app.ran) == [1, 3, 4]


def test_what_an_operator_has_declared_may_be_used_without_the_right_to_declare(
    shared_rabbitmq: RabbitmqApi,
    vhost: str,
    application: Callable[..., Application],
    user: Callable[..., str],
    figure: Callable[[object], None],
) -> None:
    """An operator's application has declared ladder and letters; a user who may write and read them but configure
    nothing of ours delays, retries and buries: 1 delay and 1 retry done, 1 letter."""
    operator = application()
    operator.send("work", "default", 0, delay=1)
    with operator.working():
        eventually(lambda: operator.ran == [0], 10 * SLACK, what="the operator's own delay")
    app = application(user=user(configure="^default.*"))
    app.send("work", "default", 1, delay=200)
    app.send("flaky", "default", 2)
    app.send("doomed", "default", 3)
    with app.working():
        eventually(lambda: len(app.ran) == 2 and ready(shared_rabbitmq, vhost) == {"default.dead": 1}, 10 * SLACK)
    figure(f"sent 3 done {len(app.ran)} dead {len(letters(app))} lost {3 - len(app.ran) - len(letters(app))}")
    assert sorted(app.ran) == [1, 2]
    assert letters(app) == [(3, "retries_exhausted")]


def test_letters_go_straight_to_their_queue_where_the_exchange_is_refused(
    shared_rabbitmq: RabbitmqApi,
    vhost: str,
    application: Callable[..., Application],
    user: Callable[..., str],
    figure: Callable[[object], None],
) -> None:
    """The user has rights to nothing of ours, but an operator has made `default.dead`: 3 letters are in it, told of
    like all letters, and nothing is left."""
    shared_rabbitmq.api("PUT", "queues", vhost, "default.dead", body={"durable": True})
    app = application(user=user(**STOCK_RIGHTS))
    for key in range(3):
        app.send("doomed", "default", key)
    with app.working():
        eventually(lambda: ready(shared_rabbitmq, vhost) == {"default.dead": 3}, 10 * SLACK, what="three letters")
    found = letters(app)
    figure(f"sent 3 dead {len(found)} lost {3 - len(found)}")
    assert sorted(found) == [(key, "retries_exhausted") for key in range(3)]


def test_without_rights_to_letters_and_delays_nothing_is_lost_until_they_are_given(
    shared_rabbitmq: RabbitmqApi,
    vhost: str,
    application: Callable[..., Application],
    user: Callable[..., str],
    figure: Callable[[object], None],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """2 tasks that die and 2 that are to be retried end in a worker whose user has rights to nothing of ours: the log
    names exchanges and rights, all 4 stay unacked; once the rights are given, 2 letters and 2 done, in the same
    worker."""
    monkeypatch.setattr("dramatiq.worker.POST_PROCESS_MESSAGE_RETRY_DELAY_SECS", 0.2)
    app = application(user=user(**STOCK_RIGHTS))
    for key in range(2):
        app.send("doomed", "default", key)
        app.send("flaky", "default", key + 2)

    def refused() -> set[str]:
        """Task -> what its settle was refused for, as the worker logs it."""
        records = [record for record in caplog.records if record.msg.startswith("Failed to post_process_message")]
        return {str(record.args[0]) for record in records if "configure, write and read" in record.getMessage()}

    with app.working(threads=4):
        eventually(lambda: len(refused()) == 4, 10 * SLACK, what="all four settles to be refused")
        before = ready(shared_rabbitmq, vhost)
        user()
        eventually(lambda: len(app.ran) == 2, 10 * SLACK, what="both retries to run")
        eventually(lambda: ready(shared_rabbitmq, vhost) == {"default.dead": 2}, 10 * SLACK, what="all to be settled")
    found = letters(app)
    done, dead = len(app.ran), len(found)
    figure(f"sent 4 held {before.get('default')}, then done {done} dead {dead} lost {4 - done - dead}")
    assert before == {"default": 4}
    assert sorted(app.ran) == [2, 3]
    assert sorted(found) == [(0, "retries_exhausted"), (1, "retries_exhausted")]
    assert {"'reliq.dlx'", "'reliq.delay.v1q.00'"} <= set(re.findall(r"'reliq\.[\w.]+'", caplog.text))


# -- queues and vhosts that are not what they should be --------------------------------------------------------------


def test_a_queue_with_other_arguments_is_named_and_keeps_its_messages(
    shared_rabbitmq: RabbitmqApi,
    vhost: str,
    application: Callable[..., Application],
    figure: Callable[[object], None],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """`default` stands without plain Dramatiq's arguments and holds 3 messages. Senders and the worker are told which
    queue, which argument and what to do; another queue of the same worker works; the 3 are where they were."""
    shared_rabbitmq.api("PUT", "queues", vhost, "default", body={"durable": True, "arguments": {"x-max-length": 100}})
    app = application(queues=["default", "other"])
    with connected(shared_rabbitmq, vhost) as connection:
        channel = connection.channel()
        for key in range(3):
            channel.basic_publish("", "default", message("work-default", key).encode())
    with pytest.raises(ConnectionClosed, match="'default'.*stands with other arguments.*x-dead-letter-exchange"):
        app.send("work", "default", 3)
    with app.working():
        app.send("work", "other", 4)
        eventually(lambda: app.ran == [4], 10 * SLACK, what="the other queue")
        eventually(lambda: "Queue 'default' cannot be consumed" in caplog.text, what="the worker to say so")
    left = ready(shared_rabbitmq, vhost)
    figure(f"refused 1, the other queue's task done {len(app.ran)}, of 3 stored messages left {left.get('default')}")
    assert left == {"default": 3}


def test_a_vhost_that_is_missing_is_named_and_used_once_it_is_there(
    shared_rabbitmq: RabbitmqApi,
    vhost: str,
    application: Callable[..., Application],
    figure: Callable[[object], None],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A send to a vhost that is not there raises an error with its name and the command that makes it; a worker says
    the same and goes on: once the vhost is made, it runs what is sent."""
    where = f"{vhost}-later"
    app = application(where=where, send_timeout=500)
    with pytest.raises(ConnectionClosed, match=f"not stored.*vhost {where} not found.*add_vhost"):
        app.send("work", "default", 1)
    try:
        with app.working():
            eventually(lambda: f"vhost {where} not found" in caplog.text, what="the worker to say so")
            shared_rabbitmq.add_vhost(where)
            eventually(lambda: "default" in arguments(shared_rabbitmq, where), 10 * SLACK, what="the worker to connect")
            app.send("work", "default", 2)
            eventually(lambda: app.ran == [2], 10 * SLACK, what="the task")
    finally:
        app.close()
        shared_rabbitmq.delete_vhost(where)
    figure(f"refused 1, after the vhost was made: sent 1 done {len(app.ran)} in the same worker")
