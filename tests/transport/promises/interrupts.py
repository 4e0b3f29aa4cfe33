"""Promises about late interrupts: whatever line of ours they strike after a run has ended, it ends once, as it would.

A time limit or a shutdown notice is an exception set from another thread; it can arrive after the run that it was
meant for. Here it is raised at each line in turn, by a trace function, in the thread that ends the message.
"""

from __future__ import annotations

import contextlib
import logging
import sys
import threading
import time
from collections.abc import Callable
from types import FrameType
from typing import Any, ClassVar

import dramatiq
import pytest
from dramatiq.middleware import Interrupt, Shutdown, ShutdownNotifications, TimeLimit

from reliq.testing import eventually
from reliq.transport.signals import finish, release_ending
from tests.transport.promises.needs import needs
from tests.transport.promises.settling import ENDS, raiser
from tests.transport.rig import Hand, Stage

Make = Callable[..., Stage]


class LateInterrupt(Interrupt):
    """Arrives when the run is over."""


class Striker:
    """Raises once, when its thread comes to the line `target` under the guard (`signals.finish`) while it is on.

    `lines` are those it came by before that; `outside` the functions with lines that lead to the guard, and that no
    code can guard.
    """

    def __init__(self, target: str | None) -> None:
        self.target = target
        self.struck = False
        self.lines: dict[str, None] = {}
        self.outside: set[str] = set()

    def __enter__(self) -> Striker:
        sys.settrace(self._call)
        return self

    def __exit__(self, *exc: object) -> None:
        sys.settrace(None)

    def _call(self, frame: FrameType, event: str, arg: Any) -> Any:
        return self._line if _name(frame).startswith(("reliq.transport", "reliq.middleware")) else None

    def _line(self, frame: FrameType, event: str, arg: Any) -> Any:
        if event == "line" and not self.struck:
            if not _is_guarded(frame):
                self.outside.add(frame.f_code.co_name)
                return self._line
            line = f"{_name(frame)}:{frame.f_lineno} {frame.f_code.co_name}"
            self.lines[line] = None
            if line == self.target:
                self.struck = True
                raise LateInterrupt("too late")
        return self._line


def _name(frame: FrameType) -> str:
    return str(frame.f_globals.get("__name__", ""))


def _is_guarded(frame: FrameType) -> bool:
    caller = frame.f_back
    while caller is not None:
        if caller.f_code is finish.__code__:
            return True
        caller = caller.f_back
    return False


def strike_each_line(stage: Stage, outcome: str, switch_on: Callable[[Hand, Striker], None], stride: int) -> set[str]:
    """Run one message per line, struck there, and hold each to the place that its outcome names; of `stride` lines one
    is struck. Returns the functions whose lines were outside the guard."""
    error, counts = ENDS[outcome]
    actor = dramatiq.actor(raiser(error), actor_name="work", min_backoff=60_000, max_backoff=60_000)
    hand = stage.hand(prefetch=10_000)
    wrong: list[str] = []

    def strike(target: str | None) -> Striker:
        striker = Striker(target)
        actor.send(1)
        message = hand.take()
        try:
            switch_on(hand, striker)
            hand.run(message)
            stage.wait_for(*counts, timeout=3)
        except TimeoutError:
            wrong.append(f"{target}: {stage.counts()} instead of {counts}")
        except BaseException as exc:
            wrong.append(f"{target}: {exc!r} reached the thread; {stage.counts()}")
        release_ending()
        hand.consumer.requeue([message])
        stage.maker.empty(stage.broker, "default")
        return striker

    logging.disable(logging.CRITICAL)  # a traceback for each
    try:
        passed_by = strike(None)
        assert len(passed_by.lines) > 5
        assert all(strike(line).struck for line in list(passed_by.lines)[::stride])
    finally:
        logging.disable(logging.NOTSET)
    assert "\n".join(wrong) == ""
    return passed_by.outside


class Interrupts:
    """Interrupts at every step."""

    #: Of so many lines one is struck. A slow broker strikes the others in `make test-full`.
    stride: ClassVar[int] = 1

    @pytest.mark.parametrize("outcome", ENDS)
    def test_an_interrupt_at_any_line_of_ack_and_nack_changes_nothing(self, make: Make, outcome: str) -> None:
        """At each line in turn: the message ends once, in the place of its verdict, and the thread lives."""

        def at_the_ack(hand: Hand, striker: Striker) -> None:
            for name in ("ack", "nack"):
                settle = getattr(type(hand.consumer), name)

                def struck(message: Any, settle: Any = settle) -> None:
                    with striker:
                        settle(hand.consumer, message)

                setattr(hand.consumer, name, struck)

        assert strike_each_line(make(), outcome, at_the_ack, self.stride) <= {"ack", "nack", "finish"}

    @pytest.mark.parametrize("outcome", [outcome for outcome in ENDS if outcome != "done"])
    def test_an_interrupt_while_hooks_decide_on_a_failed_run_changes_nothing(self, make: Make, outcome: str) -> None:
        """From the moment the run has raised to the end of its hooks, at each line in turn: a failed run is never
        taken for a success, and ends once."""
        stage = make()
        emit_after = stage.broker.emit_after

        def at_the_hooks(hand: Hand, striker: Striker) -> None:
            def struck(signal: str, *args: Any, **kwargs: Any) -> None:
                with striker if signal == "process_message" else contextlib.nullcontext():
                    emit_after(signal, *args, **kwargs)

            stage.broker.emit_after = struck

        outside = strike_each_line(stage, outcome, at_the_hooks, self.stride)
        assert outside <= {"emit_after", "_hooks", "_build", "<listcomp>", "_overrides", "finish"}

    @needs("can_be_away")
    @pytest.mark.parametrize("when", ["before", "after"])
    @pytest.mark.parametrize("outcome", ENDS)
    def test_an_interrupt_inside_the_client_changes_nothing(
        self, make: Make, maker: Any, monkeypatch: pytest.MonkeyPatch, outcome: str, when: str
    ) -> None:
        """Raised by the client's call, before or after the broker has done what was asked: ends once."""
        error, counts = ENDS[outcome]
        stage = make()
        actor = dramatiq.actor(raiser(error), actor_name="work", min_backoff=60_000, max_backoff=60_000)
        actor.send(1)
        hand = stage.hand()
        message = hand.take()
        calls = maker.patch_settle(stage.broker, monkeypatch, LateInterrupt("in the client"), when)
        hand.run(message)
        stage.wait_for(*counts)
        assert calls == ([] if outcome == "done" else [when])

    # Struck in a line of Dramatiq's own a thread does end, and is replaced.
    @pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
    def test_a_time_limit_that_arrives_late_kills_no_thread(self, make: Make) -> None:
        """D2: 40 messages, each over its time limit when it raises, on 4 threads: 40 letters, 4 threads that live."""
        stage = make()
        for middleware in stage.broker.middleware:
            if isinstance(middleware, TimeLimit):
                middleware.manager.interval = 0.01
                middleware.manager.start()

        def work(number: int) -> None:
            give_up = time.monotonic() + 0.02
            while time.monotonic() < give_up:
                pass
            raise ValueError("at the last moment")

        actor = dramatiq.actor(work, actor_name="work", max_retries=0, time_limit=20)
        worker = stage.worker(threads=4)
        for number in range(40):
            actor.send(number)
        stage.wait_for(0, 0, 0, 40, timeout=30)
        assert [thread.is_alive() for thread in worker.workers] == [True] * 4

    def test_a_shutdown_notice_reaches_every_task_though_others_begin_meanwhile(self, make: Make) -> None:
        """Four tasks run, and each time that one is told another thread begins: stock goes through its set of threads
        as it changes, fails, and tells none of the rest. Here all four end by the notice."""
        stage = make()
        (notices,) = [each for each in stage.broker.middleware if isinstance(each, ShutdownNotifications)]
        ended: list[type[BaseException]] = []
        running = threading.Barrier(5)

        def work(number: int) -> None:
            if ended:
                return  # handed back, and here again
            try:
                running.wait(20)
                deadline = time.monotonic() + 20
                while time.monotonic() < deadline:
                    time.sleep(0.001)  # sleep-ok: an interrupt strikes between two of them
            except Shutdown as notice:
                ended.append(type(notice))
                raise

        actor = dramatiq.actor(work, actor_name="work", notify_shutdown=True)
        worker = stage.worker(threads=4)
        for number in range(4):
            actor.send(number)
        running.wait(20)
        logger = notices.manager.logger

        class Begins:
            """Its first words: another task has begun."""

            def info(self, *args: Any) -> None:
                beginner = threading.Thread(target=notices.manager.add_notification)
                beginner.start()
                beginner.join()

        notices.manager.logger = Begins()
        try:
            notices.before_worker_shutdown(stage.broker, worker)
        finally:
            notices.manager.logger = logger
        eventually(lambda: ended == [Shutdown] * 4, 20, what="all four to end")
