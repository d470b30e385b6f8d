"""The whole stack: the same on each run, each system alone, its outputs."""

from __future__ import annotations

import warnings

import pytest

import tap_stack
from tests.stack.conftest import (
    Graph,
    graph_of,
)


def test_two_runs_register_the_same(env: str) -> None:
    graph_of.cache_clear()
    first = graph_of(env)
    graph_of.cache_clear()
    second = graph_of(env)
    assert sorted(first.resources, key=lambda each: each.urn) == sorted(
        second.resources, key=lambda each: each.urn
    )
    assert first.outputs == second.outputs


def test_a_preview_registers_the_same_resources(graph: Graph, env: str) -> None:
    preview = graph_of(env, preview=True)
    assert {each.urn for each in preview.resources} == {each.urn for each in graph.resources}


def test_no_deprecated_property_is_used(env: str) -> None:
    graph_of.cache_clear()
    with warnings.catch_warnings():
        warnings.simplefilter("error", DeprecationWarning)
        graph_of(env)


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
    assert graph_of("dev").outputs.keys() == tap_stack.OUTPUTS.keys()
