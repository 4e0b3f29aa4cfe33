"""A TCP proxy that injects network faults: cut, refuse, stall, and lose exactly this request or that reply.

Callers: tests put it between a client and its server: `RedisBroker(url=proxy.url())`.
Guarantee: it listens on 127.0.0.1 only; a dropped request never reached the server; a dropped reply belongs
to a request that the server has executed; stalled bytes arrive in order after `heal()`.
Not here: faults of the server itself (`RedisServer.kill`, `pause`, `stall`).
"""

from __future__ import annotations

import contextlib
import selectors
import socket
import threading
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Literal

from reliq.testing.ports import free_port
from reliq.testing.proxy_link import Link, Valve
from reliq.testing.proxy_rules import Action, Match, Rule

if TYPE_CHECKING:
    from typing_extensions import Self

JOIN_S = 5.0


class FaultProxy:
    """Passes bytes between 127.0.0.1:`port` and the upstream until told otherwise; starts with the `with`
    block.

    A `match` is bytes that the request contains, or a function of the request's bytes. For Redis a request is
    one command, also within a pipeline; for other protocols it is what arrived in one piece. `nth=1` is the
    first matching request from now on; `every=True` takes each n-th, `limit` ends that after so many faults.
    Redis scripts: their first use sends their whole text (SCRIPT LOAD), which may match too; ask for
    b"EVALSHA" in the request as well.

    When the upstream is down a client is accepted and then reset; `refuse()` gives a refused connection.
    """

    def __init__(self, upstream_port: int, *, upstream_host: str = "127.0.0.1") -> None:
        self.valve = Valve()
        self.rules: list[Rule] = []  # replaced, never changed: links read it without a lock
        self._upstream = (upstream_host, upstream_port)
        self._lock = threading.Lock()
        self._links: set[Link] = set()  # Invariant: holds every link whose thread may still run
        self._connections = 0
        self._dropped = 0
        self._errors: list[Exception] = []
        self._listener: _Listener | None = None
        self._port = 0

    # -- what it is

    @property
    def port(self) -> int:
        """The port clients connect to; kept over `refuse()` and `heal()`."""
        return self._port

    def url(self, db: int = 0) -> str:
        """`redis://127.0.0.1:PORT/db`."""
        return f"redis://127.0.0.1:{self._port}/{db}"

    @property
    def connections(self) -> int:
        """Connections accepted so far."""
        return self._connections

    @property
    def open_connections(self) -> int:
        """Connections that are open now."""
        with self._lock:
            return sum(link.open for link in self._links)

    @property
    def dropped(self) -> int:
        """Requests and replies dropped so far by rules."""
        return self._dropped

    # -- faults of the whole line

    def cut(self) -> None:
        """Reset (RST) every open connection; new ones are accepted."""
        with self._lock:
            links = list(self._links)
        for link in links:
            link.kill()
        for link in links:
            link.join(JOIN_S)

    def refuse(self) -> None:
        """Refuse new connections and cut the open ones, until `heal()`."""
        listener, self._listener = self._listener, None
        if listener is not None:
            listener.close()
        self.cut()

    def stall(self) -> None:
        """Accept, but pass nothing either way until `heal()`; bytes are kept and then delivered."""
        self.valve.set("stall")

    def blackhole(self) -> None:
        """Accept, and throw away every byte until `heal()`, which cuts the connections that lost some."""
        self.valve.set("blackhole")

    def heal(self) -> None:
        """End every fault: rules are removed, bytes flow, connections are accepted."""
        for rule in self.rules:
            rule.remove()
        self.rules = []
        self.valve.set("flow")
        with self._lock:
            broken = [link for link in self._links if link.lost_bytes]
        for link in broken:
            link.kill()
        if self._listener is None:
            self._listener = _Listener(self._port, self._accept)

    # -- faults of one request

    def drop_requests(
        self,
        match: Match,
        *,
        nth: int = 1,
        every: bool = False,
        limit: int | None = None,
    ) -> Rule:
        """Lose the n-th matching request: it never reaches the server, and its connection is cut."""
        return self._add("drop_request", match, nth=nth, every=every, limit=limit)

    def drop_replies(
        self,
        match: Match,
        *,
        nth: int = 1,
        every: bool = False,
        limit: int | None = None,
    ) -> Rule:
        """Lose the reply to the n-th matching request: the server executes it, then the connection is cut.

        Replies to requests sent before it on the same connection and not yet answered are lost with it.
        """
        return self._add("drop_reply", match, nth=nth, every=every, limit=limit)

    def on_request(
        self,
        match: Match,
        callback: Callable[[], object],
        *,
        when: Literal["before", "after", "replied"] = "before",
        nth: int = 1,
        every: bool = False,
        limit: int | None = None,
    ) -> Rule:
        """Call `callback` at the n-th matching request, e.g. to kill the server or the client's process.

        `before` it is forwarded; right `after` that, when the server may not have read it yet; or `replied`:
        when the server has executed it and the client does not know yet (in a pipeline: at the first reply
        after it was sent, which may belong to an earlier command). The connection waits for the callback. An
        exception in it is raised at the end of the `with` block.
        """
        actions: dict[str, Action] = {
            "before": "call_before",
            "after": "call_after",
            "replied": "call_replied",
        }
        return self._add(actions[when], match, nth=nth, every=every, limit=limit, callback=callback)

    def _add(
        self,
        action: Action,
        match: Match,
        *,
        nth: int,
        every: bool,
        limit: int | None,
        callback: Callable[[], object] | None = None,
    ) -> Rule:
        rule = Rule(action, match, nth=nth, every=every, limit=limit, callback=callback)
        with self._lock:
            self.rules = [*self.rules, rule]
        return rule

    # -- its life

    def start(self) -> Self:
        """Listen on a free port. Does nothing if it listens."""
        for attempt in range(20):
            if self._listener is not None:
                break
            self._port = free_port()
            try:
                self._listener = _Listener(self._port, self._accept)
            except OSError:  # somebody took the port meanwhile
                if attempt == 19:
                    raise
        return self

    def close(self) -> None:
        """Refuse, cut, and end every thread."""
        self.refuse()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
        if self._errors and kind is None:
            raise RuntimeError(f"a callback of {self!r} failed: {self._errors[0]!r}") from self._errors[0]

    def __repr__(self) -> str:
        return (
            f"<FaultProxy {self._port} -> {self._upstream[0]}:{self._upstream[1]}, "
            f"{self.open_connections} of {self._connections} connections open, {self._dropped} dropped>"
        )

    # -- for its links

    def connect(self) -> socket.socket:
        upstream = socket.create_connection(self._upstream, timeout=5)
        upstream.settimeout(None)
        upstream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return upstream

    def note_drop(self) -> None:
        with self._lock:
            self._dropped += 1

    def note_error(self, error: Exception) -> None:
        with self._lock:
            self._errors.append(error)

    def _accept(self, client: socket.socket) -> None:
        link = Link(self, client)
        with self._lock:
            self._connections += 1
            self._links = {one for one in self._links if one.running}
            self._links.add(link)
            link.start()  # within the lock: `cut` joins whatever it finds in the set


class _Listener:
    """The listening socket and the thread that accepts from it."""

    def __init__(self, port: int, accepted: Callable[[socket.socket], None]) -> None:
        self._accepted = accepted
        self._socket = socket.socket()
        try:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            self._socket.bind(("127.0.0.1", port))
            self._socket.listen(512)
        except OSError:
            self._socket.close()
            raise
        # A closed socket does not wake the thread that accepts from it; a byte through this pair does.
        self._stop, self._stopped = socket.socketpair()
        self._thread = threading.Thread(target=self._run, name="fault-proxy-accept", daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._stop.send(b"x")
        if threading.current_thread() is not self._thread:
            self._thread.join()
        for end in (self._socket, self._stop, self._stopped):
            end.close()

    def _run(self) -> None:
        with selectors.DefaultSelector() as selector:
            selector.register(self._socket, selectors.EVENT_READ)
            selector.register(self._stopped, selectors.EVENT_READ)
            self._socket.setblocking(False)
            while True:
                ready = {key.fileobj for key, _ in selector.select()}
                if self._stopped in ready:
                    return
                with contextlib.suppress(OSError):  # the client has gone again
                    client, _ = self._socket.accept()
                    client.setblocking(True)
                    client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                    self._accepted(client)
