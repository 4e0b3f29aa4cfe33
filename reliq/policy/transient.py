"""May this failure pass? By what the exception is called and the code it carries.

Callers: `middleware/` (`classify`, `retry_after_ms`), users (`retry_for=reliq.transient`).
Guarantee: no client library is imported, and nothing is raised, whatever the failure's class and attributes
do. What is not known may pass: no rule here makes a dead letter of a retry unless the user set `retry_for`.
Not here: the tables (`catalogue.py`), the wait (`backoff.py`).

Rules, first match, for the exception and then for what it was raised `from`, until one is known:

1. a class along the MRO, most specific first, that is in `catalogue.NAMES`;
2. the code it carries: SQLSTATE, HTTP status; of AWS and gRPC their own;
3. a class along the MRO that is in `catalogue.FALLBACK`, the builtins mostly.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

from . import catalogue
from .catalogue import FailureKind
from .foreign import attribute, called, is_a, item, leaves, whole_number, with_causes
from .retry_after import asks_to_wait, retry_after_ms

__all__ = ["FailureKind", "classify", "retry_after_ms", "transient"]

#: Of the failures in a group the first of these counts: none is given up while one of them may pass.
_WEIGHT: tuple[FailureKind, ...] = ("lost", "ambiguous", "transient", "throttled", "open", "permanent", "bug")

_STATUS_PATHS = (
    ("status_code",),
    ("status",),
    ("http_status",),
    ("response", "status_code"),
    ("response", "status"),
)
_SQLSTATE_PATHS = (("sqlstate",), ("pgcode",), ("orig", "sqlstate"), ("orig", "pgcode"))


def transient(retries: int, exception: BaseException) -> bool | int:
    """Whether trying again may help: False for what is refused for good and for bugs, True for all else.

    For `retry_for=reliq.transient`. Refused are ValueError, missing files and permissions, bad URLs, HTTP 4xx
    (but 408, 409, 421, 423, 425 and 429), 501 and 505, violated constraints, TypeError, AttributeError,
    LookupError and their kind. Without it everything is retried, as in Dramatiq: a fix may be deployed
    meanwhile.
    """
    return classify(exception) not in ("permanent", "bug")


def classify(error: BaseException, *, stopping: bool = False) -> FailureKind:
    """What kind of failure this is: `catalogue.FailureKind` says what each word means.

    `stopping`: the worker is shutting down. Then SystemExit, CancelledError and their like mean that the run
    was lost; otherwise the task raised them itself, and what it did before is ambiguous.
    """
    try:
        cls: Any = type(error)
        known = _known(cls)
        if known.kind is not None and known.final:
            return known.kind
        return min((_classify(leaf, stopping) for leaf in leaves(error)), key=_WEIGHT.index)
    except BaseException:
        # A metaclass that cannot be hashed or names its classes by numbers: unknown, so it may pass.
        return "transient"


@dataclass(frozen=True)
class _Known:
    """What the class alone tells."""

    kind: FailureKind | None
    final: bool  # the instance need not be asked
    carries: Literal["aws", "grpc", "code"] | None


def _classify(error: BaseException, stopping: bool) -> FailureKind:
    for link in with_causes(error):
        cls: Any = type(link)
        known = _known(cls)
        kind = known.kind if known.final else _carried(link, known) or known.kind
        if kind is not None:
            return kind
        if not is_a(link, Exception):
            return "lost" if stopping else "ambiguous"
    return "transient"


@lru_cache(maxsize=1024)
def _known(cls: type) -> _Known:
    carries: Literal["aws", "grpc", "code"] | None = None
    for base in cls.__mro__:
        module, name = base.__module__, base.__qualname__
        if module != "builtins":
            name = f"{module}.{name}"
        carries = carries or catalogue.CARRIERS.get(name)
        if name in catalogue.NAMES:
            return _Known(catalogue.NAMES[name], carries is None, carries)
        if name in catalogue.FALLBACK:
            # A builtin itself has no code; what inherits from it may.
            return _Known(catalogue.FALLBACK[name], base is cls and module == "builtins", carries)
    return _Known(None, False, carries)


def _carried(error: BaseException, known: _Known) -> FailureKind | None:
    if known.carries == "aws":
        return _by_aws_code(error)
    if known.carries == "grpc":
        return _by_grpc_code(error)
    return _by_sqlstate(error) or _by_status(error, known.carries == "code")


def _by_status(error: BaseException, code_is_status: bool) -> FailureKind | None:
    for path in (*_STATUS_PATHS, ("code",)) if code_is_status else _STATUS_PATHS:
        status = whole_number(attribute(error, *path))
        if status is not None and 400 <= status <= 599:
            return _status_kind(status, error)
    return None


def _status_kind(status: int, error: BaseException) -> FailureKind:
    if status == 503 and asks_to_wait(error):
        return "throttled"
    return catalogue.HTTP.get(status) or ("permanent" if status < 500 else "ambiguous")


def _by_sqlstate(error: BaseException) -> FailureKind | None:
    for path in _SQLSTATE_PATHS:
        state = attribute(error, *path)
        if type(state) is str and len(state) == 5:
            return catalogue.SQLSTATE.get(state) or catalogue.SQLSTATE.get(state[:2])
    return None


def _by_aws_code(error: BaseException) -> FailureKind | None:
    response = attribute(error, "response")
    code = item(response, "Error", "Code")
    if type(code) is str:
        if code in catalogue.AWS_THROTTLED or code.startswith(catalogue.AWS_THROTTLED_PREFIXES):
            return "throttled"
        if code in catalogue.AWS_TRANSIENT:
            return "transient"
    # Services have names of their own for what HTTP knows, and a reply to a HEAD request has only the status.
    status = whole_number(item(response, "ResponseMetadata", "HTTPStatusCode")) or whole_number(code)
    if status is not None and 400 <= status <= 599:
        kind = _status_kind(status, error)
        return "transient" if kind == "ambiguous" else kind
    return "permanent" if type(code) is str else None


def _by_grpc_code(error: BaseException) -> FailureKind | None:
    name = attribute(called(error, "code"), "name")
    return catalogue.GRPC.get(name) if type(name) is str else None
