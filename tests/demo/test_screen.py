"""How the demo shows itself: plain lines in a pipe, lines that never wrap on a terminal, nothing hostile on either."""

import io
import re

import pytest

from reliq.demo.letters import pretty, table
from reliq.demo.screen import Row, Screen, TerminalScreen, printable, screen_for
from reliq.demo.verdict import Outcome

ROWS = [Row(name, Outcome(sent=300, done=180, dead=20, stuck=0, lost=0)) for name in ("plain", "reliq")]


class Terminal(io.StringIO):
    encoding = "utf-8"  # type: ignore[assignment]

    def isatty(self) -> bool:
        return True


def shown(text: str) -> list[str]:
    """The lines without their styles and movements."""
    return re.sub(r"\x1b\[[0-9;]*[A-Za-z]|\r", "", text).split("\n")


def test_a_pipe_gets_no_control_character() -> None:
    out = io.StringIO()
    screen = screen_for(out)
    screen.event(1.0, "something happened")
    for at in (1.0, 1.1, 3.2):
        screen.progress(at, ROWS)
    screen.line("strong", strong=True)
    screen.close()
    lines = out.getvalue().split("\n")
    assert all(line.isprintable() for line in lines)
    assert sum("done 180 dead  20 left 100" in line for line in lines) == 2  # not the one 0.1 s later


def test_a_dumb_terminal_is_treated_as_a_pipe(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "dumb")
    assert type(screen_for(Terminal())) is Screen


def test_colours_can_be_switched_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    out = Terminal()
    TerminalScreen(out).event(1.0, "something")
    assert out.getvalue() == "   1.0 s  something\n"


@pytest.mark.parametrize("columns", [20, 60, 200])
def test_a_redrawn_line_never_wraps(monkeypatch: pytest.MonkeyPatch, columns: int) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    out = Terminal()
    TerminalScreen(out).progress(1.0, ROWS)
    assert max(map(len, shown(out.getvalue()))) < columns


def test_what_happens_is_written_above_the_redrawn_lines_and_these_go_at_the_end() -> None:
    out = Terminal()
    screen = TerminalScreen(out)
    screen.progress(1.0, ROWS)
    before = len(out.getvalue())
    screen.event(2.0, "a worker is killed")
    after = out.getvalue()[before:]
    assert after.startswith("\r\x1b[3A\x1b[J")
    assert [line.strip()[:5] for line in shown(after)] == ["2.0 s", "", "plain", "reliq", ""]
    before = len(out.getvalue())
    screen.close()
    assert out.getvalue()[before:] == "\r\x1b[3A\x1b[J"


def test_names_and_errors_cannot_move_the_cursor() -> None:
    hostile = "a\x1b[2J\u202e\x9b\nb"
    assert printable(hostile) == r"a\x1b[2J\u202e\x9b\nb"
    group = {"count": 1, "reason": "permanent", "actor": hostile, "error": None}
    assert all(line.isprintable() for line in table([group]))
    letter = pretty({"error_message": hostile})
    assert all(line.isprintable() and line.isascii() for line in letter.split("\n"))
