"""The command `reliq demo`.

Callers: the command line's table of commands, `python -m reliq.demo`, `make demo`.
Guarantee: exit code 0 only if reliq's done + dead = sent; 1 if not; 130 after Ctrl-C; nothing is left running.
Imported for `reliq --help` too: what needs Dramatiq or Redis is imported when the demo runs.
"""

from __future__ import annotations

from importlib import import_module
from typing import Literal

import click

from .plan import FEWEST

MESSAGES, MOST_MESSAGES = 300, 2_000


@click.command("demo")
@click.option(
    "--broker",
    "kind",
    type=click.Choice(["redis", "rabbitmq"]),
    default="redis",
    show_default=True,
    help="Which broker to show it on. RabbitMQ is looked for on this machine (and installed by root on Debian).",
)
@click.option(
    "--messages",
    type=click.IntRange(FEWEST, MOST_MESSAGES),
    default=MESSAGES,
    show_default=True,
    help="How many messages to send on each side, the one that cannot be decoded included.",
)
@click.option("--seed", type=int, default=1, show_default=True, help="Decides which messages fail and how often.")
@click.option(
    "--plain",
    type=click.Choice(["on", "off"]),
    default="on",
    show_default=True,
    help="Whether the app also runs on plain Dramatiq, to compare.",
)
@click.option("--keep", is_flag=True, help="Leave the server and reliq's workers running until Ctrl-C, to look around.")
@click.pass_context
def command(
    ctx: click.Context, kind: Literal["redis", "rabbitmq"], messages: int, seed: int, plain: str, keep: bool
) -> None:
    """Show what reliq does: plain Dramatiq and reliq side by side under faults.

    Takes up to a minute and needs no set-up: it starts a server of its own, on 127.0.0.1 only. One app runs twice, on
    plain Dramatiq and with reliq. Many tasks fail for a while and some for good, one message cannot be decoded, a
    worker is killed with -9. Redis is away for two seconds; RabbitMQ runs short of memory, then is killed and started
    again. Then what became of every message is counted, from what the tasks logged and from a dump of the broker.

    Exits with 1 unless on reliq's side every message is done or a dead letter.
    """
    try:
        from .run import run_demo

        import_module(f".{kind}_scene", __package__)
    except ImportError as exc:
        raise click.ClickException(
            f"the demo needs a client: pip install 'dramatiq-reliq[{kind},demo]' ({exc})"
        ) from exc

    ctx.exit(run_demo(kind=kind, messages=messages, seed=seed, with_plain=plain == "on", keep=keep))
