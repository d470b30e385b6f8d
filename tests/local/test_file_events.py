"""Events of files on the local cloud: the example's consumer, once in effect, also after a kill."""

from __future__ import annotations

import functools
import json
import os
import signal
import uuid
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from tap_stack import file_id
from taplocal import keeper, session
from taplocal.session import Session
from tests.environments import ROOT
from tests.local.small import eventually as within

EXAMPLE = ROOT / "examples" / "file_events"
SCHEMA = json.loads((ROOT / "docs" / "file-event.schema.json").read_text())
eventually = functools.partial(within, seconds=60)  # a guard against hanging


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder with an emulator of its own, which a test kills."""
    return tmp_path_factory.mktemp("events")


def up(folder: Path) -> Session:
    """The example, deployed or found again."""
    return session.up(EXAMPLE, "dev", folder=folder, say=print, report=lambda step: None)[0]


@pytest.fixture(scope="module")
def consumer(folder: Path) -> Iterator[Session]:
    """The example as it is deployed."""
    try:
        yield up(folder)
    finally:
        session.down(EXAMPLE, None, folder=folder, report=lambda step: None)


def put(consumer: Session, key: str, body: bytes) -> str:
    """Puts an object; returns its version."""
    s3, bucket = consumer.cloud.client("s3"), consumer.outputs["files_bucket_name"]
    return str(s3.put_object(Bucket=bucket, Key=key, Body=body)["VersionId"])


def item(consumer: Session, key: str, version: str) -> dict[str, Any]:
    """What the consumer has of a version, without its key."""
    found = consumer.cloud.client("dynamodb").get_item(
        TableName=consumer.outputs["words_table_name"],
        Key={"id": {"S": file_id(key)}, "version_id": {"S": version}},
        ConsistentRead=True,
    )
    return {name: x for name, x in found.get("Item", {}).items() if name in ("words", "deleted_at")}


def words_of(consumer: Session) -> dict[tuple[str, str], dict[str, Any]]:
    """What the consumer has of all versions, by file and version."""
    pages = consumer.cloud.client("dynamodb").get_paginator("scan")
    found = pages.paginate(TableName=consumer.outputs["words_table_name"], ConsistentRead=True)
    return {
        (each["id"]["S"], each["version_id"]["S"]): each for page in found for each in page["Items"]
    }


def recorded(consumer: Session) -> dict[tuple[str, str], dict[str, Any]]:
    """The versions with a size in the files table, by file and version."""
    pages = consumer.cloud.client("dynamodb").get_paginator("scan")
    found = pages.paginate(TableName=consumer.outputs["files_table_name"], ConsistentRead=True)
    versions = [
        each
        for page in found
        for each in page["Items"]
        if each["record"]["S"].startswith("version#") and "size" in each
    ]
    return {(each["id"]["S"], each["version_id"]["S"]): each for each in versions}


class Listener:
    """A queue that a rule sends all events of files to."""

    def __init__(self, consumer: Session, stack: ExitStack):
        self.sqs, events = (consumer.cloud.client(each) for each in ("sqs", "events"))
        name = f"t-{uuid.uuid4().hex[:12]}"
        self.url = self.sqs.create_queue(QueueName=name)["QueueUrl"]
        stack.callback(self.sqs.delete_queue, QueueUrl=self.url)
        pattern = json.dumps({"detail-type": [{"prefix": "File"}]})
        events.put_rule(Name=name, EventPattern=pattern)
        stack.callback(events.delete_rule, Name=name)
        queue = consumer.cloud.arn("sqs", name)
        events.put_targets(Rule=name, Targets=[{"Id": "q", "Arn": queue}])
        self.seen: list[tuple[str, str, str]] = []

    def take(self, key: str) -> list[tuple[str, str, str]]:
        """Each event of a file until now, sorted: its type, record and version."""
        found = self.sqs.receive_message(QueueUrl=self.url, MaxNumberOfMessages=10)
        for each in found.get("Messages", []):
            event = json.loads(each["Body"])
            jsonschema.validate(event, SCHEMA)
            detail = event["detail"]
            record = detail["record"].partition("#")[0]
            if detail["key"] == key:
                self.seen.append((event["detail-type"], record, detail["version_id"]))
            self.sqs.delete_message(QueueUrl=self.url, ReceiptHandle=each["ReceiptHandle"])
        return sorted(self.seen)


def test_each_text_has_its_words_and_each_deleted_version_none(consumer: Session) -> None:
    key = f'a/{uuid.uuid4().hex} "ä\\.txt'
    first = put(consumer, key, b"one two three\n" * 10)
    second = put(consumer, key, b"one\n" * 100)
    png = put(consumer, f"{key}.png", b"\x89PNG\r\n\x1a\n" + bytes(100))
    assert eventually(lambda: item(consumer, key, first)) == {"words": {"N": "30"}}
    assert eventually(lambda: item(consumer, key, second)) == {"words": {"N": "100"}}
    s3, bucket = consumer.cloud.client("s3"), consumer.outputs["files_bucket_name"]
    s3.delete_object(Bucket=bucket, Key=key, VersionId=first)
    assert eventually(lambda: "deleted_at" in item(consumer, key, first))
    assert item(consumer, key, second) == {"words": {"N": "100"}}
    assert item(consumer, f"{key}.png", png) == {}


def test_a_file_that_is_deleted_and_restored_has_its_events(consumer: Session) -> None:
    key, s3 = f"a/{uuid.uuid4().hex}.bin", consumer.cloud.client("s3")
    place = {"Bucket": consumer.outputs["files_bucket_name"], "Key": key}
    with ExitStack() as stack:
        listener, expected = Listener(consumer, stack), list[tuple[str, str, str]]()

        def follow(*events: tuple[str, str]) -> None:
            expected.extend((kind, record, version) for kind, record in events)
            eventually(lambda: listener.take(key) == sorted(expected))

        version = put(consumer, key, b"\0\1\2")
        follow(("FileRecorded", "version"))
        marker = s3.delete_object(**place)["VersionId"]
        follow(("FileDeleted", "newest"))
        s3.delete_object(**place, VersionId=marker)
        follow(("FileRecorded", "newest"))
        s3.delete_object(**place, VersionId=version)
        follow(("FileDeleted", "version"), ("FileDeleted", "newest"))


def test_each_recorded_version_has_its_words_once_after_a_kill(
    consumer: Session, folder: Path
) -> None:
    name, pipe = uuid.uuid4().hex, {"Name": "word-count-files-recorded-dev"}
    consumer.cloud.client("pipes").stop_pipe(**pipe)  # so that the stream has all of them
    before = len(recorded(consumer))
    for number in range(20):
        put(consumer, f"k/{name}-{number}.txt", b"one two\n" * (number + 1))
    eventually(lambda: len(recorded(consumer)) == before + 20)
    keeper.wait(folder, consumer.cloud.emulator.running)
    consumer.cloud.client("pipes").start_pipe(**pipe)
    os.kill(consumer.cloud.emulator.pid, signal.SIGKILL)
    again = up(folder)
    again.cloud.client("pipes").start_pipe(**pipe)  # a snapshot may be of before that
    put(again, f"k/{name}-last.txt", b"one\n" * 30)
    eventually(
        lambda: any(each["key"]["S"].endswith("last.txt") for each in recorded(again).values())
    )
    texts = {
        place: int(each["size"]["N"]) // 4
        for place, each in recorded(again).items()
        if each["key"]["S"].startswith(f"k/{name}")
    }
    assert len(texts) == 21

    def counted() -> dict[tuple[str, str], int]:
        found = words_of(again)
        return {x: int(found[x]["words"]["N"]) for x in texts if "words" in found.get(x, {})}

    eventually(lambda: counted() == texts)
