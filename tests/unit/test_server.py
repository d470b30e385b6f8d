"""What the local cloud's emulator does beyond MiniStack: weights, metrics, alarms, environments."""

from __future__ import annotations

import asyncio
import io
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ministack.core import lambda_runtime
from ministack.services import cloudwatch, lambda_svc

from demo.web import wait_until
from taplocal.page import PORT, server
from taplocal.server import (
    alarms,
    bounds,
    events,
    expressions,
    gateway,
    metrics,
    releases,
    timing,
    traces,
    web,
    workers,
)
from taplocal.server import environments as limits
from tests.unit.test_state import room_for


def test_an_alias_shares_its_calls_by_weight() -> None:
    alias = {"FunctionVersion": "1", "RoutingConfig": {"AdditionalVersionWeights": {"2": 0.1}}}
    calls = Counter(releases.choose_version(alias) for _ in range(20_000))
    assert calls.keys() == {"1", "2"}
    assert 0.08 < calls["2"] / 20_000 < 0.12
    assert releases.choose_version({"FunctionVersion": "1"}) == "1"


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
        "Threshold": 0.0, "ComparisonOperator": "GreaterThanThreshold", "StateValue": "OK",
        "TreatMissingData": "notBreaching", **changes,
    }  # fmt: skip


def test_an_alarm_looks_at_its_own_dimensions(measured: None) -> None:
    mine, other = alarm(), alarm(Dimensions=[{"Name": "Version", "Value": "1"}])
    metrics.count("Test", {"Version": "2"}, Errors=1)
    alarms.evaluate(mine)
    alarms.evaluate(other)
    assert (mine["StateValue"], other["StateValue"]) == ("ALARM", "OK")


@pytest.mark.parametrize(
    ("treated", "states"),
    [
        ("notBreaching", "OK OK"),
        ("breaching", "ALARM ALARM"),
        ("missing", "INSUFFICIENT_DATA INSUFFICIENT_DATA"),
        ("ignore", "OK ALARM"),
    ],
)
def test_missing_data_count_as_the_alarm_says(treated: str, states: str, measured: None) -> None:
    both = [alarm(StateValue=state, TreatMissingData=treated) for state in ("OK", "ALARM")]
    for each in both:
        alarms.evaluate(each)
    assert [each["StateValue"] for each in both] == states.split()


def test_an_alarm_counts_the_periods_that_are_beyond(measured: None) -> None:
    for period, value in enumerate((5, 0, 5)):
        store("Test", "Errors", value, 60 * period)
    now = time.time()
    assert alarms.breaching(alarm(EvaluationPeriods=3), now) == [True, False, True]
    assert alarms.breaching(alarm(ExtendedStatistic="p95", Threshold=4.0), now) == [True]


def test_a_missing_period_does_not_count_if_there_are_enough_data(measured: None) -> None:
    """AWS: "the most recent real data points ... from further back than the evaluation periods"."""
    few = alarm(EvaluationPeriods=3, DatapointsToAlarm=3)
    for period in (0, 2):
        store("Test", "Errors", 5, 60 * period)
    assert alarms.breaching(few, time.time()) == [True, False, True]
    store("Test", "Errors", 5, 60 * 3)
    assert alarms.breaching(few, time.time()) == [True, True, True]


def store(namespace: str, name: str, value: float, seconds_ago: float) -> None:
    """A data point of a metric, as old as this."""
    cloudwatch.record_metric(namespace, name, value, "None", {"Version": "2"})
    key = (namespace, name, cloudwatch._dims_key({"Version": "2"}))
    cloudwatch._metric_bucket(key)[-1]["Timestamp"] = time.time() - seconds_ago


def test_an_alarm_of_dynamodb_keeps_its_state_without_data(measured: None) -> None:
    both = [alarm(Namespace="AWS/DynamoDB", StateValue=state) for state in ("OK", "ALARM")]
    for each in both:
        alarms.evaluate(each)
    assert [each["StateValue"] for each in both] == ["OK", "ALARM"]


def of_math(metrics: Any, **expressions: str) -> dict[str, Any]:
    """An alarm on metric math."""
    queries = [
        {"Id": x, "MetricStat": {"Metric": metric, "Period": 60, "Stat": "Sum"}}
        for x, metric in metrics.items()
    ]
    queries += [{"Id": x, "Expression": each} for x, each in expressions.items()]
    queries = [{**each, "ReturnData": each is queries[-1]} for each in queries]
    found = alarm(Metrics=queries)
    return {name: found[name] for name in found if name not in ("MetricName", "Namespace")}


def test_an_alarm_of_dynamodb_that_fills_its_gaps_ends(measured: None) -> None:
    version = [{"Name": "Version", "Value": "2"}]
    metric = {"Namespace": "Test", "MetricName": "Errors", "Dimensions": version}
    rule = of_math({"metric": metric}, filled="FILL(metric, 0)")
    store("Test", "Errors", 1, 0)
    alarms.evaluate(rule)
    assert rule["StateValue"] == "ALARM"
    cloudwatch._metrics.clear()
    alarms.evaluate(rule)
    assert rule["StateValue"] == "OK"


def test_a_suppressed_alarm_is_heard_a_while_after_its_suppressor(
    measured: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard: list[tuple[str, ...]] = []
    monkeypatch.setattr(cloudwatch, "_evaluate_all_alarms", lambda: None)
    monkeypatch.setattr(cloudwatch, "_dispatch_alarm_actions", lambda _, *x: heard.append(x))
    now = [0.0]
    monkeypatch.setattr(time, "time", lambda: now[0])
    alarms.suppress()
    page = {
        "AlarmName": "page", "ActionsSuppressor": "release", "StateValue": "ALARM",
        "ActionsSuppressorWaitPeriod": 60, "ActionsSuppressorExtensionPeriod": 180,
    }  # fmt: skip
    release = alarm(AlarmName="release", StateValue="ALARM")
    monkeypatch.setitem(cloudwatch._composite_alarms, "page", page)
    monkeypatch.setitem(cloudwatch._alarms, "release", release)

    def after(seconds: float) -> list[tuple[str, ...]]:
        now[0] += seconds
        cloudwatch._evaluate_all_alarms()
        return heard

    cloudwatch._dispatch_alarm_actions(page, "OK", "ALARM", "why")
    assert after(3_600) == []
    release["StateValue"] = "OK"
    assert after(179) == []
    assert after(1) == [("OK", "ALARM", "why")]
    heard.clear()
    cloudwatch._dispatch_alarm_actions(page, "OK", "ALARM", "why")
    assert after(59) == []  # the suppressor may come
    page["StateValue"] = "OK"
    assert after(1) == []  # it is over, and nobody has heard of it


@pytest.mark.parametrize(
    ("expression", "value"),
    [
        ("a + 2 * b", 8), ("(a + 2) * b", 12), ("a / b", 2 / 3), ("a / 0", None), ("a - none", None),
        ("FILL(none, 0) + a", 2), ("FILL(a, 0)", 2), ("IF(a >= 2, 100 * a / b, 0)", 200 / 3),
        ("IF(a > 2, 1, 0)", 0), ("IF(none > 2, 1, 0)", None), ("IF(a < b, none, 0)", None),
        ("IF(b <= 3, IF(a < 2, 1, 5), 0)", 5),
    ],
)  # fmt: skip
def test_metric_math_is_computed_as_cloudwatch_documents_it(
    expression: str, value: float | None
) -> None:
    assert expressions.value_of(expression, {"a": 2, "b": 3, "none": None}) == value


@pytest.mark.parametrize("expression", ["ABS(a)", "a +", "c", "a ** 2", "__import__('os')", "'a'"])
def test_other_metric_math_is_refused(expression: str) -> None:
    with pytest.raises(ValueError, match=r"does not understand|is no expression"):
        expressions.value_of(expression, {"a": 2})


def test_equal_values_of_a_second_are_one_point(measured: None) -> None:
    for number in range(1_000):
        metrics.count("Test", {"Version": "2"}, Errors=number % 3)
    (points,) = (points for key, points in cloudwatch._metrics.items() if key[0] == "Test")
    assert sum(each.get("Count", 1) for each in points) == 1_000
    assert len(points) < 30


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
    environments = limits.Environments()

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
    assert most[0] <= limits.CONCURRENT_STARTS
    assert len(pool) <= limits.MAX_ENVIRONMENTS


def test_a_log_line_in_the_embedded_metric_format_is_counted(measured: None) -> None:
    line = {
        "Environment": "dev", "FunctionVersion": "7", "Failed": 1,
        "_aws": {"Timestamp": 1, "CloudWatchMetrics": [{
            "Namespace": "Test", "Metrics": [{"Name": "Failed", "Unit": "Count"}],
            "Dimensions": [["Environment"], ["Environment", "FunctionVersion"]],
        }]},
    }  # fmt: skip
    metrics.count_line(json.dumps(line))
    metrics.count_line('no JSON: "_aws"')
    found = [key[2] for key in cloudwatch._metrics if key[:2] == ("Test", "Failed")]
    by_version = {"Environment": "dev", "FunctionVersion": "7"}
    assert found == [cloudwatch._dims_key(each) for each in ({"Environment": "dev"}, by_version)]


def test_a_percentile_rank_says_how_many_values_are_below(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cloudwatch, "_stat_value", cloudwatch._stat_value)
    metrics.answer_percentile_ranks()
    points = [{"Value": 40.0, "Count": 3}, {"Value": 2_000.0}, {"Value": 2_001.0}]
    stats = cloudwatch._calc_stats(points)
    assert cloudwatch._stat_value(stats, "PR(:2000)", points) == 80
    assert cloudwatch._stat_value(stats, "SampleCount", points) == 5


def test_late_metrics_are_not_seen_before(monkeypatch: pytest.MonkeyPatch, measured: None) -> None:
    monkeypatch.setattr(timing, "DELAY_SECONDS", 2)
    metrics.count("Test", {}, Late=1)
    assert not [key for key in cloudwatch._metrics if key[:2] == ("Test", "Late")]
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        if [key for key in cloudwatch._metrics if key[:2] == ("Test", "Late")]:
            return
        time.sleep(0.05)
    raise AssertionError("the metric has not arrived")


def test_a_subsegment_that_has_no_room_is_lost_and_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("AWS_XRAY_DAEMON_ADDRESS", "")
    traces.receive(tmp_path / "traces.jsonl")
    host, _, port = os.environ["AWS_XRAY_DAEMON_ADDRESS"].partition(":")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        with room_for(0):
            sender.sendto(b"{}\n{1}", (host, int(port)))
            assert wait_until(lambda: "a subsegment is lost" in caplog.text)
        sender.sendto(b"{}\n{2}", (host, int(port)))
        assert wait_until(lambda: (tmp_path / "traces.jsonl").read_text() == "{2}\n")


def test_the_supervisor_that_cannot_start_is_started_later(monkeypatch: pytest.MonkeyPatch) -> None:
    attempts = iter((OSError("No space left on device"), SystemExit("started")))

    def start() -> None:
        raise next(attempts)

    supervisor = web.Supervisor({})
    monkeypatch.setattr(supervisor, "start", start)
    monkeypatch.setattr(web, "networks", lambda: True)
    monkeypatch.setattr(web, "RETRY_SECONDS", 0.01)
    with pytest.raises(SystemExit, match="started"):
        supervisor.watch()


def test_an_event_whose_attempt_fails_in_the_emulator_comes_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    called = list[Any]()

    def execute(_function: Any, payload: Any) -> dict[str, Any]:
        called.append(payload)
        if called.count(payload) == 1:
            raise OSError("No space left on device")
        return {}

    monkeypatch.setattr(lambda_svc, "_execute_function", execute)
    monkeypatch.setattr(events, "THROTTLED_SECONDS", 0.01)
    queue = events.EventQueue()
    payloads = range(events.WORKERS + 1)  # one for each thread, and another one
    for each in payloads:
        arn = "arn:aws:lambda:eu-west-1:000000000000:function:f"
        queue.put({"config": {"FunctionName": "f", "FunctionArn": arn}}, each)
    assert wait_until(lambda: not queue._open)
    assert Counter(called) == dict.fromkeys(payloads, 2)


def test_all_is_bounded_after_a_failure_that_the_log_has_no_room_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    swept, forever = list[bool](), threading.Event()

    class Full(io.StringIO):
        def write(self, _: str) -> int:
            raise OSError("No space left on device")

    def sweep() -> None:
        swept.append(True)
        if len(swept) == 1:
            raise ValueError
        forever.wait()

    monkeypatch.setattr(bounds, "sweep", sweep)
    monkeypatch.setattr(bounds, "SWEEP_SECONDS", 0.01)
    monkeypatch.setattr(sys, "stderr", Full())
    bounds.install()
    assert wait_until(lambda: len(swept) == 2)


def test_the_page_keeps_its_port_and_has_another_after_one_that_is_none(tmp_path: Path) -> None:
    with server.listening(tmp_path) as first:
        port = first.getsockname()[1]
    with server.listening(tmp_path) as again:
        assert again.getsockname()[1] == port
    with room_for(0), pytest.raises(OSError):
        server.listening(tmp_path)
    assert (tmp_path / PORT).read_text() == str(port)
    for text in ("", "45a"):
        (tmp_path / PORT).write_text(text)
        with server.listening(tmp_path) as found:
            assert (tmp_path / PORT).read_text() == str(found.getsockname()[1])


def test_two_pages_that_start_at_once_have_a_port_each(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "other").mkdir()
    with server.listening(tmp_path) as some:
        monkeypatch.setattr(server, "PREFERRED_PORT", some.getsockname()[1])
    (tmp_path / PORT).unlink()
    with server.listening(tmp_path) as one, server.listening(tmp_path / "other") as other:
        assert one.getsockname()[1] == server.PREFERRED_PORT != other.getsockname()[1]


def test_functions_wait_for_a_debugger_as_long_as_dev_runs(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """One that was killed has left the file: requests have their time again."""
    monkeypatch.chdir(tmp_path)
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    found = gateway.Gateway()

    async def slow(_: Any) -> tuple[int, dict[str, str], bytes]:
        await asyncio.sleep(0.1)
        return 200, {}, b""

    monkeypatch.setattr(found, "_invoke", slow)

    def status() -> int:
        return asyncio.run(found.invoke({"timeoutInMillis": 10}))[0]  # type: ignore[no-any-return]

    assert (workers.debugged(), status()) == ({}, 503)
    told = {"dev": os.getpid(), "ports": {"f": 5678}, "files": []}
    workers.DEBUG.write_text(json.dumps(told))
    assert (workers.debugged(), status()) == (told, 200)
    workers.DEBUG.write_text(json.dumps({**told, "dev": ended.pid}))
    assert (workers.debugged(), status()) == ({}, 503)


def test_why_a_function_did_not_answer_is_in_the_access_log_beside_the_rest() -> None:
    call = gateway.Call("GET", "/", {}, None, made={"integrationLatency": 7})
    token = gateway.current.set(call)
    try:
        status, _, body = gateway.integration_failure(500, "Internal Server Error", "no permission")
    finally:
        gateway.current.reset(token)
    assert (status, body) == (500, b'{"message": "Internal Server Error"}')
    shown = {name: call.made[name] for name in ("integrationLatency", "integrationErrorMessage")}
    assert shown == {"integrationLatency": 7, "integrationErrorMessage": "no permission"}
    assert call.made["error.message"] == "Internal Server Error"
