"""The run itself: boots both sides, sends, injects the faults, watches until nothing more is to be expected.

Callers: `command`.
Guarantee: both sides get the same messages, the same faults at the same moments, and the same time; what was started
is gone when the `with` block ends.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from .interrupts import Interrupts
from .plan import MOST_FAILURES, Plan
from .screen import Row, Screen
from .server import Server, running_server
from .side import Side
from .verdict import Outcome

#: Seconds after the last message was sent.
KILL_AT_S, CUT_AT_S, HEAL_AT_S = 1.5, 3.5, 5.5
#: Longest wait for reliq to finish; it needs the lease (10 s) for what the killed worker held.
LIMIT_S = 35.0
#: And this much longer for each message.
LIMIT_PER_MESSAGE_S = 0.01
#: Plain Dramatiq is waited for as long as it gets on, this long without any change.
QUIET_S = 5.0
_TICK_S = 0.1
_LOOK_EVERY_S = 0.4


@contextmanager
def set_up(plan: Plan, interrupts: Interrupts, *, with_plain: bool) -> Iterator[Stage]:
    """A server and the sides, not yet started; all gone after the block."""
    with ExitStack() as stack:
        with interrupts.held():
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="reliq-demo-")))
            server = stack.enter_context(running_server())
            sides = []
            for name in ("plain", "reliq"):
                if name == "reliq" or with_plain:
                    side = Side("reliq" if name == "reliq" else "plain", server, plan, folder)
                    stack.callback(side.close)
                    sides.append(side)
        yield Stage(plan, server, sides, interrupts)


class Stage:
    """The server, the sides on it, and what happens to them."""

    def __init__(self, plan: Plan, server: Server, sides: list[Side], interrupts: Interrupts) -> None:
        self.server = server
        self.sides = sides
        self.reliq = sides[-1]
        self._each = " a side" if len(sides) > 1 else ""
        self._plan = plan
        self._interrupts = interrupts
        self._screen: Screen
        self._began = 0.0
        self._outcomes: dict[str, Outcome] = {}
        self._killed_at_s = 0.0
        self._pulses: dict[str, tuple[float, object]] = {}

    def play(self, screen: Screen) -> dict[str, Outcome]:
        """Run all of it. Returns the outcome by the side's name."""
        self._screen = screen
        self._boot()
        self._send()
        cues: list[tuple[float, Callable[[], None]]] = [
            (KILL_AT_S, self._kill),
            (CUT_AT_S, self._cut),
            (HEAL_AT_S, self._heal),
        ]
        look_at_s = 0.0
        while True:
            now_s = self._now_s
            if cues and now_s >= cues[0][0]:
                cues.pop(0)[1]()
            if now_s >= look_at_s:
                self._look()
                look_at_s = now_s + _LOOK_EVERY_S
                if not cues and self._over():
                    return self._outcomes
            time.sleep(_TICK_S)

    @property
    def _now_s(self) -> float:
        return time.monotonic() - self._began

    # -- what happens --------------------------------------------------------------------------------------------

    def _boot(self) -> None:
        began = time.monotonic()
        self._screen.event(None, "starting the workers")
        with self._interrupts.held():
            for side in self.sides:
                side.start()
        for side in self.sides:
            side.wait_ready()
        self._screen.event(None, f"they are ready after {time.monotonic() - began:.1f} s")

    def _send(self) -> None:
        plan = self._plan
        for side in self.sides:
            side.send()
        self._began = time.monotonic()
        for_good = plan.count("refused") + plan.count("hopeless")
        self._screen.event(0.0, f"sent {len(plan.keys)} messages{self._each}: {plan.count('works')} work at once,")
        fail = f"{plan.count('flaky')} fail 1 to {MOST_FAILURES} times first, {for_good} fail for good, "
        self._screen.event(None, f"{fail}1 cannot be decoded")

    def _kill(self) -> None:
        self._killed_at_s = self._now_s
        with self._interrupts.held():
            running = [f"{side.kill_worker()} ({side.name})" for side in self.sides]
        self._event(f"kill -9 of one worker{self._each}, which ran {' and '.join(running)} tasks")
        self._screen.event(None, "a new one starts in its place")

    def _cut(self) -> None:
        for side in self.sides:
            side.cut()
        self._event(f"the broker is gone: connections cut, new ones refused for {HEAL_AT_S - CUT_AT_S:.0f} s")

    def _heal(self) -> None:
        for side in self.sides:
            side.heal()
        self._event("the broker is back")

    def _event(self, text: str) -> None:
        self._screen.event(self._now_s, text)

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
                self._event(f"{side.name}: the tasks that it ran run again, {after_s:.0f} s after the kill")
            if now.complete and not (before and before.complete):
                self._event(f"{side.name}: every message is done or a dead letter")
        rows = [Row(side.name, self._outcomes[side.name]) for side in self.sides]
        self._screen.progress(self._now_s, rows)

    def _over(self) -> bool:
        """Whether nothing more is to be expected, or the time is up."""
        limit_s = LIMIT_S + LIMIT_PER_MESSAGE_S * len(self._plan.keys)
        if self._now_s >= limit_s:
            self._event(f"not waiting any longer, after {limit_s:.0f} s")
            return True
        reliq = self._finished(self.reliq)
        if not reliq:
            return False
        for side in self.sides[:-1]:
            if not self._finished(side):
                quiet_s = self._now_s - self._pulses[side.name][0]
                if quiet_s < QUIET_S:
                    return False
                self._event(f"{side.name}: nothing has changed for {quiet_s:.0f} s; not waiting any longer")
        return True

    def _finished(self, side: Side) -> bool:
        return self._outcomes[side.name].complete and side.idle
