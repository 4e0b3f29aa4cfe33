"""Start a real RabbitMQ node that a test may kill, freeze, alarm and restart.

Callers: tests, the pytest fixtures, benchmarks.
Guarantee: the node listens on 127.0.0.1 only, writes only into a temporary folder of its own, keeps its data
over `kill` and `restart`, and neither it nor its Erlang port mapper outlives the process that started it.
Not here: what every running RabbitMQ can be asked for (`reliq.testing.rabbitmq_api`), faults on the wire
(`reliq.testing.proxy`).
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
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
from reliq.testing.ports import free_port
from reliq.testing.rabbitmq_api import RabbitmqApi
from reliq.testing.rabbitmq_binary import find_epmd, find_rabbitmq, rabbitmq_version

if TYPE_CHECKING:
    from typing_extensions import Self

START_TIMEOUT_S = 90.0  # 6 s on an idle machine; boots of several test processes at once share its cores
STOP_TIMEOUT_S = 30.0
CTL_TIMEOUT_S = 60.0
STARTED = "Server startup complete"
WATERMARK = "0.6"


class RabbitmqServer(RabbitmqApi):
    """One RabbitMQ node with its management API; as a context manager it is started (about 6 s), then killed
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
        self._epmd_binary = find_epmd()
        self.folder = Path(tempfile.mkdtemp(prefix="reliq-rabbitmq-"))
        self._wanted = port
        self._settled = False  # the ports: never changed again once it has started
        self._config = dict(config or {})
        self._process: subprocess.Popen[bytes] | None = None
        self._epmd: subprocess.Popen[bytes] | None = None
        self._choose_ports()

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

    @property
    def version(self) -> tuple[int, ...]:
        """Such as (3, 10, 8); known without asking the node."""
        return rabbitmq_version(self.binary)

    def log(self) -> str:
        """Everything the node has logged, over restarts."""
        path = self.folder / "server.log"
        return path.read_text(errors="replace") if path.exists() else ""

    # -- its life

    def start(self) -> Self:
        """Start and wait until it has booted (with its queues). Does nothing if it runs."""
        if self.alive:
            return self
        deadline = time.monotonic() + START_TIMEOUT_S
        while not self._start_once(deadline):
            if time.monotonic() >= deadline:
                raise _failed(f"ports of {self!r} are taken: {self._log_tail()}")
            self._choose_ports()
        self._settled = True
        return self

    def stop(self) -> None:
        """Shut down as a careful operator does (SIGTERM); kill after 30 s."""
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
        """SIGKILL, and wait until the process is gone. Does nothing if it does not run."""
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

    def close(self) -> None:
        """Kill the node and its port mapper, remove its folder."""
        self.kill()
        self._end_epmd()
        shutil.rmtree(self.folder, ignore_errors=True)

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

    # -- an operator's hand

    def ctl(self, *arguments: str) -> str:
        """Run `rabbitmqctl` against this node (a second or more) and return what it prints."""
        command = [str(Path(self.binary).with_name("rabbitmqctl")), "--quiet", *arguments]
        done = subprocess.run(
            command, env=self._environment(), cwd=self.folder, stdin=subprocess.DEVNULL,
            capture_output=True, text=True, timeout=CTL_TIMEOUT_S, check=False,
        )  # fmt: skip
        if done.returncode != 0:
            raise RuntimeError(f"rabbitmqctl {' '.join(arguments)}: {(done.stderr or done.stdout).strip()[-1000:]}")
        return done.stdout

    def close_connections(self, vhost: str | None = None) -> int:
        """Close the connections in `vhost`, or all, by rabbitmqctl, which knows the newest too; returns how many."""
        where = ["--global"] if vhost is None else ["--vhost", vhost]
        said = self.ctl("close_all_connections", *where, "closed by a test")
        return int(re.findall(r"Closed (\d+)", said)[0])

    def alarm_memory(self) -> None:
        """Raise the memory alarm: the node stops reading from every connection that publishes."""
        self.ctl("set_vm_memory_high_watermark", "0.000001")

    def clear_memory_alarm(self) -> None:
        """End the memory alarm."""
        self.ctl("set_vm_memory_high_watermark", WATERMARK)

    # -- how

    def _choose_ports(self) -> None:
        ports = {self._wanted or free_port()}
        while len(ports) < 5:
            ports.add(free_port())
        rest = sorted(ports - {self._wanted})
        self._amqp = self._wanted or rest.pop()
        self._dist, self._epmd_port, self._http, self._ctl_port = rest[:4]
        super().__init__(f"amqp://guest:guest@127.0.0.1:{self._amqp}", f"http://guest:guest@127.0.0.1:{self._http}")

    def _start_once(self, deadline: float) -> bool:
        """Start the node and wait for it. False: one of its ports was taken meanwhile."""
        self._write_files()
        self._start_epmd()
        seen = len(self.log())
        with (self.folder / "server.log").open("ab") as log:
            self._process = subprocess.Popen(
                [self.binary],
                cwd=self.folder,
                env=self._environment(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        leash.hold(self._process.pid)
        while STARTED not in self.log()[seen:]:
            if self._process.poll() is not None:
                self.kill()
                if not self._settled and "eaddrinuse" in self.log()[seen:]:
                    return False
                raise _failed(f"{self.binary} ended while starting: {self._log_tail()}")
            if time.monotonic() >= deadline:
                self.kill()
                raise _failed(f"{self.binary} did not start in time: {self._log_tail()}")
            time.sleep(0.02)
        return True

    def _start_epmd(self) -> None:
        if self._epmd is not None and self._epmd.poll() is None:
            return
        self._epmd = subprocess.Popen(
            [self._epmd_binary, "-port", str(self._epmd_port), "-address", "127.0.0.1"],
            cwd=self.folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        leash.hold(self._epmd.pid)

    def _end_epmd(self) -> None:
        if self._epmd is not None:
            self._epmd.kill()
            self._epmd.wait()
            leash.release(self._epmd.pid)
            self._epmd = None

    def _write_files(self) -> None:
        cookie = self.folder / ".erlang.cookie"
        if not cookie.exists():
            cookie.write_text(secrets.token_hex(16))
            cookie.chmod(0o400)
        options = {
            "listeners.tcp.local": f"127.0.0.1:{self._amqp}",
            "management.tcp.ip": "127.0.0.1",
            "management.tcp.port": str(self._http),
            "loopback_users": "none",
            "disk_free_limit.absolute": "50MB",
            "vm_memory_high_watermark.relative": WATERMARK,
            "collect_statistics_interval": "250",
            "management.db_cache_multiplier": "0",
            **self._config,
        }
        (self.folder / "rabbitmq.conf").write_text("".join(f"{name} = {value}\n" for name, value in options.items()))
        (self.folder / "advanced.config").write_text(
            "[{rabbit, [{channel_tick_interval, 1000}, {quorum_tick_interval, 250}]}].\n"
        )
        (self.folder / "enabled_plugins").write_text("[rabbitmq_management].\n")

    def _environment(self) -> dict[str, str]:
        """What node and rabbitmqctl need; nothing of RabbitMQ or Erlang is taken over from ours."""
        kept = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("RABBITMQ_", "ERL_", "XDG_")) and name != "NOTIFY_SOCKET"
        }
        folder = self.folder
        return {
            **kept,
            "HOME": str(folder),
            "LANG": "C.UTF-8",
            "LC_ALL": "C.UTF-8",
            "ERL_EPMD_PORT": str(self._epmd_port),
            "ERL_EPMD_ADDRESS": "127.0.0.1",
            "RABBITMQ_NODENAME": f"reliq{self._amqp}@localhost",
            "RABBITMQ_CONF_ENV_FILE": "/dev/null",
            "RABBITMQ_NODE_IP_ADDRESS": "127.0.0.1",
            "RABBITMQ_NODE_PORT": str(self._amqp),
            "RABBITMQ_DIST_PORT": str(self._dist),
            "RABBITMQ_MNESIA_BASE": str(folder / "data"),
            "RABBITMQ_LOG_BASE": str(folder / "log"),
            "RABBITMQ_LOGS": "-",
            "RABBITMQ_CONFIG_FILE": str(folder / "rabbitmq.conf"),
            "RABBITMQ_ADVANCED_CONFIG_FILE": str(folder / "advanced.config"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(folder / "enabled_plugins"),
            "RABBITMQ_GENERATED_CONFIG_DIR": str(folder / "generated"),
            "RABBITMQ_PID_FILE": str(folder / "pid"),
            # The shell script then becomes the Erlang VM, so that our child's pid is the node's.
            "RABBITMQ_ALLOW_INPUT": "1",
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": (
                "+S 1:1 +sbwt none -noinput -kernel inet_dist_use_interface {127,0,0,1}"
            ),
            "RABBITMQ_CTL_ERL_ARGS": "+S 1:1 -kernel inet_dist_use_interface {127,0,0,1}",
            "RABBITMQ_CTL_DIST_PORT_MIN": str(self._ctl_port),
            "RABBITMQ_CTL_DIST_PORT_MAX": str(self._ctl_port + 100),
        }

    def _log_tail(self) -> str:
        return " | ".join(self.log().splitlines()[-15:])

    def _reap(self) -> None:
        if self._process is not None:
            self._process.wait()
            leash.release(self._process.pid)
            self._process = None


def _failed(text: str) -> RuntimeError:
    from reliq.testing.servers import ServerFailed

    return ServerFailed(text)
