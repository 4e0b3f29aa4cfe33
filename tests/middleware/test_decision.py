"""The decision on a run that raised: a table. Pure: time and chance are arguments."""

from __future__ import annotations

import random
from asyncio import CancelledError
from typing import Any

import pytest
from dramatiq.errors import RateLimitExceeded, Retry
from dramatiq.middleware import TimeLimitExceeded
from dramatiq.middleware.shutdown import Shutdown
from hypothesis import given
from hypothesis import strategies as st

from reliq.errors import Defer, Permanent
from reliq.message.record import Record
from reliq.message.verdict import Verdict
from reliq.middleware.decision import Limits, decide
from reliq.policy.backoff import Backoff

NOW = 1_000_000
FIXED = Backoff(100, 1_000, "fixed", "none")


class CircuitBreakerError(Exception):
    """Named as pybreaker's."""


class Derived(CircuitBreakerError):
    """A subclass of it."""


class Highest:
    """Chance that always takes the upper bound."""

    def uniform(self, a: float, b: float) -> float:
        return b


def decided(
    exception: BaseException,
    *,
    retries: int = 0,
    record: dict[str, Any] | None = None,
    stopping: bool = False,
    **limits: Any,
) -> Verdict:
    """The verdict, with a fixed backoff of 100 ms and the highest draw."""
    return decide(
        exception,
        retries=retries,
        record=Record(record),
        limits=Limits(**{"backoff": FIXED, **limits}),
        stopping=stopping,
        now_ms=NOW,
        rng=Highest(),
    )


@pytest.mark.parametrize(
    ("exception", "options", "verdict"),
    [
        # 1. A deploy is not a failure.
        (Shutdown(), {}, Verdict.hand_back()),
        (Shutdown(), {"throws": (Shutdown,), "max_retries": 0}, Verdict.hand_back()),
        (SystemExit(), {"stopping": True}, Verdict.hand_back()),
        (CancelledError(), {"stopping": True}, Verdict.hand_back()),
        (SystemExit(), {}, Verdict.retry(100)),
        (CancelledError(), {}, Verdict.retry(100)),
        (TimeLimitExceeded(), {"stopping": True}, Verdict.retry(100)),
        (ValueError(), {"stopping": True}, Verdict.retry(100)),
        # 2. Permanent, before everything a user may have set.
        (Permanent("x"), {"retry_when": lambda retries, exc: True}, Verdict.dead("permanent")),
        # 3. Deferrals: min(30 s, 1 s * 2^deferrals) * U(1, 2), here the highest.
        (Defer(), {}, Verdict.defer(2_000)),
        (Defer(), {"record": {"deferrals": 3}}, Verdict.defer(16_000)),
        (Defer(), {"record": {"deferrals": 99}}, Verdict.defer(60_000)),
        (Defer(delay=5), {}, Verdict.defer(5)),
        (Defer(delay=0), {}, Verdict.defer(0)),
        (Defer(delay=5), {"max_retries": 0}, Verdict.defer(5)),
        (RateLimitExceeded("x"), {"throws": (RateLimitExceeded,)}, Verdict.defer(2_000)),
        (CircuitBreakerError(), {}, Verdict.defer(2_000)),
        (Derived(), {}, Verdict.defer(2_000)),
        # 60 of 100 ms spent, 40 more are the last that fit.
        (Defer(delay=40), {"record": {"deferred_ms": 60}, "defer_max_ms": 100}, Verdict.defer(40)),
        (Defer(delay=41), {"record": {"deferred_ms": 60}, "defer_max_ms": 100}, Verdict.dead("expired")),
        (Defer(delay=10**9), {"defer_max_ms": None}, Verdict.defer(10**9)),
        # 4. throws.
        (KeyError(), {"throws": (LookupError,)}, Verdict.dead("permanent")),
        (ValueError(), {"throws": (LookupError,)}, Verdict.retry(100)),
        # 5. retry_when takes the place of max_retries.
        (ValueError(), {"retry_when": lambda retries, exc: False}, Verdict.dead("retries_exhausted")),
        (ValueError(), {"retry_when": lambda retries, exc: True, "retries": 99, "max_retries": 0}, Verdict.retry(100)),
        (ValueError(), {"retry_when": lambda retries, exc: retries == 4, "retries": 4}, Verdict.retry(100)),
        (ValueError(), {"retry_when": lambda retries, exc: None}, Verdict.dead("retries_exhausted")),
        # 6. retry_for.
        (ValueError(), {"retry_for": (OSError,)}, Verdict.dead("permanent")),
        (OSError(), {"retry_for": (OSError,)}, Verdict.retry(100)),
        (ValueError(), {"retry_for": lambda retries, exc: 7}, Verdict.retry(7)),
        (ValueError(), {"retry_for": lambda retries, exc: 0}, Verdict.retry(0)),
        (ValueError(), {"retry_for": lambda retries, exc: 7, "max_retries": 0}, Verdict.dead("retries_exhausted")),
        (ValueError(), {"retry_for": lambda retries, exc: "yes"}, Verdict.retry(100)),
        # 7. max_retries counts retries that were: 2 of 3 leave one, 3 of 3 none.
        (ValueError(), {"retries": 2, "max_retries": 3}, Verdict.retry(100)),
        (ValueError(), {"retries": 3, "max_retries": 3}, Verdict.dead("retries_exhausted")),
        (ValueError(), {"retries": 10**6, "max_retries": None}, Verdict.retry(100)),
        # max_elapsed: due 100 ms from now, first failed 50 ms ago: 150 ms in all.
        (ValueError(), {"record": {"first_failed_at": NOW - 50}, "max_elapsed_ms": 150}, Verdict.retry(100)),
        (
            ValueError(),
            {"record": {"first_failed_at": NOW - 50}, "max_elapsed_ms": 149},
            Verdict.dead("retries_exhausted"),
        ),
        # 8. The delay of Retry, whatever the backoff; one that is no delay is passed over.
        (Retry(delay=1), {}, Verdict.retry(1)),
        (Retry(), {}, Verdict.retry(100)),
        (Retry(delay=-5), {}, Verdict.retry(100)),
        (Retry(delay=float("nan")), {}, Verdict.retry(100)),  # type: ignore[arg-type]
        (Retry(delay=5), {"max_retries": 0}, Verdict.dead("retries_exhausted")),
    ],
)
def test_a_row_of_the_table(exception: BaseException, options: dict[str, Any], verdict: Verdict) -> None:
    """The first rule that matches wins."""
    assert decided(exception, **options) == verdict


def _raises(retries: int, exc: BaseException) -> bool:
    raise RuntimeError("a broken predicate")


@pytest.mark.parametrize("name", ["retry_when", "retry_for"])
def test_a_predicate_that_raises_counts_as_not_set(name: str, caplog: pytest.LogCaptureFixture) -> None:
    """Retried by count; said at level critical."""
    assert decided(ValueError(), **{name: _raises}) == Verdict.retry(100)
    assert decided(ValueError(), **{name: _raises}, max_retries=0) == Verdict.dead("retries_exhausted")
    assert {record.levelname for record in caplog.records} == {"CRITICAL"}


@given(
    retries=st.integers(0, 10**6),
    record=st.dictionaries(
        st.sampled_from(["deferrals", "deferred_ms", "first_failed_at", "eligible_at", "attempts"]),
        st.integers(-(10**15), 10**15) | st.lists(st.dictionaries(st.just("at"), st.integers() | st.text())),
    ),
    backoff=st.builds(
        Backoff,
        st.integers(0, 10**6),
        st.integers(10**6, 10**9),
        st.sampled_from(["exponential", "linear", "fixed", "decorrelated"]),
        st.sampled_from(["full", "equal", "none"]),
    ),
    seed=st.integers(0, 2**32),
    error=st.sampled_from([ValueError(), Defer(), Retry(delay=3), RateLimitExceeded("x"), Permanent()]),
)
def test_any_record_leads_to_a_verdict(
    retries: int, record: dict[str, Any], backoff: Backoff, seed: int, error: BaseException
) -> None:
    """Never raises; a delay is a whole number of ms from 0 on; the record is not changed."""
    read = Record(record)
    before = read.dump()
    verdict = decide(
        error,
        retries=retries,
        record=read,
        limits=Limits(backoff=backoff, max_retries=None),
        stopping=False,
        now_ms=NOW,
        rng=random.Random(seed),
    )
    assert isinstance(verdict.delay_ms, int)
    assert verdict.delay_ms >= 0
    assert (verdict.action == "dead") == (verdict.reason is not None)
    assert read.dump() == before
