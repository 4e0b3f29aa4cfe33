"""Every code block of the README and the docs is run: what a reader copies works."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from reliq.testing import RedisServer
from tests.docs.pages import PAGES, ROOT, blocks
from tests.docs.runner import NOT_RUN, USUAL_AMQP_URL, _alike

RUN = [page for page in PAGES if any(block.language != "text" for block in blocks(page))]


@pytest.mark.parametrize("page", RUN, ids=lambda page: page.stem)
def test_every_block_of_the_page_does_what_the_page_says(
    page: Path, redis_server: RedisServer, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """In order, in an empty folder, on a Redis of its own, and where the page has RabbitMQ in a vhost of its own:
    `tests/docs/runner.py` says how each kind is run."""
    urls = [redis_server.url]
    if USUAL_AMQP_URL in page.read_text(encoding="utf-8"):
        rabbitmq, vhost = request.getfixturevalue("shared_rabbitmq"), request.getfixturevalue("vhost")
        urls += [rabbitmq.url(vhost), rabbitmq.management_url]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    done = subprocess.run(
        [sys.executable, "-m", "tests.docs.runner", str(page), *urls],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-6000:]


def test_what_is_not_run_is_written_somewhere() -> None:
    """The list of exceptions holds only what a page says."""
    said = "\n".join(page.read_text(encoding="utf-8") for page in [*PAGES, ROOT / "CONTRIBUTING.md"])
    assert [command for command in NOT_RUN if command not in said] == []


@pytest.mark.parametrize(
    ("expected", "printed", "same"),
    [
        ("1", "1\n", True),
        ("1", "10\n", False),
        ("a … c", "a  b\n c", True),
        ("… c", "b\nd", False),
        ("01K… pay", "01KABC   pay", True),
        ("…", "", True),
        ("at 2026-01-15T10:00:00Z 2af15fa18fbd6fbb", "at  2027-02-16T11:01:01Z 0123456789abcdef", True),
        ("at 2026-01-15T10:00:00Z", "at noon", False),
    ],
)
def test_outputs_are_compared_up_to_spaces_and_dots(expected: str, printed: str, same: bool) -> None:
    assert _alike(expected, printed) is same
