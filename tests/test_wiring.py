"""Putting reliq on a broker: what fits is put in its place, what does not is one clear error.

Every refusal names the thing that is wrong, ends in what to do, and changes nothing.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

import dramatiq
import pytest
from dramatiq.broker import Broker
from dramatiq.brokers.stub import StubBroker
from dramatiq.encoder import PickleEncoder
from dramatiq.message import get_encoder, set_encoder
from dramatiq.middleware import Callbacks, GroupCallbacks, Pipelines, default_middleware
from dramatiq.middleware import Retries as StockRetries
from dramatiq.rate_limits.backends import StubBackend

import reliq
from reliq.testing import eventually
from reliq.wiring import boot_line, transport_of


@pytest.fixture
def broker() -> StubBroker:
    """A stock broker with the default middlewares."""
    broker = StubBroker()
    dramatiq.set_broker(broker)
    return broker


@pytest.fixture
def installed(broker: StubBroker) -> StubBroker:
    """The same with reliq."""
    reliq.install(broker)
    return broker


def names(broker: Broker) -> list[str]:
    """The middlewares in order."""
    return [type(middleware).__name__ for middleware in broker.middleware]


def retries_of(broker: Broker) -> reliq.Retries:
    """The one Retries."""
    (found,) = [m for m in broker.middleware if isinstance(m, StockRetries)]
    assert isinstance(found, reliq.Retries)
    return found


def class_name(value: object) -> str:
    """For a test's id."""
    return type(value).__name__


def option_names(value: object) -> str:
    """For a test's id: values may hold functions, whose text differs from process to process."""
    return "-".join(f"{name}-{_text(given)}" for name, given in value.items()) if isinstance(value, dict) else ""


def _text(value: object) -> str:
    return getattr(value, "__name__", str(value))


def says_what_to_do(error: BaseException) -> bool:
    """Whether a text goes beyond naming the fault."""
    what_to_do = r"\b(write|use|pass|raise|lower|rename|remove|drop|define|import|add|derive|set)\b"
    return re.search(what_to_do, str(error), re.IGNORECASE) is not None


class TestInstall:
    """What install does."""

    def test_returns_the_broker_and_puts_each_part_in_its_place(self, broker: StubBroker) -> None:
        """Lifecycle first; Retries where stock's was; settings parts between."""
        assert reliq.install(broker) is broker
        assert names(broker)[0] == "Lifecycle"
        assert {"DeadLetters", "Delivery"} == set(names(broker)[1:3])
        stock = [type(cls()).__name__ for cls in default_middleware]
        assert names(broker)[3:] == stock
        assert retries_of(broker).max_retries == 20

    def test_twice_changes_nothing(self, broker: StubBroker) -> None:
        """Same list, same objects, whatever the second call is given."""
        reliq.install(broker, reliq.Retries(max_retries=3))
        before, transport = list(broker.middleware), transport_of(broker)
        reliq.install(broker, reliq.Retries(max_retries=9), version="later")
        assert broker.middleware == before
        assert transport_of(broker) is transport
        assert retries_of(broker).max_retries == 3

    def test_opens_no_thread(self, broker: StubBroker) -> None:
        """Nothing starts before a worker boots."""
        import threading

        before = threading.active_count()
        reliq.install(broker)
        assert threading.active_count() == before

    def test_values_of_a_stock_retries_are_kept_and_told(self, caplog: pytest.LogCaptureFixture) -> None:
        """max_retries, backoffs and retry_when that differ from the defaults; a log line with both horizons."""
        caplog.set_level("INFO")

        def when(retries: int, exc: BaseException) -> bool:
            return False

        broker = StubBroker(middleware=[StockRetries(max_retries=3, min_backoff=10, max_backoff=50, retry_when=when)])
        reliq.install(broker)
        own = retries_of(broker)
        assert (own.max_retries, own.min_backoff, own.max_backoff, own.retry_when) == (3, 10, 50, when)
        (line,) = [record.getMessage() for record in caplog.records if "replaced" in record.getMessage()]
        assert "Dramatiq's Retries (3, about" in line

    def test_a_stock_retries_without_limit_stays_without(self) -> None:
        """max_retries=None of stock."""
        broker = StubBroker(middleware=[StockRetries(max_retries=None)])  # type: ignore[arg-type]
        reliq.install(broker)
        assert retries_of(broker).max_retries is None

    def test_a_retries_that_is_given_wins_over_stock_s_values(self) -> None:
        """install(broker, Retries(...)) says it all."""
        broker = StubBroker(middleware=[StockRetries(max_retries=3)])
        reliq.install(broker, reliq.Retries(max_retries=7))
        assert retries_of(broker).max_retries == 7

    def test_without_drops_a_part(self, broker: StubBroker) -> None:
        """Without(Delivery), Without(DeadLetters)."""
        reliq.install(broker, reliq.Without(reliq.DeadLetters), reliq.Without(reliq.Delivery))
        assert not {"DeadLetters", "Delivery"} & set(names(broker))

    def test_a_subclass_of_a_part_takes_its_place(self, broker: StubBroker) -> None:
        """One Retries, the subclass."""

        class Mine(reliq.Retries):
            pass

        reliq.install(broker, Mine(max_retries=1))
        assert type(retries_of(broker)) is Mine

    def test_the_version_comes_from_the_call_or_the_environment(
        self, broker: StubBroker, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """version= before RELIQ_VERSION."""
        monkeypatch.setenv("RELIQ_VERSION", "env")
        reliq.install(broker)
        assert _settings(broker).version == "env"
        other = StubBroker()
        reliq.install(other, version="call")
        assert _settings(other).version == "call"

    def test_delivery_reaches_the_transport(self, broker: StubBroker) -> None:
        """Its settings, in ms."""
        reliq.install(broker, reliq.Delivery(send_timeout=500, lease=2_000, heartbeat=400, unknown_actor_grace=False))
        settings = _settings(broker)
        assert (settings.send_timeout_ms, settings.lease_ms, settings.beat_every_ms) == (500, 2_000, 400)
        assert settings.unknown_actor_grace_ms == 0

    def test_middleware_of_the_application_may_be_placed_around_ours(self, installed: StubBroker) -> None:
        """before= and after= stock's Retries find reliq's."""

        class Mine(dramatiq.Middleware):
            pass

        installed.add_middleware(Mine(), before=StockRetries)
        assert names(installed).index("Mine") == names(installed).index("Retries") - 1

    def test_a_worker_boots_with_a_line_that_says_what_holds(
        self, installed: StubBroker, caplog: pytest.LogCaptureFixture
    ) -> None:
        """Version, broker, retries and their horizon, delays, letters."""
        caplog.set_level("INFO")
        dramatiq.actor(lambda: None, actor_name="work")
        worker = dramatiq.Worker(installed, worker_timeout=50, worker_threads=1)
        worker.start()
        worker.stop()
        (line,) = [record.getMessage() for record in caplog.records if record.getMessage().startswith("reliq ")]
        assert line == boot_line(installed)
        assert line == (
            f"reliq {reliq.__version__} stub (memory) | retries 20, about 31 h | delays in memory | "
            "dead letters → default.dead"
        )


class TestBadParts:
    """Arguments of install and of the parts."""

    @pytest.mark.parametrize(
        ("call", "words"),
        [
            (lambda b: reliq.install("redis://localhost"), "takes a broker, got 'redis://localhost'"),
            (lambda b: reliq.install(b, reliq.Retries), "not the class Retries"),
            (lambda b: reliq.install(b, reliq.Retries(), reliq.Retries()), "Retries is given twice"),
            (lambda b: reliq.install(b, Callbacks()), "broker.add_middleware"),
            (lambda b: reliq.install(b, "retries"), "takes parts of reliq, got 'retries'"),
            (lambda b: reliq.install(b, redact="args"), "redact must be a callable"),
            (lambda b: reliq.install(b, reliq.Without(Callbacks)), "reliq.DeadLetters"),
            (lambda b: reliq.install(b, reliq.Without(reliq.Retries())), "class of a default part"),
            (lambda b: reliq.Install(reliq.Retries), "not the class Retries"),
        ],
    )
    def test_install_refuses_what_is_no_part(self, broker: StubBroker, call: Callable[[Any], Any], words: str) -> None:
        """The error names it; nothing is attached."""
        before = list(broker.middleware)
        with pytest.raises((reliq.OptionError, reliq.NotSupported), match=re.escape(words)):
            call(broker)
        assert broker.middleware == before
        assert transport_of(broker) is None

    @pytest.mark.parametrize(
        ("part", "options", "words"),
        [
            (reliq.Retries, {"max_retries": -1}, "max_retries"),
            (reliq.Retries, {"max_retries": 1.5}, "max_retries"),
            (reliq.Retries, {"max_retries": "3"}, "max_retries"),
            (reliq.Retries, {"max_retries": True}, "max_retries"),
            (reliq.Retries, {"min_backoff": -1}, "min_backoff"),
            (reliq.Retries, {"min_backoff": 10, "max_backoff": 5}, "max_backoff"),
            (reliq.Retries, {"max_backoff": "1h"}, "max_backoff"),
            (reliq.Retries, {"backoff": "quadratic"}, "quadratic"),
            (reliq.Retries, {"jitter": "lots"}, "jitter"),
            (reliq.Retries, {"jitter": 1.5}, "jitter"),
            (reliq.Retries, {"jitter": 0}, "jitter"),
            (reliq.Retries, {"retry_for": "OSError"}, "retry_for"),
            (reliq.Retries, {"retry_for": [int]}, "retry_for"),
            (reliq.Retries, {"retry_when": "always"}, "retry_when"),
            (reliq.Retries, {"max_elapsed": -5}, "max_elapsed"),
            (reliq.DeadLetters, {"retention": -1}, "retention"),
            (reliq.DeadLetters, {"retention": "7d"}, "retention"),
            (reliq.DeadLetters, {"on_dead_letter": 5}, "on_dead_letter"),
            (reliq.DeadLetters, {"on_dead_letter": ""}, "on_dead_letter"),
            (reliq.Delivery, {"send_timeout": 5}, "send_timeout"),
            (reliq.Delivery, {"lease": 10}, "lease"),
            (reliq.Delivery, {"lease": 2_000, "heartbeat": 1_500}, "heartbeat"),
            (reliq.Delivery, {"heartbeat": 1}, "heartbeat"),
            (reliq.Delivery, {"unknown_actor_grace": -1}, "unknown_actor_grace"),
            (reliq.Delivery, {"aliases": {"a": ""}}, "aliases"),
            (reliq.Delivery, {"aliases": {"a": "b", "b": "c"}}, "alias 'a' leads to 'b'"),
        ],
        ids=lambda value: str(value)[:40] if isinstance(value, dict) else None,
    )
    def test_a_part_refuses_a_value_that_cannot_work(self, part: Any, options: dict[str, Any], words: str) -> None:
        """OptionError that names part and option, and goes on to what to do."""
        with pytest.raises(reliq.OptionError, match=words) as caught:
            part(**options)
        assert f"reliq.{part.__name__}" in str(caught.value)
        assert says_what_to_do(caught.value), caught.value


#: Actor options that cannot work.
BAD_OPTIONS: list[tuple[str, Any]] = [
    ("max_retries", -1),
    ("max_retries", "3"),
    ("max_retries", 2.5),
    ("min_backoff", -1),
    ("min_backoff", "15s"),
    ("max_backoff", "1h"),
    ("backoff", "quadratic"),
    ("jitter", "lots"),
    ("jitter", 2),
    ("retry_for", "OSError"),
    ("retry_for", [OSError, 5]),
    ("retry_when", "always"),
    ("throws", "ValueError"),
    ("throws", [ValueError, "x"]),
    ("max_elapsed", -1),
    ("max_elapsed", "1d"),
    ("defer_max", -1),
    ("defer_max", "7d"),
    ("dead_letter", "no"),
    ("on_dead_letter", 5),
]


class TestBadActors:
    """Options at declaration."""

    @pytest.mark.parametrize(("name", "value"), BAD_OPTIONS, ids=str)
    def test_an_option_that_cannot_work_is_refused_when_the_actor_is_declared(
        self, installed: StubBroker, name: str, value: Any
    ) -> None:
        """The error names actor, queue and option, shows the value, ends in what to do; no actor is declared."""
        with pytest.raises(reliq.OptionError, match=rf"actor 'charge' \(queue 'billing'\): .*{name}") as caught:
            dramatiq.actor(lambda: None, actor_name="charge", queue_name="billing", **{name: value})
        assert says_what_to_do(caught.value), caught.value
        assert "charge" not in installed.actors

    def test_a_floor_above_the_cap_is_refused(self, installed: StubBroker) -> None:
        """Both values are shown."""
        with pytest.raises(reliq.OptionError, match=r"actor 'charge'.*max_backoff.*5_000.*15_000|15_000.*5_000"):
            dramatiq.actor(lambda: None, actor_name="charge", min_backoff=15_000, max_backoff=5_000)

    @pytest.mark.parametrize(
        "options",
        [
            {"max_retries": None},
            {"max_retries": 0},
            {"min_backoff": 0, "max_backoff": 0},
            {"max_backoff": 1_000},
            {"throws": ValueError},
            {"throws": (ValueError, OSError)},
            {"retry_for": reliq.transient},
            {"retry_for": OSError},
            {"jitter": 0.5, "backoff": "linear"},
            {"dead_letter": False},
            {"defer_max": None},
            {"max_elapsed": 3_600_000.0},
        ],
        ids=option_names,
    )
    def test_an_option_that_works_is_taken(self, installed: StubBroker, options: dict[str, Any]) -> None:
        """Declared."""
        dramatiq.actor(lambda: None, actor_name="charge", **options)
        assert "charge" in installed.actors

    def test_an_actor_declared_before_install_is_named_with_its_module(self, broker: StubBroker) -> None:
        """Its options are checked again, and the error says which import must come later."""
        broker.actor_options |= {"jitter"}
        dramatiq.actor(_from_a_module, actor_name="early", jitter="lots")
        with pytest.raises(reliq.OptionError, match=rf"actor 'early'.*module '{re.escape(__name__)}'.*import it later"):
            reliq.install(broker)

    def test_an_actor_declared_before_install_runs_with_reliq(self, broker: StubBroker) -> None:
        """Options that stock knew are good."""
        ran: list[int] = []
        actor = dramatiq.actor(ran.append, actor_name="early", max_retries=1)
        reliq.install(broker)
        actor.send(1)
        worker = dramatiq.Worker(broker, worker_timeout=50, worker_threads=1)
        worker.start()
        eventually(lambda: ran == [1], what="the run")
        worker.stop()

    def test_a_bad_option_of_a_message_is_passed_over(self, installed: StubBroker) -> None:
        """A producer's mistake does not decide over the message: the actor's options hold."""

        def work() -> None:
            raise ValueError("x")

        actor = dramatiq.actor(work, max_retries=0)
        actor.send_with_options(max_retries="many", jitter=17, min_backoff=-1, max_elapsed="x", defer_max=[])
        worker = dramatiq.Worker(installed, worker_timeout=50, worker_threads=1)
        worker.start()
        eventually(lambda: installed.dead_letters, what="the letter")
        worker.stop()


class TestBadBrokers:
    """Brokers and encoders."""

    def test_a_broker_no_transport_knows_is_named(self) -> None:
        """NotSupported lists those that are."""

        class Homemade(Broker):
            pass

        with pytest.raises(reliq.NotSupported, match=r"Homemade.*RedisBroker, StubBroker.*Use one of these"):
            reliq.install(Homemade())

    def test_a_queue_with_a_reserved_name_that_is_there_already_is_refused(self, broker: StubBroker) -> None:
        """Declared before install."""
        broker.declare_queue("mail.dead")
        with pytest.raises(reliq.OptionError, match=r"queue 'mail.dead'.*rename the queue, for instance 'mail'"):
            reliq.install(broker)
        assert transport_of(broker) is None

    @pytest.fixture
    def pickling(self) -> Iterator[None]:
        """The application's encoder is PickleEncoder."""
        before = get_encoder()
        set_encoder(PickleEncoder())
        yield
        set_encoder(before)

    def test_pickle_is_refused_at_install(self, broker: StubBroker, pickling: None) -> None:
        """NotSupported says why and what to use."""
        with pytest.raises(reliq.NotSupported, match=r"PickleEncoder.*Use dramatiq.JSONEncoder"):
            reliq.install(broker)

    def test_pickle_is_refused_at_boot(self, installed: StubBroker) -> None:
        """An encoder set after install."""
        before = get_encoder()
        set_encoder(PickleEncoder())
        try:
            with pytest.raises(reliq.NotSupported, match="PickleEncoder"):
                dramatiq.Worker(installed, worker_threads=1).start()
        finally:
            set_encoder(before)


class TestBadOrders:
    """Orders of middlewares that cannot work are refused when a worker boots, and told by check()."""

    def boot(self, broker: Broker) -> None:
        """As `dramatiq` does."""
        dramatiq.Worker(broker, worker_timeout=50, worker_threads=1).start()

    def told(self, broker: Broker) -> str:
        """What check() says of the order."""
        (finding,) = [finding for finding in reliq.check(broker) if finding.check == "order"]
        assert finding.verdict == "failed"
        return finding.found

    def test_callbacks_added_behind_retries(self) -> None:
        """Names the class and how to add it."""
        broker = StubBroker(middleware=[])
        reliq.install(broker)
        broker.add_middleware(Callbacks())
        with pytest.raises(reliq.WiringError, match=r"Retries stands before Callbacks.*before=reliq.Retries"):
            self.boot(broker)
        assert "Callbacks" in self.told(broker)

    @pytest.mark.parametrize("middleware", [Pipelines(), GroupCallbacks(StubBackend())], ids=class_name)
    def test_those_that_act_on_success_alone_may_stand_anywhere(self, middleware: Any) -> None:
        """An application that adds them last boots."""
        broker = StubBroker()
        reliq.install(broker)
        broker.add_middleware(middleware)
        worker = dramatiq.Worker(broker, worker_timeout=50, worker_threads=1)
        worker.start()
        worker.stop()

    def test_a_stock_retries_before_callbacks_is_replaced_behind_them(self) -> None:
        """The order of the application's own list may have had them the other way round."""
        broker = StubBroker(middleware=[StockRetries(), Callbacks()])
        reliq.install(broker)
        kinds = [type(middleware) for middleware in broker.middleware]
        assert kinds.index(Callbacks) < kinds.index(reliq.Retries)
        assert StockRetries not in kinds

    def test_retries_by_hand_then_install(self) -> None:
        """The one that was added by hand stays, with its values; the stock one goes."""
        broker = StubBroker()
        broker.add_middleware(reliq.Retries(max_retries=3))
        reliq.install(broker)
        (retries,) = [m for m in broker.middleware if isinstance(m, StockRetries)]
        assert isinstance(retries, reliq.Retries)
        assert retries.max_retries == 3
        assert all(finding.verdict == "ok" for finding in reliq.check(broker) if finding.check == "order")

    def test_a_part_by_hand_and_another_given(self) -> None:
        """Two of one kind cannot both hold: said, not dropped."""
        broker = StubBroker()
        broker.add_middleware(reliq.Delivery(lease=5_000))
        with pytest.raises(reliq.WiringError, match=r"another Delivery; keep one"):
            reliq.install(broker, reliq.Delivery(lease=7_000))
        broker.add_middleware(reliq.Delivery(lease=7_000))
        assert "reliq.Delivery twice" in self.told(broker)

    def test_install_as_a_middleware_refuses_what_install_refuses(self) -> None:
        """At once: in a hook, Dramatiq would swallow it and run the application without reliq."""
        with pytest.raises(TypeError, match="store"):
            reliq.Install(store="redis://localhost:6379/1")
        with pytest.raises(reliq.OptionError, match="version must be a text"):
            reliq.Install(version=b"abc")
        with pytest.raises(reliq.OptionError, match="redact must be a callable"):
            reliq.Install(redact="args")

    @pytest.mark.parametrize("version", [b"abc", 3, ["1"]])
    def test_a_version_that_is_no_text(self, version: Any) -> None:
        """It goes into every attempt and letter."""
        with pytest.raises(reliq.OptionError, match="version must be a text"):
            reliq.install(StubBroker(), version=version)

    @pytest.mark.parametrize(
        ("name", "value"),
        [("on_retry_exhausted", True), ("on_retry_exhausted", ["x"]), ("retry_when", ConnectionError)],
    )
    def test_options_that_look_right(self, name: str, value: Any) -> None:
        """Refused when the actor is declared, not found out at the first failure."""
        broker = StubBroker()
        reliq.install(broker)
        with pytest.raises(reliq.OptionError, match=rf"actor 'slip'.*{name} must be"):
            dramatiq.actor(broker=broker, actor_name="slip", **{name: value})(lambda: None)

    def test_who_is_to_be_told_and_is_not_there(self) -> None:
        """A name that no actor has is found by check, and said at boot."""
        broker = StubBroker()
        reliq.install(broker, reliq.DeadLetters(on_dead_letter="typo"))
        (finding,) = [finding for finding in reliq.check(broker) if finding.check == "target"]
        assert "'typo'" in finding.found
        assert finding.verdict == "failed"

    def test_two_retries(self, installed: StubBroker) -> None:
        """Each failure would count twice."""
        installed.add_middleware(reliq.Retries())
        with pytest.raises(reliq.WiringError, match=r"reliq.Retries twice.*Remove one"):
            self.boot(installed)
        assert "twice" in self.told(installed)

    def test_a_stock_retries_added_after(self, installed: StubBroker) -> None:
        """Says which to remove."""
        installed.add_middleware(StockRetries())
        with pytest.raises(reliq.WiringError, match=r"stock Retries was added after.*Remove"):
            self.boot(installed)

    def test_a_foreign_subclass_of_retries(self, broker: StubBroker) -> None:
        """Named; derive it from reliq.Retries."""

        class Ours(StockRetries):
            pass

        broker.middleware = [Ours() if isinstance(m, StockRetries) else m for m in broker.middleware]
        with pytest.raises(reliq.WiringError, match=r"Ours.*Derive it from reliq.Retries"):
            reliq.install(broker)

    def test_an_alias_that_is_also_an_actor(self, broker: StubBroker) -> None:
        """Messages would go to two places."""
        reliq.install(broker, reliq.Delivery(aliases={"old": "new"}))
        dramatiq.actor(lambda: None, actor_name="old")
        dramatiq.actor(lambda: None, actor_name="new")
        with pytest.raises(reliq.WiringError, match=r"alias 'old' is also a declared actor.*Drop the alias"):
            self.boot(broker)
        assert "'old'" in self.told(broker)

    def test_a_good_order_is_said_to_be_good(self, installed: StubBroker) -> None:
        """check(): no finding failed, none asks for anything."""
        assert [finding for finding in reliq.check(installed) if finding.verdict != "ok" or finding.fix] == []

    def test_a_broker_without_reliq_is_told_how(self, broker: StubBroker) -> None:
        """check() before install."""
        (finding,) = reliq.check(broker)
        assert (finding.verdict, finding.fix) == ("failed", "reliq.install(broker)")


def _settings(broker: Broker) -> Any:
    transport = transport_of(broker)
    assert transport is not None
    return transport.settings


def _from_a_module() -> None:
    pass
