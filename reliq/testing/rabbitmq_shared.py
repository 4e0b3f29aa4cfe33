"""One RabbitMQ node for all processes of a pytest run that is spread by pytest-xdist.

Callers: `reliq.testing.plugin`: the run's first process opens a `Landlord`, its workers `ask` it.
Guarantee: the node is booted when a worker first asks, once; it belongs to the run's first process, so that it
outlives every worker and is gone with the run, however that ends.

A boot takes 6 s of a core: a node in each of four workers would cost a run half a minute of its cores.
"""

from __future__ import annotations

import contextlib
import json
import socket
import threading
from pathlib import Path

from reliq.testing.rabbitmq import START_TIMEOUT_S, RabbitmqServer
from reliq.testing.rabbitmq_binary import install_rabbitmq
from reliq.testing.rabbitmq_node import NodePlace, RabbitmqNode
from reliq.testing.rabbitmq_ports import NodePorts

INSTALL_TIMEOUT_S = 300.0
JOIN_S = 10.0


class Landlord:
    """Boots the node for whoever asks first, at `address`; `close()` ends the node.

    An answer is one line of JSON: where the node lives, or {"error": why there is none}.
    """

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.address = int(self._listener.getsockname()[1])
        self._node: RabbitmqServer | None = None
        self._answer: bytes | None = None  # the same to all, a failure too: the next boot would fail alike
        self._thread = threading.Thread(target=self._serve, name="reliq-landlord", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End the node and answer nobody any more."""
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)  # wakes accept()
        self._listener.close()
        if self._node is not None:
            self._node.kill()  # ends a boot that is under way
        self._thread.join(JOIN_S)  # longer only while a package is being installed
        if self._node is not None:
            self._node.close()

    def _serve(self) -> None:
        while True:
            try:
                worker, _ = self._listener.accept()
            except OSError:
                return
            with worker, contextlib.suppress(OSError):  # a worker that went away meanwhile
                if self._answer is None:
                    self._answer = json.dumps(self._boot()).encode() + b"\n"
                worker.sendall(self._answer)

    def _boot(self) -> dict[str, object]:
        try:
            self._node = RabbitmqServer(binary=install_rabbitmq())
            place = self._node.start().place
        except Exception as error:  # whatever it is, it is the worker's test that must show it
            return {"error": f"{type(error).__name__}: {error}"}
        return {"binary": place.binary, "folder": str(place.folder), "ports": place.ports}


def ask(address: int) -> RabbitmqNode:
    """The node of the `Landlord` at that port, booted by now. Raises `RuntimeError` with why there is none."""
    with socket.create_connection(("127.0.0.1", address), timeout=START_TIMEOUT_S + INSTALL_TIMEOUT_S) as line:
        with line.makefile("rb") as answers:
            answer = json.loads(answers.readline() or b'{"error": "the run is ending"}')
    if "error" in answer:
        raise RuntimeError(answer["error"])
    return RabbitmqNode(NodePlace(answer["binary"], Path(answer["folder"]), NodePorts(*answer["ports"])))
