"""A running RabbitMQ as tests see it: its URLs, and what its management API does in milliseconds.

Callers: tests, through `RabbitmqServer` (a node of their own) or the fixture `shared_rabbitmq` (which may be
somebody's running server).
Guarantee: what a call asks for is done when it returns; a refusal raises `ApiError` with the server's reason.
Not here: starting and killing nodes (`reliq.testing.rabbitmq`), rabbitmqctl (`reliq.testing.rabbitmq_node`).
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
    """The management API refused. `status` is its HTTP status, or 0 if it did not answer within 30 s."""

    def __init__(self, text: str, status: int) -> None:
        super().__init__(text)
        self.status = status


class RabbitmqApi:
    """A RabbitMQ with its management plugin, by its URLs.

    `url`: `amqp://USER:PASSWORD@HOST:PORT`; `management_url`: `http://USER:PASSWORD@HOST:PORT`, by default
    port 15672 of the same host and user, who must be an administrator. guest:guest where a URL names nobody.
    """

    def __init__(self, url: str, management_url: str | None = None) -> None:
        amqp = urlsplit(url)
        self.host = amqp.hostname or "127.0.0.1"
        self._scheme = amqp.scheme
        self._login = f"{amqp.username or 'guest'}:{amqp.password or 'guest'}"  # as in the URL: percent-encoded
        self._port = amqp.port or (5671 if amqp.scheme == "amqps" else 5672)
        self._management_url = (management_url or f"http://{self._login}@{_in_url(self.host)}:15672").rstrip("/")

    # -- what it is

    @property
    def port(self) -> int:
        """The AMQP port."""
        return self._port

    @property
    def management_port(self) -> int:
        """The port of the management API."""
        return urlsplit(self._management_url).port or 15672

    @property
    def management_url(self) -> str:
        """`http://guest:guest@127.0.0.1:PORT`."""
        return self._management_url

    @property
    def version(self) -> tuple[int, ...]:
        """Such as (3, 10, 8)."""
        text = str(self.api("GET", "overview")["rabbitmq_version"])
        return tuple(int(part) for part in re.findall(r"\d+", text)[:3])

    def url(self, vhost: str = "/", *, port: int | None = None, user: str | None = None) -> str:
        """`amqp://guest:guest@127.0.0.1:PORT/VHOST`, the vhost percent-encoded.

        `port`: that of a proxy before it, on 127.0.0.1. `user`: another `NAME:PASSWORD`, percent-encoded.
        """
        place = f"{_in_url(self.host)}:{self.port}" if port is None else f"127.0.0.1:{port}"
        return f"{self._scheme}://{user or self._login}@{place}/{quote(vhost, safe='')}"

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.host} port {self.port}>"

    # -- virtual hosts

    def add_vhost(self, name: str, queue_type: str | None = None) -> None:
        """Make a vhost that our user may use. `queue_type`: that of queues which are declared without one."""
        self.api("PUT", "vhosts", name, body={} if queue_type is None else {"default_queue_type": queue_type})
        if queue_type is not None and self.api("GET", "vhosts", name).get("default_queue_type") != queue_type:
            self.delete_vhost(name)
            raise ApiError(f"this server's management API takes no default queue type: {queue_type!r}", 0)

    def delete_vhost(self, name: str) -> None:
        """Delete a vhost with its queues; its connections are closed. Does nothing if there is none."""
        self._delete("vhosts", name)

    def limit_connections(self, vhost: str, limit: int | None) -> None:
        """Refuse connections to `vhost` beyond `limit`; open ones stay. None lifts the limit."""
        if limit is None:
            self._delete("vhost-limits", vhost, "max-connections")
        else:
            self.api("PUT", "vhost-limits", vhost, "max-connections", body={"value": limit})

    def close_connections(self, vhost: str | None = None) -> int:
        """Close the connections in `vhost`, or all; returns how many. Those of the last 5 s may not be known yet."""
        found = self.api("GET", "connections") if vhost is None else self.api("GET", "vhosts", vhost, "connections")
        return sum(self._delete("connections", connection["name"]) for connection in found)

    # -- users and policies

    def add_user(
        self, name: str, password: str, vhost: str = "/", configure: str = ".*", write: str = ".*", read: str = ".*"
    ) -> None:
        """Make or change a user and its rights in one vhost: regular expressions that resource names match."""
        self.api("PUT", "users", name, body={"password": password, "tags": ""})
        rights = {"configure": configure, "write": write, "read": read}
        self.api("PUT", "permissions", vhost, name, body=rights)

    def delete_user(self, name: str) -> None:
        """Delete a user. Does nothing if there is none."""
        self._delete("users", name)

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
        """Set a policy on what the regular expression `pattern` matches. `apply_to`: "queues", "exchanges", "all"."""
        body = {"pattern": pattern, "definition": dict(definition), "apply-to": apply_to, "priority": priority}
        self.api("PUT", "policies", vhost, name, body=body)

    def clear_policy(self, vhost: str, name: str) -> None:
        """Take a policy away. Does nothing if there is none."""
        self._delete("policies", vhost, name)

    # -- queues

    def queues(self, vhost: str = "/") -> list[dict[str, Any]]:
        """Each queue's name, type, durable, arguments, messages_ready, messages_unacknowledged and more.

        Counts are at most 0.25 s old on a `RabbitmqServer` (elsewhere the server's `collect_statistics_interval`,
        5 s by default); a queue of which nothing has been counted yet has 0.
        """
        # Without statistics but with totals the server answers from the queues' own last words; with statistics
        # it would answer from samples that it takes every 5 s.
        found = self.api("GET", "queues", vhost, query="disable_stats=true&enable_queue_totals=true")
        return [{"messages_ready": 0, "messages_unacknowledged": 0, **queue} for queue in found]

    def delete_queue(self, vhost: str, name: str) -> None:
        """Delete a queue with its messages. Does nothing if there is none."""
        self._delete("queues", vhost, name)

    # -- the whole

    def in_alarm(self) -> bool:
        """Whether a memory or disk alarm holds."""
        try:
            self.api("GET", "health", "checks", "alarms")
        except ApiError as error:
            if error.status != 503:
                raise
            return True
        return False

    def api(self, method: str, *path: str, query: str = "", body: Any = None) -> Any:
        """Call `/api/PATH?QUERY` with a JSON body; parts of the path are percent-encoded here.

        Returns the JSON answer, or None. Raises `ApiError`.
        """
        target = "/api/" + "/".join(quote(part, safe="") for part in path) + (f"?{query}" if query else "")
        try:
            status, text = self._request(method, target, None if body is None else json.dumps(body))
        except (OSError, http.client.HTTPException) as error:
            raise ApiError(f"{method} {target} of {self!r}: no answer: {error!r}", 0) from error
        if status >= 400:
            raise ApiError(f"{method} {target} of {self!r}: {status} {text[:500]}", status)
        return json.loads(text) if text else None

    # -- how

    def _request(self, method: str, target: str, body: str | None) -> tuple[int, str]:
        url = urlsplit(self._management_url)
        login = f"{unquote(url.username or 'guest')}:{unquote(url.password or 'guest')}"
        headers = {
            "Authorization": "Basic " + base64.b64encode(login.encode()).decode(),
            "Content-Type": "application/json",
        }
        kind = http.client.HTTPSConnection if url.scheme == "https" else http.client.HTTPConnection
        connection = kind(url.hostname or "127.0.0.1", self.management_port, timeout=TIMEOUT_S)
        try:
            connection.request(method, target, body, headers)
            response = connection.getresponse()
            return response.status, response.read().decode(errors="replace")
        finally:
            connection.close()

    def _delete(self, *path: str) -> bool:
        """False: there was nothing to delete."""
        try:
            self.api("DELETE", *path)
        except ApiError as error:
            if error.status != 404:
                raise
            return False
        return True


def _in_url(host: str) -> str:
    return f"[{host}]" if ":" in host else host
