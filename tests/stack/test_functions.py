"""Functions as they are registered: runtime, log, role, and how much of the account each may use."""

from __future__ import annotations

import re

from tests.stack.conftest import (
    ROOT,
    Graph,
    graph_of,
)


def test_functions_are_current_traced_versioned_and_log_into_their_group(
    graph: Graph, env: str
) -> None:
    groups = {each.inputs["name"] for each in graph.of("LogGroup")}
    assert len(graph.of("Function")) == (4 if env == "dev" else 5)  # synthetics
    for each in graph.of("Function"):
        function = each.inputs
        assert (function["runtime"], function["architectures"], function["publish"]) == (
            "python3.13",
            ["arm64"],
            True,
        )
        assert function["tracingConfig"] == {"mode": "Active"}
        assert function["loggingConfig"]["logFormat"] == "JSON"
        assert function["loggingConfig"]["logGroup"] == f"/aws/lambda/{function['name']}"
        assert function["loggingConfig"]["logGroup"] in groups
        assert len(function["description"]) <= 256


def test_each_function_has_its_own_role(graph: Graph) -> None:
    roles = [each.inputs["role"] for each in graph.of("Function")]
    assert len(set(roles)) == len(roles)


def test_no_function_can_starve_another(graph: Graph, env: str) -> None:
    reserved = {
        each.inputs["name"].removesuffix(f"-{env}"): each.inputs["reservedConcurrentExecutions"]
        for each in graph.of("aws:lambda/function:Function")
        if "reservedConcurrentExecutions" in each.inputs
    }
    api = {"dev": {}, "staging": {"tap-stack-api": 200}, "prod": {"tap-stack-api": 500}}[env]
    assert reserved == {**api, "tap-stack-files": 20 if env == "prod" else 10}
    stage = graph.one("Stage", "api-stage").inputs["defaultRouteSettings"]
    if api:  # what is too much gets 429 from the API, not 503 from Lambda
        assert stage["throttlingBurstLimit"] <= reserved["tap-stack-api"]


def test_the_document_adds_up_what_the_environments_reserve() -> None:
    text = (ROOT / "docs/scaling.md").read_text()
    numbers = r"(\d+) in a new account \| prod reserves (\d+), staging (\d+), dev (\d+), and AWS keeps (\d+) unreserved: an account with all three has (\d+) left"
    ((_, *told, kept, left),) = re.findall(numbers, text)
    reserved = [
        sum(
            each.inputs.get("reservedConcurrentExecutions", 0)
            for each in graph_of(env).of("aws:lambda/function:Function")
        )
        for env in ("prod", "staging", "dev")
    ]
    assert [*map(int, told)] == reserved
    assert int(left) == 1_000 - int(kept) - sum(reserved)


def test_prod_keeps_environments_warm_and_the_scaler_changes_their_number() -> None:
    prod = graph_of("prod")
    warm = prod.one("ProvisionedConcurrencyConfig", "api-items-warm")
    assert warm.ignore_changes == ("provisionedConcurrentExecutions",)
    assert (warm.inputs["qualifier"], warm.inputs["provisionedConcurrentExecutions"]) == ("live", 2)
    target = prod.one("Target", "api-items-warm-range").inputs
    assert (target["minCapacity"], target["maxCapacity"]) == (2, 20)
    assert target["resourceId"] == "function:tap-stack-api-prod:live"
    assert target["scalableDimension"] == "lambda:function:ProvisionedConcurrency"
    tracking = prod.one("aws:appautoscaling/policy:Policy", "api-items-warm-scaling").inputs
    assert tracking["targetTrackingScalingPolicyConfiguration"]["targetValue"] == 0.7
    for env in ("dev", "staging"):
        assert not graph_of(env).of("ProvisionedConcurrencyConfig")
