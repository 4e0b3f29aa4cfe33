"""`reliq send` and `reliq actors list`."""

from __future__ import annotations

import json

import pytest

from tests.cli.conftest import Cli, MakeApp
from tests.desk.morgues import both_brokers
from tests.desk.support import Morgue


@both_brokers
def test_by_url_any_name_is_sent_to_the_queue_that_is_given(cli: Cli, morgue: Morgue) -> None:
    result = cli(
        "send", "charge", "42", '"text"', "-5", "null", '{"a": [1]}', "--kwargs", '{"b": true}', "--queue", "q"
    )
    assert result.code == 0, result.err
    (sent,) = morgue.queued("q")
    assert result.out == f"{sent['message_id']}\n"
    assert (sent["actor_name"], sent["args"], sent["kwargs"]) == (
        "charge", [42, "text", -5, None, {"a": [1]}], {"b": True},
    )  # fmt: skip
    assert cli.json("send", "x", "--queue", "q")["message_id"] == morgue.queued("q")[1]["message_id"]


@both_brokers
def test_by_application_the_actors_queue_and_options_apply(bare: Cli, morgue: Morgue, app: MakeApp) -> None:
    name = app()
    assert bare("-b", name, "send", "charge", "1").code == 0
    assert bare("-b", name, "send", "charge", "2", "--queue", "other").code == 0
    assert [sent["args"] for sent in morgue.queued("payments")] == [[1]]
    assert [sent["args"] for sent in morgue.queued("other")] == [[2]]


def test_a_delay_waits(cli: Cli, morgue: Morgue) -> None:
    assert cli("send", "x", "--queue", "q", "--delay", "60000").code == 0
    assert morgue.queued("q") == []
    assert cli.json("queues", "list")[0]["delayed"] == 1


@both_brokers
def test_an_undeclared_actor_is_answered_with_the_near_one(bare: Cli, morgue: Morgue, app: MakeApp) -> None:
    before = morgue.dump()
    result = bare("-b", app(), "send", "chrage", "1")
    assert (result.code, result.out) == (1, "")
    assert "did you mean 'charge'?" in result.err
    assert morgue.dump() == before


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["send", "x", "1"], 2, "--queue NAME"),
        (["send", "x", "hello", "--queue", "q"], 2, "a text needs its quotes"),
        (["send", "x", "--unknown", "--queue", "q"], 2, "is not JSON"),
        (["send", "x", "--kwargs", "[1]", "--queue", "q"], 2, "--kwargs must be an object"),
        (["send", "x", "--delay", "-1", "--queue", "q"], 2, "--delay"),
        (["send", "x", "--queue", "q.DQ"], 1, "reserved"),
        (["send"], 2, "ACTOR"),
        (["actors", "list"], 2, "-b app:broker"),
    ],
    ids=str,
)
def test_what_cannot_be_sent_is_refused_and_nothing_is_changed(
    cli: Cli, morgue: Morgue, arguments: list[str], code: int, says: str
) -> None:
    result = cli(*arguments)
    assert (result.code, result.out) == (code, "")
    assert says in result.err
    assert morgue.dump() == {}


def test_actors_are_listed_with_their_options(bare: Cli, app: MakeApp) -> None:
    name = app()
    charge, notify = bare.json("-b", name, "actors", "list")
    assert list(charge) == ["actor", "queue", "priority", "options"]
    assert (charge["actor"], charge["queue"], charge["priority"]) == ("charge", "payments", 5)
    assert charge["options"] == {"max_retries": 3, "throws": ["builtins.KeyError"]}
    assert (notify["actor"], notify["queue"]) == ("notify", "default")
    lines = bare("-b", name, "actors", "list", "-o", "jsonl").out.splitlines()
    assert [json.loads(line)["actor"] for line in lines] == ["charge", "notify"]
    assert bare("-b", name, "actors", "list").out.splitlines()[1].split()[:3] == ["charge", "payments", "5"]
