"""The contract of a transport: everything below is run, whole, by one class per broker.

    class TestRedisContract(TransportContract):
        capabilities = {"outlives_kill", ...}

        @pytest.fixture
        def maker(self, ...): return RedisMaker(...)

What a broker cannot do is a capability that its class does not declare: the tests that need it are then no part of
the class. They are not skipped. What the suite needs to reach behind a broker is `Maker` in `rig.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import ClassVar

import pytest

pytest.register_assert_rewrite("tests.transport.promises", "tests.transport.rig")

from tests.transport.promises.callbacks import Callbacks  # noqa: E402
from tests.transport.promises.foreign import ForeignBodies  # noqa: E402
from tests.transport.promises.interrupts import Interrupts  # noqa: E402
from tests.transport.promises.kills import Kills  # noqa: E402
from tests.transport.promises.letters import Letters  # noqa: E402
from tests.transport.promises.queues import Queues  # noqa: E402
from tests.transport.promises.sending import Sending  # noqa: E402
from tests.transport.promises.settling import Settling  # noqa: E402
from tests.transport.promises.subclasses import Subclasses  # noqa: E402
from tests.transport.promises.unknown import UnknownActors  # noqa: E402
from tests.transport.rig import Maker, Stage, staged  # noqa: E402

#: Capability -> what a broker that has it can do.
CAPABILITIES = {
    "can_be_away": "it is reached over a network, so that a settle can fail for a while",
    "outlives_kill": "it and its messages outlive the processes that use it",
}


class TransportContract(
    Sending, Settling, Callbacks, Interrupts, Kills, ForeignBodies, UnknownActors, Queues, Letters, Subclasses
):
    """All promises."""

    capabilities: ClassVar[frozenset[str]] = frozenset()

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        unknown = cls.capabilities - CAPABILITIES.keys()
        assert not unknown, f"{cls.__name__} declares capabilities that nobody knows: {unknown}"
        for name in dir(cls):
            needed = getattr(getattr(cls, name), "needs_capability", None)
            if needed is not None and needed not in cls.capabilities:
                setattr(cls, name, None)

    @pytest.fixture
    def make(self, maker: Maker) -> Iterator[Callable[..., Stage]]:
        """Makes stages; takes what `rig.installed` takes."""
        with staged(maker) as make:
            yield make
