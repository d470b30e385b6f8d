"""What a release watches and moves."""

from __future__ import annotations

import json
import re

import pytest

import tap_stack
from bootstrap import permissions
from taplocal.errors import TapLocalError
from tests.stack.conftest import ROOT, Graph, graph_of, recorded

API = '["api"]'


def test_every_function_is_released_by_its_rollout_alone(graph: Graph, env: str) -> None:
    rollouts = {each.inputs["function"]: each.inputs for each in graph.of("Rollout")}
    functions = graph.of("aws:lambda/function:Function")
    assert len(rollouts) == len(functions) == (4 if env == "dev" else 5)  # with synthetics
    for function in functions:
        plan = rollouts[f"arn:aws:test:eu-west-1:111122223333:Function/{function.name}"]
        assert (plan["alias"], plan["version"], plan["versions_kept"]) == ("live", "1", 5)
        assert json.loads(plan["probes"])
    for alias in graph.of("aws:lambda/alias:Alias"):
        assert set(alias.ignore_changes) == {"functionVersion", "routingConfig"}


def test_what_has_traffic_goes_over_gradually_and_watched(graph: Graph, env: str) -> None:
    plans = {each.name: each.inputs for each in graph.of("Rollout")}
    gradual = {name for name, plan in plans.items() if plan["percent"] < 100}
    busy = {"api-items-rollout", "files-records-rollout"}
    assert gradual == (set() if env == "dev" else busy)
    assert {plan["bake_seconds"] for plan in plans.values()} == {60 if env == "dev" else 300}
    alarms = {each.inputs["name"] for each in graph.of("MetricAlarm")}
    assert all(set(plan["alarms"]) <= alarms for plan in plans.values())
    api = plans["api-items-rollout"]
    assert {f"tap-stack-api-{each}-{env}" for each in ("5xx", "latency", "errors")} == set(
        api["alarms"]
    )
    assert api["failures"] == {
        "namespace": "tap-stack", "metric": "RequestsFailed", "environment": env
    }  # fmt: skip


def test_a_release_asks_every_route_that_changes_nothing(graph: Graph) -> None:
    probes = json.loads(graph.one("Rollout", "api-items-rollout").inputs["probes"])
    asked = {event["routeKey"]: status for event, status in probes}
    reads = [key for key in tap_stack.all_routes() if key.startswith("GET ")]
    assert asked == {key: 404 if "{" in key else 200 for key in reads}


def test_a_guard_may_move_its_own_alias_alone(graph: Graph, env: str) -> None:
    guards = [each for each in graph.of("RolePolicy") if "-guard-" in each.name]
    assert len(guards) == (0 if env == "dev" else 2)
    for each in guards:
        (statement,) = json.loads(each.inputs["policy"])["Statement"]
        assert statement["Action"] == ["lambda:UpdateAlias"]
        assert (
            statement["Resource"].startswith("arn:aws:test:") and "*" not in statement["Resource"]
        )
    plans = [each.inputs for each in graph.of("Rollout")]
    assert all(bool(plan["guard_role"]) == (plan["percent"] < 100) for plan in plans)


@pytest.mark.parametrize(("percent", "warned"), [("100", True), ("10", False)])
def test_prod_without_canaries_is_warned_of_at_each_up(
    percent: str, warned: bool, capfd: pytest.CaptureFixture[str]
) -> None:
    recorded("prod", systems=API, canary_percent=percent)
    assert ("no release in prod is watched" in capfd.readouterr().err) == warned


def test_a_hotfix_may_go_all_at_once() -> None:
    hotfix = graph_of("prod", systems=API, canary_percent="100")
    assert {each.inputs["percent"] for each in hotfix.of("Rollout")} == {100}


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
        ({"canary_minutes": "4"}, "canary_minutes must be 5 or more in prod, not 4"),
        (
            {"canary_minutes": "4", "systems": "files"},
            "canary_minutes must be 5 or more in prod, not 4",
        ),
        ({"canary_inconclusive": "ask"}, "canary_inconclusive must be one of promote, roll_back"),
    ],
)
def test_settings_that_contradict_each_other_are_reported(
    settings: dict[str, str], message: str
) -> None:
    with pytest.raises(TapLocalError, match=message):
        graph_of("prod", **{"systems": API, **settings})


def test_the_decision_names_each_action_of_a_release() -> None:
    """For who deploys with credentials of their own; who has not one rolls each release back."""
    text = (ROOT / "docs/decisions/0009-releases.md").read_text()
    (listed,) = re.findall(r"It needs (.*?) for the guard's role", text, re.DOTALL)
    named, service = set(), ""
    for each in re.findall(r"`([\w:-]+)`", listed):
        service = each.rpartition(":")[0] or service
        named.add(f"{service}:{each.rpartition(':')[2]}")
    kind = "pulumi-python:dynamic/tap:Rollout"
    assert named == permissions.actions_by_type()[kind]
