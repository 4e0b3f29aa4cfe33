"""The examples run as their READMEs say."""

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from reliq.testing import RabbitmqApi, RedisServer, WorkerGroup, eventually

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


def runs(example: str, line: str, environment: dict[str, str], letters: Callable[[], int]) -> None:
    """The commands of an example's README after the installation: eight of ten end with `line`, two are letters."""
    environment = {**environment, "PYTHONDONTWRITEBYTECODE": "1"}
    folder = EXAMPLES / example
    sender = [sys.executable, "app.py"]
    subprocess.run(sender, cwd=folder, env={**os.environ, **environment}, check=True, capture_output=True)
    with WorkerGroup("app", cwd=folder, env=environment) as group:

        def ended() -> set[str]:
            return set(re.findall(line, group.log()))

        eventually(lambda: len(ended()) == 8, 60, what="eight of ten")
        eventually(lambda: letters() == 2, 60, what="two letters")
        assert ended() == {"1", "2", "3", "4", "6", "7", "8", "9"}


def test_the_basic_example_sends_eight_receipts_and_keeps_two_letters(redis_server: RedisServer) -> None:
    """On a Redis of this test's own."""
    client = redis_server.client()
    runs(
        "basic",
        r"receipt for order (\d+) sent",
        {"REDIS_URL": redis_server.url},
        lambda: int(client.zcard("dramatiq:default.dead")),
    )


def test_the_rabbitmq_example_writes_eight_reports_and_keeps_two_letters(
    shared_rabbitmq: RabbitmqApi, vhost: str
) -> None:
    """In a vhost of this test's own; the second letter is of the message with a delay."""

    def letters() -> int:
        queues = shared_rabbitmq.queues(vhost)
        return sum(queue["messages_ready"] for queue in queues if queue["name"] == "default.dead")

    environment = {"AMQP_URL": shared_rabbitmq.url(vhost)}
    runs("rabbitmq", r"report for customer (\d+) written", environment, letters)


@pytest.mark.parametrize("example", ["basic", "rabbitmq"])
def test_the_readme_runs_what_is_there(example: str) -> None:
    """Three commands, none of which names a file that does not exist."""
    folder = EXAMPLES / example
    block = re.findall(r"```sh\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)[0]
    extra = {"basic": "redis"}.get(example, example)
    assert block.splitlines() == [f"pip install 'dramatiq-reliq[{extra}]'", "python app.py", "dramatiq -p 1 app"]
    assert (folder / "app.py").exists()
