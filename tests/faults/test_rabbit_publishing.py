"""Sends to RabbitMQ while it is killed, frozen, cut off or out of memory: what `send` accepted is stored, and every
error is of one type, in time, and says whether the message may be stored.

Plain Dramatiq publishes without confirms: what it accepted is lost, or never was on its way.
"""

from __future__ import annotations

import contextlib
import gc
import logging
import os
import signal
import subprocess
import sys
import time
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from reliq.testing import eventually
from reliq.testing.plugin import MakeProxy
from reliq.transport.rabbitmq import link
from tests.faults.rabbit_senders import Outcome, Sender, streaming
from tests.faults.rabbit_stage import START_S, RabbitStage
from tests.faults.stage import SLACK, Mode, extra_runs, stranded

ROOT = Path(__file__).parents[2]

SEND_TIMEOUT_S = 3.0
KNOWN_AWAY_S = 0.25
#: s after the restart of a node within which all tasks must be done.
TARGET_S = 20
#: Tasks of a worker.
N = 40
#: Keys of plain Dramatiq's sender begin here.
PLAIN = 1_000_000
HOUR_MS = 3_600_000


@pytest.fixture(autouse=True)
def _quiet_pika(caplog: pytest.LogCaptureFixture) -> None:
    """It logs several errors, with tracebacks, for each try to connect; plain Dramatiq's sends try without a pause."""
    caplog.set_level(logging.CRITICAL, logger="pika")


def both(stage: RabbitStage, url: str | None = None, plain_url: str | None = None) -> tuple[Sender, Sender]:
    """A sender with reliq and one of plain Dramatiq, each to a queue of its own; both have sent already."""
    sender = Sender(stage.broker(url))
    plain = Sender(stage.broker(plain_url, mode="plain"), first_key=PLAIN, queue="plain")
    for each in (sender, plain):
        assert [each.send().error for _ in range(5)] == [None] * 5
    return sender, plain


def stream(sender: Sender) -> list[Callable[[], Outcome]]:
    """What is sent with reliq at the same time: one by one on three threads, delayed on one, in batches on one."""
    return [sender.send, sender.send, sender.send, lambda: sender.send(HOUR_MS), lambda: sender.send_many(20)]


def check_times(outcomes: list[Outcome]) -> str:
    """Each within `send_timeout`, those of a broker that is known to be away at once; says how many and how long."""
    at_once = [outcome.took_s for outcome in outcomes if outcome.refused_at_once]
    others = [outcome.took_s for outcome in outcomes if not outcome.refused_at_once]
    slowest, slowest_at_once = max(others), max(at_once, default=0.0)
    assert slowest <= SEND_TIMEOUT_S * SLACK
    assert slowest_at_once <= KNOWN_AWAY_S * SLACK
    return f"{len(at_once)} at once, at most {slowest_at_once * 1000:.0f} ms, others at most {slowest:.2f} s"


# -- the node (in this order: neighbours share one that may be killed) -----------------------------------------------


def test_what_was_accepted_is_stored_when_the_broker_dies_in_a_stream(
    mortal_rabbit_stage: RabbitStage, figure: Callable[[object], None]
) -> None:
    """faults.md rows 15 and 18 (killed), dramatiq.md D14: three threads send one by one, one delayed tasks, one batches
    of 20, and the node is killed (-9) and started again among them: all that was accepted is there, nothing that was
    called not stored is, and each send came back in time.

    accepted 3733 lost 0, called not stored 7934 of which stored 0. plain: accepted 654 lost 518.
    """
    stage = mortal_rabbit_stage
    sender, plain = both(stage)
    with streaming(*stream(sender), plain.send):
        eventually(lambda: len(sender.accepted()) > 1_000 and len(plain.accepted()) > 300, START_S, what="a stream")
        stage.node.kill()
        before = len(sender.accepted())
        stage.node.start()
        eventually(lambda: len(sender.accepted()) > before + 500, 10 * SLACK, what="the stream to go on")
    census = stage.census()
    told, told_plain = sender.verdict(census), plain.verdict(census)
    figure(
        f"{told}; {check_times(sender.outcomes)}; "
        f"plain: sent {told_plain.sent} accepted {told_plain.accepted} lost {told_plain.lost}"
    )
    assert told.true
    assert told_plain.lost > 0


@pytest.mark.parametrize(
    ("seconds", "confirm"),
    [
        (5, False),
        pytest.param(14, False, marks=pytest.mark.full),
        pytest.param(14, True, marks=pytest.mark.full),
    ],
)
def test_no_retry_is_lost_when_the_broker_dies_out_of_memory(
    mortal_rabbit_stage: RabbitStage, figure: Callable[[object], None], seconds: float, confirm: bool
) -> None:
    """faults.md row 10: a memory alarm holds while tasks fail, and after 14 s the node is killed (-9): 40 flaky(1) are
    done when it is back. Plain Dramatiq writes their retries into a socket that nobody reads, and acks.

    sent 40 done 40 lost 0 stuck 0, extra runs 0, done 1-2 s after the restart. plain: 40 lost, without a line in the
    log; with confirms 0 to 4.
    """
    stage, plain = mortal_rabbit_stage, mortal_rabbit_stage.twin(confirm=confirm)
    for each in (stage, plain):
        each.send("flaky", range(N))
    stage.node.alarm_memory()
    groups = [each.workers(direct=True) for each in (stage, plain)]  # consumes, although it may not publish
    assert stage.log.wait_for("fail", 4, START_S)
    assert plain.log.wait_for("fail", 4, START_S)
    time.sleep(seconds)  # sleep-ok: the length of the alarm
    stage.node.restart()
    over = time.monotonic()
    counted = stage.finish(list(range(N)), TARGET_S * SLACK)
    took = stage.took_since(over)
    counted_plain = plain.give_up(list(range(N)), quiet=10 if confirm else 2, timeout=TARGET_S * SLACK)
    figure(f"{counted} extra runs {extra_runs(counted)}, done {took:.1f} s after the restart; plain: {counted_plain}")
    assert (counted.done, counted.lost, stranded(counted)) == (N, 0, 0)
    assert all(group.alive for group in groups[:1])
    assert took <= TARGET_S * SLACK
    if not confirm:
        assert counted_plain.lost > 0


def test_sends_during_a_memory_alarm_fail_in_time_and_say_why(
    mortal_rabbit_stage: RabbitStage, figure: Callable[[object], None]
) -> None:
    """dramatiq.md D14, faults.md row 10: under a memory alarm RabbitMQ takes nothing from who publishes. A send fails
    within `send_timeout` and names the reason, the next ones at once; when the alarm is over they work again, what had
    been called not stored is not, and all that was accepted is.

    told after 2.9 s, then at once; lost 0. plain: 20 accepted, 0 of them stored.
    """
    stage = mortal_rabbit_stage
    sender, plain = both(stage)
    newcomer = Sender(stage.broker(), first_key=PLAIN // 2)
    stage.node.alarm_memory()
    assert [plain.send().error for _ in range(20)] == [None] * 20
    first, late = sender.send(), newcomer.send()
    more = [sender.send() for _ in range(20)]
    arrived = {place.key for place in stage.census()} & {outcome.key for outcome in plain.outcomes[5:]}
    stage.node.clear_memory_alarm()
    back_at = time.monotonic()
    eventually(lambda: sender.send().error is None, 5 * SLACK, 0.1, "a send to be accepted again")
    back_s = time.monotonic() - back_at
    told = sender.verdict(stage.census())
    figure(
        f"{told}; first {first.took_s:.2f} s, {check_times([first, *more])}, works again after {back_s:.1f} s; "
        f"plain: accepted 20 stored {len(arrived)}"
    )
    assert told.true
    for outcome in (first, late):
        assert "memory" in str(outcome.error)
        assert outcome.took_s <= SEND_TIMEOUT_S + 1  # less slack: twice the timeout is the mistake looked for
    assert all(outcome.error for outcome in more)
    assert not arrived


def take_away(stage: RabbitStage, how: str) -> Callable[[], object]:
    """Let the broker go away; returns what brings it back. (Killed: see the stream above.)"""
    if how == "frozen":
        stage.node.pause()
        return stage.node.resume
    {"refused": stage.proxy.refuse, "blackholed": stage.proxy.blackhole, "stalled": stage.proxy.stall}[how]()
    return stage.proxy.heal


@pytest.mark.parametrize(
    "how", ["frozen", "refused", *(pytest.param(how, marks=pytest.mark.full) for how in ("stalled", "blackholed"))]
)
def test_sends_fail_alike_and_in_time_while_rabbitmq_is_away(
    request: pytest.FixtureRequest, figure: Callable[[object], None], how: str
) -> None:
    """faults.md row 18: `ConnectionClosed` within `send_timeout` (3 s) that tells whether it may have been stored; then
    the process's sends fail within 250 ms but for one probe a second; what was accepted is stored, what was called not
    stored is not, and sends work again when RabbitMQ is back.

    frozen, stalled, blackholed 2.9 s, refused 0.0 s; known away: at most 19 ms.
    """
    stage: RabbitStage = request.getfixturevalue("mortal_rabbit_stage" if how == "frozen" else "rabbit_stage")
    sender = Sender(stage.broker(stage.proxied_url))
    assert [sender.send().error for _ in range(5)] == [None] * 5
    bring_back = take_away(stage, how)
    first = sender.send()
    assert ("stored" if how == "refused" else "may have been stored") in str(first.error)
    began = time.monotonic()
    with streaming(*[sender.send] * 4):
        time.sleep(2)  # sleep-ok: the outage's length
    away_s = time.monotonic() - began
    away = sender.outcomes[5:]
    assert all(outcome.error for outcome in away)
    times = check_times(away)
    probes = [outcome for outcome in away[1:] if not outcome.refused_at_once]
    assert len(probes) <= away_s + 1

    bring_back()
    back_at = time.monotonic()
    eventually(lambda: sender.send().error is None, 5 * SLACK, 0.1, "a send to be accepted again")
    back_s = time.monotonic() - back_at
    assert [sender.send().error for _ in range(5)] == [None] * 5
    told = sender.verdict(stage.census())
    figure(
        f"{how}: first {first.took_s:.2f} s, {times}, {len(probes)} probes in {away_s:.1f} s, works again after "
        f"{back_s:.1f} s; {told}"
    )
    assert told.true


@pytest.mark.full
@pytest.mark.parametrize("how", ["frozen", "refused", "blackholed"])
def test_plain_dramatiq_waits_or_says_that_it_is_sent(
    request: pytest.FixtureRequest, figure: Callable[[object], None], how: str
) -> None:
    """The same on plain Dramatiq: to a broker that is frozen or beyond a hole it "sends"; refused, six tries fail."""
    stage: RabbitStage = request.getfixturevalue("mortal_rabbit_stage" if how == "frozen" else "rabbit_stage")
    plain = Sender(stage.broker(stage.proxied_url, mode="plain"))
    assert plain.send().error is None
    bring_back = take_away(stage, how)
    outcome = plain.send()
    figure(f"{how}: {outcome.kind or 'accepted'} after {outcome.took_s:.1f} s")
    assert (outcome.error is None) == (how != "refused")
    bring_back()


# -- the line --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("delay", [None, 1_000])
def test_a_send_that_has_to_declare_first_fails_in_time_too(
    rabbit_stage: RabbitStage, figure: Callable[[object], None], delay: int | None
) -> None:
    """The first send of a process to a dead line, and the first to a queue that the process has not declared, delayed
    or not, single or in a batch, take no longer than `send_timeout` in all; the next fails at once.

    Of 1 s: 1.0 s each, the next 0.00 s.
    """
    stage = rabbit_stage
    connected = Sender(stage.broker(stage.proxied_url, send_timeout=1_000))
    assert connected.send().error is None
    stage.proxy.stall()
    newcomers = [Sender(stage.broker(stage.proxied_url, send_timeout=1_000)) for _ in range(2)]
    other = Sender(connected.broker, queue="other")
    sent = [(each.send(delay), each.send(delay)) for each in (newcomers[0], other)]
    sent.append((newcomers[1].send_many(10), newcomers[1].send(delay)))
    stage.proxy.heal()
    figure(f"delay {delay}: " + ", ".join(f"{first.took_s:.2f} and {second.took_s:.2f} s" for first, second in sent))
    for first, second in sent:
        assert "stored" in str(first.error)
        assert first.took_s <= 1.9  # less slack: twice the timeout is the mistake looked for
        assert second.refused_at_once
        assert second.took_s <= KNOWN_AWAY_S * SLACK


# Of plain Dramatiq, which sends in this process too: a connection that is cut while it opens leaves its socket open.
@pytest.mark.filterwarnings("ignore:Exception ignored in. <socket:pytest.PytestUnraisableExceptionWarning")
def test_what_was_accepted_is_stored_when_connections_are_cut(
    rabbit_stage: RabbitStage, fault_proxy: MakeProxy, figure: Callable[[object], None]
) -> None:
    """faults.md row 16: the same stream, its connections cut three times, and three times just before what was sent
    reaches the node: all that was accepted is there.

    accepted 2636 lost 0, called not stored 172 of which stored 0. plain: accepted 671 lost 5.
    """
    stage = rabbit_stage
    line = fault_proxy(stage.server)
    sender, plain = both(stage, stage.proxied_url, stage.server.url(stage.vhost, port=line.port))

    def goes_on() -> None:
        wanted = len(sender.accepted()) + 300
        eventually(lambda: len(sender.accepted()) > wanted, 10 * SLACK, what="the stream to go on")

    with streaming(*stream(sender), plain.send):
        for _ in range(3):
            goes_on()
            stage.proxy.cut()
            line.cut()
        dropped = [each.drop_requests(b'"work"', nth=100, every=True, limit=3) for each in (stage.proxy, line)]
        eventually(lambda: all(rule.fired == 3 for rule in dropped), 20 * SLACK, what="three drops on each line")
        goes_on()
    census = stage.census()
    told, told_plain = sender.verdict(census), plain.verdict(census)
    figure(f"{told}; plain: sent {told_plain.sent} accepted {told_plain.accepted} lost {told_plain.lost}")
    assert told.true
    assert told.unsure <= 12 * (4 + 20)  # what was on its way at the six cuts, twice over
    assert told_plain.lost > 0


def test_a_peer_that_resets_at_once_is_an_error_like_any_other(
    rabbit_stage: RabbitStage,
    fault_proxy: MakeProxy,
    monkeypatch: pytest.MonkeyPatch,
    figure: Callable[[object], None],
) -> None:
    """dramatiq.md D15: a load balancer with nobody behind it accepts and resets. Now and then the reset hits pika where
    it raises ValueError; reliq's sends see `ConnectionClosed` in time all the same, and work when the node is back.

    Plain Dramatiq lets the ValueError out: one in a hundred sends.
    """
    stage = rabbit_stage
    door = fault_proxy(stage.proxy.port)  # resets whoever comes while the proxy behind it refuses
    stage.proxy.refuse()
    url = stage.server.url(stage.vhost, port=door.port)
    plain = Sender(stage.broker(url, mode="plain"), first_key=PLAIN)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # of pika, which leaves a socket open behind that error
        eventually(lambda: plain.send().kind == "ValueError", 20 * SLACK, 0, "plain Dramatiq to raise ValueError")
        gc.collect()

    monkeypatch.setattr(link, "LONGEST_PAUSE_S", 0.002)  # as many tries in seconds as else in hours
    raised = []
    forget = link.Link._forget
    monkeypatch.setattr(link.Link, "_forget", lambda self, why: raised.append(forget(self, why)))
    sender = Sender(stage.broker(url))
    with streaming(sender.send):
        eventually(lambda: raised, 20 * SLACK, what="pika to raise ValueError")
    times = check_times(sender.outcomes)
    stage.proxy.heal()
    eventually(lambda: sender.send().error is None, 5 * SLACK, 0.1, "a send to be accepted again")
    told = sender.verdict(stage.census())
    figure(f"{told}; {times}; {door.connections} connections reset; plain: ValueError at send {len(plain.outcomes)}")
    assert told.true
    gc.collect()  # what was left open shows now, and is an error


# -- forks -----------------------------------------------------------------------------------------------------------


def run_forks(stage: RabbitStage, timeout: float) -> tuple[int | None, str]:
    """The exit code of `r_forks` (None: it hung; it is killed with its children), and what it wrote to stderr."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **stage.environment(direct=True)}
    command = [sys.executable, "-m", "tests.faults.apps.r_forks"]
    errors = stage.log.path.with_suffix(".stderr")  # a pipe would be held open by children that hang
    with errors.open("w") as file:
        parent = subprocess.Popen(command, env=environment, stderr=file, start_new_session=True)
    code: int | None = None
    try:
        code = parent.wait(timeout)
    except subprocess.TimeoutExpired:
        pass  # told by the code
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(parent.pid, signal.SIGKILL)
        parent.wait()
    return code, errors.read_text()


@pytest.mark.parametrize("mode", ["reliq", pytest.param("plain", marks=pytest.mark.full)])
def test_parent_and_children_send_at_once_after_a_fork(
    rabbit_stage: RabbitStage, figure: Callable[[object], None], mode: Mode
) -> None:
    """A process that has sent, and whose threads go on sending, forks four children (`os.fork`, multiprocessing), which
    send too, and one that only closes its broker: all 500 accepted and stored once, nobody hangs.

    sent 500 accepted 500 lost 0 from 5 processes. plain: 100 accepted; its children write into
    its connection, or hang.
    """
    stage = rabbit_stage
    stage.mode = mode
    code, errors = run_forks(stage, 20 * SLACK if mode == "reliq" else 20)
    accepted = stage.log.keys("accepted")
    stored = Counter(place.key for place in stage.census())
    pids = len({entry.pid for entry in stage.log.entries()})
    figure(f"sent 500 accepted {len(accepted)} lost {len(accepted - stored.keys())} from {pids} processes")
    if mode == "plain":
        assert code != 0 or len(accepted) < 500 or accepted - stored.keys()
        return
    assert code == 0, errors
    assert (len(accepted), pids) == (500, 5)
    assert stored == Counter(accepted)
