"""What a release of a version needs: weights, provisioned concurrency, the guard's schedule.

An alias routes its traffic to versions by weight. MiniStack only stores the weights.

An alias with provisioned concurrency goes over to another version once that is initialized: until
then Lambda gives the old one a weight of 1.0, and refuses to change the concurrency. The status is
FAILED if an environment with AWS_LAMBDA_INITIALIZATION_TYPE=provisioned-concurrency does not start.

A schedule may call UpdateAlias, as the guard of a release does; its time comes 100 times faster,
and 10 times with TAPLOCAL_METRICS_DELAY.
"""

from __future__ import annotations

import contextvars
import copy
import json
import random
import threading
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from ministack.core import lambda_runtime
from ministack.services import eventbridge, lambda_svc, scheduler

from taplocal.server.timing import GUARD_SCALE, WARM_SECONDS

UPDATE_ALIAS = "arn:aws:scheduler:::aws-sdk:lambda:updateAlias"
#: The alias or version by which the function of this request is invoked.
qualifier_of_call: contextvars.ContextVar[str] = contextvars.ContextVar("qualifier", default="")


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


def install() -> None:
    """Replaces MiniStack's functions."""
    route_by_weight()
    shift_warm_aliases()
    run_guards()
