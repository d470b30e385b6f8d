"""Target tracking of an Auto Scaling group: its desired capacity follows its metrics.

Out when a metric was above its target for 3 minutes, in proportion; in when all were below nine
tenths of theirs for 15 minutes, one instance at a time. A minute is a look here. Rules: Amazon EC2
Auto Scaling user guide, "Target tracking scaling policies for Amazon EC2 Auto Scaling"; AWS does
not say how it scales in but that it is slow and careful.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

OUT_MINUTES, IN_MINUTES = 3, 15
IN_SHARE = 0.9  # of the target


@dataclass(frozen=True)
class Decision:
    """A new desired capacity, and why."""

    desired: int
    why: str


class Tracking:
    """The policies of one group, and what their metrics were."""

    def __init__(self) -> None:
        self.values: dict[str, deque[float]] = {}
        self.wait = 0  # minutes until what was launched counts

    def minute(
        self,
        group: Mapping[str, Any],
        policies: Sequence[Mapping[str, Any]],
        metrics: Mapping[str, float],
    ) -> Decision | None:
        """Looks at a minute; `metrics` are by predefined metric type. None: nothing changes."""
        targets = {}
        for each in policies:
            tracking = each["TargetTrackingConfiguration"]
            kind = tracking["PredefinedMetricSpecification"]["PredefinedMetricType"]
            if kind in metrics:
                targets[kind] = float(tracking["TargetValue"])
                self.values.setdefault(kind, deque(maxlen=IN_MINUTES)).append(metrics[kind])
        self.wait = max(0, self.wait - 1)
        decision = self._decide(group, targets)
        if decision and decision.desired > group["DesiredCapacity"]:
            self.wait = math.ceil(group["DefaultInstanceWarmup"] / 60)
        if decision:
            self.values.clear()
        return decision

    def _decide(self, group: Mapping[str, Any], targets: Mapping[str, float]) -> Decision | None:
        desired, proposals = group["DesiredCapacity"], []
        for kind, target in targets.items():
            last = list(self.values[kind])[-OUT_MINUTES:]
            if len(last) == OUT_MINUTES and min(last) > target:
                proposals.append((math.ceil(desired * last[-1] / target), kind))
        if proposals and not self.wait:
            wanted, kind = max(proposals)
            wanted = min(wanted, group["MaxSize"])
            why = f"{kind} was above its target for {OUT_MINUTES} minutes"
            return Decision(wanted, why) if wanted > desired else None
        low = bool(targets) and all(
            len(self.values[kind]) == IN_MINUTES and max(self.values[kind]) < IN_SHARE * target
            for kind, target in targets.items()
        )
        if low and desired > group["MinSize"] and not self.wait:
            return Decision(desired - 1, f"all metrics were low for {IN_MINUTES} minutes")
        return None
