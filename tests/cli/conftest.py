"""The command line in this process: fast, with its exit code, stdout and stderr apart."""

from __future__ import annotations

import io
import json
import sys
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from reliq.cli import main
from tests.desk import morgues
from tests.desk.support import Morgue


class Terminal(io.StringIO):
    """A stdin on which somebody types."""

    def isatty(self) -> bool:
        return True


@dataclass
class Result:
    """What one command did."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """stdout as JSON."""
        return json.loads(self.out)


class Cli:
    """Runs commands; `options` come before each, `answer` is typed on a terminal (None: there is none)."""

    def __init__(self, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *options: str) -> None:
        self._capsys = capsys
        self._monkeypatch = monkeypatch
        self.options = options

    def __call__(self, *arguments: str, answer: str | None = None) -> Result:
        self._monkeypatch.setattr("sys.stdin", io.StringIO() if answer is None else Terminal(answer))
        self._capsys.readouterr()
        with pytest.raises(SystemExit) as end:
            main([*self.options, *arguments])
        said = self._capsys.readouterr()
        return Result(end.value.code if isinstance(end.value.code, int) else 0, said.out, said.err)

    def json(self, *arguments: str) -> Any:
        """What a command that succeeds answers with `-o json`."""
        result = self(*arguments, "-o", "json")
        assert result.code == 0, result.err
        return result.json


@pytest.fixture
def morgue(request: pytest.FixtureRequest) -> Iterator[Morgue]:
    """On Redis, or where the test's mark says (`tests/desk/morgues.py`)."""
    yield from morgues.opened(request)


@pytest.fixture
def bare(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Cli:
    """Without options."""
    return Cli(capsys, monkeypatch)


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, morgue: Morgue) -> Cli:
    """On the test's place, by `--url`."""
    return Cli(capsys, monkeypatch, *morgue.options)


APP = """
{before}
import dramatiq, reliq
{imports}

print("an application that talks while it is imported")
broker = {broker}
reliq.install(broker{install})
dramatiq.set_broker(broker)

class Box:
    inner = broker

def make():
    dramatiq.set_broker(broker)

@dramatiq.actor(queue_name="payments", priority=5, max_retries=3, throws=(KeyError,))
def charge(amount, currency="EUR"):
    pass

@dramatiq.actor
def notify(who):
    pass
{more}
"""

MakeApp = Callable[..., str]


@pytest.fixture
def app(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, morgue: Morgue) -> MakeApp:
    """Writes an application into the current folder; returns its module's name."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", list(sys.path))

    def make(*, before: str = "", install: str = "", more: str = "") -> str:
        name = f"app_{uuid.uuid4().hex[:8]}"
        imports, broker = morgue.code
        text = APP.format(imports=imports, broker=broker, before=before, install=install, more=more)
        (tmp_path / f"{name}.py").write_text(text)
        return name

    return make
