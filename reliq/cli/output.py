"""Data on stdout, in the form that `-o` asks for: a table for people, JSON or JSON lines for programs.

Callers: every command that answers. Guarantee: JSON is ASCII and valid whatever the values are, so that it can drive
no terminal; cells of a table are on one line and safe; nothing is cut or coloured unless stdout is a terminal.
"""

from __future__ import annotations

import json
import math
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import click

from .options import settings_of
from .text import cut, safe, width

Row = Mapping[str, Any]
#: A heading, and what stands under it.
Column = tuple[str, Callable[[Row], Any]]
_GAP = "  "
_LAST_COLUMN = 20


def say(text: str) -> None:
    """A line on stderr: what is no data."""
    click.echo(safe(text), err=True)


def put_rows(ctx: click.Context, rows: Iterable[Row], columns: Sequence[Column], spare: Sequence[str] = ()) -> int:
    """A list: an array, a line per item, or a table of `columns`. Returns how many there were.

    On a terminal that is too narrow the columns of `spare` are left out, one after the other, before any is cut.
    """
    form, count = settings_of(ctx).output, 0
    if form == "table":
        kept = [[_cell(value(row)) for _, value in columns] for row in rows]
        for line in table([heading for heading, _ in columns], kept, _terminal_width(), spare):
            _write(line)
        return len(kept)
    if form == "jsonl":
        for row in rows:
            _write(as_json(row))
            count += 1
        return count
    before = "["
    for row in rows:
        # One by one: a list of a million letters needs no million in memory.
        _write(before + as_json(row), end="")
        before, count = ",\n ", count + 1
    _write("]" if count else "[]")
    return count


def put_object(ctx: click.Context, item: Row, lines: Iterable[str]) -> None:
    """One object; `lines` are its table form."""
    form = settings_of(ctx).output
    if form == "table":
        for line in lines:
            _write(line)
    else:
        _write(as_json(item, indent=2 if form == "json" else None))


def put_value(ctx: click.Context, item: Row, text: object) -> None:
    """One object of few fields, whose table form is a bare word or number."""
    put_object(ctx, item, [safe(str(text))])


def as_json(value: Any, indent: int | None = None) -> str:
    """Valid JSON in ASCII for whatever was decoded: no NaN, no failure. What JSON has no form for is its text."""
    try:
        return json.dumps(value, default=_text_of, indent=indent, allow_nan=False)
    except (ValueError, TypeError, RecursionError):
        return json.dumps(_plain(value), indent=indent, allow_nan=False)


def _plain(value: Any, depth: int = 0) -> Any:
    if depth > 100:
        return "<nested too deeply to be shown>"
    if isinstance(value, Mapping):
        return {key if isinstance(key, str) else _text_of(key): _plain(item, depth + 1) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item, depth + 1) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value if value is None or isinstance(value, (str, int, float)) else _text_of(value)


def _text_of(value: object) -> str:
    try:
        return str(value)
    except Exception:
        return f"<unprintable {type(value).__name__}>"


def table(
    headings: Sequence[str], rows: Sequence[Sequence[str]], columns: int | None, spare: Sequence[str] = ()
) -> Iterator[str]:
    """Aligned lines, at most `columns` wide (None = as wide as they are); none for no rows."""
    if not rows:
        return
    every = [list(headings), *rows]
    widths = [max(width(row[at]) for row in every) for at in range(len(headings))]
    numeric = [all(_is_number(row[at]) for row in rows) for at in range(len(headings))]
    chosen = _fitting(headings, widths, columns, spare)
    for row in every:
        line = _GAP.join(_aligned(row[at], widths[at], numeric[at]) for at in chosen).rstrip()
        yield line if columns is None else cut(line, columns)


def _fitting(headings: Sequence[str], widths: list[int], columns: int | None, spare: Sequence[str]) -> list[int]:
    """The places of the columns to show. The last column is long and may be cut, but not to less than its room."""
    chosen = list(range(len(headings)))
    for name in spare:
        needed = sum(widths[at] + len(_GAP) for at in chosen[:-1]) + min(widths[chosen[-1]], _LAST_COLUMN)
        if columns is None or needed <= columns:
            break
        chosen.remove(list(headings).index(name))
    return chosen


def field_lines(fields: Iterable[tuple[str, Any]]) -> Iterator[str]:
    """One object for people: a line per field. A text of several lines stands indented below its name, so that no
    line of it can pass for a field."""
    shown = [(name, value) for name, value in fields if value is not None]
    widest = max((len(name) for name, _ in shown), default=0)
    for name, value in shown:
        if isinstance(value, Block):
            yield name
            yield from ("    " + safe(line) for line in value.splitlines())
        else:
            yield f"{name:<{widest}}{_GAP}{_cell(value)}"


class Block(str):
    """A text that keeps its lines."""

    __slots__ = ()


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, str):
        return safe(value)
    if isinstance(value, (Mapping, list, tuple)):
        return safe(_readable_json(value))
    return safe(_text_of(value))


def _readable_json(value: Any) -> str:
    """As JSON, but letters of every script as they are: `safe` escapes what could do harm."""
    try:
        return json.dumps(value, default=_text_of, ensure_ascii=False)
    except (ValueError, TypeError, RecursionError):
        return json.dumps(_plain(value), ensure_ascii=False)


def _aligned(text: str, wide: int, right: bool) -> str:
    space = " " * (wide - width(text))
    return space + text if right else text + space


def _is_number(text: str) -> bool:
    return text == "-" or text.replace(".", "", 1).isdecimal()


def _terminal_width() -> int | None:
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


def _write(text: str, end: str = "\n") -> None:
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    # A terminal of another encoding gets escapes for what it has no letter for, not an error.
    click.echo(text.encode(encoding, "backslashreplace").decode(encoding) + end, nl=False)
