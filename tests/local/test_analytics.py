"""Exports and their queries on the local cloud: what is asked of files is what became of them."""

from __future__ import annotations

import base64
import csv
import functools
import gzip
import hashlib
import io
import json
import re
import uuid
from collections import defaultdict
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import boto3
import pytest
from botocore.config import Config
from botocore.exceptions import ClientError

from ops import report as reports
from taplocal import exports, session
from taplocal.session import Session
from tests.local.conftest import HANG_SECONDS, ROOT, taplocal
from tests.local.small import Small, made, statement
from tests.local.small import eventually as within

NAME = "tap-stack-analytics-dev"
DATABASE = "tap_stack_analytics_dev"
eventually = functools.partial(within, seconds=HANG_SECONDS)
SETTINGS = {"systems": '["files"]', "files_analytics": "true"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder with a stack of its own."""
    return tmp_path_factory.mktemp("analytics")


@pytest.fixture(scope="module")
def deployed(folder: Path) -> Iterator[Session]:
    """A stack with the setting, and with nothing but files."""
    options: Any = {"folder": folder, "report": lambda step: None}
    try:
        yield session.up(ROOT, "dev", config=SETTINGS, say=print, **options)[0]
    finally:
        session.down(ROOT, None, **options)


@pytest.fixture
def own(deployed: Session) -> Iterator[Small]:
    """What a test makes for itself."""
    with made(deployed) as found:
        yield found


def client(deployed: Session, service: str) -> Any:
    return deployed.cloud.client(service)


def put(deployed: Session, key: str, body: bytes) -> str:
    """Puts an object; returns its version."""
    bucket = deployed.outputs["files_bucket_name"]
    found = client(deployed, "s3").put_object(Bucket=bucket, Key=key, Body=body)
    return str(found["VersionId"])


def delete(deployed: Session, key: str, version: str = "") -> None:
    """Deletes an object by a marker, or one of its versions."""
    which = {"VersionId": version} if version else {}
    bucket = deployed.outputs["files_bucket_name"]
    client(deployed, "s3").delete_object(Bucket=bucket, Key=key, **which)


def items(deployed: Session) -> list[dict[str, Any]]:
    """All items of the files table."""
    pages = client(deployed, "dynamodb").get_paginator("scan")
    found = pages.paginate(TableName=deployed.outputs["files_table_name"], ConsistentRead=True)
    return [each for page in found for each in page["Items"]]


def rows(deployed: Session, name: str) -> list[dict[str, Any]]:
    """What a saved query tells of the newest export."""
    athena = client(deployed, "athena")
    (query,) = reports.saved_queries(athena, deployed.outputs["files_workgroup_name"], name)
    return reports.run(athena, query).records()


def exported(deployed: Session) -> dict[str, bytes]:
    """Name below the newest export's folder -> content."""
    s3, bucket = client(deployed, "s3"), f"{NAME}-{deployed.cloud.account}"
    listed = s3.list_objects_v2(Bucket=bucket, Prefix="AWSDynamoDB/")["Contents"]
    newest = max(each["Key"].split("/")[1] for each in listed)
    found = {}
    for each in (x["Key"] for x in listed if x["Key"].split("/")[1] == newest):
        read = s3.get_object(Bucket=bucket, Key=each)
        assert read["ServerSideEncryption"] == "aws:kms"
        assert read["SSEKMSKeyId"] == deployed.outputs["key_arn"]
        found[each.split("/", 2)[2]] = read["Body"].read()
    return found


def test_before_the_first_export_the_reports_are_empty(folder: Path, deployed: Session) -> None:
    assert rows(deployed, "storage") == []
    shown = taplocal("report", "--no-export", "--data", str(folder))
    assert (shown.returncode, shown.stderr) == (0, "")
    assert shown.stdout.count("no export yet") == 3


def test_reports_are_what_own_bookkeeping_says(deployed: Session) -> None:
    """Uploads, overwrites, duplicates, deletions of three kinds; what is stored of each."""
    name = uuid.uuid4().hex
    ann, bob, month = f"ann-{name}", f"bob-{name}", f"{datetime.now(UTC):%Y-%m}"
    png = b"\x89PNG\r\n\x1a\n" + bytes(100)
    stored: dict[tuple[str, str], list[int]] = defaultdict(lambda: [0, 0, 0, 0])
    put(deployed, f"{ann}/a.txt", b"replaced\n")
    put(deployed, f"{ann}/a.txt", b"hello, this is a text\n")
    put(deployed, f"{ann}/x/b.txt", b"hello, this is a text\n")
    put(deployed, f"{bob}/c.txt", b"hello, this is a text\n")
    put(deployed, f"{bob}/empty", b"")
    put(deployed, f"{bob}/p.png", png)
    gone = put(deployed, f"{bob}/gone.txt", b"gone for good\n")
    put(deployed, f"{bob}/marked.txt", b"below a marker\n")
    # What is deleted before it is read is in no report.
    eventually(
        lambda: sum(x.get("owner", {}).get("S") in (ann, bob) for x in items(deployed)) == 15
    )
    delete(deployed, f"{bob}/gone.txt", gone)
    delete(deployed, f"{bob}/marked.txt")
    stored[ann, "text/plain"] = [2, 1, 9, 9 + 2 * 22]
    stored[bob, "text/plain"] = [1, 1, 15, 22 + 15]
    stored[bob, "image/png"] = [1, 0, 0, 108]
    stored[bob, "application/x-empty"] = [1, 0, 0, 0]
    eventually(lambda: sum("deleted_at" in x for x in items(deployed)) >= 3)  # 1 version, 2 files
    exports.run(deployed.cloud, NAME)
    columns = ("files", "replaced", "replaced_bytes", "bytes")
    assert {
        (row["owner"], row["content_type"]): [row[each] for each in columns]
        for row in rows(deployed, "storage")
    } == stored
    came = 9 + 3 * 22 + 108 + 14 + 15
    assert rows(deployed, "growth") == [
        {
            "month": month,
            "uploaded": 8,
            "uploaded_bytes": came,
            "deleted": 1,
            "deleted_bytes": 14,
            "stored_bytes": came - 14,
        }
    ]
    assert rows(deployed, "duplicates") == [
        {"example": f"{ann}/a.txt", "copies": 3, "owners": 2, "bytes_each": 22, "bytes": 44}
    ]


def test_an_export_has_the_table_in_the_files_that_dynamodb_writes(deployed: Session) -> None:
    put(deployed, "a/ä \n.txt", b"x")
    eventually(lambda: any(x.get("key") == {"S": "a/ä \n.txt"} for x in items(deployed)))
    exports.run(deployed.cloud, NAME)
    files = exported(deployed)
    (data,) = (each for each in files if each.startswith("data/"))
    assert re.fullmatch(r"data/[a-z0-9]{26}\.json\.gz", data)
    assert {*files} == {
        "_started",
        data,
        *(f"manifest-{x}.{y}" for x in ("files", "summary") for y in ("json", "checksum")),
    }
    lines = gzip.decompress(files[data]).decode().splitlines()
    found = [json.loads(each)["Item"] for each in lines]
    by_key = {(each["id"]["S"], each["record"]["S"]): each for each in items(deployed)}
    assert {(each["id"]["S"], each["record"]["S"]): each for each in found} == by_key
    (entry,) = (json.loads(each) for each in files["manifest-files.json"].splitlines())
    md5 = hashlib.md5(files[data], usedforsecurity=False)
    assert (entry["itemCount"], entry["etag"]) == (len(by_key), md5.hexdigest())
    assert entry["md5Checksum"] == base64.b64encode(md5.digest()).decode()
    assert entry["dataFileS3Key"].endswith(data)
    summary = json.loads(files["manifest-summary.json"])
    assert (summary["itemCount"], summary["outputFormat"]) == (len(by_key), "DYNAMODB_JSON")
    assert summary["manifestFilesS3Key"].endswith("/manifest-files.json")
    assert summary["s3SseKmsKeyId"] == deployed.outputs["key_arn"]


def test_an_export_that_is_not_complete_and_files_of_others_change_no_report(
    deployed: Session,
) -> None:
    exports.run(deployed.cloud, NAME)
    before, s3, bucket = rows(deployed, "growth"), client(deployed, "s3"), f"{NAME}-000000000000"
    line = json.dumps(
        {"Item": {"id": {"S": "x"}, "record": {"S": "version#1"}, "size": {"N": "5"}}}
    )
    names = ["99999999999999-abcdef01/data/x.json.gz", "00000000000001-abcdef01/data/x.json.gz"]
    for name in names:
        body = gzip.compress(line.encode())
        s3.put_object(Bucket=bucket, Key=f"AWSDynamoDB/{name}", Body=body)
    try:
        assert rows(deployed, "growth") == before
    finally:
        for name in names:
            s3.delete_object(Bucket=bucket, Key=f"AWSDynamoDB/{name}")


def test_report_prints_tables_with_bars_json_and_csv(folder: Path, deployed: Session) -> None:
    put(deployed, "printed/one.txt", b"one of two\n")
    eventually(lambda: any(x.get("key") == {"S": "printed/one.txt"} for x in items(deployed)))
    shown = taplocal("report", "--data", str(folder))
    assert (shown.returncode, shown.stderr) == (0, "")
    assert "█" in shown.stdout
    assert max(map(len, shown.stdout.splitlines())) <= 80
    as_json = taplocal("report", "storage", "--no-export", "--json", "--data", str(folder))
    told = json.loads(as_json.stdout)["storage"]
    assert told == rows(deployed, "storage")
    assert {"owner": "printed", "bytes": 11}.items() <= next(
        row for row in told if row["owner"] == "printed"
    ).items()
    as_csv = taplocal("report", "storage", "--no-export", "--csv", "--data", str(folder))
    read = [*csv.DictReader(io.StringIO(as_csv.stdout))]
    assert read == [{key: str(value) for key, value in row.items()} for row in told]


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["storagee"], 'there is no report "storagee": did you mean storage?'),
        (["x"], 'there is no report "x": use one of duplicates, growth, storage'),
        (["--csv"], "--csv prints one report: name it, without --json"),
    ],
)
def test_a_mistake_is_one_line(
    folder: Path, deployed: Session, arguments: list[str], why: str
) -> None:
    found = taplocal("report", *arguments, "--data", str(folder))
    assert (found.returncode, found.stderr) == (1, f"error: {why}\n")


def test_a_schedule_exports_as_its_role_may_and_counts_what_is_refused(
    deployed: Session, own: Small
) -> None:
    scheduler, dynamodb = client(deployed, "scheduler"), client(deployed, "dynamodb")
    target = scheduler.get_schedule(Name=NAME, GroupName=NAME)["Target"]
    table, key = json.loads(target["Input"])["TableArn"], deployed.outputs["key_arn"]
    role = own.role(statement("s3:ListBucket", on="*"), service="scheduler.amazonaws.com")
    objects = f"arn:aws:s3:::{NAME}-{deployed.cloud.account}/AWSDynamoDB/*"
    exporting = statement("dynamodb:ExportTableToPointInTime", on=table)
    writing = statement("s3:PutObject", "s3:PutObjectAcl", "s3:AbortMultipartUpload", on=objects)
    reading, sealing = (statement(f"kms:{x}", on=key) for x in ("Decrypt", "GenerateDataKey"))

    def done() -> list[str]:
        found = dynamodb.list_exports(TableArn=table)["ExportSummaries"]
        statuses = [each["ExportStatus"] for each in found]
        return [each for each in statuses if each != "IN_PROGRESS"]

    def schedule(number: int, *may: dict[str, Any]) -> None:
        own.grant(role, *may)
        at = datetime.now(UTC) + timedelta(seconds=1)
        name = f"{own.name}-{number}"
        scheduler.create_schedule(
            Name=name,
            GroupName=NAME,
            ScheduleExpression=f"at({at:%Y-%m-%dT%H:%M:%S})",
            FlexibleTimeWindow={"Mode": "OFF"},
            Target={"Arn": target["Arn"], "RoleArn": role, "Input": target["Input"]},
        )
        own.later(scheduler.delete_schedule, Name=name, GroupName=NAME)

    group = {"ScheduleGroup": NAME}
    dropped, begun = own.count("InvocationDroppedCount", "AWS/Scheduler", **group), len(done())
    schedule(1, writing, reading, sealing)
    own.wait_for("InvocationDroppedCount", dropped + 1, "AWS/Scheduler", **group)
    assert len(done()) == begun
    lacking = ([reading, sealing], [writing, reading], [writing, sealing])
    for number, may in enumerate(lacking, 1):
        schedule(number + 1, exporting, *may)
        eventually(functools.partial(lambda wanted: len(done()) == wanted, begun + number))
        assert done()[-1] == "FAILED"
    schedule(9, exporting, writing, reading, sealing)
    eventually(lambda: len(done()) == begun + len(lacking) + 1)
    assert done()[-1] == "COMPLETED"
    assert own.count("InvocationDroppedCount", "AWS/Scheduler", **group) == dropped + 1


def test_only_a_table_with_recovery_is_exported_and_in_full(deployed: Session, own: Small) -> None:
    dynamodb = client(deployed, "dynamodb")
    table = dynamodb.create_table(
        TableName=own.name,
        KeySchema=[{"AttributeName": "id", "KeyType": "HASH"}],
        AttributeDefinitions=[{"AttributeName": "id", "AttributeType": "S"}],
        BillingMode="PAY_PER_REQUEST",
    )["TableDescription"]["TableArn"]
    own.later(dynamodb.delete_table, TableName=own.name)
    export = {"TableArn": table, "S3Bucket": f"{NAME}-{deployed.cloud.account}"}
    with pytest.raises(ClientError, match="PointInTimeRecoveryUnavailable"):
        dynamodb.export_table_to_point_in_time(**export)
    enabled = {"PointInTimeRecoveryEnabled": True}
    dynamodb.update_continuous_backups(TableName=own.name, PointInTimeRecoverySpecification=enabled)
    with pytest.raises(ClientError, match="DYNAMODB_JSON only"):
        dynamodb.export_table_to_point_in_time(**export, ExportFormat="ION")


def analyst_policy(deployed: Session) -> list[dict[str, Any]]:
    """The policy of docs/operations.md, for this stack."""
    text = (ROOT / "docs/operations.md").read_text().partition("<!-- analyst -->\n```json\n")[2]
    text = text.partition("```")[0].replace("<project>_analytics_<environment>", DATABASE)
    names = {
        "<project>": "tap-stack",
        "<environment>": "dev",
        "<region>": deployed.cloud.region,
        "<account>": deployed.cloud.account,
        "<key_arn>": deployed.outputs["key_arn"],
    }
    for name, value in names.items():
        text = text.replace(name, value)
    return list(json.loads(text)["Statement"])


def as_role(deployed: Session, role: str, service: str) -> Any:
    """A client with the credentials of a role."""
    keys = client(deployed, "sts").assume_role(RoleArn=role, RoleSessionName="test")["Credentials"]
    found = boto3.Session(
        keys["AccessKeyId"], keys["SecretAccessKey"], keys["SessionToken"], deployed.cloud.region
    )
    once = Config(retries={"total_max_attempts": 1})
    return found.client(service, endpoint_url=deployed.cloud.emulator.url, config=once)


def test_who_has_the_policy_of_the_documents_may_ask_and_without_a_part_of_it_may_not(
    deployed: Session, own: Small
) -> None:
    exports.run(deployed.cloud, NAME)
    policy = analyst_policy(deployed)
    role = own.role(*policy)
    athena = as_role(deployed, role, "athena")
    queries = reports.saved_queries(athena, NAME)
    assert [reports.run(athena, each).records() for each in queries] == [
        rows(deployed, each["Name"]) for each in queries
    ]
    refused = ("glue:GetTable", "s3:ListBucket", "s3:GetObject", "s3:PutObject", "kms:Decrypt")
    for action in (*refused, "kms:GenerateDataKey"):
        kept = []
        for each in policy:
            actions = each["Action"] if isinstance(each["Action"], list) else [each["Action"]]
            kept.append(
                {**each, "Action": [x for x in actions if x != action] or ["s3:GetBucketAcl"]}
            )
        own.grant(role, *kept)
        with pytest.raises(reports.ReportError, match=action):
            reports.run(athena, queries[0])
    own.grant(role, *policy[1:])
    with pytest.raises(ClientError, match="AccessDenied"):
        athena.list_named_queries(WorkGroup=NAME)


def ask(deployed: Session, query: str) -> str:
    """Why a query fails; empty if it does not."""
    athena = client(deployed, "athena")
    saved = {"Name": "own", "QueryString": query, "Database": DATABASE, "WorkGroup": NAME}
    try:
        reports.run(athena, saved)
    except reports.ReportError as error:
        return str(error)
    return ""


@pytest.mark.parametrize(
    "query",
    [
        "SELECT * FROM read_text('/etc/hostname')",
        "SELECT * FROM read_csv('https://example.com/x.csv')",
        "SELECT * FROM 's3://x/y.parquet'",
        "COPY (SELECT 1) TO 'out.csv'",
        "INSTALL httpfs",
        "LOAD httpfs",
        "ATTACH 'other.db'",
        "SET enable_external_access = true",
    ],
)
def test_a_query_reaches_no_file_and_no_network(deployed: Session, query: str) -> None:
    assert re.search("disabled|locked", ask(deployed, query)), query


def test_a_query_that_reads_more_than_the_workgroup_lets_is_cancelled(deployed: Session) -> None:
    athena, s3 = client(deployed, "athena"), client(deployed, "s3")
    place = {"Bucket": f"{NAME}-{deployed.cloud.account}", "Key": "AWSDynamoDB/0-0/data/big.json"}
    before = athena.get_work_group(WorkGroup=NAME)["WorkGroup"]["Configuration"]

    def limit(size: int) -> None:
        changed = {"BytesScannedCutoffPerQuery": size}
        athena.update_work_group(WorkGroup=NAME, ConfigurationUpdates=changed)

    limit(10_000_000)
    s3.put_object(**place, Body=b"x" * 10_000_001)
    try:
        assert "limit was exceeded" in ask(deployed, "SELECT count(*) FROM exports")
        assert ask(deployed, "SELECT 1") == ""
    finally:
        limit(before["BytesScannedCutoffPerQuery"])
    assert ask(deployed, "SELECT count(*) FROM exports") == ""
    s3.delete_object(**place)


def test_a_result_is_where_the_workgroup_says_whatever_the_query_wants(deployed: Session) -> None:
    athena, s3 = client(deployed, "athena"), client(deployed, "s3")
    elsewhere = {"OutputLocation": f"s3://{deployed.outputs['files_bucket_name']}/"}
    started = athena.start_query_execution(
        QueryString="SELECT 1 AS a, 'x' AS b", WorkGroup=NAME, ResultConfiguration=elsewhere
    )["QueryExecutionId"]

    def finished() -> str | None:
        found = athena.get_query_execution(QueryExecutionId=started)["QueryExecution"]
        location = found["ResultConfiguration"]["OutputLocation"]
        return location if found["Status"]["State"] == "SUCCEEDED" else None

    bucket, _, key = eventually(finished).removeprefix("s3://").partition("/")
    assert (bucket, key) == (f"{NAME}-{deployed.cloud.account}", f"results/{started}.csv")
    found = s3.get_object(Bucket=bucket, Key=key)
    assert found["SSEKMSKeyId"] == deployed.outputs["key_arn"]
    assert found["Body"].read() == b'"a","b"\r\n"1","x"\r\n'
    with pytest.raises(ClientError, match="is not found"):
        athena.start_query_execution(QueryString="SELECT 1", WorkGroup="none")
