"""Workers on RabbitMQ that are killed (-9) or told to stop: what they held runs elsewhere at once, and nothing is lost.

RabbitMQ gives back what a closed connection held, so plain Dramatiq does as well here; reliq must not do worse.
"""

import time
from collections.abc import Callable
from pathlib import Path

from reliq.testing import eventually
from tests.faults.rabbit_stage import RabbitStage
from tests.faults.stage import SLACK, extra_runs, stranded

#: s after the kill within which all that the dead worker held must have run.
TARGET_S = 5


def test_an_idle_survivor_runs_what_a_killed_worker_held(
    rabbit_stage: RabbitStage, figure: Callable[[object], None], tmp_path: Path
) -> None:
    """faults.md row 23: kill -9 of the only busy worker: all 8 run on the survivor, once.

    sent 8 done 8 lost 0 stuck 0; 4 extra runs (those that were cut off).
    """
    stage = rabbit_stage
    gate = tmp_path / "gate"
    keys = stage.send("hold", range(8), gate=str(gate))
    victim = stage.workers()
    assert stage.log.wait_for("start", 4)
    eventually(lambda: stage.unacked() == 8, what="a whole prefetch in the victim's hands")
    stage.workers()
    victim.kill()
    died_at = time.time()
    gate.touch()
    counted = stage.finish(keys, TARGET_S * SLACK)
    took = max(entry.at for entry in stage.log.entries()) - died_at
    figure(f"{counted} extra runs {extra_runs(counted)}, done {took:.1f} s after the kill")
    assert (counted.done, counted.lost, stranded(counted), counted.twice, extra_runs(counted)) == (8, 0, 0, 0, 4)
    assert took <= TARGET_S * SLACK
