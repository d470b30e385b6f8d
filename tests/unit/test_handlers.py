"""What all handlers use."""

from __future__ import annotations

import time

import pytest

from tap_stack import jittered_pause


def test_a_pause_lasts_from_nothing_to_its_argument(monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[float] = []
    monkeypatch.setattr(time, "sleep", pauses.append)
    for _ in range(2_000):
        jittered_pause(0.5)
    assert len(pauses) == 2_000
    # By chance none of them is in a given tenth of the range once in 10 ** 91 runs.
    assert 0 <= min(pauses) < 0.05
    assert 0.45 < max(pauses) <= 0.5
    assert 0.2 < sum(pauses) / len(pauses) < 0.3
    jittered_pause(0)
    assert pauses[-1] == 0
