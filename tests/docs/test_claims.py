"""Facts that the pages state and that no other test counts: the boot line, connections, what stock does."""

from pathlib import Path

import dramatiq
import pytest
from dramatiq.brokers.redis import RedisBroker

import reliq
from reliq.testing import RedisServer, eventually
from reliq.testing.plugin import MakeWorkers
from reliq.wiring import boot_line
from tests.docs.pages import ROOT, blocks
from tests.docs.runner import USUAL_URL

APP = """
import os
import dramatiq
from dramatiq.brokers.redis import RedisBroker
import reliq

broker = RedisBroker(url=os.environ["URL"])
reliq.install(broker)
dramatiq.set_broker(broker)

@dramatiq.actor
def one(): ...

@dramatiq.actor(queue_name="other")
def two(): ...
"""


@pytest.mark.parametrize("page", ["README.md", "docs/getting-started.md"])
def test_the_boot_line_of_the_page_is_the_real_one(page: str, redis_server: RedisServer) -> None:
    """On a Redis that persists and does not evict, with one queue."""
    broker = reliq.install(RedisBroker(url=redis_server.url))
    dramatiq.actor(broker=broker, actor_name="one")(lambda: None)
    line = boot_line(broker)
    broker.close()
    shown = [text for block in blocks(ROOT / page) if (text := block.text.strip()).startswith("reliq 0")]
    assert shown == [line.replace(redis_server.url, USUAL_URL)]


def test_a_worker_process_waits_on_two_connections_a_queue(
    redis_server: RedisServer, worker_group: MakeWorkers, tmp_path: Path
) -> None:
    """One for the queue, one for its `.DQ`, whatever the threads: 2 queues, 4 in BLMOVE."""
    (tmp_path / "connections.py").write_text(APP)
    worker_group("connections", threads=8, cwd=tmp_path, env={"URL": redis_server.url})
    client = redis_server.client()

    def waiting() -> int:
        return sum(connection["cmd"] == "blmove" for connection in client.client_list())

    eventually(lambda: waiting() == 4, what="4 connections in BLMOVE")
    assert len(client.client_list()) < 4 + 10
