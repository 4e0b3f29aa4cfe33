"""What a failure is called, and what keeps its fingerprint: everything but the cause."""

import importlib.util
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reliq.message.failure import (
    cause_chain,
    error_message,
    error_name,
    fingerprint,
    fingerprint_of_reason,
    traceback_text,
)


def made(name: str, *bases: type[BaseException], **attributes: Any) -> type[Any]:
    """An exception class that goes by `module.Class`."""
    module, _, qualname = name.rpartition(".")
    return type(qualname, bases or (Exception,), {"__module__": module, **attributes})


def raised(call: Callable[[], Any]) -> BaseException:
    """What the call raises, with its traceback."""
    try:
        call()
    except BaseException as error:
        return error
    raise AssertionError("it raised nothing")


class Group(Exception):
    """As the builtin ExceptionGroup, which 3.10 lacks."""

    def __init__(self, *exceptions: BaseException) -> None:
        super().__init__("several")
        self.exceptions = exceptions


CLIENT_ERROR = made("botocore.exceptions.ClientError", response=None)


def client_error(cls: type[Any], response: Any) -> Any:
    error = cls()
    error.response = response
    return error


# -------------------------------------------------------------------------------------------------------- names


class Outer:
    class InnerError(Exception):
        pass


NAMES = [
    (ValueError(), "ValueError"),  # builtins bare
    (ValueError, "ValueError"),  # a class too
    (KeyboardInterrupt(), "KeyboardInterrupt"),
    (made("app.errors.Broken")(), "app.errors.Broken"),
    (Outer.InnerError(), f"{__name__}.Outer.InnerError"),  # the qualified name
    (Group(KeyError(), ValueError()), "KeyError"),  # the first leaf
    (Group(Group(made("app.Deep")()), ValueError()), "app.Deep"),
    (Group(), f"{__name__}.Group"),  # no leaf: itself
    (client_error(CLIENT_ERROR, {"Error": {"Code": "Throttling"}}), "botocore.exceptions.ClientError:Throttling"),
    (
        # botocore makes a class per error code at run time; the name would differ from service to service
        client_error(made("botocore.errorfactory.NoSuchKey", CLIENT_ERROR), {"Error": {"Code": "NoSuchKey"}}),
        "botocore.exceptions.ClientError:NoSuchKey",
    ),
    (client_error(CLIENT_ERROR, {}), "botocore.exceptions.ClientError"),
    (client_error(CLIENT_ERROR, {"Error": {"Code": 5}}), "botocore.exceptions.ClientError"),
    (client_error(CLIENT_ERROR, {"Error": {"Code": "a\x1b[2J b"}}), "botocore.exceptions.ClientError:a[2Jb"),
    (CLIENT_ERROR, "botocore.exceptions.ClientError"),
    (made("app." + "x" * 200)(), "app." + "x" * 116),  # 120 characters
    (made("app.Bad", __module__=5)(), "_unknown.Bad"),
]


@pytest.mark.parametrize(("error", "name"), NAMES, ids=[name[:40] for _, name in NAMES])
def test_error_name(error: BaseException, name: str) -> None:
    assert error_name(error) == name


@pytest.mark.skipif(sys.version_info < (3, 11), reason="3.10 has no builtin ExceptionGroup")
def test_builtin_groups_are_called_after_their_first_leaf() -> None:
    group = getattr(__builtins__, "ExceptionGroup", None) or __builtins__["ExceptionGroup"]  # type: ignore[index]
    assert error_name(group("x", [group("y", [KeyError(1)]), ValueError()])) == "KeyError"


def test_a_group_that_holds_itself_has_a_name() -> None:
    group = Group()
    group.exceptions = (group,)
    assert error_name(group) == f"{__name__}.Group"


# ----------------------------------------------------------------------------------------------------- messages

MESSAGES = [
    (ValueError("no such customer"), "no such customer"),
    (ValueError(), ""),
    (KeyError("id"), "'id'"),  # as Python shows it
    (ValueError("a\nb\tc"), "a\nb\tc"),  # newline and tab stay
    (ValueError("\x1b[31mred\x1b[0m \x9b2J\x07\x00\x7f\r"), "[31mred[0m 2J"),  # ESC, C1, BEL, NUL, DEL, CR
    (ValueError("\ud800x\udfff"), "x"),  # lone surrogates: no encoder takes them
    (ValueError("déjà vu ✓ 🎉"), "déjà vu ✓ 🎉"),
    (ValueError("x" * 1_000), "x" * 500),
    (ValueError("\x00" * 1_500 + "x" * 1_000), "x" * 500),  # cut after cleaning
]


@pytest.mark.parametrize(("error", "message"), MESSAGES, ids=lambda value: ascii(value)[:40])
def test_error_message(error: BaseException, message: str) -> None:
    assert error_message(error) == message


# ------------------------------------------------------------------------------------------------------- chains


def test_chain_follows_causes_then_contexts() -> None:
    def fail() -> None:
        try:
            try:
                raise KeyError("id")
            except KeyError:
                raise OSError("disk")  # noqa: B904 - the context is meant
        except OSError as error:
            raise RuntimeError("cannot") from error

    assert cause_chain(raised(fail)) == [
        {"error": "OSError", "message": "disk"},
        {"error": "KeyError", "message": "'id'"},
    ]


def test_chain_ends_where_it_was_suppressed() -> None:
    def fail() -> None:
        try:
            raise KeyError("secret")
        except KeyError:
            raise RuntimeError("cannot") from None

    assert cause_chain(raised(fail)) == []


def test_chain_in_a_circle_ends() -> None:
    first, second = ValueError("first"), ValueError("second")
    first.__cause__, second.__cause__ = second, first
    assert cause_chain(first) == [{"error": "ValueError", "message": "second"}]


def test_chain_has_ten_links_at_most() -> None:
    error = ValueError("0")
    for n in range(1, 50):
        outer = ValueError(str(n))
        outer.__cause__ = error
        error = outer
    assert [link["message"] for link in cause_chain(error)] == [str(n) for n in range(48, 38, -1)]


def test_chain_of_a_group_is_that_of_the_leaf_it_is_called_after() -> None:
    leaf = ValueError("leaf")
    leaf.__cause__ = KeyError("id")
    assert cause_chain(Group(leaf, TypeError())) == [{"error": "KeyError", "message": "'id'"}]


# ---------------------------------------------------------------------------------------------------- tracebacks


def test_traceback_shows_the_chain_and_ends_in_the_error() -> None:
    def fail() -> None:
        try:
            raise KeyError("id")
        except KeyError as error:
            raise RuntimeError("cannot \x1b[31m") from error

    text = traceback_text(raised(fail))
    assert text.startswith("Traceback (most recent call last):")
    assert "KeyError: 'id'" in text
    assert "in fail" in text
    assert text.endswith("RuntimeError: cannot [31m\n")


def test_traceback_keeps_the_innermost_thirty_frames_of_each_exception() -> None:
    def dive(depth: int) -> None:
        if not depth:
            innermost()
        if depth % 2:  # on two lines, or Python would fold equal frames itself
            dive(depth - 1)
        dive(depth - 1)

    def innermost() -> None:
        raise ValueError

    text = traceback_text(raised(lambda: dive(200)))
    assert len(re.findall(r"^  File ", text, re.MULTILINE)) == 30
    assert "in innermost" in text
    assert "in raised" not in text


@pytest.mark.parametrize("filler", ["x", "é", "🎉", "line\n"])
def test_a_long_traceback_loses_its_beginning(filler: str) -> None:
    def fail() -> None:
        raise ValueError(filler * 30_000 + "the end")

    text = traceback_text(raised(fail))
    assert 16_000 < len(text.encode()) <= 16 * 1024
    assert text.startswith("[...]\n")
    assert text.endswith("the end\n")


@pytest.mark.parametrize("limit", [0, 1, 6, 7, 50, 10_000])
def test_a_traceback_keeps_any_limit(limit: int) -> None:
    assert len(traceback_text(raised(lambda: 1 / 0), limit).encode()) <= limit


def test_an_exception_never_raised_has_a_traceback_too() -> None:
    assert traceback_text(ValueError("x")) == "ValueError: x\n"


# -------------------------------------------------------------------------------------------------- fingerprints

MODULE = """
class OrderError(Exception):
    def __init__(self, order):
        super().__init__(f"order {order} at {id(self)}")

class OtherError(OrderError):
    pass

def charge(order, *more):
    return check(order)

def check(order):
    raise OrderError(order)

def check_other(order):
    raise OrderError(order)

def check_class(order):
    raise OtherError(order)

def check_listed(orders):
    return [check(order) if order < 0 else _raise(order) for order in orders]

def _raise(order):
    raise OrderError(order)

def listed(orders):
    return [int(order) for order in orders]

def parsed(text):
    import json
    return json.loads(text)

def caused(order, by):
    try:
        raise by
    except Exception as error:
        raise OrderError(order) from error
"""


def installed(folder: Path, *, offset: int = 0, name: str = "shop.orders") -> ModuleType:
    """The module above in a folder, imported as `name`, its lines moved down."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "orders.py"
    path.write_text("\n" * offset + MODULE)
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def shop(tmp_path: Path) -> ModuleType:
    return installed(tmp_path / "shop")


def test_fingerprint_stays_over_lines_directories_and_arguments(tmp_path: Path) -> None:
    here = installed(tmp_path / "releases/1", offset=0)
    there = installed(tmp_path / "srv/app/venv/src", offset=137)
    prints = {
        fingerprint("charge", raised(lambda: here.charge(1))),
        fingerprint("charge", raised(lambda: here.charge("2", "more", object()))),
        fingerprint("charge", raised(lambda: there.charge(3))),
        fingerprint("charge", raised(lambda: there.check(4))),  # another way to the same place
    }
    assert len(prints) == 1
    assert re.fullmatch("[0-9a-f]{16}", prints.pop())


def test_fingerprint_stays_over_processes() -> None:
    """Neither hash seeds nor ids are in it."""
    code = "from reliq.message.failure import fingerprint as f\ntry: int('x')\nexcept ValueError as e: print(f('a', e))"
    root = Path(__file__).resolve().parent.parent.parent
    seen = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONHASHSEED": seed},
            cwd=root,
            capture_output=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(seen) == 1


def test_fingerprint_differs_by_actor_class_place_and_cause(shop: ModuleType, tmp_path: Path) -> None:
    elsewhere = installed(tmp_path / "else", name="shop.invoices")
    failures = {
        "base": ("charge", lambda: shop.check(1)),
        "actor": ("refund", lambda: shop.check(1)),
        "no actor": (None, lambda: shop.check(1)),
        "function": ("charge", lambda: shop.check_other(1)),
        "class": ("charge", lambda: shop.check_class(1)),
        "module": ("charge", lambda: elsewhere.check(1)),
        "cause": ("charge", lambda: shop.caused(1, KeyError("x"))),
        "other cause": ("charge", lambda: shop.caused(1, ValueError("x"))),
    }
    prints = {name: fingerprint(actor, raised(call)) for name, (actor, call) in failures.items()}
    assert len(set(prints.values())) == len(prints), prints


def test_fingerprint_takes_the_users_innermost_frame_not_the_librarys(shop: ModuleType) -> None:
    """`json.loads` fails at one of several depths; what matters is who called it."""
    prints = {fingerprint("a", raised(lambda text=text: shop.parsed(text))) for text in ("", "{", '{"a"')}  # type: ignore[misc]
    assert len(prints) == 1


LIBRARIES = [
    # module, its file under some folder
    ("requests.adapters", "lib/python3.12/site-packages/requests/adapters.py"),
    ("yaml.reader", "usr/lib/python3/dist-packages/yaml/reader.py"),
    ("reliq.middleware.once", "src/reliq/middleware/once.py"),  # wherever they are installed
    ("dramatiq.actor", "src/dramatiq/actor.py"),
]


@pytest.mark.parametrize(("module", "path"), LIBRARIES)
def test_fingerprint_skips_the_frames_of_libraries(shop: ModuleType, tmp_path: Path, module: str, path: str) -> None:
    """`shop.charge` calls what raises: it is filed under `shop.charge`."""
    shop.check = function("raiser", module, tmp_path / path)
    error = raised(lambda: shop.charge(1))
    assert fingerprint("a", error) == fingerprint("a", raised(function("charge", shop.__name__)))
    shop.check = function("raiser", "app.requests", tmp_path / "app/requests.py")  # the user's own after all
    assert fingerprint("a", raised(lambda: shop.charge(1))) != fingerprint("a", error)


def function(name: str, module: str, file: Path | str = "app.py") -> Callable[..., None]:
    """A function that raises ValueError, as if it stood in that module and file."""
    scope: dict[str, Any] = {"__name__": module}
    exec(compile(f"def {name}(*_): raise ValueError", str(file), "exec"), scope)
    made_up: Callable[..., None] = scope[name]
    return made_up


def test_fingerprint_of_library_frames_alone_takes_the_innermost(tmp_path: Path) -> None:
    library = installed(tmp_path / "site-packages/x", name="lib.orders")
    errors = [raised(lambda: library.check(1)), raised(lambda: library.check_other(1))]
    for error in errors:  # without this test's own frames
        assert error.__traceback__
        assert error.__traceback__.tb_next
        error.__traceback__ = error.__traceback__.tb_next.tb_next
    first, second = (fingerprint("a", error) for error in errors)
    assert first != second


def test_fingerprint_of_a_comprehension_is_that_of_its_function(shop: ModuleType) -> None:
    """A frame of its own until Python 3.11, inlined since 3.12: a fleet in an upgrade must count as one."""
    error = raised(lambda: shop.listed(["x"]))
    names = [frame for frame in traceback_text(error).splitlines() if "in <listcomp>" in frame]
    assert bool(names) == (sys.version_info < (3, 12))
    assert fingerprint("a", error) == fingerprint("a", raised(function("listed", shop.__name__)))


def test_fingerprint_of_a_group_is_that_of_its_first_leaf(shop: ModuleType) -> None:
    leaf = raised(lambda: shop.check(1))
    assert fingerprint("a", Group(leaf, ValueError())) == fingerprint("a", leaf)


def test_fingerprint_without_a_traceback_still_tells_classes_apart() -> None:
    assert fingerprint("a", ValueError("1")) == fingerprint("a", ValueError("2")) != fingerprint("a", TypeError())


def test_fingerprint_of_a_reason_is_by_actor_and_reason() -> None:
    assert fingerprint_of_reason("a", "crash") == fingerprint_of_reason("a", "crash")
    assert len({fingerprint_of_reason(a, r) for a in ("a", "b", None) for r in ("crash", "expired")}) == 6
    assert fingerprint_of_reason("ab", "c") != fingerprint_of_reason("a", "bc")


def test_fingerprints_are_the_ones_that_stored_letters_have() -> None:
    """Letters outlive releases: a changed recipe would split every group. SHA-256 of ["charge", "crash"], and so on."""
    assert fingerprint_of_reason("charge", "crash") == "31ce98d97010e9c8"
    assert fingerprint("charge", ValueError()) == "c176df141e0e7c90"


# ------------------------------------------------------------------------------------------------ what is hostile


class HostileText(str):
    def __getitem__(self, key: Any) -> str:
        raise ValueError

    translate = __len__ = __iter__ = __str__ = __getitem__  # type: ignore[assignment]


class AllHostileError(Exception):
    """Whatever can be asked raises."""

    def __str__(self) -> str:
        raise SystemExit

    __repr__ = __str__

    def _refuse(self) -> Any:
        raise KeyboardInterrupt

    __class__ = property(_refuse)  # type: ignore[assignment]
    __cause__ = property(_refuse)  # type: ignore[assignment]
    __context__ = property(_refuse)  # type: ignore[assignment]
    __suppress_context__ = property(_refuse)  # type: ignore[assignment]
    __traceback__ = property(_refuse)  # type: ignore[assignment]
    __notes__ = property(_refuse)
    exceptions = property(_refuse)
    response = property(_refuse)


class HostileTextError(Exception):
    def __str__(self) -> str:
        return HostileText("\x1bhello")


class NoTextError(Exception):
    def __str__(self) -> str:
        return None  # type: ignore[return-value]  # noqa: PLE0307 - the fault under test


class HostileSyntaxError(SyntaxError):
    lineno = property(lambda self: 1 / 0)  # type: ignore[assignment]
    text = property(lambda self: 1 / 0)  # type: ignore[assignment]


class HostileNameError(NameError):
    name = property(lambda self: 1 / 0)  # type: ignore[assignment]


class Nameless(type):
    def __getattribute__(cls, name: str) -> Any:
        raise ValueError(name)


class NamelessError(Exception, metaclass=Nameless):
    pass


HOSTILE = {
    "all": (AllHostileError, f"{__name__}.AllHostileError", f"<unprintable {__name__}.AllHostileError>"),
    "text": (HostileTextError, f"{__name__}.HostileTextError", "hello"),
    "no text": (NoTextError, f"{__name__}.NoTextError", f"<unprintable {__name__}.NoTextError>"),
    "syntax": (HostileSyntaxError, f"{__name__}.HostileSyntaxError", None),
    "name": (HostileNameError, f"{__name__}.HostileNameError", ""),
    "metaclass": (NamelessError, "_unknown._unknown", ""),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_exceptions_are_named_all_the_same(case: str) -> None:
    cls, name, message = HOSTILE[case]

    def fail() -> None:
        try:
            raise KeyError("id")
        except KeyError:
            raise cls  # noqa: B904 - the context is meant

    error = raised(fail)
    assert error_name(error) == name
    if message is not None:
        assert error_message(error) == message
    assert cause_chain(error) == [{"error": "KeyError", "message": "'id'"}]
    assert "in fail" in traceback_text(error)
    assert re.fullmatch("[0-9a-f]{16}", fingerprint("a", error))


@given(st.text(), st.integers(0, 300))
def test_any_text_is_safe_to_show_and_to_store(text: str, limit: int) -> None:
    error = raised(lambda: (_ for _ in ()).throw(ValueError(text + "\ud800\x1b\x9b")))
    for shown in (
        error_name(made(f"app.{text or 'x'}".replace("\x00", ""))),
        error_message(error),
        traceback_text(error, limit),
    ):
        shown.encode()
        assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]", shown)
    assert len(traceback_text(error, limit).encode()) <= limit
    assert len(error_message(error)) <= 500
