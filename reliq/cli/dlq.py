"""`reliq dlq`: the group of the commands for dead letters, and those that read."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterable, Iterator
from contextlib import closing
from itertools import islice
from typing import TYPE_CHECKING, Any

import click

from .connect import connect
from .lazy import LazyGroup
from .options import global_options, selector_from, selector_options
from .output import Block, Column, Row, field_lines, put_object, put_rows, put_value, say

if TYPE_CHECKING:
    from ..desk.selector import Selector
    from ..message.letter import DeadLetter
    from ..transport.base import Transport

_PAGE = 100
_PREVIEW_BYTES = 500

COMMANDS = {
    "list": ("reliq.cli.dlq:list_letters", "Letters, the oldest death first."),
    "show": ("reliq.cli.dlq:show", "One letter, whole."),
    "groups": ("reliq.cli.dlq:show_groups", "Letters by cause: how many died of what."),
    "count": ("reliq.cli.dlq:count", "How many letters there are."),
    "replay": ("reliq.cli.dlq_write:replay", "Run the messages of letters again."),
    "discard": ("reliq.cli.dlq_write:discard", "Delete letters for good."),
}


@click.group("dlq", cls=LazyGroup, commands_of=COMMANDS)
@global_options
def dlq() -> None:
    """Dead letters: messages that will not run again by themselves, and why.

    Letters of plain Dramatiq are read and moved by the same commands; what they do not know is null.
    """


@click.command("list")
@selector_options
@click.option("--limit", type=click.IntRange(0), default=_PAGE, show_default=True, help="At most so many; 0 = all.")
@global_options
@click.pass_context
def list_letters(ctx: click.Context, /, limit: int, **options: Any) -> None:
    """Letters, the oldest death first."""
    from ..desk import letters

    selector = selector_from(options)
    transport = connect(ctx, every_queue=selector.queue is None)
    with closing(letters.select(transport, selector)) as found:
        page = islice(found, limit) if limit else found
        shown = put_rows(ctx, (_shown(transport, letter) for letter in page), _LIST_COLUMNS, _LIST_SPARE)
        rest = letters.count_rest(transport, selector, found, shown) if limit and shown == limit else 0
    if not shown:
        _say_nothing_found(transport, selector)
    elif rest:
        say(f"{rest} more; --limit 0 lists all")


@click.command("show")
@click.argument("letter_id", metavar="ID")
@click.option("--queue", metavar="NAME", help="Look on this queue only.")
@global_options
@click.pass_context
def show(ctx: click.Context, letter_id: str, queue: str | None) -> None:
    """One letter, whole, by its id or its message's."""
    from ..desk import letters

    transport = connect(ctx, every_queue=queue is None)
    shown = _shown(transport, letters.find(transport, letter_id, queue))
    put_object(ctx, shown, field_lines(_fields(shown)))


@click.command("groups")
@selector_options
@global_options
@click.pass_context
def show_groups(ctx: click.Context, /, **options: Any) -> None:
    """Letters by cause: how many died of what, and since when."""
    from ..desk import groups

    selector = selector_from(options)
    transport = connect(ctx, every_queue=selector.queue is None)
    if not put_rows(ctx, groups.groups(transport, selector), _GROUP_COLUMNS, _GROUP_SPARE):
        _say_nothing_found(transport, selector)


@click.command("count")
@selector_options
@global_options
@click.pass_context
def count(ctx: click.Context, /, **options: Any) -> None:
    """How many letters there are."""
    from ..desk import letters

    selector = selector_from(options)
    number = letters.count(connect(ctx, every_queue=selector.queue is None), selector)
    put_value(ctx, {"count": number}, number)


# -- how they look -------------------------------------------------------------------------------------------------


def _shown(transport: Transport[Any], letter: DeadLetter) -> dict[str, Any]:
    return transport.shown(letter.as_dict())


def _of(name: str) -> Column:
    return name, lambda row: row.get(name)


def _seconds(name: str) -> Column:
    """A time without its milliseconds."""
    return name, lambda row: _without_ms(row.get(name))


def _without_ms(text: Any) -> Any:
    return f"{text[:19]}Z" if isinstance(text, str) and len(text) > 19 else text


def _what_it_said(row: Row) -> Any:
    """The error's text; for a body that cannot be read, that it cannot."""
    if row.get("error_message") is None and row.get("body_base64") is not None:
        return f"(a body of {row.get('size_bytes')} bytes that cannot be read: dlq show)"
    return row.get("error_message")


_LIST_COLUMNS: tuple[Column, ...] = (
    _of("id"),
    _seconds("died_at"),
    _of("queue"),
    _of("actor"),
    _of("reason"),
    _of("attempts"),
    _of("error"),
    ("error_message", _what_it_said),
)
_LIST_SPARE = ("attempts", "died_at", "queue")
_GROUP_COLUMNS: tuple[Column, ...] = (
    _of("fingerprint"),
    _of("count"),
    _of("queue"),
    _of("actor"),
    _of("reason"),
    _of("error"),
    _seconds("first_seen"),
    _seconds("last_seen"),
    _of("sample"),
)
_GROUP_SPARE = ("first_seen", "queue", "last_seen", "sample")


def _fields(letter: Row) -> Iterator[tuple[str, Any]]:
    """The letter for people: what is long comes last."""
    long = ("cause_chain", "attempts_log", "traceback", "body_base64")
    yield from ((name, value) for name, value in letter.items() if name not in long)
    for name in ("cause_chain", "attempts_log"):
        if letter.get(name):
            yield name, Block("\n".join(_entries(letter[name])))
    if isinstance(letter.get("traceback"), str):
        yield "traceback", Block(letter["traceback"])
    if isinstance(letter.get("body_base64"), str):
        yield "body_base64", letter["body_base64"]
        yield "body", _preview(letter["body_base64"])


def _entries(items: Any) -> Iterable[str]:
    for item in items if isinstance(items, list) else [items]:
        values = item.items() if isinstance(item, dict) else [("", item)]
        yield " ".join(f"{name}={str(value)!r}" for name, value in values if value is not None)


def _preview(body_base64: str) -> str | None:
    """The beginning of a body as it came, for eyes; a redacted one has none."""
    try:
        body = base64.b64decode(body_base64, validate=True)
    except (binascii.Error, ValueError):
        return None
    more = "…" if len(body) > _PREVIEW_BYTES else ""
    return body[:_PREVIEW_BYTES].decode("utf-8", "backslashreplace") + more


def _say_nothing_found(transport: Transport[Any], selector: Selector) -> None:
    """Nothing matched: if that may be a slip of the pen, say so."""
    from ..desk.queues import unknown_queue

    unknown = unknown_queue(transport, selector.queue) if selector.queue is not None else None
    say(unknown or ("no dead letters" if selector.is_empty else "no dead letters match"))
