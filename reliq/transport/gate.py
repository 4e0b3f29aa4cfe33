"""While a broker is known to be away, sends fail at once instead of each waiting for its own timeout.

One per transport. After a failed send one probe a second goes through; its success opens the gate again.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

PROBE_EVERY_S = 1.0


class AwayGate:
    """Open until `failed()` is called; then only one caller a second may pass, until `passed()`."""

    def __init__(self, mono: Callable[[], float] = time.monotonic) -> None:
        self._mono = mono
        self._lock = threading.Lock()
        self._why: str | None = None
        self._next_probe = 0.0

    @property
    def away(self) -> str | None:
        """Why the broker counts as away, or None."""
        return self._why

    def refuses(self) -> str | None:
        """The reason why this caller may not try now; None lets it through (as the probe, if the broker is away)."""
        if self._why is None:
            return None
        with self._lock:
            if self._why is None:
                return None
            now = self._mono()
            if now >= self._next_probe:
                self._next_probe = now + PROBE_EVERY_S
                return None
            return self._why

    def failed(self, why: str) -> None:
        """A caller could not reach the broker."""
        with self._lock:
            self._why = why
            self._next_probe = self._mono() + PROBE_EVERY_S

    def passed(self) -> None:
        """A caller reached the broker."""
        if self._why is not None:
            with self._lock:
                self._why = None
