"""The policies of whoever deploys, generated from the resource types that the program registers.

Pure functions and data: `operations.json` has the actions that the provider needs for each type,
`PLACES` where each of them is allowed, and the functions return statements as Pulumi and boto3 take
them. The names are those that `TapStackArgs.name` gives: settings that name a table or a bucket
themselves need statements of their own. docs/deploy.md has the whole picture.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, NamedTuple

Statement = dict[str, Any]
Document = dict[str, Any]

DOCUMENT_CHARACTERS = 6144  # IAM's quota of a managed policy, without white space
ATTACHED = 10  # IAM's default quota of managed policies on a role

#: Services that get one of the stack's roles, and Auto Scaling, which gets its service-linked one.
PASSED_TO = (
    "autoscaling", "ec2", "lambda", "malware-protection-plan.guardduty", "monitoring.rds", "pipes",
    "scheduler", "vpc-flow-logs",
)  # fmt: skip
#: Services whose service-linked role may not exist yet in an account.
LINKED = (
    "autoscaling", "dynamodb.application-autoscaling", "elasticloadbalancing",
    "email.cognito-idp", "lambda.application-autoscaling", "ops.apigateway", "rds", "spot",
)  # fmt: skip
#: Services that use the stack's key with the deployer's rights.
KEY_USERS = ("dynamodb", "lambda", "rds", "scheduler", "secretsmanager", "ssm")
#: Operations of EC2 that tag what they make.
MAKERS = ("Allocate*", "Authorize*", "Create*", "Run*")
#: What loses data for good. Nobody deploys it away where the data is protected.
STATEFUL = (
    "cognito-idp:DeleteUserPool", "dynamodb:DeleteTable", "kms:ScheduleKeyDeletion",
    "rds:DeleteDBInstance", "rds:DeleteDBSnapshot", "s3:DeleteBucket", "s3:DeleteObject",
    "s3:DeleteObjectVersion",
)  # fmt: skip
#: What reads a secret: its value, or a client's secret.
SECRETS = (
    "cognito-idp:DescribeUserPoolClient", "secretsmanager:GetSecretValue", "ssm:GetParameter",
    "ssm:GetParameterHistory", "ssm:GetParameters", "ssm:GetParametersByPath",
)  # fmt: skip


class Stack(NamedTuple):
    """Which stacks the statements are for: an `environment` of a `project`, in a region.

    The names that they cover are `<project>-<any>-<environment>`, and for buckets
    `<project>-<any>-<environment>-<account>`. `*` as the environment stands for all. What another
    project has whose name begins like this one's is kept apart by its tags, where AWS reads them.
    """

    partition: str
    region: str
    account: str
    project: str
    environment: str

    def arn(self, place: str) -> str:
        """The ARN of a row of `PLACES`; `*` stays what it is."""
        if place == "*":
            return place
        name = f"{self.project}-*-{self.environment}"
        filled = place.format(
            here=f"{self.region}:{self.account}",
            name=name,
            table=name.replace("-", "_"),
            stack=f"{self.project}-{self.environment}",
            path=f"{self.project}/{self.environment}",
            region=self.region,
            account=self.account,
        )
        return f"arn:{self.partition}:{filled}"

    def tags(self, key: str) -> dict[str, str]:
        """The tags of the stack's resources, as keys of a condition."""
        found = {"Project": self.project, "Environment": self.environment}
        return {f"aws:{key}/{name}": value for name, value in found.items()}

    def conditions(self, boundary: str) -> dict[str, Mapping[str, Any]]:
        """The conditions that `PLACES` names."""
        ours, new = self.tags("ResourceTag"), self.tags("RequestTag")
        here = {"aws:RequestedRegion": self.region}
        domains = {kind: [f"{each}.amazonaws.com" for each in kinds] for kind, kinds in
                   {"passed": PASSED_TO, "linked": LINKED}.items()}  # fmt: skip
        users = [f"{each}.{self.region}.amazonaws.com" for each in KEY_USERS]
        template = self.arn("ec2:{here}:launch-template/*")
        return {
            "": {},
            "region": {"StringEquals": here},
            "measured": {"StringEquals": {"cloudwatch:namespace": self.project}},
            "ours": {"StringLike": ours},
            "ours or untagged": {"StringLikeIfExists": ours},
            "new": {"StringLike": new},
            "new in region": {"StringEquals": here, "StringLike": new},
            "created": {"StringLike": {"ec2:CreateAction": list(MAKERS)}},
            "launched": {"ArnLike": {"ec2:LaunchTemplate": template}},
            "granted": {"StringLike": ours, "Bool": {"kms:GrantIsForAWSResource": "true"}},
            "used": {"StringLike": {**ours, "kms:ViaService": users}},
            "passed": {"StringEquals": {"iam:PassedToService": domains["passed"]}},
            "linked": {"StringEquals": {"iam:AWSServiceName": domains["linked"]}},
            "bounded": {"ArnEquals": {"iam:PermissionsBoundary": boundary}},
        }


class Place(NamedTuple):
    """Resources, and under which of the conditions an action is allowed on them."""

    resources: str  # ARNs without `arn:<partition>:`, or `*`
    condition: str = ""


_ANYWHERE = Place("*", "region")
_BUCKET = "s3:::{name}-{account}"
_LOGS = " ".join(
    f"logs:{{here}}:log-group:{name}{end}"
    for name in ("/{name}", "/aws/*/{name}", "/aws/rds/instance/{name}/*")
    for end in ("", ":*")
)
#: Alarms that fleets, tables, their indexes and functions get with target tracking.
_TRACKED = " ".join(
    f"cloudwatch:{{here}}:alarm:TargetTracking-{each}"
    for each in ("{name}-Alarm*", "table/{name}-Alarm*", "table/{name}-Provisioned*",
                 "table/{name}/index/*", "function:{name}:*")
)  # fmt: skip
_LINKED_ROLE = (
    "iam::{account}:role/aws-service-role/autoscaling.amazonaws.com/"
    "AWSServiceRoleForAutoScaling_{stack}"
)
_ROLE, _PROFILE = "iam::{account}:role/{name}", "iam::{account}:instance-profile/{name}"
_EC2, _KEY, _POOL = "ec2:{here}:*/*", "kms:{here}:key/*", "cognito-idp:{here}:userpool/*"
_TARGET = "application-autoscaling:{here}:scalable-target/*"
_PLAN = "guardduty:{here}:malware-protection-plan/*"
_LAUNCHED = " ".join(
    f"ec2:{{here}}:{kind}/*"
    for kind in ("instance", "network-interface", "security-group", "subnet", "volume")
)
_GROUPS = "scheduler:{here}:schedule-group/{name}"
_BALANCERS = (
    "elasticloadbalancing:{here}:loadbalancer/app/{name}/* "
    "elasticloadbalancing:{here}:targetgroup/{name}/* "
    "elasticloadbalancing:{here}:listener/app/{name}/*"
)


def _ours_or_new(resources: str) -> tuple[Place, ...]:
    """For what is tagged as it is made, and has no name."""
    return Place(resources, "ours"), Place(resources, "new")


#: Actions, as `fnmatch` patterns -> where they are allowed. The first one that fits counts.
PLACES: dict[str, tuple[Place, ...]] = {
    "acm:RequestCertificate": (Place("*", "new in region"),),
    # RequestCertificate may ask for it of what it makes, which has no tags yet.
    "acm:AddTagsToCertificate": _ours_or_new("acm:{here}:certificate/*"),
    "acm:*": (Place("acm:{here}:certificate/*", "ours"),),
    "apigateway:PUT": (Place("apigateway:{region}::/tags/*"),),
    # That a route has the tags of its API, or how, no document says: names are ids, too.
    "apigateway:*": (
        Place(" ".join(f"apigateway:{{region}}::/{each}" for each in
                       ("apis", "apis/*", "domainnames", "domainnames/*", "tags/*"))),
    ),
    "application-autoscaling:Describe*": (_ANYWHERE,),
    "application-autoscaling:RegisterScalableTarget": _ours_or_new(_TARGET),
    "application-autoscaling:TagResource": _ours_or_new(_TARGET),
    "application-autoscaling:*": (Place(_TARGET, "ours"),),
    "athena:*": (Place("athena:{here}:workgroup/{name}"),),
    "autoscaling:Describe*": (_ANYWHERE,),
    "autoscaling:*": (Place("autoscaling:{here}:autoScalingGroup:*:autoScalingGroupName/{name}"),),
    "budgets:*": (Place("budgets::{account}:budget/{name}"),),
    "cloudwatch:*Dashboard*": (
        Place("cloudwatch::{account}:dashboard/{stack} cloudwatch::{account}:dashboard/{name}"),
    ),
    "cloudwatch:DescribeAlarms": (_ANYWHERE,),  # of composite alarms AWS tells nothing otherwise
    "cloudwatch:GetMetricData": (_ANYWHERE,),
    "cloudwatch:PutCompositeAlarm": (_ANYWHERE,),  # AWS wants it so
    "cloudwatch:PutMetricData": (Place("*", "measured"),),
    "cloudwatch:*": (Place(f"cloudwatch:{{here}}:alarm:{{name}} {_TRACKED}"),),
    "cognito-idp:CreateUserPool": (Place("*", "new in region"),),
    "cognito-idp:DescribeUserPoolDomain": (_ANYWHERE,),
    "cognito-idp:TagResource": _ours_or_new(_POOL),
    "cognito-idp:*": (Place(_POOL, "ours"),),
    "dynamodb:*": (Place("dynamodb:{here}:table/{name}"),),
    "ec2:DescribeVpcAttribute": (Place("ec2:{here}:vpc/*", "ours"),),
    "ec2:Describe*": (_ANYWHERE,),
    # The default security group exists, without tags, before the program takes it over.
    "ec2:CreateTags": (
        Place(_EC2, "created"),
        Place(_EC2, "ours"),
        Place("ec2:{here}:security-group/*", "new"),
    ),
    "ec2:RevokeSecurityGroup*": (Place("ec2:{here}:security-group/*", "ours or untagged"),),
    "ec2:DisassociateAddress": (
        Place("ec2:{here}:elastic-ip/*", "ours"),
        Place("ec2:{here}:network-interface/*", "ours or untagged"),
    ),
    # The template has to be the stack's own, and whatever it starts comes from one.
    "ec2:RunInstances": (
        Place("ec2:{here}:launch-template/*", "ours"),
        Place(_LAUNCHED, "launched"),
        Place("ec2:{region}::image/* ec2:{region}::snapshot/*", "launched"),
    ),
    "ec2:CreateLaunchTemplateVersion": (Place(_EC2, "ours"),),
    "ec2:CreateRoute": (Place(_EC2, "ours"),),
    "ec2:Create*": _ours_or_new(_EC2),
    "ec2:AllocateAddress": _ours_or_new(_EC2),
    "ec2:AuthorizeSecurityGroup*": (
        Place("ec2:{here}:security-group/*", "ours"),
        Place("ec2:{here}:security-group-rule/*", "new"),
    ),
    "ec2:*": (Place(_EC2, "ours"),),
    "elasticloadbalancing:Describe*": (_ANYWHERE,),
    "elasticloadbalancing:SetWebAcl": (_ANYWHERE,),
    "elasticloadbalancing:*": (Place(_BALANCERS),),
    "events:*": (Place("events:{here}:rule/{name}"),),
    "glue:*": (
        Place("glue:{here}:catalog glue:{here}:database/{table} glue:{here}:table/{table}/* "
              "glue:{here}:userDefinedFunction/{table}/*"),
    ),
    "guardduty:CreateMalwareProtectionPlan": (Place("*", "new in region"),),
    "guardduty:TagResource": _ours_or_new(_PLAN),
    "guardduty:*": (Place(_PLAN, "ours"),),
    "iam:CreateServiceLinkedRole": (Place("iam::{account}:role/aws-service-role/*", "linked"),),
    "iam:*ServiceLinkedRole*": (Place(_LINKED_ROLE),),
    "iam:PassRole": (Place(f"{_ROLE} {_LINKED_ROLE}", "passed"),),
    "iam:CreateRole": (Place(_ROLE, "bounded"),),
    "iam:PutRole*": (Place(_ROLE, "bounded"),),
    "iam:ListInstanceProfilesForRole": (Place(_ROLE),),
    "iam:*InstanceProfile*": (Place(_PROFILE),),
    "iam:*": (Place(f"{_ROLE} {_LINKED_ROLE}"),),
    "kms:CreateKey": (Place("*", "new in region"),),
    "kms:ListAliases": (_ANYWHERE,),
    "kms:*Alias": (
        Place("kms:{here}:alias/{stack} kms:{here}:alias/{name}"), Place(_KEY, "ours"),
    ),
    "kms:TagResource": _ours_or_new(_KEY),
    # CreateKey needs it, too, for a key that has no tags yet.
    "kms:PutKeyPolicy": (Place(_KEY, "ours or untagged"),),
    "kms:CreateGrant": (Place(_KEY, "granted"),),
    "kms:Decrypt": (Place(_KEY, "used"),),
    "kms:Encrypt": (Place(_KEY, "used"),),
    "kms:GenerateDataKey": (Place(_KEY, "used"),),
    "kms:*": (Place(_KEY, "ours"),),
    "lambda:*": (Place("lambda:{here}:function:{name} lambda:{here}:function:{name}:*"),),
    "logs:*LogDeliver*": (_ANYWHERE,),
    "logs:*ResourcePolic*": (_ANYWHERE,),
    "logs:*QueryDefinition*": (_ANYWHERE,),
    "logs:DescribeLogGroups": (_ANYWHERE,),
    "logs:*": (Place(_LOGS),),
    "pipes:*": (Place("pipes:{here}:pipe/{name}"),),
    # The provider's id of a database is DbiResourceId, which RDS takes as a filter of all.
    "rds:DescribeDBInstances": (Place("rds:{here}:db:*"),),
    "rds:*": (
        Place(" ".join(f"rds:{{here}}:{each}" for each in
                       ("db:{name}", "es:{name}", "og:default:*", "pg:{name}",
                        "snapshot:{name}-final-*", "subgrp:{name}"))),
    ),
    "route53:GetChange": (Place("route53:::change/*"),),
    "route53:*": (Place("route53:::hostedzone/*"),),
    "s3:DeleteObject*": (Place(f"{_BUCKET}/*"),),
    "s3:*": (Place(_BUCKET),),
    "scheduler:*ScheduleGroup": (Place(_GROUPS),),
    "scheduler:*Resource": (Place(_GROUPS),),
    "scheduler:*": (
        Place("scheduler:{here}:schedule/default/{name} "
              "scheduler:{here}:schedule/default/{name}-guard scheduler:{here}:schedule/{name}/*"),
    ),
    "secretsmanager:*": (Place("secretsmanager:{here}:secret:rds!db-*"),),
    "sns:*SubscriptionAttributes": (_ANYWHERE,),
    "sns:Unsubscribe": (_ANYWHERE,),
    "sns:*": (Place("sns:{here}:{name}"),),
    "sqs:*": (Place("sqs:{here}:{name} sqs:{here}:{name}-dead-letters"),),
    "ssm:DescribeParameters": (_ANYWHERE,),
    "ssm:*": (Place("ssm:{here}:parameter/{path}/*"),),
    "wafv2:*": (
        Place("wafv2:{here}:regional/webacl/{name}/* wafv2:{region}:*:regional/managedruleset/*/* "
              "elasticloadbalancing:{here}:loadbalancer/app/{name}/*"),
    ),
}  # fmt: skip

#: The same for the boundary of the stack's roles.
ROLE_PLACES: dict[str, tuple[Place, ...]] = {
    "autoscaling:*": PLACES["autoscaling:*"],
    "dynamodb:*": (Place("dynamodb:{here}:table/{name} dynamodb:{here}:table/{name}/*"),),
    "ec2:Describe*": (_ANYWHERE,),
    "ec2:*": (Place(_EC2),),
    "events:PutEvents": (Place("events:{here}:event-bus/default"),),
    "events:*": (Place("events:{here}:rule/DO-NOT-DELETE-AmazonGuardDutyMalwareProtectionS3*"),),
    "kms:*": (Place(_KEY, "ours"),),
    "lambda:*": PLACES["lambda:*"],
    "logs:*": (Place(f"{_LOGS} logs:{{here}}:log-group:RDSOSMetrics:*"),),
    "rds:DescribeDBSnapshots": (Place("rds:{here}:db:{name} rds:{here}:snapshot:*"),),
    "rds:*": (Place("rds:{here}:db:{name} rds:{here}:snapshot:{name}-*"),),
    "rds-db:*": (Place("rds-db:{here}:dbuser:*/app"),),  # an id tells no environment
    "s3:*": (Place(f"{_BUCKET} {_BUCKET}/*"),),
    "secretsmanager:*": PLACES["secretsmanager:*"],
    "sqs:*": PLACES["sqs:*"],
    "ssm:UpdateInstanceInformation": (_ANYWHERE,),
    "ssm:*": PLACES["ssm:*"],
    "*": (_ANYWHERE,),
}


def operations() -> dict[str, Any]:
    """The table of what the provider calls; docs/deploy.md tells where it comes from."""
    found: dict[str, Any] = json.loads(Path(__file__).with_name("operations.json").read_text())
    return found


def actions_by_type(*phases: str) -> dict[str, set[str]]:
    """Each resource type and data source -> the actions of these phases, or of all."""
    table, found = operations(), dict[str, set[str]]()
    for part in ("provider", "beside"):
        for kind, row in table[part].items():
            texts = [row.get(each, "") for each in phases or ("read", "create", "update", "delete")]
            found.setdefault(kind, set()).update(" ".join(texts).split())
    return found


def every_action(*phases: str) -> set[str]:
    """The actions of all types in these phases, or in all."""
    return set().union(*actions_by_type(*phases).values())


def role_actions() -> set[str]:
    """What the roles of the stack have in their policies, all of them together."""
    return set(" ".join(operations()["roles"]).split())


def places_of(action: str, places: Mapping[str, tuple[Place, ...]] = PLACES) -> tuple[Place, ...]:
    """Where an action is allowed. KeyError if no row has it: then its service is new here."""
    for pattern, found in places.items():
        if fnmatchcase(action, pattern):
            return found
    raise KeyError(f"{action} has no place: add a row to bootstrap/permissions.py")


def allowed(
    actions: Iterable[str],
    stack: Stack,
    boundary: str = "",
    places: Mapping[str, tuple[Place, ...]] = PLACES,
) -> list[Statement]:
    """Statements that allow the actions, each where it belongs, in the same order at each call."""
    grouped: dict[Place, list[str]] = {}
    for action in sorted(set(actions)):
        for place in places_of(action, places):
            grouped.setdefault(place, []).append(action)
    conditions = stack.conditions(boundary)
    return [
        _statement("Allow", names, [stack.arn(each) for each in place.resources.split()],
                   conditions[place.condition])
        for place, names in sorted(grouped.items())
    ]  # fmt: skip


def deploy_statements(
    stack: Stack,
    *,
    boundary: str,
    state_bucket: str,
    state_key: str,
    guarded: Sequence[str] = (),
    protected: bool = True,
) -> list[Statement]:
    """What the role that deploys one environment may do.

    All arguments but the last are ARNs: `boundary` is the policy that each role it makes has to
    have, `state_bucket` and `state_key` are Pulumi's, `guarded` is what it must not change, such as
    the roles of deployment and the OIDC provider. `protected` keeps it from deleting data: pass the
    tier's, as in `tier_of(environment) == "prod"`. Costs nothing.
    """
    actions = every_action() - set(STATEFUL if protected else ())
    return [
        *allowed(actions, stack, boundary),
        *_state(stack, state_bucket, state_key, writes=True),
        _statement("Deny", ["iam:*"], [boundary, *guarded]),
        _statement("Deny", ["iam:DeleteRolePermissionsBoundary"], ["*"]),
        *_others(stack, state_key),
        *(
            [_statement("Deny", list(STATEFUL), [f"{state_bucket}/*"], resource="NotResource")]
            if protected
            else []
        ),
    ]


def plan_statements(
    stack: Stack, *, state_bucket: str, state_key: str, secrets: bool = False
) -> list[Statement]:
    """What the role of previews may do: read, and no secret.

    With `secrets` it is what `pulumi refresh` needs, which reads the paging key and the secrets of
    app clients, too: for workflows of reviewed code alone.
    """
    own = _state(stack, state_bucket, state_key, writes=False)
    reads = every_action("read")
    if secrets:
        return [*allowed(reads, stack), *own]
    return [
        *allowed(reads - set(SECRETS) - {"kms:Decrypt"}, stack),
        *own,
        _statement("Deny", list(SECRETS), ["*"]),
        _statement("Deny", ["kms:Decrypt"], [state_key], resource="NotResource"),
    ]


def boundary_statements(stack: Stack, *, state_bucket: str, state_key: str) -> list[Statement]:
    """What any role of the stack may do at most: the boundary of all that the program makes.

    A handler of your own that does more needs its actions in `roles` of operations.json, and the
    bootstrap program run again.
    """
    return [
        *allowed(role_actions(), stack, places=ROLE_PLACES),
        _statement("Deny", ["iam:*", "organizations:*", "sts:AssumeRole"], ["*"]),
        _statement("Deny", ["*"], [state_bucket, f"{state_bucket}/*", state_key]),
        *_others(stack, state_key),
    ]


def documents(statements: Sequence[Statement]) -> list[Document]:
    """The statements as policy documents, each as large as a managed policy may be.

    Raises ValueError if a role could not have them all attached.
    """
    found: list[Document] = []
    for each in statements:
        if found and size({**found[-1], "Statement": [*found[-1]["Statement"], each]}) <= (
            DOCUMENT_CHARACTERS
        ):
            found[-1]["Statement"].append(each)
        else:
            found.append({"Version": "2012-10-17", "Statement": [each]})
    if len(found) > ATTACHED or any(size(each) > DOCUMENT_CHARACTERS for each in found):
        raise ValueError(f"{len(found)} documents are too many, or one is too large, for a role")
    return found


def size(document: Document) -> int:
    """The characters of a document, as IAM counts them: without white space."""
    return len(json.dumps(document, separators=(",", ":")))


def _others(stack: Stack, state_key: str) -> list[Statement]:
    """What another project or environment tagged is its own, also where a name would fit."""
    free = [state_key, *map(stack.arn, ("ec2:{region}::image/*", "ec2:{region}::snapshot/*"))]
    return [
        _statement("Deny", ["*"], free, {"StringNotLike": {key: own}, "Null": {key: "false"}},
                   resource="NotResource")
        for key, own in stack.tags("ResourceTag").items()
    ]  # fmt: skip


def _state(stack: Stack, bucket: str, key: str, writes: bool) -> list[Statement]:
    """Pulumi's state of these stacks: objects and key, not the bucket's or key's own settings."""
    own = [f"{bucket}/.pulumi/*/{stack.environment}{end}" for end in
           (".json*", ".pulumi-tags", "/*")]  # fmt: skip
    objects = ["s3:GetObject", *(["s3:DeleteObject", "s3:PutObject"] if writes else [])]
    uses = ["kms:Decrypt", *(["kms:Encrypt", "kms:GenerateDataKey"] if writes else [])]
    return [
        _statement("Allow", ["s3:ListBucket"], [bucket]),
        # All environments have one: the first login writes it, and nobody changes it.
        _statement("Allow", ["s3:GetObject"], [f"{bucket}/.pulumi/meta.yaml"]),
        _statement("Allow", objects, own),
        _statement("Allow", uses, [key]),
        _statement("Deny", ["s3:ListBucket", *objects], [bucket, f"{bucket}/*"], deny_others=True),
        _statement("Deny", uses, [key], deny_others=True),
    ]


def _statement(
    effect: str,
    actions: Sequence[str],
    resources: Sequence[str],
    condition: Mapping[str, Any] | None = None,
    resource: str = "Resource",
    deny_others: bool = False,
) -> Statement:
    """A statement; with `deny_others` about all actions but these."""
    found = {
        "Effect": effect,
        "NotAction" if deny_others else "Action": list(actions),
        resource: list(resources),
    }
    return {**found, "Condition": dict(condition)} if condition else found
