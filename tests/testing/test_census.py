"""A census finds each body once per place, on a real stock broker, and changes nothing."""

import json
from typing import Any

import dramatiq
import pytest
import redis
from dramatiq.brokers.redis import RedisBroker

from reliq.testing import Census, RedisServer, take_census, tally


@pytest.fixture
def client(shared_redis: RedisServer) -> redis.Redis:
    return shared_redis.client()


@pytest.fixture
def broker(client: redis.Redis, namespace: str) -> RedisBroker:
    broker = RedisBroker(client=client, namespace=namespace)
    for queue in ("default", "dotted.name"):
        broker.declare_queue(queue)
    return broker


def message(key: object, queue: str = "default") -> dramatiq.Message[Any]:
    return dramatiq.Message(queue_name=queue, actor_name="work", args=(key,), kwargs={}, options={})


def where(census: Census) -> list[tuple[object, ...]]:
    return sorted((place.key, place.queue, place.state, place.holder) for place in census)


def test_messages_in_every_place_of_a_stock_broker(client: redis.Redis, broker: RedisBroker, namespace: str) -> None:
    """One message per place, put there by Dramatiq itself."""
    me = broker.broker_id
    for key in (1, 2, 3):
        broker.enqueue(message(key))
    broker.enqueue(message(4), delay=60_000)
    broker.enqueue(message(5, "dotted.name"), delay=60_000)
    broker.enqueue(message(6, "dotted.name"))
    consumer = broker.consume("default", prefetch=1, timeout=1)
    dead = next(consumer)
    consumer.nack(dead)
    held = next(consumer)
    next(broker.consume("dotted.name.DQ", prefetch=1, timeout=1))  # delayed, in a stock worker's memory

    census = take_census(client, namespace)
    assert where(census) == [
        (1, "default", "stock_dead", None),
        (2, "default", "unacked", me),
        (3, "default", "ready", None),
        (4, "default", "stock_delayed", None),
        (5, "dotted.name", "unacked", me),
        (6, "dotted.name", "ready", None),
    ]
    assert census.of("unacked", queue="default")[0].message_id == held.message_id
    assert census.of("unacked", queue="default")[0].entry == held.options["redis_message_id"]
    assert (census.count("ready"), census.count(), census.count(queue="dotted.name")) == (2, 6, 2)
    assert abs(census.now_ms - census.heartbeats[me]) < 60_000
    assert census.alive(me)
    assert census.orphans == ()
    assert str(census) == "ready 2 stock_dead 1 stock_delayed 1 unacked 2"
    assert str(tally(range(1, 8), [], census)) == "sent 7 done 0 dead 1 stuck 0 lost 1 twice 0 waiting 5"
    assert tally(range(1, 8), [], census, live=lambda broker_id: False).which("stuck") == {2, 5}


def test_what_reliq_stores(client: redis.Redis, namespace: str) -> None:
    """Delays, letters, their records and liveness keys, as DESIGN.md names them."""

    def body(key: int) -> bytes:
        return message(key).encode()

    client.zadd(f"{namespace}:default.delayed", {"a": 1_700_000_000_123})
    client.hset(f"{namespace}:default.delayed.msgs", "a", body(1))
    client.zadd(f"{namespace}:default.dead", {"b": 1_700_000_000_456, "c": 5})
    client.hset(f"{namespace}:default.dead.msgs", mapping={"b": body(2), "c": b"\xff\x00 no message"})
    client.hset(f"{namespace}:default.dead.meta", "c", b'{"reason": "undecodable"}')
    client.set(f"{namespace}:reliq:worker:broker-1", "1")
    client.hset(f"{namespace}:reliq:store:x.msgs", "not", "a queue")
    client.hset(f"{namespace}:default.msgs", "d", body(3))
    client.sadd(f"{namespace}:__acks__.broker-1.default", "d")

    census = take_census(client, namespace)
    assert {(place.entry, place.state, place.due_ms, place.holder) for place in census} == {
        ("a", "delayed", 1_700_000_000_123, None),
        ("b", "dead", 1_700_000_000_456, None),
        ("c", "dead", 5, None),
        ("d", "unacked", None, "broker-1"),
    }
    undecodable = next(place for place in census if place.entry == "c")
    assert (undecodable.body, undecodable.args, undecodable.key) == (b"\xff\x00 no message", None, None)
    assert undecodable.record == b'{"reason": "undecodable"}'
    assert census.workers == {"broker-1"}
    assert not census.alive("broker-2")
    assert tally([1, 2, 3], [], census).which("waiting") == {1, 3}


def test_ghosts_and_orphans(client: redis.Redis, namespace: str) -> None:
    """A body nobody lists, and ids without a body: what half-done work leaves behind."""
    client.hset(f"{namespace}:default.msgs", "ghost", message(1).encode())
    client.hset(f"{namespace}:default.delayed.msgs", "late ghost", message(2).encode())
    client.rpush(f"{namespace}:default", "x")
    client.sadd(f"{namespace}:__acks__.me.default", "y")
    client.zadd(f"{namespace}:other.delayed", {"z": 1})
    census = take_census(client, namespace)
    assert where(census) == [(1, "default", "ghost", None), (2, "default", "ghost", None)]
    assert census.orphans == (("default", "x"), ("__acks__.me.default", "y"), ("other.delayed", "z"))


def test_a_body_listed_and_held_lies_in_two_places(client: redis.Redis, namespace: str) -> None:
    client.hset(f"{namespace}:default.msgs", "a", message(1).encode())
    client.rpush(f"{namespace}:default", "a")
    client.sadd(f"{namespace}:__acks__.one.default", "a")
    client.sadd(f"{namespace}:__acks__.two.default", "a")
    assert where(take_census(client, namespace)) == sorted(
        [(1, "default", "ready", None), (1, "default", "unacked", "one"), (1, "default", "unacked", "two")],
        key=lambda row: row[:3],
    )


@pytest.mark.parametrize(
    "body",
    [b"", b"\xff\xfe", b"not json", b"[1, 2]", b'"text"', b'{"args": 7, "message_id": 3}', b"[" * 100_000],
    ids=["empty", "no text", "no json", "list", "string", "wrong types", "endless"],
)
def test_a_body_that_is_no_message_is_kept_raw(client: redis.Redis, namespace: str, body: bytes) -> None:
    client.hset(f"{namespace}:default.msgs", "a", body)
    client.rpush(f"{namespace}:default", "a")
    (place,) = take_census(client, namespace).places
    assert (place.state, place.body, place.message_id, place.args) == ("ready", body, None, None)


def test_it_reads_only_its_namespace_and_changes_nothing(
    shared_redis: RedisServer, client: redis.Redis, namespace: str
) -> None:
    """Also through a client that decodes, and with a namespace full of pattern characters."""
    odd = f"{namespace}[*]?\\"
    for name in (odd, f"{namespace}x", f"{odd}2", f"{namespace}**?\\"):
        client.hset(f"{name}:default.msgs", "a", b"\xff")
        client.rpush(f"{name}:default", "a")
    client.set(f"{odd}:reliq:worker:w", "1", ex=1000)

    def everything() -> dict[bytes, tuple[object, object]]:
        return {key: (client.dump(key), client.expiretime(key)) for key in client.scan_iter(f"{namespace}*")}

    before = everything()
    census = take_census(shared_redis.client(decode_responses=True), odd)
    assert [place.body for place in census] == [b"\xff"]
    assert census.workers == {"w"}
    assert everything() == before
    assert len(before) == 9


def test_a_full_redis_can_still_be_read(redis_server: RedisServer) -> None:
    client = redis_server.client()
    broker = RedisBroker(client=client)
    broker.enqueue(message(1))
    client.config_set("maxmemory", 1)
    with pytest.raises(redis.exceptions.OutOfMemoryError):
        client.set("one", "more")
    assert take_census(client).count("ready") == 1


def test_an_empty_broker(client: redis.Redis, namespace: str) -> None:
    census = take_census(client, namespace)
    assert (census.places, dict(census.heartbeats), str(census)) == ((), {}, "empty")


def test_bodies_are_compared_as_json_not_as_text(client: redis.Redis, namespace: str) -> None:
    """Another encoder's spaces and key order make no difference."""
    body = json.dumps(json.loads(message("ü").encode()), indent=2, sort_keys=True)
    client.hset(f"{namespace}:default.msgs", "a", body)
    assert take_census(client, namespace).places[0].key == "ü"
