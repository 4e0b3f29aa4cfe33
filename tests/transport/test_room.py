"""Places are counted without a lock: who waits for some is never missed, whoever leaves meanwhile."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from queue import SimpleQueue

from reliq.testing import eventually
from reliq.transport.room import Room

#: Seconds; only a wait that is missed takes so long.
LONG_S = 20.0


def room_of(taken: int) -> Room:
    """A room with so many places taken: "0", "1"..."""
    room = Room()
    for number in range(taken):
        room.take(str(number))
    return room


def test_a_room_counts_what_was_taken_and_not_left() -> None:
    """A place taken twice under one name is one place."""
    room = room_of(3)
    room.take("2")
    assert len(room) == 3
    room.leave("0")
    assert len(room) == 2
    assert repr(room) == "<Room taken=2>"


def test_leaving_twice_is_harmless() -> None:
    """Nor is leaving what was never taken counted."""
    room = room_of(2)
    for token in ("0", "0", "nobody"):
        room.leave(token)
    assert len(room) == 1


def test_who_finds_room_does_not_wait() -> None:
    """At most as many taken as asked for: at once, even without patience."""
    room = room_of(2)
    assert room.wait(2, 0)
    assert room.wait(3, 0)
    began = time.monotonic()
    assert room.wait(2, LONG_S)
    assert time.monotonic() - began < LONG_S / 2


def test_who_finds_none_waits_as_long_as_it_may() -> None:
    """False after the timeout, not before; and with no patience at once."""
    room = room_of(2)
    began = time.monotonic()
    assert not room.wait(1, 0.05)
    assert time.monotonic() - began >= 0.045
    assert not room.wait(0, 0)


def test_who_waits_is_woken_by_the_one_that_leaves_enough() -> None:
    """5 taken, at most 2 wanted: woken by the third that leaves, not by the first two."""
    room, told = room_of(5), []
    waiter = threading.Thread(target=lambda: told.append(room.wait(2, LONG_S)))
    waiter.start()
    eventually(lambda: room._wanted == 2, what="the waiter")
    room.leave("0")
    room.leave("1")
    waiter.join(0.05)
    assert (told, waiter.is_alive()) == ([], True)
    room.leave("2")
    waiter.join(LONG_S / 2)
    assert told == [True]


def test_taking_meanwhile_wakes_nobody() -> None:
    """What comes while somebody waits makes the wait longer: all of it has to leave."""
    room, told = room_of(1), []
    waiter = threading.Thread(target=lambda: told.append(room.wait(0, LONG_S)))
    waiter.start()
    eventually(lambda: room._wanted == 0, what="the waiter")
    room.take("late")
    room.leave("0")
    waiter.join(0.05)
    assert told == []
    room.leave("late")
    waiter.join(LONG_S / 2)
    assert told == [True]


def test_a_wait_that_timed_out_leaves_nothing_behind() -> None:
    """The next wait is not woken for what the last one wanted."""
    room = room_of(3)
    assert not room.wait(2, 0.01)
    room.leave("0")
    assert not room.wait(1, 0.01)
    room.leave("1")
    assert room.wait(1, 0)


def test_a_waiter_is_never_missed_by_many_that_leave() -> None:
    """8 threads leave what one thread takes, 20,000 places in windows of 16: no wait runs into its timeout."""
    room, work, missed = Room(), SimpleQueue(), []

    def leaver() -> None:
        while (token := work.get()) is not None:
            room.leave(token)

    with ThreadPoolExecutor(8) as pool:
        leavers = [pool.submit(leaver) for _ in range(8)]
        began, number = time.monotonic(), 0
        while number < 20_000:
            at_most = (0, 8, 15)[number % 3]
            # A wake-up may be of a place that was left before the wait began: then it is asked again.
            while not room.wait(at_most, LONG_S):
                if time.monotonic() - began > LONG_S:
                    missed.append(number)
                    break
            for _ in range(16 - len(room)):
                number += 1
                room.take(str(number))
                work.put(str(number))
            if missed:
                break
        for _ in range(8):
            work.put(None)
        for each in leavers:
            each.result(LONG_S)
    assert missed == []
    assert time.monotonic() - began < LONG_S
    assert len(room) == 0
