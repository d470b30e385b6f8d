"""The file pipeline as it is registered: names, trigger, table, function, capacity."""

from __future__ import annotations

import json
import re

import pytest

import tap_stack
from taplocal.errors import TapLocalError
from tests.stack.conftest import ACCOUNT, REGION, ROOT, Graph, graph_of, statements


def test_browsers_upload_from_the_configured_origins_only(graph: Graph, env: str) -> None:
    origins = tap_stack.TapStackArgs(environment_suffix=env).cors_origins
    allowed = [
        rule["allowedOrigins"]
        for each in graph.of("BucketCorsConfiguration")
        for rule in each.inputs["corsRules"]
    ]
    assert allowed == ([list(origins)] if origins else [])


def test_names_can_be_chosen() -> None:
    graph = graph_of("dev", files_bucket_name="our-uploads", files_table_name="our-files")
    assert graph.outputs["files_bucket_name"] == "our-uploads"
    assert graph.outputs["files_table_name"] == "our-files"
    granted = statements(graph.one("BucketPolicy", "files-logs-policy").inputs["policy"])
    assert granted[1]["Condition"]["ArnEquals"]["aws:SourceArn"] == ["arn:aws:s3:::our-uploads"]


@pytest.mark.parametrize("name", ["Upper", "a", "a--b", "-a-", "a.b", "xn--abc", "a" * 64])
def test_a_name_that_s3_rejects_is_rejected(name: str) -> None:
    with pytest.raises(TapLocalError, match="files_bucket_name must be"):
        graph_of("dev", files_bucket_name=name)


def test_the_only_notification_calls_the_live_alias_which_takes_it_from_this_bucket(
    graph: Graph,
) -> None:
    (configured,) = graph.one("BucketNotification").inputs["lambdaFunctions"]
    assert configured["events"] == [
        "s3:LifecycleExpiration:*",
        "s3:ObjectCreated:*",
        "s3:ObjectRemoved:*",
    ]
    assert configured["lambdaFunctionArn"].endswith(":Alias/files-records-live")
    permission = graph.one("Permission", "files-invoke").inputs
    assert permission["qualifier"] == "live"
    assert permission["principal"] == "s3.amazonaws.com"
    assert permission["sourceArn"].endswith(":Bucket/files-uploads-bucket")
    assert permission["sourceAccount"] == ACCOUNT


def test_events_are_tried_three_times_within_six_hours_and_then_set_aside(graph: Graph) -> None:
    retries = graph.one("FunctionEventInvokeConfig", "files-records-retries").inputs
    assert (retries["maximumRetryAttempts"], retries["maximumEventAgeInSeconds"]) == (2, 21_600)
    destination = retries["destinationConfig"]["onFailure"]["destination"]
    assert destination.endswith(":Queue/files-records-dead-letters")
    queue = graph.one("Queue", "files-records-dead-letters").inputs
    assert queue["messageRetentionSeconds"] == 14 * 24 * 3600


def test_the_table_has_its_capacity_and_its_indexes_half_of_it(graph: Graph, env: str) -> None:
    table = graph.one("Table", "files-table").inputs
    assert (table["billingMode"], table["hashKey"], table["rangeKey"]) == (
        "PROVISIONED",
        "id",
        "record",
    )
    assert (table["readCapacity"], table["writeCapacity"]) == (100, 100)
    assert table["pointInTimeRecovery"] == {"enabled": True}
    assert table["deletionProtectionEnabled"] is (env == "prod")
    for each in table["globalSecondaryIndexes"]:
        assert (each["readCapacity"], each["writeCapacity"]) == (25, 50)
        keys = [key["attributeName"] for key in each["keySchemas"]]
        assert keys == [tap_stack.FILE_INDEXES[each["name"]], "uploaded_at"]
    scaled = [each.name for each in graph.of("aws:appautoscaling/target:Target")]
    assert sum(each.startswith("files-") for each in scaled) == (8 if env == "prod" else 0)


def test_table_and_indexes_scale_if_they_shall_and_keep_what_the_scaler_set() -> None:
    graph = graph_of("dev", files_table_scaling="4")
    ranges = {
        (each.inputs["resourceId"].rpartition("/")[2], each.inputs["scalableDimension"]): (
            each.inputs["minCapacity"],
            each.inputs["maxCapacity"],
        )
        for each in graph.of("aws:appautoscaling/target:Target")
    }
    expected = {
        ("tap-stack-files-dev", "dynamodb:table:ReadCapacityUnits"): (100, 400),
        ("tap-stack-files-dev", "dynamodb:table:WriteCapacityUnits"): (100, 400),
    }
    for index in tap_stack.FILE_INDEXES:
        expected[index, "dynamodb:index:ReadCapacityUnits"] = (25, 100)
        expected[index, "dynamodb:index:WriteCapacityUnits"] = (50, 200)
    assert ranges == expected
    assert len(graph.of("aws:appautoscaling/policy:Policy")) == len(expected)
    assert set(graph.one("Table", "files-table").ignore_changes) == {
        "readCapacity",
        "writeCapacity",
        "globalSecondaryIndexes",  # the provider's bridge knows no [*], and AWS no order of them
    }
    assert not graph_of("dev").one("Table", "files-table").ignore_changes


def test_events_are_published_by_two_pipes() -> None:
    graph = graph_of("prod", files_events="true")
    table = graph.one("Table", "files-table")
    assert (table.inputs["streamEnabled"], table.inputs["streamViewType"]) == (
        True,
        "NEW_AND_OLD_IMAGES",
    )
    stream = f"arn:aws:test:{REGION}:{ACCOUNT}:Table/files-table/stream/1"
    bus = f"arn:aws:events:{REGION}:{ACCOUNT}:event-bus/default"
    published = {}
    for pipe in (each.inputs for each in graph.of("Pipe")):
        assert (pipe["source"], pipe["target"]) == (stream, bus)
        to = pipe["targetParameters"]["eventbridgeEventBusParameters"]
        published[to["detailType"]] = (pipe["name"], to["source"])
    assert published == {
        "FileRecorded": ("tap-stack-files-recorded-prod", "tap-stack"),
        "FileDeleted": ("tap-stack-files-deleted-prod", "tap-stack"),
    }


def test_without_events_there_is_no_stream_and_no_pipe(graph: Graph) -> None:
    assert not graph.one("Table", "files-table").inputs["streamEnabled"]
    assert not graph.of("Pipe")
    assert "files-events-role" not in {each.name for each in graph.of("Role")}


def test_an_event_has_what_its_schema_says() -> None:
    schema = json.loads((ROOT / "docs/file-event.schema.json").read_text())
    detail = schema["properties"]["detail"]
    for event, more in (("recorded", []), ("deleted", ["deleted_at"])):
        pipe = graph_of("dev", files_events="true").one("Pipe", f"files-{event}-events").inputs
        template = pipe["targetParameters"]["inputTemplate"]
        filled = json.loads(re.sub(r"<\$\.[\w.]+>", '""', template))
        assert [*filled] == [*detail["required"], *more]
        assert filled["bucket"] == f"tap-stack-files-dev-{ACCOUNT}"
    assert [*detail["properties"]] == [*filled]


def test_with_malware_protection_s3_gives_what_is_not_scanned_to_two_roles() -> None:
    graph = graph_of("prod", files_malware_protection="true")
    policy = graph.one("BucketPolicy", "files-uploads-policy").inputs["policy"]
    others = [x for x in statements(policy) if "ArnNotEquals" in x.get("Condition", {})]
    denied, forged = others
    assert (denied["Effect"], denied["Principal"]) == ("Deny", {"AWS": "*"})
    assert denied["Action"] == ["s3:GetObject", "s3:GetObjectVersion"]
    tag = "s3:ExistingObjectTag/GuardDutyMalwareScanStatus"
    readers = [
        graph.one("Role", f"files-{each}-role").inputs["name"] for each in ("records", "malware")
    ]
    assert denied["Condition"] == {
        "StringNotEquals": {tag: ["NO_THREATS_FOUND", "UNSUPPORTED"]},
        "ArnNotEquals": {
            "aws:PrincipalArn": [f"arn:aws:iam::{ACCOUNT}:role/{each}" for each in readers]
        },
    }
    assert forged["Action"] == [
        f"s3:{each}" for each in ("PutObject", "PutObjectTagging", "PutObjectVersionTagging")
    ]
    assert forged["Condition"] == {
        "ForAnyValue:StringEquals": {"s3:RequestObjectTagKeys": "GuardDutyMalwareScanStatus"},
        "ArnNotEquals": denied["Condition"]["ArnNotEquals"],
    }


def test_scans_are_told_to_the_function_once_all_is_ready() -> None:
    graph = graph_of("prod", files_malware_protection="true")
    rule = graph.one("EventRule", "files-scans").inputs
    assert json.loads(rule["eventPattern"]) == {
        "source": ["aws.guardduty"],
        "detail-type": ["GuardDuty Malware Protection Object Scan Result"],
        "detail": {"s3ObjectDetails": {"bucketName": [f"tap-stack-files-prod-{ACCOUNT}"]}},
    }
    plan = graph.one("MalwareProtectionPlan")
    target, notification = graph.one("EventTarget"), graph.one("BucketNotification")
    assert notification.inputs["eventbridge"] is True
    assert {target.urn, notification.urn} < set(plan.depends_on)
    permission = graph.one("Permission", "files-scans-invoke")
    assert permission.urn in target.depends_on
    assert permission.inputs["principal"] == "events.amazonaws.com"
    assert permission.inputs["sourceArn"].endswith(":EventRule/files-scans")
    assert (
        target.inputs["arn"]
        == graph.one("BucketNotification").inputs["lambdaFunctions"][0]["lambdaFunctionArn"]
    )


def test_without_malware_protection_nothing_of_it_is_there(graph: Graph) -> None:
    assert not graph.of("MalwareProtectionPlan")
    assert not graph.of("EventRule")
    assert "eventbridge" not in graph.one("BucketNotification").inputs
    assert "GuardDuty" not in graph.one("BucketPolicy", "files-uploads-policy").inputs["policy"]
