"""A real RabbitMQ node can be killed, frozen, alarmed and restarted, keeps its data, and never outlives its process.

A boot takes 6 s of a core and more: a test that needs a node of its own asks it several things.
"""

import contextlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pika
import pytest
from pika.adapters.blocking_connection import BlockingChannel

from reliq.testing import RabbitmqApi, RabbitmqServer, ServerFailed, eventually
from reliq.testing.plugin import MakeProxy
from reliq.testing.processes import group_states
from reliq.testing.rabbitmq_api import ApiError

KEPT = pika.BasicProperties(delivery_mode=2)


@contextlib.contextmanager
def channel(server: RabbitmqApi, vhost: str = "/", **url: object) -> Iterator[BlockingChannel]:
    """A channel with confirms, whose connection is closed after, if it still can be."""
    connection = pika.BlockingConnection(pika.URLParameters(server.url(vhost, **url) + "?blocked_connection_timeout=1"))  # type: ignore[arg-type]
    try:
        channel = connection.channel()
        channel.confirm_delivery()
        yield channel
    finally:
        with contextlib.suppress(pika.exceptions.AMQPError):  # its server may be dead
            connection.close()


def counts(server: RabbitmqApi, vhost: str = "/") -> dict[str, tuple[str, int, int]]:
    """Queue -> (type, ready, unacknowledged)."""
    return {q["name"]: (q["type"], q["messages_ready"], q["messages_unacknowledged"]) for q in server.queues(vhost)}


def wait_written(server: RabbitmqServer, queue: str) -> None:
    """Wait until a new quorum queue is on the disk: RabbitMQ writes down its name half a second after it has confirmed
    its first messages, and a queue killed before that has no leader after the restart."""
    (names,) = server.folder.glob("data/*/quorum/*/names.dets")
    eventually(lambda: queue.encode() in names.read_bytes(), what=f"{queue} in {names.name}")


def listening(pid: int) -> set[str]:
    """The addresses, as /proc shows them, on which a process waits for connections."""
    mine = set()
    for fd in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(OSError):
            mine.add(os.readlink(fd))
    rows = [line.split() for name in ("tcp", "tcp6") for line in Path("/proc/net", name).read_text().splitlines()[1:]]
    return {row[1].split(":")[0] for row in rows if row[3] == "0A" and f"socket:[{row[9]}]" in mine}


# ------------------------------------------------------------------------------------------------ a node of its own


@pytest.mark.timeout(300)  # two boots, on a machine that may be busy
def test_confirmed_messages_survive_kill_and_restart(rabbitmq_server: RabbitmqServer) -> None:
    """A kill -9 loses nothing that was confirmed, in neither kind of queue; ports, vhosts and users stay too."""
    server, port, first = rabbitmq_server, rabbitmq_server.port, rabbitmq_server.pid
    server.add_vhost("kept", "quorum")
    with channel(server, "kept") as sender:
        sender.queue_declare("classic", durable=True, arguments={"x-queue-type": "classic"})
        sender.queue_declare("quorum", durable=True)  # the type is the vhost's
        for number in range(100):
            sender.basic_publish("", ("classic", "quorum")[number % 2], b"body", KEPT, mandatory=True)
        wait_written(server, "kept_quorum")
        server.kill()
    assert not server.alive
    with pytest.raises(RuntimeError, match="does not run"):
        _ = server.pid
    with pytest.raises(ApiError, match="no answer"):
        server.queues("kept")
    server.restart()
    assert (server.port, server.alive) == (port, True)
    assert server.pid != first
    eventually(
        lambda: counts(server, "kept") == {"classic": ("classic", 50, 0), "quorum": ("quorum", 50, 0)},
        timeout=30,
        what="100 messages",
    )
    assert server.log().count("Server startup complete") == 2


def test_frozen_alarmed_and_stopped_beside_another(rabbitmq_server: RabbitmqServer, vhost: str) -> None:
    """Faults of this node are this node's only; it is on loopback only, and nothing is left of it."""
    server = rabbitmq_server
    assert set(listening(server.pid)) == {"0100007F"}
    with pytest.raises(ApiError, match="404"):
        server.queues(vhost)  # that one lives on the shared node

    with channel(server) as sender:
        sender.queue_declare("q", durable=True)
        server.alarm_memory()
        assert server.in_alarm()
        with pytest.raises(pika.exceptions.ConnectionBlockedTimeout):
            sender.basic_publish("", "q", b"held back", KEPT)
    server.clear_memory_alarm()
    with channel(server) as sender:
        sender.basic_publish("", "q", b"taken", KEPT)

    server.pause()
    with socket.create_connection(("127.0.0.1", server.port), timeout=0.5) as knock:
        knock.sendall(b"AMQP\x00\x00\x09\x01")
        with pytest.raises(TimeoutError):
            knock.recv(1)
        assert server.alive
        server.resume()
        knock.settimeout(15)
        assert knock.recv(1) == b"\x01"  # the answer to what waited in the socket

    pid = server.pid
    server.pause()
    server.stop()  # even out of a pause
    assert not server.alive
    assert "SIGTERM received - shutting down" in server.log()
    server.close()
    assert (group_states(pid), server.folder.exists()) == ({}, False)
    assert repr(server).endswith("down>")


OWNER = """
import sys
from reliq.testing import RabbitmqServer
server = RabbitmqServer(binary=sys.argv[1]).start()
print(server.pid, server._mapper.pid, flush=True)
server.pause()
sys.stdin.read()
"""


def test_no_node_survives_the_process_that_started_it(rabbitmq_binary: str, tmp_path: Path) -> None:
    """Neither the node, even a frozen one, nor its port mapper, whatever that process dies of."""
    with subprocess.Popen(
        [sys.executable, "-c", OWNER, rabbitmq_binary],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={"TMPDIR": str(tmp_path), "PATH": os.environ["PATH"]},
    ) as owner:
        assert owner.stdout is not None
        node, mapper = map(int, owner.stdout.readline().split())
        assert (len(group_states(node)), len(group_states(mapper))) == (1, 1)
        owner.send_signal(signal.SIGKILL)
        owner.wait(10)
    eventually(lambda: {**group_states(node), **group_states(mapper)} == {}, what="node and port mapper to be killed")


def test_a_node_that_cannot_start_says_why(rabbitmq_binary: str) -> None:
    server = RabbitmqServer(binary=rabbitmq_binary, config={"no.such.option": "1"})
    with pytest.raises(ServerFailed, match=r"(?s)ended while starting.*no\.such\.option"):
        server.__enter__()
    assert not server.folder.exists()


# ------------------------------------------------------------------------------ what any running RabbitMQ can be asked


def test_a_limit_of_connections_refuses_the_next_one(shared_rabbitmq: RabbitmqApi, vhost: str) -> None:
    shared_rabbitmq.limit_connections(vhost, 1)
    with channel(shared_rabbitmq, vhost) as first:
        with pytest.raises(pika.exceptions.AMQPConnectionError), channel(shared_rabbitmq, vhost):
            pass
        shared_rabbitmq.limit_connections(vhost, None)
        shared_rabbitmq.limit_connections(vhost, None)
        with channel(shared_rabbitmq, vhost):
            assert first.is_open


def test_queues_are_counted_by_now(shared_rabbitmq: RabbitmqApi, vhost: str) -> None:
    with channel(shared_rabbitmq, vhost) as sender:
        sender.queue_declare("c", durable=True, arguments={"x-max-length": 9})
        sender.queue_declare("q", durable=True, arguments={"x-queue-type": "quorum"})
        for queue in ("c", "q"):
            for _ in range(3):
                sender.basic_publish("", queue, b"body", KEPT)
            sender.basic_get(queue)
        eventually(
            lambda: counts(shared_rabbitmq, vhost) == {"c": ("classic", 2, 1), "q": ("quorum", 2, 1)},
            timeout=3,
            what="counts of both queues",
        )
    described = {queue["name"]: queue for queue in shared_rabbitmq.queues(vhost)}
    assert described["c"]["durable"]
    assert described["c"]["arguments"]["x-max-length"] == 9  # RabbitMQ 4 adds the type
    shared_rabbitmq.delete_queue(vhost, "c")
    shared_rabbitmq.delete_queue(vhost, "c")
    assert counts(shared_rabbitmq, vhost).keys() == {"q"}


def test_closed_connections_are_closed_the_newest_too(
    shared_rabbitmq: RabbitmqApi, vhost: str, fault_proxy: MakeProxy
) -> None:
    """And only those of the vhost. One of them comes through a proxy."""
    proxy = fault_proxy(shared_rabbitmq)
    with channel(shared_rabbitmq, vhost) as one, channel(shared_rabbitmq, vhost, port=proxy.port) as two:
        assert shared_rabbitmq.close_connections("/") == 0
        assert shared_rabbitmq.close_connections(vhost) == 2
        for closed in (one, two):
            with pytest.raises(pika.exceptions.ConnectionClosed, match="closed"):
                closed.queue_declare("q", durable=True)
    assert proxy.connections == 1


def test_users_have_the_rights_they_were_given(shared_rabbitmq: RabbitmqApi, vhost: str) -> None:
    shared_rabbitmq.add_user("eve@x", "p/w:", vhost, configure="^$", write="^in$", read="^$")
    try:
        with channel(shared_rabbitmq, vhost) as owner:
            owner.queue_declare("in", durable=True)
            owner.exchange_declare("in")
            owner.queue_bind("in", "in", "in")
            with channel(shared_rabbitmq, vhost, user="eve%40x:p%2Fw%3A") as guest:
                guest.basic_publish("in", "in", b"body", mandatory=True)
                with pytest.raises(pika.exceptions.ChannelClosedByBroker, match="ACCESS_REFUSED"):
                    guest.queue_declare("other", durable=True)
    finally:
        shared_rabbitmq.delete_user("eve@x")


def test_a_policy_holds_until_it_is_cleared(shared_rabbitmq: RabbitmqApi, vhost: str) -> None:
    with channel(shared_rabbitmq, vhost) as sender:
        sender.queue_declare("q", durable=True)
        shared_rabbitmq.set_policy(vhost, "short", "^q$", {"max-length": 0, "overflow": "reject-publish"})
        with pytest.raises(pika.exceptions.NackError):
            eventually(lambda: sender.basic_publish("", "q", b"body"), timeout=5, what="a refusal")
        shared_rabbitmq.clear_policy(vhost, "short")
        eventually(lambda: accepted(sender), timeout=5, what="a message that is taken")


def accepted(sender: BlockingChannel) -> bool:
    try:
        sender.basic_publish("", "q", b"body")
    except pika.exceptions.NackError:
        return False
    return True


def test_what_is_refused_says_by_whom_and_why(shared_rabbitmq: RabbitmqApi, vhost: str) -> None:
    with pytest.raises(ApiError, match=r"PUT /api/vhost-limits/.*max-connections of <Rabbitmq.*: 400 .*") as refused:
        shared_rabbitmq.api("PUT", "vhost-limits", vhost, "max-connections", body={"value": "many"})
    assert refused.value.status == 400
    assert shared_rabbitmq.version >= (3, 10)


def test_urls_name_vhosts_users_and_proxies() -> None:
    """A URL of somebody's server: everything it leaves out has RabbitMQ's default."""
    api = RabbitmqApi("amqp://127.0.0.1")
    assert api.url() == "amqp://guest:guest@127.0.0.1:5672/%2F"
    assert api.url("a/b c", port=1234, user="u:p") == "amqp://u:p@127.0.0.1:1234/a%2Fb%20c"
    assert (api.management_url, api.management_port) == ("http://guest:guest@127.0.0.1:15672", 15672)
    tls = RabbitmqApi("amqps://u%40x:p@[::1]/vhost", "https://u%40x:p@[::1]:15671/")
    assert tls.url("v") == "amqps://u%40x:p@[::1]:5671/v"
    assert (tls.host, tls.management_url) == ("::1", "https://u%40x:p@[::1]:15671")
