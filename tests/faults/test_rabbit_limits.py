"""What RabbitMQ itself may lose, whoever uses it: shown, so that the pages can say it."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable

import dramatiq
import pika
import pytest
from dramatiq.brokers.rabbitmq import RabbitmqBroker

import reliq
from reliq.testing import RabbitmqServer, eventually
from reliq.wiring import transport_of

SENT = 100


def left_after_a_kill(server: RabbitmqServer, vhost: str, queue_type: str | None, *, busy: bool) -> tuple[int, int]:
    """(expected, left) in a queue into which `SENT` delays have come down when its broker is killed, while a consumer
    acks one every 50 ms (`busy`), or after a second in which nothing happened."""
    server.add_vhost(vhost, queue_type)
    broker = RabbitmqBroker(url=server.url(vhost), middleware=[])
    reliq.install(broker)
    broker.declare_queue("default")
    transport = transport_of(broker)
    assert transport is not None
    for number in range(SENT):
        broker.enqueue(dramatiq.Message("default", "work", (number,), {}, {}), delay=300)
    eventually(lambda: transport.depth("default").ready == SENT, 30, what="the delays in their queue")
    connection = pika.BlockingConnection(pika.URLParameters(server.url(vhost)))
    channel, acked, until = connection.channel(), 0, time.monotonic() + 1
    while time.monotonic() < until:
        if busy:
            method, _, _ = channel.basic_get("default")
            channel.basic_ack(method.delivery_tag)
            acked += 1
        time.sleep(0.05)  # sleep-ok: the pace of the consumer, or the pause
    server.kill()
    transport.disconnect()
    with contextlib.suppress(pika.exceptions.AMQPError, OSError):
        connection.close()
    server.start()
    connection = pika.BlockingConnection(pika.URLParameters(server.url(vhost)))
    left = connection.channel().queue_declare("default", passive=True).method.message_count
    connection.close()
    return SENT - acked, left


@pytest.mark.full
def test_a_killed_broker_loses_what_came_down_to_a_busy_classic_queue_and_nothing_of_a_quorum_queue(
    rabbitmq_server: RabbitmqServer, figure: Callable[[object], None]
) -> None:
    """100 delays have come off the ladder, the broker is killed a second later. Idle classic queue: all there. Busy
    quorum queue: all there. Busy classic queue: what the broker had not written yet is gone; how much is told."""
    idle = left_after_a_kill(rabbitmq_server, "idle", None, busy=False)
    quorum = left_after_a_kill(rabbitmq_server, "quorum", "quorum", busy=True)
    classic = left_after_a_kill(rabbitmq_server, "busy", None, busy=True)
    figure(
        f"classic, idle: {idle[1]} of {idle[0]} left; quorum, busy: {quorum[1]} of {quorum[0]}; "
        f"classic, busy: {classic[1]} of {classic[0]}"
    )
    assert idle[0] == idle[1]
    assert quorum[1] >= quorum[0]
    assert classic[1] <= SENT
