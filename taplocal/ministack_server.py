"""MiniStack as the local cloud runs it, by its path: with five things that only AWS does.

Lambda queues asynchronous events, gives them to a bounded number of functions, and does not count
being throttled as an attempt. MiniStack starts a process for every event at once, so that a burst
of uploads would start hundreds, and drops an event that finds no free one.

Lambda starts as many environments as there are calls at once. So does MiniStack, each a process: on
a few cores a burst of calls starts more of them than can do any work. Here a few start at a time, a
version has so many at most, and calls wait their turn.

A `*` in a policy stands for any characters. In MiniStack's it stands for none that end a line,
which S3 takes in keys.

An alias shares its traffic between versions by their weights. MiniStack keeps the weights.

Functions have metrics by alias and version, an API has metrics of its requests, and an alarm looks
at the metric with its dimensions, period by period. MiniStack's alarms look at the metric's name.
"""

from __future__ import annotations

import contextvars
import functools
import os
import queue
import random
import re
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from ministack.app import main
from ministack.core import iam_evaluator, lambda_runtime
from ministack.services import apigateway, cloudwatch, lambda_svc

WORKERS = 2 * (os.cpu_count() or 1)  # events at work at once; each is a process of 50 MiB
RETRY_SECONDS = (1, 2)  # AWS waits one minute, then two
THROTTLED_SECONDS = 0.5
STARTS = os.cpu_count() or 1  # environments that start at once
ENVIRONMENTS = 8 * STARTS  # of one version of a function; more would only share the same cores
LONGEST_WAIT = 20.0  # seconds; for a function that calls itself, and so waits for itself


@dataclass(order=True)
class Event:
    """An event that waits, and when it may be tried."""

    due: float
    attempt: int
    function: Mapping[str, Any] = field(compare=False)
    payload: Any = field(compare=False)
    context: contextvars.Context = field(compare=False)
    since: float = field(compare=False)


class EventQueue:
    """Events in the order in which they are due, worked off by a few threads."""

    def __init__(self) -> None:
        self._events: queue.PriorityQueue[Event] = queue.PriorityQueue()
        for _ in range(WORKERS):
            threading.Thread(target=self._work, daemon=True).start()

    def put(self, function: Mapping[str, Any], payload: Any) -> None:
        """Takes the place of MiniStack's invoke_async_with_retry."""
        now = time.monotonic()
        self._events.put(Event(now, 1, function, payload, contextvars.copy_context(), now))

    def _work(self) -> None:
        while True:
            event = self._events.get()
            wait = event.due - time.monotonic()
            if wait > 0:
                self._events.put(event)
                time.sleep(min(wait, 0.05))
            else:
                event.context.run(self._try, event)

    def _try(self, event: Event) -> None:
        config = event.function["config"]
        account, region = lambda_svc._account_region_from_function_config(config)
        lambda_svc._request_account_id.set(account)
        lambda_svc._request_region.set(region)
        result = lambda_svc._execute_function(event.function, event.payload)
        name = config["FunctionName"]
        if not result.get("error") or name not in lambda_svc._functions:
            return
        settings = lambda_svc._functions[name].get("event_invoke_config") or {}
        throttled = bool(result.get("throttle"))
        young = time.monotonic() - event.since < settings.get("MaximumEventAgeInSeconds", 21_600)
        if young and (throttled or event.attempt <= settings.get("MaximumRetryAttempts", 2)):
            self._again(event, throttled)
            return
        destination = settings.get("DestinationConfig", {}).get("OnFailure", {}).get("Destination")
        if destination:
            lambda_svc._route_async_failure(destination, name, event.payload, result)

    def _again(self, event: Event, throttled: bool) -> None:
        wait = THROTTLED_SECONDS if throttled else RETRY_SECONDS[event.attempt - 1]
        event.due = time.monotonic() + wait
        event.attempt += not throttled
        self._events.put(event)


def match_newlines_too() -> None:
    """Lets a * in a policy match every character."""
    original = iam_evaluator._fnmatch_compile

    @functools.cache
    def compiled(pattern: str, ignore_case: bool) -> re.Pattern[str]:
        found = original(pattern, ignore_case)
        return re.compile(found.pattern, found.flags | re.DOTALL)

    iam_evaluator._fnmatch_compile = compiled


def weights_of(alias: Mapping[str, Any]) -> Mapping[str, float]:
    """Version -> its share of the calls of an alias, for those that the alias does not name."""
    return (alias.get("RoutingConfig") or {}).get("AdditionalVersionWeights") or {}


def by_weight(alias: Mapping[str, Any]) -> str:
    """The version that takes the next call of an alias."""
    point = random.random()  # noqa: S311 - no secret
    for version, share in weights_of(alias).items():
        point -= share
        if point < 0:
            return str(version)
    return str(alias["FunctionVersion"])


def share_traffic() -> None:
    """Lets an alias choose between its versions at every call, whoever calls."""
    resolve, invoke = lambda_svc._effective_func_record_for_qualifier, lambda_svc._invoke

    def resolved(function: Any, qualifier: str | None) -> Any:
        alias = function and function.get("aliases", {}).get(qualifier)
        return resolve(function, by_weight(alias) if alias else qualifier)

    async def invoked(
        name: str, event: Any, headers: Any, path_qualifier: Any = None, query_params: Any = None
    ) -> Any:
        qualifier = lambda_svc._qualifier_from_path_or_query(path_qualifier, query_params)
        alias = name in lambda_svc._functions and lambda_svc._functions[name]["aliases"].get(
            qualifier
        )
        chosen = by_weight(alias) if alias else path_qualifier
        return await invoke(name, event, headers, chosen, query_params)

    lambda_svc._effective_func_record_for_qualifier = resolved
    lambda_svc._invoke = invoked


class Environments:
    """How many environments a function has, and how many start at once; calls wait in order."""

    def __init__(self) -> None:
        self._acquire, self._release = lambda_svc.acquire_worker, lambda_svc.release_worker
        self._spawn, self._starting = lambda_runtime.Worker._spawn, set[Any]()
        self._lock = threading.Lock()
        self._turns: dict[Any, threading.Condition] = {}
        self._local = threading.local()

    def install(self) -> None:
        """Puts itself between MiniStack's parts."""
        environments = self
        lambda_svc.acquire_worker = self.acquire
        lambda_svc.release_worker = self.release
        lambda_runtime.Worker._spawn = lambda worker: environments.spawn(worker)

    def acquire(self, name: str, config: Any, code: bytes, qualifier: str = "$LATEST") -> Any:
        """A free environment, or a new one where there may be another."""
        key, began = lambda_runtime._worker_key(name, config, qualifier), time.monotonic()
        with self._lock:
            turn = self._turns.setdefault(key, threading.Condition(self._lock))
            turn.wait_for(lambda: self._may_go_on(key), timeout=LONGEST_WAIT)
            worker, how = self._acquire(name, config, code, qualifier=qualifier)
            if how == "spawn":
                self._starting.add(worker)
        self._local.seconds = time.monotonic() - began
        return worker, how

    def _may_go_on(self, key: Any) -> bool:
        workers = lambda_runtime._workers.get(key, ())
        another = len(self._starting) < STARTS and len(workers) < ENVIRONMENTS
        return another or any(not each.in_use for each in list(workers))

    def release(self, worker: Any, *arguments: Any, **more: Any) -> None:
        """Gives an environment to the next call that waits."""
        self._release(worker, *arguments, **more)
        self._starting.discard(worker)  # one that could not even begin to start
        self._next()

    def spawn(self, worker: Any) -> None:
        """Starts an environment."""
        began = time.monotonic()
        try:
            self._spawn(worker)
        finally:
            self._local.seconds = getattr(self._local, "seconds", 0.0) + time.monotonic() - began
            self._starting.discard(worker)
            self._next()

    def _next(self) -> None:
        with self._lock:
            for turn in self._turns.values():
                turn.notify()

    def spent(self) -> float:
        """Seconds that the last call on this thread waited for turn and start; asked once."""
        seconds = getattr(self._local, "seconds", 0.0)
        self._local.seconds = 0.0
        return float(seconds)


def count(namespace: str, dimensions: Mapping[str, str], **values: float) -> None:
    """Adds to metrics; equal values of one second are one point, seen more often."""
    for metric, value in values.items():
        key = (namespace, metric, cloudwatch._dims_key(dict(dimensions)))
        points = cloudwatch._metric_bucket(key)
        last, now = points[-1] if points else {}, time.time()
        if last.get("Value") == value and now - last["Timestamp"] < 1:
            last["Count"] = last.get("Count", 1) + 1
        else:
            cloudwatch.record_metric(namespace, metric, value, "None", dict(dimensions))


def measure_functions(environments: Environments) -> None:
    """Counts calls by function, by alias, and by version of an alias; no start is in Duration."""
    execute = lambda_svc._execute_function

    def executed(function: Any, event: Any) -> Any:
        config = function.get("config") or function
        if lambda_svc._function_config_scope_mismatch(config):
            return execute(function, event)  # which calls this again, in the right scope
        began = time.monotonic()
        result = execute(function, event)
        passed = round((time.monotonic() - began - environments.spent()) * 1000)
        for dimensions in _places(config["FunctionName"], config.get("Version", "$LATEST")):
            if result.get("throttle"):
                count("AWS/Lambda", dimensions, Throttles=1)
            else:
                failed = bool(result.get("error"))
                count("AWS/Lambda", dimensions, Invocations=1, Errors=failed, Duration=passed)
        return result

    lambda_svc._execute_function = executed
    lambda_svc._emit_lambda_metrics = lambda *_arguments, **_values: None


def _places(name: str, version: str) -> list[dict[str, str]]:
    places = [{"FunctionName": name}]
    for alias in lambda_svc._functions.get(name, {}).get("aliases", {}).values():
        if version in (alias["FunctionVersion"], *weights_of(alias)):
            through = {**places[0], "Resource": f"{name}:{alias['Name']}"}
            places += [through, {**through, "ExecutedVersion": version}]
    return places


def measure_apis() -> None:
    """Counts the requests of HTTP APIs, with their latency."""
    handle: Callable[..., Any] = apigateway.handle_execute

    async def handled(api_id: str, stage: str, *request: Any, **more: Any) -> Any:
        started = time.monotonic()
        answer = await handle(api_id, stage, *request, **more)
        kinds = {f"{kind}xx": answer[0] // 100 == kind for kind in (4, 5)}
        passed = round((time.monotonic() - started) * 1000)
        count("AWS/ApiGateway", {"ApiId": api_id, "Stage": stage}, Count=1, Latency=passed, **kinds)
        return answer

    apigateway.handle_execute = handled


#: Operator -> whether a value is beyond a threshold.
BEYOND = {
    "GreaterThanThreshold": float.__gt__,
    "GreaterThanOrEqualToThreshold": float.__ge__,
    "LessThanThreshold": float.__lt__,
    "LessThanOrEqualToThreshold": float.__le__,
}


def breaching(alarm: Mapping[str, Any], points: list[Any], now: float) -> list[bool]:
    """Of each period with data, the newest first, whether it is beyond the threshold."""
    statistic = alarm.get("ExtendedStatistic") or alarm.get("Statistic", "Average")
    beyond = BEYOND[alarm["ComparisonOperator"]]
    found = []
    for period in range(alarm["EvaluationPeriods"]):
        end = now - period * alarm["Period"]
        inside = [each for each in points if end - alarm["Period"] < each["Timestamp"] <= end]
        if inside:
            value = cloudwatch._stat_value(cloudwatch._calc_stats(inside), statistic, inside)
            found.append(beyond(float(value), float(alarm["Threshold"])))
    return found


def evaluate(alarm: dict[str, Any]) -> None:
    """Takes the place of MiniStack's _evaluate_alarm.

    Without data an alarm calms down and does not begin. Of those on expressions or on bands, which
    need more than a threshold, none is evaluated.
    """
    if not alarm.get("MetricName") or alarm.get("ComparisonOperator") not in BEYOND:
        return
    dimensions = {each["Name"]: each["Value"] for each in alarm.get("Dimensions", ())}
    key = (alarm.get("Namespace"), alarm.get("MetricName"), cloudwatch._dims_key(dimensions))
    found = breaching(alarm, cloudwatch._metrics.get(key) or [], time.time())
    before = alarm["StateValue"]
    if not found and before != "ALARM":
        return
    needed = alarm.get("DatapointsToAlarm") or alarm["EvaluationPeriods"]
    state = "ALARM" if sum(found) >= needed else "OK"
    if state != before:
        reason = f"{sum(found)} of {len(found)} periods beyond {alarm['Threshold']:g}"
        alarm.update(StateValue=state, StateReason=reason, StateUpdatedTimestamp=int(time.time()))
        cloudwatch._record_history(alarm["AlarmName"], before, state, reason)
        cloudwatch._dispatch_alarm_actions(alarm, before, state, reason)
        cloudwatch._evaluate_parent_alarms(alarm)


def watch_alarms() -> None:
    """Lets alarms be evaluated as on AWS, whenever somebody looks at them or sends a metric."""
    describe = cloudwatch._describe_alarms

    def described(*arguments: Any, **more: Any) -> Any:
        cloudwatch._evaluate_all_alarms()
        return describe(*arguments, **more)

    cloudwatch._evaluate_alarm = evaluate
    cloudwatch._describe_alarms = described


if __name__ == "__main__":
    match_newlines_too()
    share_traffic()
    environments = Environments()
    environments.install()
    measure_functions(environments)
    measure_apis()
    watch_alarms()
    lambda_svc.invoke_async_with_retry = EventQueue().put
    main()
