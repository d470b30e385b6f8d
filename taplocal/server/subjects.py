"""What a request is about, where MiniStack does not tell: resource, tags, boundary, passed role.

MiniStack checks a request on one resource, on `*` for many types, and knows the tags of few. Here
it has the ARN that AWS's service authorization reference gives, the tags of that resource and of
the request, the boundary of a role, and a check of iam:PassRole for the role that is passed. AWS
checks each resource of a request, here it is one: the table says which.
"""

from __future__ import annotations

import contextvars
import json
from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import Any
from urllib.parse import unquote

from ministack.core import iam_actions, iam_evaluator
from ministack.core.responses import get_account_id, get_region
from ministack.services import acm, ec2, iam, tagging

#: MiniStack's action -> AWS's.
ACTIONS = {
    "budgets:CreateBudget": "budgets:ModifyBudget",
    "budgets:DeleteBudget": "budgets:ModifyBudget",
    "budgets:DescribeBudget": "budgets:ViewBudget",
    "budgets:UpdateBudget": "budgets:ModifyBudget",
}
#: Service -> actions, parameter, ARN without `arn:aws:`. The first row with a value counts; the
#: parameter `""` has one in each request, `{}` stands for the value, and alone for an ARN.
RESOURCES: dict[str, tuple[tuple[str, str, str], ...]] = {
    "athena": (
        ("*agResource", "ResourceARN", "{}"),
        ("CreateWorkGroup", "Name", "athena:{here}:workgroup/{}"),
    ),
    "autoscaling": (
        (
            "*Tags", "Tags.member.1.ResourceId",
            "autoscaling:{here}:autoScalingGroup:*:autoScalingGroupName/{}",
        ),
    ),
    "budgets": (
        ("*", "BudgetName", "budgets::{account}:budget/{}"),
        ("*", "Budget.BudgetName", "budgets::{account}:budget/{}"),
    ),
    "cloudwatch": (
        ("*Resource", "ResourceARN", "{}"),
        ("DeleteAlarms", "AlarmNames", "cloudwatch:{here}:alarm:{}"),
        ("*Dashboard", "DashboardName", "cloudwatch::{account}:dashboard/{}"),
        ("DeleteDashboards", "DashboardNames", "cloudwatch::{account}:dashboard/{}"),
        ("PutAlarmMuteRule", "Name", "cloudwatch:{here}:alarm-mute-rule:{}"),
        ("*AlarmMuteRule", "AlarmMuteRuleName", "cloudwatch:{here}:alarm-mute-rule:{}"),
    ),
    "dynamodb": (("*agResource", "ResourceArn", "{}"),),
    "ec2": (
        ("AllocateAddress", "", "ec2:{here}:elastic-ip/*"),
        ("CreateInternetGateway", "", "ec2:{here}:internet-gateway/*"),
        ("CreateLaunchTemplate", "", "ec2:{here}:launch-template/*"),
        ("CreateVpc", "", "ec2:{here}:vpc/*"),
        ("*LaunchTemplate*", "LaunchTemplateId", "ec2:{here}:launch-template/{}"),
        ("*NatGateway", "NatGatewayId", "ec2:{here}:natgateway/{}"),
        ("*Tags", "ResourceId.1", "ec2:{here}:{kind}/{}"),
        ("DisassociateRouteTable", "AssociationId", "ec2:{here}:route-table/{}"),
    ),
    "elasticloadbalancing": (
        ("CreateLoadBalancer", "Name", "elasticloadbalancing:{here}:loadbalancer/app/{}/*"),
        ("CreateTargetGroup", "Name", "elasticloadbalancing:{here}:targetgroup/{}/*"),
        ("*Tags", "ResourceArns.member.1", "{}"),
    ),
    "events": (
        ("*Targets", "Rule", "events:{here}:rule/{}"),
        ("*Rule", "Name", "events:{here}:rule/{}"),
    ),
    "glue": (
        ("*Database", "Name", "glue:{here}:database/{}"),
        ("*Database", "DatabaseInput.Name", "glue:{here}:database/{}"),
    ),
    "iam": (("*InstanceProfile", "InstanceProfileName", "iam::{account}:instance-profile/{}"),),
    "kms": (("*Alias", "AliasName", "kms:{here}:{}"),),
    "lambda": (("CreateFunction", "FunctionName", "lambda:{here}:function:{}"),),
    "rds": (
        ("*Tag*Resource", "ResourceName", "{}"),
        ("*ParameterGroup", "DBParameterGroupName", "rds:{here}:pg:{}"),
        ("*SubnetGroup*", "DBSubnetGroupName", "rds:{here}:subgrp:{}"),
    ),
    "sns": (("*Resource", "ResourceArn", "{}"),),
    "wafv2": (
        ("*Resource", "ResourceARN", "{}"),
        ("AssociateWebACL", "WebACLArn", "{}"),
        ("DisassociateWebACL", "ResourceArn", "{}"),
    ),
}  # fmt: skip
#: Prefix of an id of EC2 -> its type; the others have their prefix as their type.
KINDS = {
    "eipalloc": "elastic-ip",
    "igw": "internet-gateway",
    "lt": "launch-template",
    "nat": "natgateway",
    "rtb": "route-table",
    "sg": "security-group",
    "vpce": "vpc-endpoint",
}
#: Action -> parameter with the role that it passes, and to which service.
PASSED = {
    "iam:AddRoleToInstanceProfile": ("RoleName", "ec2"),
    "lambda:CreateFunction": ("Role", "lambda"),
    "lambda:UpdateFunctionConfiguration": ("Role", "lambda"),
    "pipes:CreatePipe": ("RoleArn", "pipes"),
    "pipes:UpdatePipe": ("RoleArn", "pipes"),
    "rds:CreateDBInstance": ("MonitoringRoleArn", "monitoring.rds"),
    "rds:ModifyDBInstance": ("MonitoringRoleArn", "monitoring.rds"),
    "scheduler:CreateSchedule": ("Target.RoleArn", "scheduler"),
    "scheduler:UpdateSchedule": ("Target.RoleArn", "scheduler"),
}
#: The action of this request.
asked: contextvars.ContextVar[str] = contextvars.ContextVar("asked", default="")
#: The role that this request passes, and to which service.
passed: contextvars.ContextVar[tuple[str, str]] = contextvars.ContextVar("passed", default=("", ""))


def document(body: bytes) -> Any:
    """What a JSON body has; None for another one, of which its service tells what is wrong."""
    try:
        return json.loads(body)
    except ValueError:
        return None


def value(path: str, body: bytes, parameters: Mapping[str, Any]) -> str:
    """The value of a parameter, of a JSON body or a form; the first of a list; empty if none."""
    form = parameters.get(path) or parameters.get(f"{path}.member.1")
    found: Any = form[0] if isinstance(form, list) else form
    if not found:
        found = document(body)
        for step in path.split("."):
            found = found.get(step) if isinstance(found, dict) else None
        found = found[0] if isinstance(found, list) and found else found
    return found if isinstance(found, str) else ""


def filled(place: str, name: str, region: str, account: str) -> str:
    """The ARN of a row with a name in it."""
    kind = KINDS.get(name.partition("-")[0], name.partition("-")[0])
    return "arn:aws:" + place.format(name, here=f"{region}:{account}", account=account, kind=kind)


def name_actions() -> None:
    """Makes actions those of AWS, and notes them.

    MiniStack knows a part of Lambda's: it takes UpdateAlias for ListAliases.
    """
    original, of_lambda = iam_actions.extract_iam_action, iam_actions._lambda_action
    iam_actions._BOTOCORE_SERVICE_MAP["lambda"] = ["lambda"]

    def lambda_action(method: str, path: str) -> Any:
        if path.endswith("/invocations"):
            return of_lambda(method, path)
        return iam_actions._match_rest_action("lambda", method, path) or of_lambda(method, path)

    def action(*request: Any) -> Any:
        found = original(*request)
        found = ACTIONS.get(found, found)
        asked.set(found or "")
        return found

    iam_actions.extract_iam_action, iam_actions._lambda_action = action, lambda_action


def name_resources() -> None:
    """Makes the resource that of the table, and notes the role that is passed."""
    original = iam_actions.extract_resource_arn

    def resource(
        service: str, method: str, path: str, headers: Any, body: bytes,
        parameters: Mapping[str, Any], region: str, account: str,
    ) -> Any:  # fmt: skip
        found = original(service, method, path, headers, body, parameters, region, account)
        prefix, _, action = asked.get().partition(":")
        parameter, to = PASSED.get(asked.get(), ("", ""))
        role = value(parameter, body, parameters) if parameter else ""
        arn = role if role.startswith("arn:") else f"arn:aws:iam::{account}:role/{role}"
        passed.set((arn, f"{to}.amazonaws.com") if role else ("", ""))
        if path.startswith("/tags/arn"):
            return unquote(path.removeprefix("/tags/"))
        for actions, parameter, place in RESOURCES.get(prefix, ()):
            if not fnmatchcase(action, actions):
                continue
            if name := value(parameter, body, parameters) if parameter else "*":
                return name if place == "{}" else filled(place, name, region, account)
        return found

    iam_actions.extract_resource_arn = resource


def tell_tags() -> None:
    """Makes the tags of certificates, user pools and what EC2 has known, and of more requests."""
    tags_of, of_request = tagging.resource_tags, iam_actions.request_tag_context
    tagging._RESOURCE_TAG_COLLECTORS["cognito-idp"] = tagging._collect_cognito
    iam_actions._TAG_MEMBERS = iam_actions._TAG_MEMBERS | {"TagSpecifications", "UserPoolTags"}

    def known(arn: str) -> Any:
        service, _, name = arn.partition(":")[2].partition(":")[2].partition(":")
        if service == "acm":
            return _plain(acm._certificates.get(arn, {}).get("Tags", []))
        if service != "ec2":
            return tags_of(arn)
        name = name.rpartition("/")[2]
        return _plain(ec2._tags.get(_associated(name) or name, []))

    def context(service: str, action: str, body: bytes, parameters: Any) -> dict[str, Any]:
        if action == "cognito-idp:CreateUserPool":
            body = json.dumps({"Tags": (document(body) or {}).get("UserPoolTags", {})}).encode()
        found: dict[str, Any] = of_request(service, action, body, parameters)
        if boundary := _boundary(action, body, parameters):
            found["iam:PermissionsBoundary"] = boundary
        return found

    tagging.resource_tags, iam_actions.request_tag_context = known, context


def _plain(tags: list[dict[str, str]]) -> dict[str, str] | None:
    return {each["Key"]: each["Value"] for each in tags} or None


def _associated(name: str) -> str:
    """The id of the route table of an association; empty if there is none."""
    found = (
        table_id
        for table_id, table in ec2._route_tables.items()
        for each in table["Associations"]
        if each["RouteTableAssociationId"] == name
    )
    return next(found, "")


def _boundary(action: str, body: bytes, parameters: Mapping[str, Any]) -> str:
    """The boundary of a role that is made, or of the one whose policies are changed."""
    if action in ("iam:CreateRole", "iam:PutRolePermissionsBoundary"):
        return value("PermissionsBoundary", body, parameters)
    if not action.startswith(("iam:PutRole", "iam:AttachRole", "iam:DeleteRole")):
        return ""
    name = value("RoleName", body, parameters)
    role = iam._roles.get_scoped(get_account_id(), None, name) or {}
    return str(role.get("PermissionsBoundary") or "")


def check_passed_roles() -> None:
    """Makes whoever passes a role need iam:PassRole on it."""
    enforce, explain = iam_evaluator.enforce, iam_actions.access_denied_response

    def enforced(access_key: str, action: str, *request: Any, **more: Any) -> Any:
        denied = enforce(access_key, action, *request, **more)
        role, to = passed.get()
        if denied or not role or action != asked.get():
            return denied
        keys = {"iam:PassedToService": to}
        denied = iam_evaluator.enforce(
            access_key, "iam:PassRole", "iam", get_region(), role, service_context=keys
        )
        if denied:
            asked.set("iam:PassRole")
        return denied

    def explained(service: str, action: str, *request: Any, **more: Any) -> Any:
        role = asked.get() == "iam:PassRole"
        return explain(service, "iam:PassRole" if role else action, *request, **more)

    iam_evaluator.enforce, iam_actions.access_denied_response = enforced, explained


def install() -> None:
    """Replaces MiniStack's functions, after those of policies."""
    name_actions()
    name_resources()
    tell_tags()
    check_passed_roles()
