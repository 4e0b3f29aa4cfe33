"""An application with reliq whose tasks die in every way there is, and which hides what is secret in its letters.

Run by the stock `dramatiq` command. APP_SETTINGS: `redact` is "hide" or "raises"; `letters` goes to DeadLetters.
"""

import json
import os

import dramatiq
from b_broker import connect
from dramatiq.middleware import CurrentMessage, SkipMessage

import reliq
from reliq.testing import RunLog

log = RunLog(os.environ["APP_LOG"])
settings = json.loads(os.environ["APP_SETTINGS"])
broker = connect(settings)
quick = {"min_backoff": 50, "max_backoff": 100}


def hide(letter):
    """What a `redact` may be: the word SECRET goes, wherever it stands."""
    return json.loads(json.dumps(letter).replace("SECRET", "[hidden]"))


def raises(letter):
    raise KeyError("redact itself is broken")


class Teller(dramatiq.Middleware):
    """Records the letters that hooks are told of, and refuses some sends."""

    def after_dead_letter(self, broker, message, letter):
        log.record("letter", letter["id"], letter=letter)

    def before_enqueue(self, broker, message, delay):
        if message.options.get("refused") or message.actor_name == "never_sent":
            raise SkipMessage("this application does not send that")


class FailsWithoutRaising(dramatiq.Middleware):
    """Marks a message as failed, as a middleware of the application may."""

    def before_process_message(self, broker, message):
        if message.options.get("mark_failed"):
            message.fail()


redact = {"redact": {"hide": hide, "raises": raises}[settings["redact"]]} if "redact" in settings else {}
reliq.install(
    broker,
    reliq.DeadLetters(**settings.get("letters", {})),
    reliq.Delivery(**settings.get("delivery", {})),
    **redact,
)
broker.add_middleware(Teller())
broker.add_middleware(FailsWithoutRaising())
broker.add_middleware(CurrentMessage())
dramatiq.set_broker(broker)


@dramatiq.actor
def work(key):
    log.record("start", key)
    log.record("end", key)


@dramatiq.actor(max_retries=1, **quick)
def fails(key, text="no luck"):
    log.record("start", key)
    log.record("fail", key)
    raise ValueError(f"{text} {key}")


@dramatiq.actor(max_elapsed=1, **quick)
def takes_too_long(key):
    raise ValueError("again")


@dramatiq.actor(retry_when=lambda retries, exception: False, **quick)
def not_wanted_again(key):
    raise ValueError("once is enough")


@dramatiq.actor
def permanent(key):
    raise reliq.Permanent("no such customer")


@dramatiq.actor(throws=LookupError)
def throws(key):
    raise LookupError("expected")


@dramatiq.actor(retry_for=(OSError,))
def outside_retry_for(key):
    raise ValueError("not an OSError")


@dramatiq.actor(defer_max=100)
def deferred_for_ever(key):
    raise reliq.Defer(delay=60)


@dramatiq.actor(max_age=1)
def too_old(key):
    log.record("start", key)


@dramatiq.actor
def succeeds(key):
    log.record("end", key)


@dramatiq.actor
def never_sent(message, result):
    """A callback that `before_enqueue` refuses."""


@dramatiq.actor(**quick)
def retry_is_refused(key):
    CurrentMessage.get_current_message().options["refused"] = True
    raise ValueError("once")


@dramatiq.actor
def told(letter):
    """An on_dead_letter actor."""
    log.record("told", letter["id"], letter=letter)


class Unprintable(Exception):
    """Cannot say what it is."""

    def __str__(self):
        raise RuntimeError("no words")

    __repr__ = __str__


HOSTILE = {
    "escape": lambda: ValueError("\x1b[2J\x1b]0;owned\x07 beep\nreliq: sent 0 lost 0\r\x9b31m"),
    "huge": lambda: ValueError("x" * 10_000_000),
    "surrogate": lambda: ValueError("half of a pair: \ud83d, and \udcff"),
    "unprintable": Unprintable,
}


@dramatiq.actor(max_retries=1, **quick)
def hostile(key):
    log.record("start", key)
    log.record("fail", key)
    error = HOSTILE[key]()
    raise error
