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

from tests.transport.promises.callbacks import Callbacks
from tests.transport.promises.encoders import Encoders
from tests.transport.promises.foreign import ForeignBodies
from tests.transport.promises.interrupts import Interrupts
from tests.transport.promises.kills import Kills
from tests.transport.promises.letters import Letters
from tests.transport.promises.queues import Queues
from tests.transport.promises.sending import Sending
from tests.transport.promises.settling import Settling
from tests.transport.promises.subclasses import Subclasses
from tests.transport.promises.unknown import UnknownActors
from tests.transport.rig import Maker, Stage, staged

#: Capability -> what a broker that has it can do.
CAPABILITIES = {
    "can_be_away": "it is reached over a network, so that a settle can fail for a while",
    "hands_back_in_order": "what is handed back lies where it had been, before what came after it",
    "outlives_kill": "it and its messages outlive the processes that use it",
}


class TransportContract(
    Sending, Settling, Callbacks, Interrupts, Kills, ForeignBodies, Encoders, UnknownActors, Queues, Letters, Subclasses
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
