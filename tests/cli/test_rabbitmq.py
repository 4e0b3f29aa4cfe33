"""The command line on RabbitMQ where it differs: which queues, who reads, what lies there. On a real server."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import dramatiq
import pika
import pytest
from dramatiq import Worker
from dramatiq.brokers.rabbitmq import RabbitmqBroker
from dramatiq.message import Message
from dramatiq.middleware import Retries

from reliq.testing import eventually
from reliq.testing.plugin import MakeProxy
from reliq.testing.ports import free_port
from tests.cli.conftest import Cli, MakeApp
from tests.cli.test_broken_off import end_of, start
from tests.desk.morgues import on_rabbitmq
from tests.desk.rabbit_support import RabbitMorgue

NAMELESS = [
    ["queues", "list"],
    ["queues", "drain", "--to-stock", "--all", "--yes"],
    ["dlq", "list"],
    ["dlq", "count"],
    ["dlq", "groups"],
    ["dlq", "show", "01NOPE"],
    ["dlq", "replay", "--all", "--yes"],
    ["dlq", "discard", "--all", "--yes"],
]


@pytest.mark.parametrize("command", NAMELESS, ids=" ".join)
def test_without_the_management_api_a_queue_must_be_named(bare: Cli, command: list[str]) -> None:
    """Said before a server is asked anything."""
    result = bare("--url", "amqp://guest:s3cr3t@127.0.0.1:1", *command)
    assert (result.code, result.out) == (2, "")
    assert "name one with --queue, or give the management API (--management-url" in result.err
    assert "s3cr3t" not in result.err


@on_rabbitmq
def test_with_a_queue_everything_works_without_the_management_api(bare: Cli, morgue: RabbitMorgue) -> None:
    bare.options = ("--url", morgue.url)
    first, second = morgue.letter(1), morgue.letter(2, actor="notify")
    queue = ("--queue", "default")
    assert [letter["id"] for letter in bare.json("dlq", "list", *queue)] == [first, second]
    assert bare.json("dlq", "count", *queue) == {"count": 2}
    assert len(bare.json("dlq", "groups", *queue)) == 2
    assert bare.json("dlq", "show", first, *queue)["args"] == [1]
    assert bare.json("dlq", "replay", *queue, "--actor", "charge", "--yes")["done"] == 1
    assert bare.json("dlq", "discard", *queue, "--yes")["done"] == 1
    bare("send", "charge", "3", *queue)
    (row,) = bare.json("queues", "list", *queue)
    assert (row["ready"], row["dead"], row["unacked"], row["delayed"]) == (2, 0, None, None)
    assert bare.json("queues", "drain", "--to-stock", *queue, "--yes") == [
        {"queue": "default", "delays": 0, "letters": 0}
    ]


@on_rabbitmq
def test_a_misspelt_queue_is_told_with_and_without_a_list(bare: Cli, morgue: RabbitMorgue) -> None:
    morgue.letter(1, queue="payments")
    for options, more in ((morgue.options, ", did you mean 'payments'?"), (morgue.options[:2], "")):
        bare.options = options
        assert bare("dlq", "list", "--queue", "payment").err == f"there is no queue 'payment'{more}\n"
        for command in (["queues", "list"], ["queues", "drain", "--to-stock", "--yes"]):
            result = bare(*command, "--queue", "payment")
            assert (result.code, result.out) == (2, "")
            assert f"there is no queue 'payment'{more}; reliq queues list shows all" in result.err


@on_rabbitmq
def test_queues_of_an_application_need_no_management_api(bare: Cli, morgue: RabbitMorgue, app: MakeApp) -> None:
    """They are those that it declares; with the API all of the vhost."""
    morgue.letter(1, queue="payments")
    morgue.letter(2, queue="other")
    bare.options = ("-b", app())
    assert [row["queue"] for row in bare.json("queues", "list")] == ["default", "payments"]
    assert bare.json("dlq", "count") == {"count": 1}
    assert bare.json("dlq", "count", "--management-url", morgue.server.management_url) == {"count": 2}
    assert bare.json("dlq", "count", "--queue", "other") == {"count": 1}


@on_rabbitmq
def test_queues_tell_what_they_hold(cli: Cli, morgue: RabbitMorgue) -> None:
    """Also what another process has taken and not acked."""
    morgue.letter(1, queue="mail")
    morgue.stock(2, queue="mail")
    for _ in range(3):
        cli("send", "charge", "1", "--queue", "mail")
    morgue.channel.basic_get("mail")
    morgue.channel.basic_get("mail")
    eventually(lambda: cli.json("queues", "list")[0]["unacked"] == 2, 30, 0.1, "the management API's count")
    assert cli.json("queues", "list") == [
        {"queue": "mail", "ready": 1, "unacked": 2, "delayed": None, "dead": 2, "oldest_age": None, "consumers": 0,
         "paused": None},
    ]  # fmt: skip


@on_rabbitmq
def test_exclusive_queues_of_others_are_left_alone(cli: Cli, morgue: RabbitMorgue) -> None:
    """Reply queues of other programs in the vhost can be asked nothing."""
    morgue.letter(1)
    morgue.channel.queue_declare("", exclusive=True)
    assert [row["queue"] for row in cli.json("queues", "list")] == ["default"]
    assert cli("queues", "drain", "--to-stock", "--all", "--letters", "--yes").code == 0


@on_rabbitmq
def test_a_queue_with_arguments_of_its_own_is_used_as_it_stands(bare: Cli, morgue: RabbitMorgue) -> None:
    """By --url nobody knows the application's `max_priority` or queue types: sends and replays need not."""
    bare.options = ("--url", morgue.url)
    queue = ("--queue", "prio")
    owner = RabbitmqBroker(url=morgue.url, middleware=[], max_priority=5)
    owner.declare_queue("prio", ensure=True)
    morgue.transport.queues_as_they_stand = True
    morgue.letter(1, queue="prio")
    assert bare("send", "charge", "2", *queue).code == 0
    assert bare("send", "charge", "3", "--delay", "1", *queue).code == 0
    assert bare("dlq", "replay", "--yes", *queue).code == 0
    eventually(lambda: sorted(sent["args"] for sent in morgue.queued("prio")) == [[1], [2], [3]], 10, 0.1, "all three")
    owner.declare_queue("prio", ensure=True)
    owner.close()


# -- what cannot be connected to -----------------------------------------------------------------------------------


@on_rabbitmq
def test_a_server_that_does_not_let_in_is_one_line(bare: Cli, morgue: RabbitMorgue) -> None:
    """Run as a user runs it: nor may anything be logged onto the terminal."""
    port, management = morgue.server.port, morgue.server.management_port
    dead, queue = free_port(), ("--queue", "q")
    host = "127.0.0.1"
    cases = {
        (f"amqp://guest:s3cr3t@{host}:{dead}", "send", "x", *queue): str(dead),
        (f"amqp://guest:s3cr3t@{host}:{dead}", "dlq", "list", *queue): str(dead),
        (f"amqp://guest:s3cr3t@{host}:{port}/{morgue.vhost}", "send", "x", *queue): "correct user and password",
        (f"amqp://guest:s3cr3t@{host}:{port}/{morgue.vhost}", "dlq", "list", *queue): "correct user and password",
        (morgue.url + "-gone", "dlq", "count", *queue): "create the vhost",
        (morgue.url + "-gone", "queues", "list", *queue): "create the vhost",
        (morgue.url.replace("amqp:", "amqps:"), "dlq", "list", *queue): "SSL",
        (morgue.url, "queues", "list", "--management-url", f"http://guest:s3cr3t@{host}:{management}"): "the login",
        (morgue.url, "queues", "list", "--management-url", f"http://guest:s3cr3t@{host}:{dead}"): str(dead),
        (morgue.url, "queues", "list", "--management-url", f"http://guest:s3cr3t@{host}:{port}"): str(port),
    }
    for (url, *command), says in cases.items():
        result = bare("--url", url, *command, "-o", "json")
        assert (result.code, result.out) == (1, ""), (command, result)
        (line,) = result.err.splitlines()
        assert line.startswith("Error: the broker did not do it: ")
        assert says in line
        assert "s3cr3t" not in line
        assert ("Is it running" in line) is (says == str(dead) or says in ("SSL", str(port)))
    for url, *command in list(cases)[:3:2]:
        code, out, err = end_of(start("--url", url, *command))
        assert (code, out, err.count("\n")) == (1, "", 1), err


@on_rabbitmq
def test_a_server_that_does_not_answer_is_one_line(bare: Cli, morgue: RabbitMorgue, fault_proxy: MakeProxy) -> None:
    """It takes the connection, and then says nothing: not waited for without end."""
    proxy = fault_proxy(morgue.server)
    proxy.stall()
    bare.options = ("--url", morgue.server.url(morgue.vhost, port=proxy.port))
    for command in (["dlq", "list"], ["send", "x"]):
        result = bare(*command, "--queue", "q", "-o", "json")
        assert (result.code, result.out) == (1, ""), result
        assert len(result.err.splitlines()) == 1


def test_a_client_that_is_not_installed_is_named(bare: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "dramatiq.brokers.rabbitmq", None)
    result = bare("--url", "amqp://localhost", "dlq", "list", "--queue", "q")
    assert (result.code, result.out) == (2, "")
    assert "pip install 'dramatiq-reliq[rabbitmq]'" in result.err


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--management-url", "ftp://guest:s3cr3t@localhost"], "neither http:// nor https://"),
        (["--management-url", "localhost:15672"], "neither http:// nor https://"),
        (["--management-url", "http://"], "it has no host"),
        (["--management-url", "http://guest:s3cr3t@localhost:port"], "host or port"),
        (["--management-url", "http://guest:s3cr3t/x@localhost"], "percent-encoded"),
        (["--management-url", "http://guest:s3cr3t@localhost/?a=b"], "it has a query"),
        (["--namespace", "x"], "--namespace is for Redis"),
        (["--url", "redis://localhost", "--management-url", "http://localhost"], "--management-url is for RabbitMQ"),
    ],
    ids=str,
)
def test_options_that_cannot_be_are_refused(bare: Cli, options: list[str], says: str) -> None:
    """Before and after the command."""
    for arguments in (["dlq", "count", *options], [*options, "dlq", "count"]):
        url = [] if "--url" in options else ["--url", "amqp://localhost"]
        result = bare(*url, *arguments, "--queue", "q")
        assert (result.code, result.out) == (2, "")
        assert says in result.err
        assert "s3cr3t" not in result.err


# -- letters of others ---------------------------------------------------------------------------------------------


@on_rabbitmq
def test_letters_of_plain_workers_and_of_the_broker_are_read_and_replayed(cli: Cli, morgue: RabbitMorgue) -> None:
    """A stock worker gives one up; the broker itself puts aside one that expired and one beyond the queue's length.
    Replayed, each runs on a stock worker, and the broker's history of its death goes."""
    queues = ("short", "small", "worked")
    ran: list[str] = []
    broken = True

    def charge(name: str) -> None:
        if broken:
            raise ConnectionError("the bank is closed")
        ran.append(name)

    def work(until: Callable[[], bool]) -> None:
        broker = RabbitmqBroker(url=morgue.url, middleware=[Retries(max_retries=0)])
        dramatiq.actor(broker=broker, queue_name="worked")(charge)
        for queue in queues:
            broker.declare_queue(queue)
        worker = Worker(broker, worker_timeout=50, worker_threads=1)
        worker.start()
        try:
            eventually(until, 20, 0.05, "the worker is done")
        finally:
            worker.stop()
            broker.close()

    def put_aside(queue: str) -> int:
        return int(morgue.channel.queue_declare(f"{queue}.XQ", passive=True).method.message_count)

    def send(queue: str, name: str, **properties: Any) -> None:
        morgue.transport.declared.queue(queue)
        body = Message(queue, "charge", (name,), {}, {}).encode()
        morgue.channel.basic_publish("", queue, body, pika.BasicProperties(delivery_mode=2, **properties))

    send("worked", "rejected")
    work(lambda: put_aside("worked") == 1)
    morgue.server.set_policy(morgue.vhost, "small", "^small$", {"max-length": 1})
    send("short", "expired", expiration="1")
    send("small", "beyond the length")
    send("small", "the last one")
    eventually(lambda: (put_aside("short"), put_aside("small")) == (1, 1), 10, 0.05, "the broker puts two aside")
    broken = False
    work(lambda: ran == ["the last one"])

    listed = cli.json("dlq", "list")
    assert sorted((letter["queue"], letter["args"][0]) for letter in listed) == [
        ("short", "expired"), ("small", "beyond the length"), ("worked", "rejected"),
    ]  # fmt: skip
    assert all(letter["died_at"] and letter["reason"] is None and letter["actor"] == "charge" for letter in listed)
    assert {(group["queue"], group["count"], group["fingerprint"]) for group in cli.json("dlq", "groups")} == {
        ("short", 1, None), ("small", 1, None), ("worked", 1, None),
    }  # fmt: skip
    assert cli.json("dlq", "show", listed[0]["id"]) == listed[0]
    reasons = {death["reason"] for queue in queues for death in deaths(morgue, queue)}
    assert reasons == {"rejected", "expired", "maxlen"}
    assert cli.json("dlq", "replay", "--all", "--yes") == {"matched": 3, "done": 3, "failed": 0}
    assert [headers for queue in queues for _, headers, _ in morgue.lying(queue)] == [{}] * 3
    work(lambda: len(ran) == 4)
    assert sorted(ran) == ["beyond the length", "expired", "rejected", "the last one"]


def deaths(morgue: RabbitMorgue, queue: str) -> list[dict[str, Any]]:
    """What the broker wrote about those in a stock queue of letters."""
    return [headers["x-death"][0] for _, headers, _ in morgue.lying(f"{queue}.XQ")]
