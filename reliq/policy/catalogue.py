"""What known failures mean: the tables behind `transient.classify`.

Callers: `transient.py`.
Guarantee: names only. No client library is imported, so a row costs nothing where its library is not used.
Source: the exception trees of the libraries (requests 2, urllib3 2, httpx, aiohttp 3, botocore, redis-py,
Django), RFC 9110 for HTTP, appendix A of the PostgreSQL manual for SQLSTATE, gRPC's guide to its status
codes.

A row is a statement about the upstream: *ambiguous* where the request may have had its effect, *transient*
where it had none or trying again helps all the same, *permanent* where it was understood and refused, *bug*
where we sent nonsense.
"""

from __future__ import annotations

from typing import Literal

#: transient: may pass. ambiguous: may pass, but may have had its effect already. throttled: too many, come
#: back later. permanent: refused for good. bug: the program's own fault. open: refused by a guard, nothing
#: was called. lost: the worker was told to stop, or another run took over.
FailureKind = Literal["transient", "ambiguous", "throttled", "permanent", "bug", "open", "lost"]

Rows = dict[FailureKind, str]


def _by_name(modules: dict[str, Rows]) -> dict[str, FailureKind]:
    """`{"module.Class": kind}` of the rows; the module "" are the builtins, which have bare names."""
    return {
        f"{module}.{name}" if module else name: kind
        for module, rows in modules.items()
        for kind, names in rows.items()
        for name in _words(names)
    }


def _words(names: str) -> frozenset[str]:
    return frozenset(names.split())


# OutOfMemory, ReadOnly and their like are ResponseErrors, and LockError is a ValueError, but they pass.
_REDIS: Rows = {
    "transient": "BusyLoadingError ReadOnlyError TryAgainError OutOfMemoryError MaxConnectionsError "
    "LockError WatchError NoScriptError ClusterError MovedError AskError",
    "ambiguous": "ConnectionError TimeoutError",
    "permanent": "AuthenticationError AuthorizationError NoPermissionError",
    "bug": "DataError ResponseError",
}

_HTTPX: Rows = {
    "transient": "ConnectError ConnectTimeout PoolTimeout ProxyError",
    "ambiguous": "TimeoutException NetworkError RemoteProtocolError",
    "permanent": "InvalidURL UnsupportedProtocol TooManyRedirects",
    "bug": "LocalProtocolError",
}

#: The class says it all: nothing that the instance carries is asked.
NAMES = _by_name(
    {
        "reliq": {"permanent": "Permanent", "open": "Defer", "lost": "StaleRun Cancelled"},
        "dramatiq.errors": {"open": "RateLimitExceeded", "transient": "Retry"},
        "dramatiq.middleware.shutdown": {"lost": "Shutdown"},
        "dramatiq.middleware.time_limit": {"ambiguous": "TimeLimitExceeded"},
        "pybreaker": {"open": "CircuitBreakerError"},
        "gevent.timeout": {"ambiguous": "Timeout"},
        "billiard.exceptions": {"ambiguous": "SoftTimeLimitExceeded"},
        # The standard library beyond its builtins. Until 3.10 two TimeoutErrors are classes of their own.
        "socket": {"transient": "gaierror herror"},
        "ssl": {"transient": "SSLError"},
        "io": {"bug": "UnsupportedOperation"},  # an OSError and a ValueError
        "http.client": {
            "ambiguous": "RemoteDisconnected BadStatusLine IncompleteRead",
            "permanent": "InvalidURL",
        },
        "subprocess": {"ambiguous": "TimeoutExpired"},
        "asyncio.exceptions": {"ambiguous": "TimeoutError IncompleteReadError"},
        "concurrent.futures._base": {"ambiguous": "TimeoutError"},
        "requests.exceptions": {
            # JSONDecodeError: an error page where JSON was expected. It is an OSError and a ValueError.
            "transient": "ConnectTimeout SSLError ProxyError JSONDecodeError",
            "ambiguous": "ReadTimeout Timeout ConnectionError ChunkedEncodingError",
            "permanent": "MissingSchema InvalidSchema InvalidURL URLRequired InvalidHeader InvalidJSONError "
            "TooManyRedirects",
        },
        "urllib3.exceptions": {
            "transient": "ConnectTimeoutError SSLError ProxyError EmptyPoolError",
            "ambiguous": "TimeoutError ProtocolError IncompleteRead",
            "permanent": "LocationValueError",
        },
        "httpx": _HTTPX,
        "httpcore": _HTTPX,
        "aiohttp.client_exceptions": {
            "transient": "ClientConnectorError ConnectionTimeoutError",
            "ambiguous": "ClientConnectionError ClientPayloadError",
            "permanent": "InvalidURL NonHttpUrlClientError TooManyRedirects",
        },
        "botocore.exceptions": {  # what has an error code: AWS_THROTTLED and below
            "transient": "ConnectionError",
            "ambiguous": "HTTPClientError IncompleteReadError",
            "permanent": "NoCredentialsError PartialCredentialsError",
            "bug": "ParamValidationError",
        },
        "redis.exceptions": _REDIS,
        "valkey.exceptions": _REDIS,
        "django.core.exceptions": {
            "transient": "ObjectDoesNotExist",  # the row may not be committed yet
            "permanent": "ValidationError",
            "bug": "ImproperlyConfigured",
        },
        "django.db.utils": {"transient": "OperationalError", "permanent": "IntegrityError"},
    }
)

_BUILTINS: Rows = {
    "transient": "ConnectionRefusedError OSError",
    "ambiguous": "TimeoutError ConnectionError",  # with reset, aborted and broken pipe
    "permanent": "ValueError FileNotFoundError PermissionError",
    "bug": "TypeError AttributeError NameError ImportError LookupError AssertionError ArithmeticError",
}

# Drivers without SQLSTATE (sqlite3, MySQL's), and what SQLAlchemy and Django make of them.
_DATABASE: Rows = {"permanent": "IntegrityError DataError", "bug": "ProgrammingError"}

#: The class speaks only if the instance carries no status or code: a ValueError of the user's with a
#: `status_code` of 503 is a 503.
FALLBACK = _by_name(
    {
        "": _BUILTINS,
        "sqlite3": _DATABASE,
        "psycopg": _DATABASE,
        "psycopg2": _DATABASE,
        "pymysql.err": _DATABASE,
        "MySQLdb._exceptions": _DATABASE,
        "sqlalchemy.exc": _DATABASE,
    }
)

#: Classes whose instances carry a code, and which kind; "code" means that `code` is an HTTP status.
CARRIERS: dict[str, Literal["aws", "grpc", "code"]] = {
    "botocore.exceptions.ClientError": "aws",
    "grpc.RpcError": "grpc",
    "google.api_core.exceptions.GoogleAPICallError": "code",
    "urllib.error.HTTPError": "code",
}

#: Other 4xx are permanent, other 5xx ambiguous. 503 with Retry-After is throttled.
HTTP: dict[int, FailureKind] = {
    **dict.fromkeys((409, 421, 423, 425, 503, 507), "transient"),
    **dict.fromkeys((408, 500, 502, 504), "ambiguous"),
    **dict.fromkeys((501, 505), "permanent"),
    429: "throttled",
}

#: Whole codes first, then classes, the first two characters. What is in neither is unknown.
SQLSTATE: dict[str, FailureKind] = {
    **dict.fromkeys(("08007", "40003"), "ambiguous"),  # the connection broke within a commit
    **dict.fromkeys(_words("40001 40P01 55P03 57P01 57P02 57P03 57014 25006"), "transient"),
    **dict.fromkeys(("08", "53", "58"), "transient"),
    **dict.fromkeys(("22", "23"), "permanent"),
    **dict.fromkeys(("42", "28", "3D", "3F", "26", "34"), "bug"),
}

#: AWS: these and 5xx pass, throttling feeds the pacer, other codes are refusals.
AWS_THROTTLED_PREFIXES = ("Throttling", "ThrottledException", "TooManyRequests", "RequestThrottled")
AWS_THROTTLED = _words(
    "BandwidthLimitExceeded EC2ThrottledException PriorRequestNotComplete RequestLimitExceeded "
    "ProvisionedThroughputExceededException SlowDown"
)
AWS_TRANSIENT = _words(
    "InternalError InternalFailure InternalServerError InternalServerException InternalServiceError "
    "OperationAborted RequestTimeout RequestTimeoutException ServiceException ServiceUnavailable Unavailable "
    "ServiceUnavailableException TransactionConflictException TransactionInProgressException"
)

GRPC: dict[str, FailureKind] = {
    "ABORTED": "transient",
    **dict.fromkeys(_words("CANCELLED DEADLINE_EXCEEDED INTERNAL UNAVAILABLE UNKNOWN"), "ambiguous"),
    **dict.fromkeys(_words("ALREADY_EXISTS DATA_LOSS FAILED_PRECONDITION INVALID_ARGUMENT"), "permanent"),
    **dict.fromkeys(_words("NOT_FOUND OUT_OF_RANGE PERMISSION_DENIED UNAUTHENTICATED"), "permanent"),
    "UNIMPLEMENTED": "permanent",
    "RESOURCE_EXHAUSTED": "throttled",
}
