"""From an address on the command line to a broker: `--url`, and what `--management-url` may be.

Caller: `connect.py`.
Guarantee: no socket is opened here. What cannot be read is one `UsageError` that says what to type; a URL's password
is in none of them, which is why URLs are checked here: the clients' own errors quote them.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any
from urllib.parse import SplitResult, urlsplit

import click

from .exits import usage
from .options import Settings

if TYPE_CHECKING:
    from dramatiq.broker import Broker


@dataclass(frozen=True)
class Kind:
    """Brokers of one kind: their class by name, so that no client is imported that is not in use; the extra that has
    the client; the form of their addresses."""

    broker: str
    extra: str
    form: str


_REDIS = Kind("dramatiq.brokers.redis:RedisBroker", "redis", "redis://[[USER]:PASSWORD@]HOST:PORT/DB")
_RABBITMQ = Kind("dramatiq.brokers.rabbitmq:RabbitmqBroker", "rabbitmq", "amqp://USER:PASSWORD@HOST:PORT/VHOST")
SCHEMES = {"redis": _REDIS, "rediss": _REDIS, "unix": _REDIS, "amqp": _RABBITMQ, "amqps": _RABBITMQ}
_MANAGEMENT_FORM = "http://USER:PASSWORD@HOST:15672"
_ENCODE = "a password with one of / # ? @ must be percent-encoded"


def broker_at(url: str, settings: Settings) -> Broker:
    """A broker for this address, without middleware."""
    kind = _kind_of(url)
    module, name = kind.broker.split(":")
    if kind is not _REDIS and settings.namespace is not None:
        raise usage("--namespace is for Redis; on RabbitMQ the vhost in the URL says where")
    parts = [_checked(part, kind) for part in (url.split(";") if kind is _RABBITMQ else [url])]
    try:
        broker_class = getattr(import_module(module), name)
    except ImportError as exc:
        scheme = parts[0].scheme
        raise usage(f"{scheme}:// needs a client: pip install 'dramatiq-reliq[{kind.extra}]' ({exc})") from exc
    try:
        # Opens nothing, and finds a parameter that no connection takes.
        return _redis(broker_class, url, settings) if kind is _REDIS else _rabbitmq(broker_class, url)
    except (TypeError, ValueError, SyntaxError) as exc:
        raise _unreadable("a parameter has a value that the client does not take", kind) from exc


def _redis(broker_class: Any, url: str, settings: Settings) -> Broker:
    broker: Broker = broker_class(url=url, namespace=settings.namespace or "dramatiq", middleware=[])
    broker.client.connection_pool.make_connection()  # type: ignore[attr-defined]
    return broker


def _rabbitmq(broker_class: Any, url: str) -> Broker:
    broker: Broker = broker_class(url=url, middleware=[])
    return broker


def _kind_of(url: str) -> Kind:
    scheme, mark, _ = url.partition("://")
    if not mark or not scheme:
        raise _unreadable("it has no scheme", _REDIS)
    kind = SCHEMES.get(scheme.lower())
    if kind is None:
        known = ", ".join(f"{name}://" for name in SCHEMES)
        raise usage(f"--url: reliq serves no {scheme}:// address; it serves {known}. Others: -b app:broker")
    return kind


def _checked(url: str, kind: Kind) -> SplitResult:
    parts = _split(url)
    if isinstance(parts, str):
        raise _unreadable(parts, kind)
    if SCHEMES.get(parts.scheme) is not kind:
        raise _unreadable("a password with a ; must be percent-encoded", kind)
    path = parts.path[1:]
    if kind is _REDIS:
        if parts.scheme != "unix" and path.strip("/") and not path.strip("/").isdecimal():
            raise _unreadable("what follows the host is not the number of a database", kind)
    elif not parts.hostname:
        raise _unreadable("it has no host", kind)
    elif "/" in path:
        raise _unreadable("a / in a vhost's name must be written %2F", kind)
    elif parts.username is not None and parts.password is None:
        raise _unreadable("a user needs a password", kind)
    return parts


def _split(url: str) -> SplitResult | str:
    """The parts of a URL whose host and port can be read, else what is wrong."""
    try:
        parts = urlsplit(url)
        port_is_fine = parts.port is None or parts.port > 0
    except ValueError:
        return f"its host or port is none ({_ENCODE})"
    return parts if port_is_fine and not parts.fragment and "@" not in parts.path + parts.query else _ENCODE


def _unreadable(why: str, kind: Kind) -> click.UsageError:
    return usage(f"--url cannot be read: {why}; write {kind.form}")


def checked_management(url: str) -> str:
    """The management API's address, if it can be one."""
    parts = _split(url)
    why = parts if isinstance(parts, str) else _no_management(parts)
    if why is not None:
        raise usage(f"--management-url cannot be read: {why}; write {_MANAGEMENT_FORM}")
    return url


def _no_management(parts: SplitResult) -> str | None:
    if parts.scheme not in ("http", "https"):
        return "it begins with neither http:// nor https://"
    if not parts.hostname:
        return "it has no host"
    return "it has a query" if parts.query else None
