"""What became of a task is a pure function of what it wrote and what the broker holds."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reliq.testing import Census, Entry, Place, tally

LIVE, DEAD = "live-worker", "dead-worker"
STATES = ["ready", "unacked", "delayed", "dead", "stock_delayed", "stock_dead", "ghost"]
FATES = ["done", "dead", "waiting", "stuck", "lost"]


def entry(event: str, key: object = 1) -> Entry:
    return Entry(event=event, key=key, at=0.0, pid=1, thread=1)


def place(state: str, holder: str | None = None, key: object = 1) -> Place:
    return Place("default", state, holder, b"", args=(key,))  # type: ignore[arg-type]


def census(*places: Place) -> Census:
    """A beat 59,999 ms ago is believed, one 60,000 ms ago is not."""
    return Census(places, now_ms=100_000, heartbeats={LIVE: 40_001, DEAD: 40_000})


@pytest.mark.parametrize(
    ("events", "places", "fate"),
    [
        ([], [], "lost"),
        (["start"], [], "lost"),
        (["start", "fail"], [], "lost"),  # failed, and its retry is nowhere: the loss we look for
        (["start", "end"], [], "done"),
        (["start", "end"], [place("unacked", LIVE)], "done"),  # not acked yet
        (["start", "end"], [place("dead")], "done"),
        (["start", "fail"], [place("dead")], "dead"),
        (["start", "fail"], [place("stock_dead")], "dead"),
        (["start", "fail"], [place("delayed")], "waiting"),
        ([], [place("ready")], "waiting"),
        ([], [place("stock_delayed")], "waiting"),
        (["start"], [place("unacked", LIVE)], "waiting"),
        (["start"], [place("unacked", DEAD)], "stuck"),
        (["start"], [place("unacked", "never heard of")], "stuck"),
        ([], [place("ghost")], "stuck"),
        ([], [place("ghost"), place("ready")], "waiting"),  # the best of several
        ([], [place("unacked", DEAD), place("unacked", LIVE)], "waiting"),
        ([], [place("ready"), place("dead")], "dead"),
        ([], [place("ready", key=2)], "lost"),  # somebody else's
    ],
)
def test_fates(events: list[str], places: list[Place], fate: str) -> None:
    result = tally([1], [entry(event) for event in events], census(*places))
    assert {name: getattr(result, name) for name in FATES} == {name: int(name == fate) for name in FATES}
    assert result.which(fate) == {1}


def test_the_caller_may_know_better_who_lives() -> None:
    places = census(place("unacked", LIVE))
    assert tally([1], [], places, live=lambda broker_id: False).stuck == 1
    assert tally([1], [], places, live=lambda broker_id: broker_id == LIVE).waiting == 1


def test_a_liveness_key_makes_a_holder_live() -> None:
    places = Census((place("unacked", "ours"),), now_ms=100_000, workers=frozenset({"ours"}))
    assert tally([1], [], places).waiting == 1


def test_twice_retried_and_extra_runs() -> None:
    """Key 1 ran twice to its end, key 2 failed once and then ended, key 9 was never sent."""
    log = [entry("start"), entry("end"), entry("start"), entry("end")]
    log += [entry("start", 2), entry("fail", 2), entry("start", 2), entry("end", 2), entry("end", 9)]
    result = tally([1, 2, 3], log, census())
    assert (result.sent, result.done, result.lost, result.twice, result.retried) == (3, 2, 1, 1, 1)
    assert result.runs - result.fails - result.done == 1
    assert (result.which("twice"), result.which("retried"), result.which("lost")) == ({1}, {2}, {3})
    assert str(result) == "sent 3 done 2 dead 0 stuck 0 lost 1 twice 1"
    with pytest.raises(KeyError, match="no fate 'gone'; there are dead, done, lost"):
        result.which("gone")


def test_what_still_waits_is_named_in_the_line() -> None:
    assert str(tally([1], [], census(place("ready")))) == "sent 1 done 0 dead 0 stuck 0 lost 0 twice 0 waiting 1"


def test_a_key_of_the_callers_choice() -> None:
    places = Census((Place("default", "dead", None, b"raw bytes", entry="id-7"),), now_ms=0)
    assert tally(["id-7"], [], places, key=lambda place: place.entry).dead == 1
    assert tally(["id-7"], [], places).lost == 1  # no message, no argument, no key


def test_keys_that_are_lists_in_json_are_tuples_here() -> None:
    assert tally([(1, "a")], [], census(place("ready", key=[1, "a"]))).waiting == 1
    assert place("ready", key={"b": [1], "a": 2}).key == (("a", 2), ("b", (1,)))


keys = st.integers(0, 6)


@given(
    st.sets(keys),
    st.lists(st.builds(entry, st.sampled_from(["start", "end", "fail", "tick"]), keys)),
    st.lists(st.builds(place, st.sampled_from(STATES), st.sampled_from([LIVE, DEAD, None]), keys)),
)
def test_every_sent_key_has_exactly_one_fate(sent: set[int], log: list[Entry], places: list[Place]) -> None:
    result = tally(sent, log, census(*places))
    assert sum(getattr(result, fate) for fate in FATES) == result.sent == len(sent)
    assert frozenset().union(*(result.which(fate) for fate in FATES)) == sent
    assert result.which("twice") <= result.which("done")
