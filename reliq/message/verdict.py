"""What shall become of a message whose run has ended.

A middleware decides and leaves one `Verdict` on the message; the transport's consumer settles it when Dramatiq
acks or nacks. No verdict on a message that did not fail is plain success.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, get_args

from . import failure as naming

Action = Literal["retry", "defer", "dead", "return"]

#: Why a message died. `docs/letters.md` says when each is given.
Reason = Literal[
    "retries_exhausted",
    "permanent",
    "expired",
    "crash",
    "unknown_actor",
    "malformed",
    "too_large",
    "rejected",
    "manual",
]
REASONS: tuple[Reason, ...] = get_args(Reason)


@dataclass(frozen=True)
class Failure:
    """What one run raised, in words that are safe to store: names cut, texts cleaned, nothing live kept."""

    error: str
    message: str
    traceback: str
    cause_chain: tuple[dict[str, str], ...]
    fingerprint: str

    @classmethod
    def of(cls, actor: str, exception: BaseException) -> Failure:
        """Describe `exception`, raised while `actor` ran. Never raises."""
        return cls(
            error=naming.error_name(exception),
            message=naming.error_message(exception),
            traceback=naming.traceback_text(exception),
            cause_chain=tuple(naming.cause_chain(exception)),
            fingerprint=naming.fingerprint(actor, exception),
        )


@dataclass(frozen=True)
class Verdict:
    """One decision. Build it with the class methods, which name the four outcomes.

    `delay_ms` belongs to retry and defer, `reason` and `failure` (what raised, where something did) to dead.
    """

    action: Action
    delay_ms: int = 0
    reason: Reason | None = None
    failure: Failure | None = None

    @classmethod
    def retry(cls, delay_ms: int) -> Verdict:
        """Run again in `delay_ms`; an attempt is spent."""
        return cls("retry", delay_ms=delay_ms)

    @classmethod
    def defer(cls, delay_ms: int) -> Verdict:
        """Run again in `delay_ms`; no attempt is spent."""
        return cls("defer", delay_ms=delay_ms)

    @classmethod
    def dead(cls, reason: Reason, failure: Failure | None = None) -> Verdict:
        """Never run again by itself: a dead letter with this reason."""
        return cls("dead", reason=reason, failure=failure)

    @classmethod
    def hand_back(cls) -> Verdict:
        """Give the message back to its queue as it came, uncounted (a deploy, a lost lease)."""
        return cls("return")

    def because(self, failure: Failure | None) -> Verdict:
        """The same decision with its cause attached."""
        return replace(self, failure=failure)
