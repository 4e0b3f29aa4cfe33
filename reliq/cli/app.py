"""The table of commands, and what every command has in common: global options, errors as one line.

A command's module is imported when the command is called: `reliq --help` costs click and nothing else.
"""

from __future__ import annotations

from typing import Any

import click

from .exits import as_click_error
from .lazy import LazyGroup
from .options import global_options

COMMANDS = {
    "demo": ("reliq.demo.command:command", "What reliq does, shown in half a minute; needs no set-up."),
    "dlq": ("reliq.cli.dlq:dlq", "Dead letters: look at them, replay them, discard them."),
    "queues": ("reliq.cli.queues:queues", "Queues: what they hold; the way back to plain Dramatiq."),
    "actors": ("reliq.cli.actors:actors", "Actors that an application declares."),
    "send": ("reliq.cli.send:send", "Send one message."),
}


class _Root(LazyGroup):
    """Turns what a command raises into one line on stderr and the right exit code."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except click.exceptions.Exit:
            raise
        except (Exception, KeyboardInterrupt) as exc:
            error = as_click_error(exc)
            if error is None or error is exc:
                raise
            raise error from exc


def _say_version(ctx: click.Context, param: click.Parameter, wanted: bool) -> None:
    if wanted and not ctx.resilient_parsing:
        from .. import __version__

        click.echo(f"reliq {__version__}")
        ctx.exit()


@click.group("reliq", cls=_Root, commands_of=COMMANDS)
@click.option(
    "--version", is_flag=True, is_eager=True, expose_value=False, callback=_say_version, help="Show the version."
)
@global_options
def root() -> None:
    """Reliability for Dramatiq: what waits, what died and why, and how to run it again.

    Say which broker: -b app:broker, as the dramatiq command takes it, or --url. These options may stand before or
    after the command.
    """
