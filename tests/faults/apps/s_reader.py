"""Reads, or replays, the letters of `default` one by one, and tells of each on stdout: a process to be killed.

`python -m tests.faults.apps.s_reader look|replay` with the environment that `rabbit_stage.py` gives.
"""

import os
import sys
import time

from dramatiq.brokers.rabbitmq import RabbitmqBroker

import reliq
from reliq.desk.replay import Outcome, Watch, plan, replay
from reliq.desk.selector import Selector
from reliq.wiring import transport_of


def told(outcome: Outcome) -> bool:
    """Say how far it is."""
    print(outcome.done, flush=True)
    return True


def main() -> None:
    """Take the letters one by one."""
    broker = RabbitmqBroker(url=os.environ["APP_URL"])
    reliq.install(broker)
    broker.declare_queue("default")
    transport = transport_of(broker)
    assert transport is not None
    if sys.argv[1] == "replay":
        replay(transport, plan(transport, Selector(), everything=True), Watch(after_each=told))
        return
    for number, _ in enumerate(transport.dead_letters("default"), 1):
        print(number, flush=True)
        time.sleep(0.01)  # sleep-ok: somebody reads what is shown


if __name__ == "__main__":
    main()
