"""The pure parts of the RabbitMQ transport, each as a table: routes of the ladder, copies, frames, words of errors."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

import pika
import pika.exceptions
import pytest
from dramatiq.message import Message
from hypothesis import given
from hypothesis import strategies as st

from reliq.message.record import Record
from reliq.transport.rabbitmq.copies import AGAIN, REMEMBERED, Copies, key_of
from reliq.transport.rabbitmq.errors import Failure, Refusal, code_of, explain, refusal_of
from reliq.transport.rabbitmq.frames import META, MOST_META_BYTES, letter_frame, message_frame, user_properties
from reliq.transport.rabbitmq.intake import epoch_and_tag, token_of
from reliq.transport.rabbitmq.letters import letter_of
from reliq.transport.rabbitmq.subscription import Arrival, Subscription
from reliq.transport.rabbitmq.topology import LEVELS, LONGEST_MS, UNIT_MS, Ladder, kept, ladder_kind, target_of
from reliq.transport.settlement import Bury, Publish, Settlement

QUEUES = st.from_regex(r"[a-z0-9_-]{1,8}(\.[a-z0-9_-]{1,8}){0,3}", fullmatch=True)


class TestLadder:
    """A delay in, a route out."""

    @given(st.integers(1, LONGEST_MS), QUEUES, st.sampled_from(["classic", "quorum"]))
    def test_a_message_waits_for_its_delay_rounded_up_to_the_unit(self, delay_ms: int, queue: str, kind: Any) -> None:
        """Walked down the ladder as the broker does, it spends the TTL of each level whose bit is set: never less than
        its delay, never a unit more; and comes out for its queue."""
        ladder = Ladder(kind)
        exchange, key = ladder.route(delay_ms, queue)
        bits = key.split(".")[:LEVELS]
        waited, level = 0, int(exchange.removeprefix(ladder.prefix + "."))
        assert bits[LEVELS - 1 - level] == "1", "it enters on a level where it waits: no first hop is unroutable"
        assert all(bit == "0" for bit in bits[: LEVELS - 1 - level]), "nothing above it is skipped"
        for number in range(level, -1, -1):
            if bits[LEVELS - 1 - number] == "1":
                waited += UNIT_MS << number
        assert delay_ms <= waited < delay_ms + UNIT_MS
        assert target_of(ladder.level(0), key) == queue

    def test_the_bindings_lead_down_and_out(self) -> None:
        """24 exchanges, 24 queues with rising TTLs, each dead-lettering to the next exchange, the last one out."""
        ladder = Ladder("classic")
        steps = ladder.steps((3, 10))
        queues = {s.arguments["queue"]: s.arguments["arguments"] for s in steps if s.method == "queue_declare"}
        levels = [queues[ladder.level(number)] for number in range(LEVELS)]
        assert [level["x-message-ttl"] for level in levels] == [UNIT_MS * 2**number for number in range(LEVELS)]
        goals = [level["x-dead-letter-exchange"] for level in levels]
        assert goals == [ladder.out, *(ladder.level(number) for number in range(LEVELS - 1))]
        assert sum(step.method == "exchange_bind" for step in steps) == LEVELS

    def test_the_binding_of_a_queue_is_not_that_of_one_whose_name_ends_alike(self) -> None:
        """As many stars as levels."""
        assert Ladder("classic").bind("default").arguments["routing_key"] == "*." * LEVELS + "default"

    def test_quorum_queues_have_a_ladder_of_their_own(self) -> None:
        """Names differ; hops are confirmed inside the broker."""
        arguments = Ladder("quorum").steps((3, 10))[-3].arguments["arguments"]
        assert arguments["x-queue-type"] == "quorum"
        assert (arguments["x-dead-letter-strategy"], arguments["x-overflow"]) == ("at-least-once", "reject-publish")
        assert {Ladder("quorum").level(3), Ladder("quorum").unrouted} == {"reliq.delay.v1q.03", "reliq.unrouted.q"}

    @pytest.mark.parametrize(
        ("wanted", "version", "kind"),
        [
            (None, (3, 10), "quorum"),
            (None, (4, 0, 5), "quorum"),
            (None, None, "quorum"),
            (None, (3, 9, 99), "classic"),
            ("classic", (4, 0, 5), "classic"),
            ("quorum", (3, 9), "quorum"),
        ],
    )
    def test_it_is_of_quorum_queues_where_the_server_has_what_it_needs(
        self, wanted: str | None, version: tuple[int, ...] | None, kind: str
    ) -> None:
        """A quorum queue has a TTL and dead-letters with a confirm from RabbitMQ 3.10 on."""
        assert ladder_kind(wanted, version) == kind

    @pytest.mark.parametrize(
        ("kind", "version", "arguments"),
        [
            ("classic", (3, 10), {"x-queue-type": "classic"}),
            ("quorum", (3, 10), {"x-queue-type": "quorum"}),
            ("quorum", None, {"x-queue-type": "quorum"}),
            ("quorum", (4, 0), {"x-queue-type": "quorum", "x-delivery-limit": -1}),
        ],
    )
    def test_what_is_read_often_has_no_delivery_limit(self, kind: Any, version: Any, arguments: dict[str, Any]) -> None:
        """-1 lifts it from RabbitMQ 4 on; before, it would mean the opposite."""
        assert kept(kind, version) == arguments


class TestCopies:
    """What runs, and what is known."""

    KEY = ("m", 1, 0, 0)

    def test_two_that_are_not_marked_both_run(self) -> None:
        """Two sends of one id."""
        copies = Copies()
        for _ in range(2):
            assert copies.arrives(self.KEY, 1, redelivered=False, marked=False) == "run"
            copies.settled(self.KEY, marked=False)
        assert copies.arrives(self.KEY, 1, redelivered=True, marked=False) == "run"

    @pytest.mark.parametrize(("first", "second"), [(True, False), (False, True), (True, True)])
    def test_of_two_that_are_alike_one_of_them_marked_one_runs(self, first: bool, second: bool) -> None:
        """In either order."""
        copies = Copies()
        assert copies.arrives(self.KEY, 1, redelivered=False, marked=first) == "run"
        assert copies.arrives(self.KEY, 1, redelivered=False, marked=second) == "wait"
        copies.settled(self.KEY, marked=first)
        assert copies.arrives(self.KEY, 1, redelivered=False, marked=second) == "copy"

    def test_one_whose_twin_was_lost_runs(self) -> None:
        """The twin's channel ended before it was settled: it comes again itself."""
        copies = Copies()
        copies.arrives(self.KEY, 1, redelivered=False, marked=True)
        copies.lost(1, [], [])
        assert copies.arrives(self.KEY, 2, redelivered=False, marked=True) == "run"

    def test_one_that_was_settled_right_before_its_channel_was_lost_does_not_run_again_when_it_comes_again(
        self,
    ) -> None:
        """Once; another send of this id that comes later runs."""
        copies = Copies()
        copies.arrives(self.KEY, 1, redelivered=False, marked=False)
        copies.settled(self.KEY, marked=False)
        copies.lost(1, [], [(self.KEY, None)])
        assert copies.arrives(self.KEY, 2, redelivered=False, marked=False) == "run"
        assert copies.arrives(self.KEY, 2, redelivered=True, marked=False) == "ended"
        assert copies.result(self.KEY) is None
        assert copies.arrives(self.KEY, 2, redelivered=True, marked=False) == "run"

    def test_one_whose_first_run_goes_on_without_its_channel_waits_and_takes_its_result(self) -> None:
        """Once each: of two sends of one id that both run on, both results are taken."""
        copies, result = Copies(), Settlement("q", "1.1", "retried")
        one, two = Message("q", "a", (), {}, {}), Message("q", "a", (), {}, {})
        copies.lost(1, [(self.KEY, one), (self.KEY, two)], [])
        assert copies.arrives(self.KEY, 2, redelivered=True, marked=False) == "wait"
        copies.ended(self.KEY, one, result)
        assert copies.arrives(self.KEY, 2, redelivered=False, marked=True) == "ended"
        assert copies.result(self.KEY) is result
        assert copies.arrives(self.KEY, 2, redelivered=True, marked=False) == "wait"
        copies.ended(self.KEY, two)
        assert copies.arrives(self.KEY, 2, redelivered=True, marked=False) == "ended"
        assert copies.result(self.KEY) is None
        assert copies.arrives(self.KEY, 2, redelivered=True, marked=False) == "run"

    def test_a_copy_does_not_take_the_result_that_its_twin_comes_again_for(self) -> None:
        """The twin had its run on a channel that was lost: both are acked, in either order."""
        copies = Copies()
        copies.lost(1, [], [(self.KEY, None)])
        assert copies.arrives(self.KEY, 2, redelivered=False, marked=True) == "copy"
        assert copies.arrives(self.KEY, 2, redelivered=True, marked=False) == "ended"

    def test_one_whose_first_run_is_nobodys_any_more_runs(self) -> None:
        """Its thread is gone, and with it the message."""
        copies, message = Copies(), Message("q", "a", (), {}, {})
        copies.lost(1, [(self.KEY, message)], [])
        assert copies.arrives(self.KEY, 2, redelivered=True, marked=False) == "wait"
        del message
        assert copies.arrives(self.KEY, 2, redelivered=True, marked=False) == "run"

    def test_one_that_was_given_back_unrun_runs_when_it_comes_again(self) -> None:
        """It does not wait for itself."""
        copies = Copies()
        assert copies.arrives(self.KEY, 1, redelivered=True, marked=True) == "run"
        copies.given_back(self.KEY)
        assert copies.arrives(self.KEY, 1, redelivered=True, marked=True) == "run"

    def test_memory_is_bounded(self) -> None:
        """The oldest go first."""
        copies = Copies()
        for number in range(REMEMBERED + 10):
            copies.settled((str(number), 1, 0, 0), marked=True)
        assert copies.arrives(("0", 1, 0, 0), 1, redelivered=False, marked=True) == "run"
        assert copies.arrives((str(REMEMBERED), 1, 0, 0), 1, redelivered=False, marked=True) == "copy"

    @pytest.mark.parametrize(
        ("options", "key"),
        [
            ({}, ("m", 0, 0, 0)),
            ({"retries": 3}, ("m", 3, 0, 0)),
            ({"retries": "many"}, ("m", 0, 0, 0)),
            ({"reliq": {"v": 1, "deferrals": 2, "replay": {"n": 4}}}, ("m", 0, 2, 4)),
            ({"reliq": {"v": 1, "replay": {"n": "x"}}}, ("m", 0, 0, 0)),
        ],
    )
    def test_a_key_tells_attempts_deferrals_and_replays_apart(self, options: dict[str, Any], key: Any) -> None:
        """What each of them stores is not a copy of what it came from."""
        assert key_of("m", options, Record.read(options)) == key


def message(**options: Any) -> Message[Any]:
    """A message of queue q."""
    return Message("q", "work", (1,), {}, options)


class TestFrames:
    """What goes over the line."""

    def test_what_a_producer_set_is_kept_and_what_the_broker_wrote_is_not(self) -> None:
        """Headers, priority, types; not x-death, expiration, user_id."""
        came = pika.BasicProperties(
            headers={"tenant": 7, "x-death": [{}], "x-first-death-queue": "q", "x-delivery-count": 2, AGAIN: True},
            priority=4,
            content_type="application/json",
            expiration="100",
            user_id="guest",
            correlation_id="c",
        )
        properties = message_frame(Publish(message(), b"{}"), None, came).properties
        assert properties.headers == {"tenant": 7}
        assert (properties.priority, properties.content_type, properties.correlation_id) == (4, "application/json", "c")
        assert (properties.expiration, properties.user_id, properties.delivery_mode) == (None, None, 2)
        assert user_properties(came).headers == {"tenant": 7, AGAIN: True}

    @pytest.mark.parametrize(
        ("given_", "priority"), [(3, 3), (0, 0), (256, None), (-1, None), (True, None), ("5", None)]
    )
    def test_a_priority_is_a_number_from_0_to_255(self, given_: Any, priority: int | None) -> None:
        """Of the option `broker_priority`; anything else is left out."""
        frame = message_frame(Publish(message(broker_priority=given_), b"{}"), None)
        assert frame.properties.priority == priority

    def test_a_letter_says_what_it_is_in_small_headers(self) -> None:
        """Names that no UTF-8 holds and long ones are made to fit; no traceback."""
        dead = {
            "id": "L",
            "reason": "permanent",
            "error": "E" * 300,
            "fingerprint": "f",
            "died_at": 5,
            "traceback": "T",
        }
        bury = Bury("q", dead, b"{}", Message("q", "\udcff", (), {}, {}), None)
        headers = letter_frame(bury, "reliq.dlx").properties.headers
        assert headers["x-reliq-actor"] == "\\udcff"
        assert len(headers["x-reliq-error"]) == 255
        assert not any(value == "T" for value in headers.values())
        assert letter_frame(bury, "").routing_key == "q.dead"
        assert letter_frame(bury, "reliq.dlx").routing_key == "q"

    def test_a_record_that_does_not_fit_beside_a_body_goes_without_its_traceback(self) -> None:
        """Headers share one frame."""
        dead = {"id": "L", "reason": "malformed", "error": None, "fingerprint": "f", "died_at": 5}
        meta = json.dumps({**dead, "traceback": "x" * MOST_META_BYTES}).encode()
        header = letter_frame(Bury("q", dead, b"\xff", None, meta), "reliq.dlx").properties.headers[META]
        assert json.loads(header)["traceback"] is None


def unreadable(body: bytes) -> Any:
    """No application's encoder."""
    raise ValueError("no")


class TestLetters:
    """What is read."""

    def arrival(self, body: bytes, **headers: Any) -> Arrival:
        """One, with these headers."""
        return Arrival(1, False, pika.BasicProperties(headers=headers or None), body, "", "q")

    def test_a_letter_that_the_broker_made_is_read_with_nulls(self) -> None:
        """Its time by x-death; its twin told apart."""
        from datetime import datetime

        twins: Counter[str] = Counter()
        death = {"time": datetime(2026, 1, 2, 3, 4, 5), "reason": "expired"}  # noqa: DTZ001 - as pika gives it
        first, second = (
            letter_of(self.arrival(b"junk", **{"x-death": [death]}), "q", "stock", unreadable, twins) for _ in range(2)
        )
        assert second.id == first.id + "-2"
        assert (first.reason, first.message, first.source) == (None, None, "stock")
        assert first.died_at_ms is not None

    @pytest.mark.parametrize("headers", [{"x-death": 5}, {"x-death": []}, {"x-death": [{"time": "x"}]}, {META: b"[1]"}])
    def test_hostile_headers_are_not_believed(self, headers: dict[str, Any]) -> None:
        """No error."""
        letter = letter_of(self.arrival(b"{}", **headers), "q", "reliq", unreadable, Counter())
        assert (letter.reason, letter.died_at_ms) == (None, None)


class TestErrors:
    """What people are told."""

    def test_a_refused_connection_says_where_and_why(self) -> None:
        """As pika wraps it."""
        inner = ConnectionRefusedError(111, "Connection refused")
        wrapped = pika.exceptions.AMQPConnectionError(pika.exceptions.AMQPConnectionError(inner))
        assert str(refusal_of(wrapped, "host:5672: ")) == "host:5672: Connection refused"

    def test_a_wrong_password_is_a_refusal_with_a_remedy(self) -> None:
        """pika guesses, and keeps the server's words as text."""
        said = "ConnectionClosedByBroker: (403) 'ACCESS_REFUSED - Login was refused using PLAIN'"
        error = refusal_of(pika.exceptions.ProbableAuthenticationError(said))
        assert isinstance(error, Refusal)
        assert error.code == 403
        assert "correct user and password" in str(error)

    def test_a_missing_right_is_not_taken_for_a_missing_vhost(self) -> None:
        """Its words name the vhost too."""
        error = pika.exceptions.ChannelClosedByBroker(
            403, "ACCESS_REFUSED - access to exchange 'x' in vhost 'v' refused"
        )
        assert (code_of(error), "create the vhost" in explain(error)) == (403, False)
        missing = pika.exceptions.ConnectionClosedByBroker(530, "NOT_ALLOWED - vhost nope not found")
        assert "create the vhost" in explain(missing)


def test_a_token_names_a_delivery_of_one_channel() -> None:
    """Epoch and tag, there and back; two subscriptions never share an epoch."""
    one, two = (Subscription(None, "q", 1) for _ in range(2))  # type: ignore[arg-type]
    assert one.epoch != two.epoch
    assert epoch_and_tag(token_of(one, 7)) == (one.epoch, 7)


def test_headers_that_fill_a_frame_are_left_out_of_what_is_sent_again() -> None:
    """Ours stay; the broker would close the connection over a frame that is too large."""
    came = pika.BasicProperties(headers={"big": "x" * 130_000, "tenant": 7})
    assert message_frame(Publish(message(), b"{}"), None, came).properties.headers is None
    assert message_frame(Publish(message(), b"{}"), None, came, again=True).properties.headers == {AGAIN: True}


def test_an_ack_that_a_lost_channel_left_owed_is_noted_as_done() -> None:
    """Its message is not taken for one that still runs, however late the flush comes."""
    subscription = Subscription(None, "q", 4)  # type: ignore[arg-type]
    subscription.outstanding[1] = Arrival(1, False, pika.BasicProperties(), b"", "", "q")
    subscription._owed.append(1)
    subscription.end(Failure("cut"))
    subscription._flush()
    assert subscription.owed == {1}
    assert subscription.ack(1) is False
