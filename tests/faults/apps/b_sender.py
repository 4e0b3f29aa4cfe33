"""Sends delayed tasks from a process whose clock may be wrong: `b_sender.py DELAY_MS KEY...`, settings as `b_app`."""

import b_skew  # isort: split

import os
import sys

from dramatiq.brokers.redis import RedisBroker
from dramatiq.message import Message

broker = RedisBroker(url=os.environ["APP_URL"], namespace=os.environ["APP_NAMESPACE"], middleware=[])
if os.environ["APP_MODE"] == "reliq":
    import reliq

    reliq.install(broker)
broker.declare_queue("default")

for key in sys.argv[2:]:
    sent_at = b_skew.real_time()
    message = Message(queue_name="default", actor_name="work", args=(key,), kwargs={}, options={})
    broker.enqueue(message, delay=int(sys.argv[1]))
    print(key, sent_at)
broker.close()
