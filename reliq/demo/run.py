"""The demo from its first line to its last: what is said around the run, and what follows from it.

Callers: `command`. Everything goes to stdout, in the order in which it happens; reasons for a failure go to stderr.
"""

from __future__ import annotations

import logging
import shutil
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from reliq.testing import ServerFailed, ServerMissing

from . import letters
from .brokers import Kind
from .interrupts import Interrupted, Interrupts
from .plan import GROUPS, THREADS, make_plan
from .screen import Screen, screen_for
from .side import Side
from .stage import Stage, set_up
from .verdict import Outcome, exit_code, plain_line, reliq_line


def run_demo(*, kind: Kind, messages: int, seed: int, with_plain: bool, keep: bool) -> int:
    """Run it and return the exit code. Raises `click.ClickException` when there is no server to run it on."""
    sys.stdout.reconfigure(errors="replace")  # type: ignore[union-attr]  # a C locale cannot write every sign
    for name in ("reliq", "dramatiq", "pika"):
        # What matters of it is shown; without a handler warnings would go to stderr.
        logging.getLogger(name).addHandler(logging.NullHandler())
    screen = screen_for(sys.stdout)
    try:
        plan = make_plan(messages, seed)
        with Interrupts() as interrupts, set_up(kind, plan, interrupts, screen, with_plain=with_plain) as stage:
            try:
                _introduce(screen, stage, with_plain=with_plain, seed=seed)
                outcomes = stage.play()
            finally:
                screen.close()
            _conclude(screen, stage, outcomes)
            if keep:
                _keep_open(screen, stage)
            else:
                _suggest(screen, kind)
        if keep:
            screen.line("stopped; nothing is left running")
        return exit_code(outcomes["reliq"])
    except (ServerMissing, ServerFailed) as error:
        raise click.ClickException(f"the demo needs a server: {error}") from error
    except Interrupted as interrupted:
        click.echo("stopped; nothing is left running", err=True)
        return 128 + interrupted.signum


def _introduce(screen: Screen, stage: Stage, *, with_plain: bool, seed: int) -> None:
    ways = "on plain Dramatiq and with reliq.install(broker)" if with_plain else "with reliq.install(broker)"
    workers = f"{GROUPS} dramatiq workers of {THREADS} threads{' a side' if with_plain else ''}"
    screen.line(f"reliq demo: one app, run {ways}", strong=True)
    screen.line(f"{stage.scene.server}, {workers}, seed {seed};", faint=True)
    screen.line("all defaults, but for the backoff: retries after 0.3 to 2 s", faint=True)
    screen.line()


def _conclude(screen: Screen, stage: Stage, outcomes: dict[str, Outcome]) -> None:
    """The result lines, what their words mean, the dead letters."""
    screen.line()
    if "plain" in outcomes:
        screen.line(plain_line(outcomes["plain"]), strong=True)
    screen.line(reliq_line(outcomes["reliq"]), strong=True)
    screen.line()
    for word, meaning in _legend(stage, outcomes):
        screen.line(f"  {word:<8} {meaning}", faint=True)
    if not outcomes["reliq"].complete:
        _explain_failure(stage.reliq, outcomes["reliq"])
    for side in stage.sides[:-1]:
        with side.reader() as broker:
            _show_groups(screen, "Dead letters on plain Dramatiq: these say nothing", letters.groups_of(broker))
    groups = letters.groups_of(stage.reliq.broker)
    _show_groups(screen, "Dead letters with reliq, by cause", groups)
    letter = letters.one_of(stage.reliq.broker, groups)
    if letter is not None:
        screen.line()
        screen.line("One of them, whole", strong=True)
        screen.line()
        screen.line(letters.pretty(letter))


def _show_groups(screen: Screen, title: str, groups: list[dict[str, Any]]) -> None:
    if groups:
        screen.line()
        screen.line(title, strong=True)
        screen.line()
        for line in letters.table(groups):
            screen.line(f"  {line}")


def _legend(stage: Stage, outcomes: dict[str, Outcome]) -> Iterator[tuple[str, str]]:
    yield "dead", "put aside as a dead letter"
    yield "stuck", "still stored, but not run to its end while the demo waited"
    if "plain" in outcomes and outcomes["plain"].stuck:
        yield "", f"on plain: {stage.sides[0].left_behind(outcomes['plain'])}"
    yield "lost", "neither run to its end nor stored"
    yield "retried", "failed, was run again, and is done or dead"
    yield "twice", "run to its end more than once: the promise is at-least-once"


def _explain_failure(side: Side, outcome: Outcome) -> None:
    names = ", ".join(map(str, outcome.missing[:20])) or "none"
    click.echo(f"reliq: neither done nor dead: {names} ({outcome.left} in all). Its workers said last:", err=True)
    click.echo(side.logs(), err=True)


# -- what to do next ---------------------------------------------------------------------------------------------


def _suggest(screen: Screen, kind: Kind) -> None:
    reliq = program()
    options = "" if kind == "redis" else f" --broker {kind}"
    screen.line()
    screen.line("Next", strong=True)
    screen.line()
    screen.line("  # the same, and it stays there for you to look around in", faint=True)
    screen.line(f"  {reliq} demo{options} --keep")
    screen.line("  # the other commands; in your app it is one line: reliq.install(broker)", faint=True)
    screen.line(f"  {reliq} --help")


def _keep_open(screen: Screen, stage: Stage) -> None:
    """Wait for Ctrl-C beside the server and reliq's workers."""
    for side in stage.sides[:-1]:
        side.close()
    options, *hints = stage.scene.commands("reliq")
    reliq = f"{program()} {options}"
    try:
        screen.line()
        screen.line("The server and reliq's workers go on until Ctrl-C. In another terminal:", strong=True)
        screen.line()
        screen.line(f"  {reliq} dlq list")
        screen.line(f"  {reliq} dlq replay --reason permanent")
        for hint in hints:
            screen.line(hint)
        signal.pause()
    except Interrupted:
        screen.line()


def program() -> str:
    """What to type for `reliq` here: the bare name where PATH finds this one, else its path, as short as can be."""
    beside = Path(sys.executable).with_name("reliq")
    if not beside.exists():
        return "reliq"
    found = shutil.which("reliq")
    if found is not None and Path(found).resolve() == beside.resolve():
        return "reliq"
    try:
        return str(beside.relative_to(Path.cwd()))
    except ValueError:
        return str(beside)
