"""The pages of the project, read: code blocks, tables, headings and links.

Callers: the tests beside this file and `runner.py`. Nothing here runs or checks anything.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


@dataclass(frozen=True)
class Block:
    """A fenced code block. `info` is what follows the language (a file name), `line` the number of its first line."""

    language: str
    info: str
    text: str
    line: int


def blocks(page: Path) -> list[Block]:
    """The fenced blocks of a page, in order."""
    found: list[Block] = []
    opening: tuple[str, int] | None = None
    lines: list[str] = []
    for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), 1):
        if opening is None:
            if line.startswith("```"):
                opening, lines = (line[3:], number + 1), []
        elif line.startswith("```"):
            language, _, info = opening[0].partition(" ")
            found.append(Block(language, info.strip(), "\n".join(lines) + "\n", opening[1]))
            opening = None
        else:
            lines.append(line)
    assert opening is None, f"{page.name}: the block that begins at line {opening and opening[1]} has no end"
    return found


def prose(page: Path) -> str:
    """The page without its code blocks."""
    return re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)


def headings(page: Path) -> list[tuple[int, str]]:
    """Level and text of each heading."""
    return [(len(hashes), text) for hashes, text in re.findall(r"^(#+) (.+)$", prose(page), re.MULTILINE)]


def anchor(heading: str) -> str:
    """The anchor that GitHub makes of a heading."""
    text = re.sub(r"[`*]|\[([^]]*)\]\([^)]*\)", r"\1", heading).lower()
    return re.sub(r"[^\w\- ]", "", text).replace(" ", "-")


def section(page: Path, heading: str) -> str:
    """The prose under a heading, up to the next of its level or above."""
    text = prose(page)
    start = re.search(rf"^(#+) {re.escape(heading)}$", text, re.MULTILINE)
    assert start, f"{page.name} has no heading {heading!r}"
    rest = text[start.end() :]
    end = re.search(rf"^#{{1,{len(start[1])}}} ", rest, re.MULTILINE)
    return rest[: end.start()] if end else rest


def table(text: str, first: str) -> list[dict[str, str]]:
    """The rows of the table whose first column is headed `first`, by column, without backticks around a whole cell."""
    lines = iter(text.splitlines())
    for line in lines:
        columns = _cells(line)
        if columns and columns[0] == first:
            next(lines)
            rows = []
            for row in lines:
                cells = _cells(row)
                if not cells:
                    break
                assert len(cells) == len(columns), f"{len(cells)} cells for {len(columns)} columns: {row}"
                rows.append(dict(zip(columns, cells)))
            return rows
    raise AssertionError(f"no table with the first column {first!r}")


def _cells(line: str) -> list[str]:
    if not line.startswith("|"):
        return []
    cells = re.split(r"(?<!\\)\|", line.strip().strip("|"))
    return [cell.strip().replace("\\|", "|") for cell in cells]


def code(cell: str) -> list[str]:
    """What stands in backticks in a cell."""
    return re.findall(r"`([^`]+)`", cell)
