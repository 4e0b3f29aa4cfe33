"""A running RabbitMQ as tests see it: its URLs, and what its management API can do in milliseconds.

Callers: tests, through `RabbitmqServer` (a node of their own) or the fixture `shared_rabbitmq` (which may be
somebody's running server).
Guarantee: each call has been carried out when it returns; a refusal raises `ApiError` with the server's reason.
Not here: starting and killing nodes (`reliq.testing.rabbitmq`).
"""

from __future__ import annotations

import base64
import http.client
import json
import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote, unquote, urlsplit

TIMEOUT_S = 30.0


class ApiError(RuntimeError):
    """The management API refused. `status` is its HTTP status (0: it did not answer)."""

    def __init__(self, text: str, status: int) -> None:
        super().__init__(text)
        self.status = status


class RabbitmqApi:
    """A RabbitMQ with its management plugin, by its two URLs.

    `url` is `amqp://USER:PASSWORD@HOST:PORT`, `management_url` is `http://USER:PASSWORD@HOST:PORT`; without it
    port 15672 of the same host, with the same user.
    """

    def __init__(self, url: str, management_url: str | None = None) -> None:
        parts = urlsplit(url)
        self.host = parts.hostname or "127.0.0.1"
        self._amqp_port = parts.port or 5672
        self._login = f"{parts.username or 'guest'}:{parts.password or 'guest'}"
        self._management = management_url or f"http://{self._login}@{self.host}:15672"

    # -- what it is

    @property
    def port(self) -> int:
        """The AMQP port."""
        return self._amqp_port

    @property
    def management_port(self) -> int:
        """The port of the management API."""
        return urlsplit(self.management_url).port or 15672

    @property
    def management_url(self) -> str:
        """`http://guest:guest@127.0.0.1:PORT`, without a slash at the end."""
        return self._management.rstrip("/")

    @property
    def version(self) -> tuple[int, ...]:
        """Such as (3, 10, 8)."""
        text = str(self.api("GET", "overview")["rabbitmq_version"])
        return tuple(int(part) for part in re.findall(r"\d+", text)[:3])

    def url(self, vhost: str = "/", *, port: int | None = None, user: str | None = None) -> str:
        """`amqp://guest:guest@127.0.0.1:PORT/VHOST`, the vhost percent-encoded.

        `port`: of a proxy before it. `user`: another `name:password`.
        """
        host = self.host if port is None else "127.0.0.1"
        return f"amqp://{user or self._login}@{host}:{port or self.port}/{quote(vhost, safe='')}"

    # -- virtual hosts

    def add_vhost(self, name: str, queue_type: str | None = None) -> None:
        """Make a vhost that our user may use. `queue_type`: the type of queues declared without one."""
        self.api("PUT", "vhosts", name, body={} if queue_type is None else {"default_queue_type": queue_type})

    def delete_vhost(self, name: str) -> None:
        """Delete a vhost with its queues and close its connections. Does nothing if there is none."""
        self._delete("vhosts", name)

    def limit_connections(self, vhost: str, limit: int | None) -> None:
        """Refuse connections to `vhost` beyond `limit`; open ones stay. None lifts the limit."""
        if limit is None:
            self._delete("vhost-limits", vhost, "max-connections")
        else:
            self.api("PUT", "vhost-limits", vhost, "max-connections", body={"value": limit})

    # -- users and policies

    def add_user(
        self,
        name: str,
        password: str,
        vhost: str = "/",
        configure: str = ".*",
        write: str = ".*",
        read: str = ".*",
    ) -> None:
        """Make or change a user and its rights (regular expressions of resource names) in one vhost."""
        self.api("PUT", "users", name, body={"password": password, "tags": ""})
        self.api("PUT", "permissions", vhost, name, body={"configure": configure, "write": write, "read": read})

    def set_policy(
        self,
        vhost: str,
        name: str,
        pattern: str,
        definition: Mapping[str, Any],
        *,
        apply_to: str = "queues",
        priority: int = 0,
    ) -> None:
        """Set a policy on what matches the regular expression `pattern`."""
        body = {"pattern": pattern, "definition": dict(definition), "apply-to": apply_to, "priority": priority}
        self.api("PUT", "policies", vhost, name, body=body)

    def clear_policy(self, vhost: str, name: str) -> None:
        """Take a policy away. Does nothing if there is none."""
        self._delete("policies", vhost, name)

    # -- queues and connections

    def queues(self, vhost: str = "/") -> list[dict[str, Any]]:
        """Each queue's name, type, durable, arguments, messages_ready, messages_unacknowledged and more.

        Counts are at most 0.25 s old on a `RabbitmqServer` (elsewhere the server's `collect_statistics_interval`,
        5 s by default). A queue of which nothing has been counted yet has 0.
        """
        # With totals but without statistics the server answers from the queues' own last words; with statistics
        # it would answer from samples taken every 5 s.
        found = self.api("GET", "queues", vhost, query="disable_stats=true&enable_queue_totals=true")
        return [{"messages_ready": 0, "messages_unacknowledged": 0, **queue} for queue in found]

    def delete_queue(self, vhost: str, name: str) -> None:
        """Delete a queue with its messages. Does nothing if there is none."""
        self._delete("queues", vhost, name)

    def close_connections(self, vhost: str | None = None) -> int:
        """Close the connections in `vhost`, or all; returns how many. Ones of the last 5 s may not be known yet."""
        found = self.api("GET", "connections") if vhost is None else self.api("GET", "vhosts", vhost, "connections")
        return sum(self._delete("connections", connection["name"]) for connection in found)

    # -- how

    def api(self, method: str, *path: str, query: str = "", body: Any = None) -> Any:
        """Call `/api/...`; parts of the path are percent-encoded. Returns the JSON answer, or None."""
        parts = urlsplit(self.management_url)
        login = f"{unquote(parts.username or 'guest')}:{unquote(parts.password or 'guest')}"
        headers = {"Authorization": "Basic " + base64.b64encode(login.encode()).decode()}
        if body is not None:
            headers["Content-Type"] = "application/json"
        target = "/api/" + "/".join(quote(part, safe="") for part in path) + (f"?{query}" if query else "")
        connection = http.client.HTTPConnection(parts.hostname or "127.0.0.1", parts.port or 15672, timeout=TIMEOUT_S)
        try:
            connection.request(method, target, None if body is None else json.dumps(body), headers)
            response = connection.getresponse()
            text = response.read().decode(errors="replace")
        except (OSError, http.client.HTTPException) as error:
            raise ApiError(f"{method} {target} of {self!r}: no answer: {error!r}", 0) from error
        finally:
            connection.close()
        if response.status >= 400:
            raise ApiError(f"{method} {target} of {self!r}: {response.status} {text[:500]}", response.status)
        return json.loads(text) if text else None

    def _delete(self, *path: str) -> bool:
        """False: there was nothing to delete."""
        try:
            self.api("DELETE", *path)
        except ApiError as error:
            if error.status != 404:
                raise
            return False
        return True

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.host}:{self.port}>"
