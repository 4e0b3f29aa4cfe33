"""The example runs as its README says."""

import os
import re
import subprocess
import sys
from pathlib import Path

from reliq.testing import RedisServer, WorkerGroup, eventually

BASIC = Path(__file__).resolve().parents[2] / "examples" / "basic"


def test_the_basic_example_sends_eight_receipts_and_keeps_two_letters(redis_server: RedisServer) -> None:
    """The commands of examples/basic/README.md after the installation, on a Redis of this test's own."""
    environment = {"REDIS_URL": redis_server.url, "PYTHONDONTWRITEBYTECODE": "1"}
    sender = [sys.executable, "app.py"]
    subprocess.run(sender, cwd=BASIC, env={**os.environ, **environment}, check=True, capture_output=True)
    with WorkerGroup("app", cwd=BASIC, env=environment) as group:

        def orders() -> set[str]:
            return set(re.findall(r"receipt for order (\d+) sent", group.log()))

        eventually(lambda: len(orders()) == 8, 60, what="eight receipts")
        assert orders() == {"1", "2", "3", "4", "6", "7", "8", "9"}
        assert redis_server.client().zcard("dramatiq:default.dead") == 2


def test_the_readme_runs_what_is_there() -> None:
    """Three commands, none of which names a file that does not exist."""
    block = re.findall(r"```sh\n(.*?)```", (BASIC / "README.md").read_text(), re.DOTALL)[0]
    assert block.splitlines() == ["pip install 'dramatiq-reliq[redis]'", "python app.py", "dramatiq -p 1 app"]
    assert (BASIC / "app.py").exists()
