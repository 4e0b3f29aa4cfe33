"""A stage whose queues are quorum queues: `stage = pytest.fixture(stage_with_quorum_queues)` in a test module."""

import uuid
from collections.abc import Iterator

from reliq.testing import RabbitmqApi, RunLog
from reliq.testing.plugin import MakeProxy, MakeWorkers
from tests.faults.rabbit_stage import RabbitStage


def stage_with_quorum_queues(
    shared_rabbitmq: RabbitmqApi, fault_proxy: MakeProxy, worker_group: MakeWorkers, run_log: RunLog
) -> Iterator[RabbitStage]:
    """A fixture function: a `rabbit_stage` in a vhost whose default queue type is quorum."""
    vhost = f"test-{uuid.uuid4().hex[:12]}"
    # RabbitMQ 3.10's management API knows the default type by the first name, later ones by the second.
    types = {"defaultqueuetype": "quorum", "default_queue_type": "quorum"}
    shared_rabbitmq.api("PUT", "vhosts", vhost, body=types)
    assert shared_rabbitmq.api("GET", "vhosts", vhost)["default_queue_type"] == "quorum"
    with RabbitStage(shared_rabbitmq, vhost, fault_proxy(shared_rabbitmq), worker_group, run_log) as stage:
        yield stage
    shared_rabbitmq.delete_vhost(vhost)
