"""Promises about bodies that reliq did not write: set aside byte for byte, or run; never in a neighbour's way."""

from __future__ import annotations

import base64
import json
import pickle
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dramatiq
import pytest

from reliq.testing import eventually
from tests.transport.rig import Stage

Make = Callable[..., Stage]

GOOD: dict[str, Any] = {
    "queue_name": "default",
    "actor_name": "work",
    "args": [1],
    "kwargs": {},
    "options": {"redis_message_id": "foreign"},
    "message_id": "m-1",
    "message_timestamp": 1_700_000_000_000,
}


def body(**changes: Any) -> bytes:
    """A well-formed body but for `changes`; None takes a field out."""
    fields = {**GOOD, **changes}
    return json.dumps({key: value for key, value in fields.items() if value is not ...}).encode()


class WritesAFile:
    """Unpickling it leaves a trace."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


#: Bodies that are no message -> the words that the letter's text must have.
BAD: dict[str, tuple[bytes, str]] = {
    "garbage": (b"\x00\xff\xfe garbage \x1b[31m", "cannot be decoded"),
    "empty": (b"", "cannot be decoded"),
    "not-utf8": (b'{"a": "\xff"}', "cannot be decoded"),
    "half": (body()[:40], "cannot be decoded"),
    "nested": (b"[" * 100_000 + b"]" * 100_000, ""),
    "huge-int": (b'{"a": ' + b"9" * 10_000 + b"}", ""),
    "a-list": (b"[1, 2]", "holds a list"),
    "a-null": (b"null", "holds a NoneType"),
    "a-string": (b'"hello"', "holds a str"),
    **{f"no-{name}": (body(**{name: ...}), name) for name in GOOD},
    **{f"null-{name}": (body(**{name: None}), name) for name in GOOD},
    "queue-number": (body(queue_name=5), "queue_name"),
    "actor-list": (body(actor_name=["work"]), "actor_name"),
    "args-string": (body(args="abc"), "args"),
    "args-object": (body(args={}), "args"),
    "kwargs-list": (body(kwargs=[]), "kwargs"),
    "options-list": (body(options=[1]), "options"),
    "options-string": (body(options="x"), "options"),
    "id-list": (body(message_id=["a"]), "message_id"),
    "id-number": (body(message_id=5), "message_id"),
    "timestamp-string": (body(message_timestamp="now"), "message_timestamp"),
    "another-queue": (body(queue_name="elsewhere"), "'elsewhere'"),
    "unknown-key": (body(surprise=1), "surprise"),
}

#: Bodies with something odd in them that run all the same -> changes to a good one.
ODD: dict[str, dict[str, Any]] = {
    "throws-list": {"options": {"throws": ["ValueError"]}},
    "eta-nan": {"options": {"eta": float("nan")}},
    "eta-infinite": {"options": {"eta": float("-inf")}},
    "eta-text": {"options": {"eta": "soon"}},
    "eta-null": {"options": {"eta": None}},
    "eta-past": {"options": {"eta": 5}},
    "retries-text": {"options": {"retries": "many"}},
    "retries-negative": {"options": {"retries": -5}},
    "record-text": {"options": {"reliq": "hello"}},
    "record-odd": {"options": {"reliq": {"v": "x", "attempts": 5, "deferrals": -1, "eligible_at": 1e400}}},
    "timestamp-float": {"message_timestamp": 1.5},
    "timestamp-huge": {"message_timestamp": 10**400},
    "control-id": {"message_id": "\x1b[2J\x00\n"},
    "surrogate-id": {"message_id": "\udcff"},
    "delay-queue-name": {"queue_name": "default.DQ"},
}


class ForeignBodies:
    """Garbage, wrong shapes, pickles, odd values."""

    def test_bodies_that_are_no_message_are_set_aside_and_their_neighbours_run(self, make: Make) -> None:
        """Each bad body between two good ones: every good one done, each bad one a letter `malformed` within 2 s,
        byte for byte, with a text that says what is wrong."""
        stage, ran = make(), []
        dramatiq.actor(lambda: None, actor_name="unused")
        work = dramatiq.actor(ran.append, actor_name="work")
        for number, (bad, _) in enumerate(BAD.values()):
            work.send(number)
            stage.put_raw(bad)
        began = time.monotonic()
        stage.worker()
        stage.wait_for(0, 0, 0, len(BAD))
        assert time.monotonic() - began < 3 * 2
        eventually(lambda: len(ran) == len(BAD), what="the neighbours")
        found = {letter.body: letter.as_dict() for letter in stage.transport.dead_letters("default")}
        assert set(found) == {bad for bad, _ in BAD.values()}
        for name, (bad, words) in BAD.items():
            letter = found[bad]
            assert letter["reason"] == "malformed", name
            assert words in letter["error_message"], (name, letter["error_message"])
            assert "\x1b" not in letter["error_message"], name
            assert (letter["queue"], letter["size_bytes"]) == ("default", len(bad)), name
            # One that is a message, but of another queue, is shown as such; what cannot be decoded by its bytes.
            decodable = name == "another-queue"
            assert letter["actor"] == ("work" if decodable else None), name
            assert decodable or base64.b64decode(letter["body_base64"]) == bad, name

    def test_a_bad_body_in_a_delay_queue_is_set_aside_too(self, make: Make) -> None:
        """A letter of the plain queue; the delay beside it runs."""
        stage, ran = make(), []
        work = dramatiq.actor(ran.append, actor_name="work")
        stage.put_raw(b"garbage", "default.DQ")
        stage.put_raw(body(queue_name="default.DQ", options={"eta": 5}, args=[2]), "default.DQ")
        work.send(1)
        stage.worker()
        eventually(lambda: sorted(ran) == [1, 2], what="the good ones")
        stage.wait_for(0, 0, 0, 1)
        (letter,) = stage.letters()
        assert base64.b64decode(letter["body_base64"]) == b"garbage"

    def test_a_pickle_is_never_loaded(self, make: Make, tmp_path: Path) -> None:
        """Protocols 2 to 5, and one in disguise (protocol 0): letters, and no file appears."""
        stage = make()
        dramatiq.actor(lambda: None, actor_name="work")
        trace = tmp_path / "loaded"
        bodies = [pickle.dumps(WritesAFile(trace), protocol=protocol) for protocol in range(6)]
        for each in bodies:
            stage.put_raw(each)
        stage.worker()
        stage.wait_for(0, 0, 0, len(bodies))
        assert not trace.exists()
        reasons = {base64.b64decode(letter["body_base64"]): letter["reason"] for letter in stage.letters()}
        assert [reasons[each] for each in bodies] == ["malformed"] * 2 + ["rejected"] * 4

    @pytest.mark.parametrize("name", ODD)
    def test_a_message_with_an_odd_value_runs(self, make: Make, name: str) -> None:
        """Runs once, threads live, nothing is set aside; and a failing one becomes a letter that can be read."""
        stage, ran = make(), []

        def work(number: int) -> None:
            ran.append(number)
            if number == 2:
                raise ValueError("two")

        dramatiq.actor(work, actor_name="work", max_retries=0)
        good, odd = body(), ODD[name]
        stage.put_raw(body(**odd))
        stage.put_raw(body(**{**odd, "args": [2]}))
        stage.put_raw(good)
        stage.worker(threads=1)
        stage.wait_for(0, 0, 0, 1)
        eventually(lambda: len(ran) == 3, what="all three")
        assert sorted(ran) == [1, 1, 2]
        (letter,) = stage.letters()
        assert letter["args"] == [2]
        assert letter["error"] == "ValueError"
        json.dumps(letter)

    def test_an_eta_far_ahead_on_a_plain_queue_waits_in_the_broker(self, make: Make) -> None:
        """Delayed, held by no worker; a near one runs, not early."""
        stage, ran = make(), []
        dramatiq.actor(lambda number: ran.append((number, time.time() * 1000)), actor_name="work")
        due = time.time() * 1000 + 300
        stage.put_raw(body(options={"eta": time.time() * 1000 + 3_600_000}))
        stage.put_raw(body(options={"eta": due}, args=[2]))
        stage.put_raw(body(options={"eta": 10**30}, args=[3]))
        stage.worker()
        eventually(lambda: ran, what="the near one")
        ((number, at),) = ran
        assert number == 2
        assert at >= due
        stage.wait_for(0, 0, 2, 0)

    def test_an_eta_beyond_any_float_holds_up_nobody(self, make: Make) -> None:
        """On the queue and on its stock delay queue, between good ones: all run."""
        stage, ran = make(), []
        dramatiq.actor(ran.append, actor_name="work")
        for number, eta in enumerate([0, 10**400, 0]):
            stage.put_raw(body(options={"eta": eta}, args=[number]))
        stage.worker()
        eventually(lambda: sorted(ran) == [0, 1, 2], what="all three")
        stage.wait_for(0, 0, 0, 0)

    def test_a_record_of_a_newer_reliq_is_carried_untouched(self, make: Make) -> None:
        """It fails and dies; what the newer version wrote is in the letter's body as it was."""
        stage = make()
        newer = {"v": 99, "attempts": "something else", "x": [1]}

        def work(number: int) -> None:
            raise ValueError("boo")

        dramatiq.actor(work, actor_name="work", max_retries=0)
        stage.put_raw(body(options={"reliq": newer}))
        stage.worker()
        stage.wait_for(0, 0, 0, 1)
        (letter,) = stage.transport.dead_letters("default")
        assert json.loads(letter.body)["options"]["reliq"] == newer
        assert letter.as_dict()["reason"] == "retries_exhausted"
