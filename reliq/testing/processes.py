"""Look at process groups through /proc (Linux), or as well as signals allow elsewhere.

Callers: `WorkerGroup`.
Guarantee: a zombie does not count as alive, because a container without an init process never reaps some.
"""

from __future__ import annotations

import os
from pathlib import Path


def group_states(pgid: int) -> dict[int, str]:
    """Processes of the group that are not dead: pid -> state letter of /proc ("R", "S", "T" = stopped, ...).

    Without /proc: the leader with state "?" while the group exists.
    """
    if not Path("/proc/self/stat").exists():
        try:
            os.killpg(pgid, 0)
        except (ProcessLookupError, PermissionError):
            return {}
        return {pgid: "?"}
    states = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            state, group = _state_and_group(name)
            if group == pgid and state not in "ZX":
                states[int(name)] = state
    return states


def _state_and_group(pid: str) -> tuple[str, int]:
    try:
        text = Path("/proc", pid, "stat").read_text(errors="replace")
    except OSError:  # gone since the listing
        return "X", -1
    # "pid (name) state ppid pgrp ...", where the name may hold spaces and parentheses
    state, _parent, group = text.rpartition(")")[2].split()[:3]
    return state, int(group)
