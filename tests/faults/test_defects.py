"""Confirmed defects of plain Dramatiq 2.2.1 on Redis: each shown on plain Dramatiq, then gone with reliq.

The plain case asserts the defect, so that the reliq case cannot pass for another reason. One stock worker process per
case, the fault injected by a proxy, by raw bytes or by the actors themselves. (D2 is with the late interrupts; D3, D8,
D9, D14 and D15 are of other brokers.)
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from reliq.testing.plugin import MakeProxy
from reliq.transport.redis.scripts import source
from tests.faults.b_rig import Rig, shared_rig
from tests.faults.stage import asks, calls

rig = pytest.fixture(shared_rig)

#: The plain queue as an argument of a request.
QUEUE = b"\r\ndefault\r\n"
#: What the stock worker logs when an ack fails in a way that it does not expect.
BUG = "You've found a bug in Dramatiq"


def plain_is_slow(*values: Any) -> list[Any]:
    """Both modes; the plain one, which shows the defect, in `make test-full` only: it takes longer than 3 s."""
    return [pytest.param("plain", *values, marks=pytest.mark.full), pytest.param("reliq", *values)]


# -- D1: a retry that cannot be stored -------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["plain", "reliq"])
@pytest.mark.parametrize("actor", ["flaky", "broken_predicate", "leaves_an_object"])
def test_a_retry_that_cannot_be_stored_does_not_lose_the_message(
    rig: Rig, fault_proxy: MakeProxy, mode: str, actor: str
) -> None:
    """D1: the retry's request is lost on the wire, `retry_when` raises, an option is no JSON: 10 sent, 10 done, 0
    lost. Plain: all 10 acked and gone."""
    proxy = fault_proxy(rig.server)
    dropped = proxy.drop_requests(b'"eta"', every=True, limit=10)
    if actor != "flaky":
        dropped.remove()
    for key in range(10):
        rig.send(actor, key, mode=mode)
    rig.workers(mode, url=proxy.url())
    if mode == "plain":
        assert rig.log.wait_for("fail", 10)
        rig.wait_settled()
        rig.count(tally := rig.tally())
        assert (tally.lost, tally.done) == (10, 0)
        return
    rig.wait_done(10)
    rig.wait_settled()
    rig.count(tally := rig.tally())
    assert (tally.done, tally.lost, tally.dead, tally.twice, tally.runs) == (10, 0, 0, 0, 20)
    assert dropped.fired == (10 if actor == "flaky" else 0)


def test_a_callback_whose_actor_is_gone_changes_nothing_for_the_message(rig: Rig) -> None:
    """D1: `on_failure` and `on_success` name an actor that nobody declares: 5 sent, 5 retried, 5 done, and the log
    names the actor that is missing."""
    for key in range(5):
        rig.send("calls_nobody", key)
    group = rig.workers()
    rig.wait_done(5)
    rig.wait_settled()
    rig.count(tally := rig.tally())
    assert (tally.done, tally.retried, tally.lost, tally.dead, tally.runs) == (5, 5, 0, 0, 10)
    assert "an_actor_that_is_gone" in group.log()


# -- D4, D5: what waits, and who waits for it, when the connection breaks --------------------------------------------


@pytest.mark.parametrize("mode", plain_is_slow())
def test_delayed_messages_survive_a_connection_that_breaks(rig: Rig, fault_proxy: MakeProxy, mode: str) -> None:
    """D4: 5 messages wait 2.5 s, Redis refuses connections for 1 s meanwhile: 5 run. Plain: 0 run, held by a worker
    that is alive and has forgotten them."""
    proxy = fault_proxy(rig.server)
    rig.workers(mode, url=proxy.url(), env={"dramatiq_restart_delay": "100"})
    for key in range(5):
        rig.send("work", key, mode=mode, delay=2_500)
    rig.wait_for(lambda: rig.waits_where(mode) == 5, "the worker to have taken in the delays")
    proxy.refuse()
    rig.pause(1.0)
    proxy.heal()
    if mode == "plain":
        rig.send("work", "later", mode=mode, delay=4_000)
        rig.wait_done(1)  # the same threads live and run what came afterwards
        rig.count(tally := rig.tally(range(5), live=lambda _: False))
        assert (tally.done, tally.stuck, tally.lost) == (0, 5, 0)
        return
    rig.wait_done(5)
    rig.wait_settled()
    rig.count(tally := rig.tally())
    assert (tally.done, tally.stuck, tally.lost, tally.twice) == (5, 0, 0, 0)


@pytest.mark.parametrize("mode", plain_is_slow())
def test_an_unexpected_redis_error_ends_no_consumer(rig: Rig, fault_proxy: MakeProxy, mode: str) -> None:
    """D5: 5 messages wait 1 s, Redis answers nobody for 3 s (timeouts, not connection errors), 5 more are delayed after
    it: 10 run, in the same process. Plain: the thread of the delay queue is dead, 0 of 10 run, the process lives on."""
    proxy = fault_proxy(rig.server)
    timeouts = {"client": {"socket_timeout": 0.5}, "delivery": {"lease": 2_000}}
    group = rig.workers(mode, url=proxy.url(), env={"dramatiq_restart_delay": "100"}, **timeouts)
    pid = group.worker_pid
    for key in range(5):
        rig.send("work", key, mode=mode, delay=1_000)
    rig.wait_for(lambda: rig.waits_where(mode) == 5, "the worker to have taken in the delays")
    proxy.blackhole()
    rig.pause(3.0)
    proxy.heal()
    for key in range(5, 10):
        rig.send("work", key, mode=mode, delay=300)
    assert group.alive
    if mode == "plain":
        rig.send("work", "ready", mode=mode)
        rig.wait_done(1)  # its other thread still consumes
        rig.pause(1.5)
        rig.count(tally := rig.tally(range(10), live=lambda _: False))
        assert tally.done == 0
        assert "Exception in thread" in group.log()
        return
    rig.wait_done(10)
    rig.wait_settled()
    rig.count(tally := rig.tally())
    assert (tally.done, tally.stuck, tally.lost, tally.twice) == (10, 0, 0, 0)
    assert group.worker_pid == pid


# -- D6: a prefetch that cannot be read ------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["plain", "reliq"])
def test_a_body_that_cannot_be_decoded_strands_no_neighbour(rig: Rig, mode: str) -> None:
    """D6: garbage among 8 good messages: 8 done, 1 letter. Plain: some of the 8 stay unacked in a worker that lives."""
    for key in range(4):
        rig.send("work", key, mode=mode)
    rig.put(b"{garbage", "poison")
    for key in range(4, 8):
        rig.send("work", key, mode=mode)
    rig.workers(mode, env={"dramatiq_restart_delay": "100"})
    if mode == "plain":
        rig.wait_for(lambda: not rig.census().count("ready"), "everything to be fetched")
        rig.wait_done(4)
        rig.pause(0.5)
        rig.count(tally := rig.tally(live=lambda _: False))
        assert tally.stuck > 0
        assert tally.done + tally.stuck == 8
        return
    rig.wait_done(8)
    rig.wait_for(lambda: rig.census().count("dead"), "the letter")
    rig.wait_settled()
    rig.count(tally := rig.tally())
    assert (tally.done, tally.stuck, tally.lost) == (8, 0, 0)
    (letter,) = rig.raw_letters()
    assert (letter.reason, letter.body) == ("malformed", b"{garbage")


@pytest.mark.parametrize("mode", ["plain", "reliq"])
def test_a_lost_reply_to_a_fetch_strands_nothing(rig: Rig, fault_proxy: MakeProxy, mode: str) -> None:
    """D6: the reply that brings the first prefetch is lost: 12 sent, 12 run once. Plain: 8 stay unacked in a worker
    that lives."""
    proxy = fault_proxy(rig.server)
    rig.client.script_load(source("fetch"))  # else the reply that is lost would only say that it is not known
    kind = calls("fetch", QUEUE) if mode == "reliq" else asks(b"fetch", QUEUE)
    lost = proxy.drop_replies(kind)
    for key in range(12):
        rig.send("work", key, mode=mode)
    rig.workers(mode, url=proxy.url(), env={"dramatiq_restart_delay": "100"})
    if mode == "plain":
        rig.wait_done(4)
        rig.pause(0.3)
        rig.count(tally := rig.tally(live=lambda _: False))
        assert (tally.done, tally.stuck) == (4, 8)
        return
    rig.wait_done(12)
    rig.wait_settled()
    rig.count(tally := rig.tally())
    assert (tally.done, tally.stuck, tally.lost, tally.twice, lost.fired) == (12, 0, 0, 0, 1)


# -- D7: a body that kills the thread which runs it ------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["plain", "reliq"])
def test_a_body_that_names_another_queue_kills_no_thread(rig: Rig, mode: str) -> None:
    """D7: 4 bodies that name a queue nobody consumes, then 8 good ones: 8 done, 4 letters. Plain: 4 of 4 worker threads
    dead, 0 of 8 run."""
    for number in range(4):
        rig.put(rig.body("work", f"stray-{number}", queue_name="elsewhere"), f"stray-{number}")
    group = rig.workers(mode)
    if mode == "plain":
        rig.wait_for(lambda: group.log().count("Exception in thread") == 4, "four dead threads")
        for key in range(8):
            rig.send("work", key, mode=mode)
        rig.pause(0.5)
        rig.count(tally := rig.tally(live=lambda _: False))
        assert tally.done == 0
        return
    for key in range(8):
        rig.send("work", key)
    rig.wait_done(8)
    rig.wait_for(lambda: rig.census().count("dead") == 4, "the letters")
    rig.wait_settled()
    rig.count(tally := rig.tally())
    assert (tally.done, tally.stuck, tally.lost) == (8, 0, 0)
    assert {letter["reason"] for letter in rig.letters()} == {"malformed"}
    assert all("elsewhere" in letter["error_message"] for letter in rig.letters())


@pytest.mark.parametrize("mode", ["plain", "reliq"])
def test_an_option_throws_from_json_kills_no_thread(rig: Rig, mode: str) -> None:
    """D7: 4 messages carry `throws` as JSON can hold it, a list of names, and fail once; 8 good ones follow: 12 done.
    Plain: 4 lost with their threads, 0 of 8 run."""
    for key in range(4):
        rig.put(
            rig.body("flaky", key, options={"redis_message_id": f"listed-{key}", "throws": ["OSError"]}),
            f"listed-{key}",
        )
        rig.sent.append(key)
    group = rig.workers(mode)
    if mode == "plain":
        rig.wait_for(lambda: group.log().count("TypeError: isinstance()") == 4, "four dead threads")
        for key in range(4, 12):
            rig.send("work", key, mode=mode)
        rig.pause(0.5)
        rig.count(tally := rig.tally())
        assert (tally.done, tally.lost) == (0, 4)
        return
    for key in range(4, 12):
        rig.send("work", key)
    rig.wait_done(12)
    rig.wait_settled()
    rig.count(tally := rig.tally())
    assert (tally.done, tally.retried, tally.lost, tally.dead) == (12, 4, 0, 0)


# -- D11: an ack that times out --------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["plain", "reliq"])
def test_an_ack_that_times_out_is_sent_again(rig: Rig, fault_proxy: MakeProxy, tmp_path: Path, mode: str) -> None:
    """D11: Redis swallows every byte while 4 tasks end: 4 acked once it answers again, 4 runs. Plain: 4 done and still
    unacked, to run again one day."""
    proxy, gate = fault_proxy(rig.server), tmp_path / "gate"
    timeouts = {"client": {"socket_timeout": 0.4}, "delivery": {"lease": 2_000}}
    for key in range(4):
        rig.send("gated", key, str(gate), mode=mode)
    group = rig.workers(mode, url=proxy.url(), env={"dramatiq_restart_delay": "100"}, **timeouts)
    assert rig.log.wait_for("start", 4)
    proxy.blackhole()
    gate.touch()
    rig.wait_done(4)
    if mode == "plain":
        rig.wait_for(lambda: group.log().count(BUG) == 4, "four acks to be given up")
        proxy.heal()
        rig.send("work", "later", mode=mode)
        rig.wait_done(5)
        unacked = [place for place in rig.census().of("unacked") if place.key != "later"]
        rig.count(f"sent 4 done 4 unacked for ever {len(unacked)}")
        assert len(unacked) == 4
        return
    rig.wait_for(lambda: "acks wait for Redis" in group.log(), "an ack to time out")
    proxy.heal()
    rig.wait_settled()
    rig.count(tally := rig.tally())
    assert (tally.done, tally.runs, tally.stuck, tally.lost) == (4, 4, 0, 0)


# -- D13: what a dead letter says ------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["plain", "reliq"])
def test_a_dead_letter_tells_the_last_attempt(rig: Rig, mode: str) -> None:
    """D13: 3 attempts, the last one kills: the letter says 3 attempts and the third's error. Plain: the XQ body says 2
    retries, and has the traceback of the second attempt."""
    rig.send("doomed", "a", mode=mode)
    rig.workers(mode)
    rig.wait_for(lambda: rig.census().count("dead", "stock_dead"), "the letter")
    if mode == "plain":
        (place,) = rig.census().of("stock_dead")
        options = json.loads(place.body)["options"]
        rig.count(f"attempts {rig.log.count('fail')['a']} retries told {options['retries']}")
        assert options["retries"] == 2
        assert "attempt 2 of a" in options["traceback"]
        assert b"attempt 3" not in place.body
        return
    (letter,) = rig.letters()
    rig.count(f"attempts {rig.log.count('fail')['a']} attempts told {letter['attempts']}")
    assert letter["attempts"] == 3
    assert letter["error_message"].startswith("attempt 3 of a")
    assert "attempt 3 of a" in letter["traceback"]
    assert "attempt 2" not in letter["traceback"]
