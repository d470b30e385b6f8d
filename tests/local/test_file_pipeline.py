"""The file pipeline on the local cloud: uploads of every kind, bursts, duplicates, dead letters."""

from __future__ import annotations

import base64
import hashlib
import json
import random
import time
import uuid
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from ops.redrive import Letter, redrive
from tap_stack import file_id
from taplocal import access
from taplocal.session import Session
from tests.contract import check_response
from tests.local.conftest import Call, taplocal
from tests.unit.test_content_types import FILES, png

pytestmark = pytest.mark.usefixtures("unthrottled")

WAIT_SECONDS = 60  # a guard against hanging


class Pipeline:
    """What the tests do to the pipeline and see of it, below a prefix that no other test uses."""

    def __init__(self, deployed: Session):
        self.outputs, self.client = deployed.outputs, deployed.cloud.client
        self.owner = f"t-{uuid.uuid4().hex[:12]}"

    def put(self, name: str, body: bytes = b"x", **more: Any) -> str:
        """Puts an object by the SDK, as other systems do; returns its version."""
        bucket = self.outputs["files_bucket_name"]
        put = self.client("s3").put_object(
            Bucket=bucket, Key=f"{self.owner}/{name}", Body=body, **more
        )
        return str(put["VersionId"])

    def delete(self, name: str, **version: str) -> str:
        """Deletes a version for good, or leaves a delete marker, whose version it returns."""
        deleted = self.client("s3").delete_object(
            Bucket=self.outputs["files_bucket_name"], Key=f"{self.owner}/{name}", **version
        )
        return str(deleted["VersionId"])

    def restore(self, name: str, version: str) -> None:
        """Makes an older version the newest, by a copy."""
        target = {"Bucket": self.outputs["files_bucket_name"], "Key": f"{self.owner}/{name}"}
        self.client("s3").copy_object(**target, CopySource={**target, "VersionId": version})

    def history(self) -> dict[str, list[dict[str, Any]]]:
        """All versions and delete markers that S3 has of a file, by its name, the newest first."""
        found = self.client("s3").list_object_versions(
            Bucket=self.outputs["files_bucket_name"], Prefix=f"{self.owner}/"
        )
        kept: dict[str, list[dict[str, Any]]] = {}
        for each in [*found.get("Versions", []), *found.get("DeleteMarkers", [])]:
            kept.setdefault(each["Key"].partition("/")[2], []).append(each)
        return {x: sorted(y, key=lambda each: not each["IsLatest"]) for x, y in kept.items()}

    def records(self, name: str) -> dict[str, Any]:
        """All records of a file by their `record`."""
        found = self.client("dynamodb").query(
            TableName=self.outputs["files_table_name"],
            KeyConditionExpression="id = :id",
            ExpressionAttributeValues={":id": {"S": file_id(f"{self.owner}/{name}")}},
            ConsistentRead=True,
        )["Items"]
        return {each["record"]["S"].partition("#")[0]: each for each in found}

    def newest(self, name: str) -> dict[str, Any]:
        """The file as it is now, once it is recorded."""
        return eventually(lambda: self.records(name).get("newest"))  # type: ignore[no-any-return]

    def totals(self, prefix: str = "") -> tuple[int, int]:
        """Count and bytes of this owner's uploads, over all days, types and shards."""
        pages = (
            self.client("dynamodb")
            .get_paginator("scan")
            .paginate(
                TableName=self.outputs["files_table_name"],
                FilterExpression="begins_with(id, :totals) AND begins_with(#record, :owner)",
                ExpressionAttributeNames={"#record": "record"},
                ExpressionAttributeValues={
                    ":totals": {"S": "totals#"},
                    ":owner": {"S": f"{self.owner}/"},
                },
                ConsistentRead=True,
            )
        )
        found = [each for page in pages for each in page["Items"]]
        return tuple(  # type: ignore[return-value]
            sum(int(each.get(f"{prefix}{x}", {"N": "0"})["N"]) for each in found)
            for x in ("count", "bytes")
        )

    def stored(self) -> tuple[int, int]:
        """As `totals`, without what is deleted."""
        (count, size), (gone, gone_size) = self.totals(), self.totals("deleted_")
        return count - gone, size - gone_size

    def invoke(self, event: Any, kind: str = "RequestResponse") -> dict[str, Any]:
        """Calls the function as S3 does."""
        response = self.client("lambda").invoke(
            FunctionName=self.outputs["files_function_name"],
            Qualifier="live",
            InvocationType=kind,
            Payload=json.dumps(event).encode(),
        )
        return dict(response)

    def event(self, name: str, version: str, sequencer: str) -> dict[str, Any]:
        """An event of S3 about an object."""
        stored = {"key": f"{self.owner}/{name}", "versionId": version, "sequencer": sequencer}
        bucket = {"name": self.outputs["files_bucket_name"]}
        return {
            "eventName": "ObjectCreated:Put",
            "eventTime": "2026-11-21T10:00:00.000Z",
            "s3": {"bucket": bucket, "object": stored},
        }

    def redrive(self, dry_run: bool = False) -> list[Letter]:
        """Puts the dead letters back."""
        queue_and_function = (
            self.outputs["files_dead_letters_url"],
            self.outputs["files_function_name"],
        )
        return list(
            redrive(self.client("sqs"), self.client("lambda"), *queue_and_function, dry_run)
        )

    def firing(self) -> set[str]:
        """The keys of the alarms that fire now."""
        found = self.client("cloudwatch").describe_alarms(StateValue="ALARM")["MetricAlarms"]
        names = (each["AlarmName"].removeprefix("tap-stack-") for each in found)
        return {each.removesuffix("-dev") for each in names}

    def letters(self) -> int:
        """How many dead letters there are."""
        response = self.client("sqs").get_queue_attributes(
            QueueUrl=self.outputs["files_dead_letters_url"],
            AttributeNames=["ApproximateNumberOfMessages"],
        )
        return int(response["Attributes"]["ApproximateNumberOfMessages"])


@pytest.fixture
def pipeline(deployed: Session) -> Pipeline:
    """The deployed pipeline, with an empty queue of dead letters."""
    created = Pipeline(deployed)
    created.client("sqs").purge_queue(QueueUrl=created.outputs["files_dead_letters_url"])
    return created


def eventually(look: Callable[[], Any]) -> Any:
    """What `look` sees once it sees something."""
    deadline = time.monotonic() + WAIT_SECONDS
    while not (found := look()):
        assert time.monotonic() < deadline, "it never came"
        time.sleep(0.05)
    return found


@pytest.mark.parametrize(
    "name",
    ["a b+c%20.png", "é/ż/☕.png", "../../x", "line\nbreak", "folder/", "x" * 900, "a//b", "=&?#"],
)
def test_any_key_is_recorded_as_it_is(pipeline: Pipeline, name: str) -> None:
    body = b"" if name.endswith("/") else png(4, 3)
    version = pipeline.put(name, body, ContentType="text/html", Metadata={"from": "test"})
    file = pipeline.newest(name)
    assert file["key"]["S"] == f"{pipeline.owner}/{name}"
    assert file["version_id"]["S"] == version
    assert file["size"]["N"] == str(len(body))
    assert file["content_type"]["S"] == ("image/png" if body else "application/x-empty")
    assert file["declared_type"]["S"] == "text/html"
    assert file["metadata"]["M"] == {"from": {"S": "test"}}


def test_files_of_every_kind_are_what_their_bytes_say(pipeline: Pipeline) -> None:
    names = [f"{number}.lie" for number, _ in enumerate(FILES)]
    for name, (body, _, _) in zip(names, FILES, strict=True):
        pipeline.put(name, body, ContentType="application/pdf")
    for name, (_, content_type, _) in zip(names, FILES, strict=True):
        assert pipeline.newest(name)["content_type"]["S"] == content_type, name
    assert pipeline.totals() == (len(FILES), sum(len(each[0]) for each in FILES))


def test_a_multipart_upload_is_recorded_with_its_etag(pipeline: Pipeline) -> None:
    s3, bucket = pipeline.client("s3"), pipeline.outputs["files_bucket_name"]
    target = {"Bucket": bucket, "Key": f"{pipeline.owner}/large"}
    upload = s3.create_multipart_upload(**target, ContentType="video/mp4")["UploadId"]
    parts = []
    for number, body in enumerate((png(7, 8).ljust(5_242_880, b"\0"), b"end"), 1):
        part = s3.upload_part(**target, UploadId=upload, PartNumber=number, Body=body)
        parts.append({"ETag": part["ETag"], "PartNumber": number})
    s3.complete_multipart_upload(**target, UploadId=upload, MultipartUpload={"Parts": parts})
    file = pipeline.newest("large")
    assert file["etag"]["S"].endswith("-2")
    assert (file["size"]["N"], file["width"]["N"]) == ("5242883", "7")


def test_a_copy_is_recorded_too(pipeline: Pipeline) -> None:
    bucket = pipeline.outputs["files_bucket_name"]
    pipeline.put("a", b"%PDF-")
    pipeline.client("s3").copy_object(
        Bucket=bucket, Key=f"{pipeline.owner}/b", CopySource=f"{bucket}/{pipeline.owner}/a"
    )
    assert pipeline.newest("b")["content_type"]["S"] == "application/pdf"


def test_an_upload_by_the_form_is_listed_for_its_owner_only(
    deployed: Session, ann: Call, bob: Call, fresh: str
) -> None:
    token = access.person_token(deployed, "ann@example.com")
    form, stored = access.upload(deployed, token, "ü b.png", png(9, 9), "image/png", fresh)
    assert (form.status, stored.status) == (201, 204)
    check_response("POST /files", form.status, form.headers, form.body)
    identity = form.json()["id"]
    eventually(lambda: ann("GET", f"/files/{identity}").status == 200)
    file = ann("GET", f"/files/{identity}").json()
    assert (file["name"], file["folder"], file["width"]) == ("ü b.png", fresh, 9)
    for query in (
        f"folder={fresh}",
        "content_type=image/png",
        f"below={fresh}",
        f"from={file['uploaded_at']}&to={file['uploaded_at']}",
        "",
    ):
        listed = ann("GET", f"/files?{query}").json()["files"]
        assert identity in [each["id"] for each in listed], query
        assert identity not in [
            each["id"] for each in bob("GET", f"/files?{query}").json()["files"]
        ]
    assert bob("GET", f"/files/{identity}").status == 404
    totals = ann("GET", "/files/totals").json()["totals"]
    assert any(each["content_type"] == "image/png" for each in totals)
    assert ann("GET", "/files/report").status == 403


def test_the_report_is_the_sum_of_all_owners_totals(pipeline: Pipeline, deployed: Session) -> None:
    for name, body in (("a", b"one"), ("b/c", b"%PDF-1.7"), ("a", b"three")):
        pipeline.put(name, body)
    eventually(lambda: pipeline.totals()[0] == 3)
    pipeline.delete("b/c", VersionId=pipeline.history()["b/c"][0]["VersionId"])
    eventually(lambda: pipeline.stored() == (2, 8))
    token = access.machine_token(deployed, "files/report")
    sums = {}
    for by in ("owner", "type", "day", "month"):
        found = access.call(deployed, "GET", f"/files/report?by={by}", token)
        check_response("GET /files/report", found.status, found.headers, found.body)
        rows = found.json()["report"]
        sums[by] = [sum(row[x] for row in rows) for x in ("count", "bytes", "stored_bytes")]
        if by == "owner":
            (own,) = (row for row in rows if row["owner"] == pipeline.owner)
    assert own == {
        "owner": pipeline.owner,
        "count": 3,
        "bytes": 16,
        "stored_count": 2,
        "stored_bytes": 8,
    }
    assert sums["owner"] == sums["type"] == sums["day"] == sums["month"]


def test_s3_rejects_what_the_form_does_not_allow(deployed: Session, ann: Call) -> None:
    wanted = {"name": "a.txt", "content_type": "text/plain", "size": 3}
    form = ann("POST", "/files", json.dumps(wanted))
    assert form.status == 201
    assert access.send(form, b"four").status == 400
    for field, value in (("key", "bob/a.txt"), ("Content-Type", "text/html")):
        response = form.json()
        response["fields"][field] = value
        forged = access.Response(201, {}, json.dumps(response))
        assert access.send(forged, b"abc").status == 403, field
    assert access.send(form, b"abc").status == 204


@pytest.mark.parametrize("name", ["sha256", "crc64nvme"])
def test_s3_takes_the_content_whose_checksum_the_form_has(
    deployed: Session, ann: Call, name: str
) -> None:
    right = {
        "sha256": base64.b64encode(hashlib.sha256(b"123456789").digest()).decode(),
        "crc64nvme": base64.b64encode(bytes.fromhex("AE8B14860A799888")).decode(),
    }[name]
    wanted = {"name": f"{name}.txt", "content_type": "text/plain", name: right}
    form = ann("POST", "/files", json.dumps(wanted))
    assert form.status == 201, form.body
    wrong = access.send(form, b"123456780")
    assert (wrong.status, "BadDigest" in wrong.body) == (400, True)
    other = form.json()
    other["fields"][f"x-amz-checksum-{name}"] = right[::-1]
    assert access.send(access.Response(201, {}, json.dumps(other)), b"123456789").status == 403
    del other["fields"][f"x-amz-checksum-{name}"]
    assert access.send(access.Response(201, {}, json.dumps(other)), b"123456789").status == 403
    assert access.send(form, b"123456789").status == 204
    path = f"/files/{form.json()['id']}"
    eventually(lambda: ann("GET", path).status == 200)
    assert ann("GET", path).json()["checksums"] == {name.upper(): right}


def test_repeated_and_reordered_events_change_nothing(pipeline: Pipeline) -> None:
    first, second = pipeline.put("a", b"one"), pipeline.put("a", b"three")
    eventually(lambda: pipeline.totals() == (2, 8))
    before = pipeline.records("a")
    newer = pipeline.records("a")["newest"]["sequencer"]["S"]
    for _ in range(2):
        older = pipeline.event("a", first, f"{1:018X}")
        late = {"Records": [older, pipeline.event("a", second, newer)]}
        assert "FunctionError" not in pipeline.invoke(late)
    assert pipeline.records("a")["newest"] == before["newest"]
    assert pipeline.totals() == (3, 11)  # the first sequencer was never seen: a version, once


def test_a_deleted_version_leaves_a_failed_record(pipeline: Pipeline) -> None:
    assert "FunctionError" not in pipeline.invoke({"Records": [pipeline.event("gone", "no", "01")]})
    record = pipeline.records("gone")
    assert record.keys() == {"version", "newest"}
    assert "gone" in record["version"]["failure"]["S"]
    assert record["newest"]["files_of"]["S"] == f"{pipeline.owner}/deleted"


def test_a_deleted_file_leaves_the_lists_and_comes_back(
    pipeline: Pipeline, deployed: Session, ann: Call
) -> None:
    token = access.person_token(deployed, "ann@example.com")
    form, _ = access.upload(deployed, token, "deleted.txt", b"x", "text/plain")
    path = f"/files/{form.json()['id']}"
    eventually(lambda: ann("GET", path).status == 200)
    pipeline.owner, _, name = form.json()["fields"]["key"].partition("/")

    def ids(query: str = "") -> list[str]:
        return [each["id"] for each in ann("GET", f"/files?limit=100{query}").json()["files"]]

    marker = pipeline.delete(name)
    eventually(lambda: "deleted_at" in ann("GET", path).json())
    assert form.json()["id"] not in ids()
    assert form.json()["id"] in ids("&deleted=true")
    newest, *_ = ann("GET", path).json()["versions"]
    assert newest["delete_marker"] is True
    pipeline.delete(name, VersionId=marker)
    eventually(lambda: "deleted_at" not in ann("GET", path).json())
    assert form.json()["id"] in ids()
    assert form.json()["id"] not in ids("&deleted=true")


def test_a_content_is_downloaded_by_version_in_parts_and_with_its_own_address_alone(
    deployed: Session, ann: Call
) -> None:
    token = access.person_token(deployed, "ann@example.com")
    name = f"ä {uuid.uuid4().hex[:8]}.txt"
    for number, body in enumerate((b"first", b"second"), 1):
        form, _ = access.upload(deployed, token, name, body, "text/plain")
        path = f"/files/{form.json()['id']}"
        eventually(lambda: len(ann("GET", path).json().get("versions", [])) == number)  # noqa: B023

    def fetched(query: str = "", **headers: str) -> access.Response:
        return access.request(
            "GET", ann("GET", f"{path}/content{query}").headers["location"], headers=headers
        )

    assert fetched().body == "second"
    assert (
        fetched().headers["content-disposition"].startswith("attachment; filename*=UTF-8''%C3%A4")
    )
    assert fetched(range="bytes=9-").status == 416
    assert (fetched(range="bytes=1-2").status, fetched(range="bytes=1-2").body) == (206, "ec")
    older = ann("GET", path).json()["versions"][-1]["version_id"]
    assert fetched(f"?version_id={older}").body == "first"
    page = ann("GET", f"{path}/content", accept="application/json", origin="http://localhost:3000")
    assert page.headers["access-control-allow-origin"] == "http://localhost:3000"
    assert (page.status, access.request("GET", page.json()["url"]).body) == (200, "second")
    head = ann("HEAD", f"{path}/content", accept="application/json")
    assert (head.status, head.body) == (200, "")
    address = ann("GET", f"{path}/content").headers["location"]
    for forged in (
        address.replace("Expires=60", "Expires=6000"),
        address.replace("attachment", "inline"),
    ):
        assert forged != address
        assert access.request("GET", forged).status == 403
    assert ann("DELETE", path).status == 204
    eventually(lambda: "deleted_at" in ann("GET", path).json())
    assert (ann("GET", f"{path}/content").status, ann("DELETE", path).status) == (404, 404)
    assert fetched(f"?version_id={older}").body == "first"
    restored = ann("POST", f"{path}/versions", json.dumps({"version_id": older}))
    check_response("POST /files/{id}/versions", restored.status, restored.headers, restored.body)
    eventually(lambda: ann("GET", path).json()["version_id"] == restored.json()["version_id"])
    assert fetched().body == "first"
    assert ann("GET", path).json()["metadata"].keys() == {"request-id"}


def test_a_delete_marker_upon_another_is_recorded_too(pipeline: Pipeline) -> None:
    def newest() -> Any:
        return pipeline.records("a").get("version", {})

    pipeline.put("a")
    pipeline.delete("a")
    marker = pipeline.delete("a")
    eventually(lambda: newest().get("version_id") == {"S": marker})
    pipeline.delete("a", VersionId=marker)
    eventually(lambda: "deleted_at" in newest())
    assert pipeline.letters() == 0


def test_what_is_stored_is_what_the_bucket_has(pipeline: Pipeline) -> None:
    """Uploads, overwrites, restores, deletions of both kinds, markers taken away: at full speed."""
    chance = random.Random(pipeline.owner)  # noqa: S311 - a test, no secret
    for number in range(40):
        name = chance.choice("abc")
        versions = pipeline.history().get(name, [])
        contents = [each["VersionId"] for each in versions if "Size" in each]
        if number % 5 < 2 or not versions:
            pipeline.put(name, b"x" * (number + 1))
        elif number % 5 == 2:
            pipeline.delete(name)
        elif number % 5 == 3 and contents:
            pipeline.restore(name, chance.choice(contents))
        else:
            pipeline.delete(name, VersionId=chance.choice(versions)["VersionId"])
    history = pipeline.history()
    sizes = [each["Size"] for versions in history.values() for each in versions if "Size" in each]
    eventually(lambda: pipeline.stored() == (len(sizes), sum(sizes)))
    for name, (latest, *_) in history.items():

        def right(name: str = name, latest: Mapping[str, Any] = latest) -> bool:
            newest, deleted = pipeline.newest(name), "Size" not in latest
            same = deleted or newest["version_id"]["S"] == latest["VersionId"]
            return same and ("deleted_at" in newest) == deleted

        eventually(right)
    assert pipeline.letters() == 0


def test_a_burst_is_recorded_exactly_once(pipeline: Pipeline) -> None:
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(lambda n: pipeline.put(f"{n % 50}/{n}.txt", b"x" * n), range(200)))
    eventually(lambda: pipeline.totals()[0] >= 200)
    time.sleep(0.5)
    assert pipeline.totals() == (200, sum(range(200)))
    assert pipeline.letters() == 0


def test_a_poison_event_ends_in_the_queue_and_can_be_put_back(pipeline: Pipeline) -> None:
    event = {"Records": [pipeline.event("late", "", "0B"), {"eventName": "ObjectCreated:Put"}]}
    pipeline.put("late", b"x")
    pipeline.newest("late")
    pipeline.invoke(event, "Event")
    eventually(lambda: pipeline.letters() == 1)
    fires = {"files-dead-letters", "files-async-events-dropped"}
    assert fires <= pipeline.firing()
    (found,) = pipeline.redrive(dry_run=True)
    assert found.event == event
    assert pipeline.letters() == 1
    (letter,) = pipeline.redrive()
    assert "1 of 2 records" in letter.error
    eventually(lambda: pipeline.letters() == 1)  # it is poison still, and comes back
    assert pipeline.totals()[0] == 2  # the good record of the event counted, once


def test_a_letter_that_is_none_stays(pipeline: Pipeline) -> None:
    url = pipeline.outputs["files_dead_letters_url"]
    pipeline.client("sqs").send_message(QueueUrl=url, MessageBody="hello")
    (letter,) = pipeline.redrive()
    assert letter.event is None
    assert pipeline.letters() == 1


def test_the_commands_upload_and_redrive(data: Any, deployed: Session, tmp_path: Any) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("hello")
    own = ("--data", str(data), "--json")
    uploaded = taplocal("upload", str(path), "--user", "ann@example.com", *own)
    assert uploaded.returncode == 0, uploaded.stderr
    identity = json.loads(uploaded.stdout)["id"]

    def is_listed() -> Any:
        called = taplocal("call", "GET", f"/files/{identity}", "--user", "ann@example.com", *own)
        return json.loads(called.stdout)["status"] == 200

    eventually(is_listed)
    rejected = taplocal("upload", str(path), "--content-type", "model/gltf", *own)
    assert rejected.returncode == 1
    assert "content_type is one of" in rejected.stderr
    assert "letters" in json.loads(taplocal("redrive", "--dry-run", *own).stdout)
