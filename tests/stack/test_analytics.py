"""The export of the files table, what Athena reads of it, and who may do what."""

from __future__ import annotations

import json

import pytest
import sqlglot
from sqlglot import exp

import tap_stack
from tests.stack.conftest import ACCOUNT, REGION, ROOT, Graph, graph_of

NAME = "tap-stack-analytics-prod"
BUCKET = f"{NAME}-{ACCOUNT}"


def with_analytics(env: str = "prod") -> Graph:
    return graph_of(env, systems='["files"]', files_analytics="true")


def saved_queries() -> list[tuple[str, str]]:
    found = with_analytics().of("aws:athena/namedQuery:NamedQuery")
    return [(each.inputs["name"], each.inputs["query"]) for each in found]


def test_a_schedule_exports_the_table_each_night() -> None:
    graph = with_analytics()
    schedule, table = graph.one("Schedule").inputs, graph.one("Table", "files-table").inputs
    key = graph.outputs["key_arn"]
    assert table["pointInTimeRecovery"] == {"enabled": True}  # which an export is made from
    assert (schedule["groupName"], schedule["scheduleExpression"]) == (NAME, "cron(0 3 * * ? *)")
    assert schedule["kmsKeyArn"] == key
    target = schedule["target"]
    assert target["arn"] == "arn:aws:scheduler:::aws-sdk:dynamodb:exportTableToPointInTime"
    assert json.loads(target["input"]) == {
        "TableArn": f"arn:aws:test:{REGION}:{ACCOUNT}:Table/files-table",
        "S3Bucket": BUCKET,
        "S3SseKmsKeyId": key,
        "S3SseAlgorithm": "KMS",
    }
    bucket = graph.one("Bucket", "files-analytics-exports-bucket")
    assert bucket.inputs["bucket"] == BUCKET


@pytest.mark.parametrize("env", ["dev", "staging", "prod"])
def test_exports_are_encrypted_and_gone_after_days(env: str) -> None:
    graph = with_analytics(env)
    encryption = graph.one(
        "BucketServerSideEncryptionConfiguration", "files-analytics-exports-encryption"
    ).inputs["rules"][0]["applyServerSideEncryptionByDefault"]
    assert encryption["kmsMasterKeyId"] == graph.outputs["key_arn"]
    rules = graph.one("BucketLifecycleConfiguration", "files-analytics-exports-lifecycle").inputs
    days = {each["id"]: each for each in rules["rules"]}
    assert days["expired"]["expiration"] == {"days": tap_stack.EXPORT_DAYS}
    gone = {"noncurrentDays": tap_stack.EXPORT_DAYS}
    assert days["noncurrent"]["noncurrentVersionExpiration"] == gone
    assert "cooler" not in days


def test_a_query_is_limited_and_its_result_encrypted_whoever_asks() -> None:
    graph = with_analytics()
    group = graph.one("aws:athena/workgroup:Workgroup").inputs
    settings = group["configuration"]
    assert settings["enforceWorkgroupConfiguration"] is True
    assert settings["bytesScannedCutoffPerQuery"] == tap_stack.QUERY_GB * 10**9
    assert settings["resultConfiguration"] == {
        "outputLocation": f"s3://{BUCKET}/results/",
        "encryptionConfiguration": {
            "encryptionOption": "SSE_KMS",
            "kmsKeyArn": graph.outputs["key_arn"],
        },
    }
    assert (group["name"], group["forceDestroy"]) == (NAME, False)
    assert graph.outputs["files_workgroup_name"] == NAME


def test_the_catalog_has_what_an_export_has() -> None:
    graph = with_analytics()
    table = graph.one("aws:glue/catalogTable:CatalogTable").inputs
    assert table["databaseName"] == "tap_stack_analytics_prod"
    stored = table["storageDescriptor"]
    assert stored["location"] == f"s3://{BUCKET}/AWSDynamoDB/"
    known = tap_stack.Upload(
        {
            "eventTime": "2026-01-01T00:00:00Z",
            "s3": {"bucket": {"name": "b"}, "object": {"key": "a/b", "sequencer": "1"}},
        }
    ).attributes()
    written = {*known, "size", "content_type", "etag", "deleted_at"}
    assert written >= {*tap_stack.EXPORTED.split()}
    (column,) = stored["columns"]
    texts = ",".join(f"{each}:struct<s:string>" for each in tap_stack.EXPORTED.split())
    assert column == {"name": "item", "type": f"struct<{texts},size:struct<n:string>>"}


@pytest.mark.parametrize("dialect", ["athena", "trino", "duckdb"])
def test_saved_queries_are_reads_in_the_sql_of_athena_and_of_duckdb(dialect: str) -> None:
    queries, used = saved_queries(), set()
    assert [name for name, _ in queries] == list(tap_stack.QUERIES)
    for name, text in queries:
        parsed = sqlglot.parse_one(text, dialect=dialect)
        assert isinstance(parsed, exp.Select), name
        named = {each.name for each in parsed.find_all(exp.Table)}
        ctes = {each.alias for each in parsed.find_all(exp.CTE)}
        assert named - ctes == {"exports"}
        assert not list(parsed.find_all(exp.Anonymous)), name  # a function that nobody knows
        paths = [[x.name for x in each.parts] for each in parsed.find_all(exp.Column)]
        used |= {path[path.index("item") + 1] for path in paths if "item" in path[:-1]}
    assert used == {*tap_stack.EXPORTED.split(), "size"}


def test_each_query_of_the_folder_is_saved() -> None:
    names = {each.stem for each in (ROOT / "queries").glob("*.sql")} - {"versions"}
    assert names == {*tap_stack.QUERIES}


def test_the_policy_for_who_asks_is_for_the_stacks_own_names() -> None:
    text = (ROOT / "docs/operations.md").read_text().partition("<!-- analyst -->\n```json\n")[2]
    policy = json.loads(text.partition("```")[0])
    for each in policy["Statement"]:
        assert each["Resource"] != "*"
        assert "*" not in "".join(each["Action"])


def test_without_analytics_there_is_no_bucket_and_no_schedule_of_it(graph: Graph) -> None:
    assert not [each.name for each in graph.custom() if "analytics" in each.name]
    assert "files_workgroup_name" not in graph.outputs
