"""What a failure is called: error name, message, chain, traceback, fingerprint.

Callers: `middleware/` when it writes an attempt or a letter, `transport/` for letters of what never ran,
`observe/` for labels.
Guarantee: none of these functions raises, whatever the exception does in `__str__`, `__repr__` or its
attributes, and no text they return can drive a terminal or fail to encode. A fingerprint stays the same over
line numbers, ids, argument values, install directories, hosts and Python versions.
Not here: what follows from the failure (policy/transient.py), the fields of a record (record.py).

The code of users runs only inside `_quietly`, which lets nothing through, not even a BaseException: when a
failure is named its run is over, so that a late time limit or shutdown has nothing left to stop.
"""

from __future__ import annotations

import hashlib
import json
import os
import sysconfig
import traceback
from collections.abc import Callable, Iterator
from types import FrameType, TracebackType
from typing import Any, TypeVar, cast

from ..policy.foreign import attribute, is_a, item, leaves

T = TypeVar("T")

NAME_CHARACTERS = 120
MESSAGE_CHARACTERS = 500
TRACEBACK_BYTES = 16 * 1024
TRACEBACK_FRAMES = 30
CAUSES = 10

_CUT = "[...]\n"
_CLIENT_ERROR = "botocore.exceptions.ClientError"

#: C0 but newline and tab, DEL, C1, and surrogates, which no UTF-8 encoder takes.
_UNSAFE = dict.fromkeys([*range(0x20), *range(0x7F, 0xA0), *range(0xD800, 0xE000)])
del _UNSAFE[ord("\n")], _UNSAFE[ord("\t")]

#: Frames of their own up to Python 3.11, part of their function from 3.12 on: never the frame that counts.
_INLINED = frozenset({"<listcomp>", "<setcomp>", "<dictcomp>"})

_STDLIB = tuple(
    os.path.normcase(folder).rstrip(os.sep) + os.sep
    for folder in (os.path.dirname(os.__file__), *map(sysconfig.get_path, ("stdlib", "platstdlib")))
    if folder
)


def error_name(error: BaseException | type[BaseException]) -> str:
    """`module.Qualname` of an exception or its class, builtins bare, 120 characters at most.

    An exception group is called after its first leaf, a botocore ClientError also after its code:
    `botocore.exceptions.ClientError:ThrottlingException`. The same as OpenTelemetry's `error.type` otherwise.
    """
    return _full_name(error)[:NAME_CHARACTERS]


def error_message(error: BaseException) -> str:
    """The exception's own text without control characters (newline and tab stay), 500 characters at most.

    A `__str__` that raises gives `<unprintable module.Qualname>`.
    """
    text = _quietly(lambda: _text(error), None)
    return f"<unprintable {error_name(error)}>" if text is None else _safe(text, MESSAGE_CHARACTERS)


def cause_chain(error: BaseException) -> list[dict[str, str]]:
    """What led to the exception, nearest first: `{"error", "message"}` each, 10 at most, without itself.

    Along `__cause__`, else along `__context__` unless `from None` hid it; of a group, along the chain of its
    first leaf. A chain that closes on itself ends there.
    """
    return [{"error": error_name(cause), "message": error_message(cause)} for cause in _causes(error)]


def traceback_text(error: BaseException, limit: int = TRACEBACK_BYTES) -> str:
    """The formatted traceback with its chain, without control characters, `limit` bytes of UTF-8 at most.

    Each exception shows its innermost 30 frames. What is too long loses its beginning; the end says the
    error.
    """
    text = _quietly(lambda: "".join(_formatted(error).format()), "")
    if not text:
        # The formatter asks an exception for more (notes, suggestions, a SyntaxError's fields) than is safe.
        steps = _own(error, "__traceback__")
        frames = _quietly(lambda: "".join(traceback.format_tb(steps, -TRACEBACK_FRAMES)), "")
        text = f"Traceback (most recent call last):\n{frames}{error_name(error)}: {error_message(error)}\n"
    return _tail(_safe(text[-4 * limit :]), limit)


def fingerprint(actor: str | None, error: BaseException) -> str:
    """16 hex digits that failures of one cause share.

    SHA-256 over the actor, the class names of the exception and its causes, and module and function of the
    innermost frame that is the user's: outside site-packages, the standard library, Dramatiq and reliq.
    Where all frames are of libraries, the innermost one.
    """
    leaf = _leaf(error)
    classes = [_full_name(leaf), *map(_full_name, _causes(leaf))]
    place = _quietly(lambda: _place(_frames(leaf) or _frames(error)), ("", ""))
    return _digest(actor, *classes, *place)


def fingerprint_of_reason(actor: str | None, reason: str) -> str:
    """16 hex digits for letters without an exception (`crash`, `unknown_actor`, ...): by actor and reason."""
    return _digest(actor, reason)


def _quietly(ask: Callable[[], T], otherwise: T) -> T:
    """The answer of code that may do anything, else `otherwise`, which shows in the text it was asked for."""
    try:
        return ask()
    except BaseException:
        return otherwise


def _full_name(error: BaseException | type[BaseException]) -> str:
    if is_a(error, type):
        return _class_name(cast(type, error))
    leaf = _leaf(cast(BaseException, error))
    # botocore makes a class per error code and service at run time, all of them ClientErrors.
    if _CLIENT_ERROR in map(_class_name, type.mro(type(leaf))):
        code = item(attribute(leaf, "response"), "Error", "Code")
        return f"{_CLIENT_ERROR}:{''.join(_safe(code).split())}" if is_a(code, str) else _CLIENT_ERROR
    return _class_name(type(leaf))


def _class_name(cls: type) -> str:
    # A class body may set __module__ to anything, a metaclass may compute both.
    module = _quietly(lambda: _safe(cls.__module__), "_unknown")
    name = _quietly(lambda: _safe(cls.__qualname__), "_unknown")
    return name if module in ("builtins", "") else f"{module}.{name}"


def _leaf(error: BaseException) -> BaseException:
    return leaves(error)[0]


def _causes(error: BaseException) -> Iterator[BaseException]:
    seen = {id(error)}
    current = _before(_leaf(error)) or _before(error)
    while current is not None and id(current) not in seen and len(seen) <= CAUSES:
        seen.add(id(current))
        yield current
        current = _before(current)


def _before(error: BaseException) -> BaseException | None:
    """Its cause, else its context. Asked of BaseException itself: a subclass may shadow these names."""
    cause = _own(error, "__cause__")
    if cause is None and not _own(error, "__suppress_context__"):
        cause = _own(error, "__context__")
    return cause if is_a(cause, BaseException) else None


def _own(error: BaseException, slot: str) -> Any:
    return _quietly(lambda: BaseException.__dict__[slot].__get__(error), None)


def _text(error: BaseException) -> str:
    # A str subclass may do anything in its methods; str's own take its characters.
    return str.__getitem__(str(error), slice(None))


def _safe(text: str, limit: int | None = None) -> str:
    if limit is not None:
        # Cut first: an exception may quote a whole response body.
        text = str.__getitem__(text, slice(4 * limit))
    return str.translate(text, _UNSAFE)[:limit]


def _formatted(error: BaseException) -> traceback.TracebackException:
    # A negative limit keeps the innermost frames, of every exception in the chain.
    return traceback.TracebackException(
        type(error), error, _own(error, "__traceback__"), limit=-TRACEBACK_FRAMES, compact=True
    )


def _tail(text: str, limit: int) -> str:
    encoded = text.encode()
    if len(encoded) <= limit:
        return text
    room = max(0, limit - len(_CUT))
    kept = encoded[len(encoded) - room :].decode(errors="ignore")
    # The first line is cut somewhere: drop it, unless there is no other.
    _, _, whole_lines = kept.partition("\n")
    return _CUT[:limit] + (whole_lines or kept)


def _frames(error: BaseException) -> list[FrameType]:
    """Outermost first."""
    frames, step = [], _own(error, "__traceback__")
    while isinstance(step, TracebackType):
        frames.append(step.tb_frame)
        step = step.tb_next
    return frames


def _place(frames: list[FrameType]) -> tuple[str, str]:
    """Module and function the failure is filed under."""
    own_level = [frame for frame in frames if frame.f_code.co_name not in _INLINED] or frames
    if not own_level:
        return "", ""
    frame = next((frame for frame in reversed(own_level) if not _is_library(frame)), own_level[-1])
    # co_name, not co_qualname, which 3.10 does not have: a fleet in the middle of an upgrade counts as one.
    return _module(frame), frame.f_code.co_name


def _is_library(frame: FrameType) -> bool:
    if _module(frame).partition(".")[0] in ("reliq", "dramatiq"):
        return True
    file = os.path.normcase(frame.f_code.co_filename)
    folders = file.split(os.sep)
    return "site-packages" in folders or "dist-packages" in folders or file.startswith(("<frozen", *_STDLIB))


def _module(frame: FrameType) -> str:
    name = frame.f_globals.get("__name__")
    return name if isinstance(name, str) else "_unknown"


def _digest(*parts: str | None) -> str:
    # JSON keeps the parts apart, and takes what UTF-8 would not.
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]
