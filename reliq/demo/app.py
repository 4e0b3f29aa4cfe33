"""The demo's app: what the stock `dramatiq` command runs, the same file on both sides.

Callers: `dramatiq reliq.demo.app`, with its settings in the environment. Backoff is shortened to 0.3-2 s so that a
run fits into half a minute; all else is as an application would have it.
Guarantee: every start, failure and end is in the execution log before the broker can hear of it.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import cast

import dramatiq
from dramatiq.middleware import CurrentMessage

from reliq.testing import RunLog

from .brokers import ENV_LOG, ENV_SIDE, ENV_URL, Name, make_broker

broker = make_broker(cast(Name, os.environ[ENV_SIDE]), os.environ[ENV_URL])
dramatiq.set_broker(broker)
log = RunLog(os.environ[ENV_LOG])


class MailServerBusy(Exception):
    """Passes."""


class WarehouseTimeout(Exception):
    """Passes."""


class CardDeclined(Exception):
    """Does not pass, which nobody knows before the retries are used up."""


class NotAPicture(Exception):
    """Does not pass, and its actor says so (`throws`)."""


@dramatiq.actor(min_backoff=300, max_backoff=2_000)
def send_receipt(order: int, fails: int, work_ms: int) -> None:
    """Fails `fails` times."""
    with logged(order, work_ms):
        if failed_before() < fails:
            raise MailServerBusy(f"order {order}: 421 too many connections, try again later")


@dramatiq.actor(min_backoff=300, max_backoff=2_000)
def sync_stock(order: int, fails: int, work_ms: int) -> None:
    """Fails `fails` times."""
    with logged(order, work_ms):
        if failed_before() < fails:
            raise WarehouseTimeout(f"order {order}: no answer within 5 s")


@dramatiq.actor(max_retries=2, min_backoff=300, max_backoff=2_000)
def charge_card(order: int, fails: int, work_ms: int) -> None:
    """Fails more often than it is tried."""
    with logged(order, work_ms):
        if failed_before() < fails:
            raise CardDeclined(f"order {order}: insufficient funds")


@dramatiq.actor(throws=NotAPicture, min_backoff=300, max_backoff=2_000)
def resize_photo(order: int, fails: int, work_ms: int) -> None:
    """Fails with what no retry can mend."""
    with logged(order, work_ms):
        if failed_before() < fails:
            raise NotAPicture(f"order {order}: upload is text/html")


def failed_before() -> int:
    """How often this message has failed before this run."""
    message = CurrentMessage.get_current_message()
    return int(message.options.get("retries", 0)) if message is not None else 0


@contextmanager
def logged(order: int, work_ms: int) -> Iterator[None]:
    """Log the run and spend its time."""
    log.record("start", order)
    time.sleep(work_ms / 1000)
    try:
        yield
    except Exception as error:
        log.record("fail", order, error=type(error).__name__)
        raise
    log.record("end", order)
