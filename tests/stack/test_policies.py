"""Policies as they are registered: least privilege, confined trust, TLS only."""

from __future__ import annotations

import tap_stack
from tests.stack.conftest import (
    Graph,
    statements,
)

DOCUMENTS = ("policy", "assumeRolePolicy")


#: Action on `*` -> why AWS supports nothing narrower.
STARS = {
    **dict.fromkeys(tap_stack.SESSION_MANAGER, "Session Manager has no resources to name"),
    "cloudwatch:PutMetricData": "metrics have no resources to name; a condition names the namespace",
    "ec2:DescribeTags": "EC2's describing actions have no resources to name",
    "xray:PutTelemetryRecords": "X-Ray has no resources to name",
    "xray:PutTraceSegments": "X-Ray has no resources to name",
}


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


def test_topics_queues_and_buckets_deny_whoever_comes_without_tls(graph: Graph) -> None:
    for each in [x for kind in ("Topic", "Queue", "Bucket") for x in graph.of(f"{kind}Policy")]:
        denied = [
            statement
            for statement in statements(each.inputs["policy"])
            if statement["Effect"] == "Deny"
        ]
        assert [statement["Condition"] for statement in denied] == [
            {"Bool": {"aws:SecureTransport": "false"}}
        ]
