"""`reliq dlq replay` and `reliq dlq discard`: the commands that change dead letters."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from .connect import connect
from .exits import FAILURE, INTERRUPTED, PARTLY
from .options import consent_options, global_options, selector_from, selector_options
from .output import field_lines, put_object, say
from .work import CtrlC, Progress, ask

if TYPE_CHECKING:
    from ..desk.replay import Outcome, Plan, Watch
    from ..message.letter import DeadLetter
    from ..transport.base import Transport

_LINES = 20

_everything = click.option("--all", "everything", is_flag=True, help="Every letter of every queue.")


@click.command("replay")
@selector_options
@_everything
@consent_options
@global_options
@click.pass_context
def replay(ctx: click.Context, /, everything: bool, yes: bool, dry_run: bool, **options: Any) -> None:
    """Run the messages of letters again, with all their retries; the letters go.

    At-least-once: what a message had done before it died it may do again. A letter is removed when its message is
    stored, so that an interrupted replay loses nothing: run it again, and it goes on with the rest.
    """
    from ..desk import replay as desk

    _write(ctx, "replay", desk.replay, everything, yes, dry_run, options)


@click.command("discard")
@selector_options
@_everything
@consent_options
@global_options
@click.pass_context
def discard(ctx: click.Context, /, everything: bool, yes: bool, dry_run: bool, **options: Any) -> None:
    """Delete letters for good: nothing brings them back.

    To keep a copy first: reliq dlq list --limit 0 -o jsonl > letters.jsonl, with the same selector.
    """
    from ..desk import replay as desk

    _write(ctx, "discard", desk.discard, everything, yes, dry_run, options)


_QUESTIONS = {
    "replay": "Replay {}?",
    "discard": "Delete {} for good? Nothing brings them back.",
}
_DONE = {"replay": "replayed", "discard": "deleted"}


def _write(
    ctx: click.Context,
    action: str,
    act: Callable[[Transport[Any], Plan, Watch], Outcome],
    everything: bool,
    yes: bool,
    dry_run: bool,
    options: dict[str, Any],
) -> None:
    from ..desk import replay as desk

    selector = selector_from(options)
    if selector.is_empty and not everything:
        # Before anything is asked of the broker.
        desk.refuse_everything()
    transport = connect(ctx, every_queue=selector.queue is None)
    planned = desk.plan(transport, selector, everything=everything)
    _say_plan(action, transport, planned)
    if dry_run or not planned.matched:
        _put(ctx, {"matched": planned.matched, "done": 0, "failed": 0})
        ctx.exit(FAILURE if planned.unknown else 0)
    ask(_QUESTIONS[action].format(_letters(planned.matched)), yes=yes)
    with CtrlC() as ctrl_c:
        outcome = _act(action, act, transport, planned, ctrl_c)
    _put(ctx, {"matched": outcome.matched, "done": outcome.done, "failed": outcome.failed})
    ctx.exit(_end(action, planned, outcome))


def _act(
    action: str,
    act: Callable[[Transport[Any], Plan, Watch], Outcome],
    transport: Transport[Any],
    planned: Plan,
    ctrl_c: CtrlC,
) -> Outcome:
    from ..desk.replay import Watch

    progress = Progress(_DONE[action], planned.matched)
    said = 0

    def after_each(outcome: Outcome) -> bool:
        progress.at(outcome.tried)
        return not ctrl_c.pressed

    def failed(letter: DeadLetter, why: str) -> None:
        nonlocal said
        said += 1
        if said <= _LINES:
            progress.end()
            say(f"letter {letter.id} (queue {letter.queue!r}) stays: {why}")
        elif said == _LINES + 1:
            say("more letters stay; only their number is told from here on")

    outcome = act(transport, planned, Watch(after_each, failed))
    progress.end()
    return outcome


def _say_plan(action: str, transport: Transport[Any], planned: Plan) -> None:
    from ..desk.letters import unknown_letter
    from ..desk.queues import unknown_queue

    for wanted in planned.unknown:
        say(unknown_letter(wanted, planned.selector.queue))
    if not planned.matched:
        queue = planned.selector.queue
        unknown = unknown_queue(transport, queue) if queue is not None else None
        say(f"nothing to {action}: {unknown or 'no dead letters match'}")
        return
    say(f"{action}: {_letters(planned.matched)}")
    rows = planned.counts.most_common(_LINES)
    for (queue, actor), number in rows:
        say(f"  {number} on queue {queue!r}, {f'actor {actor!r}' if actor is not None else 'not readable'}")
    if len(planned.counts) > len(rows):
        say(f"  and more, of {len(planned.counts) - len(rows)} other actors")


def _end(action: str, planned: Plan, outcome: Outcome) -> int:
    """Says how it ended where that is not plain, and returns the exit code."""
    if outcome.gone:
        say(f"{_letters(outcome.gone)} had been taken by somebody else meanwhile")
    rest = outcome.matched - outcome.tried
    if outcome.error is not None:
        say(f"the broker went away: {outcome.error}")
        say(f"{_letters(rest)} not dealt with yet; run the same command again to go on")
    elif outcome.stopped:
        say(f"interrupted: {outcome.tried} of {outcome.matched} dealt with, the rest is untouched")
        say("run the same command again to go on")
        return INTERRUPTED
    if outcome.error is None and not outcome.failed and not planned.unknown:
        return 0
    return PARTLY if outcome.done else FAILURE


def _put(ctx: click.Context, result: dict[str, Any]) -> None:
    put_object(ctx, result, field_lines(result.items()))


def _letters(number: int) -> str:
    return "1 letter" if number == 1 else f"{number} letters"
