"""Throughput of the installed stack against plain Dramatiq: no-op tasks, interleaved rounds, counts verified.

    python benchmarks/throughput.py [--messages 20000] [--rounds 5] [--threads 8] [--control] [--json]

Prints a line per round and the median ratio of the rounds, with CPU per task of worker and broker.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from throughput_worker import build

from reliq.testing import RedisServer

WORKER = Path(__file__).with_name("throughput_worker.py")
CHUNK = 1_000


@dataclass(frozen=True)
class Round:
    """One side of one round. CPU in milliseconds per task."""

    side: str
    tasks_per_s: float
    worker_cpu_ms: float
    broker_cpu_ms: float


def fill(url: str, messages: int) -> None:
    """Put the tasks into the queue in the form of plain Dramatiq, which both sides read."""
    import dramatiq

    broker = build("plain", url)
    client = broker.client
    for start in range(0, messages, CHUNK):
        pipe = client.pipeline(transaction=False)
        for n in range(start, min(start + CHUNK, messages)):
            name = f"bench-{n}"
            message: Any = dramatiq.Message("default", "noop", (n,), {}, {"redis_message_id": name})
            pipe.hset("dramatiq:default.msgs", name, message.encode())
            pipe.rpush("dramatiq:default", name)
        pipe.execute()


def verify(client: Any, ran: int, messages: int, side: str) -> None:
    """All ran, all acked, nothing left: else there is no figure."""
    left = {
        key.decode(): {b"list": client.llen, b"hash": client.hlen, b"set": client.scard, b"zset": client.zcard}[kind](
            key
        )
        for key in client.scan_iter("dramatiq:*")
        if b"__heartbeats__" not in key and b":reliq:" not in key
        for kind in [client.type(key)]
        if kind != b"string"
    }
    if ran != messages or left:
        sys.exit(f"{side}: ran {ran} of {messages}, left in the broker: {left or 'nothing'}; no figure")


def run(side: str, url: str, client: Any, messages: int, threads: int) -> Round:
    """One side of one round."""
    client.flushall()
    fill(url, messages)
    command = [sys.executable, str(WORKER), side, url, str(messages), str(threads)]
    worker = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert worker.stdout is not None
    if worker.stdout.readline().strip() != "ready":
        sys.exit(f"{side}: the worker did not boot: {worker.communicate()[1]}")
    before = client.info("cpu")
    out, err = worker.communicate("go\n", timeout=360)
    after = client.info("cpu")
    if worker.returncode:
        sys.exit(f"{side}: the worker failed: {err or out}")
    took = json.loads(out)
    verify(client, took["ran"], messages, side)
    broker_cpu = sum(after[name] - before[name] for name in ("used_cpu_user", "used_cpu_sys"))
    return Round(side, messages / took["seconds"], took["cpu"] / messages * 1e3, broker_cpu / messages * 1e3)


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--messages", type=int, default=20_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=8)
    parser.add_argument("--control", action="store_true", help="plain against plain: how large is the noise?")
    parser.add_argument("--json", action="store_true", help="print the rounds as JSON")
    options = parser.parse_args()
    second = "plain" if options.control else "reliq"
    pairs: list[tuple[Round, Round]] = []
    with RedisServer(appendonly=False) as server:
        client = server.client()
        for n in range(options.rounds):
            # The order alternates, so that what one leaves in the caches is not always the other's.
            order = ["plain", second] if n % 2 == 0 else [second, "plain"]
            results = [run(side, server.url, client, options.messages, options.threads) for side in order]
            pair = (results[0], results[1]) if n % 2 == 0 else (results[1], results[0])
            pairs.append(pair)
            if not options.json:
                print(
                    f"round {n + 1}: plain {pair[0].tasks_per_s:,.0f}/s, {second} {pair[1].tasks_per_s:,.0f}/s, "
                    f"ratio {pair[1].tasks_per_s / pair[0].tasks_per_s:.2f}",
                    flush=True,
                )
    ratios = [other.tasks_per_s / plain.tasks_per_s for plain, other in pairs]
    if options.json:
        print(json.dumps({"ratios": ratios, "rounds": [[asdict(side) for side in pair] for pair in pairs]}))
        return
    for index, side in enumerate(["plain", second]):
        print(
            f"{side}: median {statistics.median(p[index].tasks_per_s for p in pairs):,.0f} tasks/s, CPU per task: "
            f"worker {statistics.median(p[index].worker_cpu_ms for p in pairs):.3f} ms, "
            f"broker {statistics.median(p[index].broker_cpu_ms for p in pairs):.3f} ms"
        )
    print(f"ratio: median {statistics.median(ratios):.2f}, from {min(ratios):.2f} to {max(ratios):.2f}")


if __name__ == "__main__":
    main()
