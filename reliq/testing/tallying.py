"""Say what became of every task that was sent: done, dead, waiting, stuck or lost.

Callers: the last lines of every fault test.
Guarantee: pure. Every sent key is counted in exactly one of `done`, `dead`, `waiting`, `stuck` and `lost`, so
their sum is `sent`: "not completed" alone would mix what is lost with what is merely late.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from reliq.testing.census import Census, Place
from reliq.testing.runlog import Entry, Key, RunLog


@dataclass(frozen=True)
class Tally:
    """How many keys met which fate; `which` names them.

    `done`: has an "end". `dead`: a dead letter (ours or stock's). `waiting`: stored, and somebody will run
    it. `stuck`: stored, but nobody will (unacked by a dead holder, or a ghost). `lost`: nowhere.
    Beside that, over the same keys: `twice`: more than one "end"; `retried`: at least one "fail". `runs`
    counts "start" entries and `fails` "fail" entries, so `runs - fails - done` are extra runs that nobody
    planned.
    """

    sent: int
    done: int
    dead: int
    waiting: int
    stuck: int
    lost: int
    twice: int
    retried: int
    runs: int
    fails: int
    keys: Mapping[str, frozenset[Key]] = field(default_factory=dict, repr=False, compare=False)

    def which(self, fate: str) -> frozenset[Key]:
        """The keys counted in `fate`, e.g. `which("lost")`, for the message of a failed assertion."""
        if fate not in self.keys:
            raise KeyError(f"no fate {fate!r}; there are {', '.join(sorted(self.keys))}")
        return self.keys[fate]

    def __str__(self) -> str:
        shown = ["sent", "done", "dead", "stuck", "lost", "twice", *(["waiting"] if self.waiting else [])]
        return " ".join(f"{fate} {getattr(self, fate)}" for fate in shown)


def tally(
    sent_keys: Iterable[Key],
    log: RunLog | Iterable[Entry],
    census: Census,
    *,
    key: Callable[[Place], Key] | None = None,
    live: Callable[[str], bool] | None = None,
) -> Tally:
    """Count the fate of `sent_keys` from what the tasks wrote and what the broker still holds.

    `key` gives a place's key (default: the first argument); a place whose key was not sent is left out.
    `live` says whether the worker with a broker id lives; the default, `census.alive`, believes a stock
    heartbeat for 60 s, so after a kill -9 pass what the test knows: `live=lambda broker_id: False`.
    """
    key_of = key or (lambda place: place.key)
    is_live = live or census.alive
    sent = frozenset(sent_keys)
    events = _events(sent, log.entries() if isinstance(log, RunLog) else log)
    fates: dict[str, set[Key]] = {"dead": set(), "waiting": set(), "stuck": set()}
    for place in census.places:
        where = key_of(place)
        if where in sent:
            fates[_fate(place, is_live)].add(where)

    keys: dict[str, frozenset[Key]] = {"sent": sent, "done": frozenset(events["end"])}
    left = sent - keys["done"]
    for fate in ("dead", "waiting", "stuck"):  # the best of several places counts
        keys[fate] = left & fates[fate]
        left -= keys[fate]
    keys["lost"] = left
    keys["twice"] = frozenset(name for name, number in events["end"].items() if number > 1)
    keys["retried"] = frozenset(events["fail"])
    return Tally(
        **{fate: len(members) for fate, members in keys.items()},
        runs=events["start"].total(),
        fails=events["fail"].total(),
        keys=keys,
    )


def _events(sent: frozenset[Key], entries: Iterable[Entry]) -> dict[str, Counter[Key]]:
    counts: dict[str, Counter[Key]] = {"start": Counter(), "end": Counter(), "fail": Counter()}
    for entry in entries:
        if entry.event in counts and entry.key in sent:
            counts[entry.event][entry.key] += 1
    return counts


def _fate(place: Place, is_live: Callable[[str], bool]) -> str:
    if place.state in ("dead", "stock_dead"):
        return "dead"
    if place.state == "ghost" or (place.state == "unacked" and not is_live(place.holder or "")):
        return "stuck"
    return "waiting"
