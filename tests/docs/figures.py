"""Puts the figures that tests have measured into docs/proofs.md: `python -m tests.docs.figures`.

Fault tests append what they count to `.cache/figures.txt`, a line per run with the test's id. Here the last line of
each test that a row names goes into the row's last cell; a row whose tests have measured nothing keeps its cell.
"""

from __future__ import annotations

import re

from tests.docs.pages import ROOT

PROOFS = ROOT / "docs/proofs.md"
FIGURES = ROOT / ".cache/figures.txt"

_TEST = re.compile(r"`(tests/[\w/]+\.py::[\w:]+(?:\[[^`]+\])?)`")


def measured() -> dict[str, str]:
    """Test id -> its last figure; an id without its parameters stands for the last of all of them."""
    last: dict[str, str] = {}
    for line in FIGURES.read_text(encoding="utf-8").splitlines():
        match = re.match(r"(tests/\S+?\.py::\w+(?:\[.*?\])?): (.*)", line)
        if match:
            last[match[1]] = last[match[1].partition("[")[0]] = match[2].replace("|", "/")
    return last


def filled(page: str, last: dict[str, str]) -> str:
    """The page with the figures in its tables."""
    lines = []
    for line in page.splitlines():
        cells = line.split(" | ")
        if line.startswith("| ") and len(cells) == 4:
            figures = [_label(test) + last[test] for test in _TEST.findall(cells[1]) if test in last]
            if figures:
                cells[3] = "; ".join(figures) + " |"
            line = " | ".join(cells)
        lines.append(line)
    return "\n".join(lines) + "\n"


def _label(test: str) -> str:
    return "plain: " if "plain" in test and "reliq" not in test else ""


if __name__ == "__main__":
    PROOFS.write_text(filled(PROOFS.read_text(encoding="utf-8"), measured()), encoding="utf-8")
