"""The deploy role's policy beside what a deployment really asks, on the local cloud: both ways.

The emulator writes down the action, the resource and the keys of each request of the account's root
while all three systems with their options are created, changed and deleted. Each difference has a
reason: what is asked only here, and what AWS's provider asks in another way or not at all here.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from ministack.core import iam_evaluator

from bootstrap import permissions
from bootstrap.permissions import Stack
from taplocal import emulator, session
from taplocal.emulator import ACCOUNT
from tests.local.conftest import ROOT
from tests.local.recording_ministack import REQUESTS

REGION = "us-east-1"
BOUNDARY = "arn:aws:iam::aws:policy/PowerUserAccess"  # any: what it allows is not asked here
SETTINGS = {
    "alarm_emails": "team@example.com",
    "api_domain_name": "api.tap.dev",
    "availability_objective": "99.9",
    "bastion_cidrs": "203.0.113.0/24",
    "bastion_hours": "8-18",
    "domain_name": "app.tap.dev",
    "files_analytics": "true",
    "files_events": "true",
    "files_malware_protection": "true",
    "files_table_scaling": "4",
    "hosted_zone_id": "Z0123456789ABC",
    "interface_endpoints": "ssm,logs",
    "nat": "single",
    "permissions_boundary": BOUNDARY,
    "plain_http": "false",
    "provisioned_concurrency_max": "2",
    "provisioned_concurrency_min": "1",
    "tags": '{"note": "this goes"}',
    "waf": "true",
}
CHANGED = {"owner": "another-team", "memory_mb": "1024", "nat": "instance", "tags": "{}"}

#: Action, resource: what the policy does not allow -> why that is right.
REFUSED = {
    ("sts:GetCallerIdentity", "*"): "AWS never denies it",
    ("events:*", "*:rule/DO-NOT-DELETE-*"): "local: GuardDuty's rule, which AWS itself makes",
    ("events:ListRules", "*"): "local: whether the name is taken",
    ("rds:DescribeDBSubnetGroups", "*"): "local: whether the name is taken",
    ("s3:PutObject", "*/malware-protection-*"): "local: GuardDuty's object, written by AWS",
    ("ssm:*Parameter", "*:parameter/taplocal/marker/*"): "local: how a restart is known",
    ("sts:AssumeRole", "*:role/tap-stack-web-dev"): "local: keys of instances, which AWS hands out",
}
#: What the policy allows beside the reads, and nothing here asks for -> why.
UNASKED = {
    "the provider's alone: it has the local engine's state": (
        "dynamodb:UpdateTable", "iam:ListInstanceProfilesForRole",
        "lambda:GetFunctionConfiguration",
    ),
    "AWS asks it for the caller, MiniStack does not": (
        "apigateway:PUT", "ec2:RunInstances", "elasticloadbalancing:*WebACLAssociation",
        "elasticloadbalancing:SetWebAcl", "iam:CreateServiceLinkedRole", "kms:CreateGrant",
        "kms:Encrypt", "kms:GenerateDataKey", "logs:*LogDeliver*", "logs:*ResourcePolic*",
        "route53:AssociateVPCWithHostedZone", "secretsmanager:CreateSecret",
    ),
    "the local handlers leave it as MiniStack has it": (
        "autoscaling:*ableMetricsCollection", "ec2:ModifySubnetAttribute",
        "ec2:ModifyVpcAttribute", "elasticloadbalancing:ModifyListenerAttributes",
    ),
    "it comes with the creation; not all local tags change later": (
        "*:TagResource", "*:Untag*", "autoscaling:PutLifecycleHook", "iam:TagInstanceProfile",
    ),
    "the resource is in the local state alone: taplocal/differences.py": (
        "application-autoscaling:*", "ec2:*FlowLogs", "guardduty:*", "iam:DeleteServiceLinkedRole",
        "iam:GetServiceLinkedRoleDeletionStatus", "logs:*QueryDefinition", "rds:*Subscription",
        "route53:ChangeResourceRecordSets", "route53:GetChange",
    ),
    "no instance is protected or has an address, no database leaves a snapshot": (
        "autoscaling:SetInstanceProtection", "ec2:DisassociateAddress", "rds:CreateDBSnapshot",
    ),
    "nothing like it changes here": (
        "autoscaling:*LoadBalancerTargetGroups", "cognito-idp:AddCustomAttributes",
        "cognito-idp:UpdateResourceServer", "cognito-idp:UpdateUserPoolClient",
        "cognito-idp:UpdateUserPoolDomain", "ec2:ModifyLaunchTemplate",
        "ec2:ModifySecurityGroupRules", "ec2:ModifyVpcEndpoint", "ec2:ReplaceRoute",
        "elasticloadbalancing:SetSecurityGroups", "elasticloadbalancing:SetSubnets",
        "glue:UpdateTable", "iam:UpdateRoleDescription", "kms:UpdateAlias",
        "lambda:UpdateFunctionCode", "logs:AssociateKmsKey", "logs:DeleteRetentionPolicy",
        "logs:DisassociateKmsKey", "rds:ResetDBParameterGroup", "scheduler:UpdateSchedule", "secretsmanager:RotateSecret",
        "sns:SetSubscriptionAttributes",
    ),
    "a release that is watched or fails, as none in dev is": (
        "autoscaling:RollbackInstanceRefresh", "cloudwatch:GetMetricData",
        "cloudwatch:PutMetricData",
    ),
}  # fmt: skip


class Request(NamedTuple):
    """What a request needed."""

    action: str
    resource: str
    keys: dict[str, Any]


class Deployment(NamedTuple):
    """What was asked, and by resources of which types."""

    requests: list[Request]
    types: set[str]


@pytest.fixture(scope="module")
def deployment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    """All requests of a deployment, its change and its end."""
    folder = tmp_path_factory.mktemp("recorded")
    quiet: Any = {"folder": folder, "report": lambda step: None}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(emulator, "PROGRAM", Path(__file__).with_name("recording_ministack.py"))
        try:
            types: set[str] = set()
            for more in ({}, CHANGED):
                deployed, _ = session.up(
                    ROOT, "dev", config={**SETTINGS, **more}, say=lambda text: None, **quiet
                )
                types |= {each.type for each in deployed.state.resources.values()}
            # With the last environment its emulator would go, and nothing be deleted by request.
            session._delete(folder, "dev", deployed.cloud.emulator, quiet["report"])
            lines = (folder / REQUESTS).read_text().splitlines()
            yield Deployment([Request(*json.loads(line)) for line in lines], types)
        finally:
            session.down(ROOT, None, **quiet)


def test_the_policy_allows_what_a_deployment_asks(deployment: Deployment) -> None:
    statements = permissions.deploy_statements(
        Stack("aws", REGION, ACCOUNT, "tap-stack", "dev"),
        boundary=BOUNDARY,
        state_bucket="arn:aws:s3:::state",
        state_key=f"arn:aws:kms:{REGION}:{ACCOUNT}:key/state",
        protected=False,
    )
    policies = [
        iam_evaluator.parse_policy_document(each) for each in permissions.documents(statements)
    ]
    refused = set()
    for action, resource, keys in deployment.requests:
        context = iam_evaluator.EvalContext(
            "arn", "AssumedRole", ACCOUNT, action, resource, REGION,
            service_context={name.lower(): value for name, value in keys.items()},
        )  # fmt: skip
        if iam_evaluator.evaluate(context, policies).decision != "Allow":
            refused.add((action, resource))
    rows = {
        (action, resource): [
            row for row in REFUSED if fnmatchcase(action, row[0]) and fnmatchcase(resource, row[1])
        ]
        for action, resource in refused
    }
    assert [each for each, found in rows.items() if not found] == []
    assert {row for found in rows.values() for row in found} == REFUSED.keys(), "a row is in vain"


def test_what_the_policy_allows_is_asked_or_a_reason_says_why_not(deployment: Deployment) -> None:
    asked = {each.action for each in deployment.requests}
    allowed = permissions.actions_by_type("create", "update", "delete")
    reads = permissions.every_action("read")  # the local engine reads nothing back
    types = {each for each, actions in allowed.items() if actions}
    assert types <= deployment.types
    unasked = set().union(*(allowed[each] for each in types)) - asked - reads
    patterns = [pattern for found in UNASKED.values() for pattern in found]
    rows = {each: [row for row in patterns if fnmatchcase(each, row)] for each in unasked}
    unexplained = ", ".join(sorted(each for each, found in rows.items() if not found))
    in_vain = ", ".join(set(patterns) - {row for found in rows.values() for row in found})
    assert (unexplained, in_vain) == ("", "")
