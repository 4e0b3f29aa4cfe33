"""Has pika read headers that it would otherwise lose the connection over.

Caller: the link, before it connects. pika turns a header of AMQP's type for a time into a `datetime`, and raises where
the number is beyond the year 9999 (a producer that wrote milliseconds, say). That ends the connection; the broker
delivers the message again on the next one, and nothing behind it is ever consumed. Such a value is read as the number
that it is. The one place where we change a function of pika's; a contract test holds it to what pika does.
"""

from __future__ import annotations

import struct
from typing import Any

from pika import data

_TIME = b"T"
#: The largest integer that a header is sent with.
_MOST = 2**63 - 1

_pikas_own = data.decode_value


def _decode_value(encoded: bytes, offset: int) -> tuple[Any, int]:
    try:
        value: tuple[Any, int] = _pikas_own(encoded, offset)
        return value
    except (ValueError, OverflowError, OSError):
        if encoded[offset : offset + 1] != _TIME:
            raise
        (number,) = struct.unpack_from(">Q", encoded, offset + 1)
        return (number if number <= _MOST else str(number)), offset + 9


def tolerate() -> None:
    """From here on; repeating it changes nothing."""
    data.decode_value = _decode_value
