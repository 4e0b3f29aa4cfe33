"""What a RabbitMQ node of a test consists of: its folder, its configuration, and rabbitmqctl's way to it.

Callers: `RabbitmqServer`, which starts and ends it; the fixture `shared_rabbitmq`, whose node another process runs.
Guarantee: everything the node and rabbitmqctl write is below one folder, and nothing that is set for RabbitMQ or
Erlang on this machine reaches them.
"""

from __future__ import annotations

import os
import re
import secrets
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from reliq.testing.rabbitmq_api import RabbitmqApi
from reliq.testing.rabbitmq_binary import rabbitmq_version
from reliq.testing.rabbitmq_ports import NodePorts

CTL_TIMEOUT_S = 60.0
MEMORY_WATERMARK = "0.6"
LOOPBACK = "-kernel inet_dist_use_interface {127,0,0,1}"


#: Erlang settings that rabbitmq.conf has no names for. The first makes a short consumer_timeout work within a second,
#: the second is a quorum queue's statistics; the third is for how long after its start a node may hold up what came due
#: meanwhile: 3 min unless it is set (docs/rabbitmq.md).
ADVANCED = {
    "channel_tick_interval": 1_000,
    "quorum_tick_interval": 250,
    "dead_letter_worker_publisher_confirm_timeout": 3_000,
}


@dataclass(frozen=True)
class NodePlace:
    """Where a node lives: its program, its folder, its ports."""

    binary: str
    folder: Path
    ports: NodePorts

    @property
    def log(self) -> Path:
        """What the node prints, over restarts."""
        return self.folder / "server.log"

    def write(self, config: Mapping[str, str]) -> None:
        """Write the configuration; `config` are lines of rabbitmq.conf that replace or join ours, and by the names of
        `ADVANCED` other values for those."""
        advanced = {name: config.get(name, value) for name, value in ADVANCED.items()}
        options = {
            "listeners.tcp.local": f"127.0.0.1:{self.ports.amqp}",
            "management.tcp.ip": "127.0.0.1",
            "management.tcp.port": str(self.ports.management),
            "loopback_users": "none",
            "disk_free_limit.absolute": "50MB",
            "vm_memory_high_watermark.relative": MEMORY_WATERMARK,
            "collect_statistics_interval": "250",  # ms; with the next line queue counts are at most that old
            "management.db_cache_multiplier": "0",
            **{name: value for name, value in config.items() if name not in advanced},
        }
        self._put("rabbitmq.conf", "".join(f"{name} = {value}\n" for name, value in options.items()))
        terms = ", ".join(f"{{{name}, {value}}}" for name, value in advanced.items())
        self._put("advanced.config", f"[{{rabbit, [{terms}]}}].\n")
        self._put("enabled_plugins", "[rabbitmq_management].\n")
        cookie = self.folder / ".erlang.cookie"
        if not cookie.exists():
            self._put(cookie.name, secrets.token_hex(16))
            cookie.chmod(0o400)

    def environment(self) -> dict[str, str]:
        """The environment of node and rabbitmqctl."""
        folder, ports = self.folder, self.ports
        foreign = ("RABBITMQ_", "ERL_", "XDG_", "NOTIFY_SOCKET", "LC_", "LANG")
        return {
            **{name: value for name, value in os.environ.items() if not name.startswith(foreign)},
            "HOME": str(folder),  # the cookie
            "LANG": "C.UTF-8",
            "ERL_EPMD_PORT": str(ports.mapper),
            "ERL_EPMD_ADDRESS": "127.0.0.1",
            "ERL_CRASH_DUMP_SECONDS": "0",  # none: it would take longer than the death
            "RABBITMQ_NODENAME": f"reliq{ports.amqp}@localhost",
            "RABBITMQ_CONF_ENV_FILE": "/dev/null",
            "RABBITMQ_NODE_IP_ADDRESS": "127.0.0.1",
            "RABBITMQ_NODE_PORT": str(ports.amqp),
            "RABBITMQ_DIST_PORT": str(ports.distribution),
            "RABBITMQ_MNESIA_BASE": str(folder / "data"),
            "RABBITMQ_LOG_BASE": str(folder / "log"),
            "RABBITMQ_LOGS": "-",
            "RABBITMQ_CONFIG_FILE": str(folder / "rabbitmq.conf"),
            "RABBITMQ_ADVANCED_CONFIG_FILE": str(folder / "advanced.config"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(folder / "enabled_plugins"),
            "RABBITMQ_GENERATED_CONFIG_DIR": str(folder / "generated"),
            "RABBITMQ_PID_FILE": str(folder / "pid"),
            # The shell script then becomes the Erlang VM, so that our child's pid is the node's.
            "RABBITMQ_ALLOW_INPUT": "1",
            # One scheduler that does not spin: several nodes and their clients share a machine's cores.
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": f"+S 1:1 +sbwt none -noinput {LOOPBACK}",
            "RABBITMQ_CTL_ERL_ARGS": f"+S 1:1 {LOOPBACK}",
            "RABBITMQ_CTL_DIST_PORT_MIN": str(ports.control),
            "RABBITMQ_CTL_DIST_PORT_MAX": str(ports.control + 2),
        }

    def _put(self, name: str, text: str) -> None:
        (self.folder / name).write_text(text, encoding="utf-8")


class RabbitmqNode(RabbitmqApi):
    """A node of these tests that somebody else starts and ends: its management API, rabbitmqctl, its log."""

    def __init__(self, place: NodePlace) -> None:
        self.place = place
        super().__init__(
            f"amqp://guest:guest@127.0.0.1:{place.ports.amqp}",
            f"http://guest:guest@127.0.0.1:{place.ports.management}",
        )

    @property
    def version(self) -> tuple[int, ...]:
        """Such as (3, 10, 8); known without asking the node."""
        return rabbitmq_version(self.place.binary)

    def log(self) -> str:
        """Everything the node has logged, over restarts."""
        return self.place.log.read_text(errors="replace") if self.place.log.exists() else ""

    def ctl(self, *arguments: str) -> str:
        """Run `rabbitmqctl` against this node (a second or more) and return what it prints.

        Raises `RuntimeError` with its message when it fails, `subprocess.TimeoutExpired` after 60 s (a paused node).
        """
        done = subprocess.run(
            [str(Path(self.place.binary).with_name("rabbitmqctl")), "--silent", *arguments],
            cwd=self.place.folder,
            env=self.place.environment(),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=CTL_TIMEOUT_S,
            check=False,
        )
        if done.returncode != 0:
            reason = (done.stderr or done.stdout).strip()[-1000:]
            raise RuntimeError(f"`rabbitmqctl {' '.join(arguments)}` on {self!r} failed: {reason}")
        return done.stdout

    def add_vhost(self, name: str, queue_type: str | None = None) -> None:
        """Make a vhost that our user may use. `queue_type`: that of queues which are declared without one."""
        if queue_type is None or self.version >= (4,):
            super().add_vhost(name, queue_type)
            return
        # The management API of RabbitMQ 3.10 ignores the type.
        self.ctl("add_vhost", name, "--default-queue-type", queue_type)
        self.ctl("set_permissions", "--vhost", name, "guest", ".*", ".*", ".*")

    def close_connections(self, vhost: str | None = None) -> int:
        """Close the connections in `vhost`, or all, by rabbitmqctl, which knows the newest too; returns how many."""
        where = ["--global"] if vhost is None else ["--vhost", vhost]
        said = self.ctl("close_all_connections", *where, "closed by a test")
        return int(re.findall(r"Closed (\d+)", said)[0])
