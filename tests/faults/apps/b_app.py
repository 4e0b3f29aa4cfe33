"""The application of these tests: the same actors on plain Dramatiq or with reliq, as APP_MODE says.

Run by the stock `dramatiq` command. Every actor writes to the run log under its first argument, the key.
"""

import b_skew  # isort: split

import json
import logging
import os
import threading

import dramatiq
from b_broker import connect
from dramatiq.middleware import CurrentMessage

from reliq.testing import RunLog

log = RunLog(os.environ["APP_LOG"])
settings = json.loads(os.environ.get("APP_SETTINGS", "{}"))
broker = connect(settings)

if os.environ["APP_MODE"] == "reliq":
    import reliq

    reliq.install(
        broker,
        reliq.Delivery(**settings.get("delivery", {})),
        reliq.DeadLetters(**settings.get("letters", {})),
    )

broker.add_middleware(CurrentMessage())
dramatiq.set_broker(broker)
logging.getLogger("dramatiq").setLevel(logging.INFO)
quick = {"min_backoff": 50, "max_backoff": 100}


def retries_so_far() -> int:
    return CurrentMessage.get_current_message().options.get("retries", 0)


@dramatiq.actor
def work(key, seconds=0.0):
    log.record("start", key, real=b_skew.real_time(), retries=retries_so_far())
    if seconds:
        threading.Event().wait(seconds)
    log.record("end", key, real=b_skew.real_time())


@dramatiq.actor
def gated(key, gate):
    """Runs until the file `gate` exists."""
    log.record("start", key)
    while not os.path.exists(gate):
        threading.Event().wait(0.01)
    log.record("end", key)


@dramatiq.actor(max_retries=5, **quick)
def flaky(key, times=1, seconds=0.0):
    """Fails `times` times, then succeeds; each run takes so many seconds."""
    log.record("start", key, real=b_skew.real_time(), retries=retries_so_far())
    threading.Event().wait(seconds)
    if retries_so_far() < times:
        log.record("fail", key, real=b_skew.real_time())
        raise RuntimeError(f"failure {retries_so_far() + 1}")
    log.record("end", key, real=b_skew.real_time())


@dramatiq.actor(max_retries=2, **quick)
def doomed(key, note="", gate=None):
    """Fails always; each attempt says which it is."""
    log.record("start", key, real=b_skew.real_time())
    while gate and not os.path.exists(gate):
        threading.Event().wait(0.01)
    number = log.count("fail")[key] + 1
    log.record("fail", key, real=b_skew.real_time())
    try:
        raise KeyError(f"cause of attempt {number}")
    except KeyError as cause:
        raise ValueError(f"attempt {number} of {key} {note}") from cause


@dramatiq.actor(max_retries=0)
def fails_once(key):
    log.record("start", key, real=b_skew.real_time())
    log.record("fail", key, real=b_skew.real_time())
    raise ValueError(f"no luck with {key}")


def _raises(retries, exception):
    raise LookupError("retry_when itself is broken")


@dramatiq.actor(retry_when=_raises, **quick)
def broken_predicate(key):
    """Fails once; the predicate that is asked about it raises."""
    _fail_once(key)


@dramatiq.actor(**quick)
def leaves_an_object(key):
    """Fails once, and leaves something in the options that JSON cannot hold."""
    CurrentMessage.get_current_message().options["connection"] = object()
    _fail_once(key)


@dramatiq.actor(on_failure="an_actor_that_is_gone", on_success="an_actor_that_is_gone", **quick)
def calls_nobody(key):
    """Fails once; its callbacks name an actor that nobody declares."""
    _fail_once(key)


def _fail_once(key):
    log.record("start", key)
    if not log.count("fail")[key]:
        log.record("fail", key)
        raise RuntimeError("once")
    log.record("end", key)


if os.environ.get("APP_VERSION") == "2":

    @dramatiq.actor(actor_name="newcomer")
    def newcomer(key):
        """Declared by the newer version of the application only."""
        log.record("start", key, retries=retries_so_far())
        log.record("end", key)
