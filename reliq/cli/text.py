"""Text that others wrote, made fit for a terminal.

Callers: everything that prints names, error texts or arguments outside JSON.
Guarantee: what comes out holds no control character, no line break, nothing invisible and nothing that turns the
direction of writing; and its width in columns is known.
"""

from __future__ import annotations

import unicodedata


def safe(text: str) -> str:
    """The text on one line; what is not printable stands as its escape (`\\x1b`, `\\u202e`, `\\n`)."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else _escape(char) for char in text)


def _escape(char: str) -> str:
    if unicodedata.category(char) == "Zs":
        return " "
    return char.encode("unicode_escape").decode("ascii")


def width(text: str) -> int:
    """How many columns a terminal gives to a safe text."""
    if text.isascii():
        return len(text)
    return sum(_columns(char) for char in text)


def _columns(char: str) -> int:
    if unicodedata.combining(char):
        return 0
    return 2 if unicodedata.east_asian_width(char) in "WF" else 1


def cut(text: str, columns: int) -> str:
    """The text in at most `columns` columns, its end replaced by … where it is too long."""
    if width(text) <= columns:
        return text
    kept, used = [], 0
    for char in text:
        used += _columns(char)
        if used > columns - 1:
            break
        kept.append(char)
    return "".join(kept) + "…"
