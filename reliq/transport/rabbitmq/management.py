"""What only RabbitMQ's management API tells: which queues a vhost has, and what is unacked over all consumers.

Caller: the desk, where the command line was given `--management-url`. Standard library only. Nothing here is needed
to send, run or settle a message.
"""

from __future__ import annotations

import base64
import json
import urllib.error
import urllib.parse
import urllib.request
from typing import Any

from dramatiq.errors import ConnectionClosed

TIMEOUT_S = 10.0


class Management:
    """The API at `http://user:password@host:15672`, for one vhost."""

    def __init__(self, url: str, vhost: str, login: tuple[str, str] = ("guest", "guest")) -> None:
        parts = urllib.parse.urlsplit(url)
        port = f":{parts.port}" if parts.port else ""
        self._base = f"{parts.scheme}://{parts.hostname}{port}{parts.path.rstrip('/')}"
        user, password = login
        if parts.username:
            user, password = urllib.parse.unquote(parts.username), urllib.parse.unquote(parts.password or "")
        self._login = base64.b64encode(f"{user}:{password}".encode()).decode("ascii")
        self._vhost_name, self._vhost = vhost, urllib.parse.quote(vhost, safe="")

    def __repr__(self) -> str:
        return f"<Management {self._base}>"

    def queues(self) -> list[str]:
        """The names of the queues of the vhost, but for those of one connection alone."""
        found = self._get(f"queues/{self._vhost}?columns=name,exclusive")
        return [queue["name"] for queue in found if not queue.get("exclusive") and not queue["name"].startswith("amq.")]

    def unacked(self, queue_name: str, waiting: int = 0) -> int | None:
        """How many messages of a queue are delivered and not acked, but for `waiting`; as fresh as the server's
        statistics (5 s by default)."""
        name = urllib.parse.quote(queue_name, safe="")
        try:
            counted = self._get(f"queues/{self._vhost}/{name}?columns=messages_unacknowledged")
        except ConnectionClosed:
            return None
        number = counted.get("messages_unacknowledged") if isinstance(counted, dict) else None
        return max(0, number - waiting) if isinstance(number, int) else None

    def _get(self, path: str) -> Any:
        request = urllib.request.Request(f"{self._base}/api/{path}", headers={"Authorization": f"Basic {self._login}"})
        try:
            with urllib.request.urlopen(request, timeout=TIMEOUT_S) as answer:
                return json.load(answer)
        except urllib.error.HTTPError as exc:
            with exc:
                what = {
                    401: "refuses the login; correct user and password in its URL",
                    404: f"knows no vhost {self._vhost_name!r}, or is no management API",
                }.get(exc.code, f"answers {exc.code} {exc.reason}")
            raise ConnectionClosed(f"the management API at {self._base} {what}") from exc
        except (OSError, ValueError) as exc:
            why = getattr(exc, "reason", exc)
            raise ConnectionClosed(f"the management API at {self._base} does not answer: {why}") from exc
