"""`eventually` returns what it waited for, or says what it waited for."""

import pytest

from reliq.testing import eventually


def test_it_returns_the_first_truthy_value() -> None:
    values = iter([0, "", None, "here", "later"])
    assert eventually(lambda: next(values), every=0.001) == "here"


def test_the_error_names_what_and_the_last_value() -> None:
    with pytest.raises(TimeoutError, match=r"waited 0\.01 s for the letter; last value 0"):
        eventually(lambda: 0, timeout=0.01, every=0.001, what="the letter")


def test_a_condition_is_tried_even_without_time() -> None:
    assert eventually(lambda: "yes", timeout=0) == "yes"


def test_errors_pass_through_unless_ignored() -> None:
    def broken() -> bool:
        raise ConnectionError("down")

    with pytest.raises(ConnectionError, match="down"):
        eventually(broken)
    with pytest.raises(TimeoutError, match=r"last error ConnectionError\('down'\)") as caught:
        eventually(broken, timeout=0.01, ignore=(ConnectionError,))
    assert isinstance(caught.value.__cause__, ConnectionError)
