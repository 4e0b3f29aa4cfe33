"""Dead letters say everything of the attempt that killed, lie in the order of death, and stay until discarded.

Stock worker processes on a real Redis, and on a real RabbitMQ where letters are the same there. What the letters say is
compared with what the tasks wrote down.
"""

from __future__ import annotations

import json
import socket
import time
from datetime import datetime
from typing import Any

import dramatiq
import pytest

from tests.faults.b_rig import MODES, Rig
from tests.faults.rabbit_rig import KINDS, rig_of_a_kind

rig = pytest.fixture(rig_of_a_kind)
on_both = pytest.mark.parametrize("rig", KINDS, indirect=True)

#: API §4, the dead letter; `body_base64` and `celery` only where they apply.
FIELDS = [
    *("id", "message_id", "queue", "actor", "args", "kwargs", "options", "reason", "error", "error_message"),
    *("traceback", "cause_chain", "fingerprint", "attempts", "attempts_log", "first_failed_at", "died_at"),
    *("worker", "broker", "size_bytes"),
]

DAY_MS = 86_400_000


def at(moment: str) -> float:
    """Unix seconds of an ISO-8601 time."""
    return datetime.fromisoformat(moment.replace("Z", "+00:00")).timestamp()


# -- what a letter says ----------------------------------------------------------------------------------------------


@on_both
def test_a_letter_has_every_field_of_the_attempt_that_killed_it(rig: Rig) -> None:
    """Row 41: three attempts; every field of the letter agrees with what the run log, the worker and the sender know,
    and is that of the last attempt. A twin with other arguments has the same fingerprint."""
    group = rig.workers(env={"RELIQ_VERSION": "2026.11"})
    message = rig.message("doomed", "a", max_age=DAY_MS, tenant="north").copy(kwargs={"note": "é\n"})
    rig.broker().enqueue(message)
    rig.send("doomed", "b")
    rig.wait_for(lambda: rig.holds("dead") == 2, "two letters")
    rig.wait_settled()
    first, second = sorted(rig.letters(), key=lambda letter: letter["args"])
    fails = [entry for entry in rig.log.entries() if entry.event == "fail" and entry.key == "a"]
    starts = [entry for entry in rig.log.entries() if entry.event == "start" and entry.key == "a"]
    who = {"host": socket.gethostname(), "pid": group.worker_pid, "version": "2026.11"}

    assert list(first) == FIELDS
    assert len(first["id"]) == 26
    assert (first["message_id"], first["queue"], first["actor"]) == (message.message_id, "default", "doomed")
    assert (first["args"], first["kwargs"]) == (["a"], {"note": "é\n"})
    assert first["options"] == {"max_age": DAY_MS, "tenant": "north"}
    assert (first["reason"], first["error"]) == ("retries_exhausted", "ValueError")
    assert first["error_message"] == "attempt 3 of a é\n"
    assert "attempt 3 of a" in first["traceback"]
    assert "cause of attempt 3" in first["traceback"]
    assert "b_app.py" in first["traceback"]
    assert "attempt 2" not in first["traceback"]
    assert first["cause_chain"] == [{"error": "KeyError", "message": "'cause of attempt 3'"}]
    assert first["attempts"] == len(fails) == 3
    assert [entry["message"] for entry in first["attempts_log"]] == [f"attempt {n} of a é\n" for n in (1, 2, 3)]
    for logged, started, failed in zip(first["attempts_log"], starts, fails):
        assert {key: logged[key] for key in who} == who
        assert logged["error"] == "ValueError"
        assert at(logged["at"]) == pytest.approx(failed.fields["real"], abs=0.5)
        assert 0 <= logged["duration_ms"] <= (failed.at - started.at) * 1000 + 500
    assert at(first["first_failed_at"]) == pytest.approx(fails[0].fields["real"], abs=0.5)
    assert at(first["died_at"]) == pytest.approx(fails[2].fields["real"], abs=0.5)
    assert (first["worker"], first["broker"]) == (who, rig.kind)
    (place,) = [place for place in rig.census().of("dead") if place.key == "a"]
    assert first["size_bytes"] == len(place.body)
    assert first["fingerprint"] == second["fingerprint"]
    rig.count(f"fields {len(first)} of {len(FIELDS)}, attempts told {first['attempts']} of {len(fails)}")


@on_both
def test_each_reason_is_given_for_what_it_means(rig: Rig) -> None:
    """One message for each way to die: each letter has the reason of API §4, and only what cannot be encoded or sent is
    `rejected`; 0 lost."""
    expected = {
        "fails": "retries_exhausted",
        "takes_too_long": "retries_exhausted",
        "not_wanted_again": "retries_exhausted",
        "permanent": "permanent",
        "throws": "permanent",
        "outside_retry_for": "permanent",
        "deferred_for_ever": "expired",
        "too_old": "expired",
        "retry_is_refused": "rejected",
        "nobody_knows_it": "unknown_actor",
    }
    for actor in expected:
        rig.send(actor, actor)
    rig.send("work", "marked", mark_failed=True)
    expected["work"] = "rejected"
    rig.send("succeeds", "callback", on_success="never_sent")
    expected["never_sent"] = "rejected"
    rig.put(b"\x80\x05.", "pickle")
    rig.put(b"{", "half")
    rig.workers(module="b_deaths", delivery={"unknown_actor_grace": 0})
    rig.wait_for(lambda: rig.holds("dead") == len(expected) + 2, "the letters")
    rig.wait_settled()
    letters = rig.letters()
    told = {letter["actor"]: letter["reason"] for letter in letters if letter["actor"]}
    rig.count(f"sent {len(expected) + 2} dead {len(letters)}: {', '.join(sorted(set(told.values())))}, malformed")
    assert told == expected
    unread = [letter["reason"] for letter in letters if letter["actor"] is None]
    assert sorted(unread) == ["malformed", "rejected"]
    assert "start" not in {entry.event for entry in rig.log.entries() if entry.key == "too_old"}
    attempts = {letter["actor"]: letter["attempts"] for letter in letters}
    assert (attempts["fails"], attempts["permanent"], attempts["nobody_knows_it"]) == (2, 1, 0)


@pytest.mark.full
@pytest.mark.parametrize("rig", ["rabbitmq"], indirect=True)
def test_plain_dramatiq_says_nothing_of_what_killed(rig: Rig) -> None:
    """Rows 38, 41, 42 on plain Dramatiq and RabbitMQ: three dead messages, none of which says why: no reason, the
    traceback and the count of the attempt before the last."""
    rig.broker("plain").enqueue(rig.message("doomed", "a"))
    rig.broker("plain").enqueue(rig.message("newcomer", "b"))
    rig.put(b"{garbage", "poison")
    rig.workers("plain")
    rig.wait_for(lambda: rig.holds("stock_dead") == 3, "three dead messages")
    bodies = {place.key: place.body for place in rig.census().of("stock_dead")}
    options = {key: json.loads(bodies[key])["options"] for key in ("a", "b")}
    rig.count(f"dead {len(bodies)}, retries told {options['a']['retries']} of 3 attempts, reasons 0")
    assert (bodies[None], options["b"]) == (b"{garbage", {})
    assert options["a"]["retries"] == 2
    assert "attempt 2 of a" in options["a"]["traceback"]
    assert "attempt 3 of a" not in options["a"]["traceback"]


# -- order and retention ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
def test_letters_lie_in_the_order_of_death(rig: Rig, monkeypatch: pytest.MonkeyPatch, mode: str) -> None:
    """Row 44: 50 messages die in one millisecond: 50 letters in the order of death, 0 misplaced. Plain: sorted by a
    random id, most misplaced."""
    dramatiq.actor(print, broker=rig.broker(mode), actor_name="work")
    for key in range(50):
        rig.send("work", key, mode=mode)
    consumer = rig.broker(mode).consume("default", prefetch=50, timeout=1_000)
    messages = [message for _, message in zip(range(50), filter(None, consumer))]
    moment = time.time()
    monkeypatch.setattr(time, "time", lambda: moment)
    monkeypatch.setattr("dramatiq.common.time", lambda: moment)
    for message in messages:
        message.fail()
        consumer.nack(message)
    monkeypatch.undo()
    consumer.close()
    state = "dead" if mode == "reliq" else "stock_dead"
    assert len({place.due_ms for place in rig.census().of(state)}) == 1
    order = [letter.as_dict()["args"][0] for letter in rig.raw_letters()]
    misplaced = sum(1 for place, key in enumerate(order) if place != key)
    rig.count(f"letters {len(order)} misplaced {misplaced}")
    assert sorted(order) == list(range(50))
    assert misplaced == 0 if mode == "reliq" else misplaced > 25


def test_letters_are_kept_until_somebody_discards_them(rig: Rig) -> None:
    """Row 43: 20 letters a month old, a reliq worker without retention and a stock worker that tidies up with every
    command and keeps nothing longer than a second: 20 letters; discarding one leaves 19."""
    rig.send_many("fails_once", range(20))
    rig.workers()
    rig.wait_for(lambda: rig.holds("dead") == 20, "the letters")
    _age(rig, 30 * DAY_MS)
    rig.workers()
    rig.workers("plain", broker={"dead_message_ttl": 1_000, "maintenance_chance": 1_000_000})
    rig.send("work", "later")
    rig.wait_done(1)
    rig.pause(0.5)
    kept = rig.raw_letters()
    rig.count(f"letters 20 kept {len(kept)}")
    assert len(kept) == 20
    assert rig.transport.discard(kept[0])
    assert rig.holds("dead") == 19


def test_plain_dramatiq_deletes_dead_messages_without_a_trace(rig: Rig) -> None:
    """Row 43 on plain Dramatiq: 20 dead messages older than its TTL: 0 left, nothing said."""
    rig.send_many("fails_once", range(20))
    group = rig.workers("plain", broker={"dead_message_ttl": 300, "maintenance_chance": 1_000_000})
    rig.wait_for(lambda: len(rig.log.keys("fail")) == 20 and not rig.census().count(), "everything to be gone")
    rig.count(tally := rig.tally())
    assert (tally.lost, tally.done) == (20, 0)
    assert "delet" not in group.log().lower()


def test_a_retention_deletes_what_is_older_and_nothing_else(rig: Rig) -> None:
    """Row 43: `retention` of a day: of 20 letters 10 are two days old: 10 kept, 10 gone with all their traces."""
    rig.send_many("fails_once", range(10))
    first = rig.workers()
    rig.wait_for(lambda: rig.holds("dead") == 10, "the old letters")
    _age(rig, 2 * DAY_MS)
    rig.send_many("fails_once", range(10, 20))
    rig.wait_for(lambda: rig.holds("dead") == 20, "the new letters")
    first.terminate()
    first.wait(20)
    group = rig.workers(letters={"retention": DAY_MS})
    rig.wait_for(lambda: rig.holds("dead") == 10, "the old ones to go")
    kept = {letter["args"][0] for letter in rig.letters()}
    rig.count(f"letters 20 kept {len(kept)}")
    assert kept == set(range(10, 20))
    (fingerprint,) = {letter["fingerprint"] for letter in rig.letters()}
    base = f"{rig.namespace}:default.dead"
    assert rig.client.hlen(f"{base}.msgs") == rig.client.hlen(f"{base}.index") == 10
    assert rig.client.zcard(f"{base}.group.{fingerprint}") == 10
    rig.wait_for(lambda: "10 dead letters were older than the retention" in group.log(), "a line that says so")


def _age(rig: Rig, by_ms: int) -> None:
    """Make all letters older."""
    key = f"{rig.namespace}:default.dead"
    ids: Any = rig.client.zrange(key, 0, -1)
    for letter_id in ids:
        rig.client.zincrby(key, -by_ms, letter_id)
