"""Ten reports to write on RabbitMQ: some fail for a while, two for good, one is for later. README.md says how to run
it."""

import os
import random

import dramatiq
from dramatiq.brokers.rabbitmq import RabbitmqBroker

import reliq

broker = RabbitmqBroker(url=os.environ.get("AMQP_URL", "amqp://guest:guest@127.0.0.1:5672"))
reliq.install(broker)  # before actors are declared; sends are confirmed from here on
dramatiq.set_broker(broker)


@dramatiq.actor(min_backoff=500, max_backoff=2_000)
def write_report(customer: int) -> None:
    if customer % 5 == 0:
        raise reliq.Permanent(f"customer {customer} has left")  # a dead letter at once
    if random.random() < 0.3:
        raise ConnectionError("the warehouse is busy")  # run again later
    print(f"report for customer {customer} written", flush=True)


if __name__ == "__main__":
    for number in range(1, 10):
        write_report.send(number)
    write_report.send_with_options(args=(10,), delay=3_000)  # waits in RabbitMQ, in no worker
    print("10 messages accepted")
