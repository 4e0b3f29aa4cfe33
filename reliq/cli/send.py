"""`reliq send`: one message, by hand."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

import click

from .connect import connect
from .exits import Failure, usage
from .options import global_options, settings_of
from .output import put_value

if TYPE_CHECKING:
    from dramatiq.message import Message

    from ..transport.base import Transport


# An argument may begin with a minus; what is neither an option nor JSON is refused all the same.
@click.command("send", context_settings={"ignore_unknown_options": True})
@click.argument("actor")
@click.argument("args", nargs=-1, type=click.UNPROCESSED)
@click.option("--kwargs", "kwargs_text", metavar="JSON", default="{}", help="Keyword arguments, as an object.")
@click.option("--delay", type=click.IntRange(0), metavar="MS", help="Run it so many milliseconds from now.")
@click.option("--queue", metavar="NAME", help="The queue (the actor's own; needed with --url).")
@global_options
@click.pass_context
def send(
    ctx: click.Context, actor: str, args: tuple[str, ...], kwargs_text: str, delay: int | None, queue: str | None
) -> None:
    """Send one message and print its id. ARGS are JSON: 42, true, '"text"', '{"a": 1}'.

    With -b the actor must be declared, and its queue and options apply; with --url any name is sent.
    """
    values = [_json(text, "argument") for text in args]
    kwargs = _json(kwargs_text, "--kwargs")
    if not isinstance(kwargs, dict):
        raise usage(f"--kwargs must be an object, got {kwargs_text!r}; write --kwargs '{{\"name\": 1}}'")
    if queue is None and settings_of(ctx).url is not None:
        raise usage("with --url say which queue: --queue NAME; only the application knows its actors' queues")
    transport = connect(ctx)
    message = _message(ctx, transport, actor, values, kwargs, queue)
    sent = transport.broker.enqueue(message, delay=delay)
    put_value(ctx, {"message_id": sent.message_id}, sent.message_id)


def _message(
    ctx: click.Context, transport: Transport[Any], name: str, args: list[Any], kwargs: dict[str, Any], queue: str | None
) -> Message[Any]:
    from dramatiq.message import Message

    from ..desk.selector import near
    from ..transport.base import check_queue_name

    if queue is not None:
        if not _QUEUE_NAME.fullmatch(queue):
            raise usage(
                f"no worker can declare a queue {queue!r}; a name has letters, digits and ._- after a letter or _"
            )
        check_queue_name(queue)
    if settings_of(ctx).url is not None:
        assert queue is not None
        return Message(queue_name=queue, actor_name=name, args=tuple(args), kwargs=kwargs, options={})
    declared = transport.broker.actors
    if name not in declared:
        raise Failure(f"the application declares no actor {name!r}{near(name, declared)}; reliq actors list shows all")
    message: Message[Any] = declared[name].message_with_options(args=tuple(args), kwargs=kwargs)
    return message if queue is None else message.copy(queue_name=queue)


#: What Dramatiq lets an actor declare.
_QUEUE_NAME = re.compile(r"[a-zA-Z_][a-zA-Z0-9._-]*")


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON")


def _json(text: str, what: str) -> Any:
    try:
        return json.loads(text, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as exc:
        raise usage(f"{what} {text!r} is not JSON ({exc}); a text needs its quotes: '\"text\"'") from exc
