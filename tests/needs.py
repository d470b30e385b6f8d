"""What each role and each resource policy has to allow, and which operation needs it.

The table that policies are checked against, both ways: what is granted and not here is in vain,
what is here and not granted is missing. `tests/stack/test_needs.py` compares it with the registered
policies, and with AWS's service authorization reference; `make prove-iam` takes each grant away on
the local cloud, and expects its step to fail. `docs/security.md` has the figures.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

Condition = Mapping[str, Mapping[str, Any]]


class Grant(NamedTuple):
    """One action of one statement, on one resource."""

    holder: str  # the logical name of the role, the policy or the permission
    effect: str
    who: str  # empty in the policy of a role
    action: str
    on: str
    when: str  # JSON


@dataclass(frozen=True)
class Need:
    """Actions of a service that something needs, and what needs them.

    `on` is `Kind/name` for a resource of the stack, by its logical name, otherwise an ARN. `why` is
    an operation of the program, or AWS's document that requires it. `step` is what fails on the
    local cloud without it (`tests/local/proof.py`); without one, `why` names AWS's document.
    `forbidden` is what can be done there without the condition alone.
    """

    actions: str
    on: tuple[str, ...] | str = ""
    why: str = ""
    step: str = ""
    when: Condition | None = None
    who: str = ""
    effect: str = "Allow"
    option: str = ""  # only with this setting
    forbidden: str = ""

    def grants(self, holder: str) -> Iterator[Grant]:
        """Each action on each resource."""
        service, _, names = self.actions.partition(":")
        condition = json.dumps(self.when or {}, sort_keys=True)
        for resource in (self.on,) if isinstance(self.on, str) else self.on:
            for name in names.split():
                action = f"{service}:{name}"
                yield Grant(holder, self.effect, self.who, action, resource, condition)


# === Words of the table ===========================================================================

#: Functions' logical names -> the part of their names.
FUNCTIONS = {
    "api-items": "api",
    "api-rotation": "rotation",
    "files-records": "files",
    "database-snapshots": "snapshots",
    "synthetics": "synthetics",
}
KEY = "Key/encryption-key"
OF_TABLE = "DescribeKey Encrypt GenerateDataKey".split()
ACCOUNT: Condition = {"StringEquals": {"aws:SourceAccount": "<account>"}}
NO_TLS: Condition = {"Bool": {"aws:SecureTransport": "false"}}
VIA_ROLE = "instance role; IAM user guide, id_roles_use_switch-role-ec2"

#: AWS's documents that require what the local cloud cannot show.
EXECUTION_ROLE = "Lambda developer guide, lambda-intro-execution-role"
OF_LOGS = "CloudWatch Logs user guide, encrypt-log-data-kms"
OF_TABLES = "KMS developer guide, services-dynamodb: what DynamoDB requires of a key at a minimum"
OF_AGENT = "managed policy CloudWatchAgentServerPolicy"
OF_SESSIONS = "Systems Manager user guide, getting-started-create-iam-instance-profile"
OF_FLOW_LOGS = "VPC user guide, flow-logs-iam-role"
OF_NAT = "`scripts/nat.sh`, which `tests/lab` runs with the rights of the role"
OF_SNAPSHOTS = (
    "service authorization reference: DescribeDBSnapshots is of databases and of snapshots, and names none"
)  # fmt: skip
OF_MONITORING = "managed policy AmazonRDSEnhancedMonitoringRole"
OF_PIPES = "EventBridge user guide, eb-pipes-dynamodb"
OF_EXPORTS = "DynamoDB developer guide, S3DataExport_Requesting"
OF_GUARDDUTY = "GuardDuty user guide, malware-protection-s3-iam-policy-prerequisite"
OF_VOLUMES = "EC2 Auto Scaling user guide, key-policy-requirements-EBS-encryption"
OF_TOPICS = "SNS developer guide, sns-key-management"
OF_ADMINISTRATORS = "KMS developer guide, key-policy-default-allow-administrators"
OF_USERS = "KMS developer guide, key-policy-default-allow-users: what roles are given rests on it"
OF_ACCESS_LOGS = "S3 user guide, enable-server-access-logging"
OF_BALANCER_LOGS = "Elastic Load Balancing user guide, enable-access-logging"


def via(service: str, *actions: str, why: str, step: str = "") -> Need:
    """The use of the key through one service."""
    when = {"StringEquals": {"kms:ViaService": f"{service}.<region>.amazonaws.com"}}
    # ReEncrypt needs two actions at once.
    forbidden = "" if "ReEncryptTo" in actions else "direct use of the key"
    return Need(f"kms:{' '.join(actions)}", KEY, why, step, when, forbidden=forbidden)


def source(arns: str | list[str], operator: str = "ArnLike") -> Condition:
    """The condition that a service of this account acts for one of these."""
    return {**ACCOUNT, operator: {"aws:SourceArn": arns}}


def trusts(service: str, why: str, when: Condition | None = None, step: str = "") -> Need:
    """Whom a role trusts."""
    return Need("sts:AssumeRole", who=f"{service}.amazonaws.com", why=why, when=when, step=step)


def function(name: str, *own: Need, dead_letters: bool = True) -> list[Need]:
    """The needs of each function, and its own."""
    arn = f"arn:aws:lambda:<region>:<account>:function:tap-stack-{FUNCTIONS[name]}-<env>"
    own_variables = {"kms:EncryptionContext:aws:lambda:FunctionArn": [arn, f"{arn}:*"]}
    queue = f"Queue/{name}-dead-letters"
    sends = Need("sqs:SendMessage", queue, "on-failure destination of its events", "letter")
    encrypts = "SQS developer guide, sqs-key-management: producers"
    return [
        trusts("lambda", EXECUTION_ROLE, step="environment"),
        Need("logs:CreateLogStream PutLogEvents", f"LogGroup/{name}-logs:*", EXECUTION_ROLE),
        Need("xray:PutTelemetryRecords PutTraceSegments", "*", "managed policy AWSXRayDaemonWriteAccess"),
        Need("kms:Decrypt", KEY, "its environment's variables at the start", "environment", {"StringLike": own_variables}, forbidden="direct use of the key"),
        *([sends, via("sqs", "Decrypt", "GenerateDataKey", why=encrypts, step="letter")] if dead_letters else []),
        *own,
    ]  # fmt: skip


def starts(name: str, what: str) -> list[Need]:
    """The needs of a schedule that invokes a function."""
    return [
        trusts("scheduler", f"the schedule of {what}", ACCOUNT, "schedule"),
        Need("lambda:InvokeFunction", f"Alias/{name}-live", f"the schedule of {what}", "schedule"),
        via("scheduler", "Decrypt", why="the schedule, which is under the key", step="schedule"),
    ]


def guard(name: str) -> list[Need]:
    """The needs of the schedule that takes a version's share back."""
    why = "UpdateAlias, 30 minutes after a release that was killed"
    alias = Need("lambda:UpdateAlias", f"Function/{name}-function", why, "guard")
    return [trusts("scheduler", why, ACCOUNT, "guard"), alias]


def fleet(name: str, *own: Need) -> list[Need]:
    """The needs of each instance of a fleet, and its own."""
    group = "arn:aws:autoscaling:<region>:<account>:autoScalingGroup:*:autoScalingGroupName/"
    channels = "CreateControlChannel CreateDataChannel OpenControlChannel OpenDataChannel"
    ready = "scripts/start.sh: complete-lifecycle-action"
    return [
        trusts("ec2", VIA_ROLE),
        Need("ssm:UpdateInstanceInformation", "*", OF_SESSIONS),
        Need(f"ssmmessages:{channels}", "*", OF_SESSIONS),
        Need("autoscaling:CompleteLifecycleAction", f"{group}tap-stack-{name}-<env>", ready, "ready"),
        *own,
    ]  # fmt: skip


def agent(logs: str) -> list[Need]:
    """The needs of CloudWatch's agent on an instance."""
    namespace = {"StringEquals": {"cloudwatch:namespace": "CWAgent"}}
    return [
        Need("cloudwatch:PutMetricData", "*", OF_AGENT, "metrics", namespace, forbidden="other metrics"),
        Need("ec2:DescribeTags", "*", OF_AGENT, "tags"),
        Need("logs:CreateLogStream DescribeLogStreams PutLogEvents", f"LogGroup/{logs}:*", OF_AGENT, "log"),
    ]  # fmt: skip


def only_tls(service: str, *resources: str) -> Need:
    """The refusal of requests without TLS."""
    why = "refuses requests without TLS; FSBP S3.5, SQS and SNS likewise"
    return Need(f"{service}", resources, why, when=NO_TLS, who="*", effect="Deny")


def private(bucket: str, *own: Need) -> list[Need]:
    """The policy of a bucket."""
    return [only_tls("s3:*", f"Bucket/{bucket}-bucket", f"Bucket/{bucket}-bucket/*"), *own]


def delivers(bucket: str, of: str) -> Need:
    """The delivery of a bucket's access logs."""
    when = source([f"arn:aws:s3:::tap-stack-{of}-<env>-<account>"], "ArnEquals")
    who = "logging.s3.amazonaws.com"
    return Need(
        "s3:PutObject", f"Bucket/{bucket}-bucket/*", OF_ACCESS_LOGS, when=when, who=who
    )  # fmt: skip


# === The table ====================================================================================

FILES, FILES_TABLE, EXPORTS = (
    "Bucket/files-uploads-bucket",
    "Table/files-table",
    "Bucket/files-analytics-exports-bucket/AWSDynamoDB/*",
)
SNAPSHOTS = "arn:aws:rds:<region>:<account>:snapshot:tap-stack-database-<env>-*"
RULES = "arn:aws:events:<region>:<account>:rule/DO-NOT-DELETE-AmazonGuardDutyMalwareProtectionS3*"
GUARDDUTY = "malware-protection-plan.guardduty.amazonaws.com"
USE = "Decrypt Encrypt GenerateDataKey GenerateDataKeyWithoutPlaintext ReEncryptFrom ReEncryptTo"
MANAGE = (
    "CancelKeyDeletion CreateGrant DisableKey DisableKeyRotation EnableKey "
    "EnableKeyRotation GetKeyPolicy GetKeyRotationStatus ListGrants ListKeyPolicies "
    "ListKeyRotations ListResourceTags PutKeyPolicy RevokeGrant RotateKeyOnDemand "
    "ScheduleKeyDeletion TagResource UntagResource UpdateKeyDescription"
)
#: What each key grants the account.
OF_ACCOUNT = [
    Need(f"kms:{USE} DescribeKey", "*", OF_USERS, "key", who="arn:aws:iam::<account>:root"),
    Need(f"kms:{MANAGE}", "*", OF_ADMINISTRATORS, "key", who="arn:aws:iam::<account>:root"),
    Need("kms:CreateAlias DeleteAlias UpdateAlias", "*", OF_ADMINISTRATORS,
         who="arn:aws:iam::<account>:root"),
]  # fmt: skip
NAMED_NAT: Condition = {"StringEquals": {"aws:ResourceTag/Name": "tap-stack-nat-<env>"}}
UNSCANNED = {
    "aws:PrincipalArn": [
        f"arn:aws:iam::<account>:role/tap-stack-files{each}-<env>" for each in ("", "-malware")
    ]
}
TAG = "GuardDutyMalwareScanStatus"

NEEDS: dict[str, list[Need]] = {
    "api-items-role": function(
        "api-items",
        Need("dynamodb:PutItem", "Table/api-items", "PUT /items/{id}, POST /items", "item put"),
        Need("dynamodb:GetItem", "Table/api-items", "GET /items/{id}", "item get"),
        Need("dynamodb:UpdateItem", "Table/api-items", "PATCH /items/{id}, in a transaction", "item patch"),
        Need("dynamodb:DeleteItem", "Table/api-items", "DELETE /items/{id}", "item delete"),
        Need("dynamodb:Query", "Table/api-items/index/by_owner", "GET /items", "item list"),
        Need("dynamodb:Query", "Table/api-items/index/by_category", "GET /items?category=", "item category"),
        via("dynamodb", "Decrypt", why="each item of a table that is under the key", step="item get"),
        via("dynamodb", *OF_TABLE, why=OF_TABLES),
        via("dynamodb", "ReEncryptFrom", "ReEncryptTo", why=OF_TABLES),
        via("ssm", "Decrypt", why="GetParameter of a SecureString", step="item page"),
        Need("ssm:GetParameter", "Parameter/api-paging-key", "GET /items with a limit: the key of page tokens", "item page"),
        Need("dynamodb:GetItem", FILES_TABLE, "GET /files/{id}", "file get"),
        Need("dynamodb:Query", FILES_TABLE, "GET /files/{id}: its versions; GET /files/totals", "file versions"),
        Need("dynamodb:Query", f"{FILES_TABLE}/index/by_owner", "GET /files", "file list"),
        Need("dynamodb:Query", f"{FILES_TABLE}/index/by_folder", "GET /files?folder=", "file folder"),
        Need("dynamodb:Query", f"{FILES_TABLE}/index/by_content_type", "GET /files?content_type=", "file type"),
        Need("s3:PutObject", f"{FILES}/*", "POST /files: the form is signed with its keys", "file upload"),
        Need("s3:GetObjectVersion", f"{FILES}/*", "GET /files/{id}/content: the URL names a version, and is signed with its keys", "file content"),
        Need("s3:DeleteObject", f"{FILES}/*", "DELETE /files/{id}", "file delete"),
        Need("s3:ListBucket", FILES, "POST /files/{id}/versions of one that S3 has no longer: 404, not 403, where nothing is scanned", "version gone"),
        dead_letters=False,
    ),
    "api-rotation-role": function(
        "api-rotation",
        Need("ssm:GetParameter", "Parameter/api-paging-key", "the rotation: the current key", "rotation"),
        Need("ssm:PutParameter", "Parameter/api-paging-key", "the rotation: the new key", "rotation"),
        via("ssm", "Decrypt", "Encrypt", why="GetParameter and PutParameter of a SecureString", step="rotation"),
    ),
    "files-records-role": function(
        "files-records",
        Need("s3:GetObjectVersion", f"{FILES}/*", "HeadObject and GetObject of the version that was put", "file record"),
        Need("s3:GetObject", f"{FILES}/*", "HeadObject of the newest version", "file record"),
        Need("s3:ListBucket", FILES, "HeadObject of an object that is gone: 404, not 403", "file gone"),
        Need("dynamodb:GetItem", FILES_TABLE, "the newest item of a file", "file record"),
        Need("dynamodb:PutItem", FILES_TABLE, "a version of a file", "file record"),
        Need("dynamodb:UpdateItem", FILES_TABLE, "the totals of a day", "file record"),
        Need("dynamodb:Query", FILES_TABLE, "the versions of a deleted file", "file removed"),
        via("dynamodb", "Decrypt", why="each item of a table that is under the key", step="file record"),
        via("dynamodb", *OF_TABLE, why=OF_TABLES),
        via("dynamodb", "ReEncryptFrom", "ReEncryptTo", why=OF_TABLES),
    ),
    "database-snapshots-role": function(
        "database-snapshots",
        Need("rds:CreateDBSnapshot", ("Instance/database-instance", SNAPSHOTS), "CreateDBSnapshot", "snapshot"),
        Need("rds:AddTagsToResource", SNAPSHOTS, "CreateDBSnapshot with tags", "snapshot",
             {"StringEquals": {"aws:RequestTag/CreatedBy": "tap-stack-snapshots-<env>"}}, forbidden="another tag"),
        Need("rds:DescribeDBSnapshots", "Instance/database-instance", "DescribeDBSnapshots", "snapshot"),
        Need("rds:DescribeDBSnapshots", "arn:aws:rds:<region>:<account>:snapshot:*", OF_SNAPSHOTS),
        Need("rds:DescribeDBSnapshotAttributes", SNAPSHOTS, "DescribeDBSnapshotAttributes: one that is shared is not deleted", "snapshot shared"),
        Need("rds:DeleteDBSnapshot", SNAPSHOTS, "DeleteDBSnapshot of one past retention", "snapshot delete",
             {"StringEquals": {"aws:ResourceTag/CreatedBy": "tap-stack-snapshots-<env>"}}, forbidden="another's snapshot"),
    ),
    "synthetics-role": function(
        "synthetics",
        Need("cognito-idp:DescribeUserPoolClient", "UserPool/identity-pool", "the secret of its app client", "walk"),
        dead_letters=False,
    ),
    "api-items-guard-role": guard("api-items"),
    "files-records-guard-role": guard("files-records"),
    "api-rotation-schedule-role": starts("api-rotation", "the rotation"),
    "synthetics-schedule-role": starts("synthetics", "the walks"),
    "database-snapshots-schedule-role": starts("database-snapshots", "the snapshots"),
    "files-analytics-schedule-role": [
        trusts("scheduler", "the nightly export", ACCOUNT, "export"),
        Need("dynamodb:ExportTableToPointInTime", FILES_TABLE, "the nightly export", "export"),
        Need("s3:AbortMultipartUpload PutObject PutObjectAcl", EXPORTS, OF_EXPORTS, "export"),
        via("dynamodb", "Decrypt", why="the table, which is under the key", step="export"),
        via("s3", "Decrypt", "GenerateDataKey", why="PutObject of an export, which is under the key", step="export"),
        via("scheduler", "Decrypt", why="the schedule, which is under the key", step="export"),
    ],
    "files-events-role": [
        trusts("pipes", OF_PIPES, source([f"arn:aws:pipes:<region>:<account>:pipe/tap-stack-files-{x}-<env>" for x in ("recorded", "deleted")], "ArnEquals"), "file event"),
        Need("dynamodb:DescribeStream GetRecords GetShardIterator ListStreams", f"{FILES_TABLE}/stream/1", OF_PIPES, "file event"),
        via("dynamodb", "Decrypt", why="GetRecords of a table that is under the key", step="file event"),
        Need("events:PutEvents", "arn:aws:events:<region>:<account>:event-bus/default", "the pipe's target", "file event"),
    ],
    "files-malware-role": [
        trusts("malware-protection-plan.guardduty", OF_GUARDDUTY, source("arn:aws:guardduty:<region>:<account>:malware-protection-plan/*"), "file scan"),
        Need("events:DeleteRule PutRule PutTargets RemoveTargets", RULES, OF_GUARDDUTY, when={"StringEquals": {"events:ManagedBy": GUARDDUTY}}),
        Need("events:DescribeRule ListTargetsByRule", RULES, OF_GUARDDUTY),
        Need("s3:GetBucketNotification ListBucket PutBucketNotification", FILES, OF_GUARDDUTY),
        Need("s3:PutObject", f"{FILES}/malware-protection-resource-validation-object", OF_GUARDDUTY),
        Need("s3:GetObjectVersion PutObjectVersionTagging", f"{FILES}/*", OF_GUARDDUTY, "file scan"),
        Need("s3:GetObject GetObjectTagging GetObjectVersionTagging PutObjectTagging", f"{FILES}/*", OF_GUARDDUTY),
    ],
    "network-flow-log-role": [
        trusts("vpc-flow-logs", OF_FLOW_LOGS, source("arn:aws:ec2:<region>:<account>:vpc-flow-log/*")),
        Need("logs:CreateLogStream DescribeLogStreams PutLogEvents", "LogGroup/network-flow-logs:*", OF_FLOW_LOGS),
    ],
    "database-monitoring-role": [
        trusts("monitoring.rds", OF_MONITORING, ACCOUNT),
        Need("logs:CreateLogGroup CreateLogStream DescribeLogStreams GetLogEvents PutLogEvents PutRetentionPolicy",
             "arn:aws:logs:<region>:<account>:log-group:RDSOSMetrics:*", OF_MONITORING),
    ],
    "web-fleet-role": fleet(
        "web",
        Need("rds-db:connect", "arn:aws:rds-db:<region>:<account>:dbuser:database-instance-resource/app", "the application's tokens", "connection"),
        Need("secretsmanager:GetSecretValue", "arn:aws:secretsmanager:<region>:<account>:secret:db", "migrate, at an instance's start", "secret"),
        via("secretsmanager", "Decrypt", why="GetSecretValue of a secret that is under the key", step="secret"),
        *agent("web-logs"),
    ),
    "bastion-fleet-role": fleet("bastion", *agent("bastion-logs")),
    "network-nat-<n>-role": fleet(
        "nat",
        Need("autoscaling:SetInstanceHealth", "arn:aws:autoscaling:<region>:<account>:autoScalingGroup:*:autoScalingGroupName/tap-stack-nat-<env>",
             "scripts/nat.sh: an instance that gets nothing out", "health"),
        Need("ec2:CreateRoute ReplaceRoute", "RouteTable/network-private-instance-routes-<n>", OF_NAT),
        Need("ec2:AssociateAddress", "Eip/network-nat-instance-address-<n>", OF_NAT),
        Need("ec2:AssociateAddress", ("arn:aws:ec2:<region>:<account>:instance/*", "arn:aws:ec2:<region>:<account>:network-interface/*"),
             OF_NAT, when=NAMED_NAT),
        Need("ec2:ModifyInstanceAttribute", "arn:aws:ec2:<region>:<account>:instance/*", OF_NAT, when={"StringEquals": {**NAMED_NAT["StringEquals"], "ec2:Attribute/SourceDestCheck": "false"}}),
    ),
    "encryption-pages-key": [
        *OF_ACCOUNT,
        Need("kms:Decrypt GenerateDataKey", "*", OF_TOPICS, who="cloudwatch.amazonaws.com", when=ACCOUNT),
    ],
    "encryption-key": [
        *OF_ACCOUNT,
        Need(f"kms:{USE} DescribeKey", "*", OF_VOLUMES, who="ServiceLinkedRole/encryption-scaling-role"),
        Need("kms:CreateGrant", "*", OF_VOLUMES, who="ServiceLinkedRole/encryption-scaling-role",
             when={"Bool": {"kms:GrantIsForAWSResource": "true"}}),
        Need(f"kms:{USE}", "*", OF_LOGS, who="logs.<region>.amazonaws.com",
             when={"ArnLike": {"kms:EncryptionContext:aws:logs:arn": "arn:aws:logs:<region>:<account>:log-group:*"}}),
        *(Need("kms:Decrypt GenerateDataKey", "*", OF_TOPICS, who=f"{each}.amazonaws.com", when=ACCOUNT)
          for each in ("budgets", "cloudwatch", "events.rds")),
    ],
    "alerts-pages-policy": [
        Need("sns:Publish", "Topic/alerts-pages", "each page", who="cloudwatch.amazonaws.com",
             when=source("arn:aws:cloudwatch:<region>:<account>:alarm:*")),
        only_tls("sns:Publish", "Topic/alerts-pages"),
    ],
    "alerts-topic-policy": [
        Need("sns:Publish", "Topic/alerts-topic", "each alarm", who="cloudwatch.amazonaws.com",
             when=source("arn:aws:cloudwatch:<region>:<account>:alarm:*")),
        Need("sns:Publish", "Topic/alerts-topic", "the budget", who="budgets.amazonaws.com", when=ACCOUNT),
        Need("sns:Publish", "Topic/alerts-topic", "the database's events", who="events.rds.amazonaws.com",
             when=source("arn:aws:rds:<region>:<account>:db:*")),
        only_tls("sns:Publish", "Topic/alerts-topic"),
    ],
    **{f"{each}-dead-letters-policy": [only_tls("sqs:*", f"Queue/{each}-dead-letters")]
       for each in ("api-rotation", "database-snapshots", "files-records")},
    "files-logs-policy": private("files-logs", delivers("files-logs", "files")),
    "files-uploads-policy": private(
        "files-uploads",
        Need("s3:GetObject GetObjectVersion", f"{FILES}/*", "no file that is not scanned is given out", "",
             {"ArnNotEquals": UNSCANNED, "StringNotEquals": {f"s3:ExistingObjectTag/{TAG}": ["NO_THREATS_FOUND", "UNSUPPORTED"]}},
             who="*", effect="Deny", option="files_malware_protection"),
        Need("s3:PutObject PutObjectTagging PutObjectVersionTagging", f"{FILES}/*", "nobody else tags a file as scanned", "",
             {"ArnNotEquals": UNSCANNED, "ForAnyValue:StringEquals": {"s3:RequestObjectTagKeys": TAG}},
             who="*", effect="Deny", option="files_malware_protection"),
    ),
    "files-analytics-exports-policy": private("files-analytics-exports"),
    "storage-assets-policy": private("storage-assets"),
    "storage-logs-policy": private(
        "storage-logs",
        delivers("storage-logs", "assets"),
        Need("s3:PutObject", "Bucket/storage-logs-bucket/balancer/AWSLogs/<account>/*", OF_BALANCER_LOGS, who="logdelivery.elasticloadbalancing.amazonaws.com",
             when={"ArnLike": {"aws:SourceArn": "arn:aws:elasticloadbalancing:<region>:<account>:loadbalancer/*"}}),
    ),
    "api-invoke": [Need("lambda:InvokeFunction", "Live/tap-stack-api-<env>", "each request of the API", "item get", who="apigateway.amazonaws.com",
                        when={"ArnLike": {"aws:SourceArn": "arn:aws:execute-api:<region>:<account>:api/*"}})],
    "files-invoke": [Need("lambda:InvokeFunction", "Live/tap-stack-files-<env>", "each event of the bucket", "file told", who="s3.amazonaws.com",
                          when={**ACCOUNT, "ArnLike": {"aws:SourceArn": FILES}})],
    "files-scans-invoke": [Need("lambda:InvokeFunction", "Live/tap-stack-files-<env>", "each result of a scan", "file told", who="events.amazonaws.com",
                                when={"ArnLike": {"aws:SourceArn": "EventRule/files-scans"}})],
}  # fmt: skip


def of_table(options: Mapping[str, str]) -> set[Grant]:
    """All grants of the table, under some settings."""
    return {
        grant
        for holder, needs in NEEDS.items()
        for need in needs
        if need.option in ("", *options)
        for grant in need.grants(holder)
    }


def plain(grant: Grant, names: Mapping[str, str]) -> Grant:
    """A grant in the table's words. `names` are texts that depend on the environment, and what the
    table has instead; numbers of resources are `<n>` in it."""

    def named(text: str) -> str:
        for each, name in names.items():
            text = text.replace(each, name)
        text = re.sub(r"\b(nat|routes|address)-\d+", r"\1-<n>", text)
        return text.replace("nat-<n>-<env>", "nat-<env>")

    return Grant(*map(named, grant))


def granted(resource: Any) -> Iterator[Grant]:
    """What the policies of a registered or deployed resource grant, as they say it."""
    inputs = resource.inputs
    if resource.type == "aws:lambda/permission:Permission":
        yield _permission(resource)
    of_role = resource.type == "aws:iam/rolePolicy:RolePolicy"
    holder = resource.name.removesuffix("-policy") if of_role else resource.name
    for field in {"policy", "assumeRolePolicy"} & inputs.keys():
        for statement in json.loads(inputs[field])["Statement"]:
            (who,) = statement.get("Principal", {"": ""}).values()
            when = json.dumps(statement.get("Condition", {}), sort_keys=True)
            found = statement.get("Resource", "")
            for on in [found] if isinstance(found, str) else found:
                for action in statement["Action"]:
                    yield Grant(holder, statement["Effect"], who, action, on, when)


def _permission(resource: Any) -> Grant:
    """A permission as Lambda writes it into the function's policy."""
    inputs = resource.inputs
    when: dict[str, Any] = {"ArnLike": {"aws:SourceArn": inputs["sourceArn"]}}
    if "sourceAccount" in inputs:
        when["StringEquals"] = {"aws:SourceAccount": inputs["sourceAccount"]}
    on, condition = (
        f"{inputs['qualifier'].title()}/{inputs['function']}",
        json.dumps(when, sort_keys=True),
    )
    return Grant(resource.name, "Allow", inputs["principal"], inputs["action"], on, condition)
