"""`reliq queues drain --to-stock` on RabbitMQ: delays stay and are told, what lost its queue and letters move."""

from __future__ import annotations

import re
from datetime import datetime, timedelta, timezone

import dramatiq
from dramatiq import Worker
from dramatiq.brokers.rabbitmq import RabbitmqBroker

from reliq.testing import eventually
from tests.cli.conftest import Cli
from tests.desk.morgues import on_rabbitmq
from tests.desk.rabbit_support import RabbitMorgue

pytestmark = on_rabbitmq

DRAIN = ("queues", "drain", "--to-stock")


def until(text: str) -> datetime:
    """The time that a drain tells."""
    found = re.search(r"until (\S+Z) at the latest", text)
    assert found, text
    return datetime.strptime(found[1], "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=timezone.utc)


def test_delays_stay_in_the_broker_and_it_is_said_until_when(cli: Cli, morgue: RabbitMorgue) -> None:
    """Nothing is moved: the ladder ends on the plain queue."""
    cli("send", "charge", "1", "--queue", "default")
    assert "no delays or retries wait in the broker" in cli(*DRAIN, "--queue", "default", "--yes").err
    cli("send", "charge", "2", "--queue", "default", "--delay", "60000")
    before = morgue.dump()
    result = cli(*DRAIN, "--all", "--yes", "-o", "json")
    assert (result.code, result.json) == (0, [{"queue": "default", "delays": 0, "letters": 0}])
    told = until(result.err) - datetime.now(timezone.utc)
    assert timedelta(seconds=45) < told < timedelta(seconds=140)  # at the latest: up to twice the longest one
    assert "7 days" not in result.err
    assert morgue.dump() == before


def test_what_waited_is_run_by_a_plain_worker_after_a_drain(cli: Cli, morgue: RabbitMorgue) -> None:
    """One delay is still on the ladder, one had lost its queue, one is a letter that is replayed from `.XQ`."""
    cli("send", "charge", "1", "--queue", "default", "--delay", "2000")
    morgue.unrouted(2, queue="mail")
    morgue.letter(3)
    assert cli(*DRAIN, "--letters", "--all", "--yes").code == 0
    assert cli.json("dlq", "replay", "--all", "--yes")["done"] == 1
    broker = RabbitmqBroker(url=morgue.url)
    ran: list[int] = []
    dramatiq.actor(broker=broker, actor_name="charge")(ran.append)
    broker.declare_queue("mail")
    worker = Worker(broker, worker_timeout=50, worker_threads=2)
    worker.start()
    try:
        eventually(lambda: sorted(ran) == [1, 2, 3], 20, 0.05, "all three run")
    finally:
        worker.stop()
        broker.close()
    assert morgue.dump() == {}


def test_what_lost_its_queue_goes_back_to_it(cli: Cli, morgue: RabbitMorgue) -> None:
    """A queue that is named takes its own; --all all that is caught, also for queues that are in no list any more."""
    morgue.unrouted(1, queue="mail")
    morgue.unrouted(1, queue="gone")
    morgue.transport.declared.queue("mail")
    assert [row["queue"] for row in cli.json("queues", "list")] == ["default", "mail", "reliq.unrouted.q"]
    before = morgue.dump()
    dry = cli(*DRAIN, "--all", "--dry-run")
    assert "queue 'reliq.unrouted.q': 2 messages whose queue is gone go back to it" in dry.err
    assert morgue.dump() == before
    assert cli.json(*DRAIN, "--queue", "mail", "--yes") == [{"queue": "mail", "delays": 1, "letters": 0}]
    assert (len(morgue.queued("mail")), len(morgue.lying("reliq.unrouted.q"))) == (1, 1)
    assert cli.json(*DRAIN, "--all", "--yes")[-1] == {"queue": "reliq.unrouted.q", "delays": 1, "letters": 0}
    assert (len(morgue.queued("mail")), len(morgue.queued("gone")), morgue.lying("reliq.unrouted.q")) == (1, 1, [])


def test_letters_move_after_the_warning_of_their_expiry(cli: Cli, morgue: RabbitMorgue) -> None:
    """Byte for byte and in their order; from then on they are plain Dramatiq's, and are read and replayed as such."""
    put = [morgue.letter(1), morgue.raw(b"junk"), morgue.letter(2)]
    bodies = [body for _, _, body in morgue.lying("default.dead")]
    before = morgue.dump()
    for arguments, answer, code in (([], None, 5), ([], "n\n", 5), (["--dry-run"], None, 0)):
        result = cli(*DRAIN, "--letters", "--all", *arguments, answer=answer)
        assert result.code == code
        assert "queue 'default': 3 dead letters" in result.err
    assert morgue.dump() == before
    result = cli(*DRAIN, "--letters", "--all", "-o", "json", answer="y\n")
    assert (result.code, result.json) == (0, [{"queue": "default", "delays": 0, "letters": 3}])
    assert "keep a letter for 7 days from now (x-message-ttl); then RabbitMQ deletes it" in result.err
    assert "stay with reliq" not in result.err
    assert [body for _, _, body in morgue.lying("default.XQ")] == bodies
    assert morgue.lying("default.dead") == []
    assert [letter["id"] for letter in cli.json("dlq", "list")] == put
    assert cli.json("dlq", "groups")[0]["count"] == 3
    assert cli(*DRAIN, "--letters", "--all", "--yes", "-o", "json").json[0]["letters"] == 0
    replayed = cli("dlq", "replay", "--all", "--yes", "-o", "json")
    assert (replayed.code, replayed.json) == (3, {"matched": 3, "done": 2, "failed": 1})
