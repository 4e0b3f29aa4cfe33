"""The one table of pika errors: whatever the client raises leaves this folder as `ConnectionClosed`, or as `Refusal`
where the server has answered that it will not do what was asked.

Dramatiq's threads survive connection errors only; a raw pika error ends them.
"""

from __future__ import annotations

import pika.exceptions
from dramatiq.errors import ConnectionClosed

#: What the client or the socket below it may raise. A ValueError too: pika lets one out when a peer resets at once.
PIKA_ERRORS = (pika.exceptions.AMQPError, pika.exceptions.ChannelError, OSError, ValueError, AssertionError)

#: AMQP's reply codes; 406 is also given for a message that the broker does not take.
NOT_FOUND, NO_RIGHT, OTHER_ARGUMENTS = 404, 403, 406
#: A code of our own: AMQP has no form for it, so that the client refuses it.
CANNOT_BE_SENT = 0

#: What a server's refusal to open a connection means, by words in it -> what to do.
_REMEDIES = (
    ("vhost", "create the vhost (rabbitmqctl add_vhost) and give the user rights in it, or correct the URL"),
    ("login was refused", "correct user and password in the URL"),
    ("authentication", "correct user and password in the URL"),
    ("connection limit", "raise the limit, or close connections that nobody uses"),
)
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


def root_cause(exc: BaseException) -> BaseException:
    """The error at the bottom of what pika wraps around a connection that could not be opened."""
    for _ in range(10):
        nested = getattr(exc, "exceptions", None) or [getattr(exc, "exception", None)]
        if not isinstance(nested[-1], BaseException):
            break
        exc = nested[-1]
    return exc


def explain(exc: BaseException) -> str:
    """What went wrong with a connection or channel, in one line, with what to do where that is known."""
    exc = root_cause(exc)
    text = getattr(exc, "reply_text", None) or str(exc) or type(exc).__name__
    name = type(exc).__name__
    # Words of a refused connection; a refused step names a vhost as well.
    words = text.lower() if code_of(exc) in (0, NO_RIGHT, _NOT_ALLOWED) else ""
    remedies = [remedy for word, remedy in _REMEDIES if word in words or word in name.lower()]
    if code_of(exc) == NO_RIGHT:
        remedies = [remedy for remedy in remedies if "password" in remedy]
    said = f"{name}: {text}" if name not in text else text
    return f"{said} ({remedies[0]})" if remedies else said


def code_of(exc: BaseException) -> int:
    """AMQP's reply code, or 0 for what is no answer of the server."""
    code = getattr(exc, "reply_code", 0)
    return code if isinstance(code, int) else 0
