"""The dead letter: ids in order, every field, and nulls where others wrote less."""

from __future__ import annotations

import base64
import json
import threading
from typing import Any

import pytest
from dramatiq.message import Message
from hypothesis import given
from hypothesis import strategies as st

from reliq.message.letter import DeadLetter, death, iso, new_letter_id, user_options
from reliq.message.verdict import REASONS, Failure
from tests.message.test_record import json_values

CROCKFORD = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"


def read(**parts: Any) -> dict[str, Any]:
    """The dict of a letter that lacks all but `parts`."""
    given: dict[str, Any] = {
        "id": "x",
        "queue": "default",
        "source": "stock",
        "body": b"raw",
        "message": None,
        "dead": None,
        "died_at_ms": None,
        **parts,
    }
    return DeadLetter(**given).as_dict()


def message(**options: Any) -> Message[Any]:
    """A message as plain Dramatiq leaves it."""
    return Message("default", "work", (1,), {"k": 2}, options, message_id="m", message_timestamp=5)


class TestIds:
    """ULIDs."""

    @given(st.lists(st.integers(0, 2**48 - 1), min_size=2, max_size=50))
    def test_ids_of_one_process_rise_whatever_the_clock_does(self, times: list[int]) -> None:
        """Also when it stands still or goes back."""
        ids = [new_letter_id(at) for at in times]
        assert ids == sorted(set(ids))
        assert all(len(each) == 26 and set(each) <= set(CROCKFORD) for each in ids)

    def test_ten_thousand_ids_of_one_millisecond_keep_their_order(self) -> None:
        """No overflow into the time."""
        at = 2**48 - 1
        ids = [new_letter_id(at) for _ in range(10_000)]
        assert ids == sorted(set(ids))
        assert len({each[:10] for each in ids}) == 1

    def test_threads_never_share_an_id(self) -> None:
        """4 threads, 2,000 each: 8,000 different."""
        found: list[str] = []

        def make() -> None:
            found.extend([new_letter_id(1) for _ in range(2_000)])

        threads = [threading.Thread(target=make) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(set(found)) == 8_000


class TestLettersOfOthers:
    """Plain Dramatiq's, and what is damaged."""

    def test_a_stock_letter_reads_with_nulls(self) -> None:
        """What it says is there, what it lacks is null, never an error."""
        letter = read(message=message(traceback="Traceback…", retries=3, redis_message_id="r"), died_at_ms=1_000)
        assert (letter["actor"], letter["args"], letter["kwargs"]) == ("work", [1], {"k": 2})
        assert (letter["traceback"], letter["attempts"], letter["options"]) == ("Traceback…", 3, {})
        assert letter["died_at"] == "1970-01-01T00:00:01.000Z"
        nulls = ["reason", "error", "error_message", "fingerprint", "first_failed_at", "worker", "broker"]
        assert [letter[name] for name in nulls] == [None] * len(nulls)
        assert (letter["cause_chain"], letter["attempts_log"]) == ([], [])

    def test_a_body_that_is_no_message_is_shown_by_its_bytes(self) -> None:
        """body_base64, only then."""
        letter = read(body=b"\x00\xff")
        assert base64.b64decode(letter["body_base64"]) == b"\x00\xff"
        assert [letter[name] for name in ("message_id", "actor", "args", "kwargs", "options")] == [None] * 5
        assert "body_base64" not in read(message=message())

    def test_what_comes_from_celery_says_so(self) -> None:
        """The key is there only for bridged letters."""
        origin = {"id": "c", "origin": "host"}
        assert read(message=message(reliq={"v": 1, "celery": origin}))["celery"] == origin
        assert "celery" not in read(message=message())

    @given(dead=st.dictionaries(st.text(max_size=15), json_values) | st.none(), options=json_values, at=json_values)
    def test_reading_never_raises(self, dead: dict[str, Any] | None, options: Any, at: Any) -> None:
        """Whatever lies in its record, its options and the attempts."""
        letter = read(dead=dead, message=message(reliq=options, retries=at, traceback=at, attempts=at))
        json.dumps(letter)
        assert letter["reason"] is None or isinstance(letter["reason"], str)
        read(message=message(reliq={"v": 1, "attempts": [{"at": at}], "first_failed_at": at}))


class TestDeath:
    """What is written when a message dies."""

    def test_a_death_with_a_failure_says_all(self) -> None:
        """Name, message, traceback, causes, fingerprint; ours read back the same."""
        try:
            raise ValueError("boo") from KeyError("why")
        except ValueError as exc:
            failure = Failure.of("work", exc)
        dead = death(
            reason="permanent",
            actor="work",
            queue="default",
            attempts=2,
            failure=failure,
            broker="redis",
            version="1.0",
            died_at_ms=1_000,
        )
        letter = read(message=message(), dead=json.loads(json.dumps(dead)), died_at_ms=dead["died_at"], id=dead["id"])
        assert (letter["error"], letter["error_message"], letter["reason"]) == ("ValueError", "boo", "permanent")
        assert letter["cause_chain"] == [{"error": "KeyError", "message": "'why'"}]
        assert letter["fingerprint"] == failure.fingerprint
        assert (letter["attempts"], letter["broker"], letter["worker"]["version"]) == (2, "redis", "1.0")

    @pytest.mark.parametrize("reason", REASONS)
    def test_a_death_without_a_failure_has_a_fingerprint_of_actor_and_reason(self, reason: Any) -> None:
        """Equal for equal causes, different for different actors."""

        def fingerprint(actor: str) -> str:
            dead = death(reason=reason, actor=actor, queue="q", attempts=0, failure=None, broker="stub", version=None)
            assert dead["error"] is None
            return str(dead["fingerprint"])

        assert fingerprint("a") == fingerprint("a") != fingerprint("b")


class TestShowing:
    """Helpers."""

    @given(json_values)
    def test_a_time_is_iso_or_null(self, value: Any) -> None:
        """Never an error; what is no time is null."""
        shown = iso(value)
        assert shown is None or (shown.endswith("Z") and "T" in shown)

    @pytest.mark.parametrize(
        ("value", "shown"),
        [
            (0, "1970-01-01T00:00:00.000Z"),
            (1_700_000_000_123, "2023-11-14T22:13:20.123Z"),
            (True, None),
            ("0", None),
            (10**30, None),
            (float("nan"), None),
            (float("inf"), None),
            (None, None),
        ],
        ids=str,
    )
    def test_times(self, value: Any, shown: str | None) -> None:
        """Milliseconds since the epoch, in UTC."""
        assert iso(value) == shown

    def test_options_are_those_of_the_sender(self) -> None:
        """What Dramatiq and reliq write themselves is left out."""
        own = {"reliq": {}, "redis_message_id": "x", "retries": 1, "traceback": "", "requeue_timestamp": 1, "eta": 5}
        assert user_options({**own, "mine": 1, "max_retries": 3}) == {"mine": 1, "max_retries": 3}
