"""Every record is one whole line, whoever writes at the same time and whatever dies."""

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from reliq.testing import RunLog

WRITER = """
import sys, threading
from reliq.testing import RunLog
log, number = RunLog(sys.argv[1]), int(sys.argv[2])
def write(thread):
    for n in range(125):
        log.record("end", [number, thread, n], filler="x" * (n * 10))
threads = [threading.Thread(target=write, args=(thread,)) for thread in range(2)]
for thread in threads: thread.start()
for thread in threads: thread.join()
"""


def test_eight_processes_write_whole_lines(run_log: RunLog) -> None:
    """8 processes of 2 threads: 2000 lines, none torn, none mixed, none lost."""
    writers = [subprocess.Popen([sys.executable, "-c", WRITER, str(run_log.path), str(n)]) for n in range(8)]
    assert run_log.wait_for("end", 100, timeout=20)  # reading while they write
    assert [writer.wait(20) for writer in writers] == [0] * 8
    count = run_log.count("end")
    assert len(count) == count.total() == 2000
    assert (7, 1, 124) in count  # lists come back as tuples
    entries = run_log.entries()
    assert {entry.pid for entry in entries} == {writer.pid for writer in writers}
    assert all(entry.fields["filler"] == "x" * (entry.key[2] * 10) for entry in entries)  # type: ignore[index]


def test_a_record_that_returned_survives_kill_9(run_log: RunLog) -> None:
    code = (
        "import os, signal, sys; from reliq.testing import RunLog\n"
        "RunLog(sys.argv[1]).record('start', 7); os.kill(os.getpid(), signal.SIGKILL)"
    )
    assert subprocess.run([sys.executable, "-c", code, str(run_log.path)], check=False).returncode == -signal.SIGKILL
    assert run_log.keys("start") == {7}


def test_what_is_written_comes_back(run_log: RunLog) -> None:
    run_log.record("start", 1)
    run_log.record("end", 1, attempt=2, note="line\nbreak \u2028 ü")
    run_log.record("end", "b")
    run_log.record("tick")
    start, end, *_ = run_log.entries()
    assert (start.event, start.key, start.pid, start.thread) == ("start", 1, os.getpid(), threading.get_ident())
    assert end.fields == {"attempt": 2, "note": "line\nbreak \u2028 ü"}
    assert start.at <= end.at
    assert run_log.count("end") == {1: 1, "b": 1}
    assert run_log.keys("tick") == {None}
    assert repr(run_log) == "<RunLog run.jsonl: 1 start, 2 end, 1 tick>"


def test_a_line_still_being_written_is_left_for_the_next_look(run_log: RunLog) -> None:
    run_log.record("end", 1)
    whole = run_log.path.read_bytes()
    with run_log.path.open("ab") as file:
        file.write(whole[:20])
        file.flush()
        assert len(run_log.entries()) == 1
        file.write(whole[20:])
    assert run_log.count("end") == {1: 2}


def test_waiting_counts_different_keys_unless_told_otherwise(run_log: RunLog) -> None:
    """Two runs of one task must not pass for two tasks."""
    run_log.record("end", 1)
    run_log.record("end", 1)
    assert not run_log.wait_for("end", 2, timeout=0)
    assert run_log.wait_for("end", 2, timeout=0, distinct=False)
    assert run_log.wait_for(lambda entries: len(entries) == 2, timeout=0)
    assert not run_log.wait_for(lambda entries: len(entries) == 3, timeout=0)
    run_log.record("end", 2)
    assert run_log.wait_for("end", 2, timeout=0)


def test_an_empty_log_is_no_error(tmp_path: Path) -> None:
    log = RunLog(tmp_path / "none.jsonl")
    assert (log.entries(), log.count("end"), repr(log)) == ([], {}, "<RunLog none.jsonl: empty>")
    log.close()
    log.record("end", 1)
    log.close()
    log.record("end", 2)  # opened again
    log.close()
    assert log.keys("end") == {1, 2}


def test_a_key_that_json_cannot_hold_is_refused(run_log: RunLog) -> None:
    with pytest.raises(TypeError, match="not JSON serializable"):
        run_log.record("end", object())
    assert run_log.entries() == []
