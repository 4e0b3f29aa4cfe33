"""docs/cli.md says what the command line does: every command, every option, the keys of its JSON."""

import json
import re
import subprocess
import sys
from pathlib import Path

import click
import dramatiq
import pytest
from dramatiq.brokers.redis import RedisBroker

import reliq
from reliq.cli import exits
from reliq.testing import RedisServer
from tests.docs.commands import GLOBAL, SELECTOR, cells, leaves, own_options, selects, usage
from tests.docs.pages import ROOT, code, headings, section, table

CLI = ROOT / "docs/cli.md"
COMMANDS = dict(leaves())


def written(heading: str) -> list[tuple[str, str]]:
    """The rows of a section's table of options."""
    text = section(CLI, heading)
    return [(row["Option"], row["Meaning"]) for row in table(text, "Option")] if "| Option |" in text else []


def test_every_command_has_a_section_and_no_section_is_of_another() -> None:
    assert [text for level, text in headings(CLI) if level == 3] == [f"reliq {name}" for name in _in_page_order()]


def _in_page_order() -> list[str]:
    """As `reliq --help` lists them, the demo last: it is no daily work."""
    return sorted(COMMANDS, key=lambda name: (name == "demo", list(COMMANDS).index(name)))


@pytest.mark.parametrize("name", COMMANDS)
def test_usage_and_options_of_the_command_are_those_of_click(name: str) -> None:
    command = COMMANDS[name]
    assert written(f"reliq {name}") == [cells(option) for option in own_options(command)]
    text = section(CLI, f"reliq {name}")
    assert f"`{usage(name, command)}`" in text
    assert ("[selectors]" in text) == selects(command)


@pytest.mark.parametrize(("heading", "options"), [("Which broker", GLOBAL), ("Selectors", SELECTOR)])
def test_shared_options_are_those_of_click(heading: str, options: dict[str, click.Option]) -> None:
    assert written(heading) == [cells(option) for option in options.values()]


def test_exit_codes_are_those_of_the_code() -> None:
    codes = {value for name, value in vars(exits).items() if name.isupper() and isinstance(value, int)}
    assert {int(row["Exit code"]) for row in table(section(CLI, "Which broker"), "Exit code")} == {0, *codes}


# -- JSON --------------------------------------------------------------------------------------------------------------


def keys_written(name: str) -> list[str]:
    """The keys after "JSON:" in a command's section, up to the end of the paragraph."""
    after = section(CLI, f"reliq {name}").rpartition("JSON: ")[2].splitlines()[0]
    # What is explained in brackets, or in a further sentence, is no key.
    return code(re.sub(r"\([^)]*\)", "", after).partition(". ")[0])


APP = """
import os
import dramatiq
from dramatiq.brokers.redis import RedisBroker
import reliq

broker = RedisBroker(url=os.environ["URL"])
reliq.install(broker)
dramatiq.set_broker(broker)

@dramatiq.actor
def pay(invoice_id): raise reliq.Permanent("no")
"""


def test_json_keys_are_those_that_the_commands_print(redis_server: RedisServer, tmp_path: Path) -> None:
    """A letter is made, then every command that answers is asked."""
    (tmp_path / "app.py").write_text(APP)
    broker = reliq.install(RedisBroker(url=redis_server.url))
    pay = dramatiq.actor(broker=broker, actor_name="pay", throws=LookupError)(_no_invoice)
    pay.send(1)
    worker = dramatiq.Worker(broker, worker_threads=1, worker_timeout=50)
    worker.start()
    broker.join("default", timeout=20_000)
    worker.stop()
    broker.close()

    def keys(*words: str) -> list[str]:
        command = [str(Path(sys.executable).with_name("reliq")), "-b", "app:broker", *words, "-o", "json"]
        environment = {"URL": redis_server.url, "PATH": "/usr/bin:/bin"}
        done = subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60, check=False
        )
        assert done.returncode == 0, done.stderr
        answer = json.loads(done.stdout)
        return list(answer[0] if isinstance(answer, list) else answer)

    asked = {
        "dlq groups": (),
        "dlq count": (),
        "queues list": (),
        "queues drain": ("--to-stock", "--all", "--yes"),
        "actors list": (),
        "send": ("pay", "1"),
        "dlq replay": ("--all", "--dry-run"),
        "dlq discard": ("--all", "--yes"),
    }
    assert {name: keys(*name.split(), *more) for name, more in asked.items()} == {
        name: keys_written(name) for name in asked
    }


def _no_invoice(invoice_id: int) -> None:
    raise LookupError(invoice_id)
