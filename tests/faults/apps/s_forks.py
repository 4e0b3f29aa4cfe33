"""Workers one after the other: a process that runs one until it is killed, then the next, which begins at once.

`python -m tests.faults.apps.s_forks` with the environment that `rabbit_stage.py` gives, in a process group of its own,
which its starter kills. A worker is a fork, because a new interpreter for each would take most of a test's time;
nothing is connected before it is forked.
"""

import os
import time

from dramatiq.worker import Worker

from tests.faults.apps import s_tasks


def main() -> None:
    """Fork, wait for the end of it, again."""
    while os.fork():
        os.wait()
    Worker(s_tasks.broker, worker_threads=1, worker_timeout=50).start()
    while True:
        time.sleep(60)  # sleep-ok: the worker's threads work; this process ends by a signal


if __name__ == "__main__":
    main()
