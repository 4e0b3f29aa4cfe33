"""Keeps a worker's threads as many as it was started with.

Caller: the consumers, when they see that an interrupt has struck in a line of Dramatiq's own between a run and its
hooks. What the run had come to is settled by then; but Dramatiq's thread ends with the interrupt, and a worker that
loses its threads one by one looks healthy and does less and less.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable

from dramatiq.logging import get_logger
from dramatiq.worker import Worker, WorkerThread


def replace_this_thread(workers: Iterable[Worker]) -> None:
    """Start a thread in the place of the calling one, which is about to end, in the worker that it belongs to."""
    current = threading.current_thread()
    for worker in workers:
        if current in worker.workers and current.running:
            get_logger(__name__).warning("A worker thread ends by a late interrupt; another takes its place.")
            thread = WorkerThread(
                broker=worker.broker,
                consumers=worker.consumers,
                work_queue=worker.work_queue,
                worker_timeout=worker.worker_timeout,
            )
            worker.workers = [thread, *(other for other in worker.workers if other is not current)]
            thread.start()
