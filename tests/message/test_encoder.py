"""`reliq.JSONEncoder`: typed values arrive as they were sent, with orjson and without, compressed or not."""

from __future__ import annotations

import enum
import json
import math
import uuid
import zlib
from dataclasses import dataclass
from datetime import date, datetime, time, timedelta, timezone
from decimal import Decimal
from typing import Any, NamedTuple

import dramatiq
import pytest
from dramatiq.errors import DecodeError
from hypothesis import given
from hypothesis import strategies as st

import reliq
from reliq.message import encoder

ENCODER = reliq.JSONEncoder()
#: Of no zone: that is sent too.
NOON = datetime(2026, 11, 24, 12)  # noqa: DTZ001
TYPED: list[Any] = [
    NOON,
    datetime(2026, 11, 24, 12, 30, tzinfo=timezone(timedelta(hours=5, minutes=30))),
    date(2026, 11, 24),
    time(23, 59, 59),
    Decimal("10.50"),
    uuid.UUID(int=7),
    b"text",
    b"\xff\x00",
]
scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text()
    | st.text(st.characters(categories=["Cs", "Lu"]))
    | st.binary(max_size=20)
    | st.datetimes(timezones=st.none() | st.just(timezone.utc))
    | st.dates()
    | st.times()
    | st.decimals(allow_nan=False)
    | st.uuids()
)
keys = st.text(max_size=8) | st.sampled_from(["__type__", "__value__"])
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(keys, inner, max_size=4), max_leaves=30
)


def fields(value: Any) -> dict[str, Any]:
    return {"queue_name": "default", "args": [value], "options": {}}


def outcome(step: Any, *args: Any) -> Any:
    """What it returns, or the type of what it raises; NaN as a word, because it equals nothing."""
    try:
        return _comparable(step(*args))
    except Exception as exc:
        return type(exc)


def _comparable(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _comparable(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_comparable(inner) for inner in value]
    if isinstance(value, float):
        return "nan" if math.isnan(value) else (value, math.copysign(1, value))
    return (type(value), value)


@pytest.fixture
def without_orjson(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoder, "orjson", None)


@pytest.mark.parametrize("value", TYPED, ids=repr)
def test_typed_values_arrive_as_they_were_sent(value: Any) -> None:
    """Alone and nested; the type too."""
    got = ENCODER.decode(ENCODER.encode(fields([value, {"in": value}])))["args"][0]
    assert got == [value, {"in": value}]
    assert type(got[0]) is type(value)


@pytest.mark.parametrize(
    ("value", "form"),
    [
        (NOON, {"__type__": "datetime", "__value__": "2026-11-24T12:00:00"}),
        (date(2026, 11, 24), {"__type__": "date", "__value__": "2026-11-24"}),
        (Decimal("1.0"), {"__type__": "decimal", "__value__": "1.0"}),
        (uuid.UUID(int=1), {"__type__": "uuid", "__value__": {"hex": "0" * 31 + "1"}}),
        (b"a", {"__type__": "bytes", "__value__": "a"}),
        (b"\xff", {"__type__": "base64", "__value__": "/w=="}),
    ],
)
def test_their_form_is_kombus(value: Any, form: dict[str, Any]) -> None:
    """So that Celery's producers and ours write the same."""
    assert json.loads(ENCODER.encode({"args": [value]})) == {"args": [form]}


def test_a_celery_writers_time_with_z_is_read() -> None:
    """Python 3.10 alone would not."""
    body = b'{"at": {"__type__": "datetime", "__value__": "2026-11-24T12:00:00Z"}}'
    assert ENCODER.decode(body) == {"at": datetime(2026, 11, 24, 12, tzinfo=timezone.utc)}


@given(values)
def test_with_and_without_orjson_a_body_has_the_same_meaning(value: Any) -> None:
    """What either writes, both read as the same; where one refuses, both do."""
    kept = encoder.orjson
    assert kept is not None
    data = fields(value)
    body = outcome(ENCODER.encode, data)
    quick = ENCODER.encode(data) if body is not TypeError else None
    try:
        encoder.orjson = None  # type: ignore[assignment]
        slow = ENCODER.encode(data) if outcome(ENCODER.encode, data) is not TypeError else None
        assert (quick is None) == (slow is None)
        if quick is None or slow is None:
            return
        by_json = [outcome(ENCODER.decode, each) for each in (quick, slow)]
    finally:
        encoder.orjson = kept
    assert by_json == [outcome(ENCODER.decode, each) for each in (quick, slow)]
    assert by_json[0] == by_json[1]


@given(st.text('[]{}",:0123456789.eE+-nultrfasNI\\ \n\x00_typev/é\ud800', max_size=60) | st.binary(max_size=40))
def test_both_read_any_text_alike(text: str | bytes) -> None:
    """Also what is no JSON: read alike, or refused by both."""
    body = text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass")
    kept = encoder.orjson
    quick = outcome(ENCODER.decode, body)
    try:
        encoder.orjson = None  # type: ignore[assignment]
        assert outcome(ENCODER.decode, body) == quick
    finally:
        encoder.orjson = kept


class _Colour(enum.Enum):
    RED = "red"


@dataclass
class _Point:
    x: int


class _Pair(NamedTuple):
    a: int
    b: int


@pytest.mark.parametrize("value", [_Colour.RED, _Point(1), {1, 2}, object(), 1j, [uuid.UUID(int=1), _Colour.RED]])
def test_what_json_has_no_form_for_is_refused_with_and_without_orjson(
    value: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though orjson has forms of its own for some."""
    for used in (encoder.orjson, None):
        monkeypatch.setattr(encoder, "orjson", used)
        with pytest.raises(TypeError, match="cannot be sent in a message"):
            ENCODER.encode(fields(value))


@pytest.mark.parametrize(
    "value",
    [
        2**70,
        -(2**63),
        2**64 - 1,
        1e400,
        -0.0,
        float("nan"),
        _Pair(1, 2),
        {1: 2},
        "\ud800",
        "\u00e9\\u005f",
        {"__type__": 1},
    ],
)
def test_the_edges_of_both_are_the_same(value: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Long integers, infinities, half surrogate pairs, keys that are no text."""
    read = []
    for used in (encoder.orjson, None):
        monkeypatch.setattr(encoder, "orjson", used)
        body = ENCODER.encode(fields(value))
        for reading in (encoder.orjson, None):
            monkeypatch.setattr(encoder, "orjson", reading)
            read.append(outcome(ENCODER.decode, body))
    assert all(each == read[0] for each in read)


@pytest.mark.parametrize("with_orjson", [True, False])
def test_it_reads_and_writes_what_dramatiqs_encoder_does(with_orjson: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Plain values: either end may be the other's, so that a fleet can change one process at a time."""
    if not with_orjson:
        monkeypatch.setattr(encoder, "orjson", None)
    stock, data = dramatiq.JSONEncoder(), fields({"a": [1, 2.5, None, True, "é"]})
    assert ENCODER.decode(stock.encode(data)) == data
    assert stock.decode(ENCODER.encode(data)) == data


def test_orjson_is_used_where_it_may_be(monkeypatch: pytest.MonkeyPatch) -> None:
    """A plain message goes through it both ways; else nothing would be won."""
    kept, calls = encoder.orjson, []
    assert kept is not None

    class Spy:
        @staticmethod
        def dumps(data: Any) -> bytes:
            calls.append("dumps")
            return kept.dumps(data)

        @staticmethod
        def loads(data: bytes) -> Any:
            calls.append("loads")
            return kept.loads(data)

    monkeypatch.setattr(encoder, "orjson", Spy)
    message: Any = dramatiq.Message("default", "pay", (17, "EUR", 12.5), {"tags": ["a", "b"]}, {"retries": 1})
    ENCODER.decode(ENCODER.encode(message.asdict()))
    assert calls == ["dumps", "loads"]


@pytest.mark.parametrize(
    ("body", "why"),
    [
        (b'{"a": {"__type__": "shape", "__value__": 1}}', "unknown type 'shape'"),
        (b'{"a": {"__type__": ["x"], "__value__": 1}}', "unknown type"),
        (b'{"a": {"__type__": "datetime", "__value__": "soon"}}', "'datetime' cannot be read"),
        (b'{"a": {"__type__": "decimal", "__value__": "ten"}}', "'decimal' cannot be read"),
        (b'{"a": {"__type__": "uuid", "__value__": {"int": 5}}}', "'uuid' cannot be read"),
        (b'{"a": {"__type__": "base64", "__value__": "?"}}', "'base64' cannot be read"),
        (b"\xff\xfe", "cannot be read"),
        (b"", "cannot be read"),
        (b"[" * 100_000, "cannot be read"),
        (b"9" * 5_000, "cannot be read"),
    ],
)
def test_what_cannot_be_read_says_why(body: bytes, why: str) -> None:
    """`DecodeError`, as Dramatiq expects of an encoder."""
    with pytest.raises(DecodeError, match=why):
        ENCODER.decode(body)


# -- compression -----------------------------------------------------------------------------------------------------


def test_a_body_above_the_size_is_compressed_and_read_by_all() -> None:
    """Smaller ones, and ones that would not shrink, stay as they are; who does not compress reads it too."""
    writer = reliq.JSONEncoder(compress_above=1_000)
    large, small = fields("x" * 5_000), fields("x" * 500)
    assert len(writer.encode(large)) < 200
    assert ENCODER.decode(writer.encode(large)) == large
    assert writer.encode(small) == ENCODER.encode(small)


def test_nothing_is_compressed_unless_asked() -> None:
    """So that readers can be upgraded first."""
    assert ENCODER.encode(fields("x" * 1_000_000))[:1] == b"{"


@pytest.mark.parametrize("short", [0, 1])
def test_what_it_may_inflate_to_is_bounded(short: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A body of just the bound is read, one byte more is refused before it is inflated."""
    body = ENCODER.encode(fields("x" * 10_000))
    monkeypatch.setattr(encoder, "MOST_INFLATED", len(body) - short)
    if not short:
        assert ENCODER.decode(zlib.compress(body)) == fields("x" * 10_000)
        return
    with pytest.raises(DecodeError, match=r"inflates to more than 10,\d{3} bytes"):
        ENCODER.decode(zlib.compress(body))


def test_a_bomb_costs_no_more_than_the_bound() -> None:
    """1 GiB in 1 MB: refused, with at most the bound in memory."""
    bomb = zlib.compressobj(9)
    body = b"".join([bomb.compress(b"0" * (1 << 20)) for _ in range(1 << 10)] + [bomb.flush()])
    with pytest.raises(DecodeError, match="inflates to more than"):
        ENCODER.decode(body)


@pytest.mark.parametrize("cut", [slice(0, -3), slice(0, 1)])
def test_a_compressed_body_that_is_cut_cannot_be_read(cut: slice) -> None:
    """Nor one with something behind it."""
    body = zlib.compress(ENCODER.encode(fields("x" * 1_000)))
    for broken in (body[cut], body + b"more"):
        with pytest.raises(DecodeError, match="cannot be read"):
            ENCODER.decode(broken)


@pytest.mark.parametrize("value", ["1000", True, 1.5])
def test_a_size_that_is_none_is_refused(value: Any) -> None:
    """With a word on what to give."""
    with pytest.raises(TypeError, match="compress_above must be a number of bytes or None"):
        reliq.JSONEncoder(compress_above=value)


@pytest.mark.usefixtures("without_orjson")
def test_it_works_without_orjson() -> None:
    """Which is an extra."""
    assert ENCODER.decode(ENCODER.encode(fields(Decimal("1.10")))) == fields(Decimal("1.10"))
