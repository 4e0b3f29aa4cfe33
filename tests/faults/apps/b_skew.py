"""Sets this process's clock ahead (or behind), as a machine with a wrong clock would have it.

Imported first by `b_app` and `b_sender`: Dramatiq binds `time.time` at import. APP_SKEW is in seconds. What a task
records as `real` is the machine's own time, which is the server's too.
"""

import os
import time

SKEW_S = float(os.environ.get("APP_SKEW", "0"))

if SKEW_S:
    _true_time = time.time
    time.time = lambda: _true_time() + SKEW_S


def real_time() -> float:
    """Unix seconds on the machine's clock."""
    return time.clock_gettime(time.CLOCK_REALTIME)
