"""Promises to applications with a broker class of their own: what it does to bodies is done, or it is refused."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from typing import Any

import dramatiq
import pytest
from dramatiq.broker import Broker

import reliq
from tests.transport.rig import SOON, Maker, Stage, installed

Make = Callable[..., Stage]


def encrypting(stock: type[Broker], *, also_overrides: bool = False) -> type[Broker]:
    """A subclass that encrypts (well, turns round) what a message carries."""

    def prepare(self: Any, message: Any) -> Any:
        sealed = json.dumps([message.args, message.kwargs])[::-1]
        return dataclasses.replace(message, args=(sealed,), kwargs={})

    def restore(self: Any, message: Any) -> Any:
        args, kwargs = json.loads(message.args[0][::-1])
        return dataclasses.replace(message, args=tuple(args), kwargs=kwargs)

    def enqueue(self: Any, message: Any, *, delay: Any = None) -> Any:
        return stock.enqueue(self, prepare(self, message), delay=delay)

    members: dict[str, Any] = {"prepare": prepare, "restore": restore}
    if also_overrides:
        members["enqueue"] = enqueue
    return type("EncryptingBroker", (stock,), members)


class Subclasses:
    """`prepare` and `restore`; overrides."""

    @pytest.mark.parametrize("also_overrides", [False, True])
    def test_a_broker_that_encrypts_does_so_on_every_way(self, make: Make, maker: Maker, also_overrides: bool) -> None:
        """Sent, delayed, retried, called back and dead: no body in the broker shows the secret, the actor sees it."""
        seen: list[Any] = []
        stage = make(cls=encrypting(maker.broker_class, also_overrides=also_overrides))

        def work(secret: str) -> None:
            seen.append(secret)
            if len(seen) == 1:
                raise ValueError("once")
            raise reliq.Permanent("never")

        dramatiq.actor(lambda message, about: None, actor_name="told", queue_name="told")
        actor = dramatiq.actor(work, actor_name="work", on_failure="told", **SOON)
        actor.send_with_options(args=("topsecret",), delay=10)
        actor.send_with_options(args=("topsecret",), delay=3_600_000)
        stage.worker(threads=1, queues={"default"})
        stage.wait_for(0, 0, 1, 1)
        stored = b"\n".join(maker.stored(stage.broker))
        assert seen == ["topsecret", "topsecret"]
        assert b"topsecret" not in stored
        assert b"terces" in stored
        (letter,) = stage.letters()
        assert letter["args"] == ["topsecret"]

    @pytest.mark.parametrize("method", ["enqueue", "consume"])
    def test_a_class_that_overrides_what_reliq_replaces_is_refused(self, maker: Maker, method: str) -> None:
        """NotSupported names class and method and says what to define; the broker is left as it was."""
        stock = maker.broker_class
        cls = type("LoudBroker", (stock,), {method: lambda self, *args, **kwargs: None})
        with pytest.raises(reliq.NotSupported, match=rf"LoudBroker overrides '{method}'.*prepare.*restore"):
            installed(maker, cls=cls)

    def test_a_class_with_only_half_of_the_pair_is_refused(self, maker: Maker) -> None:
        """enqueue and prepare without restore."""
        stock = maker.broker_class
        members = {"enqueue": lambda self, *args, **kwargs: None, "prepare": lambda self, message: message}
        with pytest.raises(reliq.NotSupported, match="restore"):
            installed(maker, cls=type("HalfBroker", (stock,), members))

    def test_a_restore_that_fails_makes_a_letter_of_the_body(self, make: Make, maker: Maker) -> None:
        """`malformed`, bytes kept, and the error's text."""

        def restore(self: Any, message: Any) -> Any:
            raise RuntimeError("wrong key")

        cls = type(
            "LostKeyBroker", (maker.broker_class,), {"prepare": lambda self, message: message, "restore": restore}
        )
        stage = make(cls=cls)
        dramatiq.actor(lambda: None, actor_name="work").send()
        (body,) = maker.ready(stage.broker, "default")
        stage.worker()
        stage.wait_for(0, 0, 0, 1)
        (letter,) = stage.transport.dead_letters("default")
        assert (letter.reason, letter.body) == ("malformed", body)
        assert "wrong key" in (letter.as_dict()["error_message"] or "")
