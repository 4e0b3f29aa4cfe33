"""The record under any input: what is unknown is kept, what is newer untouched, what is hostile left out."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reliq.message.record import KEY, MAX_ATTEMPTS_KEPT, MAX_RECORD_BYTES, VERSION, Record, with_record

TIMES = ("first_failed_at", "unknown_since", "eligible_at", "deadline")
COUNTS = ("deferrals", "deferred_ms", "crashes", "suspicions")
TABLES = ("replay", "celery", "trace", "dead")
KNOWN = {"v", "attempts", "effect_key", *TIMES, *COUNTS, *TABLES}

#: What JSON can hold, NaN and infinities as Python's decoder lets them in.
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda children: st.lists(children, max_size=3) | st.dictionaries(st.text(max_size=8), children, max_size=3),
    max_leaves=8,
)
#: Records as anybody might write them: known names with any value, and other names.
records = st.dictionaries(st.sampled_from(sorted(KNOWN)) | st.text(max_size=10), json_values, max_size=12)
times = st.integers(0, 2**63 - 1)
attempts = st.fixed_dictionaries(
    {"at": times, "error": st.text(max_size=120), "message": st.text(max_size=500)},
    optional={"host": st.text(max_size=60), "pid": st.integers(1, 2**22), "duration_ms": times, "version": st.none()},
)


def dumped(raw: object) -> dict[str, Any]:
    """Read and write back."""
    return Record(raw).dump()


@given(json_values | records)
def test_reading_never_raises_and_writing_gives_json(raw: object) -> None:
    """Whatever lies in options["reliq"]."""
    record = Record(raw)
    json.dumps(record.dump())
    Record.read({KEY: raw, "other": 1})


@given(records)
def test_what_was_read_is_sound(raw: dict[str, Any]) -> None:
    """Times and counts are whole numbers from 0 to 2^63, tables are dicts, attempts are dicts, 10 at most."""
    record = Record(raw)
    for name in TIMES:
        value = getattr(record, name)
        assert value is None or (type(value) is int and 0 <= value < 2**63)
    for name in COUNTS:
        assert type(getattr(record, name)) is int
        assert 0 <= getattr(record, name) < 2**63
    for name in TABLES:
        assert getattr(record, name) is None or isinstance(getattr(record, name), dict)
    assert record.effect_key is None or isinstance(record.effect_key, str)
    assert len(record.attempts) <= MAX_ATTEMPTS_KEPT
    assert all(isinstance(attempt, dict) for attempt in record.attempts)


@given(st.dictionaries(st.text(max_size=10).filter(lambda key: key not in KNOWN), json_values, min_size=1))
def test_unknown_keys_are_kept(extra: dict[str, Any]) -> None:
    """Also when something is added."""
    record = Record({"v": 1, **extra})
    record.deferrals += 1
    kept = {key: value for key, value in record.dump().items() if key in extra}
    assert repr(kept) == repr(extra)  # by text: a NaN is not equal to itself


@given(records, st.integers(VERSION + 1, 2**70))
def test_a_newer_record_is_never_rewritten(raw: dict[str, Any], version: int) -> None:
    """Byte for byte, whatever is set on it."""
    newer = {**raw, "v": version}
    text = json.dumps(newer)
    record = Record(newer)
    assert record.is_newer
    record.add_attempt(at=5, error="x", message="y")
    record.deferrals += 1
    record.dead = {"id": "x"}
    record.shed()
    assert json.dumps(record.dump()) == text
    assert json.dumps(with_record({KEY: newer, "mine": 1}, record)[KEY]) == text


@given(records)
def test_what_was_written_is_read_again_as_it_was(raw: dict[str, Any]) -> None:
    """dump(read(dump(x))) == dump(x), through JSON."""
    once = dumped(raw)
    assert repr(dumped(json.loads(json.dumps(once)))) == repr(once)


@given(st.lists(attempts, max_size=30))
def test_a_record_keeps_the_last_attempts_within_its_limit(items: list[dict[str, Any]]) -> None:
    """The newest, 10 at most, 16 KiB of JSON at most; the first failure's time stays."""
    record = Record()
    for item in items:
        record.add_attempt(**item)
    data = record.dump()
    kept = data.get("attempts", [])
    assert len(json.dumps(data)) <= MAX_RECORD_BYTES
    assert [attempt["at"] for attempt in kept] == [item["at"] for item in items][len(items) - len(kept) :]
    if items:
        assert record.first_failed_at == items[0]["at"]


@pytest.mark.parametrize("size", range(0, 501, 25))
def test_ten_attempts_of_any_size_leave_the_whole_record_within_its_limit(size: int) -> None:
    """What JSON escapes (6 bytes a character) counts as it is stored; everything else is there beside them."""
    record = Record({**dict.fromkeys((*TIMES, *COUNTS), 2**62), "effect_key": "k" * 200})
    for at in range(10):
        record.add_attempt(at=at, error="é" * 120, message="é" * size, host="h" * 60, pid=1, duration_ms=5, version="1")
    data = record.dump()
    assert len(json.dumps(data)) <= MAX_RECORD_BYTES
    assert data["attempts"][-1]["at"] == 9


@given(records)
def test_a_record_stays_within_its_limit_whatever_was_written_into_it(raw: dict[str, Any]) -> None:
    """As JSON, 16 KiB; unless what is not ours is larger than that by itself."""
    ours = {key: value for key, value in raw.items() if key in KNOWN - set(TABLES)}
    assert len(json.dumps(dumped(ours))) <= MAX_RECORD_BYTES


@pytest.mark.parametrize(
    "value", [-1, 2**63, math.nan, math.inf, -math.inf, "5", True, [], {}, None, 1e30], ids=lambda value: str(value)
)
def test_a_hostile_number_is_left_out(value: Any) -> None:
    """In every field that holds one."""
    record = Record(dict.fromkeys((*TIMES, *COUNTS), value))
    assert [getattr(record, name) for name in TIMES] == [None] * len(TIMES)
    assert [getattr(record, name) for name in COUNTS] == [0] * len(COUNTS)
    assert record.dump() == {}


@pytest.mark.parametrize("version", ["2", None, True, -1, 0, 1, 1.5, [2]], ids=str)
def test_a_version_that_is_no_newer_one_is_read_as_ours(version: Any) -> None:
    """And written as 1."""
    record = Record({"v": version, "deferrals": 2})
    assert not record.is_newer
    assert record.dump() == {"v": VERSION, "deferrals": 2}


def test_a_message_that_never_failed_carries_no_record() -> None:
    """Empty in, nothing out; a record that became empty is taken out."""
    assert Record().dump() == {}
    assert with_record({"mine": 1}, Record()) == {"mine": 1}
    assert with_record({"mine": 1, KEY: {"v": 1, "deferrals": 1}}, Record()) == {"mine": 1}


def test_options_given_are_left_as_they_are() -> None:
    """with_record copies."""
    options = {"mine": 1}
    record = Record({"deferrals": 1})
    assert with_record(options, record) == {"mine": 1, KEY: {"v": 1, "deferrals": 1}}
    assert options == {"mine": 1}


def test_a_replay_starts_over_and_keeps_what_belongs_to_the_line() -> None:
    """Counts, times, attempts and the death go; deadline, effect_key and foreign keys stay."""
    record = Record(
        {
            **dict.fromkeys((*TIMES, *COUNTS), 5),
            "effect_key": "first-id",
            "attempts": [{"at": 1}],
            "dead": {"id": "x"},
            "mine": "kept",
        }
    )
    record.start_over({"from": "x", "op": "y", "n": 1})
    assert record.dump() == {
        "v": 1,
        "deadline": 5,
        "effect_key": "first-id",
        "mine": "kept",
        "replay": {"from": "x", "op": "y", "n": 1},
    }


def test_shedding_drops_the_log_and_keeps_the_counts() -> None:
    """attempts go, deferrals and first_failed_at stay."""
    record = Record({"attempts": [{"at": 1}], "first_failed_at": 1, "deferrals": 3})
    record.shed()
    assert record.dump() == {"v": 1, "first_failed_at": 1, "deferrals": 3}
