"""Run the stock `dramatiq` command in a process group of its own, and kill, freeze or stop it.

Callers: fault tests, the pytest fixtures.
Guarantee: signals reach the master and all its children, nobody else; nothing outlives the test process.
Not here: what the tasks did (`runlog`), what the broker holds (`census`).
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from reliq.testing import leash
from reliq.testing.processes import group_states
from reliq.testing.waiting import eventually

if TYPE_CHECKING:
    from typing_extensions import Self

_READY = re.compile(r"\[PID (\d+)\].*Worker process is ready for action")
_PACKAGE_ROOT = str(Path(__file__).resolve().parents[2])


class WorkerGroup:
    """`python -m dramatiq -p 1 -t THREADS MODULE`; as a context manager it is started, and killed at the end.

    `module` is a module name or `module:broker`, importable from `cwd` (default: a temporary folder).
    `queues` limits it to these queues. `env` adds to this process's environment. `args` follow the module:
    more modules, or options such as `("-p", "2")`, which win over the defaults.
    """

    def __init__(
        self,
        module: str,
        *,
        threads: int = 4,
        queues: Sequence[str] | None = None,
        env: Mapping[str, str] | None = None,
        cwd: str | os.PathLike[str] | None = None,
        args: Sequence[str] = (),
    ) -> None:
        self.module = module
        self._folder = Path(tempfile.mkdtemp(prefix="reliq-workers-"))
        self._cwd = Path(cwd) if cwd is not None else self._folder
        self._command = [sys.executable, "-m", "dramatiq", "-p", "1", "-t", str(threads), module, *args]
        if queues:
            self._command += ["--queues", *queues]
        self._env = dict(env or {})
        self._log_path = self._folder / "workers.log"
        self._log_start = 0  # where the log of the present run begins
        self._process: subprocess.Popen[bytes] | None = None

    # -- what it is

    @property
    def pid(self) -> int:
        """The master's process id, which is also the group's. Raises `RuntimeError` before `start()`."""
        return self._started().pid

    @property
    def alive(self) -> bool:
        """Whether the master process exists (also while frozen)."""
        return self._process is not None and self._process.poll() is None

    @property
    def worker_pid(self) -> int:
        """The process whose threads run the actors: the one that said last that it is ready for action.

        Raises `RuntimeError` when none has said so yet.
        """
        pids = self.worker_pids
        if not pids:
            raise RuntimeError(f"{self!r} has no ready worker process; call wait_ready() first")
        return pids[-1]

    @property
    def worker_pids(self) -> list[int]:
        """Every process of the present run that said it is ready and still exists, in that order."""
        living = group_states(self.pid)
        said = [int(match[1]) for match in _READY.finditer(self._recent_log())]
        # Without /proc only the group as a whole is known to live.
        return [pid for pid in dict.fromkeys(said) if pid in living or "?" in living.values()]

    def log(self) -> str:
        """Everything the processes wrote to stdout and stderr, over all runs."""
        return self._log_path.read_text(errors="replace") if self._log_path.exists() else ""

    # -- its life

    def start(self) -> Self:
        """Start the processes; `wait_ready()` tells when they consume. Does nothing if the master runs."""
        if self.alive:
            return self
        if self._process is not None:
            self.kill()  # children that outlived their master would share its group and its work
        self._log_start = self._log_path.stat().st_size if self._log_path.exists() else 0
        with self._log_path.open("ab") as log:
            self._process = subprocess.Popen(
                self._command,
                cwd=self._cwd,
                env=self._environment(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        leash.hold(self._process.pid)
        return self

    def wait_ready(self, timeout: float = 20, *, processes: int = 1) -> Self:
        """Wait until `processes` worker processes consume.

        Raises `RuntimeError` with the end of the log when the master ends first, `TimeoutError` after
        `timeout` s.
        """

        def ready() -> bool:
            if len(_READY.findall(self._recent_log())) >= processes:
                return True
            if not self.alive:
                code = self._started().returncode
                raise RuntimeError(f"{self!r} ended with code {code} before it was ready: {self._log_tail()}")
            return False

        try:
            eventually(ready, timeout, what=f"{self!r} to be ready")
        except TimeoutError as error:
            raise TimeoutError(f"{error}; its log ends: {self._log_tail()}") from None
        return self

    def kill(self) -> None:
        """SIGKILL to the whole group, and wait until all of it is gone. Does nothing if it never started."""
        if self._process is None:
            return
        self._signal_group(signal.SIGKILL)
        self._process.wait()
        eventually(lambda: not group_states(self.pid), 10, 0.005, f"every process of {self!r} to be gone")
        leash.release(self.pid)

    def terminate(self) -> None:
        """SIGTERM to the master, as a deploy does, and return at once; see `wait`."""
        self._started().terminate()

    def wait(self, timeout: float) -> int:
        """Wait for the master's end and return its exit code (0 after a clean stop, -9 when killed).

        Raises `TimeoutError` with the end of the log after `timeout` seconds.
        """
        try:
            return self._started().wait(timeout)
        except subprocess.TimeoutExpired:
            message = f"{self!r} still runs after {timeout:g} s; its log ends: {self._log_tail()}"
            raise TimeoutError(message) from None

    def freeze(self) -> None:
        """SIGSTOP to the whole group; returns when every process stands still."""
        self._signal_group(signal.SIGSTOP)
        eventually(
            lambda: all(state in "Tt?" for state in group_states(self.pid).values()),
            5,
            0.002,
            f"every process of {self!r} to stand still",
        )

    def thaw(self) -> None:
        """SIGCONT to the whole group."""
        self._signal_group(signal.SIGCONT)

    def close(self) -> None:
        """Kill the group and remove its folder, log included."""
        self.kill()
        shutil.rmtree(self._folder, ignore_errors=True)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        state = f"pid {self._process.pid}" if self._process is not None and self.alive else "down"
        return f"<WorkerGroup {self.module}, {state}>"

    # -- how

    def _started(self) -> subprocess.Popen[bytes]:
        if self._process is None:
            raise RuntimeError(f"{self!r} was never started; call start() first")
        return self._process

    def _signal_group(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._started().pid, number)

    def _environment(self) -> dict[str, str]:
        environment = {**os.environ, "PYTHONUNBUFFERED": "1", **self._env}
        paths = [str(self._cwd), environment.get("PYTHONPATH", ""), _PACKAGE_ROOT]
        environment["PYTHONPATH"] = os.pathsep.join(path for path in paths if path)
        return environment

    def _recent_log(self) -> str:
        if not self._log_path.exists():
            return ""
        with self._log_path.open("rb") as log:
            log.seek(self._log_start)
            return log.read().decode(errors="replace")

    def _log_tail(self) -> str:
        return "\n".join(["", *self.log().splitlines()[-15:]])
