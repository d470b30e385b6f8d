"""What a run reports: its steps, and what has no effect on this emulator."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Step:
    """One thing that was done to a resource; `why` names the inputs that made it necessary."""

    action: str  # created, updated, replaced, unchanged, deleted
    type: str
    name: str
    seconds: float = 0.0
    why: tuple[str, ...] = ()


@dataclass
class Summary:
    """What a run did, and what of the program has no effect on this emulator."""

    steps: list[Step] = field(default_factory=list)
    not_emulated: list[dict[str, str]] = field(default_factory=list)
    seconds: float = 0.0

    def counts(self) -> Counter[str]:
        """How many resources were created, updated, replaced, deleted, left unchanged."""
        return Counter(step.action for step in self.steps)
