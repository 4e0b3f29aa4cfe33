"""Ports for a RabbitMQ node, which stay its own also while it is dead.

Callers: `RabbitmqServer`.
Guarantee: until `close()` no other node of reliq's tests on this machine, in whatever process, takes these ports.
They were free when they were looked at; a foreign program may still take one.

A node needs five ports and is away for seconds when a test kills it. `free_port()` could give one of them to
somebody else meanwhile, so nodes live just above its range, each in a block whose first port its owner holds.
"""

from __future__ import annotations

import random
import socket
from typing import NamedTuple

from reliq.testing import ports

# Still below the ports of outgoing connections (Linux: from 32768).
LOWEST, HIGHEST, SIZE = ports.HIGHEST, 32_768, 8

_random = random.SystemRandom()


class NodePorts(NamedTuple):
    """What one node listens on, all on 127.0.0.1. `control`: the first of three for running `rabbitmqctl`s."""

    amqp: int
    management: int
    distribution: int
    mapper: int
    control: int


class PortBlock:
    """A block of ports. `amqp`: a port to use instead of the block's own. Raises `OSError` when none is free."""

    def __init__(self, amqp: int | None = None) -> None:
        starts = list(range(LOWEST, HIGHEST - SIZE + 1, SIZE))
        for start in _random.sample(starts, len(starts)):
            key = socket.socket()
            try:
                # Without SO_REUSEADDR: this bind fails while another owner holds the key.
                key.bind(("127.0.0.1", start))
                self.ports = NodePorts(amqp or start + 1, start + 2, start + 3, start + 4, start + 5)
                self._key = key
                if self.free(but=amqp):
                    return
            except OSError:
                pass
            key.close()
        raise OSError(f"no block of {SIZE} free ports between {LOWEST} and {HIGHEST} on 127.0.0.1")

    def free(self, but: int | None = None) -> bool:
        """Whether nobody listens on any of the ports; `but` is not looked at."""
        return all(_is_free(port) for port in self.ports if port != but)

    def close(self) -> None:
        """Give the block back."""
        self._key.close()


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # connections of an earlier node may linger
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True
