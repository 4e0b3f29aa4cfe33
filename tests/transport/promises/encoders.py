"""Promises about bodies that `reliq.JSONEncoder` writes: values keep their types on every way, bombs are set aside."""

from __future__ import annotations

import base64
import json
import uuid
import zlib
from collections.abc import Callable, Iterator
from datetime import datetime, timezone
from decimal import Decimal
from typing import Any

import dramatiq
import pytest
from dramatiq.message import get_encoder, set_encoder

import reliq
from reliq.message import encoder
from reliq.testing import eventually
from tests.transport.promises.foreign import body
from tests.transport.rig import Stage

Make = Callable[..., Stage]

VALUES: list[Any] = [datetime(2026, 11, 24, 12, tzinfo=timezone.utc), Decimal("9.90"), uuid.UUID(int=5), b"\xff", "é"]


class Encoders:
    """Typed and compressed bodies."""

    @pytest.fixture
    def typed(self) -> Iterator[None]:
        """The encoder of a process that compresses; Dramatiq has one per process."""
        before = get_encoder()
        set_encoder(reliq.JSONEncoder(compress_above=300))
        yield
        set_encoder(before)

    @pytest.mark.usefixtures("typed")
    def test_typed_values_survive_retries_delays_letters_and_a_replay(self, make: Make) -> None:
        """Large enough to be compressed: the same values in every run, and in the letter's message."""
        stage, runs = make(), []

        @dramatiq.actor(max_retries=1, min_backoff=1, max_backoff=5)
        def work(values: list[Any], pad: str) -> None:
            runs.append(values)
            if len(runs) < 3:
                raise ValueError("not yet")

        work.send_with_options(args=(VALUES, "x" * 1_000), delay=1)
        worker = stage.worker()
        stage.wait_for(0, 0, 0, 1)
        (letter,) = stage.transport.dead_letters("default")
        assert letter.message is not None
        assert letter.message.args[0] == VALUES
        assert letter.body[:1] == b"\x78"
        assert stage.transport.replay(letter, stage.transport.outgoing(letter.message))
        eventually(lambda: len(runs) == 3, what="the run of the replay")
        assert runs == [VALUES] * 3
        stage.wait_for(0, 0, 0, 0)
        assert worker.work_queue.unfinished_tasks == 0

    @pytest.mark.usefixtures("typed")
    def test_a_bomb_is_set_aside_as_it_came(self, make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
        """A compressed body that inflates beyond the bound is a letter `malformed` with its bytes, as one is that is
        cut; their neighbours run."""
        monkeypatch.setattr(encoder, "MOST_INFLATED", 100_000)
        stage, ran = make(), []
        dramatiq.actor(ran.append, actor_name="work")
        bomb, cut = zlib.compress(body(args=["x" * 200_000])), zlib.compress(body())[:-2]
        for each in (body(), bomb, cut, zlib.compress(body(args=[2], options={"redis_message_id": "another"}))):
            stage.put_raw(each)
        stage.worker()
        stage.wait_for(0, 0, 0, 2)
        eventually(lambda: sorted(ran) == [1, 2], what="the neighbours")
        found = {base64.b64decode(letter["body_base64"]): letter for letter in stage.letters()}
        assert set(found) == {bomb, cut}
        assert {letter["reason"] for letter in found.values()} == {"malformed"}
        assert "inflates to more than 100,000 bytes" in found[bomb]["error_message"]
        assert "not one whole zlib stream" in found[cut]["error_message"]
        json.dumps(list(found.values()))
