"""How fast the emulator's time passes, beside AWS's.

With TAPLOCAL_METRICS_DELAY (seconds) it has AWS's timing, 100 times faster: metrics arrive so late,
alarms are evaluated twice a minute, and a shift of provisioned concurrency takes a minute.
"""

from __future__ import annotations

import os

from taplocal.web import SCALE

TIME_SCALE = 100  # times faster than AWS
METRICS_DELAY = os.environ.get("TAPLOCAL_METRICS_DELAY", "")
DELAY_SECONDS = float(METRICS_DELAY or 0) / TIME_SCALE  # of metrics
MINUTE_SECONDS = 60 / TIME_SCALE if METRICS_DELAY else 60
# Between two looks at the alarms: what is in a minute that ends between two is in the next look.
EVALUATION_SECONDS = MINUTE_SECONDS / 2 if METRICS_DELAY else 0
LATE_MINUTES = {"AWS/DynamoDB": 2}  # a namespace's metrics arrive after so many, if not in seconds
WARM_SECONDS = 60 / TIME_SCALE if METRICS_DELAY else 0.2  # AWS: a minute or two
#: A look at a version takes seconds on a busy machine: the guard must not come between two of them.
GUARD_SCALE = TIME_SCALE / 10 if METRICS_DELAY else TIME_SCALE
WEB_NAMESPACES = ("AWS/ApplicationELB", "AWS/AutoScaling", "AWS/EC2", "AWS/RDS", "CWAgent")


def minute_of(namespace: str) -> float:
    """Seconds that a minute of a namespace's metrics takes here."""
    return 60 / SCALE if namespace in WEB_NAMESPACES else MINUTE_SECONDS


def delay_of(namespace: str) -> float:
    """Seconds until what is counted in a namespace arrives here."""
    late = LATE_MINUTES.get(namespace, 0) * MINUTE_SECONDS if METRICS_DELAY else 0
    return DELAY_SECONDS + late
