"""The command line as click knows it, in the words of docs/cli.md."""

from __future__ import annotations

from collections.abc import Iterator

import click

from reliq.cli.app import root
from reliq.cli.options import SELECTOR_NAMES, selector_options


def leaves(group: click.Group = root, before: str = "") -> Iterator[tuple[str, click.Command]]:
    """Every command that does something, by its whole name without `reliq`."""
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        if isinstance(command, click.Group):
            yield from leaves(command, f"{before}{name} ")
        else:
            yield before + name, command


def options(command: click.Command) -> dict[str, click.Option]:
    """Its options by name, the two that every program has aside."""
    return {
        str(param.name): param
        for param in command.params
        if isinstance(param, click.Option) and param.name not in ("help", "version")
    }


GLOBAL = options(root)
SELECTOR = options(click.command("any")(selector_options(lambda: None)))


def selects(command: click.Command) -> bool:
    """Whether it takes the selectors."""
    return set(SELECTOR_NAMES) <= set(options(command))


def own_options(command: click.Command) -> list[click.Option]:
    """What it takes beside the global options and the selectors."""
    shared = {*GLOBAL, *(SELECTOR if selects(command) else ())}
    return [option for name, option in options(command).items() if name not in shared]


def cells(option: click.Option) -> tuple[str, str]:
    """Its row in a table: how it is written, and its help with the default."""
    names = ", ".join(f"`{name}`" for name in [*option.opts, *option.secondary_opts])
    if not option.is_flag:
        kind = option.metavar or ("|".join(map(str, getattr(option.type, "choices", ()))) or "N")
        names = names[:-1] + f" {kind}`"
    shown = f" (default {option.default})" if option.show_default else ""
    return names, f"{option.help}{shown}"


def usage(name: str, command: click.Command) -> str:
    """`reliq dlq show [OPTIONS] ID`."""
    context = click.Context(command, info_name=f"reliq {name}")
    return " ".join([context.info_name or "", *command.collect_usage_pieces(context)])
