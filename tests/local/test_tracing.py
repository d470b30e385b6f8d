"""What the functions tell X-Ray's daemon while they serve requests and record files."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import jsonschema

from taplocal.session import Session
from tests.local.conftest import Call
from tests.local.test_file_pipeline import eventually
from tests.unit.test_tracing import SCHEMA

Calls = list[tuple[str, str, str]]


def traces(data: Path, since: float) -> list[Calls]:
    """Of each trace since a time, the calls: service, operation, what it is about."""
    found: dict[tuple[str, str], Calls] = {}
    for line in (data / "traces.jsonl").read_text().splitlines(keepends=True):
        if line.endswith("\n"):
            subsegment: dict[str, Any] = json.loads(line)
            if subsegment["start_time"] < since:
                continue
            jsonschema.validate(subsegment, SCHEMA)
            call = subsegment["aws"]
            named = subsegment["name"], call["operation"], *call["resource_names"]
            identity = subsegment["trace_id"], subsegment["parent_id"]
            found.setdefault(identity, []).append(named)
    return list(found.values())


def test_a_request_is_a_trace_with_its_calls(
    deployed: Session, data: Path, ann: Call, fresh: str
) -> None:
    table = deployed.outputs["table_name"]
    assert ann("POST", "/items", f'{{"id": "{fresh}"}}').status == 201
    since = time.time()
    assert ann("PATCH", f"/items/{fresh}", '{"hot": true}').status == 200
    expected = [("dynamodb", "GetItem", table), ("dynamodb", "UpdateItem", table)]
    assert eventually(lambda: expected in traces(data, since))


def test_a_file_is_a_trace_of_both_clients(deployed: Session, data: Path) -> None:
    bucket, table = deployed.outputs["files_bucket_name"], deployed.outputs["files_table_name"]
    since = time.time()
    deployed.cloud.client("s3").put_object(Bucket=bucket, Key="tracer/a.txt", Body=b"x")
    calls = [("s3", "HeadObject", bucket), ("s3", "GetObject", bucket)]
    expected = [*calls, ("dynamodb", "TransactWriteItems", table)]
    assert eventually(lambda: expected in traces(data, since))
