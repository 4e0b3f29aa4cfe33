"""The line between consumers and threads: what Dramatiq asks of its queue, first come first served, sorted by priority
where there are several, and each item given out once."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from queue import Empty
from typing import Any

import dramatiq
import pytest
from dramatiq.common import iter_queue
from hypothesis import given
from hypothesis import strategies as st

from reliq.testing import eventually
from reliq.transport.work_queue import WorkQueue
from tests.transport.rig import Stage, staged
from tests.transport.stub_maker import StubMaker

#: Seconds; only what is missed takes so long.
LONG_S = 20.0


@dataclass(frozen=True, order=True)
class Item:
    """As Dramatiq's: by priority, then in the order in which they were made."""

    priority: int
    number: int


def line_of(*priorities: int) -> WorkQueue:
    """A line of items with these priorities, numbered from 0."""
    line = WorkQueue()
    for number, priority in enumerate(priorities):
        line.put(Item(priority, number))
    return line


# -- what Dramatiq asks of it ------------------------------------------------------------------------------------------


def test_an_empty_line_says_so_in_every_way() -> None:
    """`queue.Empty` from both ways to take, after the timeout and not before; nothing to join."""
    line = WorkQueue()
    for take in (line.get_nowait, lambda: line.get(timeout=0), lambda: line.get(block=False), lambda: line.get(False)):
        with pytest.raises(Empty):
            take()
    began = time.monotonic()
    with pytest.raises(Empty):
        line.get(timeout=0.05)
    assert time.monotonic() - began >= 0.045
    assert (line.qsize(), line.empty(), line.unfinished_tasks) == (0, True, 0)
    line.join()


@pytest.mark.parametrize("priorities", [(0, 0, 0), (0, 1, 0)], ids=["one priority", "several"])
def test_what_waits_and_what_is_unfinished_is_counted(priorities: tuple[int, ...]) -> None:
    """An item waits until it is got, and is unfinished until it is said to be done."""
    line = line_of(*priorities)
    counts = [(line.qsize(), line.empty(), line.unfinished_tasks)]
    for _ in priorities:
        line.get(timeout=LONG_S)
        counts.append((line.qsize(), line.empty(), line.unfinished_tasks))
    for _ in priorities:
        line.task_done()
        counts.append((line.qsize(), line.empty(), line.unfinished_tasks))
    assert counts == [
        *((3, False, 3), (2, False, 3), (1, False, 3), (0, True, 3)),
        *((0, True, 2), (0, True, 1), (0, True, 0)),
    ]


def test_dramatiqs_walk_over_a_queue_takes_all_of_it() -> None:
    """`iter_queue`, with which a worker that stops gives back what waits."""
    assert [item.number for item in iter_queue(line_of(*[0] * 5))] == [0, 1, 2, 3, 4]
    mixed = line_of(5, 0, 5, 0)
    assert sorted(item.number for item in iter_queue(mixed)) == [0, 1, 2, 3]
    assert mixed.empty()


def test_who_waits_gets_what_comes() -> None:
    """A blocked `get` returns the item that is put."""
    line, got = WorkQueue(), []
    waiter = threading.Thread(target=lambda: got.append(line.get(timeout=LONG_S)))
    waiter.start()
    line.put(Item(0, 7))
    waiter.join(LONG_S / 2)
    assert got == [Item(0, 7)]


def test_join_returns_when_the_last_is_done_and_not_before() -> None:
    """3 put and got, 2 said to be done: it waits for the third."""
    line = line_of(0, 0, 0)
    waiter = threading.Thread(target=line.join)
    waiter.start()
    for _ in range(2):
        line.get_nowait()
        line.task_done()
    line.get_nowait()
    waiter.join(0.05)
    assert waiter.is_alive()
    line.task_done()
    waiter.join(LONG_S / 2)
    assert not waiter.is_alive()


def test_what_comes_and_ends_while_it_is_counted_hides_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """One item is being worked on; another comes and is done between two steps of the count: 1 is unfinished."""
    line = line_of(0)
    line.get_nowait()
    tally = type(line._came)
    total, struck = tally.total, []

    def in_between(self: Any) -> int:
        counted = total(self)
        if not struck:
            struck.append(1)
            line.put(Item(0, 1))
            line.get_nowait()
            line.task_done()
        return counted

    monkeypatch.setattr(tally, "total", in_between)
    assert line.unfinished_tasks >= 1
    assert line.unfinished_tasks == 1


# -- order -------------------------------------------------------------------------------------------------------------


def test_items_of_one_priority_come_as_they_went() -> None:
    """Whatever they would say of their own order."""
    line = WorkQueue()
    for number in (3, 1, 2, 0):
        line.put(Item(0, number))
    assert [item.number for item in iter_queue(line)] == [3, 1, 2, 0]


def test_from_the_first_of_another_priority_on_they_are_sorted() -> None:
    """What had come before it stays in front; behind it the more urgent first, then in order."""
    line = line_of(5, 5, 1, 5, 9, 1, 0)
    assert [(item.priority, item.number) for item in iter_queue(line)] == [
        *((5, 0), (5, 1)),
        *((0, 6), (1, 2), (1, 5), (5, 3), (9, 4)),
    ]


def test_it_goes_on_sorting_when_the_line_was_empty_meanwhile() -> None:
    """Several priorities have been seen once: the less urgent that came first waits."""
    line = line_of(0, 1)
    assert len(list(iter_queue(line))) == 2
    for number, priority in enumerate((1, 1, 0), 2):
        line.put(Item(priority, number))
    assert [item.number for item in iter_queue(line)] == [4, 2, 3]


@given(st.lists(st.one_of(st.none(), st.integers(0, 2)), max_size=40))
def test_it_gives_out_what_a_sorted_queue_would(steps: list[int | None]) -> None:
    """Any puts (a priority) and gets (None): each item once; those after the first of another priority come sorted."""
    line, waiting, put, got = WorkQueue(), [], [], []
    for number, priority in enumerate(steps):
        if priority is not None:
            put.append(Item(priority, number))
            line.put(put[-1])
            waiting.append(put[-1])
        elif waiting:
            got.append(line.get_nowait())
            line.task_done()
            plain = [item for item in waiting if len({other.priority for other in put[: put.index(item) + 1]}) == 1]
            assert got[-1] == (min(plain, key=put.index) if plain else min(waiting))
            waiting.remove(got[-1])
    assert (line.qsize(), line.unfinished_tasks) == (len(waiting), len(waiting))
    assert Counter([*got, *iter_queue(line)]) == Counter(put)


# -- many threads ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("priorities", [(0,), (0, 10, 20)], ids=["one priority", "three"])
def test_each_of_16_000_items_of_8_threads_is_got_once(priorities: tuple[int, ...]) -> None:
    """8 put 2,000 each, 8 take: 16,000 got, none twice, none left; `join` returns when all are done and counts say
    so. Each taker has got what one thread has put with one priority in order."""
    line, got = WorkQueue(), [[] for _ in range(8)]

    def put(thread: int) -> None:
        for number in range(2_000):
            line.put(Item(priorities[number % len(priorities)], thread * 10_000 + number))

    def take(mine: list[Item]) -> None:
        while (item := line.get(timeout=LONG_S)).number >= 0:
            mine.append(item)
            line.task_done()
        line.task_done()

    with ThreadPoolExecutor(16) as pool:
        takers = [pool.submit(take, mine) for mine in got]
        for putter in [pool.submit(put, thread) for thread in range(8)]:
            putter.result(LONG_S)
        line.join()
        done = sum(map(len, got))
        assert (line.qsize(), line.unfinished_tasks) == (0, 0)
        for _ in takers:
            line.put(Item(max(priorities), -1))
        for taker in takers:
            taker.result(LONG_S)
    numbers = Counter(item.number for mine in got for item in mine)
    assert done == 16_000
    assert numbers == Counter(thread * 10_000 + number for thread in range(8) for number in range(2_000))
    assert (line.qsize(), line.unfinished_tasks, line.empty()) == (0, 0, True)
    if len(priorities) == 1:
        for mine in got:
            by_putter: dict[int, list[int]] = {}
            for item in mine:
                by_putter.setdefault(item.number // 10_000, []).append(item.number)
            assert all(several == sorted(several) for several in by_putter.values())


def test_join_is_never_early_while_threads_hand_on_their_items() -> None:
    """Each item that is worked on puts another before it is said to be done, 300 in 8 chains: whoever joins meanwhile
    finds all of them done, and the one whose thread takes longest too."""
    line, done = WorkQueue(), []
    release = threading.Event()

    def take() -> None:
        while (item := line.get(timeout=LONG_S)).number >= 0:
            if item.number == 0:
                release.wait(LONG_S)
            elif item.number % 300:
                line.put(Item(0, item.number + 1))
            done.append(item.number)
            line.task_done()

    with ThreadPoolExecutor(8) as pool:
        takers = [pool.submit(take) for _ in range(6)]
        line.put(Item(0, 0))
        for chain in range(8):
            line.put(Item(0, chain * 300 + 1))
        joins = [pool.submit(line.join) for _ in range(2)]
        eventually(lambda: len(done) == 8 * 300, LONG_S, what="the chains")
        assert [join.done() for join in joins] == [False, False]
        release.set()
        for join in joins:
            join.result(LONG_S)
        assert len(done) == 8 * 300 + 1
        for _ in takers:
            line.put(Item(0, -1))


def test_a_get_ends_with_its_timeout_though_others_take_what_it_was_woken_for() -> None:
    """8 threads with timeouts of 5 ms between bursts of items, 30 times: in the quiet after each burst every thread
    comes back empty-handed. One that did not would never hear that its worker stops. (Until Python 3.12 a
    `SimpleQueue.get` whose timeout ends while another thread takes its item waits without one.)"""
    line, stopping, quiet = WorkQueue(), threading.Event(), threading.Event()
    empty_handed = [0] * 8

    def take(thread: int) -> None:
        while not stopping.is_set():
            try:
                line.get(timeout=0.005)
            except Empty:
                empty_handed[thread] += quiet.is_set()
            else:
                line.task_done()
                sum(range(3_000))  # the task's own work

    threads = [threading.Thread(target=take, args=(thread,), daemon=True) for thread in range(8)]
    for thread in threads:
        thread.start()
    stuck = []
    for number in range(30):
        quiet.clear()
        until = time.monotonic() + 0.02
        while time.monotonic() < until:
            for _ in range(10):
                line.put(Item(0, number))
            stopping.wait(0.005)
        line.join()
        quiet.set()
        before = list(empty_handed)
        try:
            eventually(lambda before=before: all(now > was for now, was in zip(empty_handed, before)), 2, 0.002)
        except TimeoutError:
            stuck.append([thread for thread in range(8) if empty_handed[thread] == before[thread]])
            break
    stopping.set()
    for _ in threads:
        line.put(Item(0, -1))  # wakes those that wait for ever
    for thread in threads:
        thread.join(LONG_S / 2)
    assert stuck == []


# -- on a worker -------------------------------------------------------------------------------------------------------


@pytest.fixture
def stage() -> Iterator[Stage]:
    with staged(StubMaker()) as make:
        yield make()


def test_each_worker_of_a_broker_with_reliq_has_one(stage: Stage) -> None:
    """From its boot on, its own; consumers and threads use that one. Tasks run, `Worker.join` waits for them."""
    gate, ran = threading.Event(), []

    def work(number: int) -> None:
        gate.wait(LONG_S)
        ran.append(number)

    actor = dramatiq.actor(work, actor_name="work")
    workers = [stage.worker(), stage.worker()]
    lines = [worker.work_queue for worker in workers]
    assert [type(line) for line in lines] == [WorkQueue, WorkQueue]
    assert lines[0] is not lines[1]
    for worker in workers:
        threads = [*worker.workers, *worker.consumers.values()]
        assert len(threads) >= 3
        assert all(thread.work_queue is worker.work_queue for thread in threads)
    for number in range(20):
        actor.send(number)
    eventually(lambda: sum(line.unfinished_tasks for line in lines) >= 4, what="tasks that run")
    joins = [threading.Thread(target=worker.join) for worker in workers]
    for join in joins:
        join.start()
    gate.set()
    stage.broker.join("default", timeout=10_000)
    for join in joins:
        join.join(LONG_S / 2)
        assert not join.is_alive()
    assert sorted(ran) == list(range(20))
    assert [(line.qsize(), line.unfinished_tasks) for line in lines] == [(0, 0), (0, 0)]


def test_a_worker_that_stops_gives_back_what_waits_in_it(stage: Stage) -> None:
    """2 run, the others that were prefetched wait in the line: after the stop all but the 2 are in the queue, and the
    next worker runs each once."""
    gate, ran = threading.Event(), []

    def work(number: int) -> None:
        ran.append(number)
        gate.wait(LONG_S)

    actor = dramatiq.actor(work, actor_name="work")
    for number in range(10):
        actor.send(number)
    worker = stage.worker()
    eventually(lambda: len(ran) == 2 and worker.work_queue.qsize() >= 1, what="two that run and one that waits")
    threading.Timer(0.05, gate.set).start()
    worker.stop()
    worker.stopped_by_test = True  # type: ignore[attr-defined]
    assert worker.work_queue.empty()
    assert stage.counts()[0] == 10 - len(ran)
    stage.worker()
    stage.broker.join("default", timeout=10_000)
    assert sorted(ran) == list(range(10))
