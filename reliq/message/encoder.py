"""An encoder for Dramatiq whose messages also hold dates, decimals, UUIDs and bytes, and may be compressed.

Callers: applications (`dramatiq.set_encoder(reliq.JSONEncoder())`). Typed values have the form that kombu gives them,
`{"__type__": ..., "__value__": ...}`, so that Celery's producers and ours write the same. Guarantee: with and without
orjson a body has the same meaning; what orjson reads or writes otherwise goes through `json`.
"""

from __future__ import annotations

import base64
import json
import math
import uuid
import zlib
from collections.abc import Callable
from datetime import date, datetime, time
from decimal import Decimal
from typing import Any

from dramatiq.encoder import Encoder
from dramatiq.errors import DecodeError

try:
    import orjson
except ImportError:  # an extra: `fast`
    orjson = None  # type: ignore[assignment]

#: What a compressed body may inflate to, in bytes: more is a bomb, not a message.
MOST_INFLATED = 64 * 1024 * 1024

#: The first byte of a zlib stream (RFC 1950: deflate, a window of 32 KiB); no JSON begins with it.
_ZLIB = b"\x78"

#: How many values are looked at before a body is written by orjson; checking more costs more than it saves.
_MOST_LOOKED_AT = 100
#: Digits in a row, from which on an integer may be too large for orjson, which would read a float.
_LONG = b"0" * 19
_DIGITS = bytes.maketrans(b"123456789", b"000000000")


class JSONEncoder(Encoder):
    """JSON with typed values: `datetime`, `date`, `time`, `Decimal`, `UUID` and `bytes` arrive as they were sent.

    Reads what Dramatiq's own encoder writes, typed values and compressed bodies, whatever its settings; writes typed
    values where a message holds some, and compressed bodies only if told to. So upgrade a fleet in two steps: first
    set this encoder everywhere, then let producers send typed values or set `compress_above`: a reader that knows only
    plain JSON hands a typed value to the actor as a dict, and makes a dead letter of a compressed body.

    `compress_above`: bodies of more bytes than that are compressed (zlib) if that makes them smaller; None = never.

    A dict of exactly the keys `__type__` and `__value__` is a typed value to every reader, as in Celery; an unknown
    type cannot be decoded. Raises `DecodeError` for what cannot be read, `TypeError` for what JSON has no form for.
    """

    def __init__(self, *, compress_above: int | None = None) -> None:
        if compress_above is not None and (isinstance(compress_above, bool) or not isinstance(compress_above, int)):
            raise TypeError(f"compress_above must be a number of bytes or None, got {compress_above!r}")
        self._compress_above = compress_above

    def __repr__(self) -> str:
        return f"{type(self).__name__}(compress_above={self._compress_above!r})"

    def encode(self, data: dict[str, Any]) -> bytes:
        """A message's fields as a body."""
        body = _written(data)
        if self._compress_above is not None and len(body) > self._compress_above:
            smaller = zlib.compress(body)
            return smaller if len(smaller) < len(body) else body
        return body

    def decode(self, data: bytes) -> dict[str, Any]:
        """The fields in a body."""
        try:
            fields: dict[str, Any] = _read(_inflated(data) if data[:1] == _ZLIB else data)
            return fields
        except (ValueError, RecursionError, ArithmeticError, zlib.error) as exc:
            raise DecodeError(f"the body cannot be read: {exc}", data, exc) from exc


# -- bodies ----------------------------------------------------------------------------------------------------


def _written(data: Any) -> bytes:
    if orjson is not None and _is_plain(data):
        try:
            return orjson.dumps(data)
        except TypeError:
            pass  # an integer beyond 64 bits, half of a surrogate pair: `json` has a form for them
    return json.dumps(data, separators=(",", ":"), default=_typed).encode()


def _read(data: bytes) -> Any:
    if orjson is not None and not _needs_json(data):
        try:
            return orjson.loads(data)
        except ValueError:
            pass  # NaN, half of a surrogate pair; or it is no JSON, and `json` says so
    return json.loads(data.decode("utf-8"), object_hook=_untyped)


def _inflated(data: bytes) -> bytes:
    inflating = zlib.decompressobj()
    body = inflating.decompress(data, MOST_INFLATED)
    if inflating.unconsumed_tail or (len(body) == MOST_INFLATED and not inflating.eof):
        raise ValueError(f"it inflates to more than {MOST_INFLATED:,} bytes")
    if not inflating.eof or inflating.unused_data:
        raise ValueError("it is not one whole zlib stream")
    return body


def _needs_json(data: bytes) -> bool:
    """Whether orjson would read it otherwise: typed values (the tag may be written with escapes), long integers."""
    return b"__type__" in data or b"\\u00" in data or _LONG in data.translate(_DIGITS)


def _is_plain(data: Any) -> bool:
    """Whether orjson writes it as `json` does: only values of JSON's own types, not too many of them. It would write
    NaN as null, and UUIDs, enums and dataclasses in forms of its own."""
    looked_at, left = 0, [data]
    while left:
        value = left.pop()
        kind = type(value)
        if kind is dict:
            left.extend(value.values())
            left.extend(value)
        elif kind is list or kind is tuple:
            left.extend(value)
        elif not (kind is str or kind is int or kind is bool or value is None):
            if kind is not float or not math.isfinite(value):
                return False
        looked_at += 1
        if looked_at + len(left) > _MOST_LOOKED_AT:
            return False
    return True


# -- typed values: kombu's, see kombu/utils/json.py --------------------------------------------------------------


def _typed(value: Any) -> dict[str, Any]:
    """A value that JSON has no form for."""
    if isinstance(value, datetime):
        return {"__type__": "datetime", "__value__": value.isoformat()}
    if isinstance(value, (date, time)):
        return {"__type__": "date" if isinstance(value, date) else "time", "__value__": value.isoformat()}
    if isinstance(value, Decimal):
        return {"__type__": "decimal", "__value__": str(value)}
    if isinstance(value, uuid.UUID):
        return {"__type__": "uuid", "__value__": {"hex": value.hex}}
    if isinstance(value, bytes):
        try:
            return {"__type__": "bytes", "__value__": value.decode("utf-8")}
        except UnicodeDecodeError:
            return {"__type__": "base64", "__value__": base64.b64encode(value).decode("ascii")}
    raise TypeError(f"a {type(value).__name__} cannot be sent in a message; send a value that JSON has, or its text")


def _moment(text: str) -> datetime:
    # Python 3.10 does not read the Z of other writers.
    return datetime.fromisoformat(text[:-1] + "+00:00" if text.endswith("Z") else text)


_READERS: dict[str, Callable[[Any], Any]] = {
    "datetime": _moment,
    "date": lambda text: _moment(text).date(),
    "time": time.fromisoformat,
    "decimal": Decimal,
    "uuid": lambda value: uuid.UUID(hex=value["hex"]),
    "bytes": lambda text: text.encode("utf-8"),
    "base64": lambda text: base64.b64decode(text, validate=True),
}


def _untyped(value: dict[str, Any]) -> Any:
    if value.keys() != {"__type__", "__value__"}:
        return value
    kind = value["__type__"]
    reader = _READERS.get(kind) if isinstance(kind, str) else None
    if reader is None:
        raise ValueError(f"typed value of unknown type {kind!r}")
    try:
        return reader(value["__value__"])
    except Exception as exc:
        raise ValueError(f"typed value {kind!r} cannot be read: {exc}") from exc
