"""`reliq dlq replay|discard`: consent, plans, results, exit codes; a refused command changes nothing."""

from __future__ import annotations

import re

import dramatiq
import pytest
from dramatiq import Worker

import reliq
from reliq.testing import eventually
from tests.cli.conftest import Cli
from tests.desk.morgues import both_brokers
from tests.desk.support import Morgue

WRITES = ["replay", "discard"]


def count(cli: Cli, *selector: str) -> int:
    return int(cli("dlq", "count", *selector).out)


@pytest.mark.parametrize("action", WRITES)
def test_a_write_without_a_selector_is_refused(cli: Cli, morgue: Morgue, action: str) -> None:
    """Also with --yes, and on a terminal: exit 2, and not one byte is changed."""
    morgue.letter(1)
    morgue.stock(2)
    before = morgue.dump()
    for arguments in ([], ["--yes"], ["--dry-run"]):
        result = cli("dlq", action, *arguments, answer="y\n")
        assert (result.code, result.out) == (2, "")
        assert "say --all" in result.err
    assert morgue.dump() == before


@both_brokers
@pytest.mark.parametrize("action", WRITES)
def test_without_a_terminal_and_without_yes_nothing_is_changed(cli: Cli, morgue: Morgue, action: str) -> None:
    morgue.letter(1)
    before = morgue.dump()
    result = cli("dlq", action, "--all")
    assert (result.code, result.out) == (5, "")
    assert "--yes" in result.err
    assert morgue.dump() == before


@pytest.mark.parametrize("action", WRITES)
@pytest.mark.parametrize("answer", ["n\n", "\n"])
def test_a_no_changes_nothing(cli: Cli, morgue: Morgue, action: str, answer: str) -> None:
    """Nor does a plain Enter: the default is no."""
    morgue.letter(1)
    before = morgue.dump()
    assert cli("dlq", action, "--all", answer=answer).code == 5
    assert morgue.dump() == before


def test_the_end_of_input_at_the_question_changes_nothing(cli: Cli, morgue: Morgue) -> None:
    morgue.letter(1)
    before = morgue.dump()
    assert cli("dlq", "discard", "--all", answer="").code == 130
    assert morgue.dump() == before


@both_brokers
def test_the_plan_is_told_before_the_question(cli: Cli, morgue: Morgue) -> None:
    morgue.letter(1)
    morgue.letter(1)
    morgue.letter(2, actor="notify", queue="mail")
    result = cli("dlq", "replay", "--all", answer="y\n")
    assert result.code == 0
    assert re.search(r"3 letters\n  2 on queue 'default', actor 'charge'\n.*'notify'.*\?", result.err, re.DOTALL)
    assert result.out == "matched  3\ndone     3\nfailed   0\n"


@both_brokers
def test_discard_says_that_it_is_for_good(cli: Cli, morgue: Morgue) -> None:
    """In its help and in its question."""
    morgue.letter(1)
    assert "for good" in cli("dlq", "discard", "--help").out
    result = cli("dlq", "discard", "--all", answer="y\n")
    assert "Delete 1 letter for good? Nothing brings them back." in result.err
    assert count(cli) == 0
    assert morgue.queued() == []


@both_brokers
def test_a_dry_run_changes_nothing(cli: Cli, morgue: Morgue) -> None:
    morgue.letter(1)
    before = morgue.dump()
    for action in WRITES:
        assert cli.json("dlq", action, "--all", "--dry-run") == {"matched": 1, "done": 0, "failed": 0}
    assert morgue.dump() == before


@both_brokers
@pytest.mark.parametrize("action", WRITES)
def test_only_what_is_selected_moves(cli: Cli, morgue: Morgue, action: str) -> None:
    morgue.letter(1)
    kept = morgue.letter(2)
    result = cli.json("dlq", action, "--match", "args.0=1", "--yes")
    assert result == {"matched": 1, "done": 1, "failed": 0}
    assert [letter["id"] for letter in cli.json("dlq", "list")] == [kept]
    assert [sent["args"] for sent in morgue.queued()] == ([[1]] if action == "replay" else [])


def test_a_result_comes_in_every_form(cli: Cli, morgue: Morgue) -> None:
    morgue.letter(1)
    assert cli("dlq", "replay", "--all", "--yes", "-o", "jsonl").out == '{"matched": 1, "done": 1, "failed": 0}\n'


def test_nothing_matched_is_no_error(cli: Cli, morgue: Morgue) -> None:
    morgue.letter(1)
    result = cli("dlq", "replay", "--actor", "nobody", "-o", "json")
    assert (result.code, result.json) == (0, {"matched": 0, "done": 0, "failed": 0})


@both_brokers
def test_what_cannot_be_replayed_stays_and_the_rest_is_partly_done(cli: Cli, morgue: Morgue) -> None:
    """Exit 3 when some of it was done, 1 when none was; the reason is on stderr, each letter where it was."""
    morgue.letter(1)
    junk = morgue.raw(b"junk")
    result = cli("dlq", "replay", "--all", "--yes", "-o", "json")
    assert (result.code, result.json) == (3, {"matched": 2, "done": 1, "failed": 1})
    assert re.search(f"letter {junk} .* stays: its body .* cannot be read", result.err)
    again = cli("dlq", "replay", "--all", "--yes", "-o", "json")
    assert (again.code, again.json) == (1, {"matched": 1, "done": 0, "failed": 1})
    assert cli("dlq", "discard", "--id", junk, "--yes").code == 0
    assert count(cli) == 0


def test_many_that_fail_are_counted_rather_than_listed(cli: Cli, morgue: Morgue) -> None:
    for _ in range(25):
        morgue.raw(b"junk")
    result = cli("dlq", "replay", "--all", "--yes", "-o", "json")
    assert result.json["failed"] == 25
    assert result.err.count(" stays: ") == 20
    assert "more letters stay" in result.err


@both_brokers
def test_an_unknown_id_is_named_and_the_others_are_done(cli: Cli, morgue: Morgue) -> None:
    """So that a list of ids can be repeated after it was broken off."""
    letter_id = morgue.letter(1)
    result = cli("dlq", "replay", "--id", letter_id, "--id", "gone", "--yes", "-o", "json")
    assert (result.code, result.json) == (3, {"matched": 1, "done": 1, "failed": 0})
    assert "no dead letter 'gone'" in result.err
    assert cli("dlq", "replay", "--id", letter_id, "--yes").code == 1


@both_brokers
def test_an_unknown_letter_is_one_line_that_says_what_to_type(cli: Cli) -> None:
    result = cli("dlq", "show", "01NOPE")
    assert (result.code, result.out) == (1, "")
    (line,) = result.err.splitlines()
    assert re.search(r"Error: there is no dead letter '01NOPE': .*`reliq dlq list`", line)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--reason", "expird"], "did you mean 'expired'"),
        (["--older-than", "soon"], "write a number and a unit"),
        (["--match", "args"], "write args.0=42"),
        (["--limit", "-1"], "--limit"),
        (["--outpt", "json"], "--output"),
        (["-o", "yaml"], "json"),
    ],
    ids=str,
)
def test_bad_options_are_usage_errors(cli: Cli, arguments: list[str], says: str) -> None:
    result = cli("dlq", "list", *arguments)
    assert (result.code, result.out) == (2, "")
    assert says in result.err


@both_brokers
def test_fifty_letters_run_again_with_a_real_worker(cli: Cli, morgue: Morgue) -> None:
    """50 messages fail for good on a real worker, are found by their group, replayed, and run once each; those that
    fail again come back as letters that know of their replay."""
    broker = morgue.application()
    reliq.install(broker)
    done: list[int] = []
    broken = True

    @dramatiq.actor(broker=broker, max_retries=0)
    def charge(number: int) -> None:
        if broken or number == 49:
            raise ConnectionError("the bank is closed")
        done.append(number)

    for number in range(50):
        charge.send(number)
    worker = Worker(broker, worker_timeout=100, worker_threads=4)
    worker.start()
    try:
        eventually(lambda: count(cli) == 50, 20, 0.1, "50 letters")
        broken = False
        (group,) = cli.json("dlq", "groups")
        assert (group["error"], group["count"]) == ("ConnectionError", 50)
        result = cli.json("dlq", "replay", "--fingerprint", group["fingerprint"], "--yes")
        assert result == {"matched": 50, "done": 50, "failed": 0}
        eventually(lambda: len(done) == 49 and count(cli) == 1, 20, 0.1, "49 done and one dead again")
    finally:
        worker.stop()
        morgue.close_application(broker)
    assert sorted(done) == list(range(49))
    (letter,) = cli.json("dlq", "list")
    assert (letter["args"], letter["attempts"]) == ([49], 1)
    assert morgue.queued() == []
