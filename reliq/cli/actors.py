"""`reliq actors`: what an application declares."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import click

from .connect import application, connect
from .lazy import LazyGroup
from .options import global_options
from .output import put_rows, say

COMMANDS = {"list": ("reliq.cli.actors:list_actors", "Actors with their queues, priorities and options.")}


@click.group("actors", cls=LazyGroup, commands_of=COMMANDS)
@global_options
def actors() -> None:
    """Actors that an application declares."""


@click.command("list")
@global_options
@click.pass_context
def list_actors(ctx: click.Context) -> None:
    """Actors with their queues, priorities and options. Needs -b: a broker knows messages, not actors."""
    application(ctx)
    broker = connect(ctx).broker
    rows = [
        {"actor": name, "queue": actor.queue_name, "priority": actor.priority, "options": _told(actor.options)}
        for name, actor in sorted(broker.actors.items())
    ]
    columns = [(key, lambda row, key=key: row[key]) for key in ("actor", "queue", "priority", "options")]
    if not put_rows(ctx, rows, columns):
        say("no actors are declared when this broker's module has been imported; name the module that imports them")


def _told(value: Any) -> Any:
    """An option as JSON can hold it: classes and functions by their names."""
    if isinstance(value, Mapping):
        return {str(key): _told(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [_told(item) for item in value]
    if value is None or isinstance(value, (str, int, float, bool)):
        return value
    name = getattr(value, "__qualname__", None)
    return f"{value.__module__}.{name}" if isinstance(name, str) else repr(value)
