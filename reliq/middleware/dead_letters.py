"""Dead letters: who is told of one, and how long it is kept. Writing them is the transport's part of the settle."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Union

from dramatiq.actor import Actor
from dramatiq.errors import ActorNotFound
from dramatiq.logging import get_logger
from dramatiq.message import Message

from ..errors import OptionError
from .options import whole
from .part import Part, option_error

if TYPE_CHECKING:
    from dramatiq.broker import Broker

    from ..transport.base import Transport

OnDeadLetter = Union[str, "Actor[Any, Any]", Callable[[dict[str, Any]], Any]]

#: What an `on_dead_letter` actor is not sent: it may be large, and it may be secret.
_NOT_SENT = ("args", "kwargs", "traceback", "body_base64")


class DeadLetters(Part):
    """Keeps a letter of every message that dies.

    - `on_dead_letter`: an actor (or its name): it is sent the letter as one dict, without arguments and traceback, in
      the same step that writes the letter; or a callable `(letter)`, run after it, best effort.
    - `retention`: ms after which a letter is deleted. False (the default): kept until somebody discards it.

    Actor and message options: `on_dead_letter`, and `dead_letter=False` for messages whose death nobody wants to
    read about: they are dropped, with a log line.
    """

    def __init__(self, on_dead_letter: OnDeadLetter | None = None, retention: int | bool | None = None) -> None:
        try:
            self.retention_ms = None if retention is None or retention is False else whole("retention", retention)
            self.on_dead_letter = _told("on_dead_letter", on_dead_letter)
        except ValueError as exc:
            raise OptionError(f"reliq.DeadLetters: {exc}") from exc
        self._logger = get_logger(__name__, type(self))

    @property
    def actor_options(self) -> set[str]:
        """Per actor and per message."""
        return {"dead_letter", "on_dead_letter"}

    def bind(self, transport: Transport[Any]) -> None:
        """From now on the transport asks this part about letters."""
        super().bind(transport)
        transport.letters = self

    def check_actor(self, actor: Actor[Any, Any]) -> None:
        """Refuse options that cannot work."""
        try:
            _told("on_dead_letter", actor.options.get("on_dead_letter"))
        except ValueError as exc:
            raise option_error(actor, str(exc)) from exc
        if not isinstance(actor.options.get("dead_letter", True), bool):
            raise option_error(
                actor,
                f"dead_letter must be True or False, got {actor.options['dead_letter']!r}; "
                "write dead_letter=False to have its messages dropped when they die",
            )

    def targets(self, broker: Broker) -> Iterator[tuple[str, str]]:
        """The actors that are to be told of letters."""
        for told in (self.on_dead_letter, *(actor.options.get("on_dead_letter") for actor in broker.actors.values())):
            name = _told("on_dead_letter", told)
            if isinstance(name, str):
                yield "on_dead_letter", name

    # -- asked by the transport ----------------------------------------------------------------------------------

    def wanted(self, options: Mapping[str, Any], actor: str | None) -> bool:
        """Whether a letter is kept: `dead_letter` of the message, then of its actor."""
        if isinstance(options.get("dead_letter"), bool):
            return bool(options["dead_letter"])
        return bool(self._actor_options(actor).get("dead_letter", True))

    def announcements(
        self, letter: dict[str, Any], options: Mapping[str, Any], actor: str | None
    ) -> list[Message[Any]]:
        """The message that tells an actor of this letter, if an actor is to be told."""
        name = self._to_tell(options, actor)
        if not isinstance(name, str):
            return []
        assert self.transport is not None
        try:
            target = self.transport.broker.get_actor(name)
        except ActorNotFound:
            self._logger.error("on_dead_letter names actor %r, which is not declared; letter %s.", name, letter["id"])
            return []
        if target.actor_name == actor:
            # Its own letters would be told to itself for ever.
            return []
        return [target.message({key: value for key, value in letter.items() if key not in _NOT_SENT})]

    def after_dead_letter(self, broker: Broker, message: Message[Any] | None, letter: dict[str, Any]) -> None:
        """A letter is written: run the callable, if one is set. What it raises is logged by the caller."""
        told = self._to_tell(message.options if message else {}, message.actor_name if message else None)
        if callable(told):
            told(letter)

    def _to_tell(self, options: Mapping[str, Any], actor: str | None) -> str | Callable[[dict[str, Any]], Any] | None:
        sent = options.get("on_dead_letter")
        if isinstance(sent, str):
            return sent
        return _told("on_dead_letter", self._actor_options(actor).get("on_dead_letter")) or self.on_dead_letter

    def _actor_options(self, actor: str | None) -> Mapping[str, Any]:
        declared = self.transport.broker.actors.get(actor) if self.transport is not None and actor else None
        return declared.options if declared is not None else {}


def _told(name: str, value: Any) -> str | Callable[[dict[str, Any]], Any] | None:
    if isinstance(value, Actor):
        return str(value.actor_name)
    if value is None or (isinstance(value, str) and value) or callable(value):
        return value  # type: ignore[no-any-return]
    raise ValueError(
        f"{name} must be an actor, an actor's name or a callable (letter), got {value!r}; pass one of these"
    )
