"""Reading the values of options: each either usable or a ValueError that says what to write instead."""

from __future__ import annotations

from typing import Any

from dramatiq.actor import Actor

from .decision import RetryFor


def whole(name: str, value: object) -> int:
    """A whole number from 0 on."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 2**63:
        raise ValueError(f"{name} must be a whole number from 0 on, got {value!r}; write for instance {name}=1_000")
    return value


def ms_or_none(value: object, name: str = "max_elapsed") -> int | None:
    """Milliseconds, or None for no limit."""
    return None if value is None else whole(name, value)


def exception_classes(name: str, value: object) -> tuple[type[BaseException], ...]:
    """An exception class or several, as a tuple."""
    classes = tuple(value) if isinstance(value, (tuple, list, set, frozenset)) else (value,)
    for item in classes:
        if not (isinstance(item, type) and issubclass(item, BaseException)):
            raise ValueError(f"{name} must be exception classes, got {item!r}; write for instance {name}=(OSError,)")
    return classes


def check_retry_when(value: object) -> None:
    """A callable, or None."""
    if value is not None and (not callable(value) or isinstance(value, type)):
        raise ValueError(
            f"retry_when must be a callable (retries, exception) -> bool, got {value!r}; pass a function, "
            "or exception classes as retry_for"
        )


def actor_name(name: str, value: object) -> str | None:
    """An actor's name, from the name or the actor itself; None where none is given."""
    if isinstance(value, Actor):
        return str(value.actor_name)
    if value is None or (isinstance(value, str) and value):
        return value
    raise ValueError(f"{name} must be an actor or an actor's name, got {value!r}; write for instance {name}='tell_us'")


def retry_for_value(value: Any) -> RetryFor | None:
    """None, exception classes or a callable."""
    if value is None:
        return None
    if callable(value) and not isinstance(value, type):
        return value  # type: ignore[no-any-return]
    try:
        return exception_classes("retry_for", value)
    except ValueError:
        raise ValueError(
            f"retry_for must be exception classes or a callable (retries, exception) -> bool | int, got {value!r}; "
            "write for instance retry_for=(OSError,) or retry_for=reliq.transient"
        ) from None
