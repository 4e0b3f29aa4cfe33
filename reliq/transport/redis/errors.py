"""The one table of redis errors: whatever the client raises leaves this folder as `ConnectionClosed`.

Dramatiq's threads survive that error only; a raw redis error ends them.
"""

from __future__ import annotations

import redis
from dramatiq.errors import ConnectionClosed

#: What the client or the socket below it may raise.
REDIS_ERRORS = (redis.RedisError, OSError)

#: By message prefix, because the classes differ between versions of the client.
_FULL = ("OOM", "MISCONF")


def is_full(exc: BaseException) -> bool:
    """Whether the server answered that it cannot store more."""
    return isinstance(exc, redis.ResponseError) and (
        str(exc).startswith(_FULL) or "OOM" in str(exc) or type(exc).__name__ == "OutOfMemoryError"
    )


def is_answer(exc: BaseException) -> bool:
    """Whether the server was reached and refused: trying again at once cannot help."""
    return isinstance(exc, redis.ResponseError) and not isinstance(exc, (redis.ReadOnlyError, redis.BusyLoadingError))


def is_unknown_command(exc: BaseException) -> bool:
    """Whether the server is too old for a command."""
    return isinstance(exc, redis.ResponseError) and "unknown command" in str(exc).lower()


def may_have_arrived(exc: BaseException) -> bool:
    """Whether the server may have done what was asked, though nobody heard it say so."""
    if isinstance(exc, (redis.ResponseError, redis.AuthenticationError)):
        return False
    # The client tells a failed connect from a failed read by its text alone; a contract test holds it to that.
    return "connecting" not in str(exc).lower()


def closed(exc: BaseException, doing: str) -> ConnectionClosed:
    """The error that leaves this folder, the cause attached."""
    error = ConnectionClosed(f"{doing}: {type(exc).__name__}: {exc}")
    error.__cause__ = exc
    return error
