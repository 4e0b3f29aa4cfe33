"""docs/rabbitmq.md says what is so: names, arguments, rights, connections, limits, each asked of a real RabbitMQ."""

from __future__ import annotations

import re
import shlex
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import dramatiq
import pytest
from dramatiq import Worker
from dramatiq.brokers.rabbitmq import RabbitmqBroker
from dramatiq.errors import ConnectionClosed

import reliq
from reliq.testing import RabbitmqApi, RabbitmqServer, WorkerGroup, eventually
from reliq.testing.plugin import MakeWorkers
from reliq.testing.rabbitmq_node import RabbitmqNode
from reliq.wiring import boot_line, transport_of
from tests.docs.pages import ROOT, blocks, code, section, table
from tests.docs.runner import USUAL_AMQP_URL

PAGE = ROOT / "docs/rabbitmq.md"
#: How much longer things may take than they do on an idle machine.
PATIENCE_MS = 30_000


class App:
    """An application with its broker, its worker in this process, and what it has run."""

    def __init__(self, url: str | list[str], *queues: str, queue_type: str | None = None) -> None:
        self.broker = RabbitmqBroker(url=url)
        # A loaded machine may take longer than the default to declare all of a fresh vhost.
        delivery = reliq.Delivery(send_timeout=20_000, queue_type=queue_type)
        reliq.install(self.broker, reliq.Retries(min_backoff=100, max_backoff=200), delivery)
        self.transport: Any = transport_of(self.broker)
        self.ran: list[Any] = []
        self.actors = {queue: self._actor(queue) for queue in queues or ("default",)}

    def _actor(self, queue: str) -> Any:
        def work(what: str) -> None:
            self.ran.append(what)
            if what.startswith("bad"):
                raise ValueError(what)

        return dramatiq.actor(broker=self.broker, actor_name=f"work-{queue}", queue_name=queue, max_retries=1)(work)

    @contextmanager
    def working(self) -> Iterator[None]:
        worker = Worker(self.broker, worker_threads=2, worker_timeout=50)
        worker.start()
        try:
            yield
        finally:
            worker.stop(timeout=10_000)

    def join(self) -> None:
        for queue in self.actors:
            self.broker.join(queue, timeout=PATIENCE_MS)

    def letters(self, queue: str = "default") -> list[dict[str, Any]]:
        return [letter.as_dict() for letter in self.transport.dead_letters(queue)]


@pytest.fixture
def app(shared_rabbitmq: RabbitmqApi, vhost: str) -> Iterator[Callable[..., App]]:
    """Makes applications, by default in the test's vhost; all closed afterwards."""
    made: list[App] = []

    def make(*queues: str, url: str | list[str] | None = None, **options: Any) -> App:
        made.append(App(url or shared_rabbitmq.url(vhost), *queues, **options))
        return made[-1]

    yield make
    for each in made:
        each.transport.disconnect()


def command(words: str) -> list[str]:
    """The arguments of the one command of the page that begins so."""
    texts = [block.text.replace("\\\n", " ") for block in blocks(PAGE) if block.language == "sh"]
    (line,) = [line for text in texts for line in text.splitlines() if words in line]
    return shlex.split(line)


# -- what is declared ------------------------------------------------------------------------------------------------


def listed() -> set[str]:
    """The names in the page's table, each range in full."""
    names: set[str] = set()
    for row in table(section(PAGE, "What is declared"), "Name"):
        found = code(row["Name"])
        if " to " in row["Name"]:
            names |= {f"{found[0][:-2]}{number:02d}" for number in range(int(found[1][-2:]) + 1)}
        else:
            names |= set(found)
    return names


def exchanges(server: RabbitmqApi, vhost: str) -> dict[str, dict[str, Any]]:
    """Those that RabbitMQ does not have by itself."""
    found = server.api("GET", "exchanges", vhost)
    return {each["name"]: each for each in found if each["name"] and not each["name"].startswith("amq.")}


def test_a_worker_declares_what_the_page_lists_and_nothing_else(
    shared_rabbitmq: RabbitmqApi, vhost: str, app: Callable[..., App]
) -> None:
    """All of it durable; the queues of plain Dramatiq with its arguments, `.dead` without a limit."""
    with app().working():
        eventually(lambda: "default.dead" in {q["name"] for q in shared_rabbitmq.queues(vhost)}, 30, what="the queues")
    queues = {queue["name"]: queue for queue in shared_rabbitmq.queues(vhost)}
    own = exchanges(shared_rabbitmq, vhost)
    assert set(queues) | set(own) == listed()
    assert all(each["durable"] for each in [*queues.values(), *own.values()])
    stock = RabbitmqBroker(url="amqp://")
    # RabbitMQ 4 says of each classic queue that it is one.
    classic = {"x-queue-type": "classic"}
    assert queues["default"]["arguments"] | classic == stock._build_queue_arguments("default") | classic
    assert queues["default.XQ"]["arguments"] | classic == {"x-message-ttl": 604_800_000} | classic
    assert queues["default.dead"]["arguments"] == classic
    kinds = {name: each["type"] for name, each in own.items()}
    assert {kinds.pop("reliq.unrouted"), kinds.pop("reliq.unrouted.q")} == {"fanout"}
    assert set(kinds.values()) == {"topic"}


def test_the_boot_line_of_the_page_is_the_real_one(shared_rabbitmq: RabbitmqApi, vhost: str) -> None:
    broker = reliq.install(RabbitmqBroker(url=shared_rabbitmq.url(vhost)))
    dramatiq.actor(broker=broker, actor_name="one")(lambda: None)
    line = boot_line(broker)
    transport = transport_of(broker)
    assert transport is not None
    transport.disconnect()
    shown = [text for block in blocks(PAGE) if (text := block.text.strip()).startswith("reliq 0")]
    here = f"amqp://{shared_rabbitmq.host}:{shared_rabbitmq.port}/{vhost}"
    assert shown == [line.replace(here, "amqp://localhost:5672/")]


def test_a_delay_waits_ready_on_the_ladder_and_unacked_nowhere(
    shared_rabbitmq: RabbitmqApi, vhost: str, app: Callable[..., App]
) -> None:
    """As the management UI shows it, while a worker runs: 20 in some 12 days, by the bits of their delay."""
    here = app()
    with here.working():
        for _ in range(20):
            here.actors["default"].send_with_options(args=("later",), delay=(1 << 22) * 250)

        def waiting() -> dict[str, tuple[int, int]]:
            found = shared_rabbitmq.queues(vhost)
            counts = {q["name"]: (q["messages_ready"], q["messages_unacknowledged"]) for q in found}
            return {name: count for name, count in counts.items() if any(count)}

        eventually(lambda: waiting() == {"reliq.delay.v1q.22": (20, 0)}, 30, what="20 on one step")


# -- rights ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def user(shared_rabbitmq: RabbitmqApi, vhost: str) -> Iterator[Callable[[list[str]], str]]:
    """Gives this test's user rights: configure, write, read. Returns the URL."""
    name = vhost.replace("test", "user")

    def give(rights: list[str]) -> str:
        shared_rabbitmq.add_user(name, "secret", vhost, *rights)
        return shared_rabbitmq.url(vhost, user=f"{name}:secret")

    yield give
    shared_rabbitmq.api("DELETE", "users", name)


def test_the_rights_of_the_page_are_all_that_is_needed(
    app: Callable[..., App], user: Callable[[list[str]], str]
) -> None:
    """Sends, delays, retries, letters, a replay, a drain and a leave, with the page's three expressions."""
    rights = command("set_permissions")[-3:]
    here = app("emails", "reports", url=user(rights))
    for actor in here.actors.values():
        actor.send("good")
        actor.send("bad")
        actor.send_with_options(args=("delayed",), delay=300)
    with here.working():
        eventually(lambda: len(here.ran) >= 8, PATIENCE_MS / 1000, what="all runs")
        here.join()
    assert sorted(here.ran) == ["bad"] * 4 + ["delayed"] * 2 + ["good"] * 2
    assert [len(here.letters(queue)) for queue in ("emails", "reports")] == [1, 1]
    (letter,) = here.transport.dead_letters("emails")
    assert here.transport.replay(letter, here.transport.outgoing(letter.message))
    assert sum(here.transport.to_stock("reports", letters=True)) == 1
    assert here.transport.depth("reports").dead == 1
    assert here.transport.check()[0].verdict == "ok"
    assert here.transport.declared.troubles == {}


@pytest.mark.parametrize("without", [r"reliq\..*|", r"(\.(DQ|XQ|dead))?", r"amq\.default|"])
def test_less_than_the_rights_of_the_page_is_too_little(
    app: Callable[..., App], user: Callable[[list[str]], str], without: str
) -> None:
    """Each part of the expressions is needed by a send with a delay."""
    rights = command("set_permissions")[-3:]
    assert any(without in expression for expression in rights)
    here = app("emails", "reports", url=user([expression.replace(without, "") for expression in rights]))
    with pytest.raises(ConnectionClosed, match="rights"):
        here.actors["emails"].send_with_options(args=("delayed",), delay=300)


# -- connections -------------------------------------------------------------------------------------------------------

PROCESS = """
import os
import dramatiq
from dramatiq.brokers.rabbitmq import RabbitmqBroker
import reliq

broker = RabbitmqBroker(url=os.environ["URL"])
if os.environ["SIDE"] == "reliq":
    reliq.install(broker)
dramatiq.set_broker(broker)

@dramatiq.actor(max_retries=1, min_backoff=100)
def one(n):
    raise ValueError(n)

@dramatiq.actor(queue_name="other")
def two(): ...
"""


@pytest.mark.parametrize(("side", "connections"), [("reliq", 2), ("plain", 8 + 8)])
def test_a_worker_process_holds_so_many_connections(
    shared_rabbitmq: RabbitmqApi,
    vhost: str,
    worker_group: MakeWorkers,
    tmp_path: Path,
    side: str,
    connections: int,
) -> None:
    """2 queues, 8 threads that all retry: with reliq 2 with the lease for a heartbeat; plain 2 for each of `default`,
    `default.DQ`, `other` and `other.DQ`, and 1 a thread."""
    (tmp_path / "process.py").write_text(PROCESS)
    environment = {"URL": shared_rabbitmq.url(vhost), "SIDE": side}
    group: WorkerGroup = worker_group("process", threads=8, cwd=tmp_path, env=environment)
    sender = RabbitmqBroker(url=shared_rabbitmq.url(vhost), confirm_delivery=True)
    for number in range(200):
        sender.enqueue(dramatiq.Message("default", "one", (number,), {}, {}))
    sender.close()

    def held() -> list[dict[str, Any]]:
        found = shared_rabbitmq.api("GET", "vhosts", vhost, "connections")
        return [each for each in found if each.get("state") == "running"]

    eventually(lambda: len(held()) == connections, 30, what=f"{connections} connections")
    if side == "reliq":
        names = sorted(each["client_properties"]["connection_name"] for each in held())
        assert [name.rpartition(" ")[0] for name in names] == ["reliq consumer", "reliq publisher"]
        assert {name.rpartition(":")[2] for name in names} == {str(group.worker_pid)}
        assert {each["timeout"] for each in held()} == {10}


def test_hosts_are_tried_in_turn(shared_rabbitmq: RabbitmqApi, vhost: str, app: Callable[..., App]) -> None:
    """The first of two is not there: a task is sent and run."""
    here = app(url=[f"amqp://guest:guest@127.0.0.1:1/{vhost}", shared_rabbitmq.url(vhost)])
    with here.working():
        here.actors["default"].send("good")
        eventually(lambda: here.ran == ["good"], 30, what="the task")


# -- quorum queues, policies -------------------------------------------------------------------------------------------


def quorum_queues(server: RabbitmqApi, vhost: str) -> set[str]:
    """Their names; the others are classic."""
    return {queue["name"] for queue in server.queues(vhost) if queue["arguments"].get("x-queue-type") == "quorum"}


def hit_by(server: RabbitmqApi, vhost: str) -> set[str]:
    """The queues that a policy applies to."""
    return {queue["name"] for queue in server.queues(vhost) if queue.get("policy")}


def works(here: App) -> None:
    """Does a retry, a letter and a delay."""
    here.actors["default"].send("bad")
    here.actors["default"].send_with_options(args=("delayed",), delay=300)
    with here.working():
        eventually(lambda: len(here.ran) == 3, PATIENCE_MS / 1000, what="three runs")
        here.join()
    assert sorted(here.ran) == ["bad", "bad", "delayed"]
    assert [letter["reason"] for letter in here.letters()] == ["retries_exhausted"]


@pytest.fixture
def quorum_vhost(shared_rabbitmq: RabbitmqApi, vhost: str) -> Iterator[str]:
    """A vhost whose default type is quorum, made as the page says where that is our own node."""
    name = f"{vhost}-quorum"
    (made,) = [words for words in code(section(PAGE, "Quorum queues")) if words.startswith("rabbitmqctl add_vhost")]
    if isinstance(shared_rabbitmq, RabbitmqNode):
        shared_rabbitmq.ctl(*[word.replace("shop", name) for word in shlex.split(made)[1:]])
        shared_rabbitmq.ctl("set_permissions", "-p", name, "guest", ".*", ".*", ".*")
    else:
        shared_rabbitmq.add_vhost(name, "quorum")
    yield name
    shared_rabbitmq.delete_vhost(name)


def test_where_queues_are_quorum_queues_letters_are_too(
    shared_rabbitmq: RabbitmqApi, quorum_vhost: str, app: Callable[..., App]
) -> None:
    """Steps have the arguments that the page names."""
    here = app(url=shared_rabbitmq.url(quorum_vhost))
    works(here)
    ladder = {f"reliq.delay.v1q.{number:02d}" for number in range(24)}
    expected = {"default", "default.DQ", "default.XQ", "default.dead", "reliq.unrouted.q", *ladder}
    queues = {queue["name"]: queue for queue in shared_rabbitmq.queues(quorum_vhost)}
    assert quorum_queues(shared_rabbitmq, quorum_vhost) == expected
    # The catcher of `reliq.dlx`, which is one for all.
    assert queues.keys() - expected == {"reliq.unrouted"}
    step = queues["reliq.delay.v1q.00"]["arguments"]
    assert (step["x-dead-letter-strategy"], step["x-overflow"]) == ("at-least-once", "reject-publish")
    here.transport.disconnect()


@pytest.mark.parametrize(
    ("queue_type", "quorum", "classic"),
    [
        (None, {"reliq.delay.v1q.05"}, {"default.dead"}),
        ("quorum", {"reliq.delay.v1q.05", "default.dead"}, set()),
        ("classic", set(), {"reliq.delay.v1.05", "default.dead"}),
    ],
)
def test_queue_type_says_so_for_what_reliq_declares(
    shared_rabbitmq: RabbitmqApi,
    vhost: str,
    app: Callable[..., App],
    queue_type: str | None,
    quorum: set[str],
    classic: set[str],
) -> None:
    """The queues of plain Dramatiq are classic ones in each case, and there is one ladder."""
    works(app(queue_type=queue_type))
    found = quorum_queues(shared_rabbitmq, vhost)
    others = {queue["name"] for queue in shared_rabbitmq.queues(vhost)} - found
    assert quorum <= found
    assert found.isdisjoint(classic)
    assert classic | {"default", "default.DQ", "default.XQ"} <= others
    assert {"reliq.delay.v1.05", "reliq.delay.v1q.05"} & (found | others) <= quorum | classic


def test_the_policy_of_the_page_spares_what_is_reliqs(
    shared_rabbitmq: RabbitmqApi, vhost: str, app: Callable[..., App]
) -> None:
    """With its pattern a time to live hits `default`, and neither letters nor delays; where one matches `.dead`, the
    next letter is gone at once."""
    pattern = command("set_policy")[5]
    here = app()
    shared_rabbitmq.set_policy(vhost, "ttl", pattern, {"message-ttl": 86_400_000})
    works(here)
    stock = {"default", "default.DQ", "default.XQ"}
    eventually(lambda: hit_by(shared_rabbitmq, vhost) == stock, 30, what="the policy to apply")
    before = here.letters()
    shared_rabbitmq.set_policy(vhost, "ttl", r"\.dead$", {"message-ttl": 1})
    eventually(lambda: hit_by(shared_rabbitmq, vhost) == {"default.dead"}, 30, what="the policy to apply")
    here.actors["default"].send("bad")
    with here.working():
        eventually(lambda: len(here.ran) == 5, PATIENCE_MS / 1000, what="two more runs")
        here.join()
    assert here.letters() == before


# -- limits of the server ----------------------------------------------------------------------------------------------

LIMIT = 200_000


def test_limits_of_a_strict_server_are_met_as_the_page_says(rabbitmq_binary: str, app: Callable[..., App]) -> None:
    """A node that takes no messages beyond `LIMIT` and waits 3 s for an ack; one boot for all of it."""
    config = {"consumer_timeout": "3000", "max_message_size": str(LIMIT)}
    with RabbitmqServer(config=config, binary=rabbitmq_binary) as server:
        here = app(url=server.url())
        runs: list[str] = []
        # Before the first worker: Dramatiq lets workers that have ended consume what is declared later.
        task = sleeper(here, runs)
        too_large_to_send(here)
        too_large_to_retry(here)
        longer_than_the_timeout(here, server, task, runs)
        here.transport.disconnect()


def sleeper(here: App, runs: list[str]) -> Any:
    """An actor on the queue `slow` that notes when it begins and ends."""

    def sleep(seconds: int) -> None:
        runs.append("start")
        time.sleep(seconds)  # sleep-ok: a task of this length is what is tested
        runs.append("end")

    return dramatiq.actor(broker=here.broker, actor_name="sleep", queue_name="slow")(sleep)


def too_large_to_send(here: App) -> None:
    """It is refused with the broker's words, and its neighbours are run."""
    here.actors["default"].send("good")
    with pytest.raises(ConnectionClosed, match=f"not stored.*larger than configured max size {LIMIT}"):
        here.actors["default"].send("x" * LIMIT)
    here.actors["default"].send("good")
    with here.working():
        eventually(lambda: here.ran == ["good", "good"], 30, what="both neighbours")
        here.join()


def too_large_to_retry(here: App) -> None:
    """What fails with so many bytes to spare: with room for the counts it is retried, without any it is a letter."""
    bare = len(here.transport.outgoing(here.actors["default"].message("bad")).body)
    for room, reason in ((1_000, "retries_exhausted"), (0, "too_large")):
        here.actors["default"].send("bad" + "x" * (LIMIT - bare - room))
        with here.working():
            eventually(lambda: here.letters() != [], 30, what="the letter")
        (letter,) = here.transport.dead_letters("default")
        assert letter.reason == reason
        assert here.transport.discard(letter)


def longer_than_the_timeout(here: App, server: RabbitmqServer, task: Any, runs: list[str]) -> None:
    """A delay of 6 s is not concerned: run once, at its time. A task of 7 s, with nobody else to get it, is run once
    though its channel is closed meanwhile, and nothing is left of it."""
    here.ran.clear()
    with here.working():
        sent_at = time.monotonic()
        here.actors["default"].send_with_options(args=("delayed",), delay=6_000)
        eventually(lambda: here.ran == ["delayed"], 30, what="the delayed task")
        assert time.monotonic() - sent_at >= 6
        assert "timed out" not in server.log()
        task.send(7)
        eventually(lambda: "end" in runs, 40, what="the end of the task")
        here.broker.join("slow", timeout=PATIENCE_MS)
        here.join()
    assert (here.ran, runs) == (["delayed"], ["start", "end"])
    assert "timed out" in server.log()
    assert here.letters() == here.letters("slow") == []


# -- what the page and the tests of it are about -----------------------------------------------------------------------


def test_the_page_shows_the_address_that_is_replaced() -> None:
    assert any(USUAL_AMQP_URL in block.text for block in blocks(PAGE))
    assert re.search(r"at-least-once", PAGE.read_text(encoding="utf-8"))
