"""`reliq queues`: what queues hold, and the way back to plain Dramatiq."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import click

from .connect import connect
from .exits import FAILURE, Interrupted, PartlyDone, as_click_error, usage
from .lazy import LazyGroup
from .options import consent_options, global_options
from .output import Column, put_rows, say
from .work import CtrlC, Progress, ask

if TYPE_CHECKING:
    from ..transport.base import Transport

COMMANDS = {
    "list": ("reliq.cli.queues:list_queues", "Queues and what they hold."),
    "drain": ("reliq.cli.queues:drain", "Give delays, retries and letters back to plain Dramatiq."),
}


@click.group("queues", cls=LazyGroup, commands_of=COMMANDS)
@global_options
def queues() -> None:
    """Queues: what they hold; the way back to plain Dramatiq."""


def _column(name: str) -> Column:
    return name, lambda row: row[name]


#: Queues of reliq's own that the broker may list.
_CATCHERS = "reliq."
_KEYS = ("queue", "ready", "unacked", "delayed", "dead", "oldest_age", "consumers", "paused")
_LIST_COLUMNS = tuple(map(_column, _KEYS))
_DRAIN_COLUMNS = tuple(map(_column, ("queue", "delays", "letters")))


@click.command("list")
@click.option("--queue", "names", multiple=True, metavar="NAME", help="This queue only; may be repeated.")
@global_options
@click.pass_context
def list_queues(ctx: click.Context, names: tuple[str, ...]) -> None:
    """Queues and what they hold.

    Ages are in seconds, of the oldest message that is ready; what a broker cannot tell is null (-).
    """
    transport = connect(ctx, every_queue=not names)
    queues = _known(transport, names) if names else transport.queue_names()
    if not put_rows(ctx, map(_row, map(transport.depth, queues)), _LIST_COLUMNS):
        say("no queues")


def _known(transport: Transport[Any], names: Sequence[str]) -> list[str]:
    """The names as they were given, each once. Raises a usage error for one that is no queue."""
    from ..desk.queues import unknown_queue

    for queue in names:
        if (unknown := unknown_queue(transport, queue)) is not None:
            raise usage(f"{unknown}; reliq queues list shows all")
    return list(dict.fromkeys(names))


def _row(depth: Any) -> dict[str, Any]:
    age_ms = depth.oldest_age_ms
    return {
        "queue": depth.queue,
        "ready": depth.ready,
        "unacked": depth.unacked,
        "delayed": depth.delayed,
        "dead": depth.dead,
        "oldest_age": None if age_ms is None else round(age_ms / 1000, 3),
        "consumers": depth.consumers,
        "paused": None,
    }


@dataclass
class _Moved:
    """What one queue has given back so far."""

    queue: str
    delays: int = 0
    letters: int = 0

    @property
    def total(self) -> int:
        return self.delays + self.letters

    def add(self, number: int, letters: bool) -> None:
        if letters:
            self.letters += number
        else:
            self.delays += number


_LETTERS_EXPIRE = (
    "plain Dramatiq deletes letters 7 days after their death (dead_message_ttl), those that are older at its next "
    "maintenance, and does not say so"
)
_LETTERS_EXPIRE_RABBITMQ = (
    "the queues .XQ of plain Dramatiq keep a letter for 7 days from now (x-message-ttl); then RabbitMQ deletes it and "
    "does not say so"
)


@click.command("drain")
@click.option("--to-stock", is_flag=True, help="Into the form of plain Dramatiq. The one way there is.")
@click.option("--letters", is_flag=True, help="Dead letters too; plain Dramatiq deletes them after 7 days.")
@click.option("--queue", "names", multiple=True, metavar="NAME", help="This queue; may be repeated.")
@click.option("--all", "everything", is_flag=True, help="Every queue.")
@consent_options
@global_options
@click.pass_context
def drain(
    ctx: click.Context,
    to_stock: bool,
    letters: bool,
    names: tuple[str, ...],
    everything: bool,
    yes: bool,
    dry_run: bool,
) -> None:
    """Give delays and retries (and --letters) back to plain Dramatiq, so that its workers alone run all of them.

    Stop every worker that runs with reliq first; it would take the delays back. May be broken off and repeated:
    each step moves its messages whole.
    """
    if not to_stock:
        raise usage("say where to: --to-stock gives delays and retries back to plain Dramatiq")
    if bool(names) == everything:
        raise usage("say which: --queue NAME, or --all for every queue" if not names else "--queue or --all, not both")
    transport = connect(ctx, every_queue=everything)
    chosen = _known(transport, names) if names else transport.queue_names()
    _say_plan(transport, chosen, letters)
    if dry_run:
        put_rows(ctx, ({"queue": queue, "delays": 0, "letters": 0} for queue in chosen), _DRAIN_COLUMNS)
        return
    if letters:
        say(f"careful: {_LETTERS_EXPIRE_RABBITMQ if transport.kind == 'rabbitmq' else _LETTERS_EXPIRE}")
    say("careful: every worker that runs with reliq must be stopped, and stay so")
    ask("Give them back to plain Dramatiq?", yes=yes)
    moved: list[_Moved] = []
    failure = _drain_all(transport, chosen, letters, moved)
    put_rows(ctx, map(asdict, moved), _DRAIN_COLUMNS)
    if failure is not None:
        if failure.exit_code == FAILURE and any(row.total for row in moved):
            raise PartlyDone(failure.message)
        raise failure


def _drain_all(
    transport: Transport[Any], queues: list[str], letters: bool, moved: list[_Moved]
) -> click.ClickException | None:
    """One queue after the other, until one fails or Ctrl-C; what has moved so far is in `moved` either way."""
    try:
        with CtrlC() as ctrl_c:
            for queue in queues:
                moved.append(_Moved(queue))
                _drain_queue(transport, moved[-1], letters, ctrl_c)
    except (Exception, KeyboardInterrupt) as exc:
        failure = as_click_error(exc)
        if failure is None:
            raise
        return failure
    return None


def _say_plan(transport: Transport[Any], queues: list[str], letters: bool) -> None:
    for queue in queues:
        depth = transport.depth(queue)
        if queue.startswith(_CATCHERS):
            say(f"queue {queue!r}: {depth.ready} messages whose queue is gone go back to it, it is declared anew")
            continue
        # A broker in which delays come to their queue by themselves counts none: said once, for all queues.
        delays = "" if depth.delayed is None else f"{depth.delayed} delays and retries"
        parts = [part for part in (delays, f"{depth.dead} dead letters" if letters else "") if part]
        if parts:
            say(f"queue {queue!r}: {' and '.join(parts)} (what has that form already stays as it is)")
    _say_until(transport)


def _say_until(transport: Transport[Any]) -> None:
    """Where delays wait in the broker and need nobody: until when."""
    delays_until = getattr(transport, "delays_until", None)
    if delays_until is None:
        return
    until = delays_until()
    if until is None:
        say("no delays or retries wait in the broker")
    else:
        say(
            f"delays and retries wait in the broker, until {until:%Y-%m-%dT%H:%M:%SZ} at the latest; they come to "
            "their queues by themselves, whoever works on them. Keep what is called reliq.* there until then"
        )


def _drain_queue(transport: Transport[Any], moved: _Moved, letters: bool, ctrl_c: CtrlC) -> None:
    queue = moved.queue
    progress = Progress(f"queue {queue!r}: moved")
    # The delays first: asked for letters, a transport has none left to move before them.
    for with_letters in (False, True) if letters else (False,):
        for number in transport.to_stock(queue, letters=with_letters):
            moved.add(number, with_letters)
            progress.at(moved.total)
            if ctrl_c.pressed:
                progress.end()
                raise Interrupted("interrupted between two steps; run the same command again to go on")
    progress.end()
    if letters:
        left = sum(group["count"] for group in transport.dead_groups(queue) if group["fingerprint"] is not None)
        if left:
            say(f"queue {queue!r}: {left} letters stay with reliq, plain Dramatiq could not read their bodies")
