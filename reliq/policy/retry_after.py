"""When the upstream said to come back.

Callers: `middleware/retries.py` and the guards, through `transient`.
Guarantee: a wait of more than 0 and at most 30 days, or None; never raises, whatever the upstream sent.
Not here: the jitter on top (`backoff.with_retry_after`).
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from email.utils import parsedate_to_datetime
from typing import Any

from .foreign import attribute, is_a, item, leaves, with_causes

#: More than a month is a mistake of the upstream: a broken clock, ms sent as seconds.
LONGEST_S = 30 * 86_400

_SECONDS = re.compile(r"[0-9]{1,10}(\.[0-9]{1,9})?")


def retry_after_ms(error: BaseException, now_s: float) -> int | None:
    """The wait in ms that the exception, or one that caused it, carries; None if it carries none that makes
    sense.

    Read from its attribute `retry_after` (seconds, or a timedelta), else from the header Retry-After of
    `error.response.headers` or `error.headers`: seconds, or an HTTP date, which counts against the reply's
    own Date header, else against `now_s` (seconds since the epoch). Zero, a moment in the past, what is
    malformed or above 30 days is no answer: the usual backoff applies. In a group of exceptions the longest
    wait counts.
    """
    waits = [wait for leaf in leaves(error) for wait in [_first_wait(leaf, now_s)] if wait is not None]
    return max(waits, default=None)


def asks_to_wait(error: BaseException) -> bool:
    """Whether this exception itself carries a Retry-After, readable or not."""
    return any(True for _ in _carried(error))


def _first_wait(error: BaseException, now_s: float) -> int | None:
    for link in with_causes(error):
        for value, sent in _carried(link):
            seconds = _seconds(value, sent, now_s)
            if seconds is not None and 0 < seconds <= LONGEST_S:
                return math.ceil(seconds * 1_000)
    return None


def _carried(error: BaseException) -> Iterator[tuple[Any, str | None]]:
    """Each Retry-After of the exception with the Date beside it."""
    given = attribute(error, "retry_after")
    if given is not None:
        yield given, None
    response = attribute(error, "response")
    for headers in (
        attribute(response, "headers"),
        attribute(error, "headers"),
        item(response, "ResponseMetadata", "HTTPHeaders"),  # botocore
    ):
        given = _header(headers, "Retry-After")
        if given is not None:
            yield given, _header(headers, "Date")


def _header(headers: Any, name: str) -> str | None:
    # A plain dict knows one spelling only; the mappings of HTTP clients take any.
    for spelling in (name, name.lower()):
        try:
            value = headers.get(spelling)
        except BaseException:  # None, a list of pairs, or a mapping of the user's
            return None
        if is_a(value, bytes):
            value = bytes.decode(value, "latin-1")
        if is_a(value, str):
            return str.strip(value)
    return None


def _seconds(value: Any, sent: str | None, now_s: float) -> float | None:
    if is_a(value, timedelta):
        return timedelta.total_seconds(value)
    if is_a(value, int) and not is_a(value, bool):
        # Before the comparison: an int may be too large for a float.
        return float(min(max(int.__add__(value, 0), 0), LONGEST_S + 1))
    if is_a(value, float):
        return float.__add__(value, 0.0)
    if not is_a(value, str):
        return None
    text = str.strip(value)
    if _SECONDS.fullmatch(text):
        return float(text)
    due = _epoch_s(text)
    if due is None:
        return None
    from_s = _epoch_s(sent) if sent is not None else None
    return due - (now_s if from_s is None else from_s)


def _epoch_s(text: str) -> float | None:
    """An HTTP date as seconds since the epoch."""
    if len(text) > 64:
        return None
    try:
        moment: datetime = parsedate_to_datetime(text)
        # "-0000" gives a time without zone, which means UTC.
        return moment.replace(tzinfo=moment.tzinfo or timezone.utc).timestamp()
    except (ValueError, TypeError, IndexError, OverflowError, ArithmeticError):
        return None
