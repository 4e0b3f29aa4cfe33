"""Kill child process groups when the process that started them dies, however it dies.

Callers: the starters of servers and workers (`hold`, `release`).
Guarantee: within about a second of this process's end, also by kill -9, every held process group gets
SIGKILL.

PR_SET_PDEATHSIG would be less code, but it fires when the *thread* that started the child ends, knows only
one process and not its children, and exists only on Linux. So one small guard process per test process is
told over a pipe which groups to watch; when the pipe closes or its parent changes, it kills them and exits.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import select
import signal
import subprocess
import sys
import threading

_lock = threading.Lock()
_guard: subprocess.Popen[bytes] | None = None
_owner = 0  # pid that started _guard: after a fork the child needs a guard, and a list, of its own
_held: set[int] = set()


def hold(pgid: int) -> None:
    """From now on, kill process group `pgid` when this process ends."""
    with _lock:
        _own()
        _held.add(pgid)
        _tell(f"+{pgid}\n")


def release(pgid: int) -> None:
    """Forget `pgid`. Call it once the group is gone: its number may be given to somebody else."""
    with _lock:
        _own()
        _held.discard(pgid)
        _tell(f"-{pgid}\n")


def _own() -> None:
    global _guard, _owner
    if _owner != os.getpid():
        _guard, _owner = None, os.getpid()
        _held.clear()


def _tell(line: str) -> None:
    global _guard
    for _ in range(2):
        if _guard is None:
            _guard = _start_guard()
            line = "".join(f"+{pgid}\n" for pgid in _held)
        assert _guard.stdin is not None
        try:
            _guard.stdin.write(line.encode())
            _guard.stdin.flush()
            return
        except BrokenPipeError:  # somebody killed the guard: the next one starts with the whole list
            _guard = None
    raise RuntimeError("the guard process of reliq.testing ends at once; see whether something kills it")


def _start_guard() -> subprocess.Popen[bytes]:
    command = [sys.executable, "-I", "-S", os.path.abspath(__file__), str(os.getpid())]
    # A session of its own: Ctrl-C in the terminal and a kill of our group must not reach the guard first. No
    # open output: whoever reads ours to its end must not wait for the guard.
    return subprocess.Popen(
        command,
        cwd="/",
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


@atexit.register
def _let_go() -> None:
    if _guard is not None and _owner == os.getpid() and _guard.stdin is not None:
        with contextlib.suppress(BrokenPipeError, subprocess.TimeoutExpired):
            _guard.stdin.close()
            _guard.wait(2)


def _watch(parent: int) -> None:
    """The guard's whole life: note groups until the parent is gone, then kill what is left."""
    held: set[int] = set()
    pending = b""
    while True:
        # The pipe alone is not enough: a process forked by the parent may keep its other end open.
        readable, _, _ = select.select([0], [], [], 0.5)
        if readable:
            data = os.read(0, 65536)
            if not data:
                break
            *lines, pending = (pending + data).split(b"\n")
            for line in lines:
                (held.add if line[:1] == b"+" else held.discard)(int(line[1:]))
        elif os.getppid() != parent:
            break
    for pgid in held:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(pgid, signal.SIGKILL)


if __name__ == "__main__":
    _watch(int(sys.argv[1]))
