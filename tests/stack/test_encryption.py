"""Encryption as it is registered: the key, what is under it, no secret in the open."""

from __future__ import annotations

import json
import re
from pathlib import Path

from tests.stack.conftest import (
    ACCOUNT,
    Graph,
    graph_of,
    graph_of_program,
    statements,
)


def test_the_key_rotates_and_can_still_be_managed(graph: Graph, env: str) -> None:
    arn = f"arn:aws:iam::{ACCOUNT}:root"
    managed = {"kms:PutKeyPolicy", "kms:ScheduleKeyDeletion", "kms:Decrypt", "kms:CreateGrant"}
    for key in (each.inputs for each in graph.of("Key")):
        assert key["enableKeyRotation"] is True
        assert key["deletionWindowInDays"] == (30 if env == "prod" else 7)
        root = next(x for x in statements(key["policy"]) if x["Principal"].get("AWS") == arn)
        assert managed <= set(root["Action"])


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
                pages = each.name == "alerts-pages"  # also when nobody can read data
                under = key.replace("encryption-key", "encryption-pages-key") if pages else key
                assert each.inputs[field] == under, each.name
    database = graph.one("aws:rds/instance:Instance").inputs
    assert database["storageEncrypted"] is True
    for field in ("kmsKeyId", "masterUserSecretKmsKeyId", "performanceInsightsKmsKeyId"):
        assert database[field] == key
    for each in graph.of("LaunchTemplate"):
        for mapping in each.inputs["blockDeviceMappings"]:
            assert (mapping["ebs"]["encrypted"], mapping["ebs"]["kmsKeyId"]) == ("true", key)
    for table in graph.of("Table"):
        assert table.inputs["serverSideEncryption"] == {"enabled": True, "kmsKeyArn": key}


def test_what_is_secret_in_the_state_is_marked_so_that_the_engine_encrypts_it(
    graph: Graph,
) -> None:
    secrets = {each.name: each.secret_outputs for each in graph.custom() if each.secret_outputs}
    assert secrets["identity-machine-default"] == ("clientSecret",)
    assert secrets.keys() == {
        *(each.name for each in graph.of("UserPoolClient")),
        *(each.name for each in graph.of("Certificate")),  # with a key of its own: none is given
        *(each.name for each in graph.of("Parameter")),  # `unset`, whatever the rotation writes
        "database-instance",  # with a password in its inputs: RDS has it in a secret
    }


def test_no_output_is_a_secret(tmp_path: Path) -> None:
    program = """
import pulumi
from tap_stack import TapStack

for name, output in TapStack("tap").outputs.items():
    pulumi.export(name, output.is_secret())
"""
    outputs = graph_of_program(tmp_path, program).outputs
    assert [name for name, secret in outputs.items() if secret] == []
    assert outputs.keys() == graph_of("dev").outputs.keys()


def test_no_secret_is_in_any_input(graph: Graph) -> None:
    for each in graph.custom():
        text = json.dumps({k: v for k, v in each.inputs.items() if k not in ("code", "tags")})
        assert not re.search(r"[0-9a-f]{64}|AKIA[0-9A-Z]{16}|BEGIN [A-Z ]*PRIVATE KEY", text), (
            each.name
        )
        variables = each.inputs.get("environment", {}).get("variables", {})
        assert not [name for name in variables if re.search("SECRET|PASSWORD|TOKEN", name)]
