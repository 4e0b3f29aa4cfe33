"""Moving letters: what is sent again, what stays, and that an operation ends. On a real Redis."""

from __future__ import annotations

import time
from typing import Any

import pytest
from dramatiq.message import Message
from dramatiq.middleware import Middleware, MiddlewareError

from reliq.desk import letters, replay
from reliq.desk.selector import Selector, SelectorError
from reliq.errors import LetterError
from reliq.message.letter import DeadLetter
from reliq.transport.settlement import Bury
from reliq.transport.settling import captured_send
from tests.desk.morgues import both_brokers
from tests.desk.support import Morgue, RedisMorgue

EVERYTHING = Selector(newer_than_ms=10**12)


def run(morgue: Morgue, act: Any = replay.replay, selector: Selector = EVERYTHING, **watch: Any) -> replay.Outcome:
    outcome: replay.Outcome = act(morgue.transport, replay.plan(morgue.transport, selector), replay.Watch(**watch))
    return outcome


def left(morgue: Morgue) -> list[str]:
    return [letter.id for letter in letters.select(morgue.transport, Selector())]


@both_brokers
def test_a_replayed_message_starts_over_as_itself(morgue: Morgue) -> None:
    """Its id, arguments and own options stay; counts, traceback and record of its first life go; its age is new."""
    letter_id = morgue.letter(1, [2], kwargs={"a": None}, options={"tenant": "t", "max_retries": 3, "eta": 5})
    was = letters.find(morgue.transport, letter_id).message
    assert was is not None
    before = int(time.time() * 1000)
    outcome = run(morgue)
    assert outcome.as_dict() == {"id": outcome.id, "matched": 1, "done": 1, "failed": 0}
    (sent,) = morgue.queued()
    assert sent["message_id"] == was.message_id
    assert (sent["args"], sent["kwargs"], sent["actor_name"]) == ([1, [2]], {"a": None}, "charge")
    assert before <= sent["message_timestamp"] <= int(time.time() * 1000)
    sent["options"].pop("redis_message_id", None)
    assert sent["options"] == {
        "tenant": "t",
        "max_retries": 3,
        "reliq": {"v": 1, "replay": {"from": letter_id, "op": outcome.id, "n": 1}},
    }
    assert left(morgue) == []


@both_brokers
def test_replays_are_counted_over_lives(morgue: Morgue) -> None:
    morgue.letter(1, options={"reliq": {"replay": {"from": "x", "op": "y", "n": 4}}})
    morgue.letter(2, options={"reliq": {"replay": {"n": "hostile"}, "effect_key": "first"}})
    run(morgue)
    records = [sent["options"]["reliq"] for sent in morgue.queued()]
    assert [record["replay"]["n"] for record in records] == [5, 1]
    assert records[1]["effect_key"] == "first"


@both_brokers
def test_stock_letters_are_replayed_too(morgue: Morgue) -> None:
    """Also one that died in a delay queue, whose body names it."""
    morgue.stock(1)
    delayed: Message[Any] = Message("default.DQ", "charge", (2,), {}, {"eta": 1, "retries": 3})
    morgue.stock(body=delayed.encode())
    assert run(morgue).done == 2
    assert [(sent["queue_name"], sent["args"]) for sent in morgue.queued()] == [("default", [1]), ("default", [2])]
    assert all("retries" not in sent["options"] and "eta" not in sent["options"] for sent in morgue.queued())
    assert left(morgue) == []


@both_brokers
def test_aliases_apply(morgue: Morgue) -> None:
    morgue.transport.settings.aliases = {"charge": "billing.charge"}
    morgue.letter(1)
    run(morgue)
    assert morgue.queued()[0]["actor_name"] == "billing.charge"


@both_brokers
def test_an_unreadable_letter_stays_and_says_why(morgue: Morgue) -> None:
    """One bad letter among good ones: they go, it stays byte for byte."""
    morgue.letter(1)
    junk = morgue.raw(b"\x00junk")
    old_junk = morgue.stock(body=b"\xffold")
    morgue.letter(2)
    told: list[tuple[str, str]] = []
    outcome = run(morgue, failed=lambda letter, why: told.append((letter.id, why)))
    assert (outcome.matched, outcome.done, outcome.failed) == (4, 2, 2)
    assert [one for one, _ in told] == [junk, old_junk]
    assert "cannot be read as a message" in told[0][1]
    assert left(morgue) == [junk, old_junk]
    assert letters.find(morgue.transport, junk).body == b"\x00junk"


@both_brokers
def test_a_letter_that_a_hook_refuses_stays(morgue: Morgue) -> None:
    class Refusing(Middleware):
        def before_enqueue(self, broker: Any, message: Message[Any], delay: int | None) -> None:
            if message.args == (1,):
                raise MiddlewareError("not on Sundays")

    morgue.broker.add_middleware(Refusing())
    refused = morgue.letter(1)
    morgue.letter(2)
    told: list[str] = []
    outcome = run(morgue, failed=lambda letter, why: told.append(why))
    assert (outcome.done, outcome.failed) == (1, 1)
    assert told == ["dramatiq.middleware.middleware.MiddlewareError: not on Sundays"]
    assert left(morgue) == [refused]


@both_brokers
def test_a_letter_that_holds_only_the_text_of_its_arguments_is_not_run_for_them(morgue: Morgue) -> None:
    """What a callback sent could not be encoded: a replay would run it with '<object object at 0x...>'."""
    unsendable: Message[Any] = Message("default", "charge", (object(),), {}, {})
    bury = captured_send(morgue.transport, unsendable, None)
    assert isinstance(bury, Bury)
    letter_id = morgue.put(bury)
    told: list[str] = []
    outcome = run(morgue, failed=lambda letter, why: told.append(why))
    assert (outcome.done, outcome.failed) == (0, 1)
    assert "send it anew" in told[0]
    assert left(morgue) == [letter_id]
    assert letters.find(morgue.transport, letter_id).reason == "rejected"


@both_brokers
def test_hooks_hear_of_a_replay_as_of_a_send(morgue: Morgue) -> None:
    heard: list[str] = []

    class Listening(Middleware):
        def before_enqueue(self, broker: Any, message: Message[Any], delay: int | None) -> None:
            heard.append(f"before {message.args[0]}")

        def after_enqueue(self, broker: Any, message: Message[Any], delay: int | None) -> None:
            heard.append(f"after {message.args[0]}")

    morgue.broker.add_middleware(Listening())
    morgue.letter(7)
    run(morgue)
    assert heard == ["before 7", "after 7"]


def test_a_letter_that_somebody_took_meanwhile_is_not_done_twice(morgue: Morgue) -> None:
    """Two operators at once: each letter runs once, and neither claims the other's."""
    first = morgue.letter(1)
    morgue.letter(2)

    def take_it(outcome: replay.Outcome) -> bool:
        if outcome.tried == 1:
            for letter in letters.select(morgue.transport, Selector()):
                assert morgue.transport.discard(letter)
        return True

    outcome = run(morgue, after_each=take_it)
    assert first not in left(morgue)
    assert (outcome.matched, outcome.done, outcome.gone, outcome.failed) == (2, 1, 1, 0)
    assert len(morgue.queued()) == 1


@both_brokers
def test_a_replay_ends_though_its_messages_die_again_at_once(morgue: Morgue) -> None:
    """Deaths while it runs, of its own replays and of others, are not replayed by it: no endless circle."""
    several = 50 if isinstance(morgue, RedisMorgue) else 10  # on Redis more than one page
    for number in range(6 * several):
        morgue.letter(number)

    def die_again(outcome: replay.Outcome) -> bool:
        sent = morgue.queued()[0]
        morgue.letter(*sent["args"], options={"reliq": sent["options"]["reliq"]})
        morgue.letter("new", died_at_ms=int(time.time() * 1000))
        return True

    outcome = run(morgue, after_each=lambda outcome: die_again(outcome) if outcome.done % several == 0 else True)
    assert (outcome.matched, outcome.done, outcome.failed, outcome.gone) == (6 * several, 6 * several, 0, 0)
    assert len(left(morgue)) == 12


@both_brokers
def test_it_stops_between_two_letters_when_asked(morgue: Morgue) -> None:
    for number in range(5):
        morgue.letter(number)
    outcome = run(morgue, after_each=lambda outcome: outcome.done < 2)
    assert (outcome.matched, outcome.done, outcome.stopped) == (5, 2, True)
    assert (len(morgue.queued()), len(left(morgue))) == (2, 3)
    assert run(morgue).done == 3


@both_brokers
def test_discarded_letters_are_gone_and_nothing_runs(morgue: Morgue) -> None:
    morgue.letter(1)
    morgue.raw(b"junk")
    morgue.stock(2)
    kept = morgue.letter(3, queue="other")
    assert run(morgue, replay.discard, Selector(queue="default")).done == 3
    assert left(morgue) == [kept]
    assert morgue.queued() == []


def test_an_empty_selector_is_refused(morgue: Morgue) -> None:
    morgue.letter(1)
    before = morgue.dump()
    with pytest.raises(SelectorError, match="--all"):
        replay.plan(morgue.transport, Selector())
    assert morgue.dump() == before
    assert replay.plan(morgue.transport, Selector(), everything=True).matched == 1


def test_what_has_no_message_cannot_be_revived() -> None:
    letter = DeadLetter("L-1", "default", "reliq", b"junk", None, None, 1)
    with pytest.raises(LetterError, match="reliq dlq show L-1"):
        replay.revived(letter, "op", {}, 1)
