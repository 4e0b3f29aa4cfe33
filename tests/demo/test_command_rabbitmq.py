"""`reliq demo --broker rabbitmq`: the same promises as on Redis, on a node of its own and on a server that is named."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from reliq.testing import RabbitmqApi, eventually
from tests.demo.support import PLAIN, RELIQ, demo, figures


@pytest.mark.usefixtures("rabbitmq_binary")
@pytest.mark.timeout(300)  # a node boots twice
def test_with_the_broker_alarmed_and_killed_reliq_loses_nothing_and_plain_does(tmp_path: Path) -> None:
    """The whole demo on a node of its own: both sides count to what was sent. What plain Dramatiq's send() accepted
    during the alarm is lost with the broker; reliq's send() says that it is not accepted, until it is."""
    with demo(tmp_path, "--broker", "rabbitmq") as run:
        assert run.end(240) == 0, run.output
        run.assert_nothing_is_left()
    output = run.output
    assert all(line.isprintable() for line in output.split("\n"))
    sent, done, dead, stuck, lost = figures(PLAIN, output)
    assert sent == 300 == done + dead + stuck + lost
    assert lost >= 30  # of 40 sent during the alarm; retries come on top
    sent, done, retried, dead, _twice, stuck, lost = figures(RELIQ, output)
    assert (sent, done + dead, stuck, lost) == (300, 300, 0, 0)
    assert retried > 100
    assert dead > 20
    assert re.search(r"kill -9 of one worker a side, which ran \d+ \(plain\) and \d+ \(reliq\) tasks", output)
    assert "the broker is short of memory" in output
    assert re.search(r"plain: send\(\) has returned for all 40$", output, re.MULTILINE)
    assert re.search(r"reliq: send\(\) has returned for all 40, after \d+ refusals$", output, re.MULTILINE)
    assert re.search(r"\d+ in the broker, none in a worker \(reliq\)$", output, re.MULTILINE)
    assert re.search(r"^ +1  malformed +-  +-$", output, re.MULTILINE)
    letter = json.loads(output[output.index("\n{") : output.index("\n}") + 2])
    assert letter["reason"] == "retries_exhausted"
    assert len(letter["attempts_log"]) == letter["attempts"] == 3
    assert "reliq demo --broker rabbitmq --keep" in output


def on_the_server(shared_rabbitmq: RabbitmqApi) -> dict[str, str]:
    """How the demo is told of a running server."""
    url = shared_rabbitmq.url().removesuffix("/%2F")
    return {"RELIQ_TEST_RABBITMQ_URL": url, "RELIQ_TEST_RABBITMQ_MANAGEMENT_URL": shared_rabbitmq.management_url}


@pytest.mark.timeout(300)
def test_kept_open_on_a_named_server_it_shows_the_letters_and_takes_its_vhost_away(
    tmp_path: Path, shared_rabbitmq: RabbitmqApi
) -> None:
    """`--plain=off --keep`: the letters are in the vhost that is printed; Ctrl-C ends all, and the vhost is gone."""
    arguments = ("--broker", "rabbitmq", "--plain=off", "--keep", "--messages", "40", "--seed", "3")
    with demo(tmp_path, *arguments, environment=on_the_server(shared_rabbitmq)) as run:
        run.wait_for("In a browser", 120)
        sent, done, _retried, dead, _twice, stuck, lost = figures(RELIQ, run.output)
        assert (sent, done + dead, stuck, lost) == (40, 40, 0, 0)
        assert "plain:" not in run.output
        match = re.search(r"--url amqp://guest:guest@[\d.]+:\d+/(\S+) --management-url \S+ dlq list", run.output)
        assert match is not None
        vhost = match[1]
        letters = [q["messages_ready"] for q in shared_rabbitmq.queues(vhost) if q["name"] == "default.dead"]
        assert letters == [dead]
        run.process.send_signal(signal.SIGINT)
        assert run.end(60) == 0, run.output
        run.assert_nothing_is_left()
    assert vhost not in [found["name"] for found in shared_rabbitmq.api("GET", "vhosts")]


@pytest.mark.usefixtures("rabbitmq_binary")
@pytest.mark.timeout(300)
def test_stopped_while_its_node_boots_it_leaves_nothing_behind(tmp_path: Path) -> None:
    with demo(tmp_path, "--broker", "rabbitmq") as run:
        run.wait_for("starting a RabbitMQ node")
        eventually(lambda: any("beam" in line for line in run.left_running()), 60, what="the node's process")
        run.process.send_signal(signal.SIGTERM)
        assert run.end(60) == 128 + signal.SIGTERM, run.output
        run.assert_nothing_is_left()
    assert "Traceback" not in run.output


def test_without_the_client_it_says_what_to_install() -> None:
    code = (
        "import sys; sys.modules['pika'] = None\n"
        "from reliq.demo.command import command; command(['--broker', 'rabbitmq'])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "pip install 'dramatiq-reliq[rabbitmq,demo]'" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("environment", "says"),
    [
        ({"RELIQ_TEST_RABBITMQ_BINARY": "/nowhere/rabbitmq-server"}, "install it with `apt-get install"),
        ({"RELIQ_TEST_RABBITMQ_URL": "amqp://guest:s3cret@127.0.0.1:1"}, "does not answer (no connection)"),
    ],
)
def test_a_server_that_is_named_but_not_there_is_an_error_that_says_what_to_do(
    environment: dict[str, str], says: str
) -> None:
    """One line, without a password, and nothing is installed for a mistyped name."""
    environment = {"RELIQ_TEST_RABBITMQ_URL": "", "RELIQ_TEST_RABBITMQ_MANAGEMENT_URL": "", **environment}
    command = [sys.executable, "-m", "reliq.demo", "--broker", "rabbitmq"]
    done = subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert says in done.stderr
    assert "s3cret" not in done.stderr
    assert "Traceback" not in done.stderr
