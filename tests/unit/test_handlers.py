"""What all handlers use."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

import tap_stack
from http_connection import within
from tap_stack import RESERVE_SECONDS, jittered_pause, seconds_left, start_clock
from tests.fakes import FakeContext


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


def test_a_pause_ends_with_the_time_of_its_invocation(
    monkeypatch: pytest.MonkeyPatch, clock: dict[str, float]
) -> None:
    pauses: list[float] = []
    monkeypatch.setattr(time, "sleep", pauses.append)
    clock["end"] = time.monotonic()
    jittered_pause(60)
    assert pauses == [0]


def test_an_invocation_keeps_time_to_respond(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "monotonic", lambda: 100.0)
    start_clock(FakeContext(15))
    assert seconds_left() == 15 - RESERVE_SECONDS


@pytest.fixture
def released() -> Iterator[threading.Event]:
    """Who waits for it waits until the test is over."""
    event = threading.Event()
    yield event
    event.set()


def test_a_call_that_stands_still_is_left_behind(released: threading.Event) -> None:
    with pytest.raises(TimeoutError, match=r"wait takes longer than the 0\.0 s that were left"):
        within(0.01, released.wait, 60)
    with pytest.raises(TimeoutError):
        within(-1, released.wait, 60)
    assert not released.is_set()


def test_s3_that_stands_still_is_named(
    released: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    class S3:
        def head_object(self, **_: Any) -> None:
            released.wait(60)

    monkeypatch.setattr(tap_stack, "_clients", {"s3": S3()})
    monkeypatch.setattr(tap_stack, "_clock", {"end": time.monotonic() + 0.01})
    with pytest.raises(TimeoutError, match="head_object takes longer"):
        tap_stack.head_object({"Bucket": "files", "Key": "ann/a.txt"})


def test_a_call_in_time_returns_and_raises_as_without(released: threading.Event) -> None:
    assert within(60, divmod, 7, 2) == (3, 1)
    assert within(60, dict, call=1, seconds=2) == {"call": 1, "seconds": 2}
    with pytest.raises(ZeroDivisionError):
        within(60, divmod, 7, 0)
