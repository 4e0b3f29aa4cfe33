"""What kind of failure an exception is: real classes of the standard library, and the names others go by.

Classes of client libraries are made here with their module, name and bases, as the libraries have them, because the
catalogue knows names only, and nothing of it may need the library.
"""

import asyncio
import builtins
import concurrent.futures
import io
import json
import socket
import sqlite3
import ssl
import subprocess
import sys
import urllib.error
from collections.abc import Callable
from email.message import Message
from types import SimpleNamespace
from typing import Any

import dramatiq.errors
import dramatiq.middleware
import pytest
from hypothesis import given
from hypothesis import strategies as st

from reliq import errors
from reliq.policy import catalogue
from reliq.policy.transient import classify, transient


def made(name: str, *bases: type[BaseException], **attributes: Any) -> type[Any]:
    """An exception class that goes by `module.Class`."""
    module, _, qualname = name.rpartition(".")
    return type(qualname, bases or (Exception,), {"__module__": module, **attributes})


def carrying(error: BaseException, **attributes: Any) -> BaseException:
    for name, value in attributes.items():
        setattr(error, name, value)
    return error


def caused(error: BaseException, by: BaseException) -> BaseException:
    error.__cause__ = by
    return error


# ------------------------------------------------------------------------------------------- the standard library

STANDARD = [
    (ValueError(), "permanent"),
    (UnicodeDecodeError("utf-8", b"", 0, 1, ""), "permanent"),  # a ValueError
    (json.JSONDecodeError("", "", 0), "permanent"),  # a ValueError
    (FileNotFoundError(), "permanent"),  # before OSError
    (PermissionError(), "permanent"),
    (TypeError(), "bug"),
    (AttributeError(), "bug"),
    (UnboundLocalError(), "bug"),  # a NameError
    (ModuleNotFoundError(), "bug"),  # an ImportError
    (KeyError(), "bug"),  # a LookupError
    (IndexError(), "bug"),
    (AssertionError(), "bug"),
    (ZeroDivisionError(), "bug"),  # an ArithmeticError
    (io.UnsupportedOperation(), "bug"),  # an OSError and a ValueError
    (TimeoutError(), "ambiguous"),  # an OSError
    (asyncio.TimeoutError(), "ambiguous"),
    (concurrent.futures.TimeoutError(), "ambiguous"),
    (asyncio.IncompleteReadError(b"", 1), "ambiguous"),
    (subprocess.TimeoutExpired("x", 1), "ambiguous"),
    (ConnectionResetError(), "ambiguous"),
    (ConnectionAbortedError(), "ambiguous"),
    (BrokenPipeError(), "ambiguous"),
    (ConnectionRefusedError(), "transient"),  # a ConnectionError, but nothing was sent
    (socket.gaierror(), "transient"),
    (ssl.SSLError(), "transient"),
    (ssl.SSLCertVerificationError(), "transient"),  # an SSLError first, a ValueError last
    (OSError(), "transient"),
    (InterruptedError(), "transient"),  # an OSError
    (urllib.error.URLError("x"), "transient"),  # an OSError
    (sqlite3.OperationalError("database is locked"), "transient"),  # unknown
    (sqlite3.IntegrityError(), "permanent"),
    (sqlite3.ProgrammingError(), "bug"),
    (RuntimeError(), "transient"),  # unknown
    (MemoryError(), "transient"),
    (Exception(), "transient"),
]


@pytest.mark.parametrize(("error", "kind"), STANDARD, ids=lambda value: type(value).__name__)
def test_standard_library(error: BaseException, kind: str) -> None:
    assert classify(error) == kind


NOT_EXCEPTIONS = [
    # error, while running, while the worker stops
    (dramatiq.middleware.Shutdown(), "lost", "lost"),
    (dramatiq.middleware.TimeLimitExceeded(), "ambiguous", "ambiguous"),
    (made("reliq.StaleRun", BaseException)(), "lost", "lost"),
    (made("reliq.Cancelled", BaseException)(), "lost", "lost"),
    (SystemExit(1), "ambiguous", "lost"),  # exit() in a task, or in a signal handler
    (asyncio.CancelledError(), "ambiguous", "lost"),
    (KeyboardInterrupt(), "ambiguous", "lost"),
    (made("gevent.timeout.Timeout", BaseException)(), "ambiguous", "ambiguous"),
    (made("app.Mine", BaseException)(), "ambiguous", "lost"),  # handing it back for ever would be a loop
]


@pytest.mark.parametrize(("error", "running", "stopping"), NOT_EXCEPTIONS, ids=lambda value: type(value).__name__)
def test_what_is_not_an_exception(error: BaseException, running: str, stopping: str) -> None:
    assert classify(error) == running
    assert classify(error, stopping=True) == stopping


OWN = [
    (errors.Permanent("no such customer"), "permanent"),
    (errors.Permanent(TimeoutError()), "permanent"),  # what it wraps does not count
    (errors.Defer(delay=1), "open"),  # a dramatiq Retry, but no attempt
    (dramatiq.errors.Retry("later"), "transient"),
    (dramatiq.errors.RateLimitExceeded("busy"), "open"),
    (dramatiq.errors.ConnectionClosed("gone"), "transient"),  # unknown: the broker was away
    (made("reliq.BreakerOpen", made("pybreaker.CircuitBreakerError"))(), "open"),
]


@pytest.mark.parametrize(("error", "kind"), OWN, ids=lambda value: type(value).__name__)
def test_what_reliq_and_dramatiq_raise(error: BaseException, kind: str) -> None:
    assert classify(error) == kind


# ------------------------------------------------------------------------------------------ by the names of others

REQUEST = made("requests.exceptions.RequestException", OSError)
REQUESTS_CONNECTION = made("requests.exceptions.ConnectionError", REQUEST)
REQUESTS_TIMEOUT = made("requests.exceptions.Timeout", REQUEST)
INVALID_JSON = made("requests.exceptions.InvalidJSONError", REQUEST)
HTTPX = made("httpx.TransportError", made("httpx.RequestError", made("httpx.HTTPError")))
HTTPX_NETWORK, HTTPX_TIMEOUT = made("httpx.NetworkError", HTTPX), made("httpx.TimeoutException", HTTPX)
HTTPX_PROTOCOL = made("httpx.ProtocolError", HTTPX)
AIOHTTP = made("aiohttp.client_exceptions.ClientError")
AIOHTTP_CONNECTION = made("aiohttp.client_exceptions.ClientConnectionError", AIOHTTP)
AIOHTTP_OS = made("aiohttp.client_exceptions.ClientOSError", AIOHTTP_CONNECTION, OSError)
AIOHTTP_SERVER = made("aiohttp.client_exceptions.ServerConnectionError", AIOHTTP_CONNECTION)
AIOHTTP_TIMEOUT = made("aiohttp.client_exceptions.ServerTimeoutError", AIOHTTP_SERVER, TimeoutError)
BOTOCORE = made("botocore.exceptions.BotoCoreError")
CLIENT_ERROR = made("botocore.exceptions.ClientError")
BOTOCORE_CONNECTION = made("botocore.exceptions.ConnectionError", BOTOCORE)
BOTOCORE_HTTP = made("botocore.exceptions.HTTPClientError", BOTOCORE)
REDIS = made("redis.exceptions.RedisError")
REDIS_CONNECTION, REDIS_RESPONSE = (
    made(f"redis.exceptions.{name}", REDIS) for name in ("ConnectionError", "ResponseError")
)
REDIS_LOCK = made("redis.exceptions.LockError", REDIS, ValueError)
REDIS_CLUSTER = made("redis.exceptions.ClusterError", REDIS)
DJANGO = made("django.db.utils.DatabaseError", made("django.db.utils.Error"))
DOES_NOT_EXIST = made("django.core.exceptions.ObjectDoesNotExist")

NAMED = [
    (made("requests.exceptions.MissingSchema", REQUEST, ValueError), "permanent"),
    (made("requests.exceptions.TooManyRedirects", REQUEST), "permanent"),
    (made("requests.exceptions.ReadTimeout", REQUESTS_TIMEOUT), "ambiguous"),
    (REQUESTS_CONNECTION, "ambiguous"),
    (made("requests.exceptions.ConnectTimeout", REQUESTS_CONNECTION, REQUESTS_TIMEOUT), "transient"),
    (made("requests.exceptions.SSLError", REQUESTS_CONNECTION), "transient"),
    (made("requests.exceptions.ProxyError", REQUESTS_CONNECTION), "transient"),
    (made("requests.exceptions.JSONDecodeError", INVALID_JSON, json.JSONDecodeError), "transient"),  # an error page
    (INVALID_JSON, "permanent"),
    (REQUEST, "transient"),  # an OSError
    (made("httpx.InvalidURL"), "permanent"),
    (made("httpx.UnsupportedProtocol", HTTPX), "permanent"),
    (made("httpx.LocalProtocolError", HTTPX_PROTOCOL), "bug"),
    (made("httpx.ReadTimeout", HTTPX_TIMEOUT), "ambiguous"),
    (made("httpx.WriteError", HTTPX_NETWORK), "ambiguous"),
    (made("httpx.RemoteProtocolError", HTTPX_PROTOCOL), "ambiguous"),
    (made("httpx.ConnectError", HTTPX_NETWORK), "transient"),
    (made("httpx.PoolTimeout", HTTPX_TIMEOUT), "transient"),
    (HTTPX, "transient"),  # unknown
    (made("aiohttp.client_exceptions.InvalidURL", AIOHTTP, ValueError), "permanent"),
    (made("aiohttp.client_exceptions.ServerDisconnectedError", AIOHTTP_SERVER), "ambiguous"),
    (AIOHTTP_TIMEOUT, "ambiguous"),
    (AIOHTTP_OS, "ambiguous"),
    (made("aiohttp.client_exceptions.ClientConnectorError", AIOHTTP_OS), "transient"),
    (made("aiohttp.client_exceptions.ConnectionTimeoutError", AIOHTTP_TIMEOUT), "transient"),
    (made("botocore.exceptions.NoCredentialsError", BOTOCORE), "permanent"),
    (made("botocore.exceptions.ParamValidationError", BOTOCORE), "bug"),
    (made("botocore.exceptions.ReadTimeoutError", BOTOCORE_HTTP), "ambiguous"),
    (made("botocore.exceptions.ConnectionClosedError", BOTOCORE_HTTP), "ambiguous"),
    (made("botocore.exceptions.EndpointConnectionError", BOTOCORE_CONNECTION), "transient"),
    (made("botocore.exceptions.ConnectTimeoutError", BOTOCORE_CONNECTION), "transient"),
    (made("redis.exceptions.AuthenticationError", REDIS_CONNECTION), "permanent"),  # a ConnectionError
    (REDIS_RESPONSE, "bug"),
    (made("redis.exceptions.DataError", REDIS), "bug"),
    (REDIS_CONNECTION, "ambiguous"),
    (made("redis.exceptions.BusyLoadingError", REDIS_CONNECTION), "transient"),
    (made("redis.exceptions.ReadOnlyError", REDIS_RESPONSE), "transient"),  # a ResponseError, but failover ends
    (made("redis.exceptions.OutOfMemoryError", REDIS_RESPONSE), "transient"),
    (REDIS_LOCK, "transient"),  # a ValueError, but the lock is released one day
    (made("redis.exceptions.LockNotOwnedError", REDIS_LOCK), "transient"),
    (made("redis.exceptions.ClusterDownError", REDIS_CLUSTER, REDIS_RESPONSE), "transient"),
    (made("valkey.exceptions.TimeoutError"), "ambiguous"),
    (made("django.core.exceptions.ValidationError"), "permanent"),
    (made("django.core.exceptions.ImproperlyConfigured"), "bug"),
    (made("app.models.Order.DoesNotExist", DOES_NOT_EXIST), "transient"),  # not committed yet
    (made("django.db.utils.IntegrityError", DJANGO), "permanent"),
    (made("django.db.utils.OperationalError", DJANGO), "transient"),
    (made("app.UpstreamError", made("requests.exceptions.ReadTimeout", REQUESTS_TIMEOUT)), "ambiguous"),  # by its base
    (made("app.ValueError"), "transient"),  # only its name is that of a builtin
    (made("app.Both", ConnectionRefusedError, ValueError), "transient"),  # the first base that is known
]


@pytest.mark.parametrize(("cls", "kind"), NAMED, ids=[f"{c.__module__}.{c.__qualname__}" for c, _ in NAMED])
def test_by_name(cls: type[BaseException], kind: str) -> None:
    assert classify(cls.__new__(cls)) == kind


# ----------------------------------------------------------------------------------------- by the code they carry


class FalsyResponse(SimpleNamespace):
    """As requests' Response: false when its status is an error."""

    def __bool__(self) -> bool:
        return False


STATUS = [
    *[(status, "permanent") for status in (400, 401, 403, 404, 405, 410, 422, 451, 501, 505)],
    *[(status, "ambiguous") for status in (408, 500, 502, 504, 508, 599)],
    *[(status, "transient") for status in (409, 421, 423, 425, 503, 507)],
    (429, "throttled"),
    (200, "transient"),  # no error: says nothing
    (302, "transient"),
    (1_006, "transient"),  # no HTTP status
]


@pytest.mark.parametrize(("status", "kind"), STATUS)
def test_http_status(status: int, kind: str) -> None:
    wherever = [
        carrying(Exception(), status_code=status),  # openai, azure
        carrying(Exception(), status=status),  # aiohttp, kubernetes
        carrying(Exception(), http_status=status),  # stripe
        carrying(Exception(), response=FalsyResponse(status_code=status)),  # requests, httpx
        carrying(Exception(), response=SimpleNamespace(status=status)),
        carrying(made("requests.exceptions.HTTPError", REQUEST)(), response=FalsyResponse(status_code=status)),
        carrying(made("google.api_core.exceptions.GoogleAPICallError")(), code=status),
    ]
    assert [classify(error) for error in wherever] == [kind] * len(wherever)


def test_503_with_retry_after_is_throttled() -> None:
    response = FalsyResponse(status_code=503, headers={"Retry-After": "120"})
    assert classify(carrying(Exception(), response=response)) == "throttled"
    assert classify(carrying(Exception(), response=FalsyResponse(status_code=503, headers={}))) == "transient"
    headers = Message()
    headers["Retry-After"] = "120"
    assert classify(urllib.error.HTTPError("http://x", 503, "", headers, None)) == "throttled"
    assert classify(urllib.error.HTTPError("http://x", 404, "", Message(), None)) == "permanent"  # not an OSError


def test_a_code_outweighs_an_inherited_builtin_but_not_a_known_name() -> None:
    assert classify(made("app.ApiError", ValueError, status_code=503)()) == "transient"
    assert classify(made("app.ApiError", ValueError, status_code=None)()) == "permanent"
    assert classify(made("app.ApiError", errors.Permanent, status_code=503)()) == "permanent"


def test_codes_of_other_things_are_not_statuses() -> None:
    """`code` is an exit code, a WebSocket's or a translation key elsewhere; a status is not a bool or a word."""
    assert classify(carrying(Exception(), code=404)) == "transient"
    assert classify(carrying(Exception(), status_code=True)) == "transient"
    assert classify(carrying(Exception(), status_code="404 Not Found")) == "transient"
    assert classify(carrying(Exception(), status="404")) == "permanent"


SQLSTATES = [
    *[(state, "permanent") for state in ("22001", "23505")],  # data too long, unique violation
    *[(state, "bug") for state in ("42P01", "28P01", "3D000", "3F000", "26000", "34000")],
    *[(state, "ambiguous") for state in ("08007", "40003")],
    *[
        (state, "transient")
        for state in ("08006", "53300", "58030", "40001", "40P01", "55P03", "57P01", "57014", "25006")
    ],
    ("40002", "transient"),  # unknown: class 40 is not in the table
    ("HY000", "transient"),  # MySQL's "general error", e.g. a lock wait timeout
]


@pytest.mark.parametrize(("state", "kind"), SQLSTATES)
def test_sqlstate(state: str, kind: str) -> None:
    driver = carrying(Exception(), pgcode=state)
    wherever = [
        carrying(Exception(), sqlstate=state),  # psycopg, asyncpg, mysql.connector
        driver,  # psycopg2
        carrying(made("sqlalchemy.exc.DBAPIError")(), orig=driver),
        caused(made("django.db.utils.ProgrammingError", DJANGO)(), by=driver),  # unknown: its cause tells
        carrying(made("psycopg.errors.Any", made("psycopg.OperationalError"))(), sqlstate=state),
    ]
    assert [classify(error) for error in wherever] == [kind] * len(wherever)


def test_sqlstate_outweighs_the_driver_class() -> None:
    """A retryable state in an IntegrityError (CockroachDB does that), and the class where there is no state."""
    integrity = made("psycopg.IntegrityError")
    assert classify(carrying(integrity(), sqlstate="40001")) == "transient"
    assert classify(carrying(integrity(), sqlstate=None)) == "permanent"


AWS = [
    # code, HTTP status, kind
    ("Throttling", 400, "throttled"),
    ("ThrottlingException", 400, "throttled"),
    ("TooManyRequestsException", 429, "throttled"),
    ("SlowDown", 503, "throttled"),
    ("ProvisionedThroughputExceededException", 400, "throttled"),
    ("InternalError", 500, "transient"),
    ("ServiceUnavailable", 503, "transient"),
    ("SomethingNew", 500, "transient"),  # 5xx whatever its name
    ("502", 502, "transient"),  # the reply to a HEAD request
    ("404", 404, "permanent"),
    ("404", None, "permanent"),
    ("ConditionalRequestConflict", 409, "transient"),
    ("AccessDenied", 403, "permanent"),
    ("NoSuchKey", None, "permanent"),
    (None, None, "transient"),  # unknown
]


@pytest.mark.parametrize(("code", "status", "kind"), AWS)
def test_aws_error_code(code: str | None, status: int | None, kind: str) -> None:
    response = {"Error": {"Code": code}, "ResponseMetadata": {"HTTPStatusCode": status}}
    assert classify(carrying(CLIENT_ERROR(), response=response)) == kind
    assert classify(carrying(made("botocore.errorfactory.Any", CLIENT_ERROR)(), response=response)) == kind


GRPC = [
    *[(code, "permanent") for code in ("INVALID_ARGUMENT", "NOT_FOUND", "ALREADY_EXISTS", "UNIMPLEMENTED")],
    *[(code, "ambiguous") for code in ("UNAVAILABLE", "DEADLINE_EXCEEDED", "UNKNOWN", "INTERNAL", "CANCELLED")],
    ("ABORTED", "transient"),
    ("RESOURCE_EXHAUSTED", "throttled"),
    ("NEW_ONE", "transient"),
]


@pytest.mark.parametrize(("code", "kind"), GRPC)
def test_grpc_code(code: str, kind: str) -> None:
    rpc_error = made("grpc._channel._InactiveRpcError", made("grpc.RpcError"))
    assert classify(carrying(rpc_error(), code=lambda: SimpleNamespace(name=code))) == kind


# ------------------------------------------------------------------------------------------- causes and groups


def test_a_wrapper_is_what_it_was_raised_from() -> None:
    assert classify(caused(RuntimeError(), by=ValueError())) == "permanent"
    assert classify(caused(RuntimeError(), by=caused(RuntimeError(), by=TimeoutError()))) == "ambiguous"
    assert classify(caused(RuntimeError(), by=carrying(Exception(), status=429))) == "throttled"
    assert classify(caused(TimeoutError(), by=ValueError())) == "ambiguous"  # known itself


def test_what_was_being_handled_is_not_the_reason() -> None:
    error = RuntimeError()
    error.__context__ = ValueError()
    assert classify(error) == "transient"


def test_causes_in_a_circle_end() -> None:
    first, second = RuntimeError(), RuntimeError()
    caused(first, by=caused(second, by=first))
    assert classify(first) == "transient"


class Group(Exception):
    """As the builtin ExceptionGroup, which 3.10 lacks."""

    def __init__(self, *exceptions: BaseException) -> None:
        super().__init__("several")
        self.exceptions = exceptions


GROUPS = [
    (Group(ValueError(), TypeError()), "permanent"),
    (Group(TypeError(), TypeError()), "bug"),
    (Group(ValueError(), TimeoutError()), "ambiguous"),  # one may pass
    (Group(TypeError(), Group(ValueError(), ConnectionRefusedError())), "transient"),
    (Group(TimeoutError(), dramatiq.middleware.Shutdown()), "lost"),  # the worker stops whatever else failed
    (Group(), "transient"),
]


@pytest.mark.parametrize(("error", "kind"), GROUPS)
def test_a_group_is_given_up_only_when_none_of_it_may_pass(error: BaseException, kind: str) -> None:
    assert classify(error) == kind


@pytest.mark.skipif(sys.version_info < (3, 11), reason="3.10 has no builtin ExceptionGroup")
def test_builtin_group() -> None:
    group = getattr(builtins, "ExceptionGroup")  # noqa: B009 - 3.10 does not know the name
    assert classify(group("x", [group("y", [ValueError()]), KeyError()])) == "permanent"


# --------------------------------------------------------------------------------------------------- what is hostile


class Raising:
    """Every attribute raises, even as a BaseException."""

    def __getattribute__(self, name: str) -> Any:
        raise SystemExit(name)


class Everything:
    """Every attribute is there, and is nonsense."""

    def __getattr__(self, name: str) -> Any:
        return Everything()

    def __call__(self) -> Any:
        return self

    def __eq__(self, other: object) -> bool:
        raise ValueError

    def __hash__(self) -> int:
        raise ValueError


class HostileError(Exception):
    @property
    def __class__(self) -> Any:  # type: ignore[override]
        raise ValueError

    @property
    def __cause__(self) -> Any:  # type: ignore[override]
        raise ValueError

    def __getattr__(self, name: str) -> Any:
        raise KeyboardInterrupt


class Unhashable(type):
    def __hash__(cls) -> int:
        raise ValueError


class UnhashableError(Exception, metaclass=Unhashable):
    pass


class Huge(int):
    def __add__(self, other: object) -> Any:
        raise ValueError

    __lt__ = __gt__ = __le__ = __ge__ = __eq__ = __add__  # type: ignore[assignment]
    __hash__ = int.__hash__


# Makers, because pytest itself asks a parameter what it is.
HOSTILE: dict[str, Callable[[], BaseException]] = {
    "properties": HostileError,
    "metaclass": UnhashableError,
    "response raises": lambda: carrying(Exception(), response=Raising()),
    "response is nonsense": lambda: carrying(Exception(), response=Everything()),
    "sqlstate raises": lambda: carrying(Exception(), sqlstate=Raising()),
    "sqlstate is nonsense": lambda: carrying(Exception(), sqlstate=Everything()),
    "orig raises": lambda: carrying(Exception(), orig=Raising()),
    "orig is nonsense": lambda: carrying(Exception(), orig=Everything()),
    "status is nonsense": lambda: carrying(Exception(), status=Everything()),
    "status is huge": lambda: carrying(Exception(), status_code=Huge(10**400)),
    "members raise": lambda: carrying(Exception(), exceptions=Raising()),
    "members are nonsense": lambda: carrying(Exception(), exceptions=[Raising(), Everything(), 5]),
    "gRPC code raises": lambda: carrying(made("grpc.RpcError")(), code=Raising()),
    "gRPC code is nonsense": lambda: carrying(made("grpc.RpcError")(), code=Everything()),
    "AWS error raises": lambda: carrying(CLIENT_ERROR(), response={"Error": Raising()}),
    "AWS response is nonsense": lambda: carrying(CLIENT_ERROR(), response=Everything()),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_exceptions_may_pass_and_raise_nothing(name: str) -> None:
    error = HOSTILE[name]()
    assert classify(error) == "transient"
    assert transient(1, error) is True


def test_one_hostile_attribute_does_not_hide_the_rest() -> None:
    assert classify(carrying(made("app.X", ValueError)(), status_code=Raising(), response=Raising())) == "permanent"


def test_a_group_that_holds_itself_ends() -> None:
    group = Group()
    group.exceptions = (group, group)
    assert classify(group) == "transient"


def test_a_huge_group_is_not_walked_to_its_end() -> None:
    assert classify(Group(*[ValueError() for _ in range(100_000)])) == "permanent"


ATTRIBUTES = ("status_code", "status", "response", "sqlstate", "orig", "code", "exceptions", "retry_after")
anything = st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary()


@given(st.dictionaries(st.sampled_from(ATTRIBUTES), st.recursive(anything, st.lists, max_leaves=5)))
def test_any_attribute_gives_some_kind(attributes: dict[str, Any]) -> None:
    for cls in (Exception, CLIENT_ERROR, made("grpc.RpcError")):
        assert classify(carrying(cls(), **attributes)) in catalogue.FailureKind.__args__  # type: ignore[attr-defined]


# --------------------------------------------------------------------------------------------------- reliq.transient


@pytest.mark.parametrize(
    ("error", "retried"),
    [
        (TimeoutError(), True),  # ambiguous
        (ConnectionRefusedError(), True),  # transient
        (carrying(Exception(), status_code=429), True),  # throttled
        (RuntimeError(), True),  # unknown
        (dramatiq.errors.RateLimitExceeded(""), True),  # open
        (ValueError(), False),  # permanent
        (TypeError(), False),  # bug
    ],
    ids=repr,
)
def test_transient_retries_what_may_pass(error: BaseException, retried: bool) -> None:
    assert transient(0, error) is retried
    assert transient(retries=19, exception=error) is retried


def test_a_name_is_in_one_table_only() -> None:
    assert catalogue.NAMES.keys() & catalogue.FALLBACK.keys() == set()
    assert catalogue.NAMES.keys() & catalogue.CARRIERS.keys() == set()
