"""Ten receipts to send: some fail for a while, two for good. README.md says how to run it."""

import os
import random

import dramatiq
from dramatiq.brokers.redis import RedisBroker

import reliq

broker = RedisBroker(url=os.environ.get("REDIS_URL", "redis://127.0.0.1:6379/0"))
reliq.install(broker)  # before actors are declared
dramatiq.set_broker(broker)


@dramatiq.actor(min_backoff=500, max_backoff=2_000)
def send_receipt(order: int) -> None:
    if order % 5 == 0:
        raise reliq.Permanent(f"order {order} has no address")  # a dead letter at once
    if random.random() < 0.3:
        raise ConnectionError("the mail server is busy")  # run again later
    print(f"receipt for order {order} sent", flush=True)


if __name__ == "__main__":
    for number in range(1, 11):
        send_receipt.send(number)
    print("10 messages sent")
