"""What every resource of a component keeps: tags, names, parents, protection, how long it logs."""

from __future__ import annotations

import json
import re
from typing import Any

import pulumi_aws as aws

import tap_stack
from taplocal.program import Registration
from taplocal.resources import handler_of
from tests.local.test_settings import CHANGES
from tests.stack.conftest import (
    ACCOUNT,
    Graph,
    graph_of,
)

#: What has data that nothing else has.
STATEFUL = {
    "aws:cognito/userPool:UserPool",
    "aws:dynamodb/table:Table",
    "aws:kms/key:Key",
    "aws:rds/instance:Instance",
    "aws:s3/bucket:Bucket",
}
TAGS = {"Project", "Environment", "Component", "ManagedBy", "Owner", "CostCenter"}


def class_of(resource: Registration) -> Any:
    if resource.type.startswith("pulumi-python:dynamic/tap:"):
        return getattr(tap_stack, resource.type.split(":")[-1])
    module, _, name = resource.type.removeprefix("aws:").partition("/")
    return getattr(getattr(aws, {"lambda": "lambda_"}.get(module, module)), name.split(":")[1])


def tags_of(resource: Registration) -> dict[str, str]:
    """The tags of a resource; a group of instances alone has them as a list."""
    tags = resource.inputs["tags"]
    return {each["key"]: each["value"] for each in tags} if isinstance(tags, list) else tags


def test_every_taggable_resource_carries_the_standard_tags(graph: Graph, env: str) -> None:
    taggable = [
        each
        for each in graph.custom()
        if isinstance(getattr(class_of(each), "tags", None), property)
    ]
    assert len(taggable) > 20
    for each in taggable:
        assert tags_of(each).keys() >= TAGS, each.name
        assert tags_of(each)["Environment"] == env


def test_instances_and_volumes_carry_the_standard_tags(graph: Graph, env: str) -> None:
    for template in graph.of("LaunchTemplate"):
        kinds = {x["resourceType"]: x["tags"] for x in template.inputs["tagSpecifications"]}
        assert kinds.keys() == {"instance", "volume", "network-interface"}
        for tags in kinds.values():
            assert tags.keys() >= TAGS
            assert tags["Environment"] == env
    for group in graph.of("aws:autoscaling/group:Group"):  # or each would have them twice
        assert not any(each["propagateAtLaunch"] for each in group.inputs["tags"])


def test_own_tags_reach_every_resource_and_win() -> None:
    graph = graph_of("dev", tags='{"Team": "blue", "Owner": "ann"}')
    tags = [tags_of(each) for each in graph.custom() if "tags" in each.inputs]
    assert {(each["Team"], each["Owner"]) for each in tags} == {("blue", "ann")}


def test_physical_names_follow_project_component_environment(graph: Graph, env: str) -> None:
    fixed = {"$default", "live", "tokens", "items", "files"}  # inside an API, a function, a pool
    for each in graph.custom():
        name = each.inputs.get("name")
        if name and name not in fixed:
            shape = (
                rf"([a-z/]*/)?tap-stack(-[a-z0-9-]+)?-{env}(-dead-letters|/postgresql|/upgrade)?"
            )
            others = rf"/tap-stack/{env}/paging-key|tap-stack/{env}/[a-z-]+"  # that one a query
            assert re.fullmatch(f"{shape}|{others}", name), each
        if each.type == "aws:s3/bucket:Bucket":
            assert re.fullmatch(f"tap-stack-[a-z-]+-{env}-{ACCOUNT}", each.inputs["bucket"])


def test_environments_share_no_name_so_that_they_can_share_an_account() -> None:
    names = {}
    for env in ("dev", "staging", "prod", "dev-jane"):
        graph = graph_of(env.split("-")[0], environment_suffix=env)
        names[env] = {
            (each.type, each.inputs.get("name") or each.inputs["bucket"])
            for each in graph.custom()
            if each.type.split(":")[-1] not in ("Stage", "Authorizer", "ResourceServer", "Alias")
            and each.inputs.keys() & {"name", "bucket"}
        }
    everything = [name for each in names.values() for name in each]
    assert len(everything) == len(set(everything))


def test_every_resource_has_a_component_as_parent(graph: Graph) -> None:
    components = {each.urn for each in graph.resources if not each.custom}
    for each in graph.resources:
        if each.type != "tap:stack:TapStack":
            assert each.parent in components, each.name


def test_what_must_not_be_lost_is_protected(graph: Graph, env: str) -> None:
    assert {each.name for each in graph.custom() if each.protect} == {
        "api-items",
        "files-table",
        "files-uploads-bucket",
        "files-logs-bucket",
        "storage-assets-bucket",
        "storage-logs-bucket",
        "database-instance",
        "identity-pool",
        "encryption-key",
        "monitoring-dashboard",  # for the others
        *(["web-balancer"] if env == "prod" else []),  # an address that others know
    }


def test_what_would_be_replaced_with_its_data_is_protected_and_has_a_setting_for_its_name() -> None:
    """By the handlers' `replace_on`, as a plan of AWS's provider has it; that renames a database."""

    def shown(**config: str) -> dict[str, Registration]:
        return {x.name: x for x in graph_of("dev", **config).custom() if x.type in STATEFUL}

    before, found = shown(), {}
    for change in CHANGES.values():
        config = {key: x if isinstance(x, str) else json.dumps(x) for key, x in change.items()}
        now = shown(**{**config, "zone_names": "[]"})
        for name, old in before.items():
            keys = handler_of(old.type, name).replaces()
            if name not in now or any(now[name].inputs.get(k) != old.inputs.get(k) for k in keys):
                assert old.protect, name
                found[name] = set(change) & {"systems", *CHANGES["names"]}
    assert found.keys() == before.keys() - {
        "encryption-key",
        "encryption-pages-key",
    }  # without a name
    assert all(found.values())


def test_in_prod_log_groups_outlive_what_writes_them(graph: Graph, env: str) -> None:
    assert {each.retain_on_delete for each in graph.of("LogGroup")} == {env == "prod"}


def test_log_groups_keep_what_the_settings_say(graph: Graph, env: str) -> None:
    days = tap_stack.TapStackArgs(environment_suffix=env).log_retention_days
    assert {each.inputs["retentionInDays"] for each in graph.of("LogGroup")} == {days}
