"""Choose a TCP port on 127.0.0.1 that nothing uses.

Callers: the server starters and the proxy.
Guarantee: the port was free when it was looked at. Another process may still take it first, so callers start
again on another port when binding fails.
"""

from __future__ import annotations

import random
import socket

# Below the kernel's range for outgoing connections (Linux 32768-60999, macOS 49152-65535). Inside that range
# a client that keeps dialling a port whose server is down is one day given that very port and connects to
# itself.
LOWEST, HIGHEST = 20_000, 32_000

_random = random.SystemRandom()


def free_port() -> int:
    """A free port on 127.0.0.1. Raises `OSError` when 200 tries find none."""
    for _ in range(200):
        port = _random.randrange(LOWEST, HIGHEST)
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise OSError(f"no free port between {LOWEST} and {HIGHEST} on 127.0.0.1 after 200 tries")
