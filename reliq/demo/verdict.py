"""What the demo concludes: its two result lines and its exit code, from an execution log and a dump of the broker.

Callers: `stage` (counts), `command` (prints, exits). Pure.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from reliq.testing import Census, Entry, Place, tally
from reliq.testing.runlog import Key

from .plan import BAD_BODY, BAD_KEY


@dataclass(frozen=True)
class Outcome:
    """What became of the `sent` bodies of one side; done + dead + stuck + lost = sent.

    `done`: ran to its end at least once. `dead`: a dead letter. `stuck`: still stored, but had not come to an end
    when the demo stopped waiting. `lost`: neither ended nor stored.
    Beside that: `retried`: had a failed attempt, was started again after it, and is done or dead. `twice`: ran to
    its end more than once.
    """

    sent: int
    done: int
    dead: int
    stuck: int
    lost: int
    retried: int = 0
    twice: int = 0
    missing: tuple[Key, ...] = ()

    @property
    def complete(self) -> bool:
        """Whether every body is accounted for."""
        return self.done + self.dead == self.sent and self.stuck == 0 and self.lost == 0

    @property
    def left(self) -> int:
        """How many have not come to an end."""
        return self.sent - self.done - self.dead


def outcome(sent: Iterable[Key], entries: list[Entry], census: Census) -> Outcome:
    """Count. Take the census first: what ends between the two is then counted as done, never as lost."""
    counts = tally(sent, entries, census, key=key_of)
    ended = counts.which("done") | counts.which("dead")
    missing = counts.which("sent") - ended
    return Outcome(
        sent=counts.sent,
        done=counts.done,
        dead=counts.dead,
        stuck=counts.stuck + counts.waiting,
        lost=counts.lost,
        retried=len(ended & _started_after_failure(entries)),
        twice=counts.twice,
        missing=tuple(sorted(missing, key=str)),
    )


def key_of(place: Place) -> Key:
    """The name under which a body is counted."""
    return BAD_KEY if place.body == BAD_BODY else place.key


def _started_after_failure(entries: Iterable[Entry]) -> set[Key]:
    failed: set[Key] = set()
    again: set[Key] = set()
    for entry in entries:
        if entry.event == "fail":
            failed.add(entry.key)
        elif entry.event == "start" and entry.key in failed:
            again.add(entry.key)
    return again


def plain_line(result: Outcome) -> str:
    """The result of plain Dramatiq."""
    return f"plain: sent {result.sent} done {result.done} dead {result.dead} stuck {result.stuck} lost {result.lost}"


def reliq_line(result: Outcome) -> str:
    """The result with reliq."""
    return (
        f"reliq: sent {result.sent} done {result.done} retried {result.retried} dead {result.dead} "
        f"twice {result.twice} stuck {result.stuck} lost {result.lost}"
    )


def exit_code(result: Outcome) -> int:
    """0 if reliq's done + dead = sent, else 1. What plain Dramatiq did changes nothing."""
    return 0 if result.complete else 1
