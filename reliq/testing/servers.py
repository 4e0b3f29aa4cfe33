"""Start a real Redis (or Valkey) that a test may kill, freeze and restart.

Callers: tests, the pytest fixtures, benchmarks.
Guarantee: the server listens on 127.0.0.1 only, keeps its data in a temporary folder of its own over `kill`
and `restart`, and does not outlive the process that started it.
Not here: faults on the wire between client and server (`reliq.testing.proxy`).
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import redis

from reliq.testing import leash
from reliq.testing.ports import free_port
from reliq.testing.redis_binary import find_redis, server_version

if TYPE_CHECKING:
    from typing_extensions import Self

START_TIMEOUT_S = 15.0
STOP_TIMEOUT_S = 10.0


class ServerFailed(RuntimeError):
    """The server did not start. The text ends in its last log lines."""


class RedisServer:
    """One Redis or Valkey process; as a context manager it is started, then killed and its folder removed.

    `port=None` takes a free one. `appendonly=False` gives a server that forgets everything when killed.
    `config` adds or replaces options of the configuration file (`{"maxmemory": "6mb"}`). `binary=None` takes
    `find_redis()`.

    With the default `appendfsync everysec` Redis puts off writing its log while an earlier fsync is still
    under way (at most 2 s): on a very slow disk a `kill()` can then lose accepted writes. A test that must
    not depend on the disk passes `config={"appendfsync": "always"}`.
    """

    def __init__(
        self,
        *,
        port: int | None = None,
        appendonly: bool = True,
        config: Mapping[str, str] | None = None,
        binary: str | None = None,
    ) -> None:
        self.binary = binary or find_redis()
        self.folder = Path(tempfile.mkdtemp(prefix="reliq-redis-"))
        self._may_move = port is None  # to another port; never again once it has started
        self._port = port or free_port()
        self._appendonly = appendonly
        self._config = dict(config or {})
        self._process: subprocess.Popen[bytes] | None = None
        self._clients: list[redis.Redis] = []
        self._stalls: list[socket.socket] = []

    # -- what it is

    @property
    def port(self) -> int:
        """The TCP port on 127.0.0.1; the same after `restart()`."""
        return self._port

    @property
    def url(self) -> str:
        """`redis://127.0.0.1:PORT/0`."""
        return f"redis://127.0.0.1:{self._port}/0"

    @property
    def pid(self) -> int:
        """The server's process id. Raises `RuntimeError` when it does not run."""
        if self._process is None or self._process.poll() is not None:
            raise RuntimeError(f"{self!r} does not run; call start() or restart() first")
        return self._process.pid

    @property
    def alive(self) -> bool:
        """Whether the process exists (also while paused)."""
        return self._process is not None and self._process.poll() is None

    def client(self, **options: Any) -> redis.Redis:
        """A new client, closed with the server. Options as of `redis.Redis.from_url`; nothing is retried.

        A `requirepass` of the configuration is known to it.
        """
        client = redis.Redis.from_url(self.url, **{**self._login(), **options})
        self._clients.append(client)
        return client

    def log(self) -> str:
        """Everything the server has logged, over restarts."""
        path = self.folder / "server.log"
        return path.read_text(errors="replace") if path.exists() else ""

    # -- its life

    def start(self) -> Self:
        """Start and wait until it answers (and has loaded its data). Does nothing if it runs."""
        if self.alive:
            return self
        deadline = time.monotonic() + START_TIMEOUT_S
        while not self._start_once(deadline):
            if self._may_move:
                self._port = free_port()
            if time.monotonic() >= deadline:
                raise ServerFailed(f"port {self._port} is taken: {self._log_tail()}")
        self._may_move = False
        return self

    def stop(self) -> None:
        """Shut down as a careful operator does (SIGTERM: data written and synced); kill after 10 s."""
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
                os.killpg(self._process.pid, signal.SIGKILL)  # with the child that rewrites the log, if any
            self._reap()

    def restart(self) -> Self:
        """Kill if it runs, then start on the same port and data."""
        self.kill()
        return self.start()

    def pause(self) -> None:
        """SIGSTOP: connections stay open and accepted, nothing is answered."""
        os.kill(self.pid, signal.SIGSTOP)

    def resume(self) -> None:
        """SIGCONT. Does nothing if it does not run."""
        if self.alive:
            os.kill(self.pid, signal.SIGCONT)

    def stall(self, seconds: float) -> None:
        """Keep the server busy for `seconds` (DEBUG SLEEP) and return at once."""
        connection = socket.create_connection(("127.0.0.1", self._port), timeout=5)
        self._stalls.append(connection)
        # The answered PING shows that the server reads this connection, so that the sleep begins at its next
        # turn.
        connection.sendall(b"PING\r\n")
        connection.recv(64)
        connection.sendall(b"DEBUG SLEEP %.3f\r\n" % seconds)

    def close(self) -> None:
        """Kill the server, close its clients, remove its folder."""
        for client in self._clients:
            client.close()
        for connection in self._stalls:
            connection.close()
        self.kill()
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
        return f"<RedisServer {Path(self.binary).name} port {self._port}, {state}>"

    # -- how

    def _start_once(self, deadline: float) -> bool:
        """Start the process and wait for it. False: the port was taken meanwhile."""
        path = self.folder / "redis.conf"
        path.write_text("".join(f"{name} {value}\n" for name, value in self._options().items()))
        with (self.folder / "server.log").open("ab") as log:
            self._process = subprocess.Popen(
                [self.binary, str(path)],
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        leash.hold(self._process.pid)
        while not self._answers():
            if self._process.poll() is not None:
                tail = self._log_tail()
                self._reap()
                if "ddress already in use" in tail:
                    return False
                raise ServerFailed(f"{self.binary} ended while starting on port {self._port}: {tail}")
            if time.monotonic() >= deadline:
                self.kill()
                raise ServerFailed(f"{self.binary} did not answer in time: {self._log_tail()}")
            time.sleep(0.005)
        return True

    def _options(self) -> dict[str, str]:
        options = {
            "bind": "127.0.0.1",
            "port": str(self._port),
            "dir": f'"{self.folder}"',
            "save": '""',
            "appendonly": "yes" if self._appendonly else "no",
            "appendfsync": "everysec",
        }
        # Redis 6 allows DEBUG unasked and does not know the option.
        kind, version = server_version(self.binary)
        if kind == "valkey" or version >= (7, 0):
            options["enable-debug-command"] = "yes"
        options.update(self._config)
        return options

    def _answers(self) -> bool:
        try:
            probe = redis.Redis.from_url(self.url, socket_timeout=0.3, **self._login())
            try:
                # A foreign server on our port would answer a PING too; its process id gives it away.
                info: Any = probe.info("server")
            finally:
                probe.close()
        except redis.RedisError:
            return False
        return self._process is not None and info.get("process_id") == self._process.pid

    def _login(self) -> dict[str, Any]:
        password = self._config.get("requirepass")
        return {"password": password} if password else {}

    def _log_tail(self) -> str:
        return " | ".join(self.log().splitlines()[-5:])

    def _reap(self) -> None:
        if self._process is not None:
            self._process.wait()
            leash.release(self._process.pid)
            self._process = None
