"""A function and an API of a test's own, on the emulator of the other tests."""

from __future__ import annotations

import io
import json
import time
import urllib.error
import urllib.request
import uuid
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

from botocore.exceptions import ClientError

from taplocal.session import Session

HANG_SECONDS = 30  # a guard against hanging, not a measure of speed

CODE = """
import json, time

def handler(event, context):
    path = event.get("rawPath", "")
    if "fail" in event or path.endswith("/fail"):
        raise RuntimeError("as asked")
    time.sleep(float(event.get("sleep", 0)))
    return {"statusCode": 200, "body": json.dumps(event.get("requestContext", {}).get("requestId"))}
"""


def eventually(condition: Callable[[], Any], seconds: float = HANG_SECONDS) -> Any:
    """Waits until something is true, and returns it; fails if it never is."""
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    return found


def code(call: Any) -> str:
    """The error code of a call, or an empty text."""
    try:
        call()
    except ClientError as error:
        return str(error.response["Error"]["Code"])
    return ""


def total(cloudwatch: Any, namespace: str, metric: str, dimensions: Mapping[str, str]) -> float:
    """The sum of a metric in the last day: no count goes down while the tests run."""
    found = cloudwatch.get_metric_statistics(
        Namespace=namespace,
        MetricName=metric,
        Dimensions=[{"Name": name, "Value": value} for name, value in dimensions.items()],
        StartTime=datetime.now(UTC) - timedelta(days=1),
        EndTime=datetime.now(UTC) + timedelta(minutes=1),
        Period=3600,
        Statistics=["Sum"],
    )
    return float(sum(each["Sum"] for each in found["Datapoints"]))


def statement(*actions: str, on: str, **more: Any) -> dict[str, Any]:
    """A statement that allows actions."""
    return {"Effect": "Allow", "Action": list(actions), "Resource": on, **more}


def document(*statements: Mapping[str, Any]) -> str:
    """A policy."""
    return json.dumps({"Version": "2012-10-17", "Statement": statements})


NOTHING = statement("xray:PutTraceSegments", on="*")


class Small:
    """Makes what a test needs, by the API of AWS; all of it goes with the test."""

    def __init__(self, deployed: Session, stack: ExitStack):
        self.deployed, self._stack = deployed, stack
        self.name = f"t-{uuid.uuid4().hex[:12]}"

    def client(self, service: str) -> Any:
        return self.deployed.cloud.client(service)

    def arn(self, service: str, what: str) -> str:
        return self.deployed.cloud.arn(service, what)

    def later(self, operation: Any, **arguments: Any) -> None:
        """Undoes something at the end."""
        self._stack.callback(lambda: operation(**arguments))

    def role(self, *statements: Mapping[str, Any], service: str = "lambda.amazonaws.com") -> str:
        """The ARN of a role, which `grant` gives other rights."""
        iam, name = self.client("iam"), f"{self.name}-{service.split('.')[0]}"
        trust = {"Effect": "Allow", "Action": "sts:AssumeRole", "Principal": {"Service": service}}
        made = iam.create_role(RoleName=name, AssumeRolePolicyDocument=document(trust))
        self.later(iam.delete_role, RoleName=name)
        self.later(iam.delete_role_policy, RoleName=name, PolicyName="p")
        arn = str(made["Role"]["Arn"])
        self.grant(arn, *statements)
        return arn

    def grant(self, role: str, *statements: Mapping[str, Any]) -> None:
        """Makes these the rights of a role."""
        self.client("iam").put_role_policy(
            RoleName=role.split("/")[1], PolicyName="p", PolicyDocument=document(*statements)
        )

    def function(self, **settings: Any) -> str:
        """The ARN of a function, by default one that answers, sleeps or fails as its event says."""
        functions, buffer = self.client("lambda"), io.BytesIO()
        with zipfile.ZipFile(buffer, "w") as archive:
            archive.writestr("index.py", settings.pop("source", CODE))
        made = functions.create_function(
            FunctionName=self.name,
            Role=settings.pop("Role", "") or self.role(NOTHING),
            Runtime=settings.pop("Runtime", "python3.13"),
            Handler="index.handler",
            Code={"ZipFile": buffer.getvalue()},
            **settings,
        )
        self.later(functions.delete_function, FunctionName=self.name)
        return str(made["FunctionArn"])

    def count(self, metric: str, namespace: str = "AWS/Lambda", **dimensions: str) -> float:
        """The sum of a metric, by default of the function."""
        named = dimensions or {"FunctionName": self.name}
        return total(self.client("cloudwatch"), namespace, metric, named)

    def wait_for(self, metric: str, value: float, *namespace: str, **dimensions: str) -> None:
        """Waits until a metric has a value; fails if it never has."""
        deadline = time.monotonic() + HANG_SECONDS
        while (found := self.count(metric, *namespace, **dimensions)) != value:
            assert time.monotonic() < deadline, f"{metric} is {found}, not {value}"
            time.sleep(0.1)

    def queue(self, **attributes: str) -> str:
        """The URL of a queue."""
        sqs = self.client("sqs")
        url = str(sqs.create_queue(QueueName=self.name, Attributes=attributes)["QueueUrl"])
        self.later(sqs.delete_queue, QueueUrl=url)
        return url

    def messages(self) -> list[dict[str, Any]]:
        """The messages in the queue, after at most two seconds."""
        url = self.client("sqs").get_queue_url(QueueName=self.name)["QueueUrl"]
        found = self.client("sqs").receive_message(
            QueueUrl=url, WaitTimeSeconds=2, MaxNumberOfMessages=10, MessageAttributeNames=["All"]
        )
        return list(found.get("Messages", []))

    def pipe(self, stream: str) -> tuple[str, list[dict[str, Any]]]:
        """Makes a pipe from a stream to the default event bus; its role and the rights of that."""
        bus, pipes = self.arn("events", "event-bus/default"), self.client("pipes")
        reads = "DescribeStream GetRecords GetShardIterator ListStreams".split()
        rights = [
            statement(*(f"dynamodb:{each}" for each in reads), on=stream),
            statement("events:PutEvents", on=bus),
        ]
        role = self.role(*rights, service="pipes.amazonaws.com")
        pipes.create_pipe(
            Name=self.name,
            RoleArn=role,
            Source=stream,
            SourceParameters={"DynamoDBStreamParameters": {"StartingPosition": "TRIM_HORIZON"}},
            Target=bus,
        )
        self.later(pipes.delete_pipe, Name=self.name)
        return role, rights

    def bucket(self) -> None:
        """Makes a bucket, for one object x."""
        s3 = self.client("s3")
        s3.create_bucket(Bucket=self.name)
        self.later(s3.delete_bucket, Bucket=self.name)
        self.later(s3.delete_object, Bucket=self.name, Key="x")

    def key(self, policy: str = "") -> str:
        """The ARN of a key, by default one whose use its account's policies decide."""
        root = {"AWS": self.arn("iam", "root").replace(self.deployed.cloud.region, "")}
        delegating = document({**statement("kms:*", on="*"), "Principal": root})
        made = self.client("kms").create_key(Policy=policy or delegating)["KeyMetadata"]
        self.later(
            self.client("kms").schedule_key_deletion, KeyId=made["KeyId"], PendingWindowInDays=7
        )
        return str(made["Arn"])

    def permit(self, principal: str, source: str, **more: str) -> None:
        """Lets a service invoke the function for a source."""
        self.client("lambda").add_permission(
            FunctionName=self.name,
            StatementId="p",
            Action="lambda:InvokeFunction",
            Principal=principal,
            SourceArn=source,
            **more,
        )

    def api(self, function: str, *routes: str, **stage: Any) -> str:
        """The id of an API with a route to a function for each key."""
        api = self.client("apigatewayv2")
        api_id = str(api.create_api(Name=self.name, ProtocolType="HTTP")["ApiId"])
        self.later(api.delete_api, ApiId=api_id)
        integration = api.create_integration(
            ApiId=api_id,
            IntegrationType="AWS_PROXY",
            IntegrationUri=function,
            PayloadFormatVersion="2.0",
        )["IntegrationId"]
        for key in routes:
            api.create_route(ApiId=api_id, RouteKey=key, Target=f"integrations/{integration}")
        api.create_stage(ApiId=api_id, StageName="$default", AutoDeploy=True, **stage)
        return api_id

    def get(self, api_id: str, path: str, method: str = "GET") -> tuple[int, dict[str, str], Any]:
        """Status, headers and JSON of a request."""
        url = f"{self.deployed.cloud.emulator.url}/_aws/execute-api/{api_id}{path}"
        try:
            response = urllib.request.urlopen(urllib.request.Request(url, method=method))
        except urllib.error.HTTPError as error:
            response = error
        with response:
            headers = {name.lower(): value for name, value in response.headers.items()}
            return response.status, headers, json.loads(response.read())


@contextmanager
def made(deployed: Session) -> Iterator[Small]:
    """What a test makes, until its end."""
    with ExitStack() as stack:
        yield Small(deployed, stack)
