"""Puts reliq on a broker: the transport in the place of the broker's own methods, the middlewares in the right order.

The one module that knows all rooms. Callers: applications (`install`, `Install`, `Without`, `check`), a lone
middleware (`attach`), the command line (`transport_of`). Nothing here opens a socket, a thread or a fork.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from importlib import import_module
from importlib.metadata import version as package_version
from typing import Any

from dramatiq.broker import Broker
from dramatiq.encoder import PickleEncoder
from dramatiq.logging import get_logger
from dramatiq.message import get_encoder
from dramatiq.middleware import Callbacks, Middleware
from dramatiq.middleware import Retries as StockRetries
from dramatiq.threading import is_gevent_active

from .errors import NotSupported, OptionError, WiringError
from .middleware.dead_letters import DeadLetters
from .middleware.delivery import Delivery
from .middleware.part import Part
from .middleware.retries import Retries
from .policy.backoff import Backoff, describe_ms, horizon_ms
from .transport.base import Finding, Transport, check_queue_name
from .transport.lifecycle import Lifecycle

#: Broker class -> where its transport is. By name, so that no client library is imported that is not in use.
TRANSPORTS = {
    "dramatiq.brokers.rabbitmq.RabbitmqBroker": "reliq.transport.rabbitmq.transport:RabbitTransport",
    "dramatiq.brokers.redis.RedisBroker": "reliq.transport.redis.transport:RedisTransport",
    "dramatiq.brokers.stub.StubBroker": "reliq.transport.stub.transport:StubTransport",
}

DEFAULT_PARTS: tuple[type[Part], ...] = (DeadLetters, Delivery, Retries)

_MARK = "_reliq"


class Without:
    """Drops a default part: `reliq.install(broker, reliq.Without(reliq.DeadLetters))`."""

    def __init__(self, part: type[Part]) -> None:
        if not (isinstance(part, type) and issubclass(part, DEFAULT_PARTS)):
            names = ", ".join(f"reliq.{default.__name__}" for default in DEFAULT_PARTS)
            raise OptionError(f"reliq.Without takes the class of a default part ({names}), got {part!r}.")
        self.part = part


def install(
    broker: Broker,
    *parts: Part | Without,
    redact: Callable[[dict[str, Any]], dict[str, Any]] | None = None,
    version: str | None = None,
) -> Broker:
    """Make a broker reliable; call it before actors are declared. Returns the broker. A second call changes nothing.

    `parts` replace the default ones of their class: `Retries()`, `DeadLetters()`, `Delivery()`. `redact` takes a dead
    letter and returns what may be shown of it, wherever letters are shown, logged or sent on. `version` (else
    `RELIQ_VERSION`) is the code's version in attempts and letters.
    """
    if not isinstance(broker, Broker):
        raise NotSupported(
            f"reliq.install takes a broker, got {broker!r}; write reliq.install(broker, reliq.Retries())"
        )
    chosen = _choose(parts)
    _check_settings(redact, version)
    if _is_installed(broker):
        return broker
    transport = _attach(broker)
    version = version if version is not None else os.environ.get("RELIQ_VERSION")
    transport.settings = replace(transport.settings, redact=redact, version=version)
    _settle_stock_retries(broker)
    for part in chosen.values():
        _place(broker, part, explicit=part in parts)
    _bind_all(broker)
    _check_declared(broker)
    broker.__dict__[_MARK]["installed"] = True
    return broker


def _check_settings(redact: Any, version: Any) -> None:
    if redact is not None and not callable(redact):
        raise OptionError(f"redact must be a callable (letter: dict) -> dict, got {redact!r}; pass a function.")
    if version is not None and not isinstance(version, str):
        raise OptionError(f"version must be a text, got {version!r}; write for instance version='2026-11-24.1'.")


class Install(Middleware):
    """`install` as a middleware, for brokers that are built from a settings list: it installs at the first actor that
    is declared, or when a worker boots. Takes what `install` takes after the broker."""

    def __init__(
        self,
        *parts: Part | Without,
        redact: Callable[[dict[str, Any]], dict[str, Any]] | None = None,
        version: str | None = None,
    ) -> None:
        # All that can be refused is refused here: later it would be raised in a hook, where Dramatiq swallows it.
        _check_settings(redact, version)
        self._parts = parts
        self._redact = redact
        self._version = version
        self._chosen = _choose(parts)

    @property
    def actor_options(self) -> set[str]:
        """Those of its parts: Dramatiq asks before it installs."""
        return {name for part in self._chosen.values() for name in part.actor_options}

    def install_on(self, broker: Broker) -> None:
        """Install now, if it has not been done."""
        install(broker, *self._parts, redact=self._redact, version=self._version)

    def before_declare_actor(self, broker: Broker, actor: Any) -> None:
        """The first actor is about to be declared."""
        already = _is_installed(broker)
        self.install_on(broker)
        if not already:
            # Its signal went to the list as it was: the parts that are new hear of this actor here.
            for part in _parts_of(broker):
                part.check_actor(actor)

    def after_declare_actor(self, broker: Broker, actor: Any) -> None:
        """An actor had been declared before this was added."""
        self.install_on(broker)

    def after_process_boot(self, broker: Broker) -> None:
        """A worker process has imported the broker."""
        self.install_on(broker)

    def before_worker_boot(self, broker: Broker, worker: Any) -> None:
        """A worker is started by hand."""
        if not _is_installed(broker):
            self.install_on(broker)
            lifecycle = next(m for m in broker.middleware if isinstance(m, Lifecycle))
            lifecycle.before_worker_boot(broker, worker)


def check(broker: Broker) -> list[Finding]:
    """What is wrong, or cannot be known, about reliq on this broker: its middlewares, and the broker's own settings.
    An empty `fix` means that there is nothing to do."""
    if not isinstance(broker, Broker):
        raise NotSupported(f"reliq.check takes a broker, got {broker!r}; write reliq.check(broker)")
    transport = transport_of(broker)
    if transport is None:
        return [
            Finding(
                "installed",
                type(broker).__name__,
                "critical",
                "failed",
                "reliq is not installed",
                "",
                "reliq.install(broker)",
            )
        ]
    findings = []
    try:
        check_order(broker)
        findings.append(Finding("order", transport.kind, "critical", "ok", "middlewares are in order", "", ""))
    except WiringError as exc:
        findings.append(Finding("order", transport.kind, "critical", "failed", str(exc), "", "see found"))
    findings.extend(_unknown_targets(broker, transport))
    return [*findings, *transport.check()]


def _unknown_targets(broker: Broker, transport: Transport[Any]) -> list[Finding]:
    """Actors that are to be told of something and are not declared."""
    findings = []
    for what, name in sorted({target for part in _parts_of(broker) for target in part.targets(broker)}):
        if name not in broker.actors:
            findings.append(
                Finding(
                    check="target",
                    broker=transport.kind,
                    severity="warning",
                    verdict="failed",
                    found=f"{what} names actor {name!r}, which is not declared",
                    why="nobody would be told",
                    fix=f"declare an actor {name!r}, or correct the name",
                )
            )
    return findings


# -- attaching -----------------------------------------------------------------------------------------------------


def transport_of(broker: Broker) -> Transport[Any] | None:
    """The transport on this broker, or None."""
    mark = broker.__dict__.get(_MARK)
    return mark["transport"] if mark else None


def attach(broker: Broker) -> Transport[Any]:
    """Attach the transport for the parts that are in the broker's list: what a lone middleware and the command line
    call. An `Install` in the list that nobody has heard yet installs first."""
    for middleware in list(broker.middleware):
        if isinstance(middleware, Install):
            middleware.install_on(broker)
    transport = _attach(broker)
    _settle_stock_retries(broker)
    _bind_all(broker)
    return transport


def _attach(broker: Broker) -> Transport[Any]:
    transport = transport_of(broker)
    if transport is None:
        from .sending.batches import batch_groups

        _refuse_pickle()
        transport = transport_class(broker)(broker)
        for queue_name in transport.declared_queues():
            check_queue_name(queue_name)
        transport.attach()
        batch_groups()
        broker.__dict__[_MARK] = {"transport": transport, "installed": False}
        lifecycle = Lifecycle(transport, lambda: on_boot(broker))
        # A new list: whoever is iterating over the old one (a signal that is under way) is left in peace.
        broker.middleware = [lifecycle, *broker.middleware]
    return transport


def transport_class(broker: Broker) -> type[Transport[Any]]:
    """The transport for this kind of broker, or `NotSupported`."""
    for cls in type(broker).__mro__:
        where = TRANSPORTS.get(f"{cls.__module__}.{cls.__qualname__}")
        if where is not None:
            module, name = where.split(":")
            return getattr(import_module(module), name)  # type: ignore[no-any-return]
    known = ", ".join(name.rsplit(".", 1)[1] for name in TRANSPORTS)
    raise NotSupported(
        f"reliq has no transport for {type(broker).__module__}.{type(broker).__qualname__}; "
        f"it serves {known} and their subclasses. Use one of these, or add a transport (CONTRIBUTING.md)."
    )


def _choose(parts: tuple[Any, ...]) -> dict[type[Part], Part]:
    """The parts to install by their default class: given ones in the place of default ones, dropped ones absent."""
    chosen: dict[type[Part], Part] = {}
    dropped = [part.part for part in parts if isinstance(part, Without)]
    for part in parts:
        if isinstance(part, Without):
            continue
        if isinstance(part, type) and issubclass(part, Part):
            raise OptionError(f"pass an instance, reliq.{part.__name__}(), not the class {part.__name__}.")
        cls = next((default for default in DEFAULT_PARTS if isinstance(part, default)), None)
        if cls is None:
            raise OptionError(
                f"reliq.install takes parts of reliq, got {part!r}; add others with broker.add_middleware."
            )
        if cls in chosen:
            raise OptionError(f"reliq.{cls.__name__} is given twice; pass one.")
        chosen[cls] = part
    for cls in DEFAULT_PARTS:
        if cls not in chosen and cls not in dropped:
            chosen[cls] = cls()
    return chosen


def _place(broker: Broker, part: Part, *, explicit: bool) -> None:
    """Put a part into the broker's list. One of its class that is there already, added by hand, stays instead."""
    present = next((middleware for middleware in broker.middleware if isinstance(middleware, _default_of(part))), None)
    if present is not None:
        if explicit and present is not part:
            name = _default_of(part).__name__
            raise WiringError(
                f"the broker has {present!r}, added by hand, and reliq.install is given another {name}; keep one."
            )
        return
    broker.actor_options |= part.actor_options
    middleware = list(broker.middleware)
    if isinstance(part, Retries):
        stock = _stock_retries(broker)
        if stock is None:
            middleware.append(part)
        else:
            if not explicit:
                part = _with_values_of(stock, part)
            middleware[middleware.index(stock)] = part
            late = [index for index, other in enumerate(middleware) if isinstance(other, Callbacks)]
            if late and late[-1] > middleware.index(part):
                # In the list of an application that had Retries before Callbacks.
                middleware.insert(late[-1], middleware.pop(middleware.index(part)))
            _say_replaced(stock, part)
    else:
        # Right behind the lifecycle: the first in the list is the last to hear of a run's end.
        middleware.insert(1, part)
    broker.middleware = middleware


def _settle_stock_retries(broker: Broker) -> None:
    """A lone `Retries` beside the stock one: the stock one goes."""
    own = next((m for m in broker.middleware if isinstance(m, Retries)), None)
    stock = _stock_retries(broker) if own is not None else None
    if stock is not None and own is not None:
        broker.middleware = [own if m is stock else m for m in broker.middleware if m is not own]
        _say_replaced(stock, own)


def _stock_retries(broker: Broker) -> StockRetries | None:
    for middleware in broker.middleware:
        if isinstance(middleware, StockRetries) and not isinstance(middleware, Retries):
            if type(middleware) is not StockRetries:
                cls = type(middleware)
                raise WiringError(
                    f"the broker has {cls.__module__}.{cls.__qualname__}, a Retries of your own, which reliq would "
                    "replace. Derive it from reliq.Retries and pass it to reliq.install, or take it out of the list."
                )
            return middleware
    return None


def _with_values_of(stock: StockRetries, part: Retries) -> Retries:
    """Our Retries with the values that somebody had set on the stock one."""
    usual = StockRetries()
    values: dict[str, Any] = {}
    if stock.max_retries != usual.max_retries:
        values["max_retries"] = False if stock.max_retries is None else stock.max_retries
    for name in ("min_backoff", "max_backoff"):
        if getattr(stock, name) != getattr(usual, name):
            values[name] = getattr(stock, name)
    if stock.retry_when is not None:
        values["retry_when"] = stock.retry_when
    return Retries(**values) if values else part


def _say_replaced(stock: StockRetries, part: Retries) -> None:
    before = "without limit"
    if stock.max_retries is not None:
        # Dramatiq's own: min_backoff * 2^n * U(1, 2), at the cap U(0.5, 1): near enough to an equal jitter.
        old = Backoff(min(stock.min_backoff, stock.max_backoff), stock.max_backoff, "exponential", "equal")
        before = f"{stock.max_retries}, about {describe_ms(horizon_ms(old, stock.max_retries))}"
    get_logger(__name__).info("Dramatiq's Retries (%s) is replaced by reliq's (%s).", before, part.describe())


def _default_of(part: Part) -> type[Part]:
    """The class of default parts that a part is of."""
    return next(cls for cls in DEFAULT_PARTS if isinstance(part, cls))


def _bind_all(broker: Broker) -> None:
    transport = transport_of(broker)
    assert transport is not None
    for part in _parts_of(broker):
        if part.transport is None:
            part.bind(transport)


def _parts_of(broker: Broker) -> list[Part]:
    return [middleware for middleware in broker.middleware if isinstance(middleware, Part)]


def _is_installed(broker: Broker) -> bool:
    return bool(broker.__dict__.get(_MARK, {}).get("installed"))


def _check_declared(broker: Broker) -> None:
    """Actors that were declared before install: their options were not checked by the parts yet."""
    for actor in list(broker.actors.values()):
        for part in _parts_of(broker):
            try:
                part.check_actor(actor)
            except OptionError as exc:
                module = actor.fn.__module__
                raise OptionError(
                    f"{exc} (module {module!r} declares it before reliq.install: import it later)"
                ) from exc


# -- booting -------------------------------------------------------------------------------------------------------


def on_boot(broker: Broker) -> None:
    """Called before a worker's consumers start: refuses what cannot work and says what holds."""
    _refuse_pickle()
    if is_gevent_active():
        raise NotSupported(
            "reliq runs on threads; under dramatiq-gevent it is not tested. Start the workers with dramatiq."
        )
    _bind_all(broker)
    check_order(broker)
    get_logger(__name__, None).info(boot_line(broker))


def check_order(broker: Broker) -> None:
    """Raise `WiringError` for an order of middlewares, or an alias, that cannot work."""
    own = [m for m in broker.middleware if isinstance(m, Retries)]
    if len(own) > 1:
        raise WiringError("the broker has reliq.Retries twice: each failure would count twice. Remove one.")
    for cls in (DeadLetters, Delivery):
        if sum(isinstance(m, cls) for m in broker.middleware) > 1:
            raise WiringError(f"the broker has reliq.{cls.__name__} twice, and only one can hold. Remove one.")
    if own and _stock_retries(broker) is not None:
        raise WiringError(
            "a stock Retries was added after reliq's: each failure would be retried twice. Remove the one from "
            "dramatiq.middleware; reliq.Retries takes its place and its options."
        )
    late = next((m for m in broker.middleware if isinstance(m, Callbacks)), None)
    if own and late is not None and broker.middleware.index(own[0]) < broker.middleware.index(late):
        raise WiringError(
            "reliq.Retries stands before Callbacks in the broker's list, so Callbacks would act before it is decided "
            "whether the message has failed for good. Put Retries after it: add Callbacks with "
            "broker.add_middleware(Callbacks(), before=reliq.Retries)."
        )
    transport = transport_of(broker)
    for old in transport.settings.aliases if transport else ():
        if old in broker.actors:
            raise WiringError(
                f"alias {old!r} is also a declared actor: messages for it would go to two places. "
                "Drop the alias, or rename the actor."
            )


def boot_line(broker: Broker) -> str:
    """One line that says what holds on this broker."""
    transport = transport_of(broker)
    assert transport is not None
    parts = [f"reliq {package_version('dramatiq-reliq')} {transport.describe()}"]
    retries = next((m for m in broker.middleware if isinstance(m, Retries)), None)
    others = any(isinstance(m, StockRetries) for m in broker.middleware)
    parts.append(retries.describe() if retries else "retries by Dramatiq's own Retries" if others else "no retries")
    parts.append("delays durable" if transport.durable_delays else "delays in memory")
    parts.append(f"dead letters → {_example_queue(transport)}.dead")
    findings = [*_unknown_targets(broker, transport), *transport.check()]
    parts.extend(f"{it.found}: {it.why} (fix: {it.fix})" for it in findings if it.verdict == "failed")
    if any(finding.verdict == "unknown" for finding in findings):
        parts.append("the broker's settings cannot be read")
    return " | ".join(parts)


def _example_queue(transport: Transport[Any]) -> str:
    queues = transport.declared_queues()
    return queues[0] if len(queues) == 1 else "<queue>"


def _refuse_pickle() -> None:
    if isinstance(get_encoder(), PickleEncoder):
        raise NotSupported(
            "the encoder is dramatiq.PickleEncoder: whoever can write to the broker could run code in the workers. "
            "Use dramatiq.JSONEncoder, or an encoder of your own that loads no pickle."
        )
