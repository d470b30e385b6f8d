"""Conventions that every resource keeps: tags, names, encryption, least privilege, no secrets, no change."""

from __future__ import annotations

import json
import re
import warnings
from typing import Any

import pulumi_aws as aws
import pytest

import tap_stack
from taplocal.errors import TapLocalError
from taplocal.program import Registration, run
from tests.stack.conftest import (
    ACCOUNT,
    Graph,
    Recorder,
    graph_of,
    statements,
    with_defaults,
)

TAGS = {"Project", "Environment", "Component", "ManagedBy", "Owner", "CostCenter"}
DOCUMENTS = ("policy", "assumeRolePolicy")
#: Action on `*` -> why AWS supports nothing narrower.
STARS = {
    **dict.fromkeys(tap_stack.SESSION_MANAGER, "Session Manager has no resources to name"),
    "cloudwatch:PutMetricData": "metrics have no resources to name; a condition names the namespace",
    "ec2:DescribeTags": "EC2's describing actions have no resources to name",
    "xray:PutTelemetryRecords": "X-Ray has no resources to name",
    "xray:PutTraceSegments": "X-Ray has no resources to name",
}


def class_of(resource: Registration) -> Any:
    if resource.type == "pulumi-python:dynamic/tap:Rollout":
        return tap_stack.Rollout
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
        assert kinds.keys() == {"instance", "volume"}
        for tags in kinds.values():
            assert tags.keys() >= TAGS
            assert tags["Environment"] == env


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
            assert re.fullmatch(shape, name) or name == f"/tap-stack/{env}/paging-key", each
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


def test_everything_that_can_be_encrypted_is_under_the_customer_managed_key(graph: Graph) -> None:
    fields = {
        "Function": "kmsKeyArn",
        "LogGroup": "kmsKeyId",
        "Topic": "kmsMasterKeyId",
        "Queue": "kmsMasterKeyId",
        "Parameter": "keyId",
        "Schedule": "kmsKeyArn",
    }
    key = graph.outputs["key_arn"]
    for kind, field in fields.items():
        assert graph.of(kind)
        for each in graph.of(kind):
            if not each.type.startswith("aws:autoscaling/"):
                assert each.inputs[field] == key, each.name
    database = graph.one("aws:rds/instance:Instance").inputs
    assert database["storageEncrypted"] is True
    for field in ("kmsKeyId", "masterUserSecretKmsKeyId", "performanceInsightsKmsKeyId"):
        assert database[field] == key
    for each in graph.of("LaunchTemplate"):
        for mapping in each.inputs["blockDeviceMappings"]:
            assert (mapping["ebs"]["encrypted"], mapping["ebs"]["kmsKeyId"]) == ("true", key)
    for table in graph.of("Table"):
        assert table.inputs["serverSideEncryption"] == {"enabled": True, "kmsKeyArn": key}


def test_policies_spell_out_actions_and_resources(graph: Graph) -> None:
    for each in graph.custom():
        for document in (each.inputs[field] for field in DOCUMENTS if field in each.inputs):
            for statement in statements(document):
                if statement["Effect"] == "Deny":
                    continue
                own_key = each.type == "aws:kms/key:Key"  # in a key's policy, * is that key
                for action in statement["Action"]:
                    assert "*" not in action, (each.name, action)
                    if statement.get("Resource") == "*" and not own_key:
                        assert action in STARS, (each.name, action)


def test_trust_and_resource_policies_name_services_and_confine_them(graph: Graph) -> None:
    for each in graph.custom():
        for document in (each.inputs[field] for field in DOCUMENTS if field in each.inputs):
            for statement in statements(document):
                principal = statement.get("Principal")
                if statement["Effect"] == "Allow" and principal:
                    assert principal.keys() <= {"Service", "AWS"}
                    assert "*" not in principal.values()
                    confined = "Condition" in statement or "AWS" in principal
                    services = ("lambda.amazonaws.com", "ec2.amazonaws.com")
                    assert confined or principal["Service"] in services, each.name


def test_no_secret_is_in_any_input(graph: Graph) -> None:
    for each in graph.custom():
        text = json.dumps({k: v for k, v in each.inputs.items() if k not in ("code", "tags")})
        assert not re.search(r"[0-9a-f]{64}|AKIA[0-9A-Z]{16}|BEGIN [A-Z ]*PRIVATE KEY", text), (
            each.name
        )
        variables = each.inputs.get("environment", {}).get("variables", {})
        assert not [name for name in variables if re.search("SECRET|PASSWORD|TOKEN", name)]


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


def test_what_must_not_be_lost_is_protected_in_prod_only() -> None:
    def protected(env: str) -> set[str]:
        return {each.name for each in graph_of(env).custom() if each.protect}

    assert protected("prod") == {
        "api-items",
        "files-table",
        "files-uploads-bucket",
        "files-logs-bucket",
        "storage-assets-bucket",
        "storage-logs-bucket",
        "database-instance",
        "web-balancer",
        "identity-pool",
        "encryption-key",
    }
    assert protected("dev") == protected("staging") == set()


@pytest.mark.parametrize("value", ["0", "many"])
def test_a_wrong_setting_stops_the_program_before_any_resource(value: str) -> None:
    recorder = Recorder()
    with pytest.raises(TapLocalError, match="throttle_rate must be") as caught:
        run(with_defaults("dev", throttle_rate=value, mfa="maybe"), recorder)
    assert "mfa must be" in str(caught.value)
    assert not recorder.resources
