"""What a release watches and moves."""

from __future__ import annotations

import json

import pytest

from taplocal.errors import TapLocalError
from tests.stack.conftest import Graph, graph_of

API = '["api"]'


def test_every_function_is_released_by_its_rollout_alone(graph: Graph, env: str) -> None:
    rollouts = {each.inputs["function"]: each.inputs for each in graph.of("Rollout")}
    functions = graph.of("aws:lambda/function:Function")
    assert len(rollouts) == len(functions) == 4
    for function in functions:
        plan = rollouts[f"arn:aws:test:eu-west-1:111122223333:Function/{function.name}"]
        assert (plan["alias"], plan["version"], plan["versions_kept"]) == ("live", "1", 5)
        json.loads(plan["smoke_event"])
    for alias in graph.of("aws:lambda/alias:Alias"):
        assert set(alias.ignore_changes) == {"functionVersion", "routingConfig"}


def test_what_has_traffic_goes_over_gradually_and_watched(graph: Graph, env: str) -> None:
    plans = {each.name: each.inputs for each in graph.of("Rollout")}
    gradual = {name for name, plan in plans.items() if plan["percent"] < 100}
    busy = {"api-items-rollout", "files-records-rollout"}
    assert gradual == (set() if env == "dev" else busy)
    assert {plan["bake_seconds"] for plan in plans.values()} == {300 if env == "prod" else 60}
    alarms = {each.inputs["name"]: each.inputs for each in graph.of("MetricAlarm")}
    for name in gradual:
        watched = plans[name]["alarms"]
        assert set(watched) <= alarms.keys()
        versions = [alarms[each]["dimensions"].get("ExecutedVersion") for each in watched]
        assert versions.count("1") == 2  # errors and duration of the new version alone
    api = [each.removesuffix(f"-{env}") for each in plans["api-items-rollout"]["alarms"]]
    assert {"tap-stack-api-5xx", "tap-stack-api-latency", "tap-stack-api-errors"} <= set(api)


def test_a_hotfix_may_go_all_at_once() -> None:
    hotfix = graph_of("prod", systems=API, canary_percent="100")
    assert {each.inputs["percent"] for each in hotfix.of("Rollout")} == {100}
    assert not [each for each in hotfix.of("MetricAlarm") if "-release-" in each.name]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"api_concurrency": "100"}, "api_concurrency must be 0 or throttle_burst at least"),
        (
            {"provisioned_concurrency_min": "30"},
            "provisioned_concurrency_min must be 1 to provisioned_concurrency_max",
        ),
        ({"provisioned_concurrency_min": "0"}, "both must be 0"),
        (
            {"provisioned_concurrency_max": "501"},
            "provisioned_concurrency_max must be api_concurrency or less",
        ),
        ({"canary_percent": "0"}, "canary_percent must be 1 to 100"),
    ],
)
def test_settings_that_contradict_each_other_are_reported(
    settings: dict[str, str], message: str
) -> None:
    with pytest.raises(TapLocalError, match=message):
        graph_of("prod", systems=API, **settings)
