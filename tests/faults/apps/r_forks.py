"""Sends from a process that forks while its threads send: `python -m tests.faults.apps.r_forks`, set as `r_broker` is.

Each of parent and four children sends 100 tasks and records those that were accepted; one more child only closes its
broker, as an exit handler does. Ends with 0 when all children have, and every send returned.
"""

import multiprocessing
import os
import sys
import threading
import traceback

from tests.faults.apps.r_broker import broker, log
from tests.faults.stage import message


def send(first: int, number: int) -> None:
    """Keys from `first` on."""
    for key in range(first, first + number):
        broker.enqueue(message("work", key))
        log.record("accepted", key)


def forked(step, *args) -> int:
    """Run a step in a child of `os.fork`; returns its pid."""
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        step(*args)
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def main() -> int:
    """The parent."""
    broker.declare_queue("default")
    send(0, 20)
    threads = [threading.Thread(target=send, args=(first, 40)) for first in (20, 60)]
    for thread in threads:
        thread.start()
    closes = forked(broker.close)
    children = [closes, forked(send, 100, 100), forked(send, 200, 100)]
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=send, args=(first, 100)) for first in (300, 400)]
    for process in processes:
        process.start()
    for thread in threads:
        thread.join()
    codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children]
    for process in processes:
        process.join()
        codes.append(process.exitcode)
    print("exit codes of the children:", codes, file=sys.stderr)
    return 0 if codes == [0] * 5 and len(log.keys("accepted")) == 500 else 1


if __name__ == "__main__":
    sys.exit(main())
