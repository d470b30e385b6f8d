"""The deploy role's policy beside what a deployment really asks, on the local cloud: both ways.

The emulator writes down the action, the resource and the keys of each request of the account's root
while the API and the file pipeline are created, changed and deleted. Differences have a reason.
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

SETTINGS = {
    "systems": "api,files",
    "files_analytics": "true",
    "files_events": "true",
    "files_malware_protection": "true",
    "files_table_scaling": "4",
}
CHANGED = {"owner": "another-team", "memory_mb": "1024"}
REGION = "us-east-1"
BOUNDARY = f"arn:aws:iam::{ACCOUNT}:policy/boundary"

#: Action, resource: what the policy does not allow -> why that is right.
REFUSED = {
    ("sts:GetCallerIdentity", "*"): "AWS never denies it",
    ("budgets:*Budget", "*"): "MiniStack has the operation's name, AWS ViewBudget and ModifyBudget",
    ("events:ListRules", "*"): "local: whether the name is taken",
    ("events:*", "*rule/default/*"): "MiniStack names the default bus in a rule's ARN, AWS does not",
    ("lambda:ListAliases", "*"): "local: aliases are deleted with their function",
    ("s3:PutObject", "*"): "local: GuardDuty's test object, which AWS itself writes",
    ("ssm:*Parameter", "*:parameter/taplocal/marker/*"): "local: how a restart is known",
    ("cognito-idp:*", "*"): "MiniStack tells no tags of user pools",
    ("glue:*Database", "*:table/tap_stack_analytics_dev"): "MiniStack takes the database for a table",
    ("iam:CreateRole", "*"): "MiniStack tells no iam:PermissionsBoundary",
    ("iam:PutRolePolicy", "*"): "as above",
    **{
        (action, "*"): "MiniStack knows no resource of the action"
        for action in (
            "athena:CreateWorkGroup", "athena:TagResource", "cloudwatch:*Dashboard*",
            "cloudwatch:DeleteAlarms", "cloudwatch:ListTagsForResource", "dynamodb:TagResource",
            "events:*Targets", "kms:*Alias", "lambda:CreateFunction", "scheduler:TagResource",
            "sns:ListTagsForResource", "sns:TagResource",
        )
    },
}  # fmt: skip
#: What the policy allows beside the reads, and nothing here asks for -> why.
UNASKED = {
    "the provider's alone: it has the local engine's state": (
        "dynamodb:UpdateTable", "iam:ListInstanceProfilesForRole", "lambda:DeleteAlias",
        "lambda:DeleteFunctionConcurrency",
        "lambda:GetFunctionConfiguration",
    ),
    "AWS asks it for the caller, MiniStack does not": (
        "apigateway:PUT", "iam:CreateServiceLinkedRole", "iam:PassRole", "kms:CreateGrant",
        "kms:Encrypt", "kms:GenerateDataKey", "logs:*LogDeliver*", "logs:*ResourcePolic*",
    ),
    "MiniStack does not check the request": ("lambda:*FunctionEventInvokeConfig",),
    "tags come with the creation, and none goes": (
        "*:TagResource", "*:Untag*", "iam:TagInstanceProfile", "ssm:RemoveTagsFromResource",
    ),
    "MiniStack lacks the service: the resource is in the state alone": (
        "application-autoscaling:*", "budgets:ModifyBudget", "guardduty:*", "logs:*QueryDefinition",
    ),
    "nothing like it changes here": (
        "cognito-idp:AddCustomAttributes", "cognito-idp:UpdateResourceServer",
        "cognito-idp:UpdateUserPoolClient", "cognito-idp:UpdateUserPoolDomain", "glue:UpdateTable",
        "iam:PutRolePermissionsBoundary", "iam:UpdateRoleDescription", "kms:UpdateAlias",
        "lambda:UpdateAlias", "logs:AssociateKmsKey", "logs:DeleteRetentionPolicy",
        "logs:DisassociateKmsKey", "scheduler:UpdateSchedule",
    ),
    "a release that is watched, as none in dev is": (
        "cloudwatch:GetMetricData", "cloudwatch:PutMetricData",
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
            for more in ({}, CHANGED):
                deployed, _ = session.up(
                    ROOT, "dev", config={**SETTINGS, **more}, say=lambda text: None, **quiet
                )
            types = {each.type for each in deployed.state.resources.values()}
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
    types = deployment.types & allowed.keys()
    assert len(types) > 40
    unasked = set().union(*(allowed[each] for each in types)) - asked - reads
    patterns = [pattern for found in UNASKED.values() for pattern in found]
    rows = {each: [row for row in patterns if fnmatchcase(each, row)] for each in unasked}
    unexplained = ", ".join(sorted(each for each, found in rows.items() if not found))
    in_vain = ", ".join(set(patterns) - {row for found in rows.values() for row in found})
    assert (unexplained, in_vain) == ("", "")
