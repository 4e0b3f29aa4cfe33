"""Promises about dead letters: every field, found, replayed, discarded, counted by cause, and told to who asked."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from datetime import datetime, timezone
from typing import Any

import dramatiq
import pytest
from dramatiq.middleware import Middleware

import reliq
from reliq.message.letter import DeadLetter
from reliq.testing import eventually
from tests.transport.rig import SOON, Stage

Make = Callable[..., Stage]

FIELDS = [
    *("id", "message_id", "queue", "actor", "args", "kwargs", "options", "reason", "error", "error_message"),
    *("traceback", "cause_chain", "fingerprint", "attempts", "attempts_log", "first_failed_at", "died_at"),
    *("worker", "broker", "size_bytes"),
]


def failing(name: str = "work", queue_name: str = "default", **options: Any) -> Any:
    """An actor that raises the error its first argument names, caused by another."""

    def work(what: str, **more: Any) -> None:
        try:
            raise KeyError("deep")
        except KeyError as exc:
            raise {"value": ValueError, "os": OSError}[what](f"{what} went wrong") from exc

    return dramatiq.actor(work, actor_name=name, queue_name=queue_name, **{"max_retries": 0, **options})


def dead(stage: Stage, actor: Any, *calls: tuple[Any, ...], queue_name: str = "default") -> list[DeadLetter]:
    """Send, run, and return the letters."""
    before = stage.counts(queue_name)[3] or 0
    for call in calls:
        actor.send(*call)
    hand = stage.hand(queue_name)
    for _ in calls:
        hand.run()
    stage.wait_for(0, 0, 0, before + len(calls), queue_name=queue_name)
    hand.leave()
    return list(stage.transport.dead_letters(queue_name))


class Witness(Middleware):
    """Hears of letters."""

    def __init__(self) -> None:
        self.letters: list[tuple[Any, dict[str, Any]]] = []

    def after_dead_letter(self, broker: Any, message: Any, letter: dict[str, Any]) -> None:
        self.letters.append((message, letter))


class Letters:
    """Reading and moving dead letters."""

    def test_a_letter_has_every_field(self, make: Make) -> None:
        """After two attempts all is known: who, what, why, when, where, how often."""
        stage = make(version="2026.1")
        work = failing(max_retries=1, **SOON)
        began = datetime.now(timezone.utc)
        sent = work.send_with_options(args=("value",), kwargs={"k": [1]}, mine="yes")
        stage.worker()
        stage.wait_for(0, 0, 0, 1)
        (letter,) = stage.letters()
        assert list(letter) == FIELDS
        assert [name for name in FIELDS if letter[name] is None] == []
        assert (letter["message_id"], letter["queue"], letter["actor"]) == (sent.message_id, "default", "work")
        assert (letter["args"], letter["kwargs"], letter["options"]) == (["value"], {"k": [1]}, {"mine": "yes"})
        assert (letter["reason"], letter["error"]) == ("retries_exhausted", "ValueError")
        assert letter["error_message"] == "value went wrong"
        assert letter["cause_chain"] == [{"error": "KeyError", "message": "'deep'"}]
        assert 'raise {"value": ValueError' in letter["traceback"]
        assert letter["attempts"] == len(letter["attempts_log"]) == 2
        assert letter["worker"] == {"host": socket.gethostname(), "pid": os.getpid(), "version": "2026.1"}
        assert letter["broker"] == stage.transport.kind
        assert len(letter["id"]) == 26
        assert len(letter["fingerprint"]) == 16
        first, last = (
            datetime.fromisoformat(letter[key].replace("Z", "+00:00")) for key in ("first_failed_at", "died_at")
        )
        assert (began - first).total_seconds() < 1
        assert first < last <= datetime.now(timezone.utc)
        assert letter["attempts_log"][0]["at"] == letter["first_failed_at"]
        assert {attempt["version"] for attempt in letter["attempts_log"]} == {"2026.1"}

    def test_letters_come_in_the_order_of_their_deaths(self, make: Make) -> None:
        """30 die one after the other, many within one ms: read in that order, ids rising."""
        stage = make()
        work = failing()
        letters = dead(stage, work, *[("value",)] * 30)
        assert [letter.id for letter in letters] == sorted(letter.id for letter in letters)
        assert [letter.died_at_ms for letter in letters] == sorted(letter.died_at_ms or 0 for letter in letters)

    def test_reading_changes_nothing(self, make: Make) -> None:
        """Read three times: the same letters, and as many as before."""
        stage = make()
        dead(stage, failing(), ("value",), ("os",))
        first = stage.letters()
        assert stage.letters() == stage.letters() == first
        assert stage.counts() == (0, 0, 0, 2)

    def test_a_letter_is_found_by_its_id_and_by_its_message_s(self, make: Make) -> None:
        """In its queue or in all; elsewhere, and unknown ids, None."""
        stage = make()
        one, two = dead(stage, failing(), ("value",), ("os",))
        find = stage.transport.find_letter
        assert one.message is not None
        assert [found and found.id for found in (find(one.id), find(two.id, "default"))] == [one.id, two.id]
        assert (found := find(one.message.message_id)) is not None
        assert found.id == one.id
        assert [find("nope"), find(one.id, "elsewhere"), find(""), find("*"), find("\x00")] == [None] * 5

    def test_a_discarded_letter_is_gone_and_only_it(self, make: Make) -> None:
        """2 letters, 1 discarded: 1 left; the second try says that it was gone."""
        stage = make()
        one, two = dead(stage, failing(), ("value",), ("os",))
        assert stage.transport.discard(one) is True
        assert stage.transport.discard(one) is False
        assert [letter.id for letter in stage.transport.dead_letters("default")] == [two.id]
        assert sum(group["count"] for group in stage.transport.dead_groups("default")) == 1

    def test_a_replayed_letter_runs_once_and_is_no_letter_any_more(self, make: Make) -> None:
        """Replayed twice by two people: one message; it runs; no letter is left."""
        stage, ran = make(), []

        def work(number: int) -> None:
            ran.append(number)
            if len(ran) == 1:
                raise reliq.Permanent("not yet")

        actor = dramatiq.actor(work, actor_name="work")
        (letter,) = dead(stage, actor, (7,))
        assert letter.message is not None
        publish = stage.transport.outgoing(actor.message(7))
        assert stage.transport.replay(letter, publish) is True
        assert stage.transport.replay(letter, publish) is False
        assert stage.counts() == (1, 0, 0, 0)
        stage.worker()
        stage.broker.join("default", timeout=10_000)
        assert (ran, stage.counts()) == ([7, 7], (0, 0, 0, 0))

    def test_letters_are_counted_by_cause(self, make: Make) -> None:
        """5 of one cause, 2 of another: two groups with count, times and a sample that exists."""
        stage = make()
        letters = dead(stage, failing(), *[("value",)] * 5, *[("os",)] * 2)
        groups = {group["error"]: group for group in stage.transport.dead_groups("default")}
        assert {error: group["count"] for error, group in groups.items()} == {"ValueError": 5, "OSError": 2}
        for group in groups.values():
            members = [letter for letter in letters if letter.fingerprint == group["fingerprint"]]
            assert (group["queue"], group["actor"], group["reason"]) == ("default", "work", "retries_exhausted")
            assert group["sample"] in {letter.id for letter in members}
            assert (group["first_seen_ms"], group["last_seen_ms"]) == (members[0].died_at_ms, members[-1].died_at_ms)

    def test_a_queue_without_letters_has_none(self, make: Make) -> None:
        """Also a queue that nobody declared."""
        stage = make()
        stage.broker.declare_queue("default")
        for name in ("default", "nobody's"):
            assert list(stage.transport.dead_letters(name)) == []
            assert stage.transport.dead_groups(name) == []

    def test_who_listens_hears_of_a_letter_once_it_is_stored(self, make: Make) -> None:
        """after_dead_letter, once, with the message and the letter as users see it."""
        witness = Witness()
        stage = make(more=[witness])
        sent = failing().send("value")
        stage.hand().run()
        ((message, letter),) = witness.letters
        assert message.message_id == sent.message_id
        assert letter == stage.letters()[0]

    def test_an_actor_that_asked_is_sent_the_letter_in_the_same_step(self, make: Make) -> None:
        """on_dead_letter by name: one message beside the letter, without arguments and traceback."""
        stage, got = make(reliq.DeadLetters(on_dead_letter="told")), []
        dramatiq.actor(got.append, actor_name="told", queue_name="told")
        failing().send("value")
        stage.hand().run()
        assert (stage.counts(), stage.counts("told")) == ((0, 0, 0, 1), (1, 0, 0, 0))
        stage.hand("told").run()
        (letter,) = stage.letters()
        assert got == [{key: letter[key] for key in FIELDS if key not in ("args", "kwargs", "traceback")}]

    def test_redact_acts_on_what_hooks_and_actors_are_told_and_not_on_the_letter(self, make: Make) -> None:
        """What is told is redacted; the stored letter is whole."""

        def redact(letter: dict[str, Any]) -> dict[str, Any]:
            letter["kwargs"]["card"].clear()
            return {**letter, "args": "***", "error_message": "***"}

        witness, got = Witness(), []
        stage = make(reliq.DeadLetters(on_dead_letter="told"), more=[witness], redact=redact)
        dramatiq.actor(got.append, actor_name="told", queue_name="told")
        failing().send("value", card={"number": "4111"})
        stage.hand().run()
        stage.hand("told").run()
        ((_, told),) = witness.letters
        assert (told["args"], told["kwargs"], told["error_message"]) == ("***", {"card": {}}, "***")
        assert got[0]["error_message"] == "***"
        (letter,) = stage.letters()
        assert (letter["kwargs"], letter["error_message"]) == ({"card": {"number": "4111"}}, "value went wrong")

    @pytest.mark.parametrize("answer", [None, "text", ValueError("broken")], ids=["none", "text", "raises"])
    def test_a_redact_that_fails_shows_nothing_of_the_content(
        self, make: Make, answer: Any, caplog: pytest.LogCaptureFixture
    ) -> None:
        """Only id, queue, actor, reason and time are told; the letter is kept all the same."""

        def redact(letter: dict[str, Any]) -> Any:
            if isinstance(answer, Exception):
                raise answer
            return answer

        witness, got = Witness(), []
        stage = make(reliq.DeadLetters(on_dead_letter="told"), more=[witness], redact=redact)
        dramatiq.actor(got.append, actor_name="told", queue_name="told")
        failing().send("value", card="4111")
        stage.hand().run()
        stage.hand("told").run()
        allowed = {"id", "queue", "actor", "reason", "died_at"}
        assert set(witness.letters[0][1]) == allowed
        assert set(got[0]) == allowed
        assert stage.counts() == (0, 0, 0, 1)
        assert any(record.levelname == "CRITICAL" and "redact" in record.getMessage() for record in caplog.records)

    def test_letters_older_than_the_retention_are_deleted(self, make: Make) -> None:
        """retention=1 ms: gone once a worker runs."""
        stage = make(reliq.DeadLetters(retention=1))
        dead(stage, failing(), ("value",))
        stage.worker()
        eventually(lambda: stage.counts() == (0, 0, 0, 0), 10, what="the end of the letter")
