"""Sends: many at once against one by one, each confirmed; interleaved rounds, every message counted in the broker.

    python benchmarks/publishing.py [--broker redis|rabbitmq] [--messages 3000] [--batch 100] [--rounds 5] [--json]

Three ways in a round: plain Dramatiq one by one (on RabbitMQ with `confirm_delivery=True`), reliq one by one, reliq in
batches through the transport's `publish_many`. One sender thread. Prints the rates and what batches come to against
either of the others.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from dataclasses import asdict, dataclass
from typing import Any

import dramatiq
from stands import Stand, build, stand

from reliq.wiring import transport_of

WAYS = ("plain one by one", "reliq one by one", "reliq in batches")


@dataclass(frozen=True)
class Round:
    """One way in one round. CPU of this process and of the broker in milliseconds per message."""

    way: str
    sends_per_s: float
    sender_cpu_ms: float
    broker_cpu_ms: float


def run(way: str, on: Stand, messages: int, batch: int) -> Round:
    """One way of one round. The first send, which connects and declares, is not in the time."""
    on.empty()
    broker = build(way.partition(" ")[0], on.url)

    @dramatiq.actor(broker=broker)
    def noop(n: int) -> None: ...

    noop.send(0)
    broker_cpu, cpu, began = on.cpu_s(), time.process_time(), time.perf_counter()
    if way == "reliq in batches":
        send_batches(broker, noop, messages, batch)
    else:
        for n in range(messages):
            noop.send(n)
    seconds, cpu, broker_cpu = time.perf_counter() - began, time.process_time() - cpu, on.cpu_s() - broker_cpu
    transport = transport_of(broker)
    if transport is not None:
        transport.disconnect()
    broker.close()
    stored = on.stored()
    if stored != messages + 1:
        sys.exit(f"{way}: {stored} of {messages + 1} are stored; no figure")
    return Round(way, messages / seconds, cpu / messages * 1e3, broker_cpu / messages * 1e3)


def send_batches(broker: dramatiq.Broker, actor: Any, messages: int, batch: int) -> None:
    """As `enqueue` does for one: hooks, encoding, storing."""
    transport = transport_of(broker)
    assert transport is not None
    for start in range(0, messages, batch):
        items = [transport.outgoing(actor.message(n)) for n in range(start, min(start + batch, messages))]
        failed = [outcome for outcome in transport.publish_many(items) if outcome is not None]
        if failed:
            sys.exit(f"{len(failed)} were not sent: {failed[0]}")
        for item in items:
            broker.emit_after("enqueue", item.message, None)


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--broker", choices=["redis", "rabbitmq"], default="rabbitmq")
    parser.add_argument("--messages", type=int, default=3_000)
    parser.add_argument("--batch", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", action="store_true", help="print the rounds as JSON")
    options = parser.parse_args()
    rounds: list[dict[str, Round]] = []
    with stand(options.broker) as on:
        for n in range(options.rounds):
            order = WAYS if n % 2 == 0 else WAYS[::-1]
            results = {way: run(way, on, options.messages, options.batch) for way in order}
            rounds.append(results)
            if not options.json:
                rates = ", ".join(f"{way} {results[way].sends_per_s:,.0f}/s" for way in WAYS)
                print(f"round {n + 1}: {rates}", flush=True)
    ratios = {
        way: [each["reliq in batches"].sends_per_s / each[way].sends_per_s for each in rounds] for way in WAYS[:2]
    }
    if options.json:
        print(json.dumps({"ratios": ratios, "rounds": [[asdict(each[way]) for way in WAYS] for each in rounds]}))
        return
    for way in WAYS:
        print(
            f"{way}: median {statistics.median(each[way].sends_per_s for each in rounds):,.0f}/s, CPU per message: "
            f"sender {statistics.median(each[way].sender_cpu_ms for each in rounds):.3f} ms, "
            f"broker {statistics.median(each[way].broker_cpu_ms for each in rounds):.3f} ms"
        )
    for way, found in ratios.items():
        print(
            f"batches of {options.batch} against {way}: median {statistics.median(found):.2f}, "
            f"from {min(found):.2f} to {max(found):.2f}"
        )


if __name__ == "__main__":
    main()
