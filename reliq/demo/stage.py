"""The run itself: boots both sides, sends, injects the faults, watches until nothing more is to be expected.

Callers: `run`.
Guarantee: both sides get the same messages, the same faults at the same moments, and the same time; what was started
is gone when the `with` block ends.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from queue import Empty, SimpleQueue

from .background import Background
from .brokers import Kind, Name
from .interrupts import Interrupts
from .plan import MOST_FAILURES, Plan
from .scene import Scene, set_scene
from .screen import Row, Screen
from .side import Side
from .verdict import Outcome

#: What a scene's limit is longer by for each message, in s.
LIMIT_PER_MESSAGE_S = 0.01
#: Plain Dramatiq is waited for as long as it gets on, this long without any change.
QUIET_S = 5.0
_TICK_S = 0.1
_LOOK_EVERY_S = 0.4


@contextmanager
def set_up(kind: Kind, plan: Plan, interrupts: Interrupts, screen: Screen, *, with_plain: bool) -> Iterator[Stage]:
    """A server and the sides, not yet started; all gone after the block."""
    names: list[Name] = ["plain", "reliq"] if with_plain else ["reliq"]
    with ExitStack() as stack:
        with interrupts.held():
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="reliq-demo-")))
        scene = stack.enter_context(set_scene(kind, interrupts, screen.line))
        with interrupts.held():
            sides = []
            for name in names:
                side = scene.side(name, plan, folder)
                stack.callback(side.close)
                sides.append(side)
        yield Stage(plan, scene, sides, interrupts, screen)


class Stage:
    """The sides of a scene, and what happens to them."""

    def __init__(self, plan: Plan, scene: Scene, sides: list[Side], interrupts: Interrupts, screen: Screen) -> None:
        self.scene = scene
        self.sides = sides
        self.reliq = sides[-1]
        self.each = " a side" if len(sides) > 1 else ""
        self._plan = plan
        self._interrupts = interrupts
        self._screen = screen
        self._news: SimpleQueue[tuple[float, str]] = SimpleQueue()
        self._began = 0.0
        self._outcomes: dict[str, Outcome] = {}
        self._killed_at_s = 0.0
        self._pulses: dict[str, tuple[float, object]] = {}

    def play(self) -> dict[str, Outcome]:
        """Run all of it. Returns the outcome by the side's name."""
        self._send()
        self._boot()
        cues = self.scene.cues(self)
        look_at_s = 0.0
        while True:
            now_s = self._now_s
            if cues and now_s >= cues[0][0]:
                cues.pop(0)[1]()
            self._tell_news()
            if now_s >= look_at_s:
                self._look()
                look_at_s = now_s + _LOOK_EVERY_S
                if not cues and self._over():
                    break
            time.sleep(_TICK_S)
        for side in self.sides:
            self._outcomes[side.name] = side.last_look()
        return self._outcomes

    @property
    def _now_s(self) -> float:
        return time.monotonic() - self._began

    # -- what happens --------------------------------------------------------------------------------------------

    def _send(self) -> None:
        """Before any worker runs: how long it takes to send gives neither side a start."""
        plan = self._plan
        sending = [Background(side.send) for side in self.sides]
        for each in sending:
            each.wait()
        for_good = plan.count("refused") + plan.count("hopeless")
        self._screen.event(None, f"sent {len(plan.keys)} messages{self.each}: {plan.count('works')} work at once,")
        fail = f"{plan.count('flaky')} fail 1 to {MOST_FAILURES} times first, {for_good} fail for good, "
        self._screen.event(None, f"{fail}1 cannot be decoded")

    def _boot(self) -> None:
        self._screen.event(None, "starting the workers")
        with self._interrupts.held():
            for side in self.sides:
                side.start()
        for side in self.sides:
            side.wait_ready()
        self._began = time.monotonic()
        self._screen.event(0.0, "they are ready")

    def kill_workers(self) -> None:
        """kill -9 of one worker on each side; new ones start in their place."""
        self._killed_at_s = self._now_s
        with self._interrupts.held():
            running = [f"{side.kill_worker()} ({side.name})" for side in self.sides]
        self.post(f"kill -9 of one worker{self.each}, which ran {' and '.join(running)} tasks; a new one starts")

    def post(self, text: str) -> None:
        """Something happened. From any thread; shown by this one."""
        self._news.put((self._now_s, text))

    def _tell_news(self) -> None:
        while True:
            try:
                at_s, text = self._news.get_nowait()
            except Empty:
                return
            self._screen.event(at_s, text)

    # -- watching ------------------------------------------------------------------------------------------------

    def _look(self) -> None:
        for side in self.sides:
            before = self._outcomes.get(side.name)
            now = self._outcomes[side.name] = side.look()
            pulse = side.pulse()
            if self._pulses.get(side.name, (0.0, None))[1] != pulse:
                self._pulses[side.name] = (self._now_s, pulse)
            if side.all_run_again():
                after_s = self._now_s - self._killed_at_s
                self.post(f"{side.name}: the tasks that it ran run again, {after_s:.0f} s after the kill")
            if now.complete and not (before and before.complete):
                self.post(f"{side.name}: every message is done or a dead letter")
        self._tell_news()
        rows = [Row(side.name, self._outcomes[side.name]) for side in self.sides]
        self._screen.progress(self._now_s, rows)

    def _over(self) -> bool:
        """Whether nothing more is to be expected, or the time is up."""
        limit_s = self.scene.limit_s + LIMIT_PER_MESSAGE_S * len(self._plan.keys)
        if self._now_s >= limit_s:
            self._screen.event(self._now_s, f"not waiting any longer, after {limit_s:.0f} s")
            return True
        if not self.scene.over or not self._finished(self.reliq):
            return False
        for side in self.sides[:-1]:
            if not self._finished(side):
                quiet_s = self._now_s - self._pulses[side.name][0]
                if quiet_s < QUIET_S:
                    return False
                text = f"{side.name}: nothing has changed for {quiet_s:.0f} s; not waiting any longer"
                self._screen.event(self._now_s, text)
        return True

    def _finished(self, side: Side) -> bool:
        return self._outcomes[side.name].complete and side.idle
