"""Letters and groups as the desk reads them, on a real Redis."""

from __future__ import annotations

import pytest

from reliq.desk import groups, letters
from reliq.desk.selector import Match, Selector
from reliq.errors import LetterError
from tests.desk.morgues import both_brokers
from tests.desk.support import Morgue


def ids(morgue: Morgue, selector: Selector) -> list[str]:
    return [letter.id for letter in letters.select(morgue.transport, selector)]


@both_brokers
def test_letters_of_all_queues_and_origins_come_oldest_death_first(morgue: Morgue) -> None:
    """The order is that of the deaths, not of queues or origins; an unreadable body has its place too."""
    put = [
        morgue.letter(1, queue="b"),
        morgue.stock(2, queue="a"),
        morgue.letter(3, queue="a"),
        morgue.raw(b"junk", queue="b"),
        morgue.stock(5, queue="b"),
    ]
    assert ids(morgue, Selector()) == put
    assert ids(morgue, Selector(queue="a")) == [put[1], put[2]]


@both_brokers
def test_letters_are_found_by_their_id_and_by_their_messages(morgue: Morgue) -> None:
    first, second = morgue.letter(1), morgue.stock(2, queue="other")
    by_id = letters.find(morgue.transport, first)
    assert by_id.message is not None
    assert letters.find(morgue.transport, by_id.message.message_id).id == first
    assert letters.find(morgue.transport, second).source == "stock"
    assert ids(morgue, Selector(ids=(second, first, by_id.message.message_id, "no-such"))) == [first, second]


@both_brokers
def test_an_unknown_letter_is_answered_with_what_to_type(morgue: Morgue) -> None:
    there = morgue.letter(1, queue="a")
    with pytest.raises(LetterError, match=r"no dead letter 'nope': .*`reliq dlq list`"):
        letters.find(morgue.transport, "nope")
    with pytest.raises(LetterError, match="on queue 'b'"):
        letters.find(morgue.transport, there, "b")


@both_brokers
def test_groups_from_the_index_and_from_the_letters_agree(morgue: Morgue) -> None:
    """Whether letters were read or not, the same causes have the same counts and versions."""
    for number in range(3):
        morgue.letter(number, version="1.2")
    sample = morgue.letter(9, version="1.10")
    morgue.letter(1, error=KeyError("x"), queue="mail", reason="permanent")
    morgue.raw(b"junk")
    morgue.stock(1)
    indexed = groups.groups(morgue.transport, Selector())
    scanned = groups.groups(morgue.transport, Selector(newer_than_ms=10**12))
    assert [row.pop("versions") for row in scanned] == [["1.10", "1.2"], [], [], []]
    assert [row.pop("versions") for row in indexed] == [["1.10", "1.2"], [], [], []]
    for row in (*indexed, *scanned):
        row.pop("actor")  # of unreadable and stock letters the index knows none
    assert indexed == scanned
    assert [row["count"] for row in indexed] == [4, 1, 1, 1]
    assert indexed[0]["sample"] == sample
    assert indexed[0]["error"] == "ZeroDivisionError"
    assert indexed[0]["note"] is None
    assert list(groups.groups(morgue.transport, Selector())[0]) == [
        "fingerprint", "queue", "actor", "error", "reason", "count", "first_seen", "last_seen", "sample", "versions",
        "note",
    ]  # fmt: skip


SELECTORS = [
    Selector(),
    Selector(queue="mail"),
    Selector(actor="charge"),
    Selector(actor="notify"),
    Selector(error="KeyError"),
    Selector(reason="malformed"),
    Selector(match=(Match.parse("args.0=1"),)),
    Selector(actor="notify", older_than_ms=1),
]


@both_brokers
def test_counts_are_those_of_the_letters(morgue: Morgue) -> None:
    """A count from the index equals the number of letters that are listed, stock ones included."""
    for actor in ("charge", "notify"):
        morgue.letter(1, actor=actor)
        morgue.letter(1, actor=actor, error=KeyError("k"), queue="mail")
        morgue.stock(1, actor=actor)
    morgue.raw(b"junk", queue="mail")
    for selector in SELECTORS:
        listed = len(ids(morgue, selector))
        assert listed > 0
        assert letters.count(morgue.transport, selector) == listed, selector
        assert sum(row["count"] for row in groups.groups(morgue.transport, selector)) == listed, selector
