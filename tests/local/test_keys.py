"""Customer-managed keys: who uses what they encrypt needs the key, and services its policy."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from botocore.exceptions import ClientError

from taplocal.session import Session
from tests.local.small import NOTHING, Small, code, document, statement
from tests.local.test_policies import API, FILES, ITEM, RECORD, ROTATION, TABLE, as_role

Calls = dict[str, Callable[[], Any]]


class Encrypted:
    """A bucket, a queue, a topic, a secret and a parameter under one key, and a role for them."""

    def __init__(self, small: Small, policy: str = ""):
        self.small, name = small, small.name
        self.key = small.key(policy)
        self.role = small.role(NOTHING)
        url = small.queue(KmsMasterKeyId=self.key)
        s3, sns = small.client("s3"), small.client("sns")
        small.bucket()
        rule = {"SSEAlgorithm": "aws:kms", "KMSMasterKeyID": self.key}
        rules = {"Rules": [{"ApplyServerSideEncryptionByDefault": rule}]}
        s3.put_bucket_encryption(Bucket=name, ServerSideEncryptionConfiguration=rules)
        s3.put_object(Bucket=name, Key="x", Body=b"1")
        topic = sns.create_topic(Name=name, Attributes={"KmsMasterKeyId": self.key})["TopicArn"]
        small.later(sns.delete_topic, TopicArn=topic)
        secrets, ssm = small.client("secretsmanager"), small.client("ssm")
        secrets.create_secret(Name=name, SecretString="s", KmsKeyId=self.key)
        small.later(secrets.delete_secret, SecretId=name, ForceDeleteWithoutRecovery=True)
        put = {"Name": f"/{name}", "Value": "v", "Type": "SecureString", "KeyId": self.key}
        ssm.put_parameter(**put)
        small.later(ssm.delete_parameter, Name=f"/{name}")
        as_role_ = {
            each: as_role(small.deployed, self.role.rpartition("/")[2], each)
            for each in ("s3", "sqs", "sns", "secretsmanager", "ssm")
        }
        a_s3, a_sqs, a_sns, a_secrets, a_ssm = as_role_.values()
        #: Actions on the key -> calls that need them all.
        self.calls: dict[str, Calls] = {
            "kms:GenerateDataKey": {
                "put an object": lambda: a_s3.put_object(Bucket=name, Key="x", Body=b"2")
            },
            "kms:Decrypt": {
                "get an object": lambda: a_s3.get_object(Bucket=name, Key="x"),
                "receive": lambda: a_sqs.receive_message(QueueUrl=url),
                "read a secret": lambda: a_secrets.get_secret_value(SecretId=name),
                "read a parameter": lambda: a_ssm.get_parameter(
                    Name=f"/{name}", WithDecryption=True
                ),
            },
            "kms:Encrypt": {"put a parameter": lambda: a_ssm.put_parameter(**put, Overwrite=True)},
            "kms:GenerateDataKey kms:Decrypt": {
                "send": lambda: a_sqs.send_message(QueueUrl=url, MessageBody="m"),
                "publish": lambda: a_sns.publish(TopicArn=topic, Message="m"),
                "change a secret": lambda: a_secrets.put_secret_value(
                    SecretId=name, SecretString="t"
                ),
            },
        }
        self.free: Calls = {
            "head an object": lambda: a_s3.head_object(Bucket=name, Key="x"),
            "read the cipher": lambda: a_ssm.get_parameter(Name=f"/{name}"),
        }

    def may(self, *of_key: str, **when: Any) -> None:
        """Gives the role all rights but on the key, and there these."""
        everything = statement("s3:*", "sqs:*", "sns:*", "secretsmanager:*", "ssm:*", on="*")
        on_key = [statement(*of_key, on=self.key, **when)] if of_key else []
        self.small.grant(self.role, everything, *on_key)

    def codes(self) -> dict[str, str]:
        """The error code of each call."""
        return {name: code(call) for calls in self.calls.values() for name, call in calls.items()}


@pytest.fixture
def encrypted(small: Small) -> Encrypted:
    return Encrypted(small)


DENIED = {
    "put an object": "AccessDenied", "get an object": "AccessDenied",
    "receive": "KMS.AccessDeniedException", "send": "KMS.AccessDeniedException",
    "publish": "KMSAccessDenied", "put a parameter": "AccessDeniedException",
    "read a parameter": "AccessDeniedException", "read a secret": "AccessDeniedException",
    "change a secret": "AccessDeniedException",
}  # fmt: skip


def test_a_caller_needs_each_action_on_the_key(encrypted: Encrypted) -> None:
    encrypted.may()
    assert encrypted.codes() == DENIED
    assert [code(call) for call in encrypted.free.values()] == ["", ""]
    everything = {"kms:GenerateDataKey", "kms:Decrypt", "kms:Encrypt"}
    for needed, calls in encrypted.calls.items():
        for action in needed.split():
            encrypted.may(*sorted(everything - {action}))
            assert {name: code(call) for name, call in calls.items()} == {
                name: DENIED[name] for name in calls
            }
    encrypted.may(*sorted(everything))
    assert set(encrypted.codes().values()) == {""}


def test_the_error_names_the_key_and_the_action(encrypted: Encrypted) -> None:
    encrypted.may()
    with pytest.raises(
        ClientError, match=r"to perform: kms:Decrypt on resource: arn:aws:kms:.+:key/"
    ):
        encrypted.calls["kms:Decrypt"]["receive"]()


def test_a_condition_on_the_service_holds(encrypted: Encrypted) -> None:
    region = encrypted.small.deployed.cloud.region
    via = {"StringEquals": {"kms:ViaService": f"sqs.{region}.amazonaws.com"}}
    encrypted.may("kms:GenerateDataKey", "kms:Decrypt", "kms:Encrypt", Condition=via)
    allowed = {name for name, found in encrypted.codes().items() if not found}
    assert allowed == {"send", "receive"}


def test_a_condition_on_the_encryption_context_holds(encrypted: Encrypted) -> None:
    mine = encrypted.small.arn("sqs", encrypted.small.name)
    context = {"StringEquals": {"kms:EncryptionContext:aws:sqs:arn": mine}}
    encrypted.may("kms:GenerateDataKey", "kms:Decrypt", "kms:Encrypt", Condition=context)
    assert {name for name, found in encrypted.codes().items() if not found} == {"send", "receive"}


def test_the_keys_policy_must_allow_too_or_a_grant(encrypted: Encrypted) -> None:
    kms, key = encrypted.small.client("kms"), encrypted.key
    encrypted.may("kms:GenerateDataKey", "kms:Decrypt", "kms:Encrypt")
    nobody = document({**statement("kms:*", on="*"), "Principal": {"AWS": "999999999999"}})
    kms.put_key_policy(KeyId=key, PolicyName="default", Policy=nobody)
    assert encrypted.codes() == DENIED
    kms.create_grant(KeyId=key, GranteePrincipal=encrypted.role, Operations=["Decrypt"])
    allowed = {name for name, found in encrypted.codes().items() if not found}
    assert allowed == set(encrypted.calls["kms:Decrypt"])


def test_a_bucket_under_s3s_own_key_or_one_that_is_named(encrypted: Encrypted) -> None:
    s3 = as_role(encrypted.small.deployed, encrypted.role.rpartition("/")[2], "s3")
    put = {"Bucket": encrypted.small.name, "Key": "x", "Body": b"3"}
    encrypted.may()
    s3.put_object(**put, ServerSideEncryption="AES256")
    s3.get_object(Bucket=encrypted.small.name, Key="x")
    other = {"ServerSideEncryption": "aws:kms", "SSEKMSKeyId": encrypted.key}
    encrypted.small.client("s3").delete_bucket_encryption(Bucket=encrypted.small.name)
    assert code(lambda: s3.put_object(**put, **other)) == "AccessDenied"


def test_a_disabled_key_is_refused(encrypted: Encrypted) -> None:
    encrypted.may("kms:GenerateDataKey", "kms:Decrypt", "kms:Encrypt")
    encrypted.small.client("kms").disable_key(KeyId=encrypted.key)
    assert encrypted.codes() == {
        "put an object": "KMS.DisabledException", "get an object": "KMS.DisabledException",
        "receive": "KMS.DisabledException", "send": "KMS.DisabledException",
        "publish": "KMSDisabled", "put a parameter": "InvalidKeyId",
        "read a parameter": "InvalidKeyId", "read a secret": "DecryptionFailure",
        "change a secret": "DecryptionFailure",
    }  # fmt: skip


def test_a_topic_and_an_alarm_need_the_policy_of_the_key(small: Small) -> None:
    """From the alarm through the topic to the queue, each under a key of its own policy."""
    sns, metrics = small.client("sns"), small.client("cloudwatch")
    account = {"AWS": small.deployed.cloud.account}

    def key_for(service: str) -> str:
        source = {"StringEquals": {"aws:SourceAccount": small.deployed.cloud.account}}
        use = statement("kms:Decrypt", "kms:GenerateDataKey", on="*", Condition=source)
        root = {**statement("kms:*", on="*"), "Principal": account}
        return document(root, {**use, "Principal": {"Service": service}})

    topic_key, queue_key = small.key(key_for("none.amazonaws.com")), small.key()
    small.queue(KmsMasterKeyId=queue_key)
    queue = small.arn("sqs", small.name)
    to_queue = {"Principal": {"Service": "sns.amazonaws.com"}}
    small.client("sqs").set_queue_attributes(
        QueueUrl=small.client("sqs").get_queue_url(QueueName=small.name)["QueueUrl"],
        Attributes={"Policy": document({**statement("sqs:SendMessage", on=queue), **to_queue})},
    )
    topic = sns.create_topic(Name=small.name, Attributes={"KmsMasterKeyId": topic_key})["TopicArn"]
    small.later(sns.delete_topic, TopicArn=topic)
    sns.subscribe(TopicArn=topic, Protocol="sqs", Endpoint=queue)
    metrics.put_metric_alarm(
        AlarmName=small.name, Namespace="small", MetricName="m", ComparisonOperator=ABOVE,
        Threshold=0, EvaluationPeriods=1, Period=60, Statistic="Sum", AlarmActions=[topic],
    )  # fmt: skip
    small.later(metrics.delete_alarms, AlarmNames=[small.name])
    kms = small.client("kms")
    through = [
        (topic_key, "cloudwatch.amazonaws.com", 0),
        (queue_key, "sns.amazonaws.com", 1),
    ]
    for key, service, arrived in through:
        alarm(metrics, small.name)
        assert small.messages() == []
        kms.put_key_policy(KeyId=key, PolicyName="default", Policy=key_for(service))
        alarm(metrics, small.name)
        assert len(small.messages()) == arrived


ABOVE = "GreaterThanThreshold"


def alarm(metrics: Any, name: str) -> None:
    for state in ("OK", "ALARM"):
        metrics.set_alarm_state(AlarmName=name, StateValue=state, StateReason="test")


def test_a_log_group_needs_the_policy_of_its_key(small: Small) -> None:
    logs, region = small.client("logs"), small.deployed.cloud.region
    key = small.key()
    create = {"logGroupName": small.name, "kmsKeyId": key}
    assert code(lambda: logs.create_log_group(**create)) == "InvalidParameterException"
    group = small.arn("logs", f"log-group:{small.name}")
    root = {"Principal": {"AWS": small.deployed.cloud.account}}
    context = {"ArnEquals": {"kms:EncryptionContext:aws:logs:arn": group}}
    use = statement("kms:*", on="*", Condition=context)
    policy = document(
        {**statement("kms:*", on="*"), **root},
        {**use, "Principal": {"Service": f"logs.{region}.amazonaws.com"}},
    )
    small.client("kms").put_key_policy(KeyId=key, PolicyName="default", Policy=policy)
    logs.create_log_group(**create)
    small.later(logs.delete_log_group, logGroupName=small.name)


PAGING = {"Name": "/tap-stack/dev/paging-key"}
#: Role of the program, what it calls, the action on the key that this needs.
OF_PROGRAM = [
    (API, "ssm", "get_parameter", {**PAGING, "WithDecryption": True}, "kms:Decrypt"),
    (API, "dynamodb", "get_item", {"TableName": TABLE, "Key": ITEM}, "kms:Decrypt"),
    (API, "dynamodb", "put_item", {"TableName": TABLE, "Item": ITEM}, "kms:Decrypt"),
    (ROTATION, "ssm", "get_parameter", {**PAGING, "WithDecryption": True}, "kms:Decrypt"),
    (ROTATION, "ssm", "put_parameter", {**PAGING, "Value": "x", "Type": "SecureString"}, "kms:Encrypt"),
    (FILES, "dynamodb", "put_item", RECORD, "kms:Decrypt"),
]  # fmt: skip


@contextmanager
def without(deployed: Session, role: str, action: str) -> Iterator[None]:
    """Takes an action from the policy of a role, for a moment."""
    iam = deployed.cloud.client("iam")
    (name,) = iam.list_role_policies(RoleName=role)["PolicyNames"]
    granted = iam.get_role_policy(RoleName=role, PolicyName=name)["PolicyDocument"]

    def grant(statements: list[dict[str, Any]]) -> None:
        policy = json.dumps({**granted, "Statement": statements})
        iam.put_role_policy(RoleName=role, PolicyName=name, PolicyDocument=policy)

    def kept(statement: dict[str, Any]) -> dict[str, Any]:
        actions = statement["Action"]
        actions = [actions] if isinstance(actions, str) else actions
        return {**statement, "Action": [each for each in actions if each != action]}

    left = [kept(each) for each in granted["Statement"]]
    grant([each for each in left if each["Action"]])
    try:
        yield
    finally:
        grant(granted["Statement"])


@pytest.mark.parametrize(("role", "service", "operation", "arguments", "action"), OF_PROGRAM)
def test_what_the_program_grants_on_the_key_is_needed(
    deployed: Session, role: str, service: str, operation: str, arguments: Any, action: str
) -> None:
    key = deployed.cloud.client("kms").describe_key(KeyId="alias/tap-stack-dev")["KeyMetadata"]
    if operation == "put_parameter":  # which is there: only the error tells
        arguments = {**arguments, "KeyId": key["Arn"]}

    def call() -> str:
        return code(lambda: getattr(as_role(deployed, role, service), operation)(**arguments))

    assert "AccessDenied" not in call()
    with without(deployed, role, action):
        assert call() == "AccessDeniedException"


@pytest.mark.parametrize("action", ["kms:Decrypt", "kms:GenerateDataKey"])
def test_the_files_function_needs_the_key_for_its_dead_letters(
    small: Small, deployed: Session, action: str
) -> None:
    failures = {"FunctionName": FILES}
    before = small.count("DestinationDeliveryFailures", **failures)
    poison = json.dumps({"Records": [{"eventName": "ObjectCreated:Put", "eventTime": "no time"}]})
    with without(deployed, FILES, action):
        small.client("lambda").invoke(
            FunctionName=FILES, Qualifier="live", InvocationType="Event", Payload=poison
        )
        small.wait_for("DestinationDeliveryFailures", before + 1, **failures)


def test_a_function_whose_role_may_not_decrypt_its_variables_does_not_start(small: Small) -> None:
    key, role, functions = small.key(), small.role(NOTHING), small.client("lambda")
    small.function(Role=role, KMSKeyArn=key)
    invoke = {"FunctionName": small.name, "Payload": "{}"}
    assert b"unable to decrypt" in functions.invoke(**invoke)["Payload"].read()
    small.grant(role, statement("kms:Decrypt", on=key))
    assert "FunctionError" not in functions.invoke(**invoke)
