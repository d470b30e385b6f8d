"""`make prove-iam`: each grant of the deployed stack is taken away, and its step has to fail.

Deploys dev with all options on a local cloud of its own. Then, of each policy that
`tests/needs.py` has a step for, it writes one without each single grant (an action on a resource,
under a condition) into the running emulator, runs the step, and writes the policy back. A step that
succeeds without its grant means that the grant is in vain, or that the emulator does not ask for
it. A condition is taken away too: what it forbids has to be denied with it, and done without it.
"""

from __future__ import annotations

from taplocal.cloud import isolate

isolate()  # before any SDK client is made

import base64  # noqa: E402
import functools  # noqa: E402
import itertools  # noqa: E402
import json  # noqa: E402
import sys  # noqa: E402
import tempfile  # noqa: E402
import time  # noqa: E402
import uuid  # noqa: E402
from collections.abc import Callable, Collection, Iterator  # noqa: E402
from contextlib import contextmanager  # noqa: E402
from dataclasses import dataclass, replace  # noqa: E402
from datetime import UTC, datetime, timedelta  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import Any  # noqa: E402

import psycopg  # noqa: E402
from botocore import xform_name  # noqa: E402
from botocore.exceptions import ClientError  # noqa: E402
from rich.console import Console  # noqa: E402

import tap_stack  # noqa: E402
from taplocal import access, session  # noqa: E402
from taplocal.session import Session  # noqa: E402
from tests import needs  # noqa: E402
from tests.local.small import code, total  # noqa: E402
from tests.local.test_policies import as_role  # noqa: E402
from tests.needs import Grant, Need  # noqa: E402

ROOT = Path(__file__).parents[2]
OPTIONS = {
    "files_malware_protection": "true",
    "files_analytics": "true",
    "files_events": "true",
    "canary_percent": "10",
    "synthetics": "true",
    "nat": "instance",
}
ADMINISTRATOR = "proof-administrator"  # a role that may do everything
#: Kinds of resources that the table has by their logical names.
KINDS = "Alias Bucket Eip Function Instance Key LogGroup Parameter Queue RouteTable Table UserPool".split()
WAIT_SECONDS = 15  # how long a step waits for what an event does
SCHEDULER, PIPES, LAMBDA = "AWS/Scheduler", "AWS/EventBridge/Pipes", "AWS/Lambda"


class Denied(Exception):  # noqa: N818 - of the step, which is what is wanted
    """A step could not be done."""


def expect(done: Any, why: object = "") -> None:
    if not done:
        raise Denied(str(why))


@dataclass(frozen=True)
class Result:
    """What became of a step without a grant."""

    grant: Grant
    need: Need
    outcome: str  # why the step failed; empty for one that succeeded


class Proof:
    """A deployed stack, its policies, and the steps that need them."""

    def __init__(self, deployed: Session):
        self.deployed, self.client = deployed, deployed.cloud.client
        self.outputs, self.env = deployed.outputs, "dev"
        self.token = access.person_token(deployed, "ann@example.com")
        self.item = item_put(self)
        resources = [each for each in deployed.state.resources.values() if each.outputs or each.id]
        self.scans = any(x.type.endswith(":MalwareProtectionPlan") for x in resources)
        self.holders = [each for each in resources if [*needs.granted(each)]]
        self.places = {deployed.cloud.account: "<account>", deployed.cloud.region: "<region>"}
        self.places[f"-{self.env}"] = "-<env>"
        arns = sorted(self._names(resources), key=lambda x: -len(x[0]))
        self.names = {**dict(arns), **self.places}
        self.table = {x: n for h, rows in needs.NEEDS.items() for n in rows for x in n.grants(h)}

    def _names(self, resources: list[Any]) -> Iterator[tuple[str, str]]:
        for each in resources:
            kind, outputs = each.type.split(":")[-1], each.outputs
            if "arn" in outputs and kind in KINDS:
                yield outputs["arn"], f"{kind}/{each.name}"
            if outputs.get("streamArn"):
                yield outputs["streamArn"], f"{kind}/{each.name}/stream/1"
            if "resourceId" in outputs:
                yield outputs["resourceId"], f"{each.name}-resource"
        secret = "arn:aws:secretsmanager:<region>:<account>:secret:db"
        yield self.outputs["database_secret_arn"], secret

    # --- Policies ---------------------------------------------------------------------------------

    def need(self, grant: Grant) -> Need | None:
        """The row of a grant; a permission has one."""
        if grant.holder in needs.NEEDS and grant.holder.endswith("-invoke"):
            return needs.NEEDS[grant.holder][0]
        shown = needs.plain(grant, self.names)  # whose condition has ARNs as they are
        return self.table.get(shown._replace(when=needs.plain(grant, self.places).when))

    def write(self, resource: Any, grants: list[Grant]) -> None:
        """Writes the policy of a role, whom it trusts, or a key's."""
        inputs, kind = resource.inputs, resource.type.split(":")[-1]
        filler = {"Effect": "Deny", "Action": "sts:GetCallerIdentity"}
        filler |= {"Principal": "*"} if kind == "Role" else {"Resource": "*"}
        text = json.dumps(
            {"Version": "2012-10-17", "Statement": [*map(listed, grants)] or [filler]}
        )
        if kind == "RolePolicy":
            policy = {"PolicyName": inputs["name"], "PolicyDocument": text}
            self.client("iam").put_role_policy(RoleName=inputs["role"], **policy)
        elif kind == "Role":
            self.client("iam").update_assume_role_policy(
                RoleName=inputs["name"], PolicyDocument=text
            )
        else:
            self.client("kms").put_key_policy(
                KeyId=resource.id, PolicyName="default", Policy=text
            )  # fmt: skip

    @contextmanager
    def without(self, resource: Any, grant: Grant) -> Iterator[None]:
        """Takes a grant away, for a moment."""
        if resource.type.endswith(":Permission"):
            with self._forbidden(resource):
                yield
            return
        grants = [*needs.granted(resource)]
        self.write(resource, [each for each in grants if each != grant])
        try:
            yield
        finally:
            self.write(resource, grants)

    @contextmanager
    def widened(self, resource: Any, grant: Grant) -> Iterator[None]:
        """Takes the condition of a grant away, for a moment."""
        grants = [*needs.granted(resource)]
        self.write(resource, [x._replace(when="{}") if x == grant else x for x in grants])
        try:
            yield
        finally:
            self.write(resource, grants)

    @contextmanager
    def _forbidden(self, resource: Any) -> Iterator[None]:
        inputs, functions = resource.inputs, self.client("lambda")
        live = {"FunctionName": inputs["function"], "Qualifier": inputs["qualifier"]}
        functions.remove_permission(**live, StatementId=inputs["statementId"])
        more = {"SourceAccount": inputs["sourceAccount"]} if "sourceAccount" in inputs else {}
        try:
            yield
        finally:
            functions.add_permission(
                **live, StatementId=inputs["statementId"], Action=inputs["action"],
                Principal=inputs["principal"], SourceArn=inputs["sourceArn"], **more,
            )  # fmt: skip

    # --- What steps share -------------------------------------------------------------------------

    def http(self, method: str, path: str, status: int, body: Any = None) -> access.Response:
        """A request to the API, which must have this status."""
        text = None if body is None else json.dumps(body)
        response = access.call(self.deployed, method, path, self.token, text)
        expect(response.status == status, f"{method} {path}: {response.status} {response.body}")
        return response

    def invoke(self, function: str, event: Any, qualifier: str = "live") -> Any:
        """What a function returns; Denied if it fails."""
        found = self.client("lambda").invoke(
            FunctionName=f"tap-stack-{function}-{self.env}", Qualifier=qualifier,
            Payload=json.dumps(event).encode(),
        )  # fmt: skip
        payload = found["Payload"].read().decode()
        expect("FunctionError" not in found, payload)
        return json.loads(payload)

    def fresh(self, function: str) -> str:
        """A new version of a function, of which no environment runs."""
        functions, name = self.client("lambda"), f"tap-stack-{function}-{self.env}"
        functions.update_function_configuration(FunctionName=name, Description=uuid.uuid4().hex)
        return str(functions.publish_version(FunctionName=name)["Version"])

    def sum(self, namespace: str, metric: str, **dimensions: str) -> float:
        return total(self.client("cloudwatch"), namespace, metric, dimensions)

    def either(self, good: Callable[[], Any], bad: Callable[[], Any], why: str) -> None:
        """Waits for one of two ends."""
        deadline = time.monotonic() + WAIT_SECONDS
        while time.monotonic() < deadline:
            if good():
                return
            expect(not bad(), why)
            time.sleep(0.1)
        raise Denied(f"{why}: nothing happened in {WAIT_SECONDS} s")

    def may(self, role: str, service: str, operation: str, **arguments: Any) -> None:
        """Calls AWS as a role: Denied if it may not, whatever else may be wrong."""
        error = ""
        try:
            getattr(as_role(self.deployed, self.physical(role), service), operation)(**arguments)
        except ClientError as failure:
            error = f"{operation}: {failure.response['Error']['Code']}"
        expect("Denied" not in error and "Unauthorized" not in error, error)

    def physical(self, role: str) -> str:
        """The name of a role, by its logical name."""
        if role == ADMINISTRATOR:
            return role
        (found,) = (
            each.inputs["name"] for each in self.holders
            if each.type == "aws:iam/role:Role" and each.name == role
        )  # fmt: skip
        return str(found)

    @contextmanager
    def assumable(self, role: str) -> Iterator[None]:
        """Lets the account assume a role that trusts a service alone, for a moment."""
        (found,) = (x for x in self.holders if x.type.endswith(":Role") and x.name == role)
        grants, root = [*needs.granted(found)], f"arn:aws:iam::{self.deployed.cloud.account}:root"
        self.write(found, [*grants, Grant(role, "Allow", root, "sts:AssumeRole", "", "{}")])
        try:
            yield
        finally:
            self.write(found, grants)

    def role_arn(self, role: str) -> str:
        return f"arn:aws:iam::{self.deployed.cloud.account}:role/{self.physical(role)}"


def listed(grant: Grant) -> dict[str, Any]:
    """A grant as a statement of its own."""
    found: dict[str, Any] = {"Effect": grant.effect, "Action": [grant.action]}
    if grant.who:
        kind = "Service" if grant.who.endswith(".amazonaws.com") else "AWS"
        found["Principal"] = {kind: grant.who}
    if grant.on:
        found["Resource"] = grant.on
    if when := json.loads(grant.when):
        found["Condition"] = when
    return found


# === Steps ========================================================================================

OfRole = Callable[[Proof, str], object]  # a step of a stack, for a role by its logical name
Step = Callable[[Proof, Grant], object]
ITEM = {"name": "proof", "category": "proof"}


def environment(proof: Proof, role: str) -> None:
    events: dict[str, Any] = {
        "api": tap_stack.probe_request("GET /health", "")[0],
        "files": {"Records": [{"eventName": "Probe"}]},
    }
    name = needs.FUNCTIONS[role.removesuffix("-role")]
    proof.invoke(name, events.get(name, {"dry_run": True}), proof.fresh(name))


def letter(proof: Proof, role: str) -> None:
    """An event that no attempt processes is in the dead-letter queue."""
    function = f"tap-stack-{needs.FUNCTIONS[role.removesuffix('-role')]}-{proof.env}"
    queue = proof.client("sqs").get_queue_url(QueueName=f"{function}-dead-letters")["QueueUrl"]
    of = {"FunctionName": function}
    before = proof.sum(LAMBDA, "DestinationDeliveryFailures", **of)
    proof.client("sqs").purge_queue(QueueUrl=queue)
    event = b'{"Records": [{"eventName": "ObjectCreated:Put", "eventTime": "none"}]}'
    proof.client("lambda").invoke(
        FunctionName=function, Qualifier="live", InvocationType="Event",
        Payload=event if role == "files-records-role" else b"[]",
    )  # fmt: skip
    proof.either(
        lambda: proof.client("sqs").receive_message(QueueUrl=queue).get("Messages"),
        lambda: proof.sum(LAMBDA, "DestinationDeliveryFailures", **of) > before,
        "DestinationDeliveryFailures",
    )


def item_put(proof: Proof, _role: str = "") -> str:
    """A new item; its path."""
    location = proof.http("POST", "/items", 201, ITEM).headers["location"]
    return str(location)


def item_delete(proof: Proof, _role: str) -> None:
    proof.http("DELETE", item_put(proof), 204)


def item_page(proof: Proof, _role: str) -> None:
    """A function that has just started reads the key of page tokens."""
    event, _ = tap_stack.probe_request("GET /items", "items/read")
    token = base64.urlsafe_b64encode(bytes(32) + b'["x", "y"]').decode()
    asking = {**event, "queryStringParameters": {"next": token}}
    found = proof.invoke("api", asking, proof.fresh("api"))
    expect(found["statusCode"] == 400 and "next is not a token" in found["body"], found)


def s3_event(name: str, key: str, version: str) -> dict[str, Any]:
    # An older event than S3's own, so that the newest item is looked at, too.
    sequencer = f"{'0' * 16}{uuid.uuid4().hex[:8]}".upper()
    stored = {"key": key, "versionId": version, "sequencer": sequencer}
    of = {"bucket": {"name": ""}, "object": stored}
    return {"eventName": name, "eventTime": "2026-01-01T00:00:00.000Z", "s3": of}


class Files:
    """A file of ann's that is recorded, and scanned."""

    def __init__(self, proof: Proof, seconds: float = 60):
        self.proof, self.bucket = proof, proof.outputs["files_bucket_name"]
        self.form, stored = self.upload()
        expect(stored.status == 204, stored.body)
        self.path = f"/files/{self.form.json()['id']}"
        self.key = self.form.json()["fields"]["key"]
        deadline = time.monotonic() + seconds
        while not self.known():
            expect(time.monotonic() < deadline, f"not recorded and scanned in {seconds} s")
            time.sleep(0.1)
        self.version = str(self.read().json()["version_id"])

    def known(self) -> bool:
        """Whether it is recorded and, where it must be, scanned."""
        found = self.read()
        return found.status == 200 and (not self.proof.scans or "scan_result" in found.json())

    def upload(self) -> tuple[access.Response, access.Response]:
        name, text = f"{uuid.uuid4().hex}.txt", b"proof"
        return access.upload(
            self.proof.deployed, self.proof.token, name, text, "text/plain", "proof"
        )

    def read(self) -> access.Response:
        return access.call(self.proof.deployed, "GET", self.path, self.proof.token)

    def record(self, event: str, key: str = "", version: str = "") -> str:
        """Has the function record an event that says it is a new one; its sequencer."""
        found = s3_event(event, key or self.key, version or self.version)
        found["s3"]["bucket"]["name"] = self.bucket
        self.proof.invoke("files", {"Records": [found]})
        return str(found["s3"]["object"]["sequencer"])


@functools.cache
def files(proof: Proof) -> Files:
    """The file of a stack, made at its first use."""
    return Files(proof)


@functools.cache
def recorded(proof: Proof) -> Files:
    """Another one, about which the function gets events that are not so."""
    return Files(proof)


def file_upload(proof: Proof, _role: str) -> None:
    form, stored = files(proof).upload()
    expect((form.status, stored.status) == (201, 204), stored.body)


def file_content(proof: Proof, _role: str) -> None:
    location = proof.http("GET", f"{files(proof).path}/content", 302).headers["location"]
    found = access.request("GET", location)
    expect(found.status == 200, found.body)


def file_delete(proof: Proof, _role: str) -> None:
    proof.http("DELETE", Files(proof).path, 204)


def version_gone(proof: Proof, _role: str) -> None:
    """A version that is recorded, and that S3 has no longer, is restored: there is none. Without
    the bucket's policy, which denies first what has no tag of a scan."""
    table, file = {"TableName": proof.outputs["files_table_name"]}, recorded(proof)
    of = {":id": {"S": file.path.rpartition("/")[2]}, ":version": {"S": "version#"}}
    condition = "id = :id AND begins_with(#record, :version)"
    found = proof.client("dynamodb").query(
        **table, KeyConditionExpression=condition, ExpressionAttributeValues=of,
        ExpressionAttributeNames={"#record": "record"},
    )["Items"]  # fmt: skip
    gone = {"record": {"S": "version#0"}, "sequencer": {"S": "0"}, "version_id": {"S": "gone"}}
    proof.client("dynamodb").put_item(**table, Item={**found[-1], **gone})
    s3, bucket = proof.client("s3"), {"Bucket": proof.outputs["files_bucket_name"]}
    policy = s3.get_bucket_policy(**bucket)["Policy"]
    s3.delete_bucket_policy(**bucket)
    try:
        proof.http("POST", f"{file.path}/versions", 404, {"version_id": "gone"})
    finally:
        s3.put_bucket_policy(**bucket, Policy=policy)


def file_event(proof: Proof, _role: str) -> None:
    """What the function records is an event on the bus."""
    sqs, events, name = proof.client("sqs"), proof.client("events"), "proof-events"
    url = sqs.create_queue(QueueName=name)["QueueUrl"]
    events.put_rule(Name=name, EventPattern='{"detail-type": [{"prefix": "File"}]}')
    target = {"Id": "q", "Arn": proof.deployed.cloud.arn("sqs", name)}
    events.put_targets(Rule=name, Targets=[target])
    of = {"PipeName": f"tap-stack-files-recorded-{proof.env}"}
    failed = proof.sum(PIPES, "ExecutionFailed", **of)
    sequencer = recorded(proof).record("ObjectCreated:Put")

    def came() -> bool:
        found = sqs.receive_message(QueueUrl=url, MaxNumberOfMessages=10).get("Messages", [])
        return any(sequencer in each["Body"] for each in found)

    proof.either(
        came, lambda: proof.sum(PIPES, "ExecutionFailed", **of) > failed + 1, "ExecutionFailed"
    )


def file_scan(proof: Proof, _role: str) -> None:
    """What is put is tagged with what GuardDuty finds."""
    s3, bucket = proof.client("s3"), files(proof).bucket
    target = {"Bucket": bucket, "Key": f"proof/{uuid.uuid4().hex}"}
    version = s3.put_object(**target, Body=b"x")["VersionId"]

    def tags() -> dict[str, str]:
        found = s3.get_object_tagging(**target, VersionId=version)["TagSet"]
        return {each["Key"]: each["Value"] for each in found}

    deadline = time.monotonic() + 3
    while not tags() and time.monotonic() < deadline:
        time.sleep(0.1)
    expect(tags().get("GuardDutyMalwareScanStatus") == "NO_THREATS_FOUND", tags())


def snapshot(proof: Proof, _role: str) -> None:
    """The day's snapshot is taken, unless it was."""
    rds, database = proof.client("rds"), f"tap-stack-database-{proof.env}"
    name = f"{database}-{datetime.now(UTC):%Y-%m-%d}"
    code(lambda: rds.delete_db_snapshot(DBSnapshotIdentifier=name))
    proof.invoke("snapshots", {})


def snapshot_delete(proof: Proof, role: str) -> None:
    """One with the tag is deleted, as one past retention is."""
    name = own_snapshot(proof, [{"Key": "CreatedBy", "Value": f"tap-stack-snapshots-{proof.env}"}])
    proof.may(role, "rds", "delete_db_snapshot", DBSnapshotIdentifier=name)


def snapshot_shared(proof: Proof, role: str) -> None:
    """Whether one is shared is asked before it is deleted."""
    named = {"DBSnapshotIdentifier": own_snapshot(proof, [])}
    proof.may(role, "rds", "describe_db_snapshot_attributes", **named)


def own_snapshot(proof: Proof, tags: list[dict[str, str]]) -> str:
    database = f"tap-stack-database-{proof.env}"
    name = f"{database}-{uuid.uuid4().hex[:8]}"
    proof.client("rds").create_db_snapshot(
        DBInstanceIdentifier=database, DBSnapshotIdentifier=name, Tags=tags
    )
    return name


def walk(proof: Proof, _role: str) -> None:
    """A walk through the API by a function that has no token yet."""
    name, metric = "synthetics", ("tap-stack", "WalksPassed")
    before = proof.sum(*metric, Environment=proof.env)
    proof.invoke(name, {}, proof.fresh(name))
    expect(proof.sum(*metric, Environment=proof.env) > before, "the walk failed")


def run_once(proof: Proof, role: str, target: dict[str, Any], group: str = "default") -> str:
    """A schedule that runs a target in a second, with a role and under the key; its name."""
    at, name = datetime.now(UTC) + timedelta(seconds=1), f"proof-{uuid.uuid4().hex}"
    key = {} if "guard" in role else {"KmsKeyArn": proof.outputs["key_arn"]}
    proof.client("scheduler").create_schedule(
        Name=name, GroupName=group, ScheduleExpression=f"at({at:%Y-%m-%dT%H:%M:%S})",
        FlexibleTimeWindow={"Mode": "OFF"}, **key,
        Target={**target, "RoleArn": proof.role_arn(role)}, ActionAfterCompletion="DELETE",
    )  # fmt: skip
    return name


def schedule(proof: Proof, role: str) -> None:
    """The schedule of a function invokes it."""
    name = f"tap-stack-{needs.FUNCTIONS[role.removesuffix('-schedule-role')]}-{proof.env}"
    of, group = {"FunctionName": name}, {"ScheduleGroup": "default"}
    before = proof.sum(LAMBDA, "Invocations", **of)
    failed = proof.sum(SCHEDULER, "TargetErrorCount", **group)
    arn = proof.client("lambda").get_alias(FunctionName=name, Name="live")["AliasArn"]
    run_once(proof, role, {"Arn": arn, "Input": '{"dry_run": true}'})
    proof.either(
        lambda: proof.sum(LAMBDA, "Invocations", **of) > before,
        lambda: proof.sum(SCHEDULER, "TargetErrorCount", **group) > failed,
        "TargetErrorCount",
    )


def guard(proof: Proof, role: str) -> None:
    """The schedule of a release changes the alias."""
    name = f"tap-stack-{'api' if 'api' in role else 'files'}-{proof.env}"
    functions, live = proof.client("lambda"), {"FunctionName": name, "Name": "live"}
    before, group = functions.get_alias(**live), {"ScheduleGroup": "default"}
    failed = proof.sum(SCHEDULER, "TargetErrorCount", **group)
    told = {**live, "FunctionVersion": before["FunctionVersion"], "RoutingConfig": {}}
    arn = "arn:aws:scheduler:::aws-sdk:lambda:updateAlias"
    run_once(proof, role, {"Arn": arn, "Input": json.dumps(told)})
    proof.either(
        lambda: functions.get_alias(**live)["RevisionId"] != before["RevisionId"],
        lambda: proof.sum(SCHEDULER, "TargetErrorCount", **group) > failed,
        "TargetErrorCount",
    )


def export(proof: Proof, role: str) -> None:
    """The table is exported."""
    name = f"tap-stack-analytics-{proof.env}"
    found = proof.client("scheduler").get_schedule(Name=name, GroupName=name)["Target"]
    table = json.loads(found["Input"])["TableArn"]

    def ended(status: str) -> int:
        told = proof.client("dynamodb").list_exports(TableArn=table)["ExportSummaries"]
        return sum(each["ExportStatus"] == status for each in told)

    group = {"ScheduleGroup": name}
    dropped = proof.sum(SCHEDULER, "InvocationDroppedCount", **group)
    done, failed = ended("COMPLETED"), ended("FAILED")
    run_once(proof, role, {"Arn": found["Arn"], "Input": found["Input"]}, name)
    proof.either(
        lambda: ended("COMPLETED") > done,
        lambda: (
            ended("FAILED") > failed
            or proof.sum(SCHEDULER, "InvocationDroppedCount", **group) > dropped
        ),
        "the export failed",
    )


def connection(proof: Proof, role: str) -> None:
    """A token lets the application into the database."""
    rds = proof.client("rds")
    (database,) = rds.describe_db_instances(
        DBInstanceIdentifier=f"tap-stack-database-{proof.env}"
    )["DBInstances"]  # fmt: skip
    host, port = database["Endpoint"]["Address"], database["Endpoint"]["Port"]
    token = as_role(proof.deployed, proof.physical(role), "rds").generate_db_auth_token(
        host, port, "app"
    )
    try:
        psycopg.connect(
            host=host, hostaddr="127.0.0.1", port=port, user="app", password=token,
            dbname=database["DBName"], sslmode="require", connect_timeout=10,
        ).close()  # fmt: skip
    except psycopg.OperationalError as error:
        raise Denied(error) from None


def agent_log(proof: Proof, role: str) -> None:
    kind = "web" if role.startswith("web") else "bastion"
    (group,) = (
        each.inputs["name"] for each in proof.deployed.state.resources.values()
        if each.name == f"{kind}-logs" and each.type.endswith(":LogGroup")
    )  # fmt: skip
    stream = {"logGroupName": group, "logStreamName": uuid.uuid4().hex}
    proof.may(role, "logs", "create_log_stream", **stream)
    proof.may(role, "logs", "describe_log_streams", logGroupName=group)
    event = {"timestamp": int(time.time() * 1000), "message": "proof"}
    proof.may(role, "logs", "put_log_events", **stream, logEvents=[event])


def metrics(proof: Proof, role: str, namespace: str = "CWAgent") -> None:
    data = [{"MetricName": "proof", "Value": 1.0}]
    proof.may(role, "cloudwatch", "put_metric_data", Namespace=namespace, MetricData=data)


def group_of(role: str, env: str) -> str:
    return f"tap-stack-{'nat' if 'nat' in role else role.partition('-')[0]}-{env}"


def health(proof: Proof, role: str) -> None:
    """An instance calls itself healthy, as it would call itself unhealthy."""
    names = [group_of(role, proof.env)]
    found = proof.client("autoscaling").describe_auto_scaling_groups(AutoScalingGroupNames=names)
    instance = found["AutoScalingGroups"][0]["Instances"][0]["InstanceId"]
    told = {"InstanceId": instance, "HealthStatus": "Healthy"}
    proof.may(role, "autoscaling", "set_instance_health", **told)


OF_ROLES: dict[str, OfRole] = {
    "environment": environment,
    "letter": letter,
    "item put": lambda proof, _: item_put(proof),
    "item get": lambda proof, _: proof.http("GET", proof.item, 200),
    "item patch": lambda proof, _: proof.http("PATCH", proof.item, 200, {"name": uuid.uuid4().hex}),
    "item delete": item_delete,
    "item list": lambda proof, _: proof.http("GET", "/items", 200),
    "item category": lambda proof, _: proof.http("GET", "/items?category=proof", 200),
    "item page": item_page,
    "file get": lambda proof, _: proof.http("GET", f"{files(proof).path}/content", 302),
    "file versions": lambda proof, _: proof.http("GET", files(proof).path, 200),
    "file list": lambda proof, _: proof.http("GET", "/files", 200),
    "file folder": lambda proof, _: proof.http("GET", "/files?folder=proof", 200),
    "file type": lambda proof, _: proof.http("GET", "/files?content_type=text/plain", 200),
    "file upload": file_upload,
    "file content": file_content,
    "file delete": file_delete,
    "version gone": version_gone,
    "file record": lambda proof, _: recorded(proof).record("ObjectCreated:Put"),
    "file gone": lambda proof, _: recorded(proof).record("ObjectCreated:Put", "proof/gone", "x"),
    "file removed": lambda proof, _: recorded(proof).record("ObjectRemoved:Delete", version="x"),
    "file told": lambda proof, _: Files(proof, 4),
    "file event": file_event,
    "file scan": file_scan,
    "rotation": lambda proof, _: proof.invoke("rotation", {}),
    "snapshot": snapshot,
    "snapshot delete": snapshot_delete,
    "snapshot shared": snapshot_shared,
    "schedule": schedule,
    "walk": walk,
    "guard": guard,
    "export": export,
    "connection": connection,
    "secret": lambda proof, role: proof.may(role, "secretsmanager", "get_secret_value", SecretId=proof.outputs["database_secret_arn"]),
    "log": agent_log,
    "metrics": metrics,
    "tags": lambda proof, role: proof.may(role, "ec2", "describe_tags"),
    "ready": lambda proof, role: proof.may(role, "autoscaling", "complete_lifecycle_action", AutoScalingGroupName=group_of(role, proof.env), LifecycleHookName="ready", LifecycleActionResult="CONTINUE", InstanceId="i-0123456789abcdef0"),
    "health": health,
}  # fmt: skip


def use_key(proof: Proof, grant: Grant) -> None:
    """A role that may do everything does something with a key that has the policy of that one."""
    kms, resources = proof.client("kms"), proof.deployed.state.resources.values()
    (own,) = (each.id for each in resources if each.name == grant.holder)
    text = kms.get_key_policy(KeyId=own, PolicyName="default")["Policy"]
    key = kms.create_key(Policy=text)["KeyMetadata"]["Arn"]
    operation = grant.action.removeprefix("kms:")
    operation = "ReEncrypt" if operation.startswith("ReEncrypt") else operation
    given = {
        "AliasName": f"alias/proof-{uuid.uuid4().hex}",
        "CiphertextBlob": kms.encrypt(KeyId=key, Plaintext=b"x")["CiphertextBlob"],
        "DestinationKeyId": key,
        "GrantId": "0" * 64,
        "GranteePrincipal": proof.role_arn("api-items-role"),
        "Description": "proof",
        "KeyId": key,
        "KeySpec": "AES_256",
        "Operations": ["Decrypt"],
        "Plaintext": b"x",
        "Policy": text,
        "TagKeys": ["x"],
        "Tags": [{"TagKey": "x", "TagValue": "y"}],
        "TargetKeyId": key,
    }
    if operation in ("DeleteAlias", "UpdateAlias"):
        kms.create_alias(AliasName=given["AliasName"], TargetKeyId=key)
    members = kms.meta.service_model.operation_model(operation).input_shape.members
    arguments = {name: value for name, value in given.items() if name in members}
    proof.may(ADMINISTRATOR, "kms", xform_name(operation), **arguments)


def other_namespace(proof: Proof, grant: Grant) -> None:
    metrics(proof, grant.holder, "Other")


def snapshot_of_others(proof: Proof, grant: Grant) -> None:
    """One without the tag is deleted."""
    name = own_snapshot(proof, [])
    proof.may(grant.holder, "rds", "delete_db_snapshot", DBSnapshotIdentifier=name)


def tag_of_others(proof: Proof, grant: Grant) -> None:
    """One is made with another tag."""
    database, tags = f"tap-stack-database-{proof.env}", [{"Key": "CreatedBy", "Value": "others"}]
    made = {"DBInstanceIdentifier": database, "Tags": tags}
    name = f"{database}-{uuid.uuid4().hex[:8]}"
    proof.may(grant.holder, "rds", "create_db_snapshot", **made, DBSnapshotIdentifier=name)


def direct_use(proof: Proof, grant: Grant) -> None:
    """The key is used by a call of KMS."""
    key = {"KeyId": proof.outputs["key_arn"]}
    calls: dict[str, Callable[[], dict[str, Any]]] = {
        "decrypt": lambda: proof.client("kms").encrypt(**key, Plaintext=b"x"),
        "describe_key": dict,
        "encrypt": lambda: {"Plaintext": b"x"},
        "generate_data_key": lambda: {"KeySpec": "AES_256"},
    }
    operation = xform_name(grant.action.removeprefix("kms:"))
    given = {x: y for x, y in calls[operation]().items() if x != "ResponseMetadata"}
    given.pop("EncryptionAlgorithm", None)
    with proof.assumable(grant.holder):
        proof.may(grant.holder, "kms", operation, **{**given, **key})


FORBIDDEN: dict[str, Callable[[Proof, Grant], object]] = {
    "other metrics": other_namespace,
    "another's snapshot": snapshot_of_others,
    "another tag": tag_of_others,
    "direct use of the key": direct_use,
}


def of_role(step: OfRole) -> Step:
    return lambda proof, grant: step(proof, grant.holder)


STEPS = {**{name: of_role(step) for name, step in OF_ROLES.items()}, "key": use_key}


# === The proof ====================================================================================


def failure(step: Callable[[], object]) -> str:
    """Why a step failed; empty if it did not."""
    try:
        step()
    except (Denied, ClientError) as error:
        return " ".join(str(error).split()) or type(error).__name__
    return ""


def run(proof: Proof, step: str, grant: Grant) -> str:
    """Why a step failed; empty if it did not."""
    return failure(lambda: STEPS[step](proof, grant))


def prove(proof: Proof, steps: Collection[str] = STEPS) -> Iterator[Result]:
    """Takes each grant away that has one of these steps."""
    for resource in proof.holders:
        for grant in needs.granted(resource):
            need = proof.need(grant)
            if need and need.step in steps:
                with proof.without(resource, grant):
                    yield Result(grant, need, run(proof, need.step, grant))


def prove_conditions(proof: Proof) -> Iterator[Result]:
    """Tries what conditions forbid: with them, and without."""
    for resource in proof.holders:
        for grant in needs.granted(resource):
            if (need := proof.need(grant)) and need.forbidden:
                attempt = functools.partial(FORBIDDEN[need.forbidden], proof, grant)
                outcome = failure(attempt)
                with proof.widened(resource, grant):
                    done = failure(attempt) == ""
                shown = replace(need, step=f"{need.forbidden}, allowed by no condition")
                yield Result(grant, shown, outcome if done else "")


def baseline(proof: Proof) -> dict[tuple[str, str], str]:
    """Steps that fail although nothing is taken away: role and step -> why."""
    found = {}
    for resource in proof.holders:
        for grant in needs.granted(resource):
            need = proof.need(grant)
            if need and need.step and (grant.holder, need.step) not in found:
                found[grant.holder, need.step] = run(proof, need.step, grant)
    return {key: why for key, why in found.items() if why}


def prepare(proof: Proof) -> None:
    """Makes the administrator, and has functions give up at once, instead of waiting for rights."""
    root = f"arn:aws:iam::{proof.deployed.cloud.account}:root"
    trusts = {"Effect": "Allow", "Action": "sts:AssumeRole", "Principal": {"AWS": root}}
    every = {"Effect": "Allow", "Action": "*", "Resource": "*"}
    documents = [json.dumps({"Version": "2012-10-17", "Statement": [x]}) for x in (trusts, every)]
    iam, named = proof.client("iam"), {"RoleName": ADMINISTRATOR}
    iam.create_role(**named, AssumeRolePolicyDocument=documents[0])
    iam.put_role_policy(**named, PolicyName="all", PolicyDocument=documents[1])
    functions, name = proof.client("lambda"), f"tap-stack-rotation-{proof.env}"
    functions.update_function_configuration(FunctionName=name, Timeout=3)
    version = functions.publish_version(FunctionName=name)["Version"]
    functions.update_alias(FunctionName=name, Name="live", FunctionVersion=version)
    for each in ("rotation", "files", "snapshots"):
        live = {"FunctionName": f"tap-stack-{each}-{proof.env}", "Qualifier": "live"}
        found = functions.get_function_event_invoke_config(**live)["DestinationConfig"]
        functions.put_function_event_invoke_config(
            **live, MaximumRetryAttempts=0, DestinationConfig=found
        )


def shown(result: Result) -> str:
    """A result as a line."""
    grant = result.grant
    what = f"{grant.action} on {grant.on.rpartition(':')[2]}"
    outcome = result.outcome[:90] or "it is done all the same"
    return f"{grant.holder:33} {what:82} {result.need.step:32} {outcome}"


def main() -> int:
    """Deploys, proves, prints."""
    began, console, results = (
        time.monotonic(),
        Console(highlight=False, markup=False, soft_wrap=True),
        [],
    )
    quiet: Any = {"say": lambda _: None, "report": lambda _: None}
    with tempfile.TemporaryDirectory() as folder:
        deployed, _ = session.up(ROOT, "dev", folder=Path(folder), config=OPTIONS, **quiet)
        try:
            proof = Proof(deployed)
            prepare(proof)
            failing = baseline(proof)
            for each in () if failing else itertools.chain(prove(proof), prove_conditions(proof)):
                results.append(each)
                console.print(shown(each))
            failing = failing or baseline(proof)
        finally:
            session.down(ROOT, None, folder=Path(folder), report=lambda _: None)
    for (role, step), why in failing.items():
        console.print(f"{role}: {step} fails with all grants: {why}")
    vain = [each for each in results if not each.outcome]
    seconds = round(time.monotonic() - began)
    console.print(f"{len(results)} proved, {len(vain)} of them in vain, {seconds} s")
    return 1 if vain or failing or not results else 0


if __name__ == "__main__":
    sys.exit(main())
