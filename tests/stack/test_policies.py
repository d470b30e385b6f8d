"""Policies as they are registered: least privilege, confined trust, TLS only."""

from __future__ import annotations

import tap_stack
from tests.stack.conftest import ACCOUNT, REGION, Graph, statements

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


def test_a_role_may_use_the_key_only_through_services_that_it_may_call(graph: Graph) -> None:
    key, functions = graph.outputs["key_arn"], f"arn:aws:lambda:{REGION}:{ACCOUNT}:function:"
    names = {each.inputs["name"] for each in graph.of("aws:lambda/function:Function")}
    uses = 0
    for each in graph.of("RolePolicy"):
        allowed = statements(each.inputs["policy"])
        services = {action.split(":")[0] for x in allowed for action in x["Action"]}
        for statement in (x for x in allowed if x["Resource"] == key):
            uses += 1
            condition = statement["Condition"]
            if condition.keys() == {"StringLike"}:
                # The environment of the function whose role this is, and of no other.
                own = functions + each.inputs["name"]
                context = "kms:EncryptionContext:aws:lambda:FunctionArn"
                assert condition["StringLike"] == {context: [own, f"{own}:*"]}, each.name
                assert each.inputs["name"] in names
                continue
            ((name, value),) = condition["StringEquals"].items()
            service = value.removesuffix(f".{REGION}.amazonaws.com")
            assert (name, service in services | {"scheduler"}) == ("kms:ViaService", True), (
                each.name
            )
    assert uses > len(names)


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
