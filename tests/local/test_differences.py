"""Each difference from AWS that `up` and the documents name is one: its check runs it."""

from __future__ import annotations

import functools
import json
import platform
import socket
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import boto3
import pytest
from botocore.exceptions import ClientError

from taplocal import access
from taplocal.differences import DIFFERENCES, MEANINGS, by_meaning, short, touched_by
from taplocal.resources import HANDLERS
from taplocal.resources.awslambda import Clock, Rollout
from taplocal.resources.base import includes
from taplocal.session import Session
from taplocal.state import Deployed
from tests.local.small import HANG_SECONDS, NOTHING, Small, code, document, eventually, statement
from tests.local.test_policies import as_role

#: The opposite of this machine's processor, as Lambda calls it.
OTHER_PROCESSOR = "x86_64" if platform.machine() in ("arm64", "aarch64") else "arm64"
MEGABYTES = """
def handler(event, context):
    return len(bytearray(400 * 1024 * 1024))
"""
MACHINE = """
import platform
def handler(event, context):
    return [platform.machine(), platform.python_version()]
"""
STARTED = """
import time
STARTED = time.time()
def handler(event, context):
    return STARTED
"""


def registered(deployed: Session, name: str) -> Deployed:
    """The resource with a logical name."""
    (found,) = [each for each in deployed.state.resources.values() if each.name == name]
    return found


def with_right(small: Small, action: str) -> Any:
    """A client of somebody who may do one thing, without retries."""
    role = small.role(statement(action, on="*")).rpartition("/")[2]
    return as_role(small.deployed, role, action.split(":")[0])


def metrics(small: Small, namespace: str, **dimensions: str) -> set[str]:
    """The names of the metrics with these dimensions."""
    wanted = [{"Name": name, "Value": value} for name, value in dimensions.items()]
    found = small.client("cloudwatch").list_metrics(Namespace=namespace, Dimensions=wanted)
    return {each["MetricName"] for each in found["Metrics"]}


def log(small: Small, group: str, words: str = "") -> list[str]:
    """The lines of a log group that have some words."""
    found = small.client("logs").filter_log_events(logGroupName=group)["events"]
    return [each["message"] for each in found if words in each["message"]]


def invoke(small: Small, qualifier: str = "$LATEST") -> Any:
    """The result of the function."""
    made = small.client("lambda").invoke(FunctionName=small.name, Qualifier=qualifier)
    assert "FunctionError" not in made
    return json.loads(made["Payload"].read())


def log_group(small: Small, **settings: str) -> str:
    """A log group with a stream s."""
    logs = small.client("logs")
    logs.create_log_group(logGroupName=small.name, **settings)
    small.later(logs.delete_log_group, logGroupName=small.name)
    logs.create_log_stream(logGroupName=small.name, logStreamName="s")
    return small.name


def write(small: Small, message: str) -> None:
    """Writes a line into the log group."""
    event = {"timestamp": round(time.time() * 1000), "message": message}
    small.client("logs").put_log_events(
        logGroupName=small.name, logStreamName="s", logEvents=[event]
    )


def table(small: Small, units: int, **settings: Any) -> Any:
    """A client for a table of so many units, without retries."""
    client = with_right(small, "dynamodb:*")
    client.create_table(
        TableName=small.name,
        KeySchema=[{"AttributeName": "id", "KeyType": "HASH"}],
        AttributeDefinitions=[{"AttributeName": "id", "AttributeType": "S"}],
        ProvisionedThroughput={"ReadCapacityUnits": units, "WriteCapacityUnits": units},
        **settings,
    )
    small.later(small.client("dynamodb").delete_table, TableName=small.name)
    return client


def user_pool(small: Small, **settings: Any) -> dict[str, str]:
    """Arguments of calls for the user u of a pool, who signs in with a known password."""
    cognito, password = small.client("cognito-idp"), "Password1!"
    pool = cognito.create_user_pool(PoolName=small.name, **settings)["UserPool"]["Id"]
    small.later(cognito.delete_user_pool, UserPoolId=pool)
    flow = "ADMIN_USER_PASSWORD_AUTH"
    client = cognito.create_user_pool_client(
        UserPoolId=pool, ClientName="c", ExplicitAuthFlows=[f"ALLOW_{flow}"]
    )["UserPoolClient"]["ClientId"]
    user = {"UserPoolId": pool, "Username": "u"}
    cognito.admin_create_user(**user)
    cognito.admin_set_user_password(**user, Password=password, Permanent=True)
    if settings.get("MfaConfiguration") == "OFF":
        cognito.set_user_pool_mfa_config(
            UserPoolId=pool,
            MfaConfiguration="ON",
            SoftwareTokenMfaConfiguration={"Enabled": True},
        )
    signed_in = cognito.admin_initiate_auth(
        UserPoolId=pool,
        ClientId=client,
        AuthFlow=flow,
        AuthParameters={"USERNAME": "u", "PASSWORD": password},
    )
    assert signed_in["AuthenticationResult"]["AccessToken"]
    return user


# The checks, each named as its row; they fail where this is as on AWS.


def tls(small: Small) -> None:
    assert small.deployed.cloud.emulator.url.startswith("http://")
    small.bucket()
    insecure = {"Bool": {"aws:SecureTransport": "false"}}
    denied = {**statement("s3:*", on="*", Condition=insecure), "Effect": "Deny", "Principal": "*"}
    small.client("s3").put_bucket_policy(Bucket=small.name, Policy=document(denied))
    with_right(small, "s3:PutObject").put_object(Bucket=small.name, Key="x", Body=b"")


def packets(small: Small) -> None:
    (database,) = small.client("rds").describe_db_instances()["DBInstances"]
    allowed = registered(small.deployed, "network-database-from-web-5432").inputs
    assert "cidrIpv4" not in allowed  # the web tier alone
    place = "127.0.0.1", database["Endpoint"]["Port"]
    socket.create_connection(place, timeout=HANG_SECONDS).close()


def firewall(small: Small) -> None:
    waf, scope = small.client("wafv2"), {"Name": small.name, "Scope": "REGIONAL"}
    visible = {"SampledRequestsEnabled": False, "CloudWatchMetricsEnabled": False}
    made = waf.create_web_acl(
        **scope,
        DefaultAction={"Block": {}},
        VisibilityConfig={**visible, "MetricName": "m"},
    )["Summary"]
    small.later(waf.delete_web_acl, **scope, Id=made["Id"], LockToken=made["LockToken"])
    balancer = registered(small.deployed, "web-balancer").id
    waf.associate_web_acl(WebACLArn=made["ARN"], ResourceArn=balancer)
    small.later(waf.disassociate_web_acl, ResourceArn=balancer)
    with urllib.request.urlopen(f"{small.deployed.outputs['web_url']}/healthz") as response:
        assert response.status == 200


def malware(small: Small) -> None:
    with pytest.raises(ClientError):
        small.client("guardduty").list_malware_protection_plans()


def trust(small: Small) -> None:
    role = small.role(NOTHING, service="lambda.amazonaws.com")  # nobody else, not even the account
    taken = small.client("sts").assume_role(RoleArn=role, RoleSessionName="test")
    assert taken["Credentials"]["SecretAccessKey"]


def rights(small: Small) -> None:
    ec2 = small.client("ec2")
    vpc = ec2.create_vpc(CidrBlock="10.9.0.0/16")["Vpc"]["VpcId"]
    small.later(ec2.delete_vpc, VpcId=vpc)
    role = small.role(statement("ec2:CreateSubnet", on=small.arn("ec2", f"vpc/{vpc}")))
    maker = as_role(small.deployed, role.rpartition("/")[2], "ec2")
    made = maker.create_subnet(VpcId=vpc, CidrBlock="10.9.0.0/24")["Subnet"]["SubnetId"]
    ec2.delete_subnet(SubnetId=made)


def keys(small: Small) -> None:
    key = small.key(document({**statement("kms:*", on="*"), "Principal": "*"}))
    log_group(small, kmsKeyId=key)
    small.client("kms").disable_key(KeyId=key)
    write(small, "x")
    assert log(small, small.name) == ["x"]


def sizes(small: Small) -> None:
    small.function(source=MEGABYTES, MemorySize=128)
    assert invoke(small) == 400 * 1024 * 1024


def concurrency(small: Small) -> None:
    small.function()
    functions = small.client("lambda")
    limit = functions.get_account_settings()["AccountLimit"]["ConcurrentExecutions"]
    functions.put_function_concurrency(
        FunctionName=small.name, ReservedConcurrentExecutions=limit + 1
    )


def partitions(small: Small) -> None:
    client = table(small, 4_000)
    for _ in range(5):  # of 400 units each, by one key
        item = {"id": {"S": "x"}, "text": {"S": "x" * 399_900}}
        client.put_item(TableName=small.name, Item=item)


def deletion(small: Small) -> None:
    cognito, elb = small.client("cognito-idp"), small.client("elbv2")
    pool = cognito.create_user_pool(PoolName=small.name, DeletionProtection="ACTIVE")["UserPool"]
    cognito.delete_user_pool(UserPoolId=pool["Id"])
    subnets = registered(small.deployed, "web-balancer").inputs["subnets"]
    (made,) = elb.create_load_balancer(Name=small.name, Subnets=subnets)["LoadBalancers"]
    arn = {"LoadBalancerArn": made["LoadBalancerArn"]}
    protected = [{"Key": "deletion_protection.enabled", "Value": "true"}]
    elb.modify_load_balancer_attributes(**arn, Attributes=protected)
    elb.delete_load_balancer(**arn)


def second_factor(small: Small) -> None:
    user_pool(small, MfaConfiguration="OFF")  # then it is made to require one


def threats(small: Small) -> None:
    user = user_pool(small, UserPoolAddOns={"AdvancedSecurityMode": "ENFORCED"})
    found = small.client("cognito-idp").admin_list_user_auth_events(**user)["AuthEvents"]
    assert {each["EventRisk"]["RiskDecision"] for each in found} == {"NoRisk"}


def mail(small: Small) -> None:
    topic = registered(small.deployed, "alerts-topic").id
    sns = small.client("sns")
    to = {"TopicArn": topic, "Protocol": "email", "Endpoint": f"{small.name}@example.com"}
    made = sns.subscribe(**to)["SubscriptionArn"]
    small.later(sns.unsubscribe, SubscriptionArn=made)
    assert made.startswith(topic)  # not "pending confirmation"


def budget(small: Small) -> None:
    found = small.client("budgets").describe_budgets(AccountId=small.deployed.cloud.account)
    assert {x["CalculatedSpend"]["ActualSpend"]["Amount"] for x in found["Budgets"]} == {"0"}


def saved_queries(small: Small) -> None:
    logs = small.client("logs")
    unknown = code(logs.describe_query_definitions)
    assert unknown == "InvalidOperationException"
    group = {"logGroupName": "/aws/lambda/tap-stack-api-dev", "startTime": 0, "endTime": 1}
    for query, expected in {
        "stats count(*)": "",
        "parse @message '*' as x": "MalformedQueryException",
    }.items():
        assert code(functools.partial(logs.start_query, **group, queryString=query)) == expected


def lifecycle(small: Small) -> None:
    small.bucket()
    s3, of = small.client("s3"), {"Bucket": small.name}
    rule = {"ID": "r", "Status": "Enabled", "Filter": {"Prefix": ""}, "Expiration": {"Days": 1}}
    s3.put_bucket_lifecycle_configuration(**of, LifecycleConfiguration={"Rules": [rule]})
    s3.put_object(**of, Key="x", Body=b"")
    assert "Expiration" not in s3.head_object(**of, Key="x")


def bucket_logs(small: Small) -> None:
    to = registered(small.deployed, "files-uploads-logging").inputs
    s3 = small.client("s3")
    s3.list_objects_v2(Bucket=to["bucket"])  # a request to log
    found = s3.list_objects_v2(Bucket=to["targetBucket"], Prefix=to["targetPrefix"])
    assert found["KeyCount"] == 0


def flow_logs(small: Small) -> None:
    group = registered(small.deployed, "network-flow-log").inputs["logDestination"].split(":")[6]
    assert small.client("logs").describe_log_streams(logGroupName=group)["logStreams"] == []


def log_metrics(small: Small) -> None:
    counted = {"metricName": "m", "metricNamespace": small.name, "metricValue": "1"}
    small.client("logs").put_metric_filter(
        logGroupName=log_group(small),
        filterName="f",
        filterPattern='"login"',
        metricTransformations=[counted],
    )
    write(small, "a login")
    assert metrics(small, small.name) == set()


def records(small: Small) -> None:
    group = registered(small.deployed, "bastion-fleet-group").id
    (found,) = small.client("autoscaling").describe_auto_scaling_groups(
        AutoScalingGroupNames=[group]
    )["AutoScalingGroups"]
    assert {x["HealthStatus"] for x in found["Instances"]} == {"Healthy"}
    measured = {"AutoScalingGroupName": group}
    assert metrics(small, "AWS/EC2", **measured) == metrics(small, "CWAgent", **measured) == set()


def scaling_role(small: Small) -> None:
    name = registered(small.deployed, "encryption-scaling-role").outputs["arn"].rpartition("/")[2]
    assert code(lambda: small.client("iam").get_role(RoleName=name)) == "NoSuchEntity"


def warmth(small: Small) -> None:
    small.function(source=STARTED)
    functions, name = small.client("lambda"), {"FunctionName": small.name}
    version = functions.publish_version(**name)["Version"]
    live = {**name, "Qualifier": "live"}
    functions.create_alias(**name, Name="live", FunctionVersion=version)
    functions.put_provisioned_concurrency_config(**live, ProvisionedConcurrentExecutions=1)
    settings = functions.get_provisioned_concurrency_config
    eventually(lambda: settings(**live)["Status"] == "READY")
    ready = time.time()
    assert invoke(small, "live") > ready


def maintenance(small: Small) -> None:
    (database,) = small.client("rds").describe_db_instances()["DBInstances"]
    assert database["BackupRetentionPeriod"] > 0
    found = small.client("rds").describe_db_snapshots(SnapshotType="automated")["DBSnapshots"]
    assert found == []


def database_events(small: Small) -> None:
    name = registered(small.deployed, "database-instance").id
    of = {"SourceIdentifier": name, "SourceType": "db-instance"}
    assert small.client("rds").describe_events(**of, Duration=60)["Events"] == []


def database_load(small: Small) -> None:
    name = registered(small.deployed, "database-instance").id
    assert metrics(small, "AWS/RDS", DBInstanceIdentifier=name) == {
        "CPUUtilization",
        "DatabaseConnections",
        "FreeStorageSpace",
    }


def database_insight(small: Small) -> None:
    logs = small.client("logs")
    assert logs.describe_log_groups(logGroupNamePrefix="RDSOSMetrics")["logGroups"] == []
    ask = with_right(small, "pi:GetResourceMetrics").get_resource_metrics
    now = datetime.now(UTC)
    assert code(
        lambda: ask(
            ServiceType="RDS",
            Identifier=registered(small.deployed, "database-instance").outputs["resourceId"],
            MetricQueries=[{"Metric": "db.load.avg"}],
            StartTime=now - timedelta(hours=1),
            EndTime=now,
        )
    )


def traces(small: Small) -> None:
    written = small.deployed.state.path.parents[1] / "traces.jsonl"
    before = written.stat().st_size
    token = access.person_token(small.deployed, "ann@example.com")
    access.call(small.deployed, "GET", "/items", token, None)
    eventually(lambda: written.stat().st_size > before)
    now = datetime.now(UTC)
    ask = with_right(small, "xray:GetTraceSummaries").get_trace_summaries
    assert code(lambda: ask(StartTime=now - timedelta(hours=1), EndTime=now))


def addresses(small: Small) -> None:
    outputs, emulator = small.deployed.outputs, small.deployed.cloud.emulator.url
    assert outputs["api_url"].startswith(f"{emulator}/")
    token = access.person_token(small.deployed, "ann@example.com")  # at the emulator's own URL
    made = access.call(small.deployed, "POST", "/items", token, "{}")
    assert made.headers["location"].startswith("/items/")
    zone = small.client("route53").list_hosted_zones()["HostedZones"]
    assert zone == []  # records are in the state alone


def certificates(small: Small) -> None:
    acm = small.client("acm")
    arn = acm.request_certificate(DomainName="a.example.com", ValidationMethod="DNS")
    certificate = {"CertificateArn": arn["CertificateArn"]}
    small.later(acm.delete_certificate, **certificate)
    assert acm.describe_certificate(**certificate)["Certificate"]["Status"] == "ISSUED"


def release_time(small: Small) -> None:
    clock, began = Clock(Rollout.time_scale()), time.monotonic()
    clock.sleep(120)
    assert time.monotonic() - began < HANG_SECONDS


def fleet_time(small: Small) -> None:
    named = {"AutoScalingGroupName": registered(small.deployed, "web-fleet-group").id}
    minute, count = timedelta(minutes=1), small.client("cloudwatch").get_metric_statistics

    def points() -> list[Any]:
        return list(
            count(
                Namespace="AWS/AutoScaling",
                MetricName="GroupDesiredCapacity",
                Dimensions=[{"Name": name, "Value": value} for name, value in named.items()],
                StartTime=datetime.now(UTC) - minute,
                EndTime=datetime.now(UTC),
                Period=1,
                Statistics=["Sum"],
            )["Datapoints"]
        )

    eventually(lambda: len(points()) > 2)  # where AWS has one of each minute


def retry_time(small: Small) -> None:
    small.function()
    small.client("lambda").invoke(
        FunctionName=small.name, InvocationType="Event", Payload=b'{"fail": 1}'
    )
    small.wait_for("Errors", 3)  # in half a minute


def alarm_time(small: Small) -> None:
    cloud, alarm = small.deployed.cloud, {"AlarmName": small.name}
    environment = cloud.emulator.environment("eu-west-3")  # where no agent writes metrics
    cloudwatch = boto3.client(
        "cloudwatch",
        region_name="eu-west-3",
        endpoint_url=cloud.emulator.url,
        aws_access_key_id=environment["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=environment["AWS_SECRET_ACCESS_KEY"],
    )
    metric = {"Namespace": small.name, "MetricName": "m"}
    cloudwatch.put_metric_data(Namespace=small.name, MetricData=[{"MetricName": "m", "Value": 1}])
    cloudwatch.put_metric_alarm(
        **alarm,
        **metric,
        Statistic="Sum",
        ComparisonOperator="GreaterThanThreshold",
        Threshold=0,
        Period=3600,
        EvaluationPeriods=1,
    )
    small.later(cloudwatch.delete_alarms, AlarmNames=[small.name])
    cloudwatch.set_alarm_state(**alarm, StateValue="OK", StateReason="t")
    changes = functools.partial(
        cloudwatch.describe_alarm_history, **alarm, HistoryItemType="StateUpdate"
    )
    before = changes()["AlarmHistoryItems"]
    time.sleep(1.5)
    assert changes()["AlarmHistoryItems"] == before
    (read,) = cloudwatch.describe_alarms(AlarmNames=[small.name])["MetricAlarms"]
    assert read["StateValue"] == "ALARM"


def group_metrics(small: Small) -> None:
    group = {"AutoScalingGroupName": registered(small.deployed, "web-fleet-group").id}
    (found,) = small.client("autoscaling").describe_auto_scaling_groups(
        AutoScalingGroupNames=list(group.values())
    )["AutoScalingGroups"]
    assert "EnabledMetrics" not in found
    assert metrics(small, "AWS/AutoScaling", **group) == {
        "GroupDesiredCapacity",
        "GroupInServiceInstances",
    }


def machine(small: Small) -> None:
    small.function(source=MACHINE, Architectures=[OTHER_PROCESSOR], Runtime="python3.9")
    processor, version = invoke(small)
    assert processor == platform.machine()
    assert not version.startswith("3.9.")


def runtime_log(small: Small) -> None:
    small.function(LoggingConfig={"LogFormat": "JSON"})
    invoke(small)
    assert log(small, f"/aws/lambda/{small.name}", "START RequestId")


def stream_time(small: Small) -> None:
    view = {"StreamEnabled": True, "StreamViewType": "NEW_IMAGE"}
    client = table(small, 5, StreamSpecification=view)
    client.put_item(TableName=small.name, Item={"id": {"S": "x"}})
    stream = small.client("dynamodb").describe_table(TableName=small.name)["Table"]
    assert len(changes(small, stream["LatestStreamArn"])) == 1
    small.pipe(stream["LatestStreamArn"])
    eventually(lambda: not changes(small, stream["LatestStreamArn"]))


def changes(small: Small, stream: str) -> list[Any]:
    """What can be read from a stream."""
    client = small.client("dynamodbstreams")
    (shard,) = client.describe_stream(StreamArn=stream)["StreamDescription"]["Shards"]
    start = client.get_shard_iterator(
        StreamArn=stream, ShardId=shard["ShardId"], ShardIteratorType="TRIM_HORIZON"
    )
    try:
        return list(client.get_records(ShardIterator=start["ShardIterator"])["Records"])
    except client.exceptions.TrimmedDataAccessException:
        # Delivered since the iterator was given, and so let go: begins at what is kept now.
        return changes(small, stream)


def filled_bucket(small: Small) -> None:
    """A bucket that is emptied before it is deleted."""
    s3 = small.client("s3")
    small.bucket()

    def emptied(**bucket: str) -> None:
        for each in s3.list_objects_v2(**bucket).get("Contents", []):
            s3.delete_object(**bucket, Key=each["Key"])

    small.later(emptied, Bucket=small.name)


def exports(small: Small) -> None:
    table(small, 5)
    client = small.client("dynamodb")
    recovery = {"PointInTimeRecoveryEnabled": True}
    client.update_continuous_backups(
        TableName=small.name, PointInTimeRecoverySpecification=recovery
    )
    client.put_item(TableName=small.name, Item={"id": {"S": "x"}})
    filled_bucket(small)
    made = client.export_table_to_point_in_time(
        TableArn=small.arn("dynamodb", f"table/{small.name}"),
        S3Bucket=small.name,
        ExportTime=datetime.now(UTC) - timedelta(days=1),
    )["ExportDescription"]
    found = client.describe_export(ExportArn=made["ExportArn"])["ExportDescription"]
    assert (found["ExportStatus"], found.get("ItemCount")) == ("COMPLETED", 1), found.get(
        "FailureMessage"
    )


def queries(small: Small) -> None:
    athena, glue = small.client("athena"), small.client("glue")
    filled_bucket(small)
    small.client("s3").put_object(Bucket=small.name, Key="t/x.json", Body=b'{"a": "1"}')
    database = small.name.replace("-", "_")
    glue.create_database(DatabaseInput={"Name": database})
    small.later(glue.delete_database, Name=database)
    columns = [{"Name": "a", "Type": "string"}]
    stored = {"Location": f"s3://{small.name}/t/", "Columns": columns}
    glue.create_table(DatabaseName=database, TableInput={"Name": "t", "StorageDescriptor": stored})

    def execution(which: str) -> Any:
        return athena.get_query_execution(QueryExecutionId=which)["QueryExecution"]

    def asked(query: str) -> dict[str, Any]:
        which = athena.start_query_execution(
            QueryString=query,
            QueryExecutionContext={"Database": database},
            ResultConfiguration={"OutputLocation": f"s3://{small.name}/results/"},
        )["QueryExecutionId"]
        done: dict[str, Any] = eventually(
            lambda: (
                found
                if (found := execution(which))["Status"]["State"] in ("SUCCEEDED", "FAILED")
                else None
            )
        )
        return done

    twice = asked("SELECT count(*) FROM t, t AS u")
    assert twice["Status"]["State"] == "SUCCEEDED"
    assert twice["Statistics"]["DataScannedInBytes"] == len(b'{"a": "1"}')
    assert asked("SELECT parse_duration('1s')")["Status"]["State"] == "FAILED"  # as Trino has it


def token_errors(small: Small) -> None:
    path = f"/items/{small.name}"
    access.call(small.deployed, "GET", path, "no.token.this", None)
    (line,) = log(small, "/aws/vendedlogs/apis/tap-stack-api-dev", small.name)
    assert json.loads(line)["authorizerError"] == "Unauthorized"


def rejected_writes(small: Small) -> None:
    client, item = table(small, 5), {"id": {"S": "x"}}
    client.put_item(TableName=small.name, Item=item)
    again = {"TableName": small.name, "Item": item}
    put = client.put_item
    only_new = "attribute_not_exists(id)"
    rejected = code(lambda: put(**again, ConditionExpression=only_new))
    assert rejected == "ConditionalCheckFailedException"
    used = small.count("ConsumedWriteCapacityUnits", "AWS/DynamoDB", TableName=small.name)
    assert used == 1


CHECKS: dict[str, Callable[[Small], None]] = {
    each.__name__.replace("_", "-"): each
    for each in (
        tls, packets, firewall, malware, trust, rights, keys, sizes, concurrency, partitions, deletion, second_factor,
        threats, mail, budget, saved_queries, lifecycle, bucket_logs, flow_logs, log_metrics, records,
        scaling_role, warmth, maintenance, database_events, database_load, database_insight, traces, addresses,
        certificates, release_time, fleet_time, retry_time, stream_time, exports, queries, alarm_time, group_metrics, machine,
        runtime_log, token_errors, rejected_writes,
    )
}  # fmt: skip


@pytest.mark.parametrize("key", [each.key for each in DIFFERENCES])
def test_what_is_said_to_differ_from_aws_does(small: Small, key: str) -> None:
    CHECKS[key](small)


def test_each_difference_has_one_check_and_a_meaning() -> None:
    keys = [each.key for each in DIFFERENCES]
    assert sorted(keys) == sorted(CHECKS)
    assert [x.key for rows in by_meaning(keys).values() for x in rows] == keys  # in their order
    assert list(by_meaning(keys)) == list(MEANINGS)


def test_what_a_difference_touches_can_be_registered() -> None:
    handlers = {short(each): handler for each, handler in HANDLERS.items()}
    for kind, path, _ in (part for each in DIFFERENCES for part in each.touched()):
        known = handlers[kind].uses.split()
        assert not path or any(includes(each, path) or includes(path, each) for each in known), path


def untouched() -> Iterator[tuple[str, dict[str, Any]]]:
    yield "aws:lb/loadBalancer:LoadBalancer", {"enableDeletionProtection": False}
    yield "aws:cognito/userPool:UserPool", {"deletionProtection": "INACTIVE"}
    yield "aws:ec2/vpc:Vpc", {"cidrBlock": "10.0.0.0/16"}


def test_a_program_touches_what_it_uses() -> None:
    protected = {"enableDeletionProtection": True}
    assert touched_by("aws:lb/loadBalancer:LoadBalancer", protected) == ["deletion"]
    pool = {"deletionProtection": "ACTIVE", "mfaConfiguration": "OFF"}
    assert touched_by("aws:cognito/userPool:UserPool", pool) == ["deletion"]
    for kind, inputs in untouched():
        assert touched_by(kind, inputs) == []
