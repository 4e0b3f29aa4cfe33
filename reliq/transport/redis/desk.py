"""Reading and moving what lies in Redis: letters, depths, what goes back to plain Dramatiq, what tests drop.

Callers: `RedisTransport`, for the desk and the command line. Every move is one script; reading changes nothing.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from dramatiq.errors import ConnectionClosed
from dramatiq.logging import get_logger
from dramatiq.message import Message

from ...errors import NotSupported
from ...message.letter import DeadLetter
from ...message.record import Record
from ..base import Depth, Finding
from ..delivered import Unreadable, decode, from_fields
from ..settlement import Publish
from .errors import REDIS_ERRORS, closed
from .items import stock_keys, store_arguments

if TYPE_CHECKING:
    from .transport import RedisTransport

#: How many letters one round trip reads, and how many messages one step gives back.
PAGE = 200

_OWN_SUFFIXES = (
    ".delayed",
    ".delayed.msgs",
    ".dead",
    ".dead.msgs",
    ".dead.meta",
    ".dead.index",
    ".dead.groups",
    ".dead.versions",
)
#: Longest first: what a key's name ends in, after the queue's.
_SUFFIXES = tuple(
    sorted((*_OWN_SUFFIXES, ".DQ.msgs", ".DQ", ".XQ.msgs", ".XQ", ".msgs"), key=lambda suffix: -len(suffix))
)


class RedisDesk:
    """The desk's side of the Redis transport."""

    def __init__(self, transport: RedisTransport) -> None:
        self._transport = transport

    def _key(self, name: str) -> str:
        return f"{self._transport.namespace}:{name}"

    def _ask(self, doing: str, *commands: tuple[Any, ...]) -> list[Any]:
        """The replies to reading commands, in one round trip. Raises `ConnectionClosed`."""
        try:
            pipe = self._transport.sender.client.pipeline(transaction=False)
            for command in commands:
                pipe.execute_command(*command)
            return list(pipe.execute())
        except REDIS_ERRORS as exc:
            raise closed(exc, doing) from exc

    # -- letters -------------------------------------------------------------------------------------------------

    def dead_letters(self, queue_name: str) -> Iterator[DeadLetter]:
        """Ours and plain Dramatiq's, merged by time of death."""
        ours, stock = self._pages(queue_name, "dead"), self._pages(queue_name, "XQ")
        ahead, other = next(ours, None), next(stock, None)
        while ahead is not None or other is not None:
            if other is None or (ahead is not None and (ahead.died_at_ms or 0) <= (other.died_at_ms or 0)):
                assert ahead is not None
                yield ahead
                ahead = next(ours, None)
            else:
                yield other
                other = next(stock, None)

    def _pages(self, queue_name: str, kind: str) -> Iterator[DeadLetter]:
        """Page by score and id, not by rank: letters may come and go while they are read."""
        key, seen_at, seen = self._key(f"{queue_name}.{kind}"), "-inf", set[bytes]()
        while True:
            doing = f"reading letters of queue {queue_name!r}"
            limit = PAGE + len(seen)
            (page,) = self._ask(doing, ("ZRANGEBYSCORE", key, seen_at, "+inf", "WITHSCORES", "LIMIT", 0, limit))
            pairs = [(raw, float(score)) for raw, score in _pairs(page) if raw not in seen]
            if not pairs:
                return
            ids = [raw for raw, _ in pairs]
            bodies, metas = self._ask(doing, ("HMGET", f"{key}.msgs", *ids), ("HMGET", f"{key}.meta", *ids))
            for (raw, score), body, meta in zip(pairs, bodies, metas):
                if body is not None:
                    yield self._letter(queue_name, kind, raw, score, body, meta)
            last = pairs[-1][1]
            seen_at = repr(last)
            seen = {raw for raw, score in pairs if score == last} | (seen if pairs[0][1] == last else set())

    def _letter(
        self, queue_name: str, kind: str, raw_id: bytes, score: float, body: bytes, meta: bytes | None
    ) -> DeadLetter:
        message = self._opened(body)
        dead = _json_object(meta) if meta is not None else None
        if dead is None and message is not None:
            dead = Record.read(message.options).dead
        source = "reliq" if kind == "dead" else "stock"
        letter_id = raw_id.decode("utf-8", "surrogateescape")
        return DeadLetter(letter_id, queue_name, source, body, message, dead, int(score))

    def _opened(self, body: bytes) -> Message[Any] | None:
        transport = self._transport
        try:
            return transport.restored(decode(body, transport.encoder))
        except Exception:
            # Whatever an encoder or a restore() raises: the letter is shown by its bytes.
            return self._plain(body)

    def _plain(self, body: bytes) -> Message[Any] | None:
        try:
            return from_fields(_json_object(body))
        except Unreadable:
            return None

    def find_letter(self, letter_id: str, queue_name: str | None = None) -> DeadLetter | None:
        """By letter id first, which is one look; then by message id, which reads the letters."""
        queues = [queue_name] if queue_name is not None else self.queue_names()
        for queue in queues:
            for kind in ("dead", "XQ"):
                key = self._key(f"{queue}.{kind}")
                score, body, meta = self._ask(
                    f"looking for letter {letter_id!r}",
                    ("ZSCORE", key, letter_id),
                    ("HGET", f"{key}.msgs", letter_id),
                    ("HGET", f"{key}.meta", letter_id),
                )
                if score is not None and body is not None:
                    raw = letter_id.encode("utf-8", "surrogateescape")
                    return self._letter(queue, kind, raw, float(score), body, meta)
        for queue in queues:
            for letter in self.dead_letters(queue):
                if letter.message is not None and letter.message.message_id == letter_id:
                    return letter
        return None

    def end_letter(self, how: str, letter: DeadLetter, store: list[Publish]) -> bool:
        """Remove a letter and store what follows it, in one step."""
        arguments = [how, letter.source, letter.queue, letter.id, *store_arguments(store)]
        return bool(self._transport.sender.run("letters", arguments, f"{how} of letter {letter.id!r}"))

    def dead_groups(self, queue_name: str) -> list[dict[str, Any]]:
        """From the index: no letter is read. Stock letters form one group, without a fingerprint."""
        doing = f"grouping letters of queue {queue_name!r}"
        dead, stock = self._key(f"{queue_name}.dead"), self._key(f"{queue_name}.XQ")
        about, versions = self._ask(doing, ("HGETALL", f"{dead}.groups"), ("HGETALL", f"{dead}.versions"))
        known = _mapping(versions)
        groups = []
        for raw, text in _mapping(about).items():
            fingerprint = raw.decode("utf-8", "replace")
            group = self._group(doing, f"{dead}.group.{fingerprint}", queue_name, fingerprint, _json_object(text))
            groups.append({**group, "versions": _json_list(known.get(raw))})
        groups.append(self._group(doing, stock, queue_name, None, None))
        return [group for group in groups if group["count"]]

    def _group(
        self, doing: str, key: str, queue_name: str, fingerprint: str | None, about: dict[str, Any] | None
    ) -> dict[str, Any]:
        count, first, last = self._ask(
            doing,
            ("ZCARD", key),
            ("ZRANGE", key, 0, 0, "WITHSCORES"),
            ("ZRANGE", key, -1, -1, "WITHSCORES"),
        )
        firsts, lasts = _pairs(first), _pairs(last)
        return {
            "fingerprint": fingerprint,
            "queue": queue_name,
            "actor": (about or {}).get("actor"),
            "error": (about or {}).get("error"),
            "reason": (about or {}).get("reason"),
            "count": int(count),
            "first_seen_ms": int(float(firsts[0][1])) if firsts else None,
            "last_seen_ms": int(float(lasts[0][1])) if lasts else None,
            "sample": lasts[0][0].decode("utf-8", "replace") if lasts else None,
        }

    # -- queues --------------------------------------------------------------------------------------------------

    def queue_names(self) -> list[str]:
        """Declared here, or recognised by their keys."""
        names = set(self._transport.declared_queues())
        prefix = f"{self._transport.namespace}:".encode()
        try:
            for key in self._transport.sender.client.scan_iter(match=_glob(prefix) + b"*", count=1_000):
                names.update(_queue_of(key[len(prefix) :].decode("utf-8", "replace")))
        except REDIS_ERRORS as exc:
            raise closed(exc, "looking for queues") from exc
        return sorted(names)

    def depth(self, queue_name: str) -> Depth:
        """Counts of one queue, in one round trip, and the age of its head in another."""
        doing, key = f"measuring queue {queue_name!r}", self._key(queue_name)
        ready, stored, delayed, stock_delayed, dead, stock_dead, head, workers, now = self._ask(
            doing,
            ("LLEN", key),
            ("HLEN", f"{key}.msgs"),
            ("ZCARD", f"{key}.delayed"),
            ("HLEN", f"{key}.DQ.msgs"),
            ("ZCARD", f"{key}.dead"),
            ("ZCARD", f"{key}.XQ"),
            ("LINDEX", key, 0),
            ("HGETALL", self._key("reliq:workers")),
            ("TIME",),
        )
        now_ms = int(now[0]) * 1000 + int(now[1]) // 1000
        serving = [about for about in map(_json_object, _mapping(workers).values()) if about]
        return Depth(
            queue=queue_name,
            ready=int(ready),
            unacked=max(0, int(stored) - int(ready)),
            delayed=int(delayed) + int(stock_delayed),
            dead=int(dead) + int(stock_dead),
            oldest_age_ms=self._age(doing, key, head, now_ms),
            consumers=sum(1 for about in serving if queue_name in (about.get("queues") or ())),
        )

    def _age(self, doing: str, key: str, head: bytes | None, now_ms: int) -> int | None:
        if head is None:
            return None
        (body,) = self._ask(doing, ("HGET", f"{key}.msgs", head))
        message = self._opened(body) if body is not None else None
        if message is None:
            return None
        since = Record.read(message.options).eligible_at or message.message_timestamp
        return max(0, now_ms - int(since)) if 0 <= since < 2**53 else None

    def unfinished(self, queue_name: str) -> int:
        """How many messages are ready, running or delayed."""
        key = self._key(queue_name)
        counts = self._ask(
            f"joining queue {queue_name!r}",
            ("HLEN", f"{key}.msgs"),
            ("HLEN", f"{key}.DQ.msgs"),
            ("ZCARD", f"{key}.delayed"),
        )
        return sum(map(int, counts))

    def flush(self, queue_name: str) -> None:
        """Delete every key of a queue, and what this process holds of it."""
        doing, transport = f"flushing queue {queue_name!r}", self._transport
        key = self._key(queue_name)
        (groups,) = self._ask(doing, ("HKEYS", f"{key}.dead.groups"))
        keys: list[Any] = [self._key(name) for name in stock_keys(queue_name)]
        keys += [key + suffix for suffix in _OWN_SUFFIXES]
        keys += [f"{key}.dead.group.".encode() + group for group in groups]
        keys += [self._key(f"__acks__.{transport.broker_id}.{name}") for name in (queue_name, f"{queue_name}.DQ")]
        self._ask(doing, *(("DEL", name) for name in keys))

    def to_stock(self, queue_name: str, *, letters: bool) -> Iterator[int]:
        """Each step is one script; broken off and repeated it goes on where it was."""
        (served,) = self._ask("looking for workers", ("EXISTS", self._key(f"reliq:serving:{queue_name}")))
        if served:
            raise NotSupported(
                f"queue {queue_name!r} is served by a reliq worker, which would take the delays back; "
                "stop the workers that run with reliq, wait for their lease (10 s) to run out, and try again."
            )
        for kind in ("delayed", "dead") if letters else ("delayed",):
            doing = f"giving queue {queue_name!r} back to plain Dramatiq"
            while moved := self._transport.sender.run("to_stock", [kind, queue_name, PAGE], doing):
                yield int(moved)

    # -- telling -------------------------------------------------------------------------------------------------

    def check(self) -> list[Finding]:
        """The settings that decide whether Redis keeps what it accepts."""
        try:
            replies = self._ask("reading the server's settings", ("INFO", "memory"), ("INFO", "persistence"))
            memory, persistence = map(_info, replies)
        except ConnectionClosed as exc:
            # Away, or a server that does not show its settings: what is not known is not called well.
            memory = persistence = {}
            get_logger(__name__).debug("The server's settings cannot be read.", exc_info=exc)
        policy, aof = memory.get("maxmemory_policy"), persistence.get("aof_enabled")
        return [
            Finding(
                check="redis_maxmemory_policy",
                broker="redis",
                severity="critical",
                verdict=_verdict(policy, "noeviction"),
                found=f"maxmemory-policy {policy}",
                why="Redis evicts messages, silently, when its memory is full",
                fix="CONFIG SET maxmemory-policy noeviction",
            ),
            Finding(
                check="redis_persistence",
                broker="redis",
                severity="warning",
                verdict=_verdict(aof, "1"),
                found={"1": "Redis AOF on", "0": "Redis AOF off"}.get(aof or "", "Redis AOF unknown"),
                why="a restart loses everything",
                fix="CONFIG SET appendonly yes, and appendfsync everysec",
            ),
        ]


def _verdict(found: str | None, wanted: str) -> str:
    return "unknown" if found is None else "ok" if found == wanted else "failed"


def _info(reply: Any) -> dict[str, str]:
    if isinstance(reply, dict):
        return {str(key): str(value) for key, value in reply.items()}
    text = reply.decode("utf-8", "replace") if isinstance(reply, bytes) else str(reply)
    return dict(line.strip().split(":", 1) for line in text.splitlines() if ":" in line)


def _pairs(reply: Any) -> list[tuple[bytes, Any]]:
    """Members with scores, whether the client has paired them or not."""
    if reply and isinstance(reply[0], (tuple, list)):
        return [(member, score) for member, score in reply]
    return list(zip(reply[::2], reply[1::2]))


def _mapping(reply: Any) -> dict[bytes, bytes]:
    return reply if isinstance(reply, dict) else dict(zip(reply[::2], reply[1::2]))


def _json_object(text: bytes | None) -> dict[str, Any] | None:
    try:
        value = json.loads(text) if text is not None else None
    except (ValueError, RecursionError):  # a hostile body may be nested beyond reading
        return None
    return value if isinstance(value, dict) else None


def _json_list(text: bytes | None) -> list[Any]:
    try:
        value = json.loads(text) if text is not None else []
    except ValueError:
        return []
    return value if isinstance(value, list) else []


def _queue_of(name: str) -> list[str]:
    """The queue that a key (without its namespace) belongs to, or nothing."""
    if name.startswith(("reliq:", "__")) or ".dead.group." in name:
        return []
    for suffix in _SUFFIXES:
        if name.endswith(suffix):
            return [name[: -len(suffix)]]
    return [name]


def _glob(prefix: bytes) -> bytes:
    """The prefix with what a pattern would read differently escaped."""
    return b"".join(b"\\" + bytes([char]) if char in b"*?[]^\\" else bytes([char]) for char in prefix)
