"""The fixtures, seen from outside: a pytest run of its own for each."""

import os
from pathlib import Path

import pytest

from reliq.testing import RabbitmqApi

pytest_plugins = ["pytester"]

OPTIONS = ("-p", "reliq.testing.plugin", "-p", "no:valkey", "-p", "no:cacheprovider", "-n", "0")
SPREAD = ("-n", "2")


def test_fixtures_give_a_server_a_proxy_a_log_and_namespaces(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        """
        import pytest, redis

        seen = []

        @pytest.mark.parametrize("turn", [1, 2])
        def test_all(turn, redis_server, shared_redis, fault_proxy, run_log, namespace):
            seen.append((redis_server.port, shared_redis.port, namespace))
            proxy = fault_proxy(redis_server)
            with redis.Redis.from_url(proxy.url()) as client:
                assert client.incr("n") == 1
            assert fault_proxy(shared_redis.port).port != proxy.port
            run_log.record("end", turn)
            assert run_log.keys("end") == {turn}

        def test_own_and_shared():
            (own, shared, name), (own_2, shared_2, name_2) = seen
            assert own != own_2 and shared == shared_2 and name != name_2
        """
    )
    pytester.runpytest_subprocess(*OPTIONS).assert_outcomes(passed=3)


def test_a_failure_shows_the_workers_log_and_the_group_is_gone(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        tiny="""
        import dramatiq
        from dramatiq.brokers.stub import StubBroker
        dramatiq.set_broker(StubBroker())
        print("hello from the app")
        """,
        test_it="""
        import os
        from reliq.testing.processes import group_states

        def test_fails(worker_group):
            group = worker_group("tiny", cwd=os.getcwd())
            open("pid", "w").write(str(group.pid))
            assert not group.alive

        def test_the_group_is_gone():
            assert group_states(int(open("pid").read())) == {}
        """,
    )
    result = pytester.runpytest_subprocess(*OPTIONS, "test_it.py")
    result.assert_outcomes(passed=1, failed=1)
    result.stdout.fnmatch_lines(["*log of <WorkerGroup tiny*", "*hello from the app*", "*ready for action*"])


def test_a_missing_server_fails_and_says_what_to_install(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Never a skip: a green run in which nothing ran would be a lie. (A wrong name, so that nothing is installed.)"""
    monkeypatch.setenv("PATH", str(pytester.path))
    monkeypatch.setenv("RELIQ_TEST_REDIS_BINARY", "no-such-server")
    pytester.makepyfile("def test_it(redis_server): pass")
    result = pytester.runpytest_subprocess(*OPTIONS)
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["*no-such-server is not a program*apt-get install redis-server*"])


def test_a_missing_rabbitmq_fails_and_says_what_to_install(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also of the run's own node, which another process of it would have started."""
    monkeypatch.setenv("RELIQ_TEST_RABBITMQ_BINARY", "no-such-server")
    pytester.makepyfile("def test_it(rabbitmq_server): pass\ndef test_that(vhost): pass")
    result = pytester.runpytest_subprocess(*OPTIONS, *SPREAD)
    result.assert_outcomes(errors=2)
    result.stdout.fnmatch_lines(["*no-such-server is not a program*apt-get install*rabbitmq-server*"] * 2)


@pytest.mark.timeout(300)  # a run of three processes and a node, on a machine that may be busy
def test_a_spread_run_shares_one_rabbitmq_and_takes_it_along(pytester: pytest.Pytester) -> None:
    """One node for all processes, a vhost for each test; nothing is left of it."""
    pytester.makepyfile(
        """
        import os, pathlib, time
        import pytest
        from reliq.testing import eventually

        @pytest.mark.parametrize("turn", [1, 2])
        def test_it(shared_rabbitmq, vhost, fault_proxy, turn):
            pathlib.Path(f"{os.getpid()}.seen").write_text(f"{shared_rabbitmq.place.folder}\\n{vhost}")
            assert shared_rabbitmq.queues(vhost) == []
            assert shared_rabbitmq.ctl("list_vhosts").count("test-") in (1, 2)
            assert fault_proxy(shared_rabbitmq).port != shared_rabbitmq.port
            eventually(lambda: len(list(pathlib.Path().glob("*.seen"))) == 2, 60, what="both processes here")
        """
    )
    result = pytester.runpytest_subprocess(*OPTIONS, *SPREAD)
    result.assert_outcomes(passed=2)
    folders, vhosts = zip(*(path.read_text().split() for path in pytester.path.glob("*.seen")), strict=True)
    assert (len(set(folders)), len(set(vhosts))) == (1, 2)
    assert not Path(folders[0]).exists()


def test_a_named_rabbitmq_is_used_instead_of_a_node(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, shared_rabbitmq: RabbitmqApi
) -> None:
    monkeypatch.setenv("RELIQ_TEST_RABBITMQ_URL", shared_rabbitmq.url())
    monkeypatch.setenv("RELIQ_TEST_RABBITMQ_MANAGEMENT_URL", shared_rabbitmq.management_url)
    monkeypatch.setenv("RELIQ_TEST_RABBITMQ_BINARY", "no-such-server")
    pytester.makepyfile("def test_it(shared_rabbitmq, vhost): assert shared_rabbitmq.queues(vhost) == []")
    pytester.runpytest_subprocess(*OPTIONS).assert_outcomes(passed=1)


def test_a_callback_that_failed_fails_the_test(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        """
        import redis

        def test_it(redis_server, fault_proxy):
            proxy = fault_proxy(redis_server)
            proxy.on_request(b"PING", lambda: 1 / 0)
            with redis.Redis.from_url(proxy.url()) as client:
                assert client.ping()
        """
    )
    result = pytester.runpytest_subprocess(*OPTIONS)
    result.assert_outcomes(passed=1, errors=1)
    result.stdout.fnmatch_lines(["*callback of <FaultProxy*ZeroDivisionError*"])


def test_nothing_is_left_in_the_temporary_folder(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(pytester.mkdir("tmp")))
    pytester.makepyfile("def test_it(redis_server, shared_redis, fault_proxy): fault_proxy(redis_server)")
    pytester.runpytest_subprocess(*OPTIONS).assert_outcomes(passed=1)
    left = [name for name in os.listdir(Path(os.environ["TMPDIR"])) if name.startswith("reliq-redis")]
    assert left == []
