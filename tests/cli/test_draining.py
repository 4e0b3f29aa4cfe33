"""`reliq queues drain --to-stock`: consent, what it tells, what it refuses."""

from __future__ import annotations

import pytest

from tests.cli.conftest import Cli
from tests.cli.test_broken_off import delays, in_ours, in_stock
from tests.desk.support import Morgue

DRAIN = ("queues", "drain", "--to-stock")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["queues", "drain", "--all"], "--to-stock"),
        ([*DRAIN], "--queue NAME, or --all"),
        ([*DRAIN, "--queue", "default", "--all"], "not both"),
        ([*DRAIN, "--queue", "defualt"], "did you mean 'default'?"),
    ],
    ids=str,
)
def test_what_is_not_said_whole_is_refused(cli: Cli, morgue: Morgue, arguments: list[str], says: str) -> None:
    delays(morgue, 1)
    before = morgue.dump()
    result = cli(*arguments, "--yes")
    assert (result.code, result.out) == (2, "")
    assert says in result.err
    assert morgue.dump() == before


def test_without_consent_nothing_is_moved(cli: Cli, morgue: Morgue) -> None:
    delays(morgue, 1)
    morgue.letter(1)
    before = morgue.dump()
    for arguments, answer, code in (([], None, 5), ([], "n\n", 5), (["--dry-run"], None, 0)):
        assert cli(*DRAIN, "--letters", "--all", *arguments, answer=answer).code == code
    assert morgue.dump() == before


def test_it_warns_of_what_plain_dramatiq_will_do(cli: Cli, morgue: Morgue) -> None:
    morgue.letter(1)
    result = cli(*DRAIN, "--letters", "--all", answer="n\n")
    assert "deletes letters 7 days after their death" in result.err
    assert "every worker that runs with reliq must be stopped" in result.err
    assert "7 days" not in cli(*DRAIN, "--all", answer="n\n").err


def test_delays_go_back_and_letters_stay_unless_asked_for(cli: Cli, morgue: Morgue) -> None:
    """It says how many moved; a repetition moves nothing more."""
    delays(morgue, 3)
    morgue.letter(1)
    morgue.letter(2, queue="mail")
    assert cli.json(*DRAIN, "--all", "--yes") == [
        {"queue": "default", "delays": 3, "letters": 0},
        {"queue": "mail", "delays": 0, "letters": 0},
    ]
    assert (in_stock(morgue), in_ours(morgue)) == ((3, 0), (0, 1))
    table = cli(*DRAIN, "--all", "--letters", answer="y\n").out
    assert [line.split() for line in table.splitlines()] == [
        ["queue", "delays", "letters"], ["default", "0", "1"], ["mail", "0", "1"],
    ]  # fmt: skip
    assert (in_stock(morgue), in_ours(morgue)) == ((3, 1), (0, 0))
    assert [letter["args"] for letter in cli.json("dlq", "list")] == [[1], [2]]


def test_a_queue_with_a_live_reliq_worker_is_refused(cli: Cli, morgue: Morgue) -> None:
    """Its worker would take the delays back. Queues that were done before it are told: exit 3."""
    delays(morgue, 2)
    morgue.letter(1, queue="mail")
    morgue.client.set(f"{morgue.namespace}:reliq:serving:mail", "worker")
    alone = cli(*DRAIN, "--queue", "mail", "--letters", "--yes")
    assert alone.code == 1
    assert "stop the workers that run with reliq" in alone.err
    both = cli(*DRAIN, "--all", "--letters", "--yes", "-o", "json")
    assert (both.code, both.json[0]) == (3, {"queue": "default", "delays": 2, "letters": 0})
    assert "is served by a reliq worker" in both.err
