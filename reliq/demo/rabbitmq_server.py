"""The demo's RabbitMQ: the server that `RELIQ_TEST_RABBITMQ_URL` names, else a node of its own.

Caller: `rabbitmq_scene`. A node is started from the program that `reliq.testing.find_rabbitmq` finds, which root on
Debian may install. Guarantee: a node listens on 127.0.0.1 only, and is gone with its folder when the block ends.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from urllib.parse import urlsplit

from reliq.testing import RabbitmqApi, RabbitmqServer, ServerFailed, ServerMissing, find_rabbitmq, install_rabbitmq
from reliq.testing.rabbitmq_api import ApiError
from reliq.testing.rabbitmq_binary import ENV_BINARY

from .background import Background
from .interrupts import Interrupts

ENV_URL, ENV_MANAGEMENT_URL = "RELIQ_TEST_RABBITMQ_URL", "RELIQ_TEST_RABBITMQ_MANAGEMENT_URL"


def named_server() -> RabbitmqApi | None:
    """The server that the environment names, or None. Raises `ServerFailed` when its management API does not answer:
    the demo makes its vhosts there."""
    url = os.environ.get(ENV_URL)
    if not url:
        return None
    api = RabbitmqApi(url, os.environ.get(ENV_MANAGEMENT_URL))
    try:
        api.api("GET", "overview")
    except ApiError as error:
        parts = urlsplit(api.management_url)
        raise ServerFailed(
            f"{ENV_URL} is set, but the management API at {parts.hostname}:{parts.port} does not answer "
            f"({_why(error)}); set {ENV_MANAGEMENT_URL} to http://USER:PASSWORD@HOST:PORT, or unset both"
        ) from error
    return api


def _why(error: ApiError) -> str:
    return f"HTTP {error.status}" if error.status else "no connection"


@contextmanager
def running_node(interrupts: Interrupts, say: Callable[[str], None]) -> Iterator[RabbitmqServer]:
    """Start a node, end it after the block. Raises `ServerMissing` with what to install, or `ServerFailed`."""
    binary = _binary(say)
    with ExitStack() as stack:
        with interrupts.held():
            server = RabbitmqServer(binary=binary)
            stack.callback(server.close)
            boot = Background(server.start)
            stack.callback(boot.end, server.kill)
        say("starting a RabbitMQ node of its own, about 7 s")
        boot.wait()
        yield server


def _binary(say: Callable[[str], None]) -> str:
    try:
        return find_rabbitmq()
    except ServerMissing:
        # A program that is named but is not there is a mistake to be told, not to be got round.
        if os.environ.get(ENV_BINARY) or os.geteuid() != 0 or shutil.which("apt-get") is None:
            raise
    say("no RabbitMQ here: installing Debian's package rabbitmq-server, about half a minute")
    return install_rabbitmq()
