"""The result is counted, and whatever is missing on reliq's side is said by the figures and by the exit code."""

import json
from dataclasses import replace

import pytest

from reliq.demo.plan import BAD_BODY, BAD_KEY
from reliq.demo.verdict import Outcome, exit_code, outcome, plain_line, reliq_line
from reliq.testing import Census, Entry, Place

GOOD = Outcome(sent=10, done=8, dead=2, stuck=0, lost=0, retried=4, twice=1)


def entries(*events: tuple[str, int]) -> list[Entry]:
    return [Entry(event, key, at, pid=1, thread=1) for at, (event, key) in enumerate(events)]


def place(state: str, key: int, holder: str | None = None) -> Place:
    return Place("default", state, holder, json.dumps({"args": [key]}).encode(), args=(key,))  # type: ignore[arg-type]


def census(*places: Place) -> Census:
    return Census(places, now_ms=0)


def test_the_lines_hold_every_figure() -> None:
    assert plain_line(GOOD) == "plain: sent 10 done 8 dead 2 stuck 0 lost 0"
    assert reliq_line(GOOD) == "reliq: sent 10 done 8 retried 4 dead 2 twice 1 stuck 0 lost 0"


def test_the_code_is_0_only_when_done_and_dead_make_up_what_was_sent() -> None:
    assert exit_code(GOOD) == 0


@pytest.mark.parametrize(
    "bad",
    [
        replace(GOOD, done=7, lost=1),
        replace(GOOD, done=7, stuck=1),
        replace(GOOD, dead=1, lost=1),
        replace(GOOD, sent=11),
        replace(GOOD, done=9),  # more than was sent is wrong too
    ],
)
def test_the_code_is_1_when_something_is_missing(bad: Outcome) -> None:
    assert exit_code(bad) == 1


def test_every_body_has_one_fate() -> None:
    """1 done, 2 dead, 3 waiting, 4 held by a dead worker, 5 nowhere, 6 done twice, and the body that nobody opens."""
    log = entries(("start", 1), ("end", 1), ("start", 6), ("end", 6), ("start", 6), ("end", 6))
    undecodable = Place("default", "dead", None, BAD_BODY)
    found = census(place("dead", 2), place("delayed", 3), place("unacked", 4, holder="gone"), undecodable)
    assert outcome([BAD_KEY, 1, 2, 3, 4, 5, 6], log, found) == Outcome(
        sent=7, done=2, dead=2, stuck=2, lost=1, retried=0, twice=1, missing=(3, 4, 5)
    )


def test_retried_means_failed_then_started_again_then_ended() -> None:
    log = entries(
        *[("start", 1), ("fail", 1), ("start", 1), ("end", 1)],  # retried and done
        *[("start", 2), ("fail", 2), ("start", 2), ("fail", 2)],  # retried and dead
        *[("start", 3), ("fail", 3)],  # dead at its first failure
        *[("start", 4), ("start", 4), ("end", 4)],  # killed, not failed
        *[("start", 5), ("fail", 5), ("start", 5)],  # retried, not ended
    )
    found = census(place("dead", 2), place("dead", 3), place("unacked", 5, holder="gone"))
    assert outcome([1, 2, 3, 4, 5], log, found).retried == 2
