"""A click group whose commands are imported when they are called.

Callers: `app.py` and the modules that group commands. The table says each command's place and its line in the help,
so that neither help nor completion imports it.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from importlib import import_module
from typing import Any

import click


class LazyGroup(click.Group):
    """`commands_of`: name -> ("module:attribute", line in the help)."""

    def __init__(self, *args: Any, commands_of: Mapping[str, tuple[str, str]], **options: Any) -> None:
        super().__init__(*args, **options)
        self._places = dict(commands_of)

    def list_commands(self, ctx: click.Context) -> list[str]:
        """In the table's order."""
        return list(self._places)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Imports it."""
        if cmd_name not in self._places:
            return None
        module, _, name = self._places[cmd_name][0].partition(":")
        command: click.Command = getattr(import_module(module), name)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """As click, but a name that is nearly right is answered with the right one."""
        if args and args[0] not in self._places and not args[0].startswith("-"):
            near = difflib.get_close_matches(args[0], self._places, n=1)
            advice = f"did you mean {near[0]!r}?" if near else f"one of: {', '.join(self._places)}"
            raise click.UsageError(f"No such command {args[0]!r}; {advice}", ctx)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """From the table."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, line) for name, (_, line) in self._places.items()])
