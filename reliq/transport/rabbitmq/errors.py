"""The one table of pika errors: whatever the client raises leaves this folder as `ConnectionClosed`, or as `Refusal`
where the server has answered that it will not do what was asked.

Dramatiq's threads survive connection errors only; a raw pika error ends them.
"""

from __future__ import annotations

import re

import pika.exceptions
from dramatiq.errors import ConnectionClosed
from pika.adapters.utils.connection_workflow import AMQPConnectorException

#: What the client or the socket below it may raise. A ValueError too: pika lets one out when a peer resets at once.
PIKA_ERRORS = (
    pika.exceptions.AMQPError,
    pika.exceptions.ChannelError,
    AMQPConnectorException,
    OSError,
    ValueError,
    AssertionError,
)

#: AMQP's reply codes; 406 is also given for a message that the broker does not take.
NOT_FOUND, NO_RIGHT, LOCKED, OTHER_ARGUMENTS = 404, 403, 405, 406
#: A code of our own: AMQP has no form for it, so that the client refuses it.
CANNOT_BE_SENT = 0

#: What a server's refusal to open a connection means, by words in it -> what to do.
_REMEDIES = (
    ("vhost", "create the vhost (rabbitmqctl add_vhost) and give the user rights in it, or correct the URL"),
    ("login was refused", "correct user and password in the URL"),
    ("authentication", "correct user and password in the URL"),
    ("connection limit", "raise the limit, or close connections that nobody uses"),
)
_TOLD = re.compile(r"\((\d{3})\) (['\"])(.*?)\2")
#: The code for a vhost that is missing or closed to the user, or a limit that is reached.
_NOT_ALLOWED = 530


class Failure(ConnectionClosed):
    """What was asked of the broker has not been done, or is not known to be."""

    def __init__(self, text: str) -> None:
        super().__init__(text)  # type: ignore[no-untyped-call]


class Refusal(Failure):
    """The server answered and refused: trying again as it is cannot help. `code` is AMQP's reply code."""

    def __init__(self, text: str, code: int) -> None:
        super().__init__(text)
        self.code = code


class NotLetIn(Refusal):
    """There is no connection: the server refused it."""


class TooLarge(Refusal):
    """The body is larger than `limit`, the largest that the server takes."""

    def __init__(self, text: str, limit: int) -> None:
        super().__init__(text, OTHER_ARGUMENTS)
        self.limit = limit


def root_cause(exc: BaseException) -> BaseException:
    """The error at the bottom of what pika wraps around a connection that could not be opened."""
    for _ in range(10):
        nested = [*(getattr(exc, "exceptions", None) or ()), getattr(exc, "exception", None), *exc.args]
        inner = [each for each in nested if isinstance(each, BaseException)]
        if not inner:
            break
        exc = inner[-1]
    return exc


def explain(exc: BaseException) -> str:
    """What went wrong with a connection or channel, in one line, with what to do where that is known."""
    exc = root_cause(exc)
    code, text = _answer(exc)
    if isinstance(exc, OSError):
        return exc.strerror or str(exc) or type(exc).__name__
    # Words of a refused connection; a refused step names a vhost as well.
    words = text.lower() if code in (0, NO_RIGHT, _NOT_ALLOWED) else ""
    remedies = [remedy for word, remedy in _REMEDIES if word in words]
    if code == NO_RIGHT:
        remedies = [remedy for remedy in remedies if "password" in remedy]
    if isinstance(exc, AMQPConnectorException) and "Timeout" in type(exc).__name__:
        return "it takes the connection and does not answer"
    said = text if code else f"{type(exc).__name__}: {text}" if text else type(exc).__name__
    return f"{said} ({remedies[0]})" if remedies else said


def code_of(exc: BaseException) -> int:
    """AMQP's reply code, or 0 for what is no answer of the server."""
    return _answer(root_cause(exc))[0]


def refusal_of(exc: BaseException, at: str = "") -> Failure:
    """The error to raise for it: a `Refusal` where the server has answered. `at` says where, as in "host:port: "."""
    code = code_of(exc)
    return Refusal(at + explain(exc), code) if code >= 400 else Failure(at + explain(exc))


def _answer(exc: BaseException) -> tuple[int, str]:
    """Code and text of what the server said."""
    code, text = getattr(exc, "reply_code", 0), getattr(exc, "reply_text", None)
    if isinstance(code, int) and code:
        return code, str(text)
    # pika guesses at what a connection that ends early means, and keeps the answer as text only.
    told = _TOLD.search(str(exc))
    return (int(told[1]), told[3]) if told else (0, str(exc))
