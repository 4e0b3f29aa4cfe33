"""When the upstream said to come back: where it may stand, what it may say, and what is no answer."""

from datetime import datetime, timedelta, timezone
from email.message import Message
from email.utils import format_datetime
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reliq.policy.retry_after import asks_to_wait
from reliq.policy.transient import retry_after_ms

NOW_S = 1_785_000_000.0
DAY_MS = 86_400_000


def http_date(seconds_from_now: float) -> str:
    moment = datetime.fromtimestamp(NOW_S, timezone.utc) + timedelta(seconds=seconds_from_now)
    return format_datetime(moment, usegmt=True)


def carrying(**attributes: Any) -> Exception:
    error = Exception()
    for name, value in attributes.items():
        setattr(error, name, value)
    return error


def replied(**headers: Any) -> Exception:
    """An exception with a reply; `_` stands for `-` in the names of headers."""
    return carrying(response=SimpleNamespace(headers={name.replace("_", "-"): v for name, v in headers.items()}))


def as_message(text: str) -> Message:
    message = Message()
    message["RETRY-AFTER"] = text
    return message


SAID = [
    (replied(Retry_After="120"), 120_000),
    (replied(Retry_After=" 7 "), 7_000),
    (replied(retry_after="7"), 7_000),  # a plain dict in lower case, as HTTP/2 has it
    (replied(Retry_After=b"7"), 7_000),  # h11
    (replied(Retry_After="0.2501"), 251),  # not in the RFC, but sent; rounded up to whole ms
    (carrying(headers=as_message("7")), 7_000),  # urllib: any spelling
    (carrying(response={"ResponseMetadata": {"HTTPHeaders": {"retry-after": "7"}}}), 7_000),  # botocore
    (carrying(retry_after=7), 7_000),  # aiogram, discord.py
    (carrying(retry_after=1.5), 1_500),
    (carrying(retry_after=timedelta(minutes=2)), 120_000),
    (carrying(retry_after="7"), 7_000),
    (carrying(retry_after=None, headers={"Retry-After": "7"}), 7_000),
    (carrying(retry_after="soon", headers={"Retry-After": "7"}), 7_000),  # what makes no sense is passed over
    (carrying(retry_after=3, headers={"Retry-After": "7"}), 3_000),  # the attribute first
    (replied(Retry_After=http_date(90)), 90_000),  # no Date: against now
    (replied(Retry_After=http_date(90), Date=http_date(-10)), 100_000),  # against the upstream's own clock
    (replied(Retry_After=http_date(90), Date=http_date(86_400)), None),  # by its own clock it is past
    (replied(Retry_After=http_date(90), Date="today"), 90_000),
    (replied(Retry_After=http_date(90).replace("GMT", "-0000")), 90_000),  # a zone unknown is UTC
    (replied(Retry_After=str(30 * 86_400)), 30 * DAY_MS),  # the longest that is believed
]


@pytest.mark.parametrize(("error", "expected_ms"), SAID)
def test_said(error: Exception, expected_ms: int | None) -> None:
    assert retry_after_ms(error, NOW_S) == expected_ms


NOTHING = [
    carrying(),
    replied(),
    replied(Retry_After=""),
    replied(Retry_After="0"),  # no wait: the usual backoff, or a herd would be back within a second
    replied(Retry_After="-5"),
    replied(Retry_After="soon"),
    replied(Retry_After="1e9"),
    replied(Retry_After="120, 120"),
    replied(Retry_After="٣"),  # a digit, but not one of HTTP's
    replied(Retry_After="9" * 400),
    replied(Retry_After=str(30 * 86_400 + 1)),
    replied(Retry_After="1785000090"),  # seconds since the epoch, a common mistake
    replied(Retry_After=http_date(-1)),
    replied(Retry_After="Fri, 99 Foo 2026 99:99:99 GMT"),
    replied(Retry_After="Fri, 31 Dec 9999 23:59:59 -9999"),
    replied(Retry_After="x" * 10_000),
    replied(Retry_After=None),
    replied(Retry_After=["7"]),
    carrying(response=SimpleNamespace(headers=[("Retry-After", "7")])),  # pairs: no mapping
    carrying(response=SimpleNamespace(headers=None)),
    carrying(retry_after=True),
    carrying(retry_after=-1),
    carrying(retry_after=0),
    carrying(retry_after=float("nan")),
    carrying(retry_after=float("inf")),
    carrying(retry_after=10**400),  # no float holds it
    carrying(retry_after=timedelta(days=-1)),
    carrying(retry_after=timedelta.max),
    carrying(retry_after=lambda: 5),
]


@pytest.mark.parametrize("error", NOTHING, ids=lambda error: str(vars(error)).partition(" at 0x")[0][:60])
def test_what_makes_no_sense_is_no_answer(error: Exception) -> None:
    assert retry_after_ms(error, NOW_S) is None


def test_it_may_stand_on_the_cause() -> None:
    error = RuntimeError("could not charge")
    error.__cause__ = replied(Retry_After="7")
    assert retry_after_ms(error, NOW_S) == 7_000
    assert not asks_to_wait(error)


def test_the_longest_of_a_group_counts() -> None:
    group = carrying(exceptions=[replied(Retry_After="7"), carrying(), replied(Retry_After="20")])
    assert retry_after_ms(group, NOW_S) == 20_000


class Hostile(Exception):
    def __getattr__(self, name: str) -> Any:
        raise SystemExit(name)


class HostileHeaders:
    def get(self, name: str) -> Any:
        raise KeyboardInterrupt


def test_hostile_attributes_are_no_answer() -> None:
    for error in (Hostile(), carrying(headers=HostileHeaders()), carrying(response=Hostile(), headers=Hostile())):
        assert retry_after_ms(error, NOW_S) is None
        assert not asks_to_wait(error)


@given(st.text() | st.integers() | st.floats() | st.binary() | st.timedeltas() | st.datetimes(), st.text())
def test_any_value_gives_a_wait_or_none(value: Any, date: str) -> None:
    for error in (carrying(retry_after=value), replied(Retry_After=value, Date=date)):
        wait = retry_after_ms(error, NOW_S)
        assert wait is None or (type(wait) is int and 0 < wait <= 30 * DAY_MS)
