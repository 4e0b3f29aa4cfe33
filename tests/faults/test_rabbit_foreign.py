"""What others do to messages and to what reliq has declared on RabbitMQ: headers that no client of ours would write,
parts of the ladder that are deleted. Nothing stops, and what dies says why.

In-process workers in a vhost of the shared node.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pika
import pytest

from reliq.testing import RabbitmqApi, eventually
from reliq.transport.rabbitmq.errors import Refusal
from reliq.transport.rabbitmq.reading import Reading
from reliq.transport.rabbitmq.topology import Ladder
from reliq.wiring import transport_of
from tests.faults.rabbit_applications import Application
from tests.faults.rabbit_census import connected
from tests.faults.stage import SLACK, message

Make = Callable[..., Application]


class Raw(pika.BasicProperties):
    """Properties with a table of headers as bytes, for what pika cannot write."""

    def __init__(self, *headers: bytes) -> None:
        super().__init__()
        self._table = b"".join(headers)

    def encode(self) -> list[bytes]:
        """As AMQP has it: flags (headers, delivery mode), the table, the mode."""
        return [struct.pack(">HI", 0x2000 | 0x1000, len(self._table)), self._table, b"\x02"]


def header(name: bytes, kind: bytes, value: bytes) -> bytes:
    """One entry of a table."""
    return bytes([len(name)]) + name + kind + value


FAR = header(b"sent_at", b"T", struct.pack(">Q", 1_700_000_000_000))  # milliseconds: the year 55840
FARTHEST = header(b"at", b"T", struct.pack(">Q", 2**64 - 1))
NOT_UTF8 = header("größe".encode("latin-1"), b"t", b"\x01")
LONG_NAME = header(b"\xe9" * 255, b"t", b"\x01")
GOOD = header(b"tenant", b"S", struct.pack(">I", 4) + b"acme")


def publish(server: RabbitmqApi, vhost: str, body: bytes, properties: pika.BasicProperties) -> None:
    """To the queue `default`, by another producer."""
    with connected(server, vhost) as connection:
        channel = connection.channel()
        channel.confirm_delivery()
        channel.basic_publish("", "default", body, properties, mandatory=True)


@pytest.mark.parametrize("odd", [FAR, FARTHEST, NOT_UTF8, LONG_NAME], ids=["far", "farthest", "not-utf8", "long-name"])
def test_a_header_that_pika_cannot_read_or_write_stops_nothing(
    application: Make,
    shared_rabbitmq: RabbitmqApi,
    vhost: str,
    odd: bytes,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A message with it runs, one that fails is retried and one that dies is a letter with the other headers; so do
    those behind them, and the connection stays. Plain pika loses the connection over a time beyond the year 9999, again
    and again."""
    app = application()
    app.send("work", "default", 0)
    for name, key in (("work", 1), ("flaky", 2), ("doomed", 3)):
        publish(shared_rabbitmq, vhost, message(f"{name}-default", key).encode(), Raw(odd, GOOD))
    app.send("work", "default", 4)
    with app.working():
        eventually(lambda: sorted(app.ran) == [0, 1, 2, 4], 10 * SLACK, what="all but the doomed")
        (letter,) = eventually(lambda: letters(app), 10 * SLACK, what="the letter")
    assert (letter["args"][0], letter["reason"]) == (3, "retries_exhausted")
    with connected(shared_rabbitmq, vhost) as connection:
        headers = connection.channel().basic_get("default.dead")[1].headers
    theirs = {name: value for name, value in headers.items() if not name.startswith("x-reliq-")}
    assert theirs.pop("tenant") == "acme"
    assert len(theirs) == 1  # the odd one, as the number or the text that it is
    assert "connection to RabbitMQ is lost" not in caplog.text


def letters(app: Application) -> list[dict[str, Any]]:
    """The dead letters of `default`."""
    transport = transport_of(app.broker)
    assert transport is not None
    return [letter.as_dict() for letter in transport.dead_letters("default")]


def test_copies_that_a_producer_asked_for_are_made_once(
    application: Make,
    shared_rabbitmq: RabbitmqApi,
    vhost: str,
) -> None:
    """A message with the header CC, which has a copy put into another queue: its retry and its letter have none."""
    app = application()
    app.send("work", "default", 0)
    with connected(shared_rabbitmq, vhost) as connection:
        connection.channel().queue_declare("audit", durable=True)
    for name, key in (("flaky", 1), ("doomed", 2)):
        properties = pika.BasicProperties(delivery_mode=2, headers={"CC": ["audit"], "tenant": "acme"})
        publish(shared_rabbitmq, vhost, message(f"{name}-default", key).encode(), properties)
    with app.working():
        eventually(lambda: sorted(app.ran) == [0, 1], 10 * SLACK, what="both")
        eventually(lambda: letters(app), 10 * SLACK, what="the letter")
    with connected(shared_rabbitmq, vhost) as connection:
        channel = connection.channel()
        assert channel.queue_declare("audit", passive=True).method.message_count == 2  # as the producer asked
        assert channel.queue_declare("default.dead", passive=True).method.message_count == 1


# -- parts of the ladder ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("what", ["queue", "exchange"])
@pytest.mark.parametrize("kind", [None, "classic"], ids=["quorum", "classic"])
def test_a_deleted_part_of_the_ladder_is_there_again_for_the_next_delay(
    application: Make,
    shared_rabbitmq: RabbitmqApi,
    vhost: str,
    what: str,
    kind: str | None,
) -> None:
    """The step on which a delay of 2 s begins is deleted under a running worker: the next delay and the next retry
    declare it again, and run at their time."""
    app = application(delivery={"queue_type": kind})
    app.send("work", "default", 1, delay=1)
    with app.working():
        eventually(lambda: app.ran == [1], 10 * SLACK, what="the first delay")
        step = Ladder("classic" if kind else "quorum").route(1, "default")[0]
        with connected(shared_rabbitmq, vhost) as connection:
            getattr(connection.channel(), f"{what}_delete")(step)
        app.send("work", "default", 2, delay=1)
        app.send("flaky", "default", 3)
        eventually(lambda: sorted(app.ran) == [1, 2, 3], 10 * SLACK, what="the delay and the retry after it")
    assert letters(app) == []


def test_a_middle_part_of_the_ladder_is_found_gone_by_the_worker(
    application: Make,
    shared_rabbitmq: RabbitmqApi,
    vhost: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The exchange below the step that 5 delays wait on is deleted: they are accepted and lead nowhere, until a worker
    looks at the whole of the ladder; then all run. Quorum queues keep them meanwhile."""
    monkeypatch.setattr("reliq.transport.rabbitmq.keeper.WHOLE_EVERY_S", 1.0)
    app = application()
    app.send("work", "default", 0, delay=1)
    with app.working():
        eventually(lambda: app.ran == [0], 10 * SLACK, what="the first delay")
        with connected(shared_rabbitmq, vhost) as connection:
            connection.channel().exchange_delete(Ladder("quorum").level(0))
        for key in range(1, 6):
            app.send("work", "default", key, delay=500)
        eventually(lambda: sorted(app.ran) == list(range(6)), 30 * SLACK, what="all that waited")


def test_a_retry_that_cannot_be_stored_is_a_letter_with_the_error_of_its_run(
    application: Make,
    shared_rabbitmq: RabbitmqApi,
    vhost: str,
) -> None:
    """A step of the ladder stands as a queue of another form, which somebody else declared: the letter is `rejected`,
    and has what the run raised and its attempt; the log and a send say what to do."""
    app = application()
    with connected(shared_rabbitmq, vhost) as connection:
        connection.channel().queue_declare(Ladder("quorum").level(3), durable=True)
    app.send("flaky", "default", 1)
    with app.working():
        (letter,) = eventually(lambda: letters(app), 10 * SLACK, what="the letter")
    assert (letter["reason"], letter["error"], letter["error_message"]) == ("rejected", "ValueError", "once: 1")
    assert letter["attempts"] == len(letter["attempts_log"]) == 1
    assert "_flake" in letter["traceback"]
    with pytest.raises(Exception, match=r"stands in another form.*delete it, and let reliq declare it"):
        app.send("work", "default", 2, delay=1_000)


def test_a_wrong_password_has_one_remedy(application: Make, shared_rabbitmq: RabbitmqApi) -> None:
    """Not rights as well."""
    app = application(user="guest:wrong")
    with pytest.raises(Exception, match="correct user and password in the URL") as told:
        app.send("work", "default", 1)
    assert "rights" not in str(told.value)


# -- readers ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["classic", "quorum"])
def test_readers_at_once_see_all_letters_or_are_told(shared_rabbitmq: RabbitmqApi, vhost: str, kind: str) -> None:
    """3 readers list 60 letters 30 times each: every reading gives 60, or an error that says that another reads; none
    gives fewer."""
    parameters = pika.URLParameters(shared_rabbitmq.url(vhost))
    with connected(shared_rabbitmq, vhost) as connection:
        channel = connection.channel()
        channel.queue_declare("default.dead", durable=True, arguments={"x-queue-type": kind})
        channel.confirm_delivery()
        for number in range(60):
            channel.basic_publish("", "default.dead", b"%d" % number, pika.BasicProperties(delivery_mode=2))

    def read() -> list[int | str]:
        found: list[int | str] = []
        for _ in range(30):
            try:
                with Reading(parameters, "default.dead") as reading:
                    found.append(sum(1 for _ in reading.arrivals()))
            except Refusal as told:
                found.append(str(told))
        return found

    with ThreadPoolExecutor(3) as readers:
        found = [each for future in [readers.submit(read) for _ in range(3)] for each in future.result()]
    assert {each for each in found if isinstance(each, int)} == {60}
    assert all("is being read by somebody else" in each for each in found if isinstance(each, str))
