"""Group barriers that count each message once.

Dramatiq's barrier is a number that each message of a group lowers by one when it is done; a redelivered message
lowers it again, so that the callback fires too early, and twice. Here each message id counts once, and the id that
completed the barrier completes it again when it comes back, because its callback may have been lost with its ack.
"""

from __future__ import annotations

from typing import Any

from dramatiq.logging import get_logger
from dramatiq.middleware import GroupCallbacks, Middleware
from dramatiq.rate_limits import RateLimiterBackend

from ..signals import ending_message
from .errors import REDIS_ERRORS, closed

#: KEYS: the barrier, its ids (set), its completer (string). ARGV: amount, minimum, ttl in ms, message id.
#: Returns 1 if the barrier is still up, 0 if this message completes it.
_DECREASE = """
redis.call("pexpire", KEYS[1], ARGV[3])  -- a write that a full server allows; after it the others are allowed too
if redis.call("sadd", KEYS[2], ARGV[4]) == 0 then
    return redis.call("get", KEYS[3]) == ARGV[4] and 0 or 1
end
redis.call("pexpire", KEYS[2], ARGV[3])
local value = tonumber(redis.call("get", KEYS[1]) or "0") - tonumber(ARGV[1])
if value < tonumber(ARGV[2]) then
    redis.call("set", KEYS[3], ARGV[4], "px", ARGV[3])
    return 0
end
redis.call("set", KEYS[1], value, "px", ARGV[3])
return 1
"""


class CountingBackend(RateLimiterBackend):
    """A `RedisBackend` whose `decr` counts the message that is ending on this thread once."""

    def __init__(self, backend: Any) -> None:
        self._backend = backend
        self._decrease = backend.client.register_script(_DECREASE)

    def decr(self, key: str, amount: int, minimum: int, ttl: int) -> bool:
        """As the backend's; False once the barrier is complete."""
        message = ending_message()
        if message is None:
            return bool(self._backend.decr(key, amount, minimum, ttl))
        keys = [key, f"{key}:reliq:ids", f"{key}:reliq:completer"]
        try:
            return bool(self._decrease(keys=keys, args=[amount, minimum, ttl, message.message_id]))
        except REDIS_ERRORS as exc:
            raise closed(exc, f"counting message {message.message_id!r} at its group's barrier") from exc

    def add(self, key: str, value: int, ttl: int) -> bool:
        """The backend's own."""
        return bool(self._backend.add(key, value, ttl))

    def incr(self, key: str, amount: int, maximum: int, ttl: int) -> bool:
        """The backend's own."""
        return bool(self._backend.incr(key, amount, maximum, ttl))

    def incr_and_sum(self, key: str, keys: Any, amount: int, maximum: int, ttl: int) -> bool:
        """The backend's own."""
        return bool(self._backend.incr_and_sum(key, keys, amount, maximum, ttl))

    def wait(self, key: str, timeout: int | None) -> bool:
        """The backend's own."""
        return bool(self._backend.wait(key, timeout))

    def wait_notify(self, key: str, ttl: int) -> None:
        """The backend's own. Only who blocks on the barrier waits for it: a full server must not hold up the rest."""
        try:
            self._backend.wait_notify(key, ttl)
        except REDIS_ERRORS as exc:
            get_logger(__name__).warning("Nobody who waits on barrier %r is woken: %s", key, exc)


def count_once(middleware: Middleware) -> None:
    """Make a `GroupCallbacks` over Redis count each message once; anything else is left alone."""
    if not isinstance(middleware, GroupCallbacks):
        return
    backend = middleware.rate_limiter_backend
    if (
        not isinstance(backend, CountingBackend)
        and hasattr(backend, "client")
        and type(backend).__name__ == "RedisBackend"
    ):
        middleware.rate_limiter_backend = CountingBackend(backend)
