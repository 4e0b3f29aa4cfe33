"""The command `reliq`.

`main` is the entry point; `app.py` holds the table of commands. stdout is data, stderr the rest. Exit codes: 0 ok,
1 failure, 2 usage, 3 partly done, 5 needs confirmation, 130 interrupted.
"""

from __future__ import annotations

from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> None:
    """Run one command (`argv` without the program's name; None = this process's). Always raises `SystemExit`."""
    from .app import root

    root.main(args=None if argv is None else list(argv), prog_name="reliq")
