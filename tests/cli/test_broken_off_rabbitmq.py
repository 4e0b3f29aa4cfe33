"""Commands on RabbitMQ that meet another one, are killed or cut off: nothing is lost, and the next one works.

Letters are held while they are read, and a message is stored before its letter goes: so a second reader is told, and
what was under way when a replay died may run twice.
"""

from __future__ import annotations

import signal
from contextlib import closing
from typing import Any

import pytest

from reliq.testing import eventually
from reliq.testing.plugin import MakeProxy
from tests.cli.conftest import Cli
from tests.cli.test_broken_off import end_of, killed, start
from tests.desk.morgues import on_both_queue_types, on_rabbitmq
from tests.desk.rabbit_support import RabbitMorgue

#: Frames of AMQP 0-9-1: class 60, method 40 and 80.
PUBLISH, ACK = b"\x00\x3c\x00\x28", b"\x00\x3c\x00\x50"
READING = (["list"], ["count"], ["groups"], ["show", "ID"], ["replay", "--all", "--yes"], ["discard", "--all", "--yes"])


@on_both_queue_types
@pytest.mark.parametrize("kind", ["letter", "stock"])
def test_a_second_reader_is_told_and_works_when_the_first_has_ended(cli: Cli, morgue: RabbitMorgue, kind: str) -> None:
    """One line, exit 1, whichever of the two queues of letters is held; never "no dead letters"."""
    letter_id = getattr(morgue, kind)(1)
    commands = [["dlq", *(letter_id if word == "ID" else word for word in command)] for command in READING]
    commands.append(["queues", "drain", "--to-stock", "--letters", "--all", "--yes"])
    before = morgue.dump()
    with closing(morgue.transport.dead_letters("default")) as first:
        next(first)
        for command in commands[: -1 if kind == "stock" else None]:
            result = cli(*command)
            assert (result.code, result.out.count("\n") <= 2) == (1, True), (command, result)
            *_, line = result.err.splitlines()
            assert "is being read by somebody else" in line
            assert "try again when that command has ended" in line
            assert "Is it running" not in line
            assert "no dead letters" not in result.err
    assert morgue.dump() == before
    for command in commands[:4]:
        assert cli(*command).code == 0


@on_both_queue_types
def test_letters_that_come_while_others_are_read_stay(cli: Cli, morgue: RabbitMorgue) -> None:
    """Behind those that were there: reading changes no order."""
    morgue.letter(0)
    with closing(morgue.transport.dead_letters("default")) as first:
        next(first)
        morgue.letter(1)
    morgue.letter(2)
    assert [letter["args"] for letter in cli.json("dlq", "list")] == [[0], [1], [2]]
    assert [headers["x-reliq-id"] for _, headers, _ in morgue.lying("default.dead")] == [
        letter["id"] for letter in cli.json("dlq", "list")
    ]


@on_both_queue_types
def test_a_reader_that_is_killed_loses_nothing(cli: Cli, morgue: RabbitMorgue) -> None:
    """kill -9 while it waits for whoever reads its output: the letters are back at once, in their order."""
    for number in range(60):
        morgue.letter(number, "x" * 2_000)
    before = morgue.dump()
    process = start(*morgue.options, "dlq", "list", "-o", "jsonl")
    assert process.stdout is not None
    process.stdout.readline()  # it holds them, and cannot print the rest: a pipe takes 64 KiB
    assert "is being read by somebody else" in cli("dlq", "count").err
    process.kill()
    assert end_of(process)[0] == -signal.SIGKILL
    eventually(lambda: cli("dlq", "count").out == "60\n", 10, 0.05, "the letters are back")
    assert morgue.dump() == before


@on_rabbitmq
@pytest.mark.parametrize(
    ("request_", "nth", "moment"),
    [(PUBLISH, 11, "before"), (PUBLISH, 11, "replied"), (ACK, 11, "before"), (ACK, 11, "after")],
    ids=["publish-before", "publish-confirmed", "ack-before", "ack-after"],
)
def test_a_replay_killed_half_way_and_repeated_runs_every_letter(
    cli: Cli, morgue: RabbitMorgue, fault_proxy: MakeProxy, request_: bytes, nth: int, moment: Any
) -> None:
    """kill -9 at the 11th of 20 letters. Then: nothing lost, at most that one twice."""
    for number in range(20):
        morgue.letter(number)
    proxy = fault_proxy(morgue.server)
    url = morgue.server.url(morgue.vhost, port=proxy.port)
    killed(proxy, request_, "dlq", "replay", "--queue", "default", "--yes", nth=nth, when=moment, url=url)
    eventually(lambda: cli("dlq", "count").code == 0, 10, 0.05, "the letters are back")
    moved, left = len(morgue.queued()), int(cli("dlq", "count").out)
    assert moved + left in (20, 21)
    assert 9 <= left <= 10
    result = cli.json("dlq", "replay", "--all", "--yes")
    assert result == {"matched": left, "done": left, "failed": 0}
    sent = [message["args"][0] for message in morgue.queued()]
    assert sorted(set(sent)) == list(range(20))  # lost 0
    assert len(sent) in (20, 21)  # twice: at most the one that was under way


@on_rabbitmq
def test_a_broker_that_goes_away_leaves_a_replay_partly_done(
    cli: Cli, morgue: RabbitMorgue, fault_proxy: MakeProxy
) -> None:
    """Exit 3, what was done is told, and how to go on."""
    for number in range(10):
        morgue.letter(number)
    proxy = fault_proxy(morgue.server)
    proxy.drop_requests(ACK, nth=5)
    cli.options = ("--url", morgue.server.url(morgue.vhost, port=proxy.port))
    result = cli("dlq", "replay", "--queue", "default", "--yes", "-o", "json")
    assert (result.code, result.json) == (3, {"matched": 10, "done": 4, "failed": 0})
    assert "run the same command again to go on" in result.err
    assert "Traceback" not in result.err
    cli.options = morgue.options
    assert cli.json("dlq", "replay", "--all", "--yes")["done"] == 6
    assert sorted({message["args"][0] for message in morgue.queued()}) == list(range(10))


@on_rabbitmq
def test_a_drain_killed_half_way_and_repeated_gives_every_letter_back(
    cli: Cli, morgue: RabbitMorgue, fault_proxy: MakeProxy
) -> None:
    """kill -9 while a step (200 letters) that is stored is being removed where it was: nothing lost. What of the step
    is then in both places comes twice, and is shown as one."""
    put = [morgue.letter(number) for number in range(250)]
    command = ["queues", "drain", "--to-stock", "--letters", "--queue", "default", "--yes"]
    proxy = fault_proxy(morgue.server)
    killed(proxy, ACK, *command, nth=1, url=morgue.server.url(morgue.vhost, port=proxy.port))
    assert len(morgue.lying("default.XQ")) == 200
    eventually(lambda: cli(*command).code == 0, 10, 0.05, "the letters are back")
    assert morgue.lying("default.dead") == []
    moved = [headers["x-reliq-id"] for _, headers, _ in morgue.lying("default.XQ")]
    assert set(moved) == set(put)  # lost 0
    assert len(moved) <= 450
    assert [letter["id"] for letter in cli.json("dlq", "list", "--limit", "0")] == put
