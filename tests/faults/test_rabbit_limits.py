"""What RabbitMQ itself may lose or hold up, whoever uses it: shown, so that the pages can say it."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable

import dramatiq
import pika
import pytest
from dramatiq.brokers.rabbitmq import RabbitmqBroker
from dramatiq.worker import Worker

import reliq
from reliq.testing import RabbitmqServer, eventually
from reliq.wiring import transport_of

SENT = 100


def left_after_a_kill(server: RabbitmqServer, vhost: str, steps: str | None, *, busy: bool) -> tuple[int, int]:
    """(expected, left) in a queue into which `SENT` delays have come down when its broker is killed, while a consumer
    acks one every 50 ms (`busy`), or after a second in which nothing happened. `steps` is the type that is asked for
    the ladder; the queue is a classic one."""
    server.add_vhost(vhost)
    broker = RabbitmqBroker(url=server.url(vhost), middleware=[])
    reliq.install(broker, reliq.Delivery(queue_type=steps))
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
def test_a_killed_broker_loses_nothing_that_came_down_unless_classic_steps_are_asked_for(
    rabbitmq_server: RabbitmqServer, figure: Callable[[object], None]
) -> None:
    """100 delays have come off the ladder into a classic queue, the broker is killed a second later. All are there, be
    the queue idle or at work. With classic steps and a queue at work, what the broker had not written yet is gone; how
    much is told."""
    idle = left_after_a_kill(rabbitmq_server, "idle", None, busy=False)
    busy = left_after_a_kill(rabbitmq_server, "busy", None, busy=True)
    steps = left_after_a_kill(rabbitmq_server, "steps", "classic", busy=True)
    figure(
        f"idle: {idle[1]} of {idle[0]} left; busy: {busy[1]} of {busy[0]}; "
        f"busy, classic steps: {steps[1]} of {steps[0]}"
    )
    assert idle[0] == idle[1]
    assert busy[1] >= busy[0]
    assert steps[1] <= SENT


@pytest.mark.full
@pytest.mark.timeout(400)
@pytest.mark.parametrize(("confirm_timeout_s", "bound_s"), [(180, 200), (3, 20)])
def test_what_comes_due_while_a_node_starts_is_late_by_the_confirm_timeout_at_most(
    rabbitmq_binary: str, figure: Callable[[object], None], confirm_timeout_s: int, bound_s: float
) -> None:
    """200 delays come due while a node is killed and starts again, once with RabbitMQ's own setting, once with that of
    the page: all run. How late the last one is, after its worker is back, is the server's toss."""
    config = {"dead_letter_worker_publisher_confirm_timeout": str(confirm_timeout_s * 1000)}
    ran: dict[int, float] = {}
    with RabbitmqServer(config=config, binary=rabbitmq_binary) as server:
        broker = RabbitmqBroker(url=server.url())
        reliq.install(broker, reliq.Delivery(send_timeout=20_000))
        actor = dramatiq.actor(broker=broker, actor_name="work")(lambda key: ran.setdefault(key, time.time()))
        due = {}
        for key in range(200):
            delay = 1_500 + key * 40
            due[key] = time.time() + delay / 1000
            actor.send_with_options(args=(key,), delay=delay)
        server.restart()
        worker = Worker(broker, worker_threads=4)
        worker.start()
        back_at = time.time()
        try:
            eventually(lambda: len(ran) == 200, bound_s, what="all to run")
        finally:
            worker.stop()
            broker.close()
    late = max(at - max(due[key], back_at) for key, at in ran.items())
    figure(f"confirm timeout {confirm_timeout_s} s: sent 200 done {len(ran)}, the last {late:.1f} s late")
    assert min(at - due[key] for key, at in ran.items()) >= 0
