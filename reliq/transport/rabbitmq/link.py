"""One connection to RabbitMQ, opened and kept by a thread of its own.

Callers: the publisher and the consumers, which watch it and do their work on its thread (`call`). pika's connections
belong to one thread; this is that thread. Guarantee: heartbeats go out whatever the process's other threads do; a
connection that is lost is opened again, with a jittered pause, until `stop`; no callback's failure ends the thread.
"""

from __future__ import annotations

import atexit
import copy
import logging
import os
import random
import socket
import threading
import time
import weakref
from collections.abc import Callable
from functools import partial
from typing import Any, Protocol

import pika
from dramatiq.errors import ConnectionClosed
from dramatiq.logging import get_logger
from pika.adapters.select_connection import IOLoop

from .errors import PIKA_ERRORS, Failure, NotLetIn, Refusal, explain, refusal_of
from .tolerant import tolerate

#: The pause before a connection is opened again: doubled from the first to the longest, times U(0.5, 1). Seconds.
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.05, 1.0
#: For how long one try to connect may take, at most.
CONNECT_TIMEOUT_S = 5.0


class Watcher(Protocol):
    """Told of the connection's life, on the link's thread."""

    def opened(self, connection: pika.SelectConnection) -> None:
        """There is a connection."""

    def lost(self, why: str) -> None:
        """It is gone."""


class Link:
    """A connection by the broker's parameters; several are tried in turn."""

    def __init__(self, parameters: list[Any], watcher: Watcher, name: str) -> None:
        self._parameters = parameters
        self._watcher = watcher
        self._name = name
        self._logger = get_logger(__name__, type(self))
        self._ioloop = IOLoop()
        self._tries = 0
        self._opening: pika.SelectConnection | None = None
        self._complained_at = -60.0
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name=f"reliq-{name}", daemon=True)
        #: The open connection; changed on the link's thread only.
        self.connection: pika.SelectConnection | None = None
        #: Why there is none, or None before the first try has ended.
        self.why: str | None = None
        #: What the server said when it refused the last try: wrong password, no such vhost.
        self.refusal: Refusal | None = None
        #: Set while there is one.
        self.is_open = threading.Event()
        #: Of the last server that answered, as in (3, 10).
        self.server_version: tuple[int, ...] | None = None

    def __repr__(self) -> str:
        return f"<Link {self._name} {'open' if self.is_open.is_set() else self.why or 'opening'}>"

    def start(self) -> None:
        """Start the thread, which connects."""
        _quieten_pika()
        tolerate()
        _links.add(self)
        self._ioloop.add_callback_threadsafe(self._connect)
        self._thread.start()

    def wait(self, timeout_s: float) -> None:
        """Wait until there is a connection. Raises `Refusal` as soon as a server refuses one, `ConnectionClosed` when
        it takes longer."""
        deadline = time.monotonic() + timeout_s
        while not self.is_open.wait(min(0.05, max(0.0, deadline - time.monotonic()))):
            if self.refusal is not None:
                raise NotLetIn(f"RabbitMQ refuses the connection: {self.refusal}", self.refusal.code)
            if time.monotonic() >= deadline:
                raise Failure(f"RabbitMQ cannot be reached: {self.why or 'connecting'}")

    def call(self, step: Callable[[], None]) -> None:
        """Have `step` called on the link's thread. Raises `ConnectionClosed` once the link is stopped."""
        if self._stopping:
            raise ConnectionClosed(f"the {self._name} connection to RabbitMQ is closed: this process stops")
        self._ioloop.add_callback_threadsafe(partial(self._guarded, step))

    def later(self, seconds: float, step: Callable[[], None]) -> None:
        """The same after a while; to be called on the link's thread."""
        self._ioloop.call_later(seconds, partial(self._guarded, step))

    def drop(self) -> None:
        """Close the connection as it is, to open another; to be called on the link's thread."""
        if self.connection is not None and self.connection.is_open:
            self.connection.close(320, "opening another")

    def stop(self, timeout_s: float = 2.0) -> None:
        """Close the connection and end the thread."""
        if not self._stopping:
            self._stopping = True
            self._ioloop.add_callback_threadsafe(partial(self._guarded, self._end, timeout_s))
        if self._thread.is_alive() and self._thread is not threading.current_thread():
            self._thread.join(timeout_s + 1.0)

    # -- on its thread -------------------------------------------------------------------------------------------

    def _run(self) -> None:
        while True:
            try:
                self._ioloop.start()
            except PIKA_ERRORS as exc:
                # pika lets some of what a peer does to a connection that opens out of its loop.
                self._begin_again(exc)
            except Exception as exc:
                self._logger.critical("The %s connection failed in an unexpected way.", self._name, exc_info=True)
                self._begin_again(exc)
            else:
                break
        self._ioloop.close()

    def _begin_again(self, exc: Exception) -> None:
        """After a failure that left the loop in a state that nobody knows: another loop, another connection."""
        old, self._ioloop = self._ioloop, IOLoop()
        # What was asked for meanwhile is asked for again by who waits for it.
        self._guarded(old.close)
        self._forget(explain(exc))
        self._complain(f"is lost: {self.why}")
        if self._stopping:
            self._ioloop.add_callback_threadsafe(self._ioloop.stop)
        else:
            self._again()

    def _guarded(self, step: Callable[..., None], *args: Any) -> None:
        try:
            step(*args)
        except Exception as exc:
            self._logger.critical("A step on the %s connection failed.", self._name, exc_info=exc)

    def _connect(self) -> None:
        if self._stopping:
            return
        parameters = self._parameters[self._tries % len(self._parameters)]
        try:
            self._opening = pika.SelectConnection(
                parameters,
                on_open_callback=partial(self._guarded, self._opened),
                on_open_error_callback=partial(self._guarded, self._not_opened),
                on_close_callback=partial(self._guarded, self._closed),
                custom_ioloop=self._ioloop,
            )
        except Exception as exc:
            self._not_opened(None, exc)

    def _opened(self, connection: pika.SelectConnection) -> None:
        if self._stopping:
            connection.close()
            return
        self._tries, self._opening = 0, None
        self.connection, self.why, self.refusal = connection, None, None
        self.server_version = _version(connection.server_properties)
        self._watcher.opened(connection)
        self.is_open.set()

    def _not_opened(self, connection: Any, exc: BaseException) -> None:
        self._opening = None
        if self._stopping:
            self._ioloop.stop()
            return
        tried = self._parameters[self._tries % len(self._parameters)]
        error = refusal_of(exc, f"{tried.host}:{tried.port}: ")
        self.why, self.refusal = str(error), error if isinstance(error, Refusal) else None
        self._complain(f"cannot be opened: {self.why}")
        self._again()

    def _closed(self, connection: Any, exc: BaseException) -> None:
        self._forget(explain(exc))
        if self._stopping:
            self._ioloop.stop()
            return
        self._complain(f"is lost: {self.why}")
        self._again()

    def _forget(self, why: str) -> None:
        self.is_open.clear()
        self.connection, self.why = None, why
        self._guarded(self._watcher.lost, why)

    def _again(self) -> None:
        pause_s = min(FIRST_PAUSE_S * 2 ** min(self._tries, 10), LONGEST_PAUSE_S)
        self._tries += 1
        self._ioloop.call_later(pause_s * random.uniform(0.5, 1.0), self._connect)

    def _end(self, timeout_s: float) -> None:
        self._ioloop.call_later(timeout_s, self._ioloop.stop)
        current = self.connection or self._opening
        if current is not None and not (current.is_closing or current.is_closed):
            current.close()
        else:
            self._ioloop.stop()

    def _complain(self, text: str) -> None:
        now = time.monotonic()
        if now - self._complained_at > 5.0:
            self._complained_at = now
            self._logger.warning("The %s connection to RabbitMQ %s", self._name, text)


class _OursIsTold(logging.Filter):
    """Drops what pika logs on threads of ours: a channel that is closed over a question for a queue that is not there,
    each try of many to connect. What matters of it is raised, or logged by us."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether the record is logged."""
        return record.levelno >= logging.CRITICAL or not (record.threadName or "").startswith("reliq-")


_ours_is_told = _OursIsTold()


def _quieten_pika() -> None:
    for name in list(logging.root.manager.loggerDict):
        if name.startswith("pika."):
            # A second time changes nothing.
            logging.getLogger(name).addFilter(_ours_is_told)


#: Links of this process that are closed in order when it ends, so that the server need not call them lost.
_links: weakref.WeakSet[Link] = weakref.WeakSet()


@atexit.register
def _close_links() -> None:
    for link in list(_links):
        link.stop(0.5)


def _leave_links() -> None:
    """A fork has its parent's links in its memory, and neither their threads nor any business with their sockets."""
    _links.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_leave_links)


def prepared(parameters: Any, name: str, heartbeat_s: float) -> list[Any]:
    """The broker's connection parameters for a connection of ours: named, tried once at a time, and with a heartbeat
    where the client's default was left."""
    chosen = []
    for each in parameters if isinstance(parameters, (list, tuple)) else [parameters]:
        mine = copy.copy(each)
        mine.connection_attempts = 1
        mine.socket_timeout = min(each.socket_timeout or CONNECT_TIMEOUT_S, CONNECT_TIMEOUT_S)
        mine.stack_timeout = min(each.stack_timeout or CONNECT_TIMEOUT_S, CONNECT_TIMEOUT_S)
        if each.heartbeat is None:
            mine.heartbeat = max(1, round(heartbeat_s))
        label = f"reliq {name} {socket.gethostname()}:{os.getpid()}"
        mine.client_properties = {"connection_name": label, **(each.client_properties or {})}
        chosen.append(mine)
    return chosen


def _version(properties: Any) -> tuple[int, ...] | None:
    text = (properties or {}).get("version", b"")
    text = text.decode() if isinstance(text, bytes) else str(text)
    numbers = text.split(".")[:2]
    return tuple(map(int, numbers)) if all(number.isdecimal() for number in numbers) else None
