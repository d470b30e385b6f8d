"""The report of a run: its steps, and what of it is not as on AWS."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

BEGUN = "begun"  # the action of a step that is not done yet; a summary has none


@dataclass(frozen=True)
class Step:
    """One operation on a resource, its duration in seconds, and the inputs that caused it."""

    action: str  # created, updated, replaced, unchanged, deleted, kept; or BEGUN
    type: str
    name: str
    seconds: float = 0.0
    why: tuple[str, ...] = ()


@dataclass
class Summary:
    """The steps of a run, the differences with the resources that touch them, its seconds."""

    steps: list[Step] = field(default_factory=list)
    differences: dict[str, list[str]] = field(default_factory=dict)  # by key
    seconds: float = 0.0

    def counts(self) -> Counter[str]:
        """How many resources were created, updated, replaced, deleted, kept or unchanged."""
        return Counter(step.action for step in self.steps)
