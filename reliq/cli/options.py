"""Options that many commands share: the global ones, a selector, the consent to a write.

Global options may stand before and after the command: every command takes them, and all write into one `Settings`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from ..desk.selector import Selector

F = TypeVar("F", bound=Callable[..., Any])

FORMS = ("table", "json", "jsonl")


@dataclass
class Settings:
    """What the global options said."""

    broker: str | None = None
    url: str | None = None
    namespace: str | None = None
    management_url: str | None = None
    encoder: str | None = None
    output: str = "table"


def settings_of(ctx: click.Context) -> Settings:
    """The settings of this call, the same for the command and all its groups."""
    return ctx.find_root().ensure_object(Settings)


def _keep(ctx: click.Context, param: click.Parameter, value: Any) -> None:
    if value is not None:
        assert param.name is not None
        setattr(settings_of(ctx), param.name, value)


def _option(*names: str, **more: Any) -> Callable[[F], F]:
    return click.option(*names, expose_value=False, callback=_keep, **more)


def global_options(command: F) -> F:
    """Which broker, and which form the output has."""
    for add in reversed(
        (
            _option("-b", "--broker", metavar="APP:BROKER", help="The application's broker, as dramatiq takes it."),
            _option(
                "--url", metavar="URL", help="Its address instead: redis://HOST/DB, amqp://USER:PASSWORD@HOST/VHOST."
            ),
            _option("--namespace", metavar="NAME", help="With --url: the namespace on Redis (dramatiq)."),
            _option("--management-url", metavar="URL", help="With RabbitMQ: its management API, which lists queues."),
            _option("--encoder", metavar="MODULE:NAME", help="The encoder of the bodies, where it is not JSON."),
            _option("-o", "--output", type=click.Choice(FORMS), help="The form of the output (table)."),
        )
    ):
        command = add(command)
    return command


_SELECTOR = (
    click.option("--queue", metavar="NAME", help="Letters of this queue."),
    click.option("--actor", metavar="NAME", help="Letters of this actor."),
    click.option("--error", metavar="CLASS", help="Letters of this exception class, as it is listed."),
    click.option("--fingerprint", metavar="HEX", help="Letters of this group."),
    click.option("--reason", metavar="WORD", help="Letters with this reason: retries_exhausted, permanent, …"),
    click.option("--older-than", metavar="TIME", help="Letters that died longer ago than this: 90s, 30m, 2h, 7d."),
    click.option("--newer-than", metavar="TIME", help="Letters that died within this time."),
    click.option("--id", "ids", multiple=True, metavar="ID", help="This letter, by its id or its message's."),
    click.option("--match", multiple=True, metavar="PATH=VALUE", help="args.0=42, kwargs.user.id=7. All must hold."),
)
SELECTOR_NAMES = ("queue", "actor", "error", "fingerprint", "reason", "older_than", "newer_than", "ids", "match")


def selector_options(command: F) -> F:
    """Which letters."""
    for add in reversed(_SELECTOR):
        command = add(command)
    return command


def selector_from(options: dict[str, Any]) -> Selector:
    """The selector in a command's options, which are taken out. Raises `SelectorError`."""
    from ..desk.selector import Selector

    return Selector.parse(**{name: options.pop(name) for name in SELECTOR_NAMES})


def consent_options(command: F) -> F:
    """Whether to ask before a write."""
    for add in (
        click.option("--dry-run", is_flag=True, help="Say what would be done, and do nothing."),
        click.option("--yes", is_flag=True, help="Do not ask."),
    ):
        command = add(command)
    return command
