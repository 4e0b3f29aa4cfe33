"""One connection through the fault proxy: two threads that pass bytes on, or do not.

Callers: `FaultProxy` only.
Guarantee: sockets are closed by the link's own thread, after both threads have left them, so that no thread
ever reads a descriptor which meanwhile belongs to another connection.
"""

from __future__ import annotations

import contextlib
import select
import socket
import struct
import threading
from collections.abc import Callable
from typing import Literal, Protocol

from reliq.testing.proxy_rules import Requests, Rule

Mode = Literal["flow", "stall", "blackhole"]
CHUNK = 65536


class Valve:
    """Whether bytes flow: one for all links of a proxy."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._mode: Mode = "flow"

    def set(self, mode: Mode) -> None:
        with self._changed:
            self._mode = mode
            self._changed.notify_all()

    def wake(self) -> None:
        """Let waiting links look whether they have been cut."""
        with self._changed:
            self._changed.notify_all()

    def wait(self, dead: Callable[[], bool]) -> Mode:
        """The mode, once it is no longer "stall" (or the caller is dead)."""
        if self._mode == "flow":
            return "flow"
        with self._changed:
            self._changed.wait_for(lambda: self._mode != "stall" or dead())
            return self._mode


class Owner(Protocol):
    """What a link needs of its proxy."""

    valve: Valve
    rules: list[Rule]

    def connect(self) -> socket.socket: ...
    def note_drop(self) -> None: ...
    def note_error(self, error: Exception) -> None: ...


class Link:
    """A client's connection and its upstream counterpart."""

    def __init__(self, owner: Owner, client: socket.socket) -> None:
        self.lost_bytes = False  # a black hole ate some: what follows would be nonsense
        self._owner = owner
        self._client = client
        self._upstream: socket.socket | None = None
        self._requests = Requests()
        self._lock = threading.Lock()
        self._dead = False
        self._closed = False
        self._reset = False  # close the client's side with RST
        self._swallow = False  # the next reply is lost on its way
        self._asked = threading.Event()  # the request whose reply is awaited has been sent
        self._draining = False  # read the server's side to its end, pass nothing on
        self._on_reply: list[Rule] = []
        self._thread = threading.Thread(target=self._run, name="fault-proxy-link", daemon=True)
        self._replies = threading.Thread(target=self._pump_replies, name="fault-proxy-replies", daemon=True)

    def start(self) -> None:
        self._thread.start()

    @property
    def open(self) -> bool:
        """Whether its sockets are open."""
        return not self._closed

    @property
    def running(self) -> bool:
        """Whether its thread runs: a moment longer than it is open."""
        return self._thread.is_alive()

    def kill(self) -> None:
        """Cut both sides with RST. Bytes under way are lost. `join` waits until it is done."""
        with self._lock:
            self._dead = self._reset = True
            for end in (self._client, self._upstream):
                if end is not None:
                    _wake_reader(end)
        self._owner.valve.wake()

    def join(self, timeout: float) -> None:
        """Wait for the end, except from a callback that runs in this very link."""
        if threading.current_thread() not in (self._thread, self._replies):
            self._thread.join(timeout)

    # -- the client's side

    def _run(self) -> None:
        try:
            if self._connect():
                self._replies.start()
                try:
                    self._pump_requests()
                finally:
                    self._replies.join()
        finally:
            self._close()

    def _connect(self) -> bool:
        """Connect upstream, once the proxy lets anything pass. False: the link is over."""
        while self._owner.valve.wait(self._is_dead) == "blackhole":
            if not self._receive(self._client):
                return False
            self.lost_bytes = True
        if self._dead:
            return False
        try:
            upstream = self._owner.connect()
        except OSError:
            self._reset = True
            return False
        with self._lock:
            self._upstream = upstream
            return not self._dead

    def _pump_requests(self) -> None:
        while data := self._receive(self._client):
            mode = self._owner.valve.wait(self._is_dead)
            if self._dead:
                return
            if mode == "blackhole":
                self.lost_bytes = True
            elif not self._forward(self._requests.feed(data)):
                return
        self._send(self._upstream, self._requests.take_rest())
        self._end_requests()

    def _forward(self, requests: list[bytes]) -> bool:
        """Pass requests on, together where no rule fires. False: nothing more may pass on this link."""
        plain: list[bytes] = []
        for request in requests:
            fired = self._requests.due(self._owner.rules, request)
            if not fired:
                plain.append(request)
                continue
            if not self._send(self._upstream, b"".join(plain)):
                return False
            plain = []
            if not self._forward_with(fired, request):
                return False
        return self._send(self._upstream, b"".join(plain))

    def _forward_with(self, fired: list[Rule], request: bytes) -> bool:
        by_action = {rule.action: rule for rule in fired}
        self._call([rule for rule in fired if rule.action == "call_before"])
        if "drop_request" in by_action:
            self._owner.note_drop()
            self._drain()
            return False
        self._on_reply.extend(rule for rule in fired if rule.action == "call_replied")
        self._asked.clear()
        if "drop_reply" in by_action:
            self._swallow = True
        sent = self._send(self._upstream, request)
        self._asked.set()
        if not sent:
            return False
        self._call([rule for rule in fired if rule.action == "call_after"])
        return True

    # -- the server's side

    def _pump_replies(self) -> None:
        while data := self._receive(self._upstream):
            if self._draining:
                continue
            if self._swallow or self._on_reply:
                # This may be the reply to an earlier command of a pipeline, while the request itself is still
                # being sent. The limit is for servers that answer before they have read all.
                self._asked.wait(5)
            waiting, self._on_reply = self._on_reply, []
            self._call(waiting)
            if self._swallow:
                self._owner.note_drop()
                self._drain()
                continue
            mode = self._owner.valve.wait(self._is_dead)
            if self._dead:
                break
            if mode == "blackhole":
                self.lost_bytes = True
                continue
            self._requests.answered()
            if not self._send(self._client, data):
                self._end_requests()
                break
        _wake_reader(self._client)

    def _drain(self) -> None:
        """End the link once the server has read all that was sent: an RST now could destroy unread
        requests.

        The client is cut only when the server has closed its side, so whoever sees the cut knows that
        everything before it was executed.
        """
        self._draining = self._reset = True
        self._end_requests()

    def _end_requests(self) -> None:
        if self._upstream is not None:
            with contextlib.suppress(OSError):
                self._upstream.shutdown(socket.SHUT_WR)

    # -- small things

    def _is_dead(self) -> bool:
        return self._dead

    def _call(self, rules: list[Rule]) -> None:
        for rule in rules:
            try:
                assert rule.callback is not None
                rule.callback()
            except Exception as error:  # raised when the proxy ends: a thread has no caller
                self._owner.note_error(error)

    def _receive(self, end: socket.socket | None) -> bytes:
        """Some bytes; none when that side is over."""
        assert end is not None
        try:
            return end.recv(CHUNK)
        except OSError:
            self._reset = True
            return b""

    def _send(self, end: socket.socket | None, data: bytes) -> bool:
        """Send all of it; False when that side or this link is gone."""
        assert end is not None
        view = memoryview(data)
        while view:
            if self._dead:
                return False
            try:
                view = view[end.send(view, socket.MSG_DONTWAIT) :]
            except BlockingIOError:
                poll = select.poll()
                poll.register(end, select.POLLOUT)
                poll.poll(100)  # ms; then see whether the link has been cut
            except OSError:
                self._reset = True
                return False
        return True

    def _close(self) -> None:
        with self._lock:
            self._dead = True
            if self._reset:
                with contextlib.suppress(OSError):
                    self._client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self._client.close()
            if self._upstream is not None:
                self._upstream.close()
            self._closed = True


def _wake_reader(end: socket.socket) -> None:
    # Ends a recv that waits in another thread, and sends nothing to the peer (SHUT_RDWR would send a FIN).
    with contextlib.suppress(OSError):
        end.shutdown(socket.SHUT_RD)
