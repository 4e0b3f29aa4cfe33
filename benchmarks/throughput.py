"""Throughput of the installed stack against plain Dramatiq: no-op tasks, interleaved rounds, counts verified.

    python benchmarks/throughput.py [--broker redis|rabbitmq] [--messages 20000] [--rounds 5] [--threads 8]
                                    [--control] [--json]

Prints a line per round and the median ratios of the rounds: throughput, and CPU per task of worker and broker.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

from stands import Stand, stand

WORKER = Path(__file__).with_name("throughput_worker.py")


@dataclass(frozen=True)
class Round:
    """One side of one round. CPU in milliseconds per task."""

    side: str
    tasks_per_s: float
    worker_cpu_ms: float
    broker_cpu_ms: float


def run(side: str, on: Stand, messages: int, threads: int) -> Round:
    """One side of one round."""
    on.empty()
    on.fill(messages)
    command = [sys.executable, str(WORKER), side, on.url, str(messages), str(threads)]
    worker = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert worker.stdout is not None
    if worker.stdout.readline().strip() != "ready":
        sys.exit(f"{side}: the worker did not boot: {worker.communicate()[1]}")
    before = on.cpu_s()
    out, err = worker.communicate("go\n", timeout=360)
    broker_cpu = on.cpu_s() - before
    if worker.returncode:
        sys.exit(f"{side}: the worker failed: {err or out}")
    took = json.loads(out)
    on.verify(side, took["ran"], messages)
    return Round(side, messages / took["seconds"], took["cpu"] / messages * 1e3, broker_cpu / messages * 1e3)


def spread(name: str, ratios: list[float]) -> str:
    """A line of the summary."""
    return f"{name}: median {statistics.median(ratios):.2f}, from {min(ratios):.2f} to {max(ratios):.2f}"


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--broker", choices=["redis", "rabbitmq"], default="redis")
    parser.add_argument("--messages", type=int, default=20_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=8)
    parser.add_argument("--control", action="store_true", help="plain against plain: how large is the noise?")
    parser.add_argument("--json", action="store_true", help="print the rounds as JSON")
    options = parser.parse_args()
    second = "plain" if options.control else "reliq"
    pairs: list[tuple[Round, Round]] = []
    with stand(options.broker) as on:
        for n in range(options.rounds):
            # The order alternates, so that what one leaves in the caches is not always the other's.
            order = ["plain", second] if n % 2 == 0 else [second, "plain"]
            results = [run(side, on, options.messages, options.threads) for side in order]
            pair = (results[0], results[1]) if n % 2 == 0 else (results[1], results[0])
            pairs.append(pair)
            if not options.json:
                print(
                    f"round {n + 1}: plain {pair[0].tasks_per_s:,.0f}/s, {second} {pair[1].tasks_per_s:,.0f}/s, "
                    f"ratio {pair[1].tasks_per_s / pair[0].tasks_per_s:.2f}; worker CPU per task "
                    f"{pair[0].worker_cpu_ms:.3f} and {pair[1].worker_cpu_ms:.3f} ms",
                    flush=True,
                )
    ratios = [other.tasks_per_s / plain.tasks_per_s for plain, other in pairs]
    cpu_ratios = [other.worker_cpu_ms / plain.worker_cpu_ms for plain, other in pairs]
    if options.json:
        rounds = [[asdict(side) for side in pair] for pair in pairs]
        print(json.dumps({"ratios": ratios, "worker_cpu_ratios": cpu_ratios, "rounds": rounds}))
        return
    for index, side in enumerate(["plain", second]):
        print(
            f"{side}: median {statistics.median(p[index].tasks_per_s for p in pairs):,.0f} tasks/s, CPU per task: "
            f"worker {statistics.median(p[index].worker_cpu_ms for p in pairs):.3f} ms, "
            f"broker {statistics.median(p[index].broker_cpu_ms for p in pairs):.3f} ms"
        )
    print(spread("ratio", ratios))
    print(spread("ratio of worker CPU per task", cpu_ratios))


if __name__ == "__main__":
    main()
