"""The function of the file pipeline: every version recorded once, whatever S3 and DynamoDB do."""

from __future__ import annotations

import asyncio
import functools
import json
import random
import threading
import time
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import quote_plus

import pytest
from botocore.exceptions import ReadTimeoutError
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import tap_stack
from content_types import Start, content_type_of
from tap_stack import RecordsFailed, Upload, file_id, record_files
from tests.fakes import (
    FakeContext,
    FakeDynamoDB,
    FakeS3,
    Item,
    client_error,
    copied,
    service_error,
)
from tests.unit.conftest import ENVIRONMENT
from tests.unit.test_content_types import jpeg, png, tiff
from tests.unit.test_pipes import told_by

DAY = "2026-11-21"


class Pipeline:
    """The handler on fakes."""

    def __init__(self) -> None:
        self.s3, self.table = FakeS3(), FakeDynamoDB()

    def __call__(self, *records: Any) -> None:
        context = FakeContext(tap_stack.FILES_TIMEOUT_SECONDS)
        record_files({"Records": list(records)}, context)

    def version(self, key: str, sequencer: str) -> Item:
        """The record of one version."""
        return self.table.files[f"{file_id(key)} version#{sequencer.ljust(64, '0')}"]

    def newest(self, key: str) -> Item:
        """The file as it is now."""
        return self.table.files[f"{file_id(key)} newest"]

    def stored(self) -> dict[tuple[str, str, str], tuple[int, int]]:
        """As `totals`, without what is deleted."""
        gone = self.totals("deleted_")
        return {
            group: (count - gone[group][0], size - gone[group][1])
            for group, (count, size) in self.totals().items()
        }

    def totals(self, prefix: str = "") -> dict[tuple[str, str, str], tuple[int, int]]:
        """(day, owner, type) -> (count, bytes), over all shards."""
        found: Counter[tuple[str, str, str, str]] = Counter()
        for item in self.table.files.values():
            if item["id"]["S"].startswith("totals#"):
                owner, day, rest = item["record"]["S"].split("/", 2)
                assert item["id"]["S"] == f"totals#{day[:7]}"
                group = day, owner, rest.rpartition("/")[0]
                for x in ("count", "bytes"):
                    found[*group, x] += int(item.get(f"{prefix}{x}", {"N": "0"})["N"])
        groups = {group[:3] for group in found}
        return {group: (found[*group, "count"], found[*group, "bytes"]) for group in groups}


@pytest.fixture
def pipeline(monkeypatch: pytest.MonkeyPatch) -> Iterator[Pipeline]:
    """The handler on empty fakes."""
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    fakes = Pipeline()
    monkeypatch.setattr(tap_stack, "_clients", {"dynamodb": fakes.table, "s3": fakes.s3})
    pauses: list[float] = []
    monkeypatch.setattr(time, "sleep", pauses.append)
    monkeypatch.setattr(time, "monotonic", lambda: sum(pauses))
    yield fakes


def created(key: str, sequencer: str = "A1", version: str = "v1", **changes: Any) -> dict[str, Any]:
    """A record of an S3 event."""
    stored = {"key": quote_plus(key, safe="/"), "versionId": version, "sequencer": sequencer}
    return {
        "eventName": "ObjectCreated:Put",
        "eventTime": f"{DAY}T10:00:00.000Z",
        "s3": {"bucket": {"name": "files-bucket"}, "object": stored},
        **changes,
    }


def plain(item: Item) -> dict[str, Any]:
    """An item without the types of its attributes."""
    return dict(json.loads(tap_stack.to_json({"M": item})))


# What is recorded


def test_everything_that_the_object_tells_is_recorded(pipeline: Pipeline) -> None:
    head = {
        "ContentType": "text/plain",
        "ETag": '"abc-3"',
        "ChecksumSHA256": "c3Vt",
        "ChecksumType": "COMPOSITE",
        "Metadata": {"camera": "x100"},
    }
    pipeline.s3.put("ann/trip/day 1/a+b é.PNG", "v1", png(30, 20), **head)
    pipeline(created("ann/trip/day 1/a+b é.PNG"))
    newest = plain(pipeline.newest("ann/trip/day 1/a+b é.PNG"))
    assert newest.pop("revision")
    assert newest == {
        "id": file_id("ann/trip/day 1/a+b é.PNG"),
        "record": "newest",
        "sequencer": "A1".ljust(64, "0"),
        "key": "ann/trip/day 1/a+b é.PNG",
        "owner": "ann",
        "folder": "trip/day 1",
        "name": "a+b é.PNG",
        "extension": "png",
        "version_id": "v1",
        "uploaded_at": f"{DAY}T10:00:00.000Z",
        "size": len(png(30, 20)),
        "content_type": "image/png",
        "declared_type": "text/plain",
        "etag": "abc-3",
        "checksums": {"SHA256": "c3Vt"},
        "metadata": {"camera": "x100"},
        "width": 30,
        "height": 20,
        "files_of": "ann/",
        "folder_of": "ann/trip/day 1",
        "type_of": "ann/image/png",
    }
    version = plain(pipeline.version("ann/trip/day 1/a+b é.PNG", "A1"))
    assert not {"files_of", "folder_of", "type_of"} & version.keys()  # it is in no index
    assert pipeline.totals() == {(DAY, "ann", "image/png"): (1, len(png(30, 20)))}


@pytest.mark.parametrize(
    ("key", "owner", "folder", "name", "extension"),
    [
        ("a.txt", "", "", "a.txt", "txt"),
        ("ann/a", "ann", "", "a", ""),
        ("ann/photos/", "ann", "photos", "", ""),
        ("ann/.bashrc", "ann", "", ".bashrc", ""),
        ("ann/a.tar.GZ", "ann", "", "a.tar.GZ", "gz"),
        ("ann/../../etc/passwd", "ann", "../../etc", "passwd", ""),
        ("ann//b", "ann", "", "b", ""),
        ("ann/line\nbreak/\t%20+", "ann", "line\nbreak", "\t%20+", ""),
        ("/", "", "", "", ""),
        ("ann/" + "é" * 510, "ann", "", "é" * 510, ""),
        ("a" * 512 + "/b/c", "a" * 512, "b", "c", ""),
        ("a" * 513 + "/b/c", "", "a" * 513 + "/b", "c", ""),
        ("é" * 500 + "/b", "", "é" * 500, "b", ""),
    ],
)
def test_a_key_is_opaque(
    pipeline: Pipeline, key: str, owner: str, folder: str, name: str, extension: str
) -> None:
    pipeline.s3.put(key, "v1", b"")
    pipeline(created(key))
    file = plain(pipeline.newest(key))
    assert (file["key"], file["owner"], file["folder"], file["name"], file["extension"]) == (
        key,
        owner,
        folder,
        name,
        extension,
    )
    assert (file["size"], file["content_type"]) == (0, "application/x-empty")
    assert pipeline.s3.reads == []
    for index in tap_stack.FILE_INDEXES.values():
        assert 0 < len(file[index].encode()) <= 2_048  # what a partition key may have
    for item in pipeline.table.files.values():
        assert len(item["record"]["S"].encode()) <= 1_024  # what a sort key may have


def test_no_more_than_the_head_of_a_large_object_is_read(pipeline: Pipeline) -> None:
    pipeline.s3.put("ann/film", "v1", b"\0\0\0\x18ftypisom" + b"\0" * 70_000, size=5 * 10**12)
    pipeline(created("ann/film"))
    assert plain(pipeline.newest("ann/film"))["size"] == 5 * 10**12
    assert pipeline.s3.reads == ["bytes=0-65535"]


def test_one_more_read_follows_for_a_header_beyond_the_first(pipeline: Pipeline) -> None:
    for name, body in (("whole", jpeg(5, 5)[:12]), ("far", tiff(">", 7, 9, at=100_000))):
        pipeline.s3.put(f"ann/{name}", "v1", body)
        pipeline(created(f"ann/{name}"))
    assert plain(pipeline.newest("ann/far"))["width"] == 7
    assert pipeline.s3.reads == ["bytes=0-11", "bytes=0-65535", "bytes=100000-100049"]


def test_an_archived_object_is_recorded_without_being_read(pipeline: Pipeline) -> None:
    pipeline.s3.put("ann/old", "v1", b"x", StorageClass="GLACIER", ContentType="image/png")
    pipeline(created("ann/old"))
    assert plain(pipeline.newest("ann/old"))["content_type"] == "application/octet-stream"


@pytest.mark.parametrize("size", [6, 65_536, 10**9])
def test_a_body_that_was_cut_is_an_error_and_tried_again(pipeline: Pipeline, size: int) -> None:
    pipeline.s3.put("ann/a", "v1", b"%PDF-", size=size)
    with pytest.raises(RecordsFailed, match=f"S3 sent 5 of {min(size, 65_536)} bytes"):
        pipeline(created("ann/a"))
    assert pipeline.table.files == {}
    pipeline.s3.put("ann/a", "v1", b"%PDF-")
    pipeline(created("ann/a"))
    assert plain(pipeline.newest("ann/a"))["content_type"] == "application/pdf"


def test_an_ordinary_record_fits_into_one_unit(pipeline: Pipeline) -> None:
    # The arithmetic of docs/decisions/0007: 2 units for each of the three writes.
    key = "3f2504e0-4f89-41d3-9a0c-0305e82c3301/reports/2026/quarter.pdf"
    pipeline.s3.put(key, "v1", b"%PDF-", ETag='"' + "0" * 32 + '"', ChecksumCRC64NVME="A" * 12)
    pipeline(created(key, "0" * 18, "v" * 32))
    for item in pipeline.table.files.values():
        assert len(json.dumps(item)) < 1_024 + 300  # DynamoDB counts neither types nor punctuation


# What comes twice, late or not at all


def test_a_repeated_event_changes_nothing(pipeline: Pipeline) -> None:
    pipeline.s3.put("ann/a", "v1", b"x")
    pipeline(created("ann/a"))
    before = json.dumps(pipeline.table.files, sort_keys=True)
    pipeline(created("ann/a"), created("ann/a"))
    assert json.dumps(pipeline.table.files, sort_keys=True) == before


def test_the_newest_version_stays_when_an_older_one_comes_late(pipeline: Pipeline) -> None:
    pipeline.s3.put("ann/a", "v1", b"old")
    pipeline.s3.put("ann/a", "v2", b"newer")
    # Padded at the end: 0A2 is later than 0A1FF, though it is shorter.
    pipeline(created("ann/a", "0a2", "v2"), created("ann/a", "0A1FF", "v1"))
    assert plain(pipeline.newest("ann/a"))["version_id"] == "v2"
    assert plain(pipeline.version("ann/a", "0A1FF"))["version_id"] == "v1"
    assert pipeline.totals() == {(DAY, "ann", "text/plain"): (2, 8)}


def test_other_events_are_passed_over(
    pipeline: Pipeline, capsys: pytest.CaptureFixture[str]
) -> None:
    pipeline(created("ann/a", eventName="ObjectRestore:Completed"))
    assert pipeline.table.files == {}
    assert json.loads(capsys.readouterr().out)["FilesIgnored"] == 1


@pytest.mark.parametrize("name", ["ObjectCreated:Copy", "s3:ObjectCreated:CompleteMultipartUpload"])
def test_every_kind_of_creation_is_recorded(pipeline: Pipeline, name: str) -> None:
    pipeline.s3.put("ann/a", "v1", b"x")
    pipeline(created("ann/a", eventName=name))
    assert plain(pipeline.newest("ann/a"))["size"] == 1


@pytest.mark.parametrize("code", ["404", "405"])
def test_an_object_that_is_gone_is_recorded_as_failed(pipeline: Pipeline, code: str) -> None:
    def gone(operation: str, arguments: dict[str, Any]) -> None:
        raise client_error(code, operation)

    pipeline.s3.before = gone
    pipeline(created("ann/a"))
    pipeline(created("ann/a"))
    version = plain(pipeline.version("ann/a", "A1"))
    assert version["failure"] == "The object was gone before it could be read."
    newest = plain(pipeline.newest("ann/a"))
    assert (newest["files_of"], newest["failure"]) == ("ann/deleted", version["failure"])
    assert len(pipeline.table.files) == 2  # there is no total


def test_a_version_that_is_gone_leaves_the_file_as_it_is(pipeline: Pipeline) -> None:
    pipeline.s3.put("ann/a", "v1", b"x")
    pipeline(created("ann/a", "A1"), created("ann/a", "A2", "v2"))
    newest = plain(pipeline.newest("ann/a"))
    assert (newest["version_id"], newest["files_of"]) == ("v1", "ann/")
    assert plain(pipeline.version("ann/a", "A2"))["failure"]


# What a scan finds


def scanned(
    key: str, version: str = "v1", *threats: str, result: str = "", at: str = "10:00:05"
) -> dict[str, Any]:
    """GuardDuty's event of a scan."""
    found = result or ("THREATS_FOUND" if threats else "NO_THREATS_FOUND")
    where = {"bucketName": "files-bucket", "objectKey": key, "versionId": version}
    names = [{"name": each} for each in threats] or None
    return {
        "source": "aws.guardduty",
        "detail-type": tap_stack.SCAN_RESULT,
        "time": f"{DAY}T{at}Z",
        "detail": {
            "s3ObjectDetails": where,
            "scanResultDetails": {"scanResultStatus": found, "threats": names},
        },
    }


def scan(pipeline: Pipeline, *arguments: str, **more: str) -> None:
    """The handler gets such an event."""
    record_files(scanned(*arguments, **more), FakeContext(tap_stack.FILES_TIMEOUT_SECONDS))


def found(item: Item) -> tuple[str, list[str], str]:
    """What an item says of a scan."""
    shown = plain(item)
    return shown["scan_result"], shown["threats"], shown["scanned_at"]


def test_what_a_scan_finds_is_in_the_version_and_in_the_file(pipeline: Pipeline) -> None:
    key = "ann/a+b é"
    pipeline.s3.put(key, "v1", b"one")
    pipeline(created(key))
    scan(pipeline, key, "v1", "EICAR", "Other")
    expected = ("THREATS_FOUND", ["EICAR", "Other"], f"{DAY}T10:00:05Z")
    assert found(pipeline.version(key, "A1")) == found(pipeline.newest(key)) == expected
    pipeline(created(key))
    assert found(pipeline.newest(key)) == expected, "a repeated upload leaves it"
    assert pipeline.totals() == {(DAY, "ann", "text/plain"): (1, 3)}


def test_of_several_scans_the_last_one_counts(
    pipeline: Pipeline, capsys: pytest.CaptureFixture[str]
) -> None:
    pipeline.s3.put("ann/a", "v1", b"one")
    pipeline(created("ann/a"))
    scan(pipeline, "ann/a", "v1", "EICAR", at="10:00:09")
    scan(pipeline, "ann/a", "v1", at="10:00:08")
    scan(pipeline, "ann/a", "v1", "EICAR", at="10:00:09")
    assert found(pipeline.newest("ann/a"))[:2] == ("THREATS_FOUND", ["EICAR"])
    scan(pipeline, "ann/a", "v1", at="10:00:10")
    assert found(pipeline.newest("ann/a"))[:2] == ("NO_THREATS_FOUND", [])
    scan(pipeline, "ann/a", "v1", result="UNSUPPORTED", at="10:00:11")
    scan(pipeline, "ann/a", "v1", result="FAILED", at="10:00:12")
    metrics = [
        each["_aws"]["CloudWatchMetrics"][0]["Metrics"][0]["Name"]
        for each in map(json.loads, capsys.readouterr().out.splitlines())
    ]
    scans = ["FilesInfected", "FilesRepeated", "FilesRepeated", "FilesScanned"]
    assert metrics == ["FilesRecorded", *scans, "FilesScanned", "FilesUnscanned"]


def test_a_scan_of_an_older_version_leaves_the_file_as_it_is(pipeline: Pipeline) -> None:
    for sequencer, version in (("A1", "v1"), ("A2", "v2")):
        pipeline.s3.put("ann/a", version, b"one")
        pipeline(created("ann/a", sequencer, version))
    scan(pipeline, "ann/a", "v1", "EICAR")
    assert found(pipeline.version("ann/a", "A1"))[0] == "THREATS_FOUND"
    assert "scan_result" not in pipeline.newest("ann/a")
    pipeline.s3.remove("ann/a", "v2")
    pipeline(removed("ann/a", "A3", "v2"))
    assert found(pipeline.newest("ann/a"))[0] == "THREATS_FOUND", "it is the newest again"


def test_a_scan_whose_version_is_not_recorded_yet_comes_again(pipeline: Pipeline) -> None:
    pipeline.s3.put("ann/a", "v1", b"one")
    with pytest.raises(RecordsFailed, match="version v1 is scanned, and not recorded yet"):
        scan(pipeline, "ann/a")
    pipeline(created("ann/a"))
    scan(pipeline, "ann/a")
    assert found(pipeline.newest("ann/a"))[0] == "NO_THREATS_FOUND"


def test_what_guardduty_itself_puts_is_nobodys_file(
    pipeline: Pipeline, capsys: pytest.CaptureFixture[str]
) -> None:
    pipeline.s3.put(tap_stack.VALIDATION_OBJECT, "v1", b"")
    pipeline(created(tap_stack.VALIDATION_OBJECT))
    scan(pipeline, tap_stack.VALIDATION_OBJECT)
    assert pipeline.table.files == {}
    assert capsys.readouterr().out.count('"FilesIgnored": 1') == 2


@pytest.mark.parametrize("event", [{"detail": {}}, {"detail": None}, {**scanned("a"), "time": "x"}])
def test_an_event_that_is_no_scan_fails(pipeline: Pipeline, event: Any) -> None:
    with pytest.raises(RecordsFailed, match="1 of 1 records"):
        record_files(event, FakeContext(tap_stack.FILES_TIMEOUT_SECONDS))


# What is deleted


def marked(key: str, sequencer: str, version: str) -> dict[str, Any]:
    """The event of a delete marker."""
    return created(key, sequencer, version, eventName="ObjectRemoved:DeleteMarkerCreated")


def removed(key: str, sequencer: str, version: str, **changes: Any) -> dict[str, Any]:
    """The event of a version, or of a marker, that is deleted for good."""
    return created(key, sequencer, version, **{"eventName": "ObjectRemoved:Delete", **changes})


def test_a_version_is_named_to_s3_if_the_event_has_one() -> None:
    record = created("ann/a", "A1")
    assert Upload(record).object_version()["VersionId"] == "v1"
    del record["s3"]["object"]["versionId"]
    found = Upload(record).object_version()
    assert found == {"Bucket": record["s3"]["bucket"]["name"], "Key": "ann/a"}


def test_a_delete_marker_takes_a_file_out_of_the_lists_and_its_removal_brings_it_back(
    pipeline: Pipeline,
) -> None:
    pipeline.s3.put("ann/a", "v1", b"x")
    pipeline(created("ann/a", "A1"))
    before = plain(pipeline.newest("ann/a"))
    pipeline.s3.mark("ann/a", "m1")
    pipeline(marked("ann/a", "A2", "m1"))
    newest = plain(pipeline.newest("ann/a"))
    assert (newest["deleted_at"], newest["files_of"]) == (f"{DAY}T10:00:00.000Z", "ann/deleted")
    assert not {"folder_of", "type_of"} & newest.keys()
    assert (newest["version_id"], newest["size"]) == ("v1", 1)
    assert plain(pipeline.version("ann/a", "A2"))["delete_marker"] is True
    assert pipeline.stored() == {(DAY, "ann", "text/plain"): (1, 1)}  # its version is there
    pipeline.s3.remove("ann/a", "m1")
    pipeline(removed("ann/a", "A3", "m1"))
    after = plain(pipeline.newest("ann/a"))
    assert {**after, "revision": ""} == {**before, "revision": ""}
    assert plain(pipeline.version("ann/a", "A2"))["deleted_at"]


def test_a_version_whose_event_comes_last_is_the_newest_after_all(pipeline: Pipeline) -> None:
    pipeline.s3.put("ann/a", "v1", b"x")
    pipeline.s3.mark("ann/a", "m1")
    pipeline(marked("ann/a", "A2", "m1"))
    assert "size" not in plain(pipeline.newest("ann/a"))
    pipeline.s3.remove("ann/a", "m1")
    pipeline(removed("ann/a", "A3", "m1"))
    pipeline(created("ann/a", "A1"))
    newest = plain(pipeline.newest("ann/a"))
    assert (newest["size"], newest["files_of"]) == (1, "ann/")


def test_a_version_that_is_deleted_for_good_is_stored_no_more(pipeline: Pipeline) -> None:
    for number in (1, 2):
        pipeline.s3.put("ann/a", f"v{number}", b"x" * number)
        pipeline(created("ann/a", f"A{number}", f"v{number}"))
    pipeline.s3.remove("ann/a", "v2")
    events = removed("ann/a", "A3", "v2"), removed("ann/a", "A3", "v2")
    pipeline(*events)
    assert plain(pipeline.newest("ann/a"))["version_id"] == "v1"
    assert plain(pipeline.version("ann/a", "A2"))["deleted_at"] == f"{DAY}T10:00:00.000Z"
    assert pipeline.totals() == {(DAY, "ann", "text/plain"): (2, 3)}
    assert pipeline.stored() == {(DAY, "ann", "text/plain"): (1, 1)}
    pipeline.s3.remove("ann/a", "v1")
    pipeline(removed("ann/a", "A4", "v1", eventName="LifecycleExpiration:Delete"))
    assert plain(pipeline.newest("ann/a"))["deleted_at"]
    assert pipeline.stored() == {(DAY, "ann", "text/plain"): (0, 0)}


def test_a_file_was_deleted_when_its_marker_was_made_also_when_that_has_expired(
    pipeline: Pipeline,
) -> None:
    pipeline.s3.put("ann/a", "v1", b"x")
    pipeline(created("ann/a", "A1"))
    pipeline.s3.mark("ann/a", "m1")
    pipeline({**marked("ann/a", "A2", "m1"), "eventTime": f"{DAY}T11:00:00.000Z"})
    for hour, sequencer, version in ((12, "A3", "v1"), (13, "A4", "m1")):
        pipeline.s3.remove("ann/a", version)
        expired = {"eventName": "LifecycleExpiration:Delete"}
        time = {"eventTime": f"{DAY}T{hour}:00:00.000Z"}
        pipeline(removed("ann/a", sequencer, version, **expired, **time))
    assert plain(pipeline.newest("ann/a"))["deleted_at"] == f"{DAY}T11:00:00.000Z"


def test_a_deletion_without_a_sequencer_is_recorded_too(pipeline: Pipeline) -> None:
    pipeline.s3.put("ann/a", "v1", b"x")
    pipeline(created("ann/a", "A1"))
    pipeline.s3.mark("ann/a", "m1")
    event = marked("ann/a", "", "m1")
    del event["s3"]["object"]["sequencer"]
    pipeline({**event, "eventName": "LifecycleExpiration:DeleteMarkerCreated"})
    assert plain(pipeline.newest("ann/a"))["deleted_at"]


def test_a_version_that_is_deleted_while_it_is_recorded_is_not_stored(pipeline: Pipeline) -> None:
    """The function has read it; its deletion comes first, is tried again, and is recorded then."""
    pipeline.s3.put("ann/a", "v1", b"x")
    event = removed("ann/a", "A2", "v1", eventTime=tap_stack.now())
    refused: list[bool] = []

    def meanwhile(operation: str, arguments: dict[str, Any]) -> None:
        if operation == "TransactWriteItems" and not refused:
            refused.append(True)
            pipeline.s3.remove("ann/a", "v1")
            with pytest.raises(RecordsFailed, match="version v1 is deleted, and not recorded yet"):
                pipeline(event)

    pipeline.table.before = meanwhile
    pipeline(created("ann/a", "A1"))
    assert refused
    pipeline(event)
    assert pipeline.stored() == {(DAY, "ann", "text/plain"): (0, 0)}
    assert plain(pipeline.newest("ann/a"))["deleted_at"] == event["eventTime"]


def test_a_file_that_changes_while_its_deletion_is_recorded_ends_right(pipeline: Pipeline) -> None:
    pipeline.s3.put("ann/a", "v1", b"x")
    pipeline(created("ann/a", "A1"))
    pipeline.s3.mark("ann/a", "m1")
    writes = []

    def meanwhile(operation: str, arguments: dict[str, Any]) -> None:
        if operation == "TransactWriteItems":
            writes.append(True)
            if len(writes) == 2:  # the first is of the marker
                pipeline.s3.put("ann/a", "v2", b"xy")
                pipeline(created("ann/a", "A3", "v2"))

    pipeline.table.before = meanwhile
    pipeline(marked("ann/a", "A2", "m1"))
    newest = plain(pipeline.newest("ann/a"))
    assert (newest["version_id"], newest.get("deleted_at")) == ("v2", None)


def test_a_deletion_waits_for_the_upload_that_is_under_way(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline.s3.put("ann/a", "v1", b"x")
    pauses: list[float] = []

    def pause(seconds: float) -> None:
        pauses.append(seconds)
        if len(pauses) == 4:
            pipeline(created("ann/a", "A1"))

    monkeypatch.setattr(time, "sleep", pause)
    pipeline.s3.remove("ann/a", "v1")
    pipeline(removed("ann/a", "A2", "v1", eventTime=tap_stack.now()))
    assert len(pauses) == 4
    assert "deleted_at" in plain(pipeline.newest("ann/a"))


def test_a_deletion_that_is_long_past_waits_for_nothing(pipeline: Pipeline) -> None:
    pipeline.s3.put("ann/a", "v1", b"x")
    pipeline.s3.remove("ann/a", "v1")
    pipeline(removed("ann/a", "A2", "v1"))
    assert pipeline.table.calls.count("Query") <= 3


@pytest.mark.parametrize("skew", [-tap_stack.CLOCK_SKEW_SECONDS, 0, tap_stack.CLOCK_SKEW_SECONDS])
def test_a_deletion_waits_although_the_clocks_of_s3_and_lambda_differ(
    pipeline: Pipeline, skew: int
) -> None:
    """Its upload's function may be at work for all of its time; 5 s are for this test's own."""
    pipeline.s3.put("ann/a", "v1", b"x")
    pipeline.s3.remove("ann/a", "v1")

    def deleted(age: float) -> None:
        at = datetime.now(UTC) - timedelta(seconds=age + skew)
        pipeline(removed("ann/a", "A2", "v1", eventTime=f"{at:%Y-%m-%dT%H:%M:%S.%fZ}"))

    with pytest.raises(RecordsFailed, match="v1 is deleted, and not recorded yet"):
        deleted(tap_stack.FILES_TIMEOUT_SECONDS - 5)
    deleted(tap_stack.FILES_TIMEOUT_SECONDS + 2 * tap_stack.CLOCK_SKEW_SECONDS)


def test_a_deletion_is_recorded_however_busy_its_file_is(pipeline: Pipeline) -> None:
    """Others write the newest item between its read and its write, ten times."""
    pipeline.s3.put("ann/a", "v1", b"x")
    pipeline(created("ann/a", "A1"))
    pipeline.s3.mark("ann/a", "m1")
    writes = []

    def meanwhile(operation: str, arguments: dict[str, Any]) -> None:
        if operation == "TransactWriteItems":
            writes.append(True)
            if len(writes) <= 10:
                pipeline.newest("ann/a")["revision"] = {"S": str(len(writes))}

    pipeline.table.before = meanwhile
    pipeline(marked("ann/a", "A2", "m1"))
    assert "deleted_at" in plain(pipeline.newest("ann/a"))


def test_an_upload_whose_function_died_between_its_two_writes_is_the_newest_when_it_is_repeated(
    pipeline: Pipeline,
) -> None:
    pipeline.s3.put("ann/a", "v1", b"x")
    pipeline.s3.mark("ann/a", "m1")
    pipeline(marked("ann/a", "A2", "m1"))
    pipeline.s3.remove("ann/a", "m1")
    pipeline(removed("ann/a", "A3", "m1"))  # the newest is v1, whose event is to come

    def die(operation: str, arguments: dict[str, Any]) -> None:
        if operation == "GetItem":
            raise CrashError

    pipeline.table.before = die
    with pytest.raises(CrashError):
        pipeline(created("ann/a", "A1"))
    pipeline.table.before = lambda operation, arguments: None
    assert pipeline.stored() == {(DAY, "ann", "text/plain"): (1, 1)}
    pipeline(created("ann/a", "A1"))
    newest = plain(pipeline.newest("ann/a"))
    assert (newest["version_id"], newest.get("deleted_at")) == ("v1", None)
    assert pipeline.stored() == {(DAY, "ann", "text/plain"): (1, 1)}


# What goes wrong


@pytest.mark.parametrize(
    "record",
    [
        {},
        None,
        "x",
        created("a", sequencer="no hex"),
        created("a", sequencer=""),
        created("a", sequencer="A" * 65),
        created("", "A1"),
        created("a", eventTime="yesterday"),
        created("a", s3={}),
        {
            **created("a"),
            "s3": {"bucket": {"name": "b"}, "object": {"key": "%FF", "sequencer": "1"}},
        },
    ],
)
def test_a_malformed_record_fails_and_does_not_hold_back_the_others(
    pipeline: Pipeline, record: Any
) -> None:
    pipeline.s3.put("ann/a", "v1", b"x")
    if isinstance(record, dict) and not record:
        record = {"eventName": "ObjectCreated:Put"}
    with pytest.raises(RecordsFailed, match="1 of 3 records"):
        pipeline(created("ann/a"), record, created("ann/a"))
    assert plain(pipeline.newest("ann/a"))["size"] == 1


def test_an_object_that_s3_does_not_give_fails_before_lambda_ends_the_function(
    pipeline: Pipeline, capsys: pytest.CaptureFixture[str]
) -> None:
    released = threading.Event()

    def stand_still(*_: Any) -> None:
        released.wait(60)

    pipeline.s3.before = stand_still
    record = created("ann/a")
    with pytest.raises(RecordsFailed, match="TimeoutError: inspect_upload"):
        record_files({"Records": [record]}, FakeContext(tap_stack.RESERVE_SECONDS + 0.05))
    assert not released.is_set() and '"FilesFailed": 1' in capsys.readouterr().out
    released.set()


@pytest.mark.parametrize("event", [{}, {"Records": []}, {"Records": "x"}, [], None, "x"])
def test_an_event_that_is_not_of_s3_fails(pipeline: Pipeline, event: Any) -> None:
    with pytest.raises(RecordsFailed, match="not from S3"):
        record_files(event, FakeContext())


@pytest.mark.parametrize(
    "error",
    [
        client_error("403", "HeadObject"),
        client_error("SlowDown", "HeadObject"),
        ReadTimeoutError(endpoint_url="x"),
    ],
)
def test_what_may_pass_is_left_to_lambda_to_try_again(
    pipeline: Pipeline, error: Exception, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(operation: str, arguments: dict[str, Any]) -> None:
        raise error

    pipeline.s3.before = fail
    with pytest.raises(RecordsFailed, match="ann/a"):
        pipeline(created("ann/a"))
    line = json.loads(capsys.readouterr().out)
    assert (line["level"], line["FilesFailed"], line["key"]) == ("ERROR", 1, "ann/a")
    assert pipeline.table.files == {}


@pytest.mark.parametrize(
    "code", [*sorted(tap_stack.BUSY_REASONS), "ProvisionedThroughputExceededException"]
)
def test_what_dynamodb_cannot_take_yet_is_tried_as_long_as_the_invocation_has_time(
    pipeline: Pipeline, code: str
) -> None:
    pipeline.s3.put("ann/a", "v1", b"x")
    failures = [10]

    def cancel(operation: str, arguments: dict[str, Any]) -> None:
        if failures[0]:
            failures[0] -= 1
            if code.endswith("Exception"):
                raise service_error(code, operation)
            reasons = [{"Code": "None"}, {"Code": code}, {"Code": "None"}]
            raise service_error(
                "TransactionCanceledException", operation, CancellationReasons=reasons
            )

    pipeline.table.before = cancel
    assert tap_stack.transact([]) == [] and failures == [0]
    failures[0] = 10
    context = FakeContext(tap_stack.FILES_TIMEOUT_SECONDS)
    record_files({"Records": [created("ann/a")]}, context)
    assert pipeline.totals() == {(DAY, "ann", "text/plain"): (1, 1)}
    assert failures == [0]
    failures[0], started = 999, time.monotonic()
    with pytest.raises(RecordsFailed, match="Exception"):
        record_files({"Records": [created("ann/a", "A2")]}, context)
    waited = time.monotonic() - started  # of a clock that only pauses move
    assert waited < tap_stack.FILES_TIMEOUT_SECONDS - tap_stack.RESERVE_SECONDS
    assert failures[0] > 900  # the pauses grow


def test_pauses_double_up_to_a_limit_and_leave_a_reserve(monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[float] = []
    monkeypatch.setattr(time, "sleep", pauses.append)
    monkeypatch.setattr(time, "monotonic", lambda: sum(pauses))
    monkeypatch.setattr(tap_stack, "jitter", lambda: 1.0)
    tap_stack.start_clock(FakeContext(20 + 2 * tap_stack.RESERVE_SECONDS))
    assert all(map(tap_stack.may_repeat, range(9)))
    assert pauses == [0.05, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 6.4]
    assert not tap_stack.may_repeat(9) and len(pauses) == 9  # one more is too long


def test_a_transaction_that_cannot_succeed_is_not_tried_again(pipeline: Pipeline) -> None:
    pipeline.s3.put("ann/a", "v1", b"x")

    def refuse(operation: str, arguments: dict[str, Any]) -> None:
        reasons = [{"Code": "ValidationError"}]
        raise service_error("TransactionCanceledException", operation, CancellationReasons=reasons)

    pipeline.table.before = refuse
    with pytest.raises(RecordsFailed, match="Transaction"):
        pipeline(created("ann/a"))
    assert pipeline.table.calls == ["TransactWriteItems"]


def test_each_object_leaves_one_line(
    pipeline: Pipeline, capsys: pytest.CaptureFixture[str]
) -> None:
    pipeline.s3.put("ann/a\n", "v1", b"x")
    pipeline(created("ann/a\n"), created("ann/a\n"))
    first, second = map(json.loads, capsys.readouterr().out.splitlines())
    assert (first["key"], first["size"], first["content_type"]) == ("ann/a\n", "1", "text/plain")
    assert (first["FilesRecorded"], second["FilesRepeated"]) == (1, 1)
    assert first["latency_ms"] >= 0


# Any order, any repetition, any crash


class CrashError(BaseException):
    """The function's process dies."""


many = settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=300, deadline=None
)
KEYS = ("ann/a", "ann/b", "bob/a")
BODIES = (b"text", png(1, 2), b"%PDF-")
versions = st.lists(
    st.tuples(st.sampled_from(KEYS), st.sampled_from(BODIES), st.sampled_from(("20", "21"))),
    min_size=1,
    max_size=6,
)


@many
@given(versions=versions, seed=st.integers(0, 2**32))
def test_the_table_is_right_after_any_order_repetition_and_crash(
    pipeline: Pipeline, versions: list[tuple[str, bytes, str]], seed: int
) -> None:
    """S3 delivers each event at least once, in any order; the process dies before or after any call."""
    pipeline.table.tables["files"].clear()
    chance = random.Random(seed)  # noqa: S311 - a test, no secret
    records, expected = [], Counter[tuple[str, str, str, str]]()
    for number, (key, body, day) in enumerate(versions):
        sequencer, version = f"{number:06X}" + "F" * (number % 3), f"v{number}"
        pipeline.s3.put(key, version, body)
        records.append(created(key, sequencer, version, eventTime=f"2026-11-{day}T10:00:00.000Z"))
        group = (
            f"2026-11-{day}",
            key.partition("/")[0],
            content_type_of(Start(body)),
        )
        expected.update({(*group, "count"): 1, (*group, "bytes"): len(body)})

    def maybe(*_: Any) -> None:
        if chance.random() < 0.2:
            raise CrashError

    pipeline.s3.before = pipeline.table.before = pipeline.table.after = maybe
    waiting = records + [each for each in records if chance.random() < 0.5]
    while waiting:
        batch = [waiting.pop(chance.randrange(len(waiting))) for _ in range(min(2, len(waiting)))]
        try:
            pipeline(*batch)
        except CrashError:
            waiting += batch  # what was not seen to succeed comes again

    assert pipeline.totals() == {
        group[:3]: (expected[*group[:3], "count"], expected[*group[:3], "bytes"])
        for group in expected
    }
    recorded = [x for x in pipeline.table.files if " version#" in x]
    assert len(recorded) == len(versions)
    for key in {key for key, _, _ in versions}:
        last = max(number for number, each in enumerate(versions) if each[0] == key)
        assert plain(pipeline.newest(key))["version_id"] == f"v{last}"


class History:
    """Versions and delete markers that come and go, whose events are delivered in any order."""

    def __init__(self, pipeline: Pipeline, seed: int):
        self.pipeline, self.s3 = pipeline, pipeline.s3
        self.chance = random.Random(seed)  # noqa: S311 - a test, no secret
        self.waiting: list[dict[str, Any]] = []
        self.scans: dict[str, str] = {}  # version -> the result of its scan
        self.told: dict[str, str] = {}  # key -> the last event of the file as it is
        for write in ("_put", "_update"):
            of_class = getattr(type(pipeline.table), write)
            setattr(pipeline.table, write, functools.partial(self.write, of_class))
        pipeline.table.tables["files"].clear()
        self.s3.objects.clear()
        self.s3.history.clear()

    def write(self, apply: Any, arguments: dict[str, Any]) -> Any:
        """Writes an item of the table; the event of the file, if its stream has one, is told."""
        table = self.pipeline.table
        old = copied(table._item(arguments))
        written, new = apply(table, arguments), table._item(arguments)
        if new and new["record"]["S"] == "newest":
            images = {"NewImage": new, **({"OldImage": old} if old else {})}
            record = {"eventName": "MODIFY" if old else "INSERT", "dynamodb": images}
            for event in told_by(record):
                self.told[new["key"]["S"]] = event
        return written

    def act(self, number: int, step: str, key: str, body: bytes) -> None:
        """Changes the bucket, which has an event."""
        sequencer, version = f"{number:06X}", f"v{number}"
        if step == "put":
            self.s3.put(key, version, body)
            self.waiting.append(created(key, sequencer, version))
            self.scans[version] = self.chance.choice((*tap_stack.HARMLESS, "FAILED"))
            self.waiting.append(scanned(key, version, result=self.scans[version]))
        elif step == "mark":
            self.s3.mark(key, version)
            self.waiting.append(marked(key, sequencer, version))
        elif there := self.s3.history.get(key):
            gone = self.chance.choice(there)
            self.s3.remove(key, gone)
            self.waiting.append(removed(key, sequencer, gone))

    def deliver(self) -> None:
        """Any event, whose function may die at any call, and which may come again."""

        def maybe(*_: Any) -> None:
            if self.chance.random() < 0.1:
                raise CrashError

        fakes, event = (
            self.pipeline.table,
            self.waiting.pop(self.chance.randrange(len(self.waiting))),
        )
        self.s3.before = fakes.before = fakes.after = maybe
        try:
            self.pipeline(event)
            again = self.chance.random() < 0.2
        except CrashError:
            again = True
        except RecordsFailed as error:  # a scan came before its version
            assert "is scanned, and not recorded yet" in str(error)
            again = True
        self.waiting += [event] * again

    def stored(self) -> dict[tuple[str, str, str], tuple[int, int]]:
        """What the bucket has, as Pipeline.stored counts it."""
        found: Counter[tuple[str, str, str, str]] = Counter()
        for (key, _), stored in self.s3.objects.items():
            kind = content_type_of(Start(stored["body"]))
            group = DAY, key.partition("/")[0], kind
            found.update({(*group, "count"): 1, (*group, "bytes"): len(stored["body"])})
        groups = {group[:3] for group in found}
        return {group: (found[*group, "count"], found[*group, "bytes"]) for group in groups}

    def check_newest(self, key: str) -> None:
        """The newest item is the file as the bucket has it."""
        newest, history = plain(self.pipeline.newest(key)), self.s3.history[key]
        if history and (key, history[-1]) in self.s3.objects:
            assert (newest["version_id"], "deleted_at" in newest) == (history[-1], False)
            assert (newest["files_of"], "type_of" in newest) == ("ann/", True)
            assert self.told.get(key) != "deleted"
        else:
            assert newest["deleted_at"]
            assert self.told.get(key) == ("deleted" if "size" in newest else None)
            assert (newest["files_of"], "type_of" in newest) == ("ann/deleted", False)
        assert newest.get("scan_result") == self.scans.get(newest["version_id"])


steps = st.lists(
    st.tuples(
        st.sampled_from(("put", "put", "mark", "remove")),
        st.sampled_from(KEYS[:2]),
        st.sampled_from(BODIES),
    ),
    min_size=1,
    max_size=8,
)


@many
@given(steps=steps, seed=st.integers(0, 2**32))
def test_deletions_are_right_after_any_order_repetition_and_crash(
    pipeline: Pipeline, steps: list[tuple[str, str, bytes]], seed: int
) -> None:
    """As above, while versions, delete markers and scans come and go; S3's own history is the oracle."""
    files = History(pipeline, seed)
    for number, step in enumerate(steps, 1):
        files.act(number, *step)
        while files.waiting and files.chance.random() < 0.4:
            files.deliver()
    while files.waiting:
        files.deliver()
    counted = {group: each for group, each in pipeline.stored().items() if any(each)}
    assert counted == files.stored()
    for key in files.s3.history:
        files.check_newest(key)
    for item in map(plain, pipeline.table.files.values()):
        if item["record"].startswith("version#"):
            live = item["version_id"] in files.s3.history[item["key"]]
            assert live == (not {"deleted_at", "failure"} & item.keys())
            assert item.get("scan_result") == files.scans.get(item["version_id"])


def test_the_template_of_an_event_has_the_size_as_a_number() -> None:
    async def made() -> str | None:
        return await tap_stack.event_template("b", "deleted").future()

    template = asyncio.run(made()) or ""
    assert template.startswith('{"bucket": "b", "change_id": <$.eventID>, ')
    assert '"size": <$.dynamodb.NewImage.size.N>' in template
    assert '"deleted_at": <$.dynamodb.NewImage.deleted_at.S>' in template
