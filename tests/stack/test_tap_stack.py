"""The whole stack: the same on each run, each system alone, its outputs."""

from __future__ import annotations

import base64
import functools
import json
import warnings
from pathlib import Path
from typing import Any

import pytest

import tap_stack
from tests.stack.conftest import Graph, graph_of, graph_of_program, recorded


@functools.cache
def second_run(env: str) -> Graph:
    """An environment recorded again, where a deprecated property is an error."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", DeprecationWarning)
        return recorded(env)


def test_two_runs_register_the_same(graph: Graph, env: str) -> None:
    second = second_run(env)
    assert sorted(graph.resources, key=lambda each: each.urn) == sorted(
        second.resources, key=lambda each: each.urn
    )
    assert graph.outputs == second.outputs


def test_a_preview_registers_the_same_resources(graph: Graph, env: str) -> None:
    preview = graph_of(env, preview=True)
    assert {each.urn for each in preview.resources} == {each.urn for each in graph.resources}


def test_no_deprecated_property_is_used(env: str) -> None:
    assert second_run(env).resources


@pytest.mark.parametrize(
    ("systems", "kinds", "others"),
    [
        ('["api"]', {"aws:apigatewayv2/api:Api"}, {"aws:s3/bucket:Bucket", "aws:ec2/vpc:Vpc"}),
        (
            '["files"]',
            {"aws:s3/bucket:Bucket"},
            {"aws:ec2/vpc:Vpc", "aws:cognito/userPool:UserPool"},
        ),
        ('["web"]', {"aws:ec2/vpc:Vpc"}, {"aws:apigatewayv2/api:Api", "aws:dynamodb/table:Table"}),
    ],
)
def test_each_system_can_be_alone(systems: str, kinds: set[str], others: set[str]) -> None:
    graph = graph_of("dev", systems=systems)
    found = {each.type for each in graph.custom()}
    assert kinds <= found
    assert not others & found
    assert graph.outputs.keys() < tap_stack.OUTPUTS.keys()
    assert {"alerts_topic_arn", "dashboard_name", "key_arn"} < graph.outputs.keys()


def test_outputs_are_exported_under_their_names() -> None:
    outputs = tap_stack.OUTPUTS.keys()
    by_settings = {"api_domain_target", "files_workgroup_name"}
    assert graph_of("dev").outputs.keys() == outputs - by_settings
    settings = {"api_domain_name": "api.tap.dev", "files_analytics": "true"}
    assert graph_of("dev", **settings).outputs.keys() == outputs


#: What a stack has with any system, and what each adds.
SHARED = {"alerts_topic_arn", "dashboard_name", "key_arn", "pages_topic_arn"}
FILES = {
    "files_bucket_name",
    "files_table_name",
    "files_function_name",
    "files_dead_letters_url",
}
PROGRAM = """
import pulumi
from tap_stack import OUTPUTS, TapStack, TapStackArgs

stack = TapStack("tap", TapStackArgs(systems=["files"]))
pulumi.export("absent", [name for name in OUTPUTS if getattr(stack, name) is None])
pulumi.export("present", {name: getattr(stack, name) for name in stack.outputs})
"""


def test_the_outputs_of_a_system_that_is_left_out_are_none_and_not_exported(
    tmp_path: Path,
) -> None:
    outputs = graph_of_program(tmp_path, PROGRAM).outputs
    assert set(outputs["absent"]) == tap_stack.OUTPUTS.keys() - SHARED - FILES
    assert {"api_url", "user_pool_id", "web_url"} <= set(outputs["absent"])
    exported = graph_of("dev", systems='["files"]').outputs
    assert exported.keys() == SHARED | FILES
    assert outputs["present"].keys() == exported.keys()
    assert all(exported.values())


@pytest.mark.parametrize("tier", ["staging", "prod"])
def test_a_stack_with_a_name_behind_its_tier_has_all_values_of_the_tier(tier: str) -> None:
    def inputs(env: str) -> dict[str, Any]:
        """Type and name of each resource -> its inputs, with the tier as its environment."""
        texts = {}
        for each in graph_of(env).custom():
            scripts = {"userData": base64.b64decode(each.inputs.get("userData", "")).decode()}
            text = json.dumps({**each.inputs, **scripts}).replace(env, tier)
            texts[f"{each.type} {each.name}"] = json.loads(text)
        return texts

    named, plain = inputs(f"{tier}-eu"), inputs(tier)
    assert named.keys() == plain.keys()
    for name, expected in plain.items():
        assert named[name] == expected, name
    args = tap_stack.TapStackArgs(environment_suffix=tier)
    graph = graph_of(f"{tier}-eu")
    database = graph.one("aws:rds/instance:Instance").inputs
    assert database["identifier"].endswith(f"-{tier}-eu")
    assert database["instanceClass"] == args.database_class
    assert database["multiAz"] is args.database_multi_az
    group = graph.one("aws:autoscaling/group:Group", "web-fleet-group").inputs
    assert (group["minSize"], group["maxSize"]) == (args.instances_min, args.instances_max)
    spread = group["mixedInstancesPolicy"]["instancesDistribution"]
    assert spread["onDemandPercentageAboveBaseCapacity"] == 100 - args.spot_percent
    assert graph.one("Rollout", "api-items-rollout").inputs["percent"] == args.canary_percent
    for setting in ("database_class", "instances_max", "canary_percent"):
        assert getattr(args, setting) != getattr(tap_stack.TapStackArgs(), setting), setting
