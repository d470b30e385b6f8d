"""MiniStack as the local cloud runs it, with eight additions that make it behave as AWS does.

Lambda queues asynchronous events, invokes functions with limited concurrency, and does not count a
throttled invocation as an attempt. MiniStack starts a process for each event at once, so that a
burst of uploads would start hundreds, and drops an event that finds no free process.

Lambda starts an execution environment for each concurrent invocation. So does MiniStack, each a
process: on a few cores a burst starts more of them than can run. With this module a few start at a
time, a version has a maximum, and invocations wait in a queue.

A `*` in a policy matches any character. In MiniStack it matches no newline, which S3 allows in
keys.

An alias routes its traffic to versions by weight. MiniStack only stores the weights.

An alias with provisioned concurrency goes over to another version once that is initialized: until
then Lambda gives the old one a weight of 1.0, and refuses to change the concurrency. The status is
FAILED if an environment with AWS_LAMBDA_INITIALIZATION_TYPE=provisioned-concurrency does not start.

Functions have metrics by alias and version and those of their log lines (the embedded metric
format), an API has metrics of its requests, and an alarm evaluates the metric with its dimensions,
period by period. MiniStack's alarms ignore dimensions.

A schedule may call UpdateAlias, as the guard of a release does; its time comes 100 times faster,
and 10 times with TAPLOCAL_METRICS_DELAY.

With TAPLOCAL_METRICS_DELAY (seconds) all this has AWS's timing, 100 times faster: metrics arrive so
late, alarms are evaluated once a minute, and a shift of provisioned concurrency takes a minute.

X-Ray's daemon takes what functions tell of their calls. MiniStack makes traces, and has no daemon.

`taplocal/guard.py` lets in only what its owner signs and what the stack serves.

`taplocal/capacity.py` measures and bounds what DynamoDB's tables consume.
"""

from __future__ import annotations

import contextvars
import copy
import functools
import itertools
import json
import os
import queue
import random
import re
import socket
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ministack.app import main
from ministack.core import iam_evaluator, lambda_runtime
from ministack.services import apigateway, cloudwatch, eventbridge, lambda_svc, scheduler, sqs

WORKERS = 2 * (
    os.cpu_count() or 1
)  # concurrent asynchronous invocations; each is a process of 50 MiB
RETRY_SECONDS = (1, 2)  # AWS: one minute, then two
THROTTLED_SECONDS = 0.5
CONCURRENT_STARTS = os.cpu_count() or 1
MAX_ENVIRONMENTS = 8 * CONCURRENT_STARTS  # of a version; more would share the same cores
MAX_WAIT_SECONDS = 20.0  # for a function that invokes itself, and so waits for itself
TIME_SCALE = 100  # times faster than AWS
METRICS_DELAY = os.environ.get("TAPLOCAL_METRICS_DELAY", "")
DELAY_SECONDS = float(METRICS_DELAY or 0) / TIME_SCALE  # of metrics
MINUTE_SECONDS = 60 / TIME_SCALE if METRICS_DELAY else 60
EVALUATION_SECONDS = MINUTE_SECONDS if METRICS_DELAY else 0  # between two looks at the alarms
WARM_SECONDS = 60 / TIME_SCALE if METRICS_DELAY else 0.2  # AWS: a minute or two
#: A look at a version takes seconds on a busy machine: the guard must not come between two of them.
GUARD_SCALE = TIME_SCALE / 10 if METRICS_DELAY else TIME_SCALE
UPDATE_ALIAS = "arn:aws:scheduler:::aws-sdk:lambda:updateAlias"
#: The alias or version by which the function of this request is invoked.
qualifier_of_call: contextvars.ContextVar[str] = contextvars.ContextVar("qualifier", default="")


@dataclass(order=True)
class Event:
    """A queued event, and when it is due."""

    due: float
    attempt: int
    function: Mapping[str, Any] = field(compare=False)
    payload: Any = field(compare=False)
    context: contextvars.Context = field(compare=False)
    since: float = field(compare=False)


class EventQueue:
    """Asynchronous events by due time, processed by a few threads."""

    def __init__(self) -> None:
        self._events: queue.PriorityQueue[Event] = queue.PriorityQueue()
        self._open: dict[int, Event] = {}  # until it is processed
        for _ in range(WORKERS):
            threading.Thread(target=self._work, daemon=True).start()

    def put(self, function: Mapping[str, Any], payload: Any) -> None:
        """Replaces MiniStack's invoke_async_with_retry."""
        now = time.monotonic()
        event = Event(now, 1, function, payload, contextvars.copy_context(), now)
        self._open[id(event)] = event
        self._events.put(event)

    def waiting(self) -> list[dict[str, Any]]:
        """The events that are not processed yet, as JSON: a snapshot has them."""
        return [
            {
                "function": each.function["config"]["FunctionName"],
                "version": each.function["config"].get("Version", "$LATEST"),
                "payload": each.payload,
            }
            for each in list(self._open.values())
        ]

    def restore(self, events: list[dict[str, Any]]) -> None:
        """Takes the events of a snapshot again; Lambda too delivers one twice rather than never."""
        for each in events:
            if function := lambda_svc._functions.get(each["function"]):
                versions = function.get("versions", {})
                self.put(versions.get(each["version"], function), each["payload"])
        for function in lambda_svc._functions.values():  # a shift that the snapshot was taken in
            for alias, warm in function.get("provisioned_concurrency", {}).items():
                if warm.get("Status") == "IN_PROGRESS":
                    function["aliases"][alias].pop("RoutingConfig", None)
                    warm["Status"] = "READY"

    def _work(self) -> None:
        while True:
            event = self._events.get()
            wait = event.due - time.monotonic()
            if wait > 0:
                self._events.put(event)
                time.sleep(min(wait, 0.05))
            else:
                if not event.context.run(self._attempt, event):
                    del self._open[id(event)]

    def _attempt(self, event: Event) -> bool:
        """Whether the event comes again."""
        config = event.function["config"]
        account, region = lambda_svc._account_region_from_function_config(config)
        lambda_svc._request_account_id.set(account)
        lambda_svc._request_region.set(region)
        name = config["FunctionName"]
        age = round((time.monotonic() - event.since) * 1000)
        count("AWS/Lambda", {"FunctionName": name}, AsyncEventAge=age)
        result = lambda_svc._execute_function(event.function, event.payload)
        if not result.get("error") or name not in lambda_svc._functions:
            return False
        settings = lambda_svc._functions[name].get("event_invoke_config") or {}
        throttled = bool(result.get("throttle"))
        not_expired = time.monotonic() - event.since < settings.get(
            "MaximumEventAgeInSeconds", 21_600
        )
        if not_expired and (throttled or event.attempt <= settings.get("MaximumRetryAttempts", 2)):
            self._retry(event, throttled)
            return True
        count("AWS/Lambda", {"FunctionName": name}, AsyncEventsDropped=1)
        destination = settings.get("DestinationConfig", {}).get("OnFailure", {}).get("Destination")
        if destination:
            lambda_svc._route_async_failure(destination, name, event.payload, result)
        return False

    def _retry(self, event: Event, throttled: bool) -> None:
        wait = THROTTLED_SECONDS if throttled else RETRY_SECONDS[event.attempt - 1]
        event.due = time.monotonic() + wait
        event.attempt += not throttled
        self._events.put(event)


def match_newlines() -> None:
    """Makes a * in a policy match newlines too."""
    original = iam_evaluator._fnmatch_compile

    @functools.cache
    def compiled(pattern: str, ignore_case: bool) -> re.Pattern[str]:
        found = original(pattern, ignore_case)
        return re.compile(found.pattern, found.flags | re.DOTALL)

    iam_evaluator._fnmatch_compile = compiled


def weights_of(alias: Mapping[str, Any]) -> Mapping[str, float]:
    """Version -> its weight, for the additional versions of an alias."""
    return (alias.get("RoutingConfig") or {}).get("AdditionalVersionWeights") or {}


def choose_version(alias: Mapping[str, Any]) -> str:
    """The version for the next invocation of an alias, by weight."""
    point = random.random()  # noqa: S311 - not security-relevant
    for version, weight in weights_of(alias).items():
        point -= weight
        if point < 0:
            return str(version)
    return str(alias["FunctionVersion"])


def route_by_weight() -> None:
    """Makes each invocation of an alias choose a version."""
    resolve, invoke = lambda_svc._effective_func_record_for_qualifier, lambda_svc._invoke

    def resolved(function: Any, qualifier: str | None) -> Any:
        qualifier_of_call.set(qualifier or "")
        alias = function and function.get("aliases", {}).get(qualifier)
        return resolve(function, choose_version(alias) if alias else qualifier)

    async def invoked(
        name: str, event: Any, headers: Any, path_qualifier: Any = None, query_params: Any = None
    ) -> Any:
        qualifier = lambda_svc._qualifier_from_path_or_query(path_qualifier, query_params)
        qualifier_of_call.set(qualifier or "")
        alias = name in lambda_svc._functions and lambda_svc._functions[name]["aliases"].get(
            qualifier
        )
        chosen = choose_version(alias) if alias else path_qualifier
        return await invoke(name, event, headers, chosen, query_params)

    lambda_svc._effective_func_record_for_qualifier = resolved
    lambda_svc._invoke = invoked


def shift_warm_aliases() -> None:
    """Makes an alias with provisioned concurrency go over to another version in its own time."""
    update, provision = lambda_svc._update_alias, lambda_svc._put_provisioned_concurrency

    def updated(name: str, alias_name: str, data: dict[str, Any]) -> Any:
        alias, warm = _warm_alias(name, alias_name)
        version = data.get("FunctionVersion")
        if not (alias and warm) or version in (None, alias["FunctionVersion"]):
            return update(name, alias_name, data)
        if weights_of({**alias, **data}):
            return _refused("Invalid alias configuration for Provisioned Concurrency")
        serving = _serving(alias)
        response = update(name, alias_name, data)
        if response[0] == 200 and serving != version:
            shift = alias["RoutingConfig"] = {"AdditionalVersionWeights": {serving: 1.0}}
            warm["Status"] = "IN_PROGRESS"
            record = lambda_svc._functions[name]["versions"][version]
            context = contextvars.copy_context()
            end = (_end_shift, alias, shift, warm, record)
            threading.Timer(WARM_SECONDS, context.run, end).start()
        elif response[0] == 200:
            warm["Status"] = "READY"  # back to the version that is warm
        return response

    def provisioned(name: str, qualifier: str, data: dict[str, Any]) -> Any:
        if weights_of(_warm_alias(name, qualifier)[0]):
            return _refused("Alias with weights can not be used with Provisioned Concurrency")
        return provision(name, qualifier, data)

    lambda_svc._update_alias, lambda_svc._put_provisioned_concurrency = updated, provisioned


def _warm_alias(name: str, alias_name: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """An alias and its provisioned concurrency, empty where there is none."""
    function = lambda_svc._functions.get(name) or {}
    parts = (function.get(key, {}) for key in ("aliases", "provisioned_concurrency"))
    alias, warm = (each.get(alias_name, {}) for each in parts)
    return alias, warm


def _refused(message: str) -> Any:
    return lambda_svc.error_response_json("InvalidParameterValueException", message, 400)


def _end_shift(
    alias: dict[str, Any], shift: dict[str, Any], warm: dict[str, Any], record: dict[str, Any]
) -> None:
    initialized = _initializes(record)
    if alias.get("RoutingConfig") is shift and initialized:
        del alias["RoutingConfig"]
        warm["Status"] = "READY"
    elif alias.get("RoutingConfig") is shift:  # and the old version keeps the traffic
        warm |= {"Status": "FAILED", "StatusReason": "FUNCTION_ERROR_INIT_FAILURE"}


def _initializes(record: dict[str, Any]) -> bool:
    """Whether an environment of a version starts as those of provisioned concurrency do."""
    config = copy.deepcopy(record["config"])
    variables = config.setdefault("Environment", {}).setdefault("Variables", {})
    variables["AWS_LAMBDA_INITIALIZATION_TYPE"] = "provisioned-concurrency"
    worker = lambda_runtime.Worker(config["FunctionName"], config, record["code_zip"])
    try:
        worker._spawn()
    except RuntimeError:
        return False
    finally:
        worker.kill()
    return True


def _serving(alias: Mapping[str, Any]) -> str:
    """The version that has the traffic: not the alias's own while Lambda itself shifts it."""
    shifted = (version for version, weight in weights_of(alias).items() if weight == 1)
    return next(shifted, str(alias["FunctionVersion"]))


class Environments:
    """Limits the environments of a version and their concurrent starts; invocations wait."""

    def __init__(self) -> None:
        self._acquire, self._release = lambda_svc.acquire_worker, lambda_svc.release_worker
        self._spawn, self._starting = lambda_runtime.Worker._spawn, set[Any]()
        self._lock = threading.Lock()
        self._conditions: dict[Any, threading.Condition] = {}
        self._local = threading.local()

    def install(self) -> None:
        """Replaces MiniStack's functions."""
        environments = self
        lambda_svc.acquire_worker = self.acquire
        lambda_svc.release_worker = self.release
        lambda_runtime.Worker._spawn = lambda worker: environments.spawn(worker)

    def acquire(self, name: str, config: Any, code: bytes, qualifier: str = "$LATEST") -> Any:
        """Waits for a free environment, or starts a new one within the limits."""
        key, began = lambda_runtime._worker_key(name, config, qualifier), time.monotonic()
        with self._lock:
            condition = self._conditions.setdefault(key, threading.Condition(self._lock))
            condition.wait_for(lambda: self._available(key), timeout=MAX_WAIT_SECONDS)
            worker, how = self._acquire(name, config, code, qualifier=qualifier)
            if how == "spawn":
                self._starting.add(worker)
        self._local.seconds = time.monotonic() - began
        return worker, how

    def _available(self, key: Any) -> bool:
        workers = lambda_runtime._workers.get(key, ())
        another = len(self._starting) < CONCURRENT_STARTS and len(workers) < MAX_ENVIRONMENTS
        return another or any(not each.in_use for each in list(workers))

    def release(self, worker: Any, *arguments: Any, **more: Any) -> None:
        """Frees an environment for the next waiting invocation."""
        self._release(worker, *arguments, **more)
        self._starting.discard(worker)  # one whose start failed at once
        self._notify()

    def spawn(self, worker: Any) -> None:
        """Starts an environment and records the time that it took."""
        began = time.monotonic()
        try:
            self._spawn(worker)
        finally:
            self._local.seconds = getattr(self._local, "seconds", 0.0) + time.monotonic() - began
            self._starting.discard(worker)
            self._notify()

    def _notify(self) -> None:
        with self._lock:
            for condition in self._conditions.values():
                condition.notify()

    def take_wait_seconds(self) -> float:
        """Seconds that the last invocation on this thread waited for an environment; resets."""
        seconds = getattr(self._local, "seconds", 0.0)
        self._local.seconds = 0.0
        return float(seconds)


def count(namespace: str, dimensions: Mapping[str, str], **values: float) -> None:
    """Adds values to metrics when they are due."""
    if not DELAY_SECONDS:
        record(namespace, dimensions, values)
        return
    context = contextvars.copy_context()
    threading.Timer(DELAY_SECONDS, context.run, (record, namespace, dimensions, values)).start()


def record(namespace: str, dimensions: Mapping[str, str], values: Mapping[str, float]) -> None:
    """Adds values to metrics; equal values within a second are one data point with a count."""
    since = time.time() - 1
    for metric, value in values.items():
        key = (namespace, metric, cloudwatch._dims_key(dict(dimensions)))
        points = cloudwatch._metric_bucket(key)
        recent = itertools.takewhile(lambda each: each["Timestamp"] > since, reversed(points))
        same = next((each for each in recent if each["Value"] == value), None)
        if same:
            same["Count"] = same.get("Count", 1) + 1
        else:
            cloudwatch.record_metric(namespace, metric, value, "None", dict(dimensions))


def measure_functions(environments: Environments) -> None:
    """Records the metrics of functions, by alias and version; Duration excludes the cold start."""
    execute = lambda_svc._execute_function

    def executed(function: Any, event: Any) -> Any:
        config = function.get("config") or function
        if lambda_svc._function_config_scope_mismatch(config):
            return execute(function, event)  # calls this function again, in the right scope
        began = time.monotonic()
        result = execute(function, event)
        duration = round((time.monotonic() - began - environments.take_wait_seconds()) * 1000)
        for dimensions in _dimension_sets(config["FunctionName"], config.get("Version", "$LATEST")):
            if result.get("throttle"):
                count("AWS/Lambda", dimensions, Throttles=1)
            else:
                failed = bool(result.get("error"))
                count("AWS/Lambda", dimensions, Invocations=1, Errors=failed, Duration=duration)
        return result

    lambda_svc._execute_function = executed
    lambda_svc._emit_lambda_metrics = lambda *_arguments, **_values: None


def _dimension_sets(name: str, version: str) -> list[dict[str, str]]:
    sets = [{"FunctionName": name}]
    if qualifier := qualifier_of_call.get():
        by_resource = {**sets[0], "Resource": f"{name}:{qualifier}"}
        sets += [by_resource, {**by_resource, "ExecutedVersion": version}]
    return sets


def measure_logs() -> None:
    """Records the metrics in the log lines of functions."""
    emit = lambda_svc._emit_lambda_logs

    def emitted(function: Any, request_id: str, text: str, *arguments: Any, **more: Any) -> None:
        emit(function, request_id, text, *arguments, **more)
        for line in (text or "").splitlines():
            if '"_aws"' in line:
                count_line(line)

    lambda_svc._emit_lambda_logs = emitted


def count_line(line: str) -> None:
    """Counts the metrics of a line in the embedded metric format; other lines have none."""
    try:
        fields = json.loads(line)
    except ValueError:
        return
    for each in fields["_aws"]["CloudWatchMetrics"]:
        values = {metric["Name"]: fields[metric["Name"]] for metric in each["Metrics"]}
        for names in each["Dimensions"]:
            count(each["Namespace"], {name: str(fields[name]) for name in names}, **values)


def answer_percentile_ranks() -> None:
    """Makes a metric have the statistic PR(:x): how many percent of the values are x or less."""
    statistic = cloudwatch._stat_value

    def value(stats: Any, name: str, points: Any = None) -> Any:
        rank = re.fullmatch(r"PR\(:([\d.]+)\)", name)
        if not rank:
            return statistic(stats, name, points)
        samples = cloudwatch._percentile_samples(points or [])
        below = sum(weight for sample, weight in samples if sample <= float(rank[1]))
        return 100 * below / sum(weight for _, weight in samples)

    cloudwatch._stat_value = value


def run_guards() -> None:
    """Makes schedules call UpdateAlias, at a time that comes faster."""
    invoke = eventbridge._invoke_target
    create, update = scheduler._create_schedule, scheduler._update_schedule

    def invoked(target: Any, event: Any, rule: Any, view: Any = None) -> None:
        if target.get("Arn") != UPDATE_ALIAS:
            invoke(target, event, rule, view)
            return
        data = json.loads(target["Input"])
        lambda_svc._update_alias(data["FunctionName"].split(":")[-1], data.pop("Name"), data)

    def sooner(body: dict[str, Any]) -> dict[str, Any]:
        if body["Target"]["Arn"] != UPDATE_ALIAS:
            return body
        now, at = time.time(), scheduler._at_time_epoch(body["ScheduleExpression"])
        due = datetime.fromtimestamp(now + (at - now) / GUARD_SCALE, UTC)
        return {**body, "ScheduleExpression": f"at({due:%Y-%m-%dT%H:%M:%S})"}

    eventbridge._invoke_target = invoked
    scheduler._create_schedule = lambda name, body: create(name, sooner(body))
    scheduler._update_schedule = lambda name, body: update(name, sooner(body))
    scheduler._SCHEDULE_TICK_INTERVAL = 1


def measure_queues() -> None:
    """Records how many messages the queues of this account have."""
    for found in list(sqs._queues.values()):
        sqs._refresh_counts(found)
        visible = int(found["attributes"]["ApproximateNumberOfMessages"])
        named = {"QueueName": found["name"]}
        record("AWS/SQS", named, {"ApproximateNumberOfMessagesVisible": visible})


def measure_apis() -> None:
    """Records the metrics of HTTP APIs."""
    handle: Callable[..., Any] = apigateway.handle_execute

    async def handled(api_id: str, stage: str, *request: Any, **more: Any) -> Any:
        started = time.monotonic()
        response = await handle(api_id, stage, *request, **more)
        kinds = {f"{kind}xx": response[0] // 100 == kind for kind in (4, 5)}
        duration = round((time.monotonic() - started) * 1000)
        count(
            "AWS/ApiGateway", {"ApiId": api_id, "Stage": stage}, Count=1, Latency=duration, **kinds
        )
        return response

    apigateway.handle_execute = handled


#: Comparison operator of an alarm -> whether a value breaches a threshold.
COMPARISONS = {
    "GreaterThanThreshold": float.__gt__,
    "GreaterThanOrEqualToThreshold": float.__ge__,
    "LessThanThreshold": float.__lt__,
    "LessThanOrEqualToThreshold": float.__le__,
}


def breaching(alarm: Mapping[str, Any], points: list[Any], now: float) -> list[bool]:
    """For each period with data, newest first, whether it breaches the threshold."""
    statistic = alarm.get("ExtendedStatistic") or alarm.get("Statistic", "Average")
    breaches = COMPARISONS[alarm["ComparisonOperator"]]
    found = []
    for period in range(alarm["EvaluationPeriods"]):
        seconds = alarm["Period"] / 60 * MINUTE_SECONDS
        end = now - period * seconds
        inside = [each for each in points if end - seconds < each["Timestamp"] <= end]
        if inside:
            value = cloudwatch._stat_value(cloudwatch._calc_stats(inside), statistic, inside)
            found.append(breaches(float(value), float(alarm["Threshold"])))
    return found


def evaluate(alarm: dict[str, Any]) -> None:
    """Replaces MiniStack's _evaluate_alarm.

    Missing data is treated as notBreaching. Alarms on metric math or on anomaly detection bands are
    not evaluated.
    """
    if not alarm.get("MetricName") or alarm.get("ComparisonOperator") not in COMPARISONS:
        return
    dimensions = {each["Name"]: each["Value"] for each in alarm.get("Dimensions", ())}
    key = (alarm.get("Namespace"), alarm.get("MetricName"), cloudwatch._dims_key(dimensions))
    found = breaching(alarm, cloudwatch._metrics.get(key) or [], time.time())
    before = alarm["StateValue"]
    if not found and before == "OK":
        return
    needed = alarm.get("DatapointsToAlarm") or alarm["EvaluationPeriods"]
    state = "ALARM" if sum(found) >= needed else "OK"
    if state != before:
        reason = f"{sum(found)} of {len(found)} periods breach {alarm['Threshold']:g}"
        alarm.update(StateValue=state, StateReason=reason, StateUpdatedTimestamp=int(time.time()))
        cloudwatch._record_history(alarm["AlarmName"], before, state, reason)
        cloudwatch._dispatch_alarm_actions(alarm, before, state, reason)
        cloudwatch._evaluate_parent_alarms(alarm)


def evaluate_alarms() -> None:
    """Makes alarms evaluate as on AWS, at each DescribeAlarms and PutMetricData."""
    describe, evaluated_at = cloudwatch._describe_alarms, 0.0

    def described(*arguments: Any, **more: Any) -> Any:
        nonlocal evaluated_at
        if time.monotonic() - evaluated_at >= EVALUATION_SECONDS:
            measure_queues()
            cloudwatch._evaluate_all_alarms()
            evaluated_at = time.monotonic()
        return describe(*arguments, **more)

    cloudwatch._evaluate_alarm = evaluate
    cloudwatch._describe_alarms = described


def receive_traces(path: Path) -> None:
    """Is X-Ray's daemon for the functions: writes each subsegment as a line of a file."""
    daemon = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    daemon.bind(("127.0.0.1", 0))
    os.environ["AWS_XRAY_DAEMON_ADDRESS"] = f"127.0.0.1:{daemon.getsockname()[1]}"

    def receive() -> None:
        with path.open("wb", buffering=0) as lines:
            while True:
                lines.write(daemon.recv(65_536).partition(b"\n")[2] + b"\n")

    threading.Thread(target=receive, daemon=True).start()


if __name__ == "__main__":
    os.umask(0o077)  # tokens' signing keys, functions' code and their files
    sys.path.insert(0, str(Path(__file__).parents[1]))  # a script is in no package
    from taplocal import capacity, guard, keeper

    receive_traces(Path("traces.jsonl"))
    match_newlines()
    route_by_weight()
    shift_warm_aliases()
    environments = Environments()
    environments.install()
    measure_functions(environments)
    measure_logs()
    answer_percentile_ranks()
    run_guards()
    measure_apis()
    evaluate_alarms()
    capacity.install(count)
    events = EventQueue()
    lambda_svc.invoke_async_with_retry = events.put
    keeper.Keeper(Path(), events.waiting).install(events.restore)
    guard.install(**json.load(sys.stdin))
    main()
