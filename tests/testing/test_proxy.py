"""Each fault of the proxy, seen by a real Redis client in front of a real server."""

import socket
import threading
import time
from collections.abc import Iterator

import pytest
import redis

from reliq.testing import FaultProxy, RedisServer, eventually


@pytest.fixture
def proxy(shared_redis: RedisServer) -> Iterator[FaultProxy]:
    with FaultProxy(shared_redis.port) as proxy:
        yield proxy


@pytest.fixture
def direct(shared_redis: RedisServer) -> redis.Redis:
    """A client of the server itself, which shows what arrived."""
    return shared_redis.client()


@pytest.fixture
def client(proxy: FaultProxy) -> Iterator[redis.Redis]:
    """A client through the proxy, connected, that retries nothing and waits 5 s for an answer."""
    with redis.Redis.from_url(proxy.url(), socket_timeout=5) as client:
        client.ping()
        yield client


def test_a_healthy_proxy_is_not_noticed(client: redis.Redis, proxy: FaultProxy, namespace: str) -> None:
    big = bytes(range(256)) * 20_000  # 5 MB each way: more than any buffer between
    client.set(namespace, big)
    assert client.get(namespace) == big
    assert (proxy.connections, proxy.open_connections, proxy.dropped) == (1, 1, 0)


def test_a_dropped_request_was_not_executed(
    client: redis.Redis, direct: redis.Redis, proxy: FaultProxy, namespace: str
) -> None:
    rule = proxy.drop_requests(b"INCR")
    client.set(namespace, 0)
    with pytest.raises(redis.ConnectionError):
        client.incr(namespace)
    assert direct.get(namespace) == b"0"
    assert (proxy.dropped, rule.seen, rule.fired) == (1, 1, 1)
    assert client.incr(namespace) == 1  # only the first one, on a new connection


def test_a_dropped_reply_belongs_to_an_executed_request(
    client: redis.Redis, direct: redis.Redis, proxy: FaultProxy, namespace: str
) -> None:
    proxy.drop_replies(b"INCR", nth=2)
    assert client.incr(namespace) == 1
    with pytest.raises(redis.ConnectionError):
        client.incr(namespace)
    assert direct.get(namespace) == b"2"
    assert proxy.dropped == 1


def test_every_second_request_with_a_limit(
    client: redis.Redis, direct: redis.Redis, proxy: FaultProxy, namespace: str
) -> None:
    proxy.drop_requests(lambda request: b"RPUSH" in request and b"x" in request, every=True, nth=2, limit=3)
    failed = []
    for n in range(12):
        try:
            client.rpush(namespace, f"x{n}")
        except redis.ConnectionError:
            failed.append(n)
    assert failed == [1, 3, 5]
    assert direct.llen(namespace) == 9


def test_one_command_of_a_pipeline_is_dropped_and_all_before_it_executed(
    client: redis.Redis, direct: redis.Redis, proxy: FaultProxy, namespace: str
) -> None:
    proxy.drop_requests(b"RPUSH", nth=3)
    with client.pipeline(transaction=False) as pipe:
        for n in range(5):
            pipe.rpush(namespace, n)
        with pytest.raises(redis.ConnectionError):
            pipe.execute()
    assert direct.lrange(namespace, 0, -1) == [b"0", b"1"]


def test_a_lost_reply_in_a_pipeline_still_executes_the_matched_command(
    client: redis.Redis, direct: redis.Redis, proxy: FaultProxy, namespace: str
) -> None:
    """The replies of earlier commands arrive first; they must not end the connection before the server read on."""
    for turn in range(50):
        proxy.drop_replies(b"LAST")
        with client.pipeline(transaction=False) as pipe:
            for n in range(200):
                pipe.rpush(namespace, n)
            pipe.rpush(namespace, "LAST")
            with pytest.raises(redis.ConnectionError):
                pipe.execute()
        assert direct.llen(namespace) == 201 * (turn + 1)


def test_a_command_that_arrives_in_pieces_is_still_found(
    shared_redis: RedisServer, proxy: FaultProxy, namespace: str
) -> None:
    proxy.drop_requests(b"secret")
    command = b"*3\r\n$3\r\nSET\r\n$%d\r\n%s\r\n$6\r\nsecret\r\n" % (len(namespace), namespace.encode())
    with socket.create_connection(("127.0.0.1", proxy.port)) as raw:
        raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for position in range(len(command)):
            try:
                raw.sendall(command[position : position + 1])
            except OSError:
                break
        with pytest.raises(ConnectionResetError):
            raw.recv(100)
    assert shared_redis.client().get(namespace) is None
    assert proxy.dropped == 1


def test_stalled_requests_are_delivered_later(
    client: redis.Redis, direct: redis.Redis, proxy: FaultProxy, namespace: str
) -> None:
    """Even when the client has given up: a time-out says nothing about execution."""
    with redis.Redis.from_url(proxy.url(), socket_timeout=0.4) as hasty:
        hasty.ping()
        proxy.stall()
        with pytest.raises(redis.TimeoutError):
            hasty.set(namespace, "late")
        assert direct.get(namespace) is None
        with pytest.raises(redis.TimeoutError):
            hasty.ping()  # accepted, not answered
        proxy.heal()
        eventually(lambda: direct.get(namespace) == b"late", what="the stalled request to arrive")


def test_a_stalled_client_that_waits_is_served_after_healing(
    client: redis.Redis, proxy: FaultProxy, namespace: str
) -> None:
    answers: list[object] = []
    proxy.stall()
    thread = threading.Thread(target=lambda: answers.append(client.incr(namespace)))
    thread.start()
    newcomer = redis.Redis.from_url(proxy.url(), socket_timeout=5)
    second = threading.Thread(target=lambda: answers.append(newcomer.ping()))
    second.start()
    eventually(lambda: proxy.open_connections == 2, what="the newcomer to be accepted")
    assert answers == []
    proxy.heal()
    thread.join(5)
    second.join(5)
    newcomer.close()
    assert sorted(answers, key=str) == [1, True]


def test_a_black_hole_keeps_nothing(
    client: redis.Redis, direct: redis.Redis, proxy: FaultProxy, namespace: str
) -> None:
    with redis.Redis.from_url(proxy.url(), socket_timeout=0.4) as hasty:
        hasty.ping()
        proxy.blackhole()
        with pytest.raises(redis.TimeoutError):
            hasty.set(namespace, "gone")
        with pytest.raises(redis.TimeoutError):
            hasty.ping()
        proxy.heal()
        assert hasty.set(namespace + "2", "here")
    assert (direct.get(namespace), direct.get(namespace + "2")) == (None, b"here")


def test_a_connection_that_lost_bytes_is_cut_by_healing(client: redis.Redis, proxy: FaultProxy) -> None:
    """Half a command eaten, half delivered would be nonsense to the server."""
    idle = redis.Redis.from_url(proxy.url())
    idle.ping()
    proxy.blackhole()
    with socket.create_connection(("127.0.0.1", proxy.port)) as raw:
        raw.sendall(b"*1\r\n$4\r\n")
        eventually(lambda: any(link.lost_bytes for link in list(proxy._links)), what="the bytes to be eaten")
        proxy.heal()
        with pytest.raises(ConnectionResetError):
            raw.recv(100)
    assert idle.ping()
    assert proxy.connections == 3  # idle lost nothing, so it was left alone
    idle.close()


def test_refused_until_healed_on_the_same_port(client: redis.Redis, proxy: FaultProxy) -> None:
    port = proxy.port
    proxy.refuse()
    assert proxy.open_connections == 0
    for _ in range(2):  # the first finds its connection cut, the second none at all
        with pytest.raises(redis.ConnectionError):
            client.ping()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port))
    proxy.refuse()  # twice is once
    proxy.heal()
    assert (client.ping(), proxy.port) == (True, port)


def test_cut_resets_what_is_open_and_nothing_else(client: redis.Redis, proxy: FaultProxy) -> None:
    with socket.create_connection(("127.0.0.1", proxy.port)) as raw:
        raw.sendall(b"PING\r\n")
        assert raw.recv(100) == b"+PONG\r\n"
        proxy.cut()
        assert proxy.open_connections == 0
        with pytest.raises(ConnectionResetError):
            raw.recv(100)
    assert client.ping()  # redis-py finds its idle connection dead before it uses it
    assert proxy.connections == 3


def test_cut_reaches_a_client_that_waits(client: redis.Redis, proxy: FaultProxy, namespace: str) -> None:
    errors: list[Exception] = []

    def wait() -> None:
        try:
            client.blpop([namespace], timeout=30)
        except redis.ConnectionError as error:
            errors.append(error)

    arrived = threading.Event()
    proxy.on_request(b"BLPOP", arrived.set, when="after")
    thread = threading.Thread(target=wait)
    thread.start()
    assert arrived.wait(5)
    proxy.cut()
    thread.join(5)
    assert len(errors) == 1


def test_cut_ends_connections_whose_client_does_not_read(
    client: redis.Redis, proxy: FaultProxy, namespace: str
) -> None:
    client.set(namespace, b"x" * 8_000_000)
    replied = threading.Event()
    proxy.on_request(b"GET", replied.set, when="replied")
    with socket.create_connection(("127.0.0.1", proxy.port)) as deaf:
        deaf.sendall(b"GET %s\r\n" % namespace.encode())
        assert replied.wait(5)
        started = time.monotonic()
        proxy.cut()
        assert proxy.open_connections == 0
        assert time.monotonic() - started < 2


def test_heal_removes_rules(client: redis.Redis, proxy: FaultProxy, namespace: str) -> None:
    rule = proxy.drop_requests(b"INCR", every=True)
    proxy.heal()
    assert client.incr(namespace) == 1
    assert (rule.seen, proxy.dropped) == (0, 0)


def test_a_client_of_a_dead_server_is_reset(redis_server: RedisServer) -> None:
    with FaultProxy(redis_server.port) as proxy, redis.Redis.from_url(proxy.url()) as client:
        client.ping()
        redis_server.kill()
        for _ in range(2):
            with pytest.raises(redis.ConnectionError):
                client.ping()
        redis_server.start()
        assert client.ping()


@pytest.mark.parametrize(("when", "seen"), [("before", [None]), ("replied", [b"1"])])
def test_a_callback_runs_at_one_exact_point(
    client: redis.Redis, direct: redis.Redis, proxy: FaultProxy, namespace: str, when: str, seen: list[object]
) -> None:
    """Before the server knows of the request, or after it executed it and before the client knows."""
    found: list[object] = []
    proxy.on_request(b"INCR", lambda: found.append(direct.get(namespace)), when=when)  # type: ignore[arg-type]
    assert client.incr(namespace) == 1
    assert client.incr(namespace) == 2
    assert found == seen


def test_a_server_killed_at_one_exact_point(redis_server: RedisServer) -> None:
    """The classic: executed, and the server dead before the client could know."""
    with FaultProxy(redis_server.port) as proxy, redis.Redis.from_url(proxy.url()) as client:
        proxy.on_request(b"INCR", redis_server.kill, when="replied")
        proxy.drop_replies(b"INCR")
        with pytest.raises(redis.ConnectionError):
            client.incr("key")
        redis_server.start()
        assert client.get("key") == b"1"


def test_a_callback_may_cut_its_own_connection(
    client: redis.Redis, direct: redis.Redis, proxy: FaultProxy, namespace: str
) -> None:
    proxy.on_request(b"INCR", proxy.cut, when="before")
    with pytest.raises(redis.ConnectionError):
        client.incr(namespace)
    assert direct.get(namespace) is None


def test_a_callback_that_fails_is_not_swallowed(shared_redis: RedisServer) -> None:
    with (
        pytest.raises(RuntimeError, match="callback .* failed: ZeroDivisionError"),
        FaultProxy(shared_redis.port) as proxy,
        redis.Redis.from_url(proxy.url()) as client,
    ):
        proxy.on_request(b"PING", lambda: 1 / 0, when="after")
        client.ping()


def test_any_protocol_passes_and_is_matched_by_piece(shared_redis: RedisServer, proxy: FaultProxy) -> None:
    """Inline commands do not begin as RESP arrays do: the proxy takes them as it takes HTTP or AMQP."""
    proxy.drop_requests(b"PING", nth=2)
    with socket.create_connection(("127.0.0.1", proxy.port)) as raw:
        raw.sendall(b"PING\r\n")
        assert raw.recv(100) == b"+PONG\r\n"
        raw.sendall(b"PI")
        eventually(lambda: proxy.open_connections == 1, what="the connection")
        raw.sendall(b"NG\r\n")
        with pytest.raises(ConnectionResetError):
            raw.recv(100)
    assert "1 dropped" in repr(proxy)


def test_thousands_of_requests_by_many_threads(proxy: FaultProxy, direct: redis.Redis, namespace: str) -> None:
    """Nothing is lost or mixed up between connections, with a rule that looks at each request."""
    rule = proxy.drop_requests(b"never there")

    def count() -> None:
        with redis.Redis.from_url(proxy.url()) as client:
            for n in range(250):
                assert client.echo(f"{namespace}-{n}") == f"{namespace}-{n}".encode()
                client.incr(namespace)

    threads = [threading.Thread(target=count) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert direct.get(namespace) == b"2000"
    assert rule.seen == 0


def test_closing_ends_every_thread(shared_redis: RedisServer) -> None:
    with FaultProxy(shared_redis.port) as proxy, redis.Redis.from_url(proxy.url()) as client:
        client.ping()
    names = [thread.name for thread in threading.enumerate()]
    assert not [name for name in names if name.startswith("fault-proxy")]
