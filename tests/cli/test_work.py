"""Questions, progress and Ctrl-C: what every write has in common. No server."""

from __future__ import annotations

import io
import os
import signal

import pytest

from reliq.cli.exits import NeedsConfirmation
from reliq.cli.work import CtrlC, Progress, ask
from tests.cli.conftest import Terminal


def test_progress_is_a_line_now_and_then_where_there_is_no_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing before 10 s are over, so that short work says nothing."""
    quiet = Progress("replayed", 50)
    quiet.at(1)
    quiet.end()
    assert capsys.readouterr().err == ""
    monkeypatch.setattr("reliq.cli.work._EVERY_S", 0.0)
    progress = Progress("replayed", 50)
    progress.at(20)
    progress.at(40)
    progress.end()
    said = capsys.readouterr()
    assert (said.out, said.err) == ("", "replayed 20 of 50\nreplayed 40 of 50\n")


def test_progress_is_a_bar_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = Terminal()
    monkeypatch.setattr("sys.stderr", screen)
    monkeypatch.setattr("reliq.cli.work._EVERY_S_ON_TERMINAL", 0.0)
    progress = Progress("replayed", 50)
    progress.at(25)
    progress.end()
    assert screen.getvalue() == "\r[###############---------------] replayed 25 of 50\n"


def test_the_question_is_asked_until_it_is_answered(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """On stderr: stdout is for data."""
    monkeypatch.setattr("sys.stdin", Terminal("perhaps\nYES\n"))
    ask("Replay?", yes=False)
    said = capsys.readouterr()
    assert (said.out, said.err) == ("", "Replay? [y/N]: y or n?\nReplay? [y/N]: ")
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n"))
    with pytest.raises(NeedsConfirmation):  # piped in: no terminal, no consent
        ask("Replay?", yes=False)


def test_a_second_ctrl_c_does_not_wait() -> None:
    """The first is noted, the second ends the step; afterwards the signal means what it meant before."""
    before = signal.getsignal(signal.SIGINT)
    with CtrlC() as ctrl_c:
        assert not ctrl_c.pressed
        os.kill(os.getpid(), signal.SIGINT)
        assert ctrl_c.pressed
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before
