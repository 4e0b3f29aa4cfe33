"""`reliq dlq list|show|groups|count`, `queues list`: every form of output, on a real Redis."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest
from dramatiq.encoder import JSONEncoder

from tests.cli.conftest import Cli, MakeApp
from tests.desk.morgues import both_brokers, everywhere
from tests.desk.support import Morgue


def keys(names: str) -> list[str]:
    """Names with spaces between, in a row."""
    return names.split()


LETTER_KEYS = keys(
    "id message_id queue actor args kwargs options reason error error_message traceback cause_chain fingerprint "
    "attempts attempts_log first_failed_at died_at worker broker size_bytes"
)


class Rot13Encoder(JSONEncoder):
    """An application's own form, which is no JSON."""

    def encode(self, data: Any) -> bytes:
        return b"R" + base64.b64encode(super().encode(data))

    def decode(self, data: bytes) -> Any:
        if data[:1] != b"R":
            raise ValueError("not of this encoder")
        return super().decode(base64.b64decode(data[1:]))


@both_brokers
def test_a_list_is_an_array_of_whole_letters_oldest_death_first(cli: Cli, morgue: Morgue) -> None:
    put = [morgue.letter(1), morgue.stock(2), morgue.raw(b"\x00junk")]
    listed = cli.json("dlq", "list")
    assert [letter["id"] for letter in listed] == put
    assert list(listed[0]) == LETTER_KEYS
    assert list(listed[1]) == LETTER_KEYS  # a stock letter has every key
    assert listed[1]["reason"] is None
    assert list(listed[2]) == [*LETTER_KEYS, "body_base64"]
    assert base64.b64decode(listed[2]["body_base64"]) == b"\x00junk"


def test_json_lines_are_one_letter_a_line(cli: Cli, morgue: Morgue) -> None:
    put = [morgue.letter(1), morgue.letter(2)]
    lines = cli("dlq", "list", "-o", "jsonl").out.splitlines()
    assert [json.loads(line)["id"] for line in lines] == put


def test_a_table_is_aligned_and_whole_when_piped(cli: Cli, morgue: Morgue) -> None:
    """Nothing is cut unless stdout is a terminal."""
    long = "x" * 400
    morgue.letter(1, error=KeyError(long))
    morgue.letter(1, actor="some.longer.name")
    out = cli("dlq", "list").out
    head, *lines = out.splitlines()
    assert head.split() == ["id", "died_at", "queue", "actor", "reason", "attempts", "error", "error_message"]
    assert long in out
    assert len(lines) == 2
    assert {line[head.index("reason") :].split()[0] for line in lines} == {"retries_exhausted"}


def test_a_table_is_cut_to_the_terminal(cli: Cli, morgue: Morgue, monkeypatch: pytest.MonkeyPatch) -> None:
    morgue.letter(1, error=KeyError("x" * 400))
    monkeypatch.setattr("reliq.cli.output._terminal_width", lambda: 60)
    assert all(len(line) <= 60 for line in cli("dlq", "list").out.splitlines())


def test_a_narrow_terminal_still_shows_why(cli: Cli, morgue: Morgue, monkeypatch: pytest.MonkeyPatch) -> None:
    """Id, actor, reason and error are what a list is for: other columns give way to them."""
    letter_id = morgue.letter(1, error=KeyError("x" * 400))
    monkeypatch.setattr("reliq.cli.output._terminal_width", lambda: 90)
    head, line = cli("dlq", "list").out.splitlines()
    assert head.split() == ["id", "actor", "reason", "error", "error_message"]
    assert line.split()[:4] == [letter_id, "charge", "retries_exhausted", "KeyError"]
    assert len(line) == 90


@both_brokers
def test_an_empty_list_is_empty_data_and_a_word_on_stderr(cli: Cli) -> None:
    assert cli.json("dlq", "list") == []
    assert cli.json("dlq", "groups") == []
    result = cli("dlq", "list")
    assert (result.code, result.out) == (0, "")
    assert "no dead letters" in result.err


@both_brokers
def test_a_misspelt_queue_is_answered_with_the_near_one(cli: Cli, morgue: Morgue) -> None:
    morgue.letter(1, queue="payments")
    assert "did you mean 'payments'?" in cli("dlq", "list", "--queue", "payment").err


@both_brokers
def test_a_hundred_are_listed_and_the_rest_is_counted(cli: Cli, morgue: Morgue) -> None:
    put = [morgue.letter(number) for number in range(103)]
    result = cli("dlq", "list", "-o", "json")
    assert [letter["id"] for letter in result.json] == put[:100]
    assert "3 more; --limit 0 lists all" in result.err
    assert len(cli.json("dlq", "list", "--limit", "0")) == 103
    short = cli("dlq", "list", "--limit", "2", "-o", "json")
    assert (len(short.json), "101 more" in short.err) == (2, True)
    assert cli("dlq", "list", "--limit", "103").err == ""


@both_brokers
def test_one_letter_is_shown_whole(cli: Cli, morgue: Morgue) -> None:
    letter_id = morgue.letter(1, {"deep": [None]}, kwargs={"k": "v"}, options={"tenant": "t"}, version="7")
    shown = cli.json("dlq", "show", letter_id)
    assert list(shown) == LETTER_KEYS
    assert shown["args"] == [1, {"deep": [None]}]
    assert (shown["kwargs"], shown["options"]) == ({"k": "v"}, {"tenant": "t"})
    assert shown["worker"]["version"] == "7"
    assert cli.json("dlq", "show", shown["message_id"])["id"] == letter_id
    (line,) = cli("dlq", "show", letter_id, "-o", "jsonl").out.splitlines()
    assert json.loads(line) == shown
    table = cli("dlq", "show", letter_id).out
    assert f"id               {letter_id}\n" in table
    assert "ZeroDivisionError" in table


@both_brokers
def test_an_undecodable_letter_shows_its_bytes(cli: Cli, morgue: Morgue) -> None:
    letter_id = morgue.raw(b"\x80\x01 \x1b[31mred")
    assert cli.json("dlq", "show", letter_id)["reason"] == "malformed"
    table = cli("dlq", "show", letter_id).out
    assert "\\x80\\x01 \\x1b[31mred" in table
    assert "\x1b" not in table


@both_brokers
def test_a_body_of_another_encoder_is_unread_but_never_called_malformed(
    cli: Cli, morgue: Morgue, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By --url bodies are JSON: what the application wrote otherwise is null there, and whole with its encoder."""
    with monkeypatch.context() as patch:
        patch.setattr("dramatiq.message.global_encoder", Rot13Encoder())
        letter_id = morgue.letter(1, 2)
    (listed,) = cli.json("dlq", "list")
    assert (listed["id"], listed["args"]) == (letter_id, None)
    assert listed["reason"] in (None, "retries_exhausted")  # known on RabbitMQ: it stands beside the body
    assert listed["body_base64"]
    assert "cannot be read" in cli("dlq", "list").out
    refused = cli("dlq", "replay", "--all", "--yes")
    assert refused.code == 1
    assert "-b, or --encoder" in refused.err
    encoder = "tests.cli.test_reading:Rot13Encoder"
    assert cli.json("dlq", "show", letter_id, "--encoder", encoder)["args"] == [1, 2]
    assert cli("dlq", "replay", "--all", "--yes", "--encoder", encoder).code == 0
    (body,) = morgue.bodies()
    assert Rot13Encoder().decode(body)["args"] == [1, 2]


@both_brokers
def test_groups_have_the_promised_keys(cli: Cli, morgue: Morgue) -> None:
    morgue.letter(1)
    sample = morgue.letter(2)
    (group,) = cli.json("dlq", "groups")
    assert list(group) == keys("fingerprint queue actor error reason count first_seen last_seen sample versions note")
    assert (group["count"], group["sample"], group["note"]) == (2, sample, None)
    assert group["first_seen"] < group["last_seen"]
    assert "ZeroDivisionError" in cli("dlq", "groups").out


@both_brokers
def test_count_is_a_bare_number_or_an_object(cli: Cli, morgue: Morgue) -> None:
    morgue.letter(1)
    morgue.stock(2)
    assert cli("dlq", "count").out == "2\n"
    assert cli.json("dlq", "count") == {"count": 2}
    assert cli("dlq", "count", "-o", "jsonl").out == '{"count": 2}\n'
    assert cli("dlq", "count", "--actor", "nobody").out == "0\n"


SELECTORS = [
    (("--queue", "mail"), [3]),
    (("--actor", "notify"), [2]),
    (("--error", "KeyError"), [2]),
    (("--reason", "expired"), [3]),
    (("--match", "args.0=1"), [1]),
    (("--match", "kwargs.user.id=7"), [2]),
    (("--older-than", "2h"), [1]),
    (("--newer-than", "2h"), [2, 3]),
    (("--older-than", "1m", "--newer-than", "2h", "--queue", "default"), [2]),
]


@both_brokers
def test_every_selector_narrows(cli: Cli, morgue: Morgue) -> None:
    morgue.letter(1, died_at_ms=1_000_000_000_000)
    morgue.letter(2, actor="notify", error=KeyError("x"), kwargs={"user": {"id": 7}})
    morgue.letter(3, queue="mail", reason="expired")
    for selector, expected in SELECTORS:
        assert [letter["args"][0] for letter in cli.json("dlq", "list", *selector)] == expected, selector
        assert cli.json("dlq", "count", *selector) == {"count": len(expected)}, selector
        assert sum(group["count"] for group in cli.json("dlq", "groups", *selector)) == len(expected), selector


@both_brokers
def test_letters_are_chosen_by_fingerprint_and_by_ids(cli: Cli, morgue: Morgue) -> None:
    first, second = morgue.letter(1), morgue.letter(2, actor="notify")
    fingerprint = cli.json("dlq", "show", second)["fingerprint"]
    assert [one["id"] for one in cli.json("dlq", "list", "--fingerprint", fingerprint)] == [second]
    assert [one["id"] for one in cli.json("dlq", "list", "--id", second, "--id", first)] == [first, second]


@everywhere
def test_reading_changes_nothing(cli: Cli, morgue: Morgue) -> None:
    letter_id = morgue.letter(1)
    morgue.stock(2)
    morgue.raw(b"junk")
    before = morgue.dump()
    for command in (["list"], ["show", letter_id], ["groups"], ["count"], ["replay", "--all", "--dry-run"]):
        assert cli("dlq", *command).code == 0
    assert cli("queues", "list").code == 0
    assert morgue.dump() == before


HOSTILE = "\x1b[2J\x1b]0;owned\x07 a\r\nid  forged \u202e drawkcab \u2028 \udcff \u200b \x9b31m"


@both_brokers
def test_hostile_texts_cannot_drive_the_terminal(cli: Cli, morgue: Morgue) -> None:
    """Names, errors, arguments and ids as an attacker would choose them: one line each, nothing that acts."""
    letter_id = morgue.letter(
        HOSTILE, actor=HOSTILE, queue="q\x1b[31m", error=ValueError(HOSTILE), kwargs={HOSTILE: HOSTILE}
    )
    morgue.stock(body=HOSTILE.encode("utf-8", "surrogateescape"), queue="q\x1b[31m")
    outputs = [
        cli("dlq", *command, "-o", form)
        for command in (["list"], ["show", letter_id], ["groups"])
        for form in ("table", "json", "jsonl")
    ]
    outputs += [cli("queues", "list"), cli("dlq", "replay", "--all", "--dry-run"), cli("dlq", "show", HOSTILE)]
    for output in outputs:
        for text in (output.out, output.err):
            assert not [char for char in text if not char.isprintable() and char != "\n"]
    assert [line for line in outputs[3].out.splitlines() if line.startswith("id")] == [f"id               {letter_id}"]
    assert len(outputs[0].out.splitlines()) == 3
    shown = outputs[4].json
    assert shown["actor"] == HOSTILE  # in JSON it is escaped, not changed


@both_brokers
def test_a_body_nested_beyond_reading_is_shown_as_unreadable(cli: Cli, morgue: Morgue) -> None:
    morgue.stock(body=b"[" * 100_000)
    morgue.letter(1)
    assert [letter["reason"] for letter in cli.json("dlq", "list")] == [None, "retries_exhausted"]


@both_brokers
def test_values_that_json_does_not_know_come_out_as_valid_json(cli: Cli, morgue: Morgue) -> None:
    letter_id = morgue.letter(float("nan"), float("-inf"))
    out = cli("dlq", "show", letter_id, "-o", "json").out
    shown = json.loads(out, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert shown["args"] == ["nan", "-inf"]


HIDE = """
def hide(letter):
    return {**letter, "args": "***", "error_message": "***", "attempts_log": [], "traceback": None}
"""


@both_brokers
def test_redact_acts_on_all_that_is_shown(cli: Cli, morgue: Morgue, app: MakeApp, bare: Cli) -> None:
    """With -b the application's own redact applies to lists and letters, in every form."""
    letter_id = morgue.letter("4111111111111111", queue="payments", error=ValueError("card 4111111111111111"))
    name = app(before=HIDE, install=", redact=hide")
    for form in ("table", "json", "jsonl"):
        for command in (["list"], ["show", letter_id], ["groups"]):
            result = bare("dlq", *command, "-b", name, "-o", form)
            assert result.code == 0, result.err
            assert "4111111111111111" not in result.out + result.err
    (listed,) = bare.json("dlq", "list", "-b", name)
    assert listed["args"] == "***"
    assert bare("dlq", "replay", "--all", "--yes", "-b", name).code == 0
    assert morgue.queued("payments")[0]["args"] == ["4111111111111111"]  # shown redacted, sent whole


def test_queues_tell_what_they_hold(cli: Cli, morgue: Morgue) -> None:
    morgue.letter(1, queue="mail")
    morgue.stock(2, queue="mail")
    cli("send", "charge", "1", "--queue", "mail")
    cli("send", "charge", "1", "--queue", "mail", "--delay", "60000")
    (row,) = cli.json("queues", "list")
    assert list(row) == keys("queue ready unacked delayed dead oldest_age consumers paused")
    assert row.pop("oldest_age") < 60
    assert row == {
        "queue": "mail", "ready": 1, "unacked": 0, "delayed": 1, "dead": 2, "consumers": 0, "paused": None,
    }  # fmt: skip
    assert cli("queues", "list").out.split("\n")[1].split()[:4] == ["mail", "1", "0", "1"]
    assert json.loads(cli("queues", "list", "-o", "jsonl").out)["dead"] == 2
