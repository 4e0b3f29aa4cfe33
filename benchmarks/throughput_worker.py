"""One worker of `throughput.py`: boots, holds its threads at the gate, runs what is in the queue, says what it took.

Arguments: "plain" or "reliq", the broker's URL, how many tasks, how many threads. Says "ready" when every thread has a
task and waits with it, reads one line (the gate), prints one line of JSON: seconds from the gate to the end of the last
task, CPU seconds of this process meanwhile. Connecting and declaring are over by then.
"""

from __future__ import annotations

import itertools
import json
import sys
import threading
import time

import dramatiq
from dramatiq.worker import Worker
from stands import build


def main() -> None:
    """See the module."""
    side, url, wanted, threads = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
    broker = build(side, url)
    gate, finished = threading.Event(), threading.Event()
    arrived = threading.Semaphore(0)
    ended_at = [0.0]
    turn = itertools.count(1)

    @dramatiq.actor
    def noop(n: int) -> None:
        if not gate.is_set():
            arrived.release()
            gate.wait()
        if next(turn) == wanted:
            ended_at[0] = time.perf_counter()
            finished.set()

    broker.emit_after("process_boot")
    worker = Worker(broker, worker_threads=threads)
    worker.start()
    for _ in range(threads):
        if not arrived.acquire(timeout=60):
            sys.exit("the threads did not get a task each within 60 s")
    print("ready", flush=True)
    sys.stdin.readline()
    cpu, began = time.process_time(), time.perf_counter()
    gate.set()
    if not finished.wait(300):
        sys.exit("the last task did not end within 300 s")
    # Its acks belong to the price, whoever sends them.
    worker.stop()
    cpu = time.process_time() - cpu
    print(json.dumps({"seconds": ended_at[0] - began, "cpu": cpu, "ran": next(turn) - 1}), flush=True)


if __name__ == "__main__":
    main()
