"""What is not as on AWS here: one row for each difference, with the inputs that it concerns.

`up` counts the rows that the program touches, `up --explain` lists them, `make docs` writes the
table of docs/local-cloud.md. Each row has a check of its name in tests/local/test_differences.py,
which runs the difference: a row that is not true any more fails.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from taplocal.resources.base import includes, leaves

LAX = "Allowed here, refused on AWS"
IDLE = "Does not happen here"
OTHERWISE = "Happens here in another way"
#: What a difference means to the user, the most important first.
MEANINGS = (LAX, IDLE, OTHERWISE)


@dataclass(frozen=True)
class Difference:
    """One thing that is not as on AWS.

    `silent` lists the metrics that an alarm or the dashboard watches, and that have no data for it.
    `touches` lists what of a program it concerns: a resource type as `<service>/<Type>`, an input
    of it (`.<path>`) that is not empty, or one with a certain value (`.<path>=<value>`).
    """

    key: str  # names its check
    meaning: str
    aws: str
    here: str
    touches: str
    silent: str = ""

    def concerns(self, resource_type: str, inputs: Mapping[str, Any]) -> bool:
        """Whether a resource of a program touches it."""
        given = list(leaves(inputs))
        for kind, path, wanted in self.touched():
            values = [str(value) for at, value in given if value and includes(path, at)]
            if kind == short(resource_type) and (
                wanted in values if wanted else values or not path
            ):
                return True
        return False

    def touched(self) -> Iterator[tuple[str, str, str]]:
        """Resource type, input and value of each part of `touches`; the last two may be empty."""
        for each in self.touches.split():
            kind, _, rest = each.partition(".")
            path, _, value = rest.partition("=")
            yield kind, path, value


def short(resource_type: str) -> str:
    """A type as `touches` has it: `aws:lambda/function:Function` is `lambda/Function`."""
    _, module, name = resource_type.split(":")
    return f"{module.partition('/')[0]}/{name}"


def touched_by(resource_type: str, inputs: Mapping[str, Any]) -> list[str]:
    """The keys of the differences that a resource touches."""
    return [each.key for each in DIFFERENCES if each.concerns(resource_type, inputs)]


def by_meaning(keys: Iterable[str]) -> dict[str, list[Difference]]:
    """Meaning to the user -> the differences with these keys, for the meanings that have any."""
    wanted = set(keys)
    found = {
        meaning: [each for each in DIFFERENCES if each.meaning == meaning and each.key in wanted]
        for meaning in MEANINGS
    }
    return {meaning: rows for meaning, rows in found.items() if rows}


DIFFERENCES = (
    Difference(
        "tls", LAX, "a policy can refuse requests without TLS",
        "a request over loopback counts as one with TLS",
        "s3/BucketPolicy sns/TopicPolicy sqs/QueuePolicy",
    ),
    Difference(
        "packets", LAX, "security groups, routes and gateways let packets through or not",
        "no packet is filtered or forwarded: all is on loopback",
        "vpc/SecurityGroupIngressRule vpc/SecurityGroupEgressRule ec2/Route ec2/NatGateway "
        "ec2/VpcEndpoint",
    ),
    Difference(
        "firewall", LAX, "WAF inspects each request", "no request is inspected", "wafv2/WebAcl",
    ),
    Difference(
        "malware", LAX, "GuardDuty finds what its engines know",
        "only EICAR's test file is a threat; of GuardDuty's API there is SendObjectMalwareScan",
        "guardduty/MalwareProtectionPlan",
    ),
    Difference(
        "trust", LAX, "only whom a role trusts gets its keys",
        "the account's root and instances get the keys of each role; functions, rules and "
        "schedules need its trust",
        "iam/Role",
    ),
    Difference(
        "rights", LAX, "a request needs the right to each resource that it names or makes",
        "to one of them, and to a role that it passes; not to what AWS does for the caller, such "
        "as starting a group's instances",
        "iam/RolePolicy",
    ),
    Difference(
        "keys", LAX, "without the right to a customer-managed key nothing is read or written",
        "log groups need the key when they are made, no longer later; databases, volumes "
        "and the end of a multipart upload never",
        "cloudwatch/LogGroup.kmsKeyId rds/Instance.kmsKeyId ec2/LaunchTemplate.blockDeviceMappings",
    ),
    Difference(
        "sizes", LAX, "memory, processor and disk have the size that is registered",
        "functions, instances and databases have all of this machine's",
        "lambda/Function.memorySize ec2/LaunchTemplate.instanceType rds/Instance.instanceClass "
        "rds/Instance.allocatedStorage",
    ),
    Difference(
        "concurrency", LAX, "an account's functions share its concurrency",
        "only what is reserved for a function limits it", "lambda/Function",
        silent="AWS/Lambda/ClaimedAccountConcurrency",
    ),
    Difference(
        "partitions", LAX, "a partition of a table takes 1,000 writes and 3,000 reads a second",
        "only the table's and the indexes' capacity limits them", "dynamodb/Table",
    ),
    Difference(
        "deletion", LAX, "deletion protection refuses to delete",
        "load balancers and user pools can be deleted",
        "lb/LoadBalancer.enableDeletionProtection cognito/UserPool.deletionProtection=ACTIVE",
    ),
    Difference(
        "second-factor", LAX, "who has a second factor, or must have one, needs it to sign in",
        "a password is enough",
        "cognito/UserPool.mfaConfiguration=ON cognito/UserPool.mfaConfiguration=OPTIONAL",
    ),
    Difference(
        "threats", LAX, "Cognito refuses known passwords and unusual sign-ins",
        "each sign-in is without risk", "cognito/UserPool.userPoolAddOns",
    ),
    Difference(
        "mail", IDLE, "e-mail is sent, and confirmed by its reader",
        "no mail is sent; a subscription is confirmed at once",
        "sns/TopicSubscription.endpoint cognito/UserPool.accountRecoverySetting "
        "cognito/UserPool.emailConfiguration.sourceArn",
    ),
    Difference(
        "budget", IDLE, "a budget notifies when the cost is near its limit",
        "the cost is always 0", "budgets/Budget.notifications",
    ),
    Difference(
        "saved-queries", IDLE, "Logs Insights has the saved queries, and runs them",
        "they are in the stack's state alone; asked by hand, filter, fields, display, stats, sort "
        "and limit are answered, other commands refused",
        "cloudwatch/QueryDefinition",
    ),
    Difference(
        "lifecycle", IDLE, "objects expire, and change their storage class",
        "they stay as they are", "s3/BucketLifecycleConfiguration.rules",
    ),
    Difference(
        "bucket-logs", IDLE, "buckets deliver access logs", "they deliver none", "s3/BucketLogging",
    ),
    Difference(
        "flow-logs", IDLE, "a VPC logs its packets", "it has none to log", "ec2/FlowLog",
    ),
    Difference(
        "log-metrics", IDLE, "a metric filter counts the lines of a log",
        "nothing is counted", "cloudwatch/LogMetricFilter",
        silent="tap-stack/BastionLogins-dev",
    ),
    Difference(
        "records", IDLE, "bastions and NAT instances boot with their user data",
        "groups without a target group are records: their instances are called healthy, none runs",
        "autoscaling/Group.healthCheckType=EC2",
        silent="AWS/AutoScaling/GroupInServiceInstances",
    ),
    Difference(
        "scaling-role", IDLE, "Auto Scaling acts as a service-linked role",
        "it needs none; the role is in the stack's state alone", "iam/ServiceLinkedRole",
    ),
    Difference(
        "warmth", IDLE, "provisioned environments are kept initialized, and scaled",
        "one is started to see that it can; the next request starts another",
        "lambda/ProvisionedConcurrencyConfig appautoscaling/Target appautoscaling/Policy",
    ),
    Difference(
        "maintenance", IDLE, "a database is backed up and maintained in its windows",
        "neither; snapshots that are asked for are made",
        "rds/Instance.backupRetentionPeriod rds/Instance.maintenanceWindow",
    ),
    Difference(
        "database-events", IDLE, "a database publishes its events", "it publishes none",
        "rds/EventSubscription",
    ),
    Difference(
        "database-load", IDLE, "a database measures its memory and its disk's latency",
        "its memory is not limited, and only connections, processor and free disk are measured",
        "rds/Instance",
        silent="AWS/RDS/EBSByteBalance% AWS/RDS/EBSIOBalance% AWS/RDS/FreeableMemory "
        "AWS/RDS/MaximumUsedTransactionIDs AWS/RDS/ReadLatency AWS/RDS/WriteLatency",
    ),
    Difference(
        "database-insight", IDLE, "enhanced monitoring and Performance Insights look into it",
        "neither does", "rds/Instance.monitoringInterval rds/Instance.performanceInsightsEnabled",
    ),
    Difference(
        "traces", OTHERWISE, "X-Ray has the traces",
        "`traces.jsonl` in the data folder has what functions send; X-Ray's API answers nothing",
        "lambda/Function.tracingConfig",
    ),
    Difference(
        "addresses", OTHERWISE, "names of AWS, or yours, are found by DNS and have TLS",
        "API and sign-in are below the emulator's URL, which `status` shows: to it Location, Link "
        "and the contract's server, which begin at the root, are to be joined; no name is resolved",
        "apigatewayv2/Api apigatewayv2/DomainName apigatewayv2/ApiMapping cognito/UserPoolDomain "
        "route53/Record",
    ),
    Difference(
        "certificates", OTHERWISE, "a certificate is issued when its domain is validated",
        "it is issued at once, and the load balancer shows one of the folder's own authority",
        "acm/Certificate",
    ),
    Difference(
        "release-time", OTHERWISE, "a release takes the minutes that are set",
        "1,000 of its seconds take one", "dynamic/Rollout",
    ),
    Difference(
        "fleet-time", OTHERWISE, "health checks, warmup and refreshes of a group take minutes",
        "a minute takes a second", "dynamic/FleetRollout autoscaling/Policy lb/TargetGroup",
    ),
    Difference(
        "retry-time", OTHERWISE, "Lambda tries a failed event again after one minute, then two",
        "after one second, then two: so the deletion of a version that is never recorded becomes a "
        "dead letter, which it does not 90 s later", "lambda/FunctionEventInvokeConfig",
    ),
    Difference(
        "stream-time", OTHERWISE, "a table's stream keeps its changes for a day",
        "until the pipes of the table have read them, each second", "dynamodb/Table.streamEnabled",
    ),
    Difference(
        "exports", OTHERWISE, "an export is of a moment of the last days, and takes minutes",
        "it is of the table as it is, and done at once",
        "scheduler/Schedule.target.arn=arn:aws:scheduler:::aws-sdk:dynamodb:exportTableToPointInTime",
    ),
    Difference(
        "queries", OTHERWISE, "Athena is Trino, and counts what it reads as often as it reads it",
        "DuckDB answers what both understand, and each table counts once", "athena/Workgroup",
    ),
    Difference(
        "alarm-time", OTHERWISE, "alarms are evaluated each minute",
        "when somebody reads an alarm or writes a metric", "cloudwatch/MetricAlarm",
    ),
    Difference(
        "group-metrics", OTHERWISE, "a group measures what it is told to",
        "always its desired and its serving instances, whatever it is told",
        "autoscaling/Group.enabledMetrics",
    ),
    Difference(
        "machine", OTHERWISE, "functions run on the registered processor and Python",
        "on this machine's", "lambda/Function.runtime lambda/Function.architectures",
    ),
    Difference(
        "runtime-log", OTHERWISE, "Lambda's own lines of a log are JSON", "they are plain text",
        "lambda/Function.loggingConfig.logFormat=JSON",
    ),
    Difference(
        "token-errors", OTHERWISE,
        "the API's access log and the challenge of a 401 say what is wrong with a token",
        "they say that it is wrong", "apigatewayv2/Stage.accessLogSettings",
    ),
    Difference(
        "rejected-writes", OTHERWISE, "a write whose condition fails uses capacity",
        "it uses none", "dynamodb/Table",
    ),
)  # fmt: skip
