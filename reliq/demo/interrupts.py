"""Ctrl-C, SIGTERM and SIGHUP as one exception, which never comes between starting a process and knowing of it.

Callers: `command`, `stage`.
Guarantee: raised once; what is cleaned up after it is not interrupted again.
"""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType, TracebackType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from typing_extensions import Self

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Interrupted(BaseException):
    """Somebody wants the demo to stop. `signum` is the signal."""

    def __init__(self, signum: int) -> None:
        super().__init__(signum)
        self.signum = signum


class Interrupts:
    """Within the `with` block these signals raise `Interrupted`; off the main thread it changes nothing."""

    def __init__(self) -> None:
        self._before: dict[int, Any] = {}
        self._signum: int | None = None
        self._held = self._raised = False

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            # Under nohup a closed terminal is nothing to stop for.
            wanted = [s for s in _SIGNALS if s != signal.SIGHUP or signal.getsignal(s) != signal.SIG_IGN]
            self._before = {number: signal.signal(number, self._caught) for number in wanted}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Put off what comes within this block to its end."""
        self._held = True
        try:
            yield
        finally:
            self._held = False
        self._raise_once()

    def _caught(self, signum: int, frame: FrameType | None) -> None:
        if self._signum is None:
            self._signum = signum
        if not self._held:
            self._raise_once()

    def _raise_once(self) -> None:
        if self._signum is not None and not self._raised:
            self._raised = True
            raise Interrupted(self._signum)
