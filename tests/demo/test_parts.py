"""What the demo on RabbitMQ counts by, and the steps that it takes beside the main thread."""

import threading

import pytest

from reliq.demo.background import Background
from reliq.demo.rabbitmq_dump import Counts
from reliq.testing import ServerFailed, eventually


def test_only_letters_are_no_work() -> None:
    """Letters of both kinds are dead; anything else that is ready or unacked is still to be done."""
    letters = Counts({"default.dead": (3, 0), "default.XQ": (2, 1)})
    assert letters.idle
    assert letters.dead == 6
    for name in ("default", "default.DQ", "reliq.delay.v1.03", "reliq.unrouted"):
        assert not Counts({**letters.queues, name: (0, 1)}).idle


def test_delays_are_told_apart_by_where_they_wait() -> None:
    counts = Counts(
        {"default.DQ": (1, 4), "reliq.delay.v1.03": (2, 0), "reliq.delay.v1q.11": (5, 0), "default": (9, 9)}
    )
    assert (counts.delayed_in_workers, counts.on_ladder) == (4, 7)


def test_an_error_beside_the_main_thread_is_raised_where_it_is_waited_for() -> None:
    def fail() -> None:
        raise TimeoutError("the alarm does not come")

    step = Background(fail)
    with pytest.raises(ServerFailed, match="the alarm does not come"):
        step.wait()


def test_a_step_is_ended_by_what_stops_it() -> None:
    """`end` stops it as often as it takes, and returns when it has ended."""
    stop, stops = threading.Event(), []

    def strike() -> None:
        stops.append(1)
        if len(stops) == 2:
            stop.set()

    step = Background(stop.wait)
    assert not step.over
    step.end(strike)
    assert len(stops) >= 2
    eventually(lambda: step.over, what="the step to be over")
