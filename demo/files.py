"""The file pipeline's part of the demonstration: real files, lies, a burst, poison, repetition."""

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
PART_BYTES = 5 * 1024 * 1024  # the least that S3 takes for a part but the last
OFFICE = "application/vnd.openxmlformats-officedocument"


def made_files() -> Iterator[tuple[str, bytes, str, str]]:
    """Files made here: a lying name, the content, a lying content type, and what it really is."""
    header = b"IHDR" + struct.pack(">IIBBBBB", 320, 200, 8, 2, 0, 0, 0)
    picture = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + header
    picture += struct.pack(">I", zlib.crc32(header))
    yield "holiday.txt", picture, "text/plain", "image/png"
    yield "invoice.pdf", b"MZ\x90\0" + b"\0" * 60, "application/pdf", EXECUTABLE
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

    def __init__(self, session: Session, report: Report, taplocal: Callable[..., Any], mark: str):
        self.session, self.report, self.check = session, report, report.check
        self.taplocal, self.mark = taplocal, mark
        self.token = access.person_token(session, "ann@example.com")
        self.client, self.outputs = session.cloud.client, session.outputs
        self.bucket = self.outputs["files_bucket_name"]
        form = self.form(name="x", content_type="text/plain").json()
        self.me = str(form["fields"]["key"]).partition("/")[0]  # the prefix of ann's files

    def run(self) -> None:
        """All steps in order."""
        self.real_files()
        self.lying_files()
        self.refused_uploads()
        self.burst()
        self.repeated_events()
        self.poison()

    def real_files(self) -> None:
        """The repository's own files, by the form of the API, by a copy, in parts."""
        self.report.step("Real files: this repository's, by the API's form, by copy, in parts")
        for path, content_type in (
            ("README.md", "text/plain"),
            ("docs/architecture.svg", "image/svg+xml"),
            ("LICENSE", "text/plain"),
            ("openapi.yaml", "text/plain"),
        ):
            name, content = Path(path).name, (ROOT / path).read_bytes()
            _, stored = access.upload(
                self.session, self.token, name, content, content_type, self.mark
            )
            seen = self.seen(f"{self.me}/{self.mark}/{name}")
            expected = (204, len(content), content_type)
            came = (stored.status, seen["size"], seen["content_type"])
            self.check(f"POST /files, {path}", expected, came)
        copy, parts = f"{self.mark}/copy of README.md", f"{self.mark}/large film.mp4"
        source = f"{self.bucket}/{self.me}/{self.mark}/README.md"
        self.client("s3").copy_object(Bucket=self.bucket, Key=copy, CopySource=source)
        self.check("a copy inside S3", "text/plain", self.seen(copy)["content_type"])
        self.multipart(parts, b"\0\0\0\x18ftypisom".ljust(PART_BYTES, b"\0"), b"end")
        found = self.seen(parts)
        whole = (PART_BYTES + 3, "video/mp4", "-2")
        self.check(
            "in two parts", whole, (found["size"], found["content_type"], found["etag"][-2:])
        )

    def lying_files(self) -> None:
        """A dozen formats under wrong names and wrong content types."""
        self.report.step("A dozen formats, each with a lying name and a lying content type")
        made = list(made_files())
        for name, content, declared, _ in made:
            self.put(f"{self.mark}/lies/{name}", content, ContentType=declared)
        for name, _, declared, really in made:
            self.check(
                f"{name}, sent as {declared}"[:45],
                really,
                self.seen(f"{self.mark}/lies/{name}")["content_type"],
            )
        png = self.seen(f"{self.mark}/lies/holiday.txt")
        self.check("width and height of the picture", (320, 200), (png["width"], png["height"]))

    def refused_uploads(self) -> None:
        """What the form and S3 refuse."""
        self.report.step("Uploads that are refused")
        refused: tuple[tuple[str, dict[str, Any]], ...] = (
            (
                "a name that leaves one's folder",
                {"name": "../../bob/x", "content_type": "text/plain"},
            ),
            ("a type that is not allowed", {"name": "x", "content_type": "model/gltf+json"}),
            ("a file above the limit", {"name": "x", "content_type": "text/plain", "size": 10**9}),
        )
        for done, wanted in refused:
            self.check(done, 422, self.form(**wanted).status)
        form = self.form(name="x", content_type="text/plain", size=3)
        self.check("four bytes by a form for three", 400, access.send(form, b"four").status)
        forged = form.json()
        forged["fields"]["key"] = "bob/x"
        sent = access.send(access.Response(201, {}, json.dumps(forged)), b"abc")
        self.check("another key by the same form", 403, sent.status)

    def burst(self) -> None:
        """Many uploads at once, each recorded exactly once."""
        self.report.step(f"A burst of {BURST:,} uploads by {UPLOADERS} clients")
        owner = f"{self.mark}-burst"
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
        """Events twice and in the wrong order."""
        self.report.step("S3 delivers an event twice, and an older one after a newer one")
        key = f"{self.mark}-twice/a.txt"
        versions = [self.put(key, body) for body in (b"one", b"newer")]
        owner = key.partition("/")[0]
        self.until(lambda: range(self.totals(owner)[0]), 2)
        records = [each for each in self.records(key) if each["record"]["S"] != "newest"]
        events = [self.event(key, each) for each in records]
        self.invoke({"Records": [*events, *events[::-1]]})
        self.check("the newest version", versions[-1], self.seen(key)["version_id"])
        self.check("totals: count and bytes", (2, 8), self.totals(owner))

    def poison(self) -> None:
        """An event that cannot be kept becomes a dead letter, and goes back."""
        self.report.step("A poison event: three attempts, the queue, back to the function")
        key = f"{self.mark}-poison/a.txt"
        self.put(key, b"x")
        self.seen(key)
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
        self.report.say(f"it says: {' '.join(letters)[:110]}")
        totals = self.totals(key.partition("/")[0])
        self.check("the good record of the same event, once", (1, 1), totals)
        self.check("python -m taplocal redrive", 1, len(self.taplocal("redrive")["letters"]))
        again = self.until(self.letters, 1)
        self.check("it is poison still, and a letter again", 1, len(again))
        self.client("sqs").purge_queue(QueueUrl=self.outputs["files_dead_letters_url"])

    # Tools

    def form(self, **wanted: Any) -> access.Response:
        """What the API answers to the wish to upload."""
        return access.call(self.session, "POST", "/files", self.token, json.dumps(wanted))

    def put(self, key: str, body: bytes, **more: Any) -> str:
        """Uploads by the SDK, as other systems do; returns the version."""
        put = self.client("s3").put_object(Bucket=self.bucket, Key=key, Body=body, **more)
        return str(put["VersionId"])

    def multipart(self, key: str, *bodies: bytes) -> None:
        """Uploads in parts."""
        s3, place = self.client("s3"), {"Bucket": self.bucket, "Key": key}
        upload = s3.create_multipart_upload(**place)["UploadId"]
        parts = [
            {
                "PartNumber": number,
                "ETag": s3.upload_part(**place, UploadId=upload, PartNumber=number, Body=body)[
                    "ETag"
                ],
            }
            for number, body in enumerate(bodies, 1)
        ]
        s3.complete_multipart_upload(**place, UploadId=upload, MultipartUpload={"Parts": parts})

    def records(self, key: str) -> list[dict[str, Any]]:
        """All records of a file."""
        found = self.client("dynamodb").query(
            TableName=self.outputs["files_table_name"],
            KeyConditionExpression="id = :id",
            ExpressionAttributeValues={":id": {"S": file_id(key)}},
            ConsistentRead=True,
        )
        return list(found["Items"])

    def seen(self, key: str) -> dict[str, Any]:
        """What is known of a file, once it is recorded."""
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
                KeyConditionExpression="id = :day AND begins_with(#record, :owner)",
                ExpressionAttributeNames={"#record": "record"},
                ExpressionAttributeValues={
                    ":day": {"S": f"totals#{each}"},
                    ":owner": {"S": f"{owner}/"},
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
        """Key -> when the function's log says that it was recorded."""
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
        """Calls the function as S3 does, and waits for its end."""
        self.client("lambda").invoke(
            FunctionName=self.outputs["files_function_name"],
            Qualifier="live",
            Payload=json.dumps(event).encode(),
        )

    def letters(self) -> list[str]:
        """The dead letters."""
        return list(self.taplocal("redrive", "--dry-run")["letters"])

    @staticmethod
    def until(look: Callable[[], Found], count: int) -> Found:
        """What `look` finds once it has found so many, or in the end."""
        deadline = time.monotonic() + WAIT_SECONDS
        while len(found := look()) < count and time.monotonic() < deadline:
            time.sleep(0.1)
        return found
