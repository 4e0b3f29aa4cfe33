"""A step on a thread of its own: signals reach the main thread only, so that they never cut the step in two.

Callers: the stage (sends to both sides at once), the RabbitMQ scene, whose steps take seconds (a node boots,
rabbitmqctl answers).
Guarantee: `end` returns when the thread has ended; an error of the step is raised where it is waited for.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

from reliq.testing import ServerFailed

_POLL_S = 0.2


class Background:
    """Begins at once."""

    def __init__(self, step: Callable[[], object]) -> None:
        self._step = step
        self._error: Exception | None = None
        self._thread = threading.Thread(target=self._run, name="reliq-demo", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._step()
        except Exception as error:  # raised by `over` and `wait`
            self._error = error

    @property
    def over(self) -> bool:
        """Whether it has ended. Raises its error, as `ServerFailed` where it is of another kind."""
        if self._thread.is_alive():
            return False
        if self._error is not None:
            raise self._error if isinstance(self._error, ServerFailed) else ServerFailed(str(self._error))
        return True

    def wait(self) -> None:
        """Until it has ended; a signal may interrupt the wait. Raises its error."""
        while not self.over:
            self._thread.join(_POLL_S)

    def end(self, stop: Callable[[], object] = lambda: None) -> None:
        """Have it end: `stop` is called until it has, whatever it begins meanwhile."""
        while self._thread.is_alive():
            stop()
            self._thread.join(_POLL_S)
