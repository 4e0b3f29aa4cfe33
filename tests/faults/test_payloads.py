"""Bodies that nobody can read, actors that nobody knows, texts that nobody should see: each ends as a dead letter with
its reason, and its neighbours finish. Stock worker processes on a real Redis and a real RabbitMQ."""

from __future__ import annotations

import json
import math
import pickle
import time
from pathlib import Path
from typing import Any

import pytest
from dramatiq.message import Message

from reliq.testing import WorkerGroup
from tests.faults.b_rig import Rig
from tests.faults.rabbit_rig import KINDS, rig_of_a_kind
from tests.faults.stage import SLACK

rig = pytest.fixture(params=KINDS)(rig_of_a_kind)


def own_lines(group: WorkerGroup) -> str:
    """What reliq itself has logged, without the tracebacks that Dramatiq logs of every failure."""
    return "\n".join(line for line in group.log().split("\n") if "[reliq." in line)


# -- bodies that cannot be read --------------------------------------------------------------------------------------


def test_an_undecodable_body_among_fifty_is_set_aside_with_its_bytes(rig: Rig) -> None:
    """Row 38: one undecodable body among 50: a letter within 2 s with every byte of it, 50 done, 0 stuck."""
    poison = b"\x00\xff\xfe{garbage\r\n\x1b[2J" + bytes(range(256))
    rig.workers()
    rig.send_many("work", range(25))
    rig.wait_done(1)  # its consumers are up
    put_at = time.monotonic()
    rig.put(poison, "poison")
    rig.send_many("work", range(25, 50))
    rig.wait_for(lambda: rig.holds("dead"), "the letter")
    took = time.monotonic() - put_at
    rig.wait_done(50)
    rig.wait_settled()
    tally = rig.tally()
    rig.count(f"{tally}; set aside after {took:.2f} s")
    (letter,) = rig.raw_letters()
    assert (letter.reason, letter.body) == ("malformed", poison)
    assert took < 2 * SLACK
    assert (tally.done, tally.stuck, tally.lost, tally.twice) == (50, 0, 0, 0)


def test_each_malformed_body_is_set_aside_and_its_neighbours_run(rig: Rig) -> None:
    """Every field missing, every field of a wrong type, an unknown key, no object at all, endless brackets: each one
    alone between two good messages: as many letters `malformed` as bad bodies, byte for byte, all good ones done."""
    good = rig.body("work", "neighbour")
    wrong = {"queue_name": 7, "actor_name": None, "args": "abc", "kwargs": [], "options": [], "message_id": 1}
    bad: dict[str, Any] = {f"without {name}": {key: good[key] for key in good if key != name} for name in good}
    bad |= {f"{name} is {value!r}": {**good, name: value} for name, value in wrong.items()}
    bad |= {
        "message_timestamp is text": {**good, "message_timestamp": "now"},
        "an unknown key": {**good, "priority": 1},
        "queue_name is another": {**good, "queue_name": "elsewhere"},
        "a list": b"[1, 2]",
        "a number": b"7",
        "null": b"null",
        "nothing": b"",
        "not UTF-8": b'{"queue_name": "\xff"}',
        "half": json.dumps(good).encode()[:40],
        "endless": b"[" * 100_000,
    }
    rig.workers()
    for number, (name, body) in enumerate(bad.items(), 1):
        rig.send("work", f"before {name}")
        rig.put(body, f"bad-{number}")
        rig.send("work", f"after {name}")
        rig.wait_for(lambda n=number: rig.holds("dead") == n, f"the letter of a body that is {name}")
        rig.wait_done(2 * number)
    rig.wait_settled()
    tally = rig.tally()
    rig.count(f"bad {len(bad)} letters {len(rig.letters())}; {tally}")
    letters = rig.raw_letters()
    assert [letter.body for letter in letters] == [
        body if isinstance(body, bytes) else json.dumps(body).encode() for body in bad.values()
    ]
    assert {letter.reason for letter in letters} == {"malformed"}
    assert all(letter.as_dict()["error_message"] for letter in letters)
    assert (tally.done, tally.sent, tally.lost, tally.stuck) == (2 * len(bad), 2 * len(bad), 0, 0)


def test_absurd_options_do_not_keep_a_message_from_running(rig: Rig) -> None:
    """Options of impossible types and values, reliq's own record among them, on tasks that fail once: each is done
    after one retry, 0 dead, 0 lost."""
    absurd: list[dict[str, Any]] = [
        {"retries": "many"},
        {"retries": -3},
        {"retries": True},
        {"max_retries": "many"},
        {"max_retries": 1.5},
        {"min_backoff": "soon"},
        {"max_backoff": -1},
        {"backoff": "cubic"},
        {"jitter": 99},
        {"max_elapsed": []},
        {"eta": "tomorrow"},
        {"eta": None},
        {"eta": math.nan},
        {"eta": -1},
        {"throws": ["OSError"]},
        {"reliq": "a text"},
        {"reliq": {"v": "x", "attempts": 7, "deferrals": -1, "first_failed_at": "x", "dead": []}},
        {"reliq": {"v": 99, "attempts": "of a future kind"}},
        {"redis_message_id": 5},
        {"redis_message_id": "another"},
        {"on_dead_letter": 7, "dead_letter": "no"},
        {"traceback": {}, "requeue_timestamp": "x"},
    ]
    rig.workers()
    for number, options in enumerate(absurd):
        rig.sent.append(number)
        rig.put(rig.body("broken_predicate", number, options=options), f"absurd-{number}")
    rig.wait_done(len(absurd))
    rig.wait_settled()
    rig.count(tally := rig.tally())
    assert tally.which("dead") == frozenset()
    assert (tally.done, tally.lost, tally.stuck, tally.twice) == (len(absurd), 0, 0, 0)


class Bomb:
    """A pickle of this creates a file when it is loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return open, (str(self.path), "w")


def test_a_pickle_is_never_loaded(rig: Rig, tmp_path: Path) -> None:
    """Bodies of every pickle protocol that would create a file when loaded, on the queue and on the stock delay queue:
    12 letters, byte for byte, no file, 10 neighbours done."""
    fuse = tmp_path / "fuse"
    bodies = [pickle.dumps(Bomb(fuse), protocol=protocol) for protocol in range(6)]
    for number, body in enumerate(bodies):
        rig.put(body, f"pickle-{number}")
        rig.put(body, f"delayed-pickle-{number}", queue="default.DQ")
    rig.send_many("work", range(10))
    rig.workers()
    rig.wait_done(10)
    rig.wait_for(lambda: rig.holds("dead") == 12, "the letters")
    rig.wait_settled()
    rig.count(f"{rig.tally()}; letters {len(rig.letters())}")
    assert not fuse.exists()
    assert sorted(letter.body for letter in rig.raw_letters()) == sorted(bodies * 2)
    # Protocols 0 and 1 have no mark of their own: bytes that are no JSON.
    assert sorted(str(letter.reason) for letter in rig.raw_letters()) == ["malformed"] * 4 + ["rejected"] * 8
    with fuse.open("w"):
        pass  # the folder could have been written to


# -- actors that nobody knows ----------------------------------------------------------------------------------------


def test_an_unknown_actor_is_a_letter_at_once_without_a_grace(rig: Rig) -> None:
    """Row 42: `unknown_actor_grace=0`: 5 letters `unknown_actor` with the actor's name, no attempt, 10 others done."""
    rig.send_many("work", range(5))
    rig.send_many("newcomer", (f"new-{number}" for number in range(5)))
    rig.send_many("work", range(5, 10))
    rig.workers(delivery={"unknown_actor_grace": 0})
    rig.wait_done(10)
    rig.wait_settled()
    letters = rig.letters()
    rig.count(tally := rig.tally())
    assert (tally.done, tally.dead, tally.lost, tally.stuck) == (10, 5, 0, 0)
    assert {(letter["reason"], letter["actor"], letter["attempts"]) for letter in letters} == {
        ("unknown_actor", "newcomer", 0)
    }
    assert all(letter["args"] and letter["fingerprint"] and letter["error"] is None for letter in letters)


def test_an_unknown_actor_waits_for_a_newer_worker(rig: Rig) -> None:
    """Row 42: within the grace the message waits; a newer worker that declares the actor runs it: 5 sent, 5 done, no
    attempt spent, no letter."""
    rig.send_many("newcomer", range(5))
    old = rig.workers()
    rig.wait_for(lambda: rig.holds("delayed") == 5, "the deferrals")
    rig.workers(env={"APP_VERSION": "2"})
    old.terminate()
    old.wait(20)
    rig.wait_done(5)
    rig.wait_settled()
    rig.count(tally := rig.tally())
    assert (tally.done, tally.dead, tally.lost, tally.runs) == (5, 0, 0, 5)
    assert {entry.fields["retries"] for entry in rig.log.entries() if entry.event == "start"} == {0}


def test_an_unknown_actor_becomes_a_letter_after_the_grace(rig: Rig) -> None:
    """Row 42: when the grace is over and still nobody knows the actor: 5 letters `unknown_actor`, no attempt."""
    rig.send_many("newcomer", range(5))
    rig.workers(delivery={"unknown_actor_grace": 500})
    rig.wait_for(lambda: rig.holds("delayed") == 5, "the deferrals")
    rig.wait_for(lambda: rig.holds("dead") == 5, "the letters")
    rig.count(tally := rig.tally())
    assert (tally.dead, tally.done, tally.lost) == (5, 0, 0)
    assert {(letter["reason"], letter["attempts"]) for letter in rig.letters()} == {("unknown_actor", 0)}


# -- hostile and secret texts ----------------------------------------------------------------------------------------


def test_hostile_error_texts_break_no_settle_and_are_cut_in_the_letter(rig: Rig) -> None:
    """Errors with escape sequences and false lines, of 10 MB, with lone surrogates, with a `__str__` that raises, two
    attempts each: 4 letters whose texts are cut and drive no terminal, bodies under 64 KiB, 10 neighbours done."""
    keys = ["escape", "huge", "surrogate", "unprintable"]
    for key in keys:
        rig.send("hostile", key)
    rig.send_many("work", range(10))
    group = rig.workers(module="b_deaths")
    rig.wait_done(10)
    rig.wait_settled()
    letters = {letter["args"][0]: letter for letter in rig.letters()}
    rig.count(tally := rig.tally())
    assert (tally.done, tally.dead, tally.lost, tally.stuck, tally.runs) == (10, 4, 0, 0, 18)
    for key, letter in letters.items():
        assert (letter["reason"], letter["attempts"], len(letter["attempts_log"])) == ("retries_exhausted", 2, 2), key
        texts = [letter["error_message"], letter["traceback"], *(entry["message"] for entry in letter["attempts_log"])]
        for text in texts:
            assert not any((ord(char) < 32 and char not in "\n\t") or 0x7F <= ord(char) < 0xA0 for char in text), key
            text.encode()
        assert len(letter["error_message"]) <= 500
        assert len(letter["traceback"].encode()) <= 16 * 1024
    assert max(len(place.body) for place in rig.census().of("dead")) < 64 * 1024
    assert letters["unprintable"]["error_message"] == "<unprintable b_deaths.Unprintable>"
    assert "owned" in letters["escape"]["error_message"]
    assert not any(char in own_lines(group) for char in "\x1b\x07\x9b")


@pytest.mark.parametrize("rig", ["redis", pytest.param("rabbitmq", marks=pytest.mark.full)], indirect=True)
@pytest.mark.parametrize("redact", ["hide", "raises"])
def test_what_redact_hides_is_in_no_line_and_no_message(rig: Rig, redact: str) -> None:
    """5 messages whose arguments and error carry a secret die: it is in no line that reliq logs, in no letter that
    a hook or an `on_dead_letter` actor is given, also when `redact` raises; the stored letter keeps it. 5 dead, 5
    told."""
    for key in range(5):
        rig.sent.append(key)
        message = Message("default", "fails", (key, "card SECRET"), {}, {"tenant": "SECRET"})
        rig.broker().enqueue(message)
    group = rig.workers(module="b_deaths", redact=redact, letters={"on_dead_letter": "told"})
    assert rig.log.wait_for("told", 5)
    assert rig.log.wait_for("letter", 5)
    rig.wait_settled()
    told = [entry for entry in rig.log.entries() if entry.event in ("told", "letter")]
    rig.count(f"{rig.tally()}; told {len(told)}, with the secret {sum('SECRET' in repr(entry) for entry in told)}")
    assert not any("SECRET" in repr(entry) for entry in told)
    assert "SECRET" not in own_lines(group)
    letters = rig.letters()
    assert len(letters) == 5
    assert all("SECRET" in letter["error_message"] and letter["args"][1] == "card SECRET" for letter in letters)
    if redact == "hide":
        assert all("[hidden]" in entry.fields["letter"]["error_message"] for entry in told)
