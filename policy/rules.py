"""Rules as code: what AWS's and our own security rules ask of each resource type of the stack.

One table, for two readers: tests/stack/test_rules.py checks the recorded graphs of all environments
and examples, and the policy pack beside it (`pulumi preview --policy-pack policy`) what Pulumi is
about to deploy. Without packages, because the pack runs in an environment of its own.

Ids are those of AWS Foundational Security Best Practices (FSBP), of the Well-Architected Framework
(WA) or ours (TAP). docs/security.md repeats the tables; `make docs` writes it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from fnmatch import fnmatch
from typing import Any, NamedTuple, Protocol


class Resource(Protocol):
    """A resource as the recorder or Pulumi's engine gives it; inputs by Pulumi's names."""

    @property
    def type(self) -> str: ...
    @property
    def name(self) -> str: ...
    @property
    def inputs(self) -> Mapping[str, Any]: ...
    @property
    def references(self) -> Mapping[str, Iterable[str]]: ...  # input -> URNs of what it is made of
    @property
    def urn(self) -> str: ...


class Check(NamedTuple):
    """A test of a value, and what the value must be, in words."""

    text: str
    holds: Callable[[Any], bool]


class Rule(NamedTuple):
    """What one input of a resource type must be."""

    id: str
    source: str
    type: str
    path: str  # names with dots between them; [] stands for each element of a list
    check: Check
    bad: Any = None  # a value that breaks the rule; None: without the input

    @property
    def name(self) -> str:
        """Unique, and an identifier of a policy."""
        return f"{self.id}-{self.type.replace('/', '-')}-{self.path.replace('[]', '')}".rstrip("-")

    @property
    def text(self) -> str:
        """What the rule asks for, in a sentence's half."""
        return f"`{self.path}` {self.check.text}" if self.path else self.check.text

    def broken(self, inputs: Mapping[str, Any]) -> bool:
        """Whether these inputs break the rule."""
        return not all(self.check.holds(value) for value in values(inputs, self.path))


class Companion(NamedTuple):
    """Another resource that each resource of a type must have, which refers to it by an input."""

    id: str
    source: str
    type: str
    companion: str
    path: str

    @property
    def name(self) -> str:
        """Unique, and an identifier of a policy."""
        return f"{self.id}-{self.type.replace('/', '-')}-has-{self.companion.partition('/')[2]}"

    @property
    def text(self) -> str:
        """What the rule asks for, in a sentence's half."""
        return f"has a `{self.companion}` by its `{self.path}`"

    def lacking(self, resources: Iterable[Resource]) -> list[Resource]:
        """The resources of the type that no companion refers to."""
        everything = list(resources)
        kind = token(self.companion)
        found = {
            urn for x in everything if x.type == kind for urn in x.references.get(self.path, ())
        }
        return [x for x in everything if x.type == token(self.type) and x.urn not in found]


class Exemption(NamedTuple):
    """A rule that a resource need not follow, and why."""

    rule: str  # its id
    resource: str  # logical name; * stands for any text
    tiers: str  # those in which it is needed
    reason: str


class Violation(NamedTuple):
    """A rule that a resource breaks."""

    rule: Rule | Companion
    resource: Resource


def token(kind: str) -> str:
    """The type as Pulumi writes it: s3/bucket -> aws:s3/bucket:Bucket."""
    _, _, last = kind.partition("/")
    return f"aws:{kind}:{last[0].upper()}{last[1:]}"


def values(inputs: Any, path: str) -> Iterator[Any]:
    """What is at a path, at least one value: None where nothing is."""
    step, _, rest = path.partition(".")
    found = inputs if not path else _get(inputs, step.removesuffix("[]"))
    for each in (found or [None]) if step.endswith("[]") else [found]:
        yield from values(each, rest) if rest else [each]


def _get(inputs: Any, key: str) -> Any:
    return inputs.get(key) if isinstance(inputs, Mapping) else None


def violations(resources: Iterable[Resource]) -> list[Violation]:
    """Every rule that some resource breaks, exempted or not."""
    everything = list(resources)
    found = [
        Violation(rule, each)
        for each in everything
        for rule in RULES
        if each.type == token(rule.type) and rule.broken(each.inputs)
    ]
    lacking = [Violation(rule, each) for rule in COMPANIONS for each in rule.lacking(everything)]
    return found + lacking


def tier_of(environment: str) -> str:
    """The tier whose exemptions an environment has: prod, which has fewest, for an unknown one."""
    tier = environment.partition("-")[0]
    return tier if tier in ALL.split() else "prod"


def exemption(rule: str, resource: str, tier: str) -> Exemption | None:
    """The row that lets a resource of this logical name break a rule in a tier."""
    rows = (x for x in EXEMPTIONS if x.rule == rule and tier in x.tiers.split())
    return next((x for x in rows if fnmatch(resource, x.resource)), None)


# Checks

SET = Check("is set", bool)
NOT_SET = Check("is not set", lambda value: not value)


def equals(value: Any) -> Check:
    """Exactly this value; what is not given is not it."""
    return Check(f"is {json.dumps(value)}", lambda found: found == value)


def one_of(*allowed: Any) -> Check:
    """One of these values."""
    return Check(f"is one of {', '.join(map(str, allowed))}", lambda found: found in allowed)


def at_least(number: float) -> Check:
    """A number that is not smaller."""
    return Check(f"is {number} or more", lambda found: found is not None and found >= number)


def at_most(number: float) -> Check:
    """A number that is not larger."""
    return Check(f"is {number} or less", lambda found: found is not None and found <= number)


def without(*forbidden: Any) -> Check:
    """A list, a text or nothing that contains none of these."""
    words = " and ".join(map(str, forbidden))
    return Check(f"has no {words}", lambda found: not any(x in (found or ()) for x in forbidden))


def other_than(*forbidden: Any) -> Check:
    """Any value, or none, but for these."""
    return Check(f"is not {' or '.join(map(str, forbidden))}", lambda found: found not in forbidden)


def including(*wanted: Any) -> Check:
    """A list that contains all of these."""
    words = ", ".join(map(str, wanted))
    return Check(f"has {words}", lambda found: all(x in (found or ()) for x in wanted))


def several(number: int) -> Check:
    """A list with so many elements at least."""
    return Check(f"has {number} or more", lambda found: len(found or ()) >= number)


def some(**fields: Any) -> Check:
    """A list with an element that has these values; True stands for any value."""

    def matches(element: Any) -> bool:
        pairs = ((x, _get(element, key)) for key, x in fields.items())
        return all(bool(found) if x is True else found == x for x, found in pairs)

    words = ", ".join(key if x is True else f"{key} {x}" for key, x in fields.items())
    return Check(f"has one with {words}", lambda found: any(map(matches, found or ())))


def statements(document: str | None, effect: str = "Allow") -> list[dict[str, Any]]:
    """The statements of a policy document with an effect."""
    found = json.loads(document or '{"Statement": []}')["Statement"]
    return [each for each in found if each["Effect"] == effect]


def names(value: str | list[str] | None) -> list[str]:
    """One name or several, as a list."""
    return [value] if isinstance(value, str) else value or []


def _denies_plain_http(document: str | None) -> bool:
    rule = {"Bool": {"aws:SecureTransport": "false"}}
    denied = [x for x in statements(document, "Deny") if x.get("Condition") == rule]
    whole = {"*", "s3:*", "sqs:*", "sns:Publish"}
    return any(
        x["Principal"] == {"AWS": "*"} and whole & set(names(x.get("Action"))) for x in denied
    )


def _spells_out_actions(document: str | None) -> bool:
    actions = [x for each in statements(document) for x in names(each.get("Action", "*"))]
    excluding = any("NotResource" in each for each in statements(document))
    return not (excluding or any("*" in action for action in actions))


#: Action on `*` -> why AWS supports nothing narrower.
STARS = {
    **dict.fromkeys(
        (
            "ssm:UpdateInstanceInformation",
            "ssmmessages:CreateControlChannel",
            "ssmmessages:CreateDataChannel",
            "ssmmessages:OpenControlChannel",
            "ssmmessages:OpenDataChannel",
        ),
        "Session Manager has no resources to name",
    ),
    "cloudwatch:PutMetricData": "metrics have no resources to name; a condition names the namespace",
    "ec2:DescribeTags": "EC2's describing actions have no resources to name",
    "xray:PutTelemetryRecords": "X-Ray has no resources to name",
    "xray:PutTraceSegments": "X-Ray has no resources to name",
}
#: Services that assume a role for nobody but its own account: their tokens carry no source.
UNCONFINED = ("ec2.amazonaws.com", "lambda.amazonaws.com")
#: Actions by which whoever has one gives itself, or others, more than it has (checkov 286 to 290).
ESCALATING = re.compile(
    r"iam:(Add|Attach|Create|Delete|Detach|Put|Set|Update)\w+|sts:AssumeRole\w*|\w+:PutBucketPolicy"
    r"|kms:PutKeyPolicy|lambda:(AddPermission|CreateFunction|UpdateFunction\w+)|ec2:RunInstances"
)


def _names_resources(document: str | None) -> bool:
    wide = [each for each in statements(document) if "*" in names(each.get("Resource"))]
    return all(action in STARS for each in wide for action in names(each.get("Action")))


def _limits_stars(document: str | None) -> bool:
    wide = [each for each in statements(document) if "*" in names(each.get("Resource"))]
    return all(each.get("Condition") for each in wide)


def _names_principals(document: str | None) -> bool:
    for each in statements(document):
        principal = each.get("Principal", {})
        kinds = {"Service", "AWS", "Federated"}
        if not principal or principal == "*" or not principal.keys() <= kinds:
            return False
        named = [name for value in principal.values() for name in names(value)]
        confined = "AWS" in principal or "Condition" in each or set(named) <= set(UNCONFINED)
        if "Federated" in principal:  # where anybody has an identity
            claims = {
                x.rpartition(":")[2] for x in each.get("Condition", {}).get("StringEquals", ())
            }
            confined = {"aud", "sub"} <= claims
        if "*" in named or not confined:
            return False
    return True


def _gives_no_more(document: str | None) -> bool:
    actions = {x for each in statements(document) for x in names(each.get("Action"))}
    passed = [x for x in statements(document) if "iam:PassRole" in names(x.get("Action"))]
    confined = all("iam:PassedToService" in json.dumps(x.get("Condition")) for x in passed)
    return confined and not any(ESCALATING.fullmatch(action) for action in actions)


def _encrypted_or_redirected(listener: Any) -> bool:
    actions = listener.get("defaultActions") or ()
    redirected = any(_get(_get(x, "redirect"), "protocol") == "HTTPS" for x in actions)
    return listener.get("protocol") == "HTTPS" or redirected


def _has_modern_tls(listener: Any) -> bool:
    return listener.get("protocol") != "HTTPS" or listener.get("sslPolicy") in TLS_1_2


def _invoked_for_one_account(permission: Any) -> bool:
    principal = permission.get("principal")  # the name of a bucket tells no account
    told = principal != "s3.amazonaws.com" or permission.get("sourceAccount")
    return principal != "*" and bool(told)


def _authorized(route: Any) -> bool:
    return route.get("authorizationType") == "JWT" and bool(route.get("authorizationScopes"))


def _hides_administration(rule: Any) -> bool:
    first, last = rule.get("fromPort"), rule.get("toPort")
    everywhere = {rule.get("cidrIpv4"), rule.get("cidrIpv6")} & {"0.0.0.0/0", "::/0"}
    return not everywhere or (first == last and first in (80, 443))


TLS_ONLY = Check("denies whoever comes without TLS", _denies_plain_http)
SPELLED_OUT = Check(
    "names each action that it allows, without NotAction, NotResource or a wildcard",
    _spells_out_actions,
)
NAMED_RESOURCES = Check("allows on `*` only what AWS gives no resource", _names_resources)
LIMITED_STARS = Check("allows on `*` only under a condition", _limits_stars)
NAMED_PRINCIPALS = Check(
    "names whom it trusts: services with a condition, federated identities by audience and subject",
    _names_principals,
)
HTTPS = Check("is of https", lambda url: str(url).startswith("https://"))
OWN_POLICY = Check("is no policy of AWS", lambda arn: bool(arn) and ":iam::aws:" not in arn)
NO_ESCALATION = Check("gives nobody the power to give", _gives_no_more)
NO_SECRETS = Check(
    "has no name of a secret",
    lambda found: not any(re.search("SECRET|PASSWORD|TOKEN", x) for x in found or ()),
)
ENCRYPTED_OR_REDIRECTED = Check("is HTTPS or redirects to it", _encrypted_or_redirected)
MODERN_TLS = Check("has a policy of TLS 1.2 or later, if it is HTTPS", _has_modern_tls)
FOR_ONE_ACCOUNT = Check(
    "is not for everybody, and names the account that S3 invokes for", _invoked_for_one_account
)
AUTHORIZED = Check("asks for a token with a scope", _authorized)
WEB_ONLY = Check("is open to the internet on ports 80 and 443 only", _hides_administration)
#: A document that breaks every rule of documents.
OPEN = json.dumps(
    {"Statement": [{"Effect": "Allow", "Action": "*", "Resource": "*", "Principal": "*"}]}
)
GIVING = json.dumps({"Statement": [{"Effect": "Allow", "Action": "iam:PassRole", "Resource": "*"}]})
PYTHONS = ("python3.12", "python3.13", "python3.14")
TLS_1_2 = ("ELBSecurityPolicy-TLS13-1-2-2021-06", "ELBSecurityPolicy-TLS13-1-2-Res-2021-06")

# Rules

#: Type -> what its inputs must be: id, source, path, check, a value that breaks it.
TABLE: dict[str, tuple[tuple[Any, ...], ...]] = {
    "acm/certificate": (
        ("ACM.1", "FSBP", "validationMethod", equals("DNS"), "EMAIL"),
        ("ACM.2", "FSBP", "keyAlgorithm", other_than("RSA_1024"), "RSA_1024"),
    ),
    "apigatewayv2/api": (
        ("TAP.1", "own", "corsConfiguration.allowOrigins", without("*"), ["*"]),
    ),
    "apigatewayv2/authorizer": (
        ("TAP.2", "own", "authorizerType", equals("JWT")),
        ("TAP.3", "own", "jwtConfiguration.issuer", SET),
        ("TAP.4", "own", "jwtConfiguration.audiences", SET, []),
    ),
    "apigatewayv2/domainName": (
        ("TAP.5", "trivy AWS-0005", "domainNameConfiguration.securityPolicy", equals("TLS_1_2")),
    ),
    "apigatewayv2/integration": (
        ("REL05-BP05", "WA", "timeoutMilliseconds", at_most(30_000)),
    ),
    "apigatewayv2/route": (
        ("APIGateway.8", "FSBP", "", AUTHORIZED, {"authorizationType": "NONE"}),
    ),
    "apigatewayv2/stage": (
        ("APIGateway.9", "FSBP, CIS 7.0 4.10", "accessLogSettings.destinationArn", SET),
        ("REL05-BP02", "WA", "defaultRouteSettings.throttlingRateLimit", at_least(1), 0),
        ("REL05-BP02", "WA", "defaultRouteSettings.throttlingBurstLimit", at_least(1), 0),
    ),
    "appautoscaling/policy": (
        ("REL07-BP01", "WA", "policyType", equals("TargetTrackingScaling")),
    ),
    "appautoscaling/target": (
        ("REL07-BP01", "WA", "minCapacity", at_least(1), 0),
    ),
    "athena/workgroup": (
        ("Athena.4", "FSBP", "configuration.publishCloudwatchMetricsEnabled", other_than(False), False),
        ("TAP.6", "checkov 159", "configuration.resultConfiguration.encryptionConfiguration.kmsKeyArn", SET),
        ("TAP.7", "checkov 82", "configuration.enforceWorkgroupConfiguration", equals(True), False),
    ),
    "autoscaling/group": (
        ("AutoScaling.1", "FSBP", "healthCheckType", equals("ELB"), "EC2"),
        ("AutoScaling.2", "FSBP", "vpcZoneIdentifiers", several(2), ["one"]),
        ("AutoScaling.6", "FSBP", "mixedInstancesPolicy.launchTemplate.overrides", several(2), []),
        ("AutoScaling.9", "FSBP", "mixedInstancesPolicy.launchTemplate.launchTemplateSpecification.launchTemplateId", SET),
    ),
    "autoscaling/policy": (
        ("REL07-BP01", "WA", "policyType", equals("TargetTrackingScaling")),
    ),
    "budgets/budget": (
        ("COST02-BP05", "WA", "notifications[].subscriberSnsTopicArns", SET, []),
    ),
    "cloudwatch/compositeAlarm": (
        ("CloudWatch.15", "FSBP", "alarmActions", SET, []),
        ("CloudWatch.17", "FSBP", "actionsEnabled", other_than(False), False),
    ),
    "cloudwatch/logGroup": (
        ("CloudWatch.16", "FSBP", "retentionInDays", at_least(365)),
        ("TAP.8", "own: 0 keeps logs for ever", "retentionInDays", at_least(1), 0),
        ("TAP.9", "checkov 158", "kmsKeyId", SET),
    ),
    "cloudwatch/metricAlarm": (
        ("CloudWatch.15", "FSBP", "alarmActions", SET, []),
        ("CloudWatch.17", "FSBP", "actionsEnabled", other_than(False), False),
        ("TAP.10", "own", "treatMissingData", SET),
    ),
    "cognito/userPool": (
        ("Cognito.1", "FSBP", "userPoolAddOns.advancedSecurityMode", equals("ENFORCED")),
        ("Cognito.3", "FSBP", "passwordPolicy.minimumLength", at_least(14), 8),
        ("Cognito.3", "FSBP", "passwordPolicy.requireLowercase", equals(True)),
        ("Cognito.3", "FSBP", "passwordPolicy.requireUppercase", equals(True)),
        ("Cognito.3", "FSBP", "passwordPolicy.requireNumbers", equals(True)),
        ("Cognito.3", "FSBP", "passwordPolicy.requireSymbols", equals(True)),
        ("Cognito.3", "FSBP", "passwordPolicy.temporaryPasswordValidityDays", at_most(7)),
        ("Cognito.5", "FSBP", "mfaConfiguration", equals("ON"), "OFF"),
        ("Cognito.6", "FSBP", "deletionProtection", equals("ACTIVE")),
        ("TAP.11", "own", "adminCreateUserConfig.allowAdminCreateUserOnly", equals(True)),
        ("TAP.12", "own", "accountRecoverySetting.recoveryMechanisms[].name", equals("verified_email"), "verified_phone_number"),
    ),
    "cognito/userPoolClient": (
        ("TAP.13", "own", "preventUserExistenceErrors", equals("ENABLED")),
        ("TAP.14", "own", "enableTokenRevocation", equals(True)),
        ("TAP.15", "RFC 9700 2.1.2", "allowedOauthFlows", without("implicit"), ["implicit"]),
    ),
    "dynamodb/table": (
        ("DynamoDB.1", "FSBP", "billingMode", equals("PAY_PER_REQUEST"), "PROVISIONED"),
        ("DynamoDB.2", "FSBP", "pointInTimeRecovery.enabled", equals(True)),
        ("DynamoDB.6", "FSBP", "deletionProtectionEnabled", equals(True)),
        ("TAP.16", "checkov 119", "serverSideEncryption.kmsKeyArn", SET),
    ),
    "ec2/defaultSecurityGroup": (
        ("EC2.2", "FSBP, CIS 3.0 5.4", "ingress", equals([]), [{"protocol": "-1"}]),
        ("EC2.2", "FSBP, CIS 3.0 5.4", "egress", equals([]), [{"protocol": "-1"}]),
    ),
    "ec2/flowLog": (
        ("EC2.6", "FSBP, CIS 3.0 3.7", "trafficType", one_of("REJECT", "ALL"), "ACCEPT"),
        ("EC2.6", "FSBP, CIS 3.0 3.7", "logDestination", SET),
    ),
    "ec2/launchTemplate": (
        ("EC2.3", "FSBP", "blockDeviceMappings[].ebs.encrypted", equals("true")),
        ("TAP.17", "checkov 189", "blockDeviceMappings[].ebs.kmsKeyId", SET),
        ("EC2.8", "FSBP, CIS 3.0 5.6", "metadataOptions.httpTokens", equals("required")),
        ("EC2.25", "FSBP", "networkInterfaces[].associatePublicIpAddress", equals("false")),
        ("AutoScaling.4", "FSBP", "metadataOptions.httpPutResponseHopLimit", equals(1)),
        ("TAP.18", "cdk-nag EC28", "monitoring.enabled", equals(True)),
        ("TAP.19", "own", "keyName", NOT_SET, "key"),
        ("TAP.20", "CIS 3.0 1.18", "iamInstanceProfile.arn", SET),
    ),
    "ec2/securityGroup": (
        ("TAP.21", "cdk-nag EC27", "description", SET),
        ("TAP.22", "own: rules are resources", "ingress", NOT_SET, [{"fromPort": 22}]),
        ("TAP.23", "own: rules are resources", "egress", NOT_SET, [{"fromPort": 0}]),
    ),
    "ec2/subnet": (
        ("EC2.15", "FSBP", "mapPublicIpOnLaunch", equals(False)),
    ),
    "iam/openIdConnectProvider": (
        ("TAP.56", "own", "url", HTTPS, "http://tokens.example"),
        ("TAP.57", "own: no token that is for others", "clientIdLists", SET, []),
    ),
    "iam/policy": (
        ("IAM.1", "FSBP, CIS 3.0 1.16", "policy", LIMITED_STARS, OPEN),
        ("IAM.21", "FSBP", "policy", SPELLED_OUT, OPEN),
        ("TAP.26", "checkov 286 to 290", "policy", NO_ESCALATION, GIVING),
    ),
    "iam/role": (
        ("TAP.24", "CIS 3.0 1.16, checkov 60", "assumeRolePolicy", NAMED_PRINCIPALS, OPEN),
        ("TAP.25", "cdk-nag IAM4", "managedPolicyArns", NOT_SET, ["arn:aws:iam::aws:policy/AdministratorAccess"]),
    ),
    "iam/rolePolicy": (
        ("IAM.1", "FSBP, CIS 3.0 1.16", "policy", NAMED_RESOURCES, OPEN),
        ("IAM.21", "FSBP", "policy", SPELLED_OUT, OPEN),
        ("TAP.26", "checkov 286 to 290", "policy", NO_ESCALATION, GIVING),
    ),
    "iam/rolePolicyAttachment": (
        ("TAP.58", "cdk-nag IAM4", "policyArn", OWN_POLICY, "arn:aws:iam::aws:policy/AdministratorAccess"),
    ),
    "kms/key": (
        ("TAP.27", "own: time to notice", "deletionWindowInDays", at_least(7), 1),
        ("KMS.4", "FSBP, CIS 3.0 3.6", "enableKeyRotation", equals(True)),
        ("KMS.5", "FSBP", "policy", NAMED_PRINCIPALS, OPEN),
        ("TAP.28", "own", "policy", SPELLED_OUT, OPEN),
    ),
    "lambda/function": (
        ("Lambda.2", "FSBP", "runtime", one_of(*PYTHONS), "python3.9"),
        ("Lambda.7", "FSBP", "tracingConfig.mode", equals("Active")),
        ("Lambda.3", "FSBP", "vpcConfig.subnetIds", SET),
        ("TAP.29", "checkov 173", "kmsKeyArn", SET),
        ("TAP.30", "checkov 115", "reservedConcurrentExecutions", at_least(1)),
        ("TAP.31", "checkov 45", "environment.variables", NO_SECRETS, {"DB_PASSWORD": "hunter2"}),
        ("TAP.32", "own", "loggingConfig.logGroup", SET),
    ),
    "lambda/functionEventInvokeConfig": (
        ("TAP.33", "checkov 116", "destinationConfig.onFailure.destination", SET),
    ),
    "lambda/permission": (
        ("Lambda.1", "FSBP", "", FOR_ONE_ACCOUNT, {"principal": "*"}),
        ("TAP.34", "checkov 364", "sourceArn", SET),
    ),
    "lb/listener": (
        ("ELB.1", "FSBP", "", ENCRYPTED_OR_REDIRECTED, {"protocol": "HTTP", "defaultActions": []}),
        ("ELB.17", "FSBP", "", MODERN_TLS, {"protocol": "HTTPS", "sslPolicy": None}),
    ),
    "lb/loadBalancer": (
        ("ELB.4", "FSBP", "dropInvalidHeaderFields", equals(True)),
        ("ELB.5", "FSBP, CIS 7.0 4.10", "accessLogs.enabled", equals(True)),
        ("ELB.6", "FSBP", "enableDeletionProtection", equals(True)),
        ("ELB.12", "FSBP", "desyncMitigationMode", one_of("defensive", "strictest"), "monitor"),
        ("ELB.13", "FSBP", "subnets", several(2), ["one"]),
    ),
    "lb/targetGroup": (
        ("ELB.22", "FSBP", "protocol", equals("HTTPS")),
        ("TAP.35", "own", "healthCheck.path", SET),
    ),
    "rds/eventSubscription": (
        (
            "RDS.20", "FSBP", "eventCategories",
            including("configuration change", "failure", "maintenance"), ["failure"],
        ),
        ("RDS.20", "FSBP", "enabled", other_than(False), False),
    ),
    "rds/instance": (
        ("RDS.2", "FSBP, CIS 3.0 2.3.3", "publiclyAccessible", equals(False)),
        ("RDS.3", "FSBP, CIS 3.0 2.3.1", "storageEncrypted", equals(True)),
        ("RDS.5", "FSBP, CIS 7.0 3.2.4", "multiAz", equals(True)),
        ("RDS.6", "FSBP", "monitoringInterval", at_least(1), 0),
        ("RDS.8", "FSBP", "deletionProtection", equals(True)),
        ("RDS.9", "FSBP", "enabledCloudwatchLogsExports", including("postgresql"), []),
        ("RDS.10", "FSBP", "iamDatabaseAuthenticationEnabled", equals(True)),
        ("RDS.11", "FSBP", "backupRetentionPeriod", at_least(7), 1),
        ("RDS.13", "FSBP, CIS 3.0 2.3.2", "autoMinorVersionUpgrade", equals(True)),
        ("RDS.17", "FSBP", "copyTagsToSnapshot", equals(True)),
        ("RDS.18", "FSBP", "dbSubnetGroupName", SET),
        ("RDS.23", "FSBP", "port", other_than(5432), 5432),
        ("RDS.25", "FSBP", "username", other_than("postgres", "admin"), "postgres"),
        ("TAP.36", "own", "manageMasterUserPassword", equals(True)),
        ("TAP.37", "own", "masterUserSecretKmsKeyId", SET),
        ("TAP.38", "own", "kmsKeyId", SET),
        ("TAP.39", "checkov 354", "performanceInsightsKmsKeyId", SET),
    ),
    "rds/parameterGroup": (
        ("RDS.38", "FSBP", "parameters", some(name="rds.force_ssl", value="1"), []),
    ),
    "rds/subnetGroup": (
        ("REL10-BP01", "WA", "subnetIds", several(2), ["one"]),
    ),
    "route53/record": (
        ("TAP.40", "own: what a dangling address would serve", "type", one_of("A", "AAAA", "CNAME"), "NS"),
    ),
    "s3/bucket": (
        ("S3.12", "FSBP", "acl", NOT_SET, "public-read"),
    ),
    "s3/bucketCorsConfiguration": (
        ("TAP.41", "own", "corsRules[].allowedOrigins", without("*"), ["*"]),
    ),
    "s3/bucketLifecycleConfiguration": (
        ("S3.10", "FSBP", "rules", some(noncurrentVersionExpiration=True), []),
        ("S3.13", "FSBP", "rules", some(abortIncompleteMultipartUpload=True, status="Enabled"), []),
    ),
    "s3/bucketLogging": (
        ("S3.9", "FSBP", "targetBucket", SET),
    ),
    "s3/bucketOwnershipControls": (
        ("S3.12", "FSBP", "rule.objectOwnership", equals("BucketOwnerEnforced")),
    ),
    "s3/bucketPolicy": (
        ("S3.5", "FSBP, CIS 3.0 2.1.1", "policy", TLS_ONLY, OPEN),
        ("S3.6", "FSBP", "policy", NAMED_PRINCIPALS, OPEN),
        ("TAP.42", "own", "policy", SPELLED_OUT, OPEN),
    ),
    "s3/bucketPublicAccessBlock": (
        ("S3.8", "FSBP, CIS 3.0 2.1.4", "blockPublicAcls", equals(True)),
        ("S3.8", "FSBP, CIS 3.0 2.1.4", "blockPublicPolicy", equals(True)),
        ("S3.8", "FSBP, CIS 3.0 2.1.4", "ignorePublicAcls", equals(True)),
        ("S3.8", "FSBP, CIS 3.0 2.1.4", "restrictPublicBuckets", equals(True)),
    ),
    "s3/bucketServerSideEncryptionConfiguration": (
        ("S3.17", "FSBP", "rules[].applyServerSideEncryptionByDefault.kmsMasterKeyId", SET),
    ),
    "s3/bucketVersioning": (
        ("S3.14", "FSBP", "versioningConfiguration.status", equals("Enabled")),
    ),
    "scheduler/schedule": (
        ("TAP.43", "checkov 297", "kmsKeyArn", SET),
    ),
    "sns/topic": (
        ("SNS.1", "FSBP", "kmsMasterKeyId", SET),
    ),
    "sns/topicPolicy": (
        ("SNS.4", "FSBP", "policy", NAMED_PRINCIPALS, OPEN),
        ("TAP.44", "cdk-nag SNS3", "policy", TLS_ONLY, OPEN),
        ("TAP.45", "own", "policy", SPELLED_OUT, OPEN),
    ),
    "sns/topicSubscription": (
        ("TAP.46", "prowler: no http endpoint", "protocol", other_than("http"), "http"),
    ),
    "sqs/queue": (
        ("SQS.1", "FSBP", "kmsMasterKeyId", SET),
        ("TAP.47", "own: two weeks to find the cause", "messageRetentionSeconds", at_least(1_209_600)),
    ),
    "sqs/queuePolicy": (
        ("SQS.3", "FSBP", "policy", NAMED_PRINCIPALS, OPEN),
        ("TAP.48", "cdk-nag SQS4", "policy", TLS_ONLY, OPEN),
        ("TAP.49", "own", "policy", SPELLED_OUT, OPEN),
    ),
    "ssm/parameter": (
        ("TAP.50", "checkov CKV2 34", "type", equals("SecureString")),
        ("TAP.51", "checkov 337", "keyId", SET),
        ("TAP.52", "own: in no state", "value", NOT_SET, "secret"),
    ),
    "vpc/securityGroupEgressRule": (
        ("TAP.53", "checkov 23", "description", SET),
        ("TAP.54", "checkov 382", "ipProtocol", other_than("-1"), "-1"),
    ),
    "vpc/securityGroupIngressRule": (
        ("TAP.55", "checkov 23", "description", SET),
        ("EC2.18", "FSBP; EC2.13, EC2.14, CIS 3.0 5.2", "", WEB_ONLY, {"cidrIpv4": "0.0.0.0/0", "fromPort": 22, "toPort": 22}),
    ),
    "wafv2/webAcl": (
        ("WAF.12", "FSBP", "visibilityConfig.cloudwatchMetricsEnabled", equals(True)),
        ("WAF.10", "FSBP", "rules", several(1), []),
    ),
}  # fmt: skip
RULES: tuple[Rule, ...] = tuple(
    Rule(name, source, kind, *rest) for kind, rows in TABLE.items() for name, source, *rest in rows
)

COMPANIONS: tuple[Companion, ...] = (
    Companion("S3.5", "FSBP, CIS 3.0 2.1.1", "s3/bucket", "s3/bucketPolicy", "bucket"),
    Companion("S3.8", "FSBP, CIS 3.0 2.1.4", "s3/bucket", "s3/bucketPublicAccessBlock", "bucket"),
    Companion("S3.9", "FSBP", "s3/bucket", "s3/bucketLogging", "bucket"),
    Companion("S3.11", "FSBP", "s3/bucket", "s3/bucketNotification", "bucket"),
    Companion("S3.12", "FSBP", "s3/bucket", "s3/bucketOwnershipControls", "bucket"),
    Companion("S3.13", "FSBP", "s3/bucket", "s3/bucketLifecycleConfiguration", "bucket"),
    Companion("S3.14", "FSBP", "s3/bucket", "s3/bucketVersioning", "bucket"),
    Companion("S3.17", "FSBP", "s3/bucket", "s3/bucketServerSideEncryptionConfiguration", "bucket"),
    Companion("SNS.4", "FSBP", "sns/topic", "sns/topicPolicy", "arn"),
    Companion("SQS.3", "FSBP", "sqs/queue", "sqs/queuePolicy", "queueUrl"),
    Companion("EC2.2", "FSBP, CIS 3.0 5.4", "ec2/vpc", "ec2/defaultSecurityGroup", "vpcId"),
    Companion("EC2.6", "FSBP, CIS 3.0 3.7", "ec2/vpc", "ec2/flowLog", "vpcId"),
    Companion("EC2.10", "FSBP", "ec2/vpc", "ec2/vpcEndpoint", "vpcId"),
    Companion("ELB.16", "FSBP", "lb/loadBalancer", "wafv2/webAclAssociation", "resourceArn"),
    Companion("RDS.20", "FSBP", "rds/instance", "rds/eventSubscription", "sourceIds"),
    Companion("DynamoDB.4", "FSBP", "dynamodb/table", "backup/selection", "resources"),
    Companion("RDS.26", "FSBP", "rds/instance", "backup/selection", "resources"),
    Companion("WAF.11", "FSBP", "wafv2/webAcl", "wafv2/webAclLoggingConfiguration", "resourceArn"),
)

#: Type -> why no rule asks anything of it.
WITHOUT_RULE = {
    "acm/certificateValidation": "waits for the certificate, and is nothing in AWS",
    "apigatewayv2/apiMapping": "joins a domain name and a stage, which have rules",
    "athena/namedQuery": "the text of a query; the workgroup says what it may do",
    "autoscaling/schedule": "the hours of the bastion, a matter of cost",
    "cloudwatch/dashboard": "shows metrics, and has no settings of access",
    "cloudwatch/eventRule": "a pattern; the target's permission has a rule",
    "cloudwatch/eventTarget": "a function or topic, whose permission or policy has a rule",
    "cloudwatch/queryDefinition": "the text of a query; who runs it needs rights of his own",
    "cloudwatch/logMetricFilter": "counts lines of a log group, which has rules",
    "cognito/resourceServer": "names the scopes that routes ask for",
    "cognito/userPoolDomain": "a name; Cognito serves it with TLS 1.2",
    "ec2/eip": "of a NAT gateway or NAT instance, which is all that is made with one",
    "ec2/internetGateway": "what reaches the internet by it is up to subnets and security groups",
    "ec2/natGateway": "lets nobody in, and has no settings of access",
    "ec2/route": "tests/stack/test_network.py follows each subnet's routes",
    "ec2/routeTable": "tests/stack/test_network.py follows each subnet's routes",
    "ec2/routeTableAssociation": "tests/stack/test_network.py follows each subnet's routes",
    "ec2/vpcEndpoint": "has AWS's default policy: who may do what is up to roles and buckets",
    "glue/catalogDatabase": "a name; the objects that tables stand for are in a bucket with rules",
    "glue/catalogTable": "columns; the objects that it stands for are in a bucket with rules",
    "guardduty/malwareProtectionPlan": "is a control itself; its role's policy has rules",
    "iam/instanceProfile": "hands out a role, which has rules",
    "iam/serviceLinkedRole": "AWS writes its policies",
    "kms/alias": "a name of the key, which has rules",
    "lambda/alias": "a name of a version of the function, which has rules",
    "lambda/invocation": "a call at deployment, and is nothing in AWS",
    "lambda/provisionedConcurrencyConfig": "a number of instances, a matter of cost",
    "pipes/pipe": "moves records by a role, whose policy has rules",
    "s3/bucketNotification": "names a function, whose permission has a rule",
    "scheduler/scheduleGroup": "a name; the schedules have rules",
    "wafv2/webAclAssociation": "joins a web ACL and a load balancer, which have rules",
}

ALL = "dev staging prod"
NOT_PROD = "dev staging"
EXEMPTIONS = tuple(
    Exemption(*row)
    for row in (
        ("APIGateway.8", "*-default", ALL, "any other path: a token is checked, then it is a 404"),
        ("APIGateway.8", "*-get-health", ALL, "who watches the API has no token"),
        ("APIGateway.8", "*-get-openapi-yaml", ALL, "the contract is public"),
        ("APIGateway.8", "*-head-health", ALL, "who watches the API has no token"),
        ("APIGateway.8", "*-head-openapi-yaml", ALL, "the contract is public"),
        ("APIGateway.8", "*-options-proxy", ALL, "browsers ask for CORS without a token"),
        ("AutoScaling.1", "bastion-fleet-group", ALL, "no load balancer is before it"),
        ("AutoScaling.1", "network-nat-*-group", "dev", "no load balancer is before it"),
        ("AutoScaling.2", "network-nat-*-group", "dev", "a NAT instance belongs to one zone"),
        ("AutoScaling.6", "bastion-fleet-group", ALL, "one small instance that can wait"),
        ("AutoScaling.6", "network-nat-*-group", "dev", "one small instance, replaced at once"),
        ("CloudWatch.15", "monitoring-*-long", "staging prod", "half of a composite alarm"),
        ("CloudWatch.15", "monitoring-*-short", "staging prod", "the other half"),
        ("CloudWatch.15", "monitoring-api-release", ALL, "makes others wait: docs/operations.md"),
        ("CloudWatch.16", "*", NOT_PROD, "`log_retention_days`: 14 and 90 days, prod has 365"),
        ("Cognito.1", "identity-pool", ALL, "`threat_protection`: priced by the user"),
        ("Cognito.5", "identity-pool", NOT_PROD, "`mfa`: each person's choice, prod has ON"),
        ("Cognito.6", "identity-pool", NOT_PROD, "`deletion_protection`: prod's only"),
        ("DynamoDB.1", "files-table", ALL, "`files_table_scaling`: bursts wait, decision 12"),
        ("DynamoDB.2", "words-table", "dev", "an example; files can be counted again"),
        ("DynamoDB.4", "*", ALL, "35 days of point-in-time recovery instead of AWS Backup"),
        ("DynamoDB.6", "*", NOT_PROD, "`deletion_protection`: prod's only"),
        ("EC2.25", "bastion-fleet-template", ALL, "`bastion_cidrs` reach it from the internet"),
        ("EC2.25", "network-nat-*-template", "dev", "it is what private instances go out by"),
        ("ELB.1", "web-http", "dev", "`plain_http`: dev has no domain name to certify"),
        ("ELB.6", "web-balancer", NOT_PROD, "`deletion_protection`: prod's only"),
        ("ELB.16", "web-balancer", ALL, "`waf`: priced, and refuses bodies above 8 KB"),
        ("ELB.22", "web-targets", ALL, "TLS ends at the load balancer, whose group alone gets in"),
        ("Lambda.3", "*", ALL, "no function calls what is in the VPC"),
        ("RDS.5", "database-instance", "dev", "`database_multi_az`: doubles the price"),
        ("RDS.8", "database-instance", NOT_PROD, "`deletion_protection`: prod's only"),
        ("RDS.23", "database-instance", ALL, "clients expect 5432; only web's group gets in"),
        ("RDS.26", "database-instance", ALL, "backups of RDS and daily snapshots of our own"),
        ("S3.9", "*-logs-bucket", ALL, "a log of the delivery of logs would feed itself"),
        ("S3.9", "files-analytics-exports-bucket", "prod", "exports, made anew each night"),
        ("S3.11", "*-logs-bucket", ALL, "nothing follows its objects"),
        ("S3.11", "files-analytics-exports-bucket", "prod", "nothing follows its objects"),
        ("S3.11", "state-bucket-bucket", "dev prod", "nothing follows its objects"),
        ("S3.11", "storage-assets-bucket", ALL, "nothing follows its objects"),
        ("S3.17", "*-logs-encryption", ALL, "the delivery of access logs requires SSE-S3"),
        ("S3.17", "files-uploads-encryption", ALL, "SSE-S3 costs nothing: docs/choices.md"),
        ("SNS.4", "emergency-topic-policy", "dev prod", "EventBridge can meet no condition"),
        ("TAP.26", "access-*-deploy-*", "dev prod", "makes roles, none without its boundary"),
        ("TAP.30", "*-items-function", "dev", "`api_concurrency`: a new account has 10 in all"),
        ("TAP.30", "*-rotation-function", ALL, "runs once in 30 days; reserving takes from others"),
        ("TAP.30", "database-snapshots-function", ALL, "runs once a day; as above"),
        ("TAP.30", "synthetics-function", "staging prod", "one walk at a time; as above"),
        ("TAP.30", "words-function", "dev", "an example; falls back in its own time"),
        ("TAP.58", "emergency-role-administrator", "dev prod", "an emergency may need anything"),
        ("WAF.11", "web-firewall", "prod", "metrics and samples; a full log is priced by the GB"),
    )
)
