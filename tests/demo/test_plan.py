"""What the demo sends: the same for the same seed, and some of each kind."""

import pytest

from reliq.demo.plan import BAD_BODY, BAD_KEY, FEWEST, make_plan


def test_equal_arguments_give_an_equal_plan() -> None:
    assert make_plan(300, 7) == make_plan(300, 7)
    assert make_plan(300, 7) != make_plan(300, 8)


@pytest.mark.parametrize("messages", [FEWEST, 300, 5_000])
def test_every_kind_is_there_and_the_undecodable_body_counts(messages: int) -> None:
    plan = make_plan(messages, 1)
    assert len(plan.keys) == len(set(plan.keys)) == messages
    assert BAD_KEY in plan.keys
    assert all(plan.count(kind) for kind in ("works", "flaky", "refused", "hopeless"))
    assert 0 <= plan.bad_at < len(plan.orders)
    assert sum(plan.count(kind) for kind in ("works", "flaky", "refused", "hopeless")) == messages - 1


def test_too_few_messages_are_refused() -> None:
    with pytest.raises(ValueError, match=f"at least {FEWEST}"):
        make_plan(FEWEST - 1, 1)


def test_the_undecodable_body_is_no_text() -> None:
    with pytest.raises(UnicodeDecodeError):
        BAD_BODY.decode()
