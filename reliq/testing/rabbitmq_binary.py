"""Find, or install, a RabbitMQ server program.

Callers: `RabbitmqServer`, the pytest fixtures, people who want to know which server their tests use.
Guarantee: the path of a program that exists and that any user may run, or `ServerMissing` with what to type.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

from reliq.testing.redis_binary import ServerMissing

ENV_BINARY = "RELIQ_TEST_RABBITMQ_BINARY"

# Where packages put the program itself. What they put on PATH is often a wrapper that starts the system's own
# node by `su`, so it is only used to find its neighbour.
USUAL_PLACES = (
    "/usr/lib/rabbitmq/bin",
    "/usr/local/lib/rabbitmq/bin",
    "/opt/rabbitmq/sbin",
    "/opt/homebrew/opt/rabbitmq/sbin",
    "/usr/local/opt/rabbitmq/sbin",
    "/usr/local/sbin",
)

_HOW_TO = (
    "install it with `apt-get install --no-install-recommends rabbitmq-server` (RabbitMQ 3.10 or newer), "
    f"or set {ENV_BINARY} to the path of the program lib/rabbitmq/bin/rabbitmq-server"
)


def find_rabbitmq() -> str:
    """Path of `rabbitmq-server`: `RELIQ_TEST_RABBITMQ_BINARY`, then PATH, then where packages put it.

    Raises `ServerMissing`, also when the environment variable names something that cannot be run (a typing
    mistake there must not silently test another server), and when Erlang is missing.
    """
    named = os.environ.get(ENV_BINARY)
    if named:
        found = shutil.which(named)
        if found is None:
            raise ServerMissing(f"{ENV_BINARY}={named} is not a program that can be run; {_HOW_TO}")
        program = _program_at(found)
        if program is None:
            raise ServerMissing(f"{ENV_BINARY}={named} is not the server's own program (a wrapper?); {_HOW_TO}")
        return program
    on_path = shutil.which("rabbitmq-server")
    for candidate in filter(None, [on_path, *(f"{folder}/rabbitmq-server" for folder in USUAL_PLACES)]):
        program = _program_at(candidate)
        if program is not None:
            return program
    raise ServerMissing(f"no rabbitmq-server on PATH or in {', '.join(USUAL_PLACES)}: {_HOW_TO}")


def install_rabbitmq() -> str:
    """Install Debian's rabbitmq-server when root and apt-get are at hand, and return the program's path.

    Does nothing if a server is there already. Waits for other processes that install at the same moment.
    Raises `ServerMissing` when this user cannot install, or the installation fails.
    """
    # The lock of install_redis: apt-get runs once at a time.
    lock_path = Path(tempfile.gettempdir()) / f"reliq-install-redis-{os.getuid()}.lock"
    with lock_path.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        try:
            return find_rabbitmq()
        except ServerMissing:
            if os.geteuid() != 0 or shutil.which("apt-get") is None:
                raise
        with _no_service("rabbitmq-server"):
            _run("apt-get", "update")
            _run("apt-get", "install", "-y", "--no-install-recommends", "rabbitmq-server")
        return find_rabbitmq()


def find_epmd() -> str:
    """Path of Erlang's `epmd`, which every node needs. Raises `ServerMissing`."""
    found = shutil.which("epmd")
    if found is None and (erl := shutil.which("erl")) is not None:
        # Some packages put only `erl` on PATH; epmd lies in the runtime's own folder.
        root = Path(erl).resolve().parent.parent
        near = [*root.glob("erts-*/bin/epmd"), *root.glob("lib/erlang/erts-*/bin/epmd")]
        found = str(near[0]) if near else None
    if found is None:
        raise ServerMissing(f"no Erlang (epmd) on PATH: {_HOW_TO}")
    return found


@functools.cache
def rabbitmq_version(binary: str) -> tuple[int, ...]:
    """The version of `binary`, such as (3, 10, 8), from the folders it lies in, else from its `rabbitmqctl`."""
    home = Path(binary).resolve().parent.parent
    for path in (home, *home.glob("plugins/rabbit-[0-9]*")):
        if match := re.search(r"-(\d+)\.(\d+)\.(\d+)", path.name):
            return tuple(map(int, match.groups()))
    control = str(Path(binary).with_name("rabbitmqctl"))
    line = subprocess.run([control, "version"], capture_output=True, text=True, check=False).stdout
    match = re.search(r"(\d+)\.(\d+)\.(\d+)", line)
    if match is None:
        raise ServerMissing(f"`{control} version` names no version: {line.strip()!r}; {_HOW_TO}")
    return tuple(map(int, match.groups()))


@contextlib.contextmanager
def _no_service(unit: str) -> Iterator[None]:
    """While a package is installed, keep systemd from starting its service: tests start their own server."""
    if not Path("/run/systemd/system").is_dir():
        yield
        return
    subprocess.run(["systemctl", "mask", "--runtime", "--quiet", unit], check=False)  # gone with the next boot
    try:
        yield
    finally:
        subprocess.run(["systemctl", "unmask", "--runtime", "--quiet", unit], check=False)


def _run(*command: str) -> None:
    # RUNLEVEL=1 keeps scripts of the old kind from starting the service.
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive", "RUNLEVEL": "1"}
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if result.returncode != 0:
        raise ServerMissing(f"`{' '.join(command)}` failed: {result.stderr.strip()[-500:]}; {_HOW_TO}")


def _program_at(path: str) -> str | None:
    """The program that `path` is, or is a link's neighbour of; None for a wrapper with no program beside it.

    Debian's /usr/sbin/rabbitmq-server links to a wrapper that lies beside the program, calls `su`, and starts
    itself without end when called by its own name: it must never be run. Beside the program lies `rabbitmq-env`.
    """
    program = Path(path).resolve().with_name("rabbitmq-server").resolve()
    if program.name == "rabbitmq-server" and os.access(program, os.X_OK) and program.with_name("rabbitmq-env").exists():
        return str(program)
    return None
