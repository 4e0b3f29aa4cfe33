"""From `-b` or `--url` to a transport.

Callers: every command that talks to a broker.
Guarantee: no socket is opened here. What cannot be connected to is one `UsageError` or `Failure` that says what to
type; a URL's password is in none of them.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import traceback
from collections.abc import Callable
from importlib import import_module
from typing import TYPE_CHECKING, Any, TypeVar

import click

from .address import broker_at, checked_management
from .exits import Failure, usage
from .options import Settings, settings_of

if TYPE_CHECKING:
    from dramatiq.broker import Broker

    from ..transport.base import Transport

T = TypeVar("T")

_WHICH = (
    "say which broker: -b app:broker, as the dramatiq command takes it, or --url redis://HOST:6379/0 "
    "or amqp://USER:PASSWORD@HOST/VHOST"
)
_NO_LIST = (
    "RabbitMQ lists no queues over AMQP: name one with --queue, or give the management API "
    "(--management-url http://USER:PASSWORD@HOST:15672) or the application (-b app:broker)"
)

#: What these log is in the error that follows; said once is enough. A handler that does nothing keeps it off stderr,
#: unless the application has handlers of its own.
_RAISED_AS_WELL = ("reliq.transport.rabbitmq.link", "reliq.transport.rabbitmq.publisher")


def connect(ctx: click.Context, *, every_queue: bool = False) -> Transport[Any]:
    """The transport of the broker that the global options name, attached if reliq is not installed on it. With
    `every_queue` the command is about all queues: refused where the broker cannot list them."""
    settings = settings_of(ctx)
    if (settings.broker is None) == (settings.url is None):
        raise usage(_WHICH if settings.url is None else "-b and --url name two brokers; give one of them")
    if settings.broker is not None and settings.namespace is not None:
        raise usage("--namespace goes with --url; with -b the application's broker has its own")
    management = None if settings.management_url is None else checked_management(settings.management_url)
    broker = application(ctx) if settings.url is None else broker_at(settings.url, settings)
    if every_queue and settings.url is not None and settings.url.lower().startswith("amqp") and management is None:
        raise usage(_NO_LIST)
    _use_encoder(ctx, settings)
    from ..errors import NotSupported
    from ..wiring import attach, transport_of

    for name in _RAISED_AS_WELL:
        logging.getLogger(name).addHandler(logging.NullHandler())
    try:
        transport = transport_of(broker) or attach(broker)
    except NotSupported as exc:
        raise usage(str(exc)) from exc
    if management is not None:
        _use_management(transport, management)
    if settings.url is not None and hasattr(transport, "queues_as_they_stand"):
        # Nobody has said here with which arguments the application declares them.
        transport.queues_as_they_stand = True
    ctx.call_on_close(transport.disconnect)
    return transport


def _use_management(transport: Transport[Any], url: str) -> None:
    use = getattr(transport, "use_management", None)
    if use is None:
        raise usage("--management-url is for RabbitMQ; leave it out")
    use(url)


def application(ctx: click.Context) -> Broker:
    """The broker of `-b`."""
    spec = settings_of(ctx).broker
    if spec is None:
        raise usage("this needs the application's own declarations: -b app:broker, as the dramatiq command takes it")
    from dramatiq.broker import Broker
    from dramatiq.cli import import_broker

    _, broker = _loaded(spec, import_broker)
    if not isinstance(broker, Broker):
        raise Failure(f"{spec!r} gives a {type(broker).__name__}, not a broker")
    return broker


def _loaded(spec: str, load: Callable[[str], T]) -> T:
    """`load(spec)` with the current folder importable, as `dramatiq` has it. What the application prints while it is
    imported goes to stderr: stdout is ours."""
    here = os.getcwd()
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        with contextlib.redirect_stdout(sys.stderr):
            return load(spec)
    except (Exception, SystemExit) as exc:
        raise _explained(spec, exc) from exc


def _explained(spec: str, exc: Exception | SystemExit) -> click.ClickException:
    module = spec.partition(":")[0]
    if isinstance(exc, SystemExit):
        return Failure(f"importing {spec!r} ended the program (exit {exc.code}); name the module that makes the broker")
    if "/" in module or module.startswith("."):
        return usage(f"cannot import {module!r}; write a module's name as Python does: app, or package.module")
    if isinstance(exc, ModuleNotFoundError) and exc.name and f"{module}.".startswith(f"{exc.name}."):
        return usage(f"there is no module {exc.name!r}; run this in the application's folder, or set PYTHONPATH")
    if isinstance(exc, ValueError) and not module:
        return usage(f"cannot read {spec!r}; write module, module:attribute or module:callable")
    frames = traceback.extract_tb(exc.__traceback__)
    own = [frame for frame in frames if "importlib" not in frame.filename and frame.filename != __file__]
    if isinstance(exc, ImportError) and own and own[-1].filename.endswith(os.path.join("dramatiq", "cli.py")):
        return usage(f"{exc} Write module, module:attribute or module:callable.")
    where = f" ({os.path.basename(own[-1].filename)}, line {own[-1].lineno})" if own else ""
    return Failure(f"importing {spec!r} failed: {type(exc).__name__}: {exc}{where}")


def _use_encoder(ctx: click.Context, settings: Settings) -> None:
    """Dramatiq's encoder is one per process; it is put back when the command ends."""
    if settings.encoder is None:
        return
    from dramatiq.encoder import Encoder
    from dramatiq.message import get_encoder, set_encoder

    found = _loaded(settings.encoder, _object_at)
    encoder = found() if isinstance(found, type) and issubclass(found, Encoder) else found
    if not isinstance(encoder, Encoder):
        raise usage(f"--encoder {settings.encoder!r} is a {type(encoder).__name__}, not a dramatiq Encoder")
    before = get_encoder()
    ctx.call_on_close(lambda: set_encoder(before))
    set_encoder(encoder)


def _object_at(spec: str) -> Any:
    module, _, path = spec.partition(":")
    found: Any = import_module(module)
    for name in path.split(".") if path else ():
        found = getattr(found, name)
    return found
