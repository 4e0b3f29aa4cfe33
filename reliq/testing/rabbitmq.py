"""Start a real RabbitMQ node that a test may kill, freeze, alarm and restart.

Callers: tests, the pytest fixtures, benchmarks.
Guarantee: the node listens on 127.0.0.1 only, writes only into a temporary folder of its own, keeps its data
over `kill` and `restart`, and neither it nor its Erlang port mapper outlives the process that started it.
Not here: its configuration and rabbitmqctl (`reliq.testing.rabbitmq_node`), its management API
(`reliq.testing.rabbitmq_api`), faults on the wire (`reliq.testing.proxy`).
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from reliq.testing import leash
from reliq.testing.rabbitmq_binary import find_epmd, find_rabbitmq
from reliq.testing.rabbitmq_node import MEMORY_WATERMARK, NodePlace, RabbitmqNode
from reliq.testing.rabbitmq_ports import PortBlock
from reliq.testing.waiting import eventually

if TYPE_CHECKING:
    from typing_extensions import Self

START_TIMEOUT_S = 90.0  # 6 s on an idle machine; boots of several test processes at once share its cores
STOP_TIMEOUT_S = 30.0
STARTED = b"Server startup complete"


class RabbitmqServer(RabbitmqNode):
    """One RabbitMQ node with its management API; as a context manager it is started (6 s and more), then killed
    and its folder removed.

    `port=None` takes a free one. `config` adds or replaces lines of rabbitmq.conf
    (`{"consumer_timeout": "3000"}`). `binary=None` takes `find_rabbitmq()`.
    """

    def __init__(
        self,
        *,
        port: int | None = None,
        config: Mapping[str, str] | None = None,
        binary: str | None = None,
    ) -> None:
        self.binary = binary or find_rabbitmq()
        self._mapper_binary = find_epmd()
        self.folder = Path(tempfile.mkdtemp(prefix="reliq-rabbitmq-"))
        self._wanted_port = port
        self._config = dict(config or {})
        self._started = False  # once; from then on the ports stay
        self._process: subprocess.Popen[bytes] | None = None
        self._mapper: subprocess.Popen[bytes] | None = None
        self._take_ports()

    # -- what it is

    @property
    def pid(self) -> int:
        """The process id of the Erlang VM. Raises `RuntimeError` when it does not run."""
        if self._process is None or self._process.poll() is not None:
            raise RuntimeError(f"{self!r} does not run; call start() or restart() first")
        return self._process.pid

    @property
    def alive(self) -> bool:
        """Whether the process exists (also while paused)."""
        return self._process is not None and self._process.poll() is None

    # -- its life

    def start(self) -> Self:
        """Start and wait until it has booted, queues and management included. Does nothing if it runs."""
        if self.alive:
            return self
        if not self._started and not self._block.free():
            self._block.close()
            self._take_ports()
        self.place.write(self._config)
        self._start_mapper()
        self._boot()
        self._started = True
        return self

    def stop(self) -> None:
        """Shut down as a careful operator does (SIGTERM: data written and synced); kill after 30 s."""
        if self._process is None:
            return
        self.resume()
        with contextlib.suppress(ProcessLookupError):
            self._process.terminate()
        try:
            self._process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
        self._reap()

    def kill(self) -> None:
        """SIGKILL, and wait until the process is gone. Does nothing if it does not run.

        RabbitMQ 3.10 writes down a new quorum queue only half a second after it was declared: one that is killed
        sooner is there after the restart, but has no leader and times out.
        """
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._reap()

    def restart(self) -> Self:
        """Kill if it runs, then start on the same ports and data."""
        self.kill()
        return self.start()

    def pause(self) -> None:
        """SIGSTOP: connections stay open and accepted, nothing is answered."""
        os.kill(self.pid, signal.SIGSTOP)

    def resume(self) -> None:
        """SIGCONT. Does nothing if it does not run."""
        if self.alive:
            os.kill(self.pid, signal.SIGCONT)

    def alarm_memory(self) -> None:
        """Raise the memory alarm, and return when it holds: nothing more is read from connections that publish."""
        self.ctl("set_vm_memory_high_watermark", "0.000001")
        eventually(self.in_alarm, what="the memory alarm")

    def clear_memory_alarm(self) -> None:
        """End the memory alarm."""
        self.ctl("set_vm_memory_high_watermark", MEMORY_WATERMARK)
        eventually(lambda: not self.in_alarm(), what="the end of the memory alarm")

    def close(self) -> None:
        """Kill the node and its port mapper, remove its folder, give its ports back."""
        self.kill()
        if self._mapper is not None:
            self._mapper.kill()
            self._mapper.wait()
            leash.release(self._mapper.pid)
            self._mapper = None
        shutil.rmtree(self.folder, ignore_errors=True)
        self._block.close()

    def __enter__(self) -> Self:
        try:
            return self.start()
        except BaseException:
            self.close()
            raise

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        state = f"pid {self._process.pid}" if self._process is not None and self.alive else "down"
        return f"<RabbitmqServer port {self.port}, {state}>"

    # -- how

    def _take_ports(self) -> None:
        self._block = PortBlock(self._wanted_port)
        RabbitmqNode.__init__(self, NodePlace(self.binary, self.folder, self._block.ports))

    def _start_mapper(self) -> None:
        """Start the node's own epmd: left to itself, the node would start one that outlives it."""
        if self._mapper is None or self._mapper.poll() is not None:
            port = str(self.place.ports.mapper)
            self._mapper = self._spawn([self._mapper_binary, "-port", port, "-address", "127.0.0.1"], os.devnull)

    def _boot(self) -> None:
        """Start the node and wait for its own word: whoever answers on the port may be somebody else."""
        deadline = time.monotonic() + START_TIMEOUT_S
        seen = self.place.log.stat().st_size if self.place.log.exists() else 0
        self._process = process = self._spawn([self.binary], self.place.log)
        while STARTED not in self._logged(seen):
            if process.poll() is not None:
                self.kill()
                raise _failed(f"{self.binary} ended while starting on port {self.port}: {self._why(seen)}")
            if time.monotonic() >= deadline:
                self.kill()
                raise _failed(f"{self.binary} was not up after {START_TIMEOUT_S:.0f} s: {self._why(seen)}")
            time.sleep(0.02)

    def _spawn(self, command: list[str], output: str | Path) -> subprocess.Popen[bytes]:
        with open(output, "ab") as log:
            process = subprocess.Popen(
                command,
                cwd=self.folder,
                env=self.place.environment(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        leash.hold(process.pid)
        return process

    def _reap(self) -> None:
        if self._process is not None:
            self._process.wait()
            leash.release(self._process.pid)
            self._process = None

    def _logged(self, since: int) -> bytes:
        with self.place.log.open("rb") as log:
            log.seek(since)
            return log.read()

    def _why(self, since: int) -> str:
        """The first errors, which name the cause, and the last lines; without times."""
        text = self._logged(since).decode(errors="replace")
        lines = [re.sub(r"^\S+ \S+ (?=\[\w+\] <)", "", line).rstrip() for line in text.splitlines()]
        errors = [line for line in lines if line.startswith("[error]")]
        return " | ".join([*errors[:10], "...", *lines[-5:]] if errors else lines[-15:])


def _failed(text: str) -> RuntimeError:
    try:
        from reliq.testing.servers import ServerFailed
    except ModuleNotFoundError:  # no redis here, whose server it was made for
        return RuntimeError(text)
    return ServerFailed(text)
