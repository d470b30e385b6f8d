"""The file pipeline's part of the demonstration: real files, wrong types, a burst, duplicates."""

from __future__ import annotations

import io
import json
import struct
import tarfile
import time
import wave
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sized
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import quantiles
from typing import Any, TypeVar

from demo.report import Report
from tap_stack import file_id
from taplocal import access
from taplocal.session import Session

ROOT = Path(__file__).resolve().parents[1]
BURST = 1_000
UPLOADERS = 16
WAIT_SECONDS = 120
PART_BYTES = 5 * 1024 * 1024  # S3's minimum for all parts but the last
OFFICE = "application/vnd.openxmlformats-officedocument"


def generated_files() -> Iterator[tuple[str, bytes, str, str]]:
    """Generated files: a wrong name, the content, a wrong content type, and the right one."""
    header = b"IHDR" + struct.pack(">IIBBBBB", 320, 200, 8, 2, 0, 0, 0)
    picture = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + header
    picture += struct.pack(">I", zlib.crc32(header))
    yield "holiday.txt", picture, "text/plain", "image/png"
    program = b"MZ\x90".ljust(60, b"\0") + struct.pack("<I", 64) + b"PE\0\0"
    yield "invoice.pdf", program, "application/pdf", EXECUTABLE
    yield "photo.jpg", b"GIF89a" + struct.pack("<HH", 64, 48), "image/jpeg", "image/gif"
    yield "table.png", b"day,files\n2026-11-21,7\n", "image/png", "text/csv"
    yield "page.json", b"<!doctype html><title>x</title>", "application/json", "text/html"
    yield "data.xml", b'{"a": [1, 2]}', "application/xml", "application/json"
    yield "logo.bmp", b'<svg xmlns="http://www.w3.org/2000/svg"/>', "image/bmp", "image/svg+xml"
    yield "film.avi", b"\0\0\0\x18ftypisom" + b"\0" * 16, "video/x-msvideo", "video/mp4"
    yield (
        "letter.zip",
        zipped("[Content_Types].xml", "word/document.xml"),
        "application/zip",
        DOCUMENT,
    )
    yield "letter.docx", zipped("word.txt"), DOCUMENT, "application/zip"
    yield "archive.gz", tarred(), "application/gzip", "application/x-tar"
    yield "song.mp3", sound(), "audio/mpeg", "audio/wav"
    yield "nothing.iso", b"", "application/octet-stream", "application/x-empty"


Found = TypeVar("Found", bound=Sized)
EXECUTABLE = "application/vnd.microsoft.portable-executable"
DOCUMENT = f"{OFFICE}.wordprocessingml.document"


def zipped(*names: str) -> bytes:
    """A ZIP archive with these files."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name in names:
            archive.writestr(name, "x")
    return buffer.getvalue()


def tarred() -> bytes:
    """A tar archive."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("a"))
    return buffer.getvalue()


def sound() -> bytes:
    """A tenth of a second of silence."""
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as recording:
        recording.setparams((1, 1, 8_000, 800, "NONE", ""))
        recording.writeframes(b"\x80" * 800)
    return buffer.getvalue()


class Files:
    """The steps on one deployed environment."""

    def __init__(self, session: Session, report: Report, taplocal: Callable[..., Any], run_id: str):
        self.session, self.report, self.check = session, report, report.check
        self.taplocal, self.run_id = taplocal, run_id
        self.token = access.person_token(session, "ann@example.com")
        self.client, self.outputs = session.cloud.client, session.outputs
        self.bucket = self.outputs["files_bucket_name"]
        form = self.form(name="x", content_type="text/plain").json()
        self.prefix = str(form["fields"]["key"]).partition("/")[0]  # the prefix of ann's files

    def run(self) -> None:
        """All steps in order."""
        self.real_files()
        self.wrong_types()
        self.rejected_uploads()
        self.burst()
        self.repeated_events()
        self.deletions()
        self.report_of_all()
        self.poison()

    def real_files(self) -> None:
        """The repository's own files, by presigned form, by copy, by multipart upload."""
        self.report.step("Real files: by presigned form, by copy, by multipart upload")
        for path, content_type in (
            ("README.md", "text/markdown"),
            ("docs/architecture.svg", "image/svg+xml"),
            ("LICENSE", "text/plain"),
            ("openapi.yaml", "application/yaml"),
        ):
            name, content = Path(path).name, (ROOT / path).read_bytes()
            _, stored = access.upload(
                self.session, self.token, name, content, content_type, self.run_id
            )
            record = self.record_of(f"{self.prefix}/{self.run_id}/{name}")
            expected = (204, len(content), content_type)
            actual = (stored.status, record["size"], record["content_type"])
            self.check(f"POST /files, {path}", expected, actual)
        copy, parts = f"{self.run_id}/copy of README.md", f"{self.run_id}/large film.mp4"
        source = f"{self.bucket}/{self.prefix}/{self.run_id}/README.md"
        self.client("s3").copy_object(Bucket=self.bucket, Key=copy, CopySource=source)
        self.check("a copy inside S3", "text/markdown", self.record_of(copy)["content_type"])
        self.multipart(parts, b"\0\0\0\x18ftypisom".ljust(PART_BYTES, b"\0"), b"end")
        record = self.record_of(parts)
        whole = (PART_BYTES + 3, "video/mp4", "-2")
        self.check(
            "a multipart upload of two parts",
            whole,
            (record["size"], record["content_type"], record["etag"][-2:]),
        )

    def wrong_types(self) -> None:
        """A dozen formats with wrong names and wrong content types."""
        self.report.step("A dozen formats, each with a wrong name and a wrong content type")
        made = list(generated_files())
        for name, content, declared, _ in made:
            self.put(f"{self.run_id}/wrong/{name}", content, ContentType=declared)
        for name, _, declared, actual_type in made:
            self.check(
                f"{name}, sent as {declared}"[:45],
                actual_type,
                self.record_of(f"{self.run_id}/wrong/{name}")["content_type"],
            )
        png = self.record_of(f"{self.run_id}/wrong/holiday.txt")
        self.check("width and height of the picture", (320, 200), (png["width"], png["height"]))

    def rejected_uploads(self) -> None:
        """What the API and S3 reject."""
        self.report.step("Uploads that are rejected")
        rejected: tuple[tuple[str, dict[str, Any]], ...] = (
            (
                "a name outside the folder",
                {"name": "../../bob/x", "content_type": "text/plain"},
            ),
            ("a type that is not allowed", {"name": "x", "content_type": "model/gltf+json"}),
            ("a file above the limit", {"name": "x", "content_type": "text/plain", "size": 10**9}),
        )
        for what, upload_request in rejected:
            self.check(what, 422, self.form(**upload_request).status)
        form = self.form(name="x", content_type="text/plain", size=3)
        self.check("four bytes with a form for three", 400, access.send(form, b"four").status)
        forged = form.json()
        forged["fields"]["key"] = "bob/x"
        sent = access.send(access.Response(201, {}, json.dumps(forged)), b"abc")
        self.check("another key with the same form", 403, sent.status)

    def burst(self) -> None:
        """Many concurrent uploads, each recorded exactly once."""
        self.report.step(f"A burst of {BURST:,} uploads by {UPLOADERS} clients")
        owner = f"{self.run_id}-burst"
        sent: dict[str, float] = {}

        def upload(number: int) -> None:
            key = f"{owner}/{number % 20}/{number}.txt"
            self.put(key, f"file {number}".encode())
            sent[key] = time.time()

        started = time.monotonic()
        with ThreadPoolExecutor(UPLOADERS) as pool:
            list(pool.map(upload, range(BURST)))
        uploaded = time.monotonic() - started
        logged = self.until(lambda: self.recorded_at(owner), BURST)
        took = time.monotonic() - started
        self.check("each file is recorded", BURST, len(self.newest_of(owner)))
        size = sum(len(f"file {n}") for n in range(BURST))
        self.check("totals: count and bytes", (BURST, size), self.totals(owner))
        self.check("dead letters", 0, len(self.letters()))
        waits = quantiles([logged[key] - sent[key] for key in sent], n=100)
        self.report.say(
            f"uploaded in {uploaded:.1f} s, all recorded after {took:.1f} s; "
            f"from upload to record p50 {max(waits[49], 0):.2f} s, p99 {waits[98]:.2f} s"
        )

    def repeated_events(self) -> None:
        """Duplicate events and events in the wrong order."""
        self.report.step("S3 delivers an event twice, and an older event after a newer one")
        key = f"{self.run_id}-twice/a.txt"
        versions = [self.put(key, body) for body in (b"one", b"newer")]
        owner = key.partition("/")[0]
        self.until(lambda: range(self.totals(owner)[0]), 2)
        records = [each for each in self.records(key) if each["record"]["S"] != "newest"]
        events = [self.event(key, each) for each in records]
        self.invoke({"Records": [*events, *events[::-1]]})
        self.check("the newest version", versions[-1], self.record_of(key)["version_id"])
        self.check("totals: count and bytes", (2, 8), self.totals(owner))

    def deletions(self) -> None:
        """A delete marker, its removal, and a version that is deleted for good."""
        self.report.step("A file is deleted, comes back, and is deleted for good")
        key = f"{self.prefix}/{self.run_id}/README.md"
        target, path = {"Bucket": self.bucket, "Key": key}, f"/files/{file_id(key)}"
        version = self.record_of(key)["version_id"]
        marker = self.client("s3").delete_object(**target)["VersionId"]
        self.until(lambda: [1] * ("deleted_at" in self.record_of(key)), 1)
        self.check("its folder lists it no more", [], self.listed(f"folder={self.run_id}"))
        self.check("GET /files?deleted=true", ["README.md"], self.listed("deleted=true"))
        self.client("s3").delete_object(**target, VersionId=marker)
        self.until(lambda: [1] * ("deleted_at" not in self.record_of(key)), 1)
        self.check("without the marker", ["README.md"], self.listed(f"folder={self.run_id}"))
        self.client("s3").delete_object(**target, VersionId=version)
        self.until(lambda: [1] * ("deleted_at" in self.record_of(key)), 1)
        versions = access.call(self.session, "GET", path, self.token).json()["versions"]
        gone = ["deleted_at" in each for each in versions]
        self.check("marker and version are gone for good", [True, True], gone)
        self.restored()

    def restored(self) -> None:
        """An older version becomes the newest, by the API."""
        key = f"{self.prefix}/{self.run_id}/restored.txt"
        first = self.put(key, b"first")
        self.put(key, b"second")
        self.until(lambda: [each for each in self.records(key) if "size" in each], 3)
        path, body = f"/files/{file_id(key)}/versions", json.dumps({"version_id": first})
        response = access.call(self.session, "POST", path, self.token, body)
        newest = response.json().get("version_id")
        self.until(lambda: [1] * (self.record_of(key)["version_id"] == newest), 1)
        found = (response.status, self.record_of(key)["size"])
        self.check("POST /files/{id}/versions brings a version back", (201, 5), found)

    def report_of_all(self) -> None:
        """The totals of all owners, for a machine with the scope of its own."""
        self.report.step("A report over all owners")
        token = access.machine_token(self.session, "files/report")
        pages, query = list[Any](), ""
        while not pages or query:
            found = access.call(self.session, "GET", f"/files/report?by=owner{query}", token).json()
            pages += found["report"]
            query = f"&next={found['next']}" if "next" in found else ""
        counted = sum(each["count"] for each in pages if each["owner"] == f"{self.run_id}-burst")
        self.check("GET /files/report?by=owner has the burst's files", BURST, counted)
        status = access.call(self.session, "GET", "/files/report", self.token).status
        self.check("a person's token for it", 403, status)

    def listed(self, query: str) -> list[str]:
        """The names README.md among ann's files of this run."""
        found = access.call(self.session, "GET", f"/files?limit=100&{query}", self.token).json()
        files = [each for each in found["files"] if each["folder"] == self.run_id]
        return [each["name"] for each in files if each["name"] == "README.md"]

    def poison(self) -> None:
        """An event that always fails goes to the dead-letter queue, and is redriven."""
        self.report.step("A poison message: three attempts, the dead-letter queue, redrive")
        key = f"{self.run_id}-poison/a.txt"
        self.put(key, b"x")
        self.record_of(key)
        poison = {"eventName": "ObjectCreated:Put", "eventTime": "no time"}
        good = self.event(key, self.records(key)[-1])
        self.client("lambda").invoke(
            FunctionName=self.outputs["files_function_name"],
            Qualifier="live",
            InvocationType="Event",
            Payload=json.dumps({"Records": [poison, good]}).encode(),
        )
        letters = self.until(self.letters, 1)
        self.check("dead letters", 1, len(letters))
        self.report.say(f"its error: {' '.join(letters)[:110]}")
        totals = self.totals(key.partition("/")[0])
        self.check("the good record of the same event, once", (1, 1), totals)
        self.check("python -m taplocal redrive", 1, len(self.taplocal("redrive")["letters"]))
        again = self.until(self.letters, 1)
        self.check("it fails again, and is in the queue still", 1, len(again))
        self.client("sqs").purge_queue(QueueUrl=self.outputs["files_dead_letters_url"])

    # Tools

    def form(self, **upload_request: Any) -> access.Response:
        """The response of POST /files: a presigned form."""
        return access.call(self.session, "POST", "/files", self.token, json.dumps(upload_request))

    def put(self, key: str, body: bytes, **more: Any) -> str:
        """Uploads with the SDK, as other systems do; returns the version id."""
        put = self.client("s3").put_object(Bucket=self.bucket, Key=key, Body=body, **more)
        return str(put["VersionId"])

    def multipart(self, key: str, *bodies: bytes) -> None:
        """Uploads with a multipart upload."""
        s3, target = self.client("s3"), {"Bucket": self.bucket, "Key": key}
        upload = s3.create_multipart_upload(**target)["UploadId"]
        parts = [
            {
                "PartNumber": number,
                "ETag": s3.upload_part(**target, UploadId=upload, PartNumber=number, Body=body)[
                    "ETag"
                ],
            }
            for number, body in enumerate(bodies, 1)
        ]
        s3.complete_multipart_upload(**target, UploadId=upload, MultipartUpload={"Parts": parts})

    def records(self, key: str) -> list[dict[str, Any]]:
        """All records of a file."""
        found = self.client("dynamodb").query(
            TableName=self.outputs["files_table_name"],
            KeyConditionExpression="id = :id",
            ExpressionAttributeValues={":id": {"S": file_id(key)}},
            ConsistentRead=True,
        )
        return list(found["Items"])

    def record_of(self, key: str) -> dict[str, Any]:
        """The newest record of a file; waits until there is one."""
        (found,) = self.until(
            lambda: [each for each in self.records(key) if each["record"]["S"] == "newest"], 1
        )
        plain = {name: next(iter(value.values())) for name, value in found.items()}
        return {**plain, **{x: int(plain[x]) for x in ("size", "width", "height") if x in plain}}

    def newest_of(self, owner: str) -> list[Any]:
        """All files of an owner."""
        pages = (
            self.client("dynamodb")
            .get_paginator("query")
            .paginate(
                TableName=self.outputs["files_table_name"],
                IndexName="by_owner",
                KeyConditionExpression="files_of = :owner",
                ExpressionAttributeValues={":owner": {"S": f"{owner}/"}},
            )
        )
        return [each for page in pages for each in page["Items"]]

    def totals(self, owner: str) -> tuple[int, int]:
        """Count and bytes of an owner's uploads of today and yesterday."""
        found = [0, 0]
        for each in self.days():
            items = self.client("dynamodb").query(
                TableName=self.outputs["files_table_name"],
                KeyConditionExpression="id = :month AND begins_with(#record, :owner)",
                ExpressionAttributeNames={"#record": "record"},
                ExpressionAttributeValues={
                    ":month": {"S": f"totals#{each[:7]}"},
                    ":owner": {"S": f"{owner}/{each}/"},
                },
                ConsistentRead=True,
            )["Items"]
            for item in items:
                found[0] += int(item["count"]["N"])
                found[1] += int(item["bytes"]["N"])
        return found[0], found[1]

    @staticmethod
    def days() -> list[str]:
        """Today and yesterday in UTC: the demonstration may run over midnight."""
        return [time.strftime("%Y-%m-%d", time.gmtime(time.time() - ago)) for ago in (0, 86_400)]

    def recorded_at(self, owner: str) -> dict[str, float]:
        """Key -> the time in the function's log at which it was recorded."""
        found: dict[str, float] = {}
        pages = (
            self.client("logs")
            .get_paginator("filter_log_events")
            .paginate(logGroupName=f"/aws/lambda/{self.outputs['files_function_name']}")
        )
        for event in (each for page in pages for each in page["events"]):
            if f'"{owner}/' in event["message"] and "FilesRecorded" in event["message"]:
                line = json.loads(event["message"])
                found[line["key"]] = line["_aws"]["Timestamp"] / 1000
        return found

    def event(self, key: str, record: dict[str, Any]) -> dict[str, Any]:
        """The event of S3 that made a record."""
        stored = {
            "key": key,
            "versionId": record["version_id"]["S"],
            "sequencer": record["sequencer"]["S"],
        }
        return {
            "eventName": "ObjectCreated:Put",
            "eventTime": record["uploaded_at"]["S"],
            "s3": {"bucket": {"name": self.bucket}, "object": stored},
        }

    def invoke(self, event: dict[str, Any]) -> None:
        """Invokes the function with an event of S3, and waits for its end."""
        self.client("lambda").invoke(
            FunctionName=self.outputs["files_function_name"],
            Qualifier="live",
            Payload=json.dumps(event).encode(),
        )

    def letters(self) -> list[str]:
        """The messages in the dead-letter queue."""
        return list(self.taplocal("redrive", "--dry-run")["letters"])

    @staticmethod
    def until(look: Callable[[], Found], count: int) -> Found:
        """The result of `look`, once it has `count` elements or the time is over."""
        deadline = time.monotonic() + WAIT_SECONDS
        while len(found := look()) < count and time.monotonic() < deadline:
            time.sleep(0.1)
        return found
