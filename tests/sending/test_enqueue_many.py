"""`enqueue_many`: many messages in few round trips, each sent as a single one is; what cannot be sent is told and keeps
no other back."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import dramatiq
import pytest
from dramatiq.broker import Broker
from dramatiq.brokers.rabbitmq import RabbitmqBroker
from dramatiq.brokers.redis import RedisBroker
from dramatiq.brokers.stub import StubBroker
from dramatiq.errors import ConnectionClosed
from dramatiq.middleware import Middleware, SkipMessage

import reliq
from reliq.errors import EnqueueErrors
from reliq.sending.batches import MOST_AT_A_TIME, enqueue_many
from reliq.testing import RabbitmqApi
from reliq.testing.plugin import MakeProxy
from reliq.wiring import transport_of
from tests.faults.stage import SLACK
from tests.transport.promises.sending import Ear, Refuser
from tests.transport.rig import Stage, as_handed_out, staged
from tests.transport.stub_maker import StubMaker

Make = Callable[..., Stage]


def nothing(*args: Any) -> None:
    """A task that does nothing."""


# -- what is sent ------------------------------------------------------------------------------------------------------


def test_messages_run_in_the_order_they_were_given_in(make: Make) -> None:
    """250 sent in one call, 250 done, in order, each once."""
    stage, ran = make(), []
    actor = dramatiq.actor(ran.append, actor_name="work")
    assert len(enqueue_many([actor.message(number) for number in range(250)])) == 250
    stage.worker(threads=1)
    stage.broker.join("default", timeout=20_000)
    assert as_handed_out(ran) == list(range(250))
    assert stage.counts() == (0, 0, 0, 0)


def test_it_returns_the_messages_as_they_were_sent(make: Make) -> None:
    """As `enqueue` does for one: what lies in the queue, in order; delayed ones are not what was given."""
    stage = make()
    actor = dramatiq.actor(nothing, actor_name="work")
    given = [actor.message(number) for number in range(10)]
    sent = enqueue_many(given)
    assert [dramatiq.Message.decode(body) for body in stage.maker.ready(stage.broker, "default")] == sent
    assert [message.message_id for message in sent] == [message.message_id for message in given]
    single = stage.broker.enqueue(actor.message(10))
    assert [set(message.options) for message in sent] == [set(single.options)] * 10
    one_later, (many_later,) = stage.broker.enqueue(given[0], delay=60_000), enqueue_many([given[0]], delay=60_000)
    assert (many_later.queue_name, set(many_later.options)) == (one_later.queue_name, set(one_later.options))


def test_an_empty_list_is_sent_at_once(make: Make) -> None:
    """Nothing is stored, nothing returned, no error; nor for a generator of nothing."""
    stage = make()
    stage.broker.declare_queue("default")
    assert (enqueue_many([]), enqueue_many(iter(()))) == ([], [])
    assert stage.counts() == (0, 0, 0, 0)


def test_messages_go_each_to_its_own_queue(make: Make) -> None:
    """60 for three queues by turns: 20 in each, in order."""
    stage = make()
    actors = [dramatiq.actor(nothing, actor_name=f"work-{name}", queue_name=name) for name in "abc"]
    enqueue_many([actors[number % 3].message(number) for number in range(60)])
    for first, name in enumerate("abc"):
        bodies = stage.maker.ready(stage.broker, name)
        assert [dramatiq.Message.decode(body).args[0] for body in bodies] == list(range(first, 60, 3))


def test_a_generator_longer_than_what_is_held_at_a_time_is_sent_whole(make: Make) -> None:
    """2,500 made one by one: all sent, in order; never are more than 1,000 made that are not sent."""
    stage, made, ahead = make(), [], []
    actor = dramatiq.actor(nothing, actor_name="work")
    publish_many = stage.transport.publish_many

    def counted(items: Any) -> Any:
        ahead.append(len(items))
        return publish_many(items)

    def messages() -> Iterator[dramatiq.Message[Any]]:
        for number in range(2_500):
            made.append(number)
            assert len(made) - sum(ahead) <= MOST_AT_A_TIME
            yield actor.message(number)

    stage.transport.publish_many = counted  # type: ignore[method-assign]
    sent = enqueue_many(messages())
    assert [message.args[0] for message in sent] == list(range(2_500))
    assert ahead == [1_000, 1_000, 500]
    assert stage.counts() == (2_500, 0, 0, 0)
    ready = [dramatiq.Message.decode(body).args[0] for body in stage.maker.ready(stage.broker, "default")]
    assert ready == list(range(2_500))


@pytest.mark.parametrize("delay", [None, 60_000])
def test_hooks_hear_once_of_each_message_with_its_delay(make: Make, delay: Any) -> None:
    """before_enqueue and after_enqueue, once each, in order, delay as given."""
    ear = Ear()
    make(more=[ear])
    actor = dramatiq.actor(nothing, actor_name="work")
    sent = enqueue_many([actor.message(number) for number in range(120)], delay=delay)
    assert ear.before == ear.after == [(message.message_id, delay) for message in sent]
    assert len(sent) == 120


def test_delayed_messages_are_never_early_and_all_run(make: Make) -> None:
    """40 delayed 300 ms: all are delayed when it returns, 40 done, 0 early."""
    stage, late = make(), []
    actor = dramatiq.actor(lambda due: late.append(time.time() - due), actor_name="work")
    due = time.time() + 0.3
    enqueue_many([actor.message(due) for _ in range(40)], delay=300)
    assert stage.maker.ready(stage.broker, "default") == []
    stage.worker(threads=4)
    stage.broker.join("default", timeout=20_000)
    assert len(late) == 40
    assert min(late) >= 0
    assert stage.counts() == (0, 0, 0, 0)


def test_far_delays_stay_where_they_are(make: Make) -> None:
    """150 delayed an hour: 150 delayed, none ready, none in a worker's hands."""
    stage = make()
    actor = dramatiq.actor(nothing, actor_name="work")
    enqueue_many([actor.message(number) for number in range(150)], delay=3_600_000)
    stage.worker()
    stage.wait_for(0, 0, 150, 0)


# -- what cannot be sent -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("delay", [None, 60_000])
def test_what_cannot_be_sent_is_told_after_all_others_are_sent(make: Make, delay: int | None) -> None:
    """10 of which number 3 cannot be encoded and number 7 is refused by a hook: 8 sent, in order, and heard of; the
    error has both with their numbers, and its text names the count, the actor and the queue of the first."""
    ear = Ear()
    stage = make(more=[ear, Refuser(SkipMessage("not today"))])
    actor = dramatiq.actor(nothing, actor_name="work")
    refused = dramatiq.actor(nothing, actor_name="refused")
    messages = [actor.message(number) for number in range(10)]
    messages[3] = actor.message(object())
    messages[7] = refused.message(7)
    with pytest.raises(EnqueueErrors) as caught:
        enqueue_many(messages, delay=delay)
    error = caught.value
    assert [message.args[0] for message in error.sent] == [0, 1, 2, 4, 5, 6, 8, 9]
    assert [(index, message.message_id, type(why)) for index, message, why in error.failed] == [
        (3, messages[3].message_id, TypeError),
        (7, messages[7].message_id, SkipMessage),
    ]
    assert str(error).startswith(
        "2 of 10 messages were not sent; the first is number 3 (actor 'work', queue 'default'): TypeError: "
    )
    assert str(error).endswith("See .failed for each, .sent for the rest.")
    assert [message_id for message_id, _ in ear.after] == [message.message_id for message in error.sent]
    assert stage.counts() == ((8, 0, 0, 0) if delay is None else (0, 0, 8, 0))


def test_numbers_count_from_the_first_message_of_the_call(make: Make) -> None:
    """One of 1,500 cannot be encoded, beyond the first 1,000: its number is 1,200, and 1,499 are sent."""
    stage = make()
    actor = dramatiq.actor(nothing, actor_name="work")
    with pytest.raises(EnqueueErrors, match="1 of 1500 messages were not sent; the first is number 1200 ") as caught:
        enqueue_many(actor.message(object() if number == 1_200 else number) for number in range(1_500))
    assert [index for index, _, _ in caught.value.failed] == [1_200]
    assert [message.args[0] for message in caught.value.sent] == [number for number in range(1_500) if number != 1_200]
    assert stage.counts() == (1_499, 0, 0, 0)


@pytest.mark.parametrize("delay", [float("nan"), "5", True])
def test_a_delay_that_is_no_number_of_ms_is_refused_for_each(make: Make, delay: Any) -> None:
    """3 of 3 not sent, each with an OptionError that names the actor."""
    stage = make()
    actor = dramatiq.actor(nothing, actor_name="work")
    with pytest.raises(EnqueueErrors, match="3 of 3 messages were not sent.*pass milliseconds") as caught:
        enqueue_many([actor.message(number) for number in range(3)], delay=delay)
    assert [type(error) for _, _, error in caught.value.failed] == [reliq.OptionError] * 3
    assert stage.counts() == (0, 0, 0, 0)


def test_what_is_no_message_is_refused_before_anything_is_sent(make: Make) -> None:
    """TypeError, telling what came and what to do, for an actor's arguments, a pipeline, a body."""
    stage = make()
    actor = dramatiq.actor(nothing, actor_name="work")
    wrongs = [(1, "int"), (actor.message() | actor.message(), "pipeline"), (actor.message().encode(), "bytes")]
    for wrong, name in wrongs:
        with pytest.raises(TypeError, match=rf"takes messages, got {name}; make them with actor.message\(...\)"):
            enqueue_many([actor.message(0), wrong])  # type: ignore[list-item]
    assert stage.counts() == (0, 0, 0, 0)


def test_a_broker_without_reliq_is_told_to_install_it() -> None:
    """WiringError that names the class and `reliq.install`; given, or as the global one."""
    broker = StubBroker()
    dramatiq.set_broker(broker)
    actor = dramatiq.actor(nothing, actor_name="work")
    for given in (broker, None):
        with pytest.raises(reliq.WiringError, match=r"not installed on StubBroker; call reliq\.install\(broker\)"):
            enqueue_many([actor.message()], broker=given)
    assert broker.queues["default"].qsize() == 0


def test_errors_survive_being_sent_between_processes() -> None:
    """As text and arguments: what a process pool or a test runner makes of an exception."""
    message = dramatiq.Message("q", "work", (), {}, {})
    error = EnqueueErrors([message], [(1, message, ValueError("no"))])
    copied = type(error)(*error.args)
    assert (str(copied), copied.sent, copied.failed) == (str(error), error.sent, error.failed)
    assert str(error).startswith("1 of 2 messages were not sent; the first is number 1 (actor 'work', queue 'q'): ")


def test_a_queue_nobody_declared_keeps_no_other_back() -> None:
    """In memory, where queues must be declared: 1 of 3 fails."""
    with staged(StubMaker()) as make:
        stage = make()
        actor = dramatiq.actor(nothing, actor_name="work")
        messages = [actor.message(0), dramatiq.Message("nowhere", "work", (1,), {}, {}), actor.message(2)]
        with pytest.raises(EnqueueErrors, match="1 of 3.*number 1.*queue 'nowhere'.*QueueNotFound"):
            enqueue_many(messages)
        assert stage.counts() == (2, 0, 0, 0)


# -- which broker ------------------------------------------------------------------------------------------------------


def test_inside_a_task_it_sends_by_the_broker_that_runs_it(make: Make) -> None:
    """Though the global broker is another, which has reliq too; one that is given goes before both."""
    stage = make()
    told = dramatiq.actor(nothing, actor_name="told", queue_name="told")
    other, given = (StubMaker().build(StubBroker, []) for _ in range(2))
    for broker in (other, given):
        reliq.install(broker)
        broker.declare_queue("told")

    @dramatiq.actor
    def work() -> None:
        enqueue_many([told.message(number) for number in range(3)])
        enqueue_many([told.message(3)], broker=given)

    work.send()
    dramatiq.set_broker(other)
    stage.hand().run()
    enqueue_many([told.message(4), told.message(5)])
    assert stage.counts("told") == (3, 0, 0, 0)
    assert [broker.queues["told"].qsize() for broker in (given, other)] == [1, 2]


def test_what_a_task_sends_leaves_at_once(make: Make) -> None:
    """It is there before the task ends, and stays though it fails."""
    stage, seen = make(), []
    told = dramatiq.actor(nothing, actor_name="told", queue_name="told")

    @dramatiq.actor(min_backoff=60_000, max_backoff=60_000)
    def work() -> None:
        enqueue_many([told.message(number) for number in range(5)])
        seen.append(stage.counts("told"))
        raise ValueError("after sending")

    work.send()
    stage.hand().run()
    assert (seen, stage.counts("told"), stage.counts()) == ([(5, 0, 0, 0)], (5, 0, 0, 0), (0, 0, 1, 0))


# -- while a message ends ----------------------------------------------------------------------------------------------


class ManySender(Middleware):
    """Sends several messages whenever a run of another actor has ended."""

    def __init__(self, *numbers: Any) -> None:
        self.numbers = numbers

    def after_process_message(self, broker: Any, message: Any, *, result: Any = None, exception: Any = None) -> None:
        if message.actor_name != "told":
            enqueue_many([broker.get_actor("told").message(number) for number in self.numbers], broker=broker)


def ending_with(make: Make, *numbers: Any, error: BaseException | None = None) -> tuple[Stage, Ear]:
    """A stage whose `work` ends as it is told to, with such sends; one message of it is sent."""
    ear = Ear()
    stage = make(more=[ear, ManySender(*numbers)])
    dramatiq.actor(nothing, actor_name="told", queue_name="told")

    def work() -> None:
        if error is not None:
            raise error

    dramatiq.actor(work, actor_name="work").send()
    ear.before.clear()
    ear.after.clear()
    return stage, ear


def test_what_is_sent_while_a_message_ends_is_stored_in_the_step_that_ends_it(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """3 of a hook: not there before the settle, all there after it in order, heard of once each."""
    stage, ear = ending_with(make, 1, 2, 3)
    settle, seen = stage.transport.settle, []

    def watched(settlement: Any) -> bool:
        seen.append((stage.counts("told"), len(settlement.store), list(ear.after)))
        return settle(settlement)

    monkeypatch.setattr(stage.transport, "settle", watched)
    stage.hand().run()
    assert seen == [((0, 0, 0, 0), 3, [])]
    assert (stage.counts(), stage.counts("told")) == ((0, 0, 0, 0), (3, 0, 0, 0))
    ready = [dramatiq.Message.decode(body).args for body in stage.maker.ready(stage.broker, "told")]
    assert ready == [(1,), (2,), (3,)]
    assert len(ear.before) == 3
    assert ear.before == ear.after


def test_what_was_sent_goes_with_a_run_that_does_not_count(make: Make) -> None:
    """Deferred: nothing of the 3 is stored."""
    stage, _ = ending_with(make, 1, 2, 3, error=reliq.Defer(delay=60_000))
    stage.hand().run()
    assert (stage.counts(), stage.counts("told")) == ((0, 0, 1, 0), (0, 0, 0, 0))


def test_one_that_cannot_be_encoded_then_becomes_a_letter(make: Make) -> None:
    """2 of 3 are sent, the other lies in its queue's letters, `rejected`; the message that ended is gone."""
    stage, _ = ending_with(make, 1, object(), 3)
    stage.hand().run()
    assert (stage.counts(), stage.counts("told")) == ((0, 0, 0, 0), (2, 0, 0, 1))
    (letter,) = stage.letters("told")
    assert (letter["reason"], letter["error"]) == ("rejected", "TypeError")


# -- a broker that is away ---------------------------------------------------------------------------------------------


def away(request: pytest.FixtureRequest, proxy: MakeProxy, kind: str, send_timeout: int) -> tuple[Broker, Any]:
    """A sender's broker behind a proxy, and the proxy. It has sent one message."""
    if kind == "redis":
        server = request.getfixturevalue("shared_redis")
        line = proxy(server)
        broker: Broker = RedisBroker(url=line.url(), namespace=request.getfixturevalue("namespace"), middleware=[])
    else:
        api: RabbitmqApi = request.getfixturevalue("shared_rabbitmq")
        vhost = request.getfixturevalue("vhost")
        line = proxy(api)
        broker = RabbitmqBroker(url=api.url(vhost, port=line.port), middleware=[])
    reliq.install(broker, reliq.Delivery(send_timeout=send_timeout))
    broker.declare_queue("default")
    enqueue_many([dramatiq.Message("default", "work", (-1,), {}, {})], broker=broker)
    return broker, line


@pytest.mark.parametrize(("kind", "fault"), [("redis", "refuse"), ("redis", "blackhole"), ("rabbitmq", "blackhole")])
def test_a_broker_that_is_away_is_told_for_each_within_the_timeout(
    request: pytest.FixtureRequest, fault_proxy: MakeProxy, kind: str, fault: str
) -> None:
    """250 sent while nobody is there: 250 times ConnectionClosed, within `send_timeout` of 1 s; when it is back 250
    more are sent, and nothing that was said to be not stored is there."""
    broker, line = away(request, fault_proxy, kind, 1_000)
    transport = transport_of(broker)
    assert transport is not None
    ear = Ear()
    broker.add_middleware(ear)
    try:
        getattr(line, fault)()
        began = time.monotonic()
        with pytest.raises(EnqueueErrors, match="250 of 250 messages were not sent") as caught:
            enqueue_many([dramatiq.Message("default", "work", (n,), {}, {}) for n in range(250)], broker=broker)
        took = time.monotonic() - began
        assert [index for index, _, _ in caught.value.failed] == list(range(250))
        assert {isinstance(error, ConnectionClosed) for _, _, error in caught.value.failed} == {True}
        assert (caught.value.sent, ear.after) == ([], [])
        assert took <= 1 + 0.25 * SLACK
        line.heal()
        sent, tries = [], 0
        while len(sent) < 250:
            assert (tries := tries + 1) < 100
            left = [dramatiq.Message("default", "work", (n,), {}, {}) for n in range(1_000 + len(sent), 1_250)]
            try:
                sent += enqueue_many(left, broker=broker)
            except EnqueueErrors as again:
                sent += again.sent
                time.sleep(0.1)  # sleep-ok: the gate lets one probe through each second
        ready = transport.depth("default").ready
        unsure = sum("not stored" not in str(error) for _, _, error in caught.value.failed)
        assert ready is not None
        assert 251 <= ready <= 251 + unsure
    finally:
        line.heal()
        transport.disconnect()
        broker.close()
