"""The server's own program is found, a wrapper is never run, and a node's ports stay its own."""

import contextlib
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from reliq.testing import ServerMissing, find_rabbitmq, install_rabbitmq, rabbitmq_binary
from reliq.testing.rabbitmq_binary import ENV_BINARY, find_epmd, rabbitmq_version
from reliq.testing.rabbitmq_ports import HIGHEST, LOWEST, SIZE, PortBlock


def program(path: Path, text: str = "#!/bin/sh\n") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)
    return path


@pytest.fixture
def only(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A folder that is all of PATH, on a machine that has no RabbitMQ."""
    monkeypatch.delenv(ENV_BINARY, raising=False)
    monkeypatch.setattr(rabbitmq_binary, "USUAL_PLACES", (str(tmp_path / "usual"),))
    monkeypatch.setenv("PATH", str(tmp_path / "path"))
    return tmp_path


def test_debians_wrapper_leads_to_the_program(only: Path) -> None:
    """/usr/sbin/rabbitmq-server is a link to a wrapper, which under its own name starts itself without end."""
    home = only / "lib/rabbitmq_server-3.10.8/sbin"
    server = program(home / "rabbitmq-server")
    program(home / "rabbitmq-env")
    wrapper = program(only / "bin/rabbitmq-script-wrapper", "#!/bin/sh\nexec $0\n")
    (wrapper.with_name("rabbitmq-server")).symlink_to(server)
    (only / "path").mkdir()
    (only / "path/rabbitmq-server").symlink_to(wrapper)
    assert find_rabbitmq() == install_rabbitmq() == str(server)
    assert rabbitmq_version(str(server)) == (3, 10, 8)


def test_a_wrapper_alone_is_passed_over_for_the_usual_places(only: Path) -> None:
    program(only / "path/rabbitmq-server")
    with pytest.raises(ServerMissing, match="apt-get install --no-install-recommends rabbitmq-server"):
        install_rabbitmq()  # no apt-get on this PATH
    server = program(only / "usual/rabbitmq-server")
    program(only / "usual/rabbitmq-env")
    assert find_rabbitmq() == str(server)


def test_a_named_program_is_taken_or_refused_never_replaced(only: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program(only / "usual/rabbitmq-server")
    program(only / "usual/rabbitmq-env")
    monkeypatch.setenv(ENV_BINARY, str(program(only / "wrapper/rabbitmq-server")))
    with pytest.raises(ServerMissing, match=f"{ENV_BINARY}=.* is not the server's own program"):
        find_rabbitmq()
    monkeypatch.setenv(ENV_BINARY, "/no/such/rabbitmq-server")
    with pytest.raises(ServerMissing, match=f"{ENV_BINARY}=/no/such/rabbitmq-server is .*apt-get install"):
        find_rabbitmq()


def test_the_program_names_its_version_or_is_refused(only: Path) -> None:
    server = program(only / "home/sbin/rabbitmq-server")
    program(only / "home/sbin/rabbitmqctl", "#!/bin/sh\necho 4.1.2+rc.1\n")
    assert rabbitmq_version(str(server)) == (4, 1, 2)
    other = program(only / "other/sbin/rabbitmq-server")
    program(only / "other/sbin/rabbitmqctl")
    with pytest.raises(ServerMissing, match="names no version"):
        rabbitmq_version(str(other))


def test_without_erlang_it_says_so(only: Path) -> None:
    with pytest.raises(ServerMissing, match=r"no Erlang \(epmd\)"):
        find_epmd()
    program(only / "erlang/bin/erl")
    epmd = program(only / "erlang/erts-13.1/bin/epmd")
    (only / "path").mkdir()
    (only / "path/erl").symlink_to(only / "erlang/bin/erl")
    assert find_epmd() == str(epmd)


def test_ports_are_nobody_elses_until_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also while nothing listens on them, which is when a node is being restarted."""
    monkeypatch.setattr("reliq.testing.rabbitmq_ports.HIGHEST", LOWEST + 4 * SIZE)
    blocks = []
    with pytest.raises(OSError, match="no block of 8 free ports"):
        while True:
            blocks.append(PortBlock())
    taken = [port for block in blocks for port in block.ports]
    assert len(taken) == len(set(taken)) == 5 * len(blocks)
    for block in blocks:
        block.close()
    with contextlib.closing(PortBlock(amqp=12_345)) as block:
        assert block.ports.amqp == 12_345


def test_a_port_that_somebody_listens_on_is_left_to_its_owner() -> None:
    block = PortBlock()
    with socket.create_server(("127.0.0.1", block.ports.management)):
        assert not block.free()
        assert block.free(but=block.ports.management)
    assert block.free()
    block.close()
    assert HIGHEST <= 32_768


def test_it_needs_neither_pika_nor_redis_nor_dramatiq() -> None:
    """A RabbitMQ user may have no redis, and the plugin's fixtures for Redis import it when used."""
    code = (
        "import sys\n"
        "for name in ('pika', 'redis', 'dramatiq'): sys.modules[name] = None\n"
        "from reliq.testing import RabbitmqApi, RabbitmqServer, find_rabbitmq, install_rabbitmq\n"
        "import reliq.testing.plugin"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
