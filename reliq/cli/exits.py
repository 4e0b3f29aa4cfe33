"""Exit codes, and how errors become one line on stderr.

Callers: `app.py` for what a command raises, the commands for ends that are no plain success.
Guarantee: what is shown can drive no terminal and holds no password of the URL that was given.
"""

from __future__ import annotations

from typing import IO, Any

import click

from .text import safe

FAILURE, USAGE, PARTLY, NEEDS_CONFIRMATION, INTERRUPTED = 1, 2, 3, 5, 130


class Failure(click.ClickException):
    """`Error: <text>` on stderr, exit 1."""

    exit_code = FAILURE

    def __init__(self, text: str) -> None:
        super().__init__(" ".join(safe(line.strip()) for line in text.splitlines() if line.strip()))

    def show(self, file: IO[Any] | None = None) -> None:
        """One line."""
        click.echo(f"Error: {self.message}", file=file, err=file is None)


class PartlyDone(Failure):
    """It failed after some of it was done."""

    exit_code = PARTLY


class NeedsConfirmation(Failure):
    """A write that nobody consented to."""

    exit_code = NEEDS_CONFIRMATION


class Interrupted(Failure):
    """Ctrl-C."""

    exit_code = INTERRUPTED


def usage(text: str) -> click.UsageError:
    """A usage error (exit 2) with a text that may hold what others wrote."""
    return click.UsageError(safe(text), click.get_current_context(silent=True))


def as_click_error(exc: BaseException) -> click.ClickException | None:
    """What to show for an error of reliq or of the broker; None for one that is a defect, which keeps its traceback."""
    if isinstance(exc, click.ClickException):
        return exc
    if isinstance(exc, (KeyboardInterrupt, click.Abort)):
        return Interrupted("interrupted")
    from dramatiq.errors import ActorNotFound, BrokerConnectionError

    from ..desk.selector import SelectorError
    from ..errors import LetterError, NotSupported, OptionError, WiringError

    if isinstance(exc, SelectorError):
        return usage(str(exc))
    if isinstance(exc, BrokerConnectionError):
        ask = "" if _has_answered(exc) else " Is it running, and is this its address?"
        return Failure(f"the broker did not do it: {str(exc).rstrip('.')}.{ask}")
    if isinstance(exc, (LetterError, NotSupported, OptionError, WiringError, ActorNotFound)):
        return Failure(str(exc))
    return None


def _has_answered(exc: BaseException | None) -> bool:
    """Whether it is the broker's own answer, by the code that a transport or its client has kept of it, or its notice
    that it is short of memory or disk."""
    if "takes no messages" in str(exc):
        return True
    while exc is not None:
        if isinstance(code := getattr(exc, "code", None), int) and code >= 400:
            return True
        exc = exc.__cause__
    return False
