"""What the demo sends: a pure function of the number of messages and a seed.

Callers: `stage` (sends it to both sides), the tests.
Guarantee: equal arguments give an equal plan, and every plan has some of each kind of message.
"""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass

#: The fewest messages that can show every kind.
FEWEST = 20
#: Worker processes and threads of each side.
GROUPS, THREADS = 2, 4
#: How long the first look at every message and its retries keep all threads busy, in s: the faults fall into it.
BUSY_S = 7.0
#: Most failures of a message that succeeds in the end.
MOST_FAILURES = 3
#: More failures than there are attempts.
EVERY_TIME = 99
#: Attempts of a message that fails every time: one and its two retries (`max_retries` in the app).
ATTEMPTS = {"refused": 3, "hopeless": 1}

#: Cut off within a string, and no UTF-8: no encoder opens it.
BAD_BODY = b'{"queue_name":"default","actor_name":"send_receipt","args":["caf\xe9'
#: How the undecodable body is called where the others are called by their number.
BAD_KEY = "undecodable"


@dataclass(frozen=True)
class Order:
    """One message: `actor(number, fails=, work_ms=)`. `kind` says what is in store for it.

    "works": done at once. "flaky": fails `fails` times, then is done. "refused": fails every time, with few
    retries. "hopeless": fails with an error that its actor names as beyond help.
    """

    number: int
    kind: str
    actor: str
    fails: int
    work_ms: int


@dataclass(frozen=True)
class Plan:
    """The orders in their order of sending; the undecodable body goes before the order at `bad_at`."""

    orders: tuple[Order, ...]
    bad_at: int

    @property
    def keys(self) -> list[int | str]:
        """Every body that is put, by the name under which it is counted."""
        return [BAD_KEY, *(order.number for order in self.orders)]

    def count(self, kind: str) -> int:
        """How many orders are of this kind."""
        return Counter(order.kind for order in self.orders)[kind]


def make_plan(messages: int, seed: int) -> Plan:
    """A plan of `messages` bodies, the undecodable one included. Raises `ValueError` below `FEWEST`."""
    if messages < FEWEST:
        raise ValueError(f"the demo needs at least {FEWEST} messages to show every kind, got {messages}")
    rng = random.Random(seed)
    total = messages - 1
    refused, hopeless, flaky = max(2, total * 8 // 100), max(1, total * 4 // 100), total // 2
    kinds = ["refused"] * refused + ["hopeless"] * hopeless + ["flaky"] * flaky
    kinds += ["works"] * (total - len(kinds))
    rng.shuffle(kinds)
    drafts = [(kind, _fails(kind, rng), rng.uniform(0.5, 1.5)) for kind in kinds]
    weight = sum(share * ATTEMPTS.get(kind, 1 + fails) for kind, fails, share in drafts)
    unit_ms = BUSY_S * 1000 * GROUPS * THREADS / weight
    orders = tuple(
        Order(number, kind, _actor(kind, rng), fails, max(1, round(share * unit_ms)))
        for number, (kind, fails, share) in enumerate(drafts, start=1)
    )
    return Plan(orders, bad_at=total * 2 // 3)


def _fails(kind: str, rng: random.Random) -> int:
    return {"works": 0, "flaky": rng.randint(1, MOST_FAILURES)}.get(kind, EVERY_TIME)


def _actor(kind: str, rng: random.Random) -> str:
    if kind == "refused":
        return "charge_card"
    if kind == "hopeless":
        return "resize_photo"
    return rng.choice(("send_receipt", "sync_stock"))
