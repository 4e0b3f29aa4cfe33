"""Count what a Redis broker holds, and where every body lies, without changing anything.

Callers: fault tests (through `tally`), benchmarks, people at a prompt.
Guarantee: one script reads everything in one step, so the census is of one moment even while workers run; it
only reads, and works on a full Redis.
Not here: what it means for the tasks that were sent (`tallying`).
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import redis
from redis.client import NEVER_DECODE

from reliq.testing.runlog import Key, hashable

State = Literal["ready", "unacked", "delayed", "dead", "stock_delayed", "stock_dead", "ghost"]

# KEYS: none (the names are found here). ARGV[1]: a glob for all keys of the namespace.
# Result: {server time s, us, {{name, type, content}, ...}}; content is a flat list, for zsets and hashes in
# pairs.
_READ_ALL = """
local time = redis.call('TIME')
local found = {}
for _, name in ipairs(redis.call('KEYS', ARGV[1])) do
    local kind = redis.call('TYPE', name).ok
    local content = {}
    if kind == 'list' then content = redis.call('LRANGE', name, 0, -1)
    elseif kind == 'set' then content = redis.call('SMEMBERS', name)
    elseif kind == 'hash' then content = redis.call('HGETALL', name)
    elseif kind == 'zset' then content = redis.call('ZRANGE', name, 0, -1, 'WITHSCORES')
    end
    found[#found + 1] = {name, kind, content}
end
return {time[1], time[2], found}
"""

# Suffix of a queue's name -> state of what is indexed there. The empty suffix, the queue itself, comes last.
_STATES: tuple[tuple[str, State], ...] = (
    (".DQ", "stock_delayed"),
    (".XQ", "stock_dead"),
    (".delayed", "delayed"),
    (".dead", "dead"),
    ("", "ready"),
)


@dataclass(frozen=True)
class Place:
    """Where one body lies.

    `queue` is the plain queue name. `holder` is the broker id that has it unacked, else None. `body` are the
    stored bytes; `message_id` and `args` are None when it is no Dramatiq message. `entry` is its id in Redis,
    `due_ms` the score of its zset (due time or time of death), `record` what `.dead.meta` holds for it. A
    "ghost" is a body that is neither listed, nor delayed, nor acked by anybody: nothing will ever run it.
    """

    queue: str
    state: State
    holder: str | None
    body: bytes
    message_id: str | None = None
    args: tuple[Any, ...] | None = None
    entry: str = ""
    due_ms: int | None = None
    record: bytes | None = None

    @property
    def key(self) -> Key:
        """The task's first argument (lists as tuples), or None when it has none."""
        return hashable(self.args[0]) if self.args else None


@dataclass(frozen=True)
class Census:
    """What a broker held at `now_ms` of the server's clock.

    `heartbeats` maps stock broker ids to the ms of their last beat, `workers` are the broker ids whose reliq
    liveness key exists. `orphans` are ids that a list, zset or acks set names although the body is gone, as
    (Redis key, id).
    """

    places: tuple[Place, ...]
    now_ms: int
    heartbeats: Mapping[str, int] = field(default_factory=dict)
    workers: frozenset[str] = frozenset()
    orphans: tuple[tuple[str, str], ...] = ()

    def __iter__(self) -> Iterator[Place]:
        return iter(self.places)

    def of(self, *states: State, queue: str | None = None) -> list[Place]:
        """The places in one of `states` (all if none is given), of one queue if given."""
        return [
            place
            for place in self.places
            if (not states or place.state in states) and (queue is None or place.queue == queue)
        ]

    def count(self, *states: State, queue: str | None = None) -> int:
        """How many places `of` would return."""
        return len(self.of(*states, queue=queue))

    def alive(self, broker_id: str) -> bool:
        """Whether this worker's liveness key exists, or its heartbeat is younger than 60 s."""
        return broker_id in self.workers or self.now_ms - self.heartbeats.get(broker_id, 0) < 60_000

    def __str__(self) -> str:
        counts = Counter(place.state for place in self.places)
        return " ".join(f"{state} {number}" for state, number in sorted(counts.items())) or "empty"


def take_census(client: redis.Redis, namespace: str = "dramatiq") -> Census:
    """Read everything a Redis broker with this namespace holds. `client` may decode responses or not."""
    pattern = "".join(f"\\{char}" if char in "*?[]^\\" else char for char in namespace) + ":*"
    run: Callable[..., Any] = client.execute_command  # NEVER_DECODE: bodies may be any bytes
    seconds, micros, found = run("EVAL", _READ_ALL, 0, pattern, **{NEVER_DECODE: True})
    start = len(namespace) + 1
    keys = {_text(name)[start:]: _Content(_text(kind), content) for name, kind, content in found}
    return _arrange(keys, now_ms=int(seconds) * 1000 + int(micros) // 1000)


@dataclass(frozen=True)
class _Content:
    """One Redis key's content, by type."""

    kind: str
    raw: list[bytes]

    def ids(self) -> dict[str, int | None]:
        """The ids a list, set or zset names, with their scores."""
        if self.kind == "zset":
            return {_text(name): int(float(score)) for name, score in _pairs(self.raw)}
        return {_text(name): None for name in self.raw} if self.kind in ("list", "set") else {}

    def bodies(self) -> dict[str, bytes]:
        return {_text(name): body for name, body in _pairs(self.raw)} if self.kind == "hash" else {}


_NOTHING = _Content("none", [])


def _arrange(keys: Mapping[str, _Content], now_ms: int) -> Census:
    """Turn keys (without the namespace) into places. Pure."""
    held: dict[str, list[tuple[str, set[str]]]] = {}
    for name, content in keys.items():
        if name.startswith("__acks__."):
            # a broker id is a UUID and has no dot; a queue name may have some
            holder, _, queue = name[len("__acks__.") :].partition(".")
            held.setdefault(queue, []).append((holder, set(content.ids())))

    places: list[Place] = []
    orphans: list[tuple[str, str]] = []
    for full_name in sorted(_queue_names(keys) | held.keys()):
        queue, state = _split(full_name)
        listed = keys.get(full_name, _NOTHING).ids()
        bodies = keys.get(f"{full_name}.msgs", _NOTHING).bodies()
        records = keys.get(f"{full_name}.meta", _NOTHING).bodies()
        holders = sorted(held.get(full_name, ()))
        for entry, body in bodies.items():
            message_id, args = _message(body)
            spots: list[tuple[State, str | None]] = [(state, None)] if entry in listed else []
            spots += [("unacked", by) for by, ids in holders if entry in ids]
            for spot, by_whom in spots or [("ghost", None)]:
                places.append(
                    Place(
                        queue,
                        spot,
                        by_whom,
                        body,
                        message_id,
                        args,
                        entry,
                        listed.get(entry),
                        records.get(entry),
                    )
                )
        orphans += [(full_name, entry) for entry in listed if entry not in bodies]
        orphans += [
            (f"__acks__.{holder}.{full_name}", entry)
            for holder, ids in holders
            for entry in sorted(ids)
            if entry not in bodies
        ]
    beats = keys.get("__heartbeats__", _NOTHING).ids()
    prefix = "reliq:worker:"
    return Census(
        places=tuple(places),
        now_ms=now_ms,
        heartbeats={broker_id: beat or 0 for broker_id, beat in beats.items()},
        workers=frozenset(name[len(prefix) :] for name in keys if name.startswith(prefix)),
        orphans=tuple(orphans),
    )


def _queue_names(keys: Mapping[str, _Content]) -> set[str]:
    """Names of lists, zsets and body hashes, with their suffix: "default", "default.DQ", "default.dead"."""
    names = set()
    for name, content in keys.items():
        if name.startswith(("__", "reliq:")):
            continue
        if content.kind == "hash" and name.endswith(".msgs"):
            names.add(name[: -len(".msgs")])
        elif content.kind == "list" or (content.kind == "zset" and _split(name)[1] != "ready"):
            names.add(name)
    return names


def _split(full_name: str) -> tuple[str, State]:
    suffix, state = next((suffix, state) for suffix, state in _STATES if full_name.endswith(suffix))
    return full_name[: len(full_name) - len(suffix)], state


def _message(body: bytes) -> tuple[str | None, tuple[Any, ...] | None]:
    """The message id and arguments of a body, None for each that it does not have."""
    try:
        values = json.loads(body)
    except (ValueError, RecursionError):  # also bytes that are no UTF-8, also endless brackets
        return None, None
    if not isinstance(values, dict):
        return None, None
    message_id, args = values.get("message_id"), values.get("args")
    return (
        message_id if isinstance(message_id, str) else None,
        tuple(args) if isinstance(args, list) else None,
    )


def _pairs(flat: list[bytes]) -> Iterator[tuple[bytes, bytes]]:
    return zip(flat[::2], flat[1::2], strict=True)


def _text(name: bytes) -> str:
    return name.decode(errors="backslashreplace")
