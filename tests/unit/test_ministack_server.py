"""What the local cloud's emulator does beyond MiniStack: weights, metrics, alarms, environments."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
from ministack.core import lambda_runtime
from ministack.services import cloudwatch

from taplocal import ministack_server as server


def test_an_alias_shares_its_calls_by_weight() -> None:
    alias = {"FunctionVersion": "1", "RoutingConfig": {"AdditionalVersionWeights": {"2": 0.1}}}
    calls = Counter(server.choose_version(alias) for _ in range(20_000))
    assert calls.keys() == {"1", "2"}
    assert 0.08 < calls["2"] / 20_000 < 0.12
    assert server.choose_version({"FunctionVersion": "1"}) == "1"


@pytest.fixture
def measured() -> Iterator[None]:
    """Metrics of this test alone."""
    yield
    for key in [key for key in cloudwatch._metrics if key[0] == "Test"]:
        del cloudwatch._metrics[key]


def alarm(**changes: Any) -> dict[str, Any]:
    return {
        "AlarmName": "a", "Namespace": "Test", "MetricName": "Errors", "Statistic": "Sum",
        "Dimensions": [{"Name": "Version", "Value": "2"}], "Period": 60, "EvaluationPeriods": 1,
        "Threshold": 0.0, "ComparisonOperator": "GreaterThanThreshold", "StateValue": "OK", **changes,
    }  # fmt: skip


def test_an_alarm_looks_at_its_own_dimensions(measured: None) -> None:
    mine, other = alarm(), alarm(Dimensions=[{"Name": "Version", "Value": "1"}])
    server.count("Test", {"Version": "2"}, Errors=1)
    server.evaluate(mine)
    server.evaluate(other)
    assert (mine["StateValue"], other["StateValue"]) == ("ALARM", "OK")


def test_missing_data_is_treated_as_not_breaching(measured: None) -> None:
    firing, new = alarm(StateValue="ALARM"), alarm(StateValue="INSUFFICIENT_DATA")
    server.evaluate(firing)
    server.evaluate(new)
    assert (firing["StateValue"], new["StateValue"]) == ("OK", "INSUFFICIENT_DATA")


def test_an_alarm_counts_the_periods_that_are_beyond(measured: None) -> None:
    points = [
        {"Timestamp": 1_000.0 - 60 * period, "Value": value, "Dimensions": {}}
        for period, value in enumerate((5, 0, 5))
    ]
    rule = alarm(EvaluationPeriods=3)
    assert server.breaching(rule, points, 1_000.0) == [True, False, True]
    slow = alarm(ExtendedStatistic="p95", Threshold=4.0)
    assert server.breaching(slow, points, 1_000.0) == [True]


def test_equal_values_of_a_second_are_one_point(measured: None) -> None:
    for _ in range(1_000):
        server.count("Test", {"Version": "2"}, Errors=0)
    (points,) = (points for key, points in cloudwatch._metrics.items() if key[0] == "Test")
    assert sum(each.get("Count", 1) for each in points) == 1_000
    assert len(points) < 10


class Worker:
    """An environment that does nothing."""

    in_use = False


def test_calls_wait_their_turn_instead_of_starting_an_environment_each(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pool: list[Any] = []
    most = [0]
    monkeypatch.setattr(lambda_runtime, "_worker_key", lambda *_: "f")
    monkeypatch.setattr(lambda_runtime, "_workers", {"f": pool})
    environments = server.Environments()

    def acquire(*_: Any, **__: Any) -> tuple[Any, str]:
        free = next((each for each in pool if not each.in_use), None)
        worker = free or Worker()
        worker.in_use = True
        if not free:
            pool.append(worker)
        return worker, "reused" if free else "spawn"

    def spawn(worker: Any) -> None:
        most[0] = max(most[0], len(environments._starting))
        time.sleep(0.02)

    environments._acquire, environments._spawn = acquire, spawn
    environments._release = lambda worker: setattr(worker, "in_use", False)

    def call() -> None:
        worker, how = environments.acquire("f", {}, b"")
        if how == "spawn":
            environments.spawn(worker)
        time.sleep(0.001)
        environments.release(worker)

    threads = [threading.Thread(target=call) for _ in range(200)]
    for each in threads:
        each.start()
    for each in threads:
        each.join(timeout=30)
    assert not any(each.is_alive() for each in threads)
    assert most[0] <= server.CONCURRENT_STARTS
    assert len(pool) <= server.MAX_ENVIRONMENTS
