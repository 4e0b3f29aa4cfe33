"""What every write has in common: the plan, the question, the progress, Ctrl-C, the end.

Callers: `dlq_write.py`, `queues.py`.
Guarantee: nothing is changed before the consent; Ctrl-C lets the step that is under way finish, a second one does
not wait for it.
"""

from __future__ import annotations

import signal
import sys
import threading
import time
from types import FrameType, TracebackType
from typing import TYPE_CHECKING, Any

import click

from .exits import Interrupted, NeedsConfirmation
from .output import say
from .text import safe

if TYPE_CHECKING:
    from typing_extensions import Self

_BAR_COLUMNS = 30
_EVERY_S_ON_TERMINAL = 0.1
_EVERY_S = 10.0


def ask(question: str, *, yes: bool) -> None:
    """Returns if the write is wanted. Raises `NeedsConfirmation` without a terminal, or when the answer is no."""
    if yes:
        return
    if not sys.stdin.isatty():
        raise NeedsConfirmation(
            f"{question} This needs a confirmation, and there is no terminal to ask on: nothing was changed. "
            "Add --yes to do it, --dry-run to see what it would do."
        )
    if not _confirmed(question):
        raise NeedsConfirmation("not confirmed, nothing was changed")


def _confirmed(question: str) -> bool:
    """Not click's own: the one of click 8.1 writes a blank to stdout, which is for data."""
    while True:
        click.echo(f"{safe(question)} [y/N]: ", nl=False, err=True)
        line = sys.stdin.readline()
        if not line:
            click.echo(err=True)
            raise Interrupted("the input ended before an answer, nothing was changed")
        answer = line.strip().lower()
        if answer in ("", "n", "no"):
            return False
        if answer in ("y", "yes"):
            return True
        click.echo("y or n?", err=True)


class Progress:
    """How far the work is, on stderr: a bar on a terminal, else a line every 10 s. `total` None = not known."""

    def __init__(self, word: str, total: int | None = None) -> None:
        self._word = word
        self._total = total
        self._on_terminal = sys.stderr.isatty()
        self._every_s = _EVERY_S_ON_TERMINAL if self._on_terminal else _EVERY_S
        self._next_mono = time.monotonic() + self._every_s
        self._drawn = False

    def at(self, done: int) -> None:
        """`done` are dealt with by now."""
        now = time.monotonic()
        if now < self._next_mono:
            return
        self._next_mono = now + self._every_s
        text = f"{self._word} {done}" if self._total is None else f"{self._word} {done} of {self._total}"
        if not self._on_terminal:
            say(text)
            return
        self._drawn = True
        click.echo(f"\r{self._bar(done)}{text}", nl=False, err=True)

    def end(self) -> None:
        """Leave the line of the bar."""
        if self._drawn:
            click.echo(err=True)
            self._drawn = False

    def _bar(self, done: int) -> str:
        if not self._total:
            return ""
        full = min(_BAR_COLUMNS, _BAR_COLUMNS * done // self._total)
        return f"[{'#' * full}{'-' * (_BAR_COLUMNS - full)}] "


class CtrlC:
    """While it is open, Ctrl-C sets `pressed` instead of ending the step that is under way; a second one ends it."""

    def __init__(self) -> None:
        self.pressed = False
        self._before: Any = None

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGINT, self._note)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._before is not None:
            signal.signal(signal.SIGINT, self._before)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.pressed:
            raise KeyboardInterrupt
        self.pressed = True
