"""One thread that writes what messages become, out of the reach of time limits and shutdown notices.

Caller: `StubTransport`. Dramatiq interrupts a worker thread by an exception that may strike between any two lines, so
a worker thread cannot change several things in memory as one step. This thread is never interrupted: whoever needs
such a step hands it over, and may hand it over again if he is struck while he waits.
Guarantee: jobs run one at a time, in order; none is left undone, also when no thread runs or it ends meanwhile.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from queue import Empty, SimpleQueue
from typing import Any

from dramatiq.logging import get_logger


class _Job:
    def __init__(self, step: Callable[[], Any]) -> None:
        self.step = step
        self.done = threading.Event()
        self.result: Any = None
        self.error: BaseException | None = None

    def run(self) -> None:
        try:
            self.result = self.step()
        except BaseException as exc:  # handed to whoever waits for it; one that nobody waits for is logged
            self.error = exc
            get_logger(__name__).critical("A step of the stub broker failed.", exc_info=True)
        finally:
            self.done.set()


class Writer:
    """Runs steps one at a time, on a thread of its own between `start` and `stop`, else on the caller's."""

    def __init__(self) -> None:
        #: Invariant: taken from only by the thread, or, while there is none, under `_alone`.
        self._jobs: SimpleQueue[_Job | None] = SimpleQueue()
        self._alone = threading.RLock()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Start the thread."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="reliq-stub-writer", daemon=True)
            self._thread.start()

    def stop(self) -> None:
        """Run what is left and end the thread."""
        thread = self._thread
        if thread is not None:
            self._jobs.put(None)
            thread.join()
            self._thread = None
        self._drain()

    def hand_over(self, step: Callable[[], Any]) -> None:
        """Have a step done, without waiting for it."""
        self._put(_Job(step))

    def do(self, step: Callable[[], Any]) -> Any:
        """Have a step done; returns what it returns and raises what it raises."""
        if threading.current_thread() is self._thread:
            return step()
        job = _Job(step)
        self._put(job)
        while not job.done.wait(0.2):
            # Handed over at the moment the thread was ending.
            self._drain_if_alone()
        if job.error is not None:
            raise job.error
        return job.result

    def _put(self, job: _Job) -> None:
        self._jobs.put(job)
        self._drain_if_alone()

    def _drain_if_alone(self) -> None:
        if self._thread is None:
            self._drain()

    def _drain(self) -> None:
        with self._alone:
            while True:
                try:
                    job = self._jobs.get_nowait()
                except Empty:
                    return
                if job is not None:
                    job.run()

    def _run(self) -> None:
        while (job := self._jobs.get()) is not None:
            job.run()
