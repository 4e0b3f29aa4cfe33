"""One run of `reliq demo` as people run it, and the figures in its output."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from reliq.testing import eventually

PLAIN = r"^plain: sent (\d+) done (\d+) dead (\d+) stuck (\d+) lost (\d+)$"
RELIQ = r"^reliq: sent (\d+) done (\d+) retried (\d+) dead (\d+) twice (\d+) stuck (\d+) lost (\d+)$"


class Demo:
    """One run with a pipe for a terminal. All its processes carry a mark in their environment."""

    def __init__(self, folder: Path, *arguments: str, environment: dict[str, str] | None = None) -> None:
        self.temporary = folder / "tmp"
        self.temporary.mkdir()
        self._mark = f"RELIQ_TEST_MARK={folder}"
        name, value = self._mark.split("=", 1)
        self._output = folder / "output"
        with self._output.open("wb") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "reliq.demo", *arguments],
                env={**os.environ, **(environment or {}), name: value, "TMPDIR": str(self.temporary)},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )

    @property
    def output(self) -> str:
        return self._output.read_text(encoding="utf-8")

    def wait_for(self, text: str, timeout: float = 60) -> None:
        def there() -> bool:
            assert self.process.poll() is None or text in self.output, self.output
            return text in self.output

        eventually(there, timeout, what=f"{text!r} in the output")

    def end(self, timeout: float = 100) -> int:
        return self.process.wait(timeout)

    def left_running(self) -> list[str]:
        """What still runs of all that this run has started."""
        found = []
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                if self._mark.encode() in (folder / "environ").read_bytes().split(b"\0"):
                    found.append((folder / "cmdline").read_text(errors="replace").replace("\0", " "))
            except OSError:  # gone, or not ours
                continue
        return found

    def assert_nothing_is_left(self) -> None:
        eventually(lambda: not self.left_running(), 5, what=f"{self.left_running()} to end")
        assert list(self.temporary.iterdir()) == []


@contextmanager
def demo(folder: Path, *arguments: str, environment: dict[str, str] | None = None) -> Iterator[Demo]:
    """A run that is over after the block."""
    run = Demo(folder, *arguments, environment=environment)
    try:
        yield run
    finally:
        if run.process.poll() is None:
            run.process.send_signal(signal.SIGTERM)
            run.process.wait(60)


def figures(pattern: str, output: str) -> list[int]:
    """The numbers of the one line that matches."""
    lines = re.findall(pattern, output, re.MULTILINE)
    assert len(lines) == 1, output
    return [int(number) for number in lines[0]]
