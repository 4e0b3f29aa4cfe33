"""How the demo shows itself: on a terminal one redrawn line per side below what happens, elsewhere plain lines.

Callers: `stage` (events, progress), `command` (everything after).
Guarantee: no control character is written where the output is no terminal; what others wrote (names, errors) is
shown with its control characters escaped; a redrawn line never wraps.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TextIO

from .verdict import Outcome

#: Between two plain lines of progress, in s.
PLAIN_EVERY_S = 2.0
_WIDEST_BAR = 40


@dataclass(frozen=True)
class Row:
    """How far one side is."""

    name: str
    outcome: Outcome


def printable(text: object) -> str:
    """Text as one line that cannot move a cursor: what is not printable is escaped."""
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in str(text))


def counts(outcome: Outcome) -> str:
    """The figures of a line of progress."""
    width = len(str(outcome.sent))
    return f"done {outcome.done:>{width}} dead {outcome.dead:>{width}} left {outcome.left:>{width}}"


class Screen:
    """Plain lines."""

    def __init__(self, out: TextIO) -> None:
        self._out = out
        self._next_progress_s = 0.0

    def line(self, text: str = "", *, strong: bool = False, faint: bool = False) -> None:
        """One line, as it is. Styles are for terminals."""
        self._write(f"{text}\n")

    def event(self, at_s: float | None, text: str) -> None:
        """Something happened, `at_s` seconds after the workers were ready."""
        self.line(f"{_clock(at_s)}{text}")

    def progress(self, at_s: float, rows: Sequence[Row]) -> None:
        """How far both sides are. Called often; shown every two seconds."""
        if at_s >= self._next_progress_s:
            self._next_progress_s = at_s + PLAIN_EVERY_S
            self.line(_clock(at_s) + " | ".join(f"{row.name} {counts(row.outcome)}" for row in rows))

    def close(self) -> None:
        """No more progress."""

    def _write(self, text: str) -> None:
        self._out.write(text)
        self._out.flush()


class TerminalScreen(Screen):
    """The lines of progress stay at the bottom and are redrawn there."""

    def __init__(self, out: TextIO) -> None:
        super().__init__(out)
        self._rows: Sequence[Row] = ()
        self._drawn = 0
        self._colours = not os.environ.get("NO_COLOR")
        self._full, self._empty = ("━", "─") if _can_write(out, "━─") else ("#", "-")

    def line(self, text: str = "", *, strong: bool = False, faint: bool = False) -> None:
        """Above the lines of progress."""
        style = "1" if strong else "2" if faint else ""
        self._write(f"{self._erased()}{self._styled(style, text)}\n{self._drawing()}")

    def event(self, at_s: float | None, text: str) -> None:
        """Above the lines of progress, its time fainter than the text."""
        self._write(f"{self._erased()}{self._styled('2', _clock(at_s))}{text}\n{self._drawing()}")

    def progress(self, at_s: float, rows: Sequence[Row]) -> None:
        """Redraw them."""
        self._rows = rows
        self._write(self._erased() + self._drawing())

    def close(self) -> None:
        """Remove them."""
        self._rows = ()
        self._write(self._erased())

    def _erased(self) -> str:
        """To the first of the drawn lines, and all below it away."""
        drawn, self._drawn = self._drawn, 0
        return f"\r\x1b[{drawn}A\x1b[J" if drawn else ""

    def _drawing(self) -> str:
        if not self._rows:
            return ""
        columns = shutil.get_terminal_size().columns
        self._drawn = len(self._rows) + 1  # an empty line apart from what happened
        return "\n" + "".join(f"{self._row(row, columns)}\n" for row in self._rows)

    def _row(self, row: Row, columns: int) -> str:
        figures = counts(row.outcome)
        room = min(_WIDEST_BAR, columns - len(f"  {row.name}    {figures}") - 1)
        if room < 8:
            return f"{row.name}  {figures}"[: columns - 1]
        done = room * row.outcome.done // row.outcome.sent
        dead = -(-room * row.outcome.dead // row.outcome.sent)
        dead = min(dead, room - done)
        bar = self._styled("32", self._full * done) + self._styled("33", self._full * dead)
        bar += self._styled("2", self._empty * (room - done - dead))
        return f"  {self._styled('1', row.name)}  {bar}  {figures}"

    def _styled(self, style: str, text: str) -> str:
        return f"\x1b[{style}m{text}\x1b[0m" if style and text and self._colours else text


def screen_for(out: TextIO) -> Screen:
    """A `TerminalScreen` where the output is a terminal that can redraw."""
    if out.isatty() and os.environ.get("TERM", "dumb") != "dumb":
        return TerminalScreen(out)
    return Screen(out)


def _clock(at_s: float | None) -> str:
    return " " * 10 if at_s is None else f"{at_s:6.1f} s  "


def _can_write(out: TextIO, text: str) -> bool:
    try:
        text.encode(out.encoding or "ascii")
    except (UnicodeEncodeError, LookupError):
        return False
    return True
