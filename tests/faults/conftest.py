"""What the fault tests share: a stage with a server, a proxy and workers, and a list of the figures they measured."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from reliq.testing import RedisServer, RunLog
from reliq.testing.plugin import MakeProxy, MakeWorkers
from tests.faults.stage import Stage

FIGURES = Path(__file__).parents[2] / ".cache/figures.txt"


@pytest.fixture
def figure(request: pytest.FixtureRequest) -> Callable[[object], None]:
    """Prints a measured line and appends it, with the test's id, to `.cache/figures.txt`: docs/proofs.md cites it."""

    def note(line: object) -> None:
        FIGURES.parent.mkdir(exist_ok=True)
        text = f"{request.node.nodeid}: {line}\n"
        print(text, end="")
        fd = os.open(FIGURES, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)  # one write: tests run side by side
        try:
            os.write(fd, text.encode())
        finally:
            os.close(fd)

    return note


@pytest.fixture
def stage(
    redis_server: RedisServer, fault_proxy: MakeProxy, worker_group: MakeWorkers, run_log: RunLog
) -> Iterator[Stage]:
    """A server of this test's own, a proxy before it, and the means to send, run and count."""
    with Stage(redis_server, fault_proxy(redis_server), worker_group, run_log) as stage:
        yield stage
