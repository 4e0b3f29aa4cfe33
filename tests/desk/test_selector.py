"""Which letters a selector means; pure, no server."""

from __future__ import annotations

from typing import Any

import pytest
from dramatiq.message import Message

from reliq.desk.selector import Match, Selector, SelectorError, parse_duration_ms
from reliq.message.letter import DeadLetter

NOW_MS = 1_000_000_000


def letter(
    *args: Any, died_ago_ms: int | None = 1_000, body: bytes = b"", readable: bool = True, **more: Any
) -> DeadLetter:
    dead = {"reason": "permanent", "error": "app.Refused", "fingerprint": "f00d", **more.pop("dead", {})}
    message: Message[Any] = Message("mail", "charge", args, more, {"tenant": "t1"}, message_id="m-1")
    died_at = None if died_ago_ms is None else NOW_MS - died_ago_ms
    return DeadLetter("L-1", "mail", "reliq", body, message if readable else None, dead, died_at)


def means(expected: bool, one: DeadLetter, **selector: Any) -> None:
    assert Selector(now_ms=NOW_MS, **selector).matches(one) is expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [("500ms", 500), ("90s", 90_000), ("30m", 1_800_000), ("2h", 7_200_000), ("7d", 604_800_000), ("1w", 604_800_000),
     ("1h30m", 5_400_000), ("1.5h", 5_400_000), (" 2 h ", 7_200_000), ("0s", 0)],
)  # fmt: skip
def test_durations_are_read(text: str, expected: int) -> None:
    assert parse_duration_ms(text) == expected


@pytest.mark.parametrize("text", ["", "2", "h", "2 hours", "-2h", "2h!", "two h", "1y"])
def test_an_unreadable_duration_names_itself_and_what_to_write(text: str) -> None:
    with pytest.raises(SelectorError, match="write a number and a unit"):
        parse_duration_ms(text)


@pytest.mark.parametrize(
    ("expected", "selector"),
    [
        (True, {}),
        (True, {"queue": "mail", "actor": "charge", "error": "app.Refused", "reason": "permanent"}),
        (False, {"queue": "mai"}),
        (False, {"actor": "Charge"}),
        (False, {"error": "Refused"}),  # whole names only: a write must not catch more than was typed
        (False, {"reason": "crash"}),
        (True, {"fingerprint": "f00d"}),
        (False, {"fingerprint": "f00"}),
        (True, {"ids": ("x", "L-1")}),
        (True, {"ids": ("m-1",)}),
        (False, {"ids": ("m-2",)}),
        (True, {"older_than_ms": 999}),
        (False, {"older_than_ms": 1_000}),  # "longer ago than"
        (True, {"newer_than_ms": 1_001}),
        (False, {"newer_than_ms": 1_000}),
        (True, {"older_than_ms": 500, "newer_than_ms": 2_000}),
    ],
)
def test_every_field_narrows(expected: bool, selector: dict[str, Any]) -> None:
    means(expected, letter(), **selector)


def test_a_letter_without_a_time_has_no_age() -> None:
    means(False, letter(died_ago_ms=None), older_than_ms=0)
    means(False, letter(died_ago_ms=None), newer_than_ms=10**12)


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("args.0=42", True),
        ("args.1=42", True),  # the text "42"
        ("args.0=43", False),
        ("args.2=true", True),
        ("args.2=1", False),  # true is not 1
        ("args.3=null", True),
        ("args.9=1", False),
        ("args.x=1", False),
        ("args.-1=1", False),
        ("kwargs.user.id=7", True),
        ("kwargs.user={\"id\": 7}", True),
        ("kwargs.user.name.x=7", False),
        ("kwargs.a.b=dotted", True),  # the key itself is "a.b"
        ("kwargs.note=a=b", True),
        ("kwargs.list.1=2", True),
        ("kwargs.list=[1, 2]", True),
        ("options.tenant=t1", True),
        ("kwargs.nothing=null", False),
    ],
)  # fmt: skip
def test_a_match_looks_into_arguments(expression: str, expected: bool) -> None:
    held = letter(42, "42", True, None, **{"user": {"id": 7}, "a.b": "dotted", "note": "a=b", "list": (1, 2)})
    means(expected, held, match=(Match.parse(expression),))


def test_every_match_must_hold() -> None:
    wishes = tuple(map(Match.parse, ("args.0=1", "args.1=2")))
    means(True, letter(1, 2), match=wishes)
    means(False, letter(1, 3), match=wishes)


def test_an_unreadable_body_holds_no_argument() -> None:
    means(False, letter(1, readable=False), match=(Match.parse("args.0=1"),))


@pytest.mark.parametrize("expression", ["", "args.0", "=1", "args=1", "args.=1", ".0=1", "body.0=1", "traceback.x=1"])
def test_an_unreadable_match_names_itself_and_what_to_write(expression: str) -> None:
    with pytest.raises(SelectorError, match=r"write args\.0=42"):
        Match.parse(expression)


def test_a_mapping_of_matches_is_taken_as_well() -> None:
    selector = Selector.parse(match={"args.0": 42, "kwargs.name": "x"})
    assert [wish.value for wish in selector.match] == [42, "x"]


def test_an_unknown_reason_is_answered_with_the_near_one_and_all_others() -> None:
    with pytest.raises(SelectorError, match=r"did you mean 'expired'\?; write one of retries_exhausted, permanent"):
        Selector(reason="expird")


def test_only_a_selector_that_narrows_nothing_is_empty() -> None:
    assert Selector().is_empty
    assert Selector(now_ms=5).is_empty
    assert not Selector(older_than_ms=0).is_empty
    assert not Selector(ids=("x",)).is_empty
    assert not Selector(queue="x").is_empty
