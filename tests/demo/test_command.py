"""`reliq demo` as people run it: its lines, its figures, its exit code, and that it leaves nothing behind."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import redis

from tests.demo.support import PLAIN, RELIQ, demo, figures


@pytest.mark.usefixtures("redis_binary")
def test_everything_sent_is_done_or_dead_with_reliq_and_nothing_is_left_behind(tmp_path: Path) -> None:
    """The whole demo: both sides count to what was sent, reliq's without loss, its line the last of the two."""
    with demo(tmp_path) as run:
        assert run.end() == 0, run.output
        run.assert_nothing_is_left()
    output = run.output
    assert all(line.isprintable() for line in output.split("\n"))
    sent, done, dead, stuck, lost = figures(PLAIN, output)
    assert sent == 300 == done + dead + stuck + lost
    sent, done, retried, dead, _twice, stuck, lost = figures(RELIQ, output)
    assert (sent, done + dead, stuck, lost) == (300, 300, 0, 0)
    assert retried > 100
    assert dead > 20
    assert output.index("\nplain: sent") < output.index("\nreliq: sent")
    assert re.search(r"kill -9 of one worker a side, which ran \d+ \(plain\) and \d+ \(reliq\) tasks", output)
    assert "the broker is gone" in output
    assert re.search(r"^ +1  malformed +-  +-$", output, re.MULTILINE)
    counted = re.findall(r"^ +(\d+)  (?:retries_exhausted|permanent|malformed) ", output, re.MULTILINE)
    assert sum(map(int, counted)) == dead
    letter = json.loads(output[output.index("\n{") : output.index("\n}") + 2])
    assert letter["reason"] == "retries_exhausted"
    assert len(letter["attempts_log"]) == letter["attempts"] == 3


@pytest.mark.usefixtures("redis_binary")
def test_kept_open_without_plain_it_serves_until_ctrl_c(tmp_path: Path) -> None:
    """`--plain=off --keep`: reliq's line alone; the server answers at the address that is printed, with the letters
    in it; Ctrl-C then ends all with the verdict's code."""
    with demo(tmp_path, "--plain=off", "--keep", "--messages", "40", "--seed", "3") as run:
        run.wait_for("dlq list")
        run.wait_for("dlq replay")
        sent, done, _retried, dead, _twice, stuck, lost = figures(RELIQ, run.output)
        assert (sent, done + dead, stuck, lost) == (40, 40, 0, 0)
        assert "plain:" not in run.output
        match = re.search(r"--url (redis://127\.0\.0\.1:\d+/0) --namespace (\S+) dlq list", run.output)
        assert match is not None
        with redis.Redis.from_url(match[1]) as client:
            assert client.zcard(f"{match[2]}:default.dead") == dead
        run.process.send_signal(signal.SIGINT)
        assert run.end(20) == 0, run.output
        run.assert_nothing_is_left()


@pytest.mark.usefixtures("redis_binary")
@pytest.mark.parametrize(
    ("number", "moment"),
    [(signal.SIGTERM, "starting the workers"), (signal.SIGINT, "kill -9 of")],
)
def test_stopped_at_any_moment_it_leaves_nothing_behind(tmp_path: Path, number: int, moment: str) -> None:
    with demo(tmp_path, "--messages", "40") as run:
        run.wait_for(moment)
        assert run.left_running() != []
        run.process.send_signal(number)
        assert run.end(20) == 128 + number, run.output
        run.assert_nothing_is_left()
    assert "reliq: sent" not in run.output
    assert "Traceback" not in run.output


def test_a_server_program_that_is_named_but_not_there_is_an_error_that_says_what_to_install(tmp_path: Path) -> None:
    environment = {**os.environ, "RELIQ_TEST_REDIS_BINARY": str(tmp_path / "none")}
    done = subprocess.run(
        [sys.executable, "-m", "reliq.demo"], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert "apt-get install redis-server" in done.stderr
    assert "Traceback" not in done.stderr


def test_too_few_messages_are_a_usage_error() -> None:
    command = [sys.executable, "-m", "reliq.demo", "--messages", "3"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "20<=x<=2000" in done.stderr


def test_its_help_loads_no_client_library() -> None:
    code = "import sys\nfrom reliq.demo import command\nprint([m for m in ('redis', 'dramatiq') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
