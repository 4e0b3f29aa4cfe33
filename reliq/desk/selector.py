"""Which dead letters are meant: the one selector of every command.

Callers: the command line, which passes texts; `letters.py`, `groups.py` and `replay.py`, which ask it.
Guarantee: pure, no I/O. What is given narrows; what a letter does not know (null) never matches a wish for it.
"""

from __future__ import annotations

import difflib
import json
import re
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from ..message.letter import DeadLetter
from ..message.verdict import REASONS

_UNITS_MS = {"ms": 1, "s": 1_000, "m": 60_000, "h": 3_600_000, "d": 86_400_000, "w": 604_800_000}
_PART = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d|w)")
#: The letter's fields that `--match` may look into.
_ROOTS = ("args", "kwargs", "options")


class SelectorError(ValueError):
    """A selector that cannot be read, or that may not be used as it is; the text ends in what to write."""


def parse_duration_ms(text: str) -> int:
    """ "500ms", "90s", "30m", "2h", "7d", "1w", or several together ("1h30m"), in ms."""
    compact = "".join(text.split())
    if not compact or _PART.sub("", compact):
        raise SelectorError(f"cannot read the duration {text!r}; write a number and a unit: 90s, 30m, 2h or 7d")
    return int(sum(float(number) * _UNITS_MS[unit] for number, unit in _PART.findall(compact)))


@dataclass(frozen=True)
class Match:
    """One wish for an argument, as in `args.0=42` or `kwargs.user.id=7`.

    `text` is what was written; `value` what it means as JSON, or the text itself where it is no JSON. Either may be
    what the letter holds: `args.0=42` finds 42 and "42".
    """

    path: tuple[str, ...]
    text: str
    value: Any

    @classmethod
    def parse(cls, expression: str) -> Match:
        """From `path=value`. Raises `SelectorError`."""
        path, equals, text = expression.partition("=")
        parts = tuple(path.strip().split("."))
        if not equals or len(parts) < 2 or not all(parts):
            raise SelectorError(f"cannot read the match {expression!r}; write args.0=42 or kwargs.user.id=7")
        if parts[0] not in _ROOTS:
            raise SelectorError(
                f"a match begins with {', '.join(_ROOTS)}, got {parts[0]!r}; write args.0=42 or kwargs.user.id=7"
            )
        return cls(parts, text, _json_or_text(text))

    @classmethod
    def of(cls, path: str, value: Any) -> Match:
        """From a path and a Python value: `{"args.0": 42}` of `reliq.Desk`."""
        text = value if isinstance(value, str) else json.dumps(value)
        return cls.parse(f"{path}={text}")

    def found_in(self, fields: Mapping[str, Any]) -> bool:
        """Whether the letter's args, kwargs and options hold it."""
        return any(self._equals(found) for found in _walk(fields, self.path))

    def _equals(self, found: Any) -> bool:
        return _same(found, self.value) or (isinstance(found, str) and found == self.text)


@dataclass(frozen=True)
class Selector:
    """What is wanted of a letter; None and empty mean "any". Texts are compared whole.

    `older_than_ms` and `newer_than_ms` count from the death to `now_ms` (ms since the epoch; None = the time of the
    question). `ids` are letter ids or message ids. Every one of `match` must hold.
    """

    queue: str | None = None
    actor: str | None = None
    error: str | None = None
    fingerprint: str | None = None
    reason: str | None = None
    older_than_ms: int | None = None
    newer_than_ms: int | None = None
    ids: tuple[str, ...] = ()
    match: tuple[Match, ...] = ()
    now_ms: int | None = None

    def __post_init__(self) -> None:
        if self.reason is not None and self.reason not in REASONS:
            known = ", ".join(REASONS)
            raise SelectorError(f"unknown reason {self.reason!r}{near(self.reason, REASONS)}; write one of {known}")

    @classmethod
    def parse(
        cls,
        *,
        queue: str | None = None,
        actor: str | None = None,
        error: str | None = None,
        fingerprint: str | None = None,
        reason: str | None = None,
        older_than: str | None = None,
        newer_than: str | None = None,
        ids: Iterable[str] = (),
        match: Iterable[str] | Mapping[str, Any] = (),
    ) -> Selector:
        """From what a person writes: durations as "2h", matches as "args.0=42" (or a mapping of path to value).
        Raises `SelectorError`."""
        if isinstance(match, Mapping):
            matches = tuple(Match.of(path, value) for path, value in match.items())
        else:
            matches = tuple(map(Match.parse, match))
        return cls(
            queue=queue,
            actor=actor,
            error=error,
            fingerprint=fingerprint,
            reason=reason,
            older_than_ms=None if older_than is None else parse_duration_ms(older_than),
            newer_than_ms=None if newer_than is None else parse_duration_ms(newer_than),
            ids=tuple(dict.fromkeys(ids)),
            match=matches,
        )

    @property
    def is_empty(self) -> bool:
        """Whether it means every letter there is."""
        return replace(self, now_ms=None) == Selector()

    @property
    def needs_letters(self) -> bool:
        """Whether letters have to be read to answer: the index of groups knows no ages, ids and arguments."""
        return bool(self.ids or self.match) or self.older_than_ms is not None or self.newer_than_ms is not None

    def frozen(self) -> Selector:
        """The same, its ages counted from now on for good: two passes over the letters agree."""
        return self if self.now_ms is not None else replace(self, now_ms=_now_ms())

    def matches(self, letter: DeadLetter) -> bool:
        """Whether the letter is meant."""
        return (
            self._wants(self.queue, letter.queue)
            and self._wants(self.actor, letter.actor)
            and self._wants(self.reason, letter.reason)
            and self._wants(self.fingerprint, letter.fingerprint)
            and self._wants(self.error, (letter.dead or {}).get("error"))
            and self._is_named(letter)
            and self._is_of_age(letter)
            and self._holds(letter)
        )

    @staticmethod
    def _wants(wanted: str | None, found: object) -> bool:
        return wanted is None or wanted == found

    def _is_named(self, letter: DeadLetter) -> bool:
        if not self.ids:
            return True
        return letter.id in self.ids or (letter.message is not None and letter.message.message_id in self.ids)

    def _is_of_age(self, letter: DeadLetter) -> bool:
        if self.older_than_ms is None and self.newer_than_ms is None:
            return True
        if letter.died_at_ms is None:
            return False
        age_ms = (self.now_ms if self.now_ms is not None else _now_ms()) - letter.died_at_ms
        if self.older_than_ms is not None and age_ms <= self.older_than_ms:
            return False
        return self.newer_than_ms is None or age_ms < self.newer_than_ms

    def _holds(self, letter: DeadLetter) -> bool:
        if not self.match:
            return True
        message = letter.message
        if message is None:
            return False
        fields = {"args": message.args, "kwargs": message.kwargs, "options": message.options}
        return all(wish.found_in(fields) for wish in self.match)


def near(name: str, known: Iterable[str]) -> str:
    """`, did you mean 'expired'?` where something known is near, else nothing. For the middle of an error."""
    close = difflib.get_close_matches(name, list(known), n=1)
    return f", did you mean {close[0]!r}?" if close else ""


def _now_ms() -> int:
    return int(time.time() * 1000)


def _json_or_text(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def _walk(value: Any, path: tuple[str, ...]) -> Iterable[Any]:
    """What lies at the end of the path. A key may itself hold dots, so that several ways may lead there."""
    if not path:
        yield value
    elif isinstance(value, Mapping):
        for length in range(1, len(path) + 1):
            key = ".".join(path[:length])
            if key in value:
                yield from _walk(value[key], path[length:])
    elif isinstance(value, (list, tuple)) and path[0].isdecimal() and int(path[0]) < len(value):
        yield from _walk(value[int(path[0])], path[1:])


def _same(found: Any, wanted: Any) -> bool:
    # True equals 1 in Python, and `args.0=1` does not mean true.
    if isinstance(found, bool) or isinstance(wanted, bool):
        return found is wanted
    if isinstance(found, tuple):
        found = list(found)
    return bool(found == wanted)
