"""Exports of tables to S3, with the files that DynamoDB writes; MiniStack writes none.

An export is a request of somebody, or a schedule's, and does what that caller may: it reads the
table, with its key, and puts objects into the bucket, with theirs. What fails is an export with the
status FAILED. It is of the table as it is, and done when the request is answered.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any

from ministack.core.iam_evaluator import PrincipalInfo
from ministack.services import dynamodb, eventbridge, s3

from taplocal.server import keys, rights

#: The target by which a schedule exports a table.
EXPORT_TABLE = "arn:aws:scheduler:::aws-sdk:dynamodb:exportTableToPointInTime"
SCHEDULER = "scheduler.amazonaws.com"
#: What DynamoDB does in the caller's name: it puts objects with an ACL, in parts.
WRITES = ("s3:PutObject", "s3:PutObjectAcl", "s3:AbortMultipartUpload")
TO_WRITE = ("kms:GenerateDataKey", "kms:Decrypt")

Json = dict[str, Any]
Response = tuple[int, Mapping[str, str], Any]


class DeniedError(Exception):
    """What the caller lacks, or S3 refuses."""


def export(principal: PrincipalInfo | None, request: Json) -> Response:
    """ExportTableToPointInTime of a caller; None is the account's root."""
    table = request.get("TableArn", "").rpartition("/")[2]
    if table in dynamodb._tables and not dynamodb._pitr_settings.get(table):
        why = f"Point in time recovery is not enabled for table '{table}'"
        return _refused("PointInTimeRecoveryUnavailableException", why)
    for name, value in {"ExportFormat": "DYNAMODB_JSON", "ExportType": "FULL_EXPORT"}.items():
        if request.get(name, value) != value:
            return _refused("ValidationException", f"the local cloud exports {value} only")
    response: Response = _begin(request)
    if response[0] != 200:
        return response
    arn = json.loads(response[2])["ExportDescription"]["ExportArn"]
    made = dynamodb._exports[arn]
    try:
        found = write(principal, made)
        made.update(found, ExportStatus="COMPLETED", EndTime=time.time())
    except DeniedError as error:
        made.update(ExportStatus="FAILED", FailureCode="AccessDenied", FailureMessage=str(error))
    return response


_begin = dynamodb._export_table_to_point_in_time


def _refused(code: str, why: str) -> Response:
    refusal: Response = dynamodb.error_response_json(code, why, 400)
    return refusal


def write(principal: PrincipalInfo | None, made: Json) -> Json:
    """Writes the files of an export; the summary, whose presence tells that it is whole, last."""
    items = items_of(made["TableArn"].rpartition("/")[2])
    lines = "".join(f"{json.dumps({'Item': each}, ensure_ascii=False)}\n" for each in items)
    export_id = made["ExportArn"].rpartition("/")[2]
    folder = "/".join(filter(None, [made.get("S3Prefix"), "AWSDynamoDB", export_id]))
    data, content = f"{folder}/data/{random_name()}.json.gz", gzip.compress(lines.encode())
    described = {"itemCount": len(items), **digests(content), "dataFileS3Key": data}
    size = sum(dynamodb._item_size_bytes(each) for each in items)
    counts = {"billedSizeBytes": size, "itemCount": len(items)}
    manifest = f"{folder}/manifest-files.json"
    summary = {**summary_of(made), "manifestFilesS3Key": manifest, **counts}
    files = {
        f"{folder}/_started": b"",
        data: content,
        manifest: json.dumps(described).encode() + b"\n",
        f"{folder}/manifest-summary.json": json.dumps(summary).encode(),
    }
    if refusal := refused_table(principal, made["TableArn"]):
        raise DeniedError(refusal)
    for name, body in files.items():
        put(principal, made, name, body)
        if "/manifest-" in name:
            checksum = name.replace(".json", ".checksum")
            put(principal, made, checksum, digests(body)["md5Checksum"].encode())
    return {
        "ExportManifest": f"{folder}/manifest-summary.json",
        "ItemCount": len(items),
        "BilledSizeBytes": size,
    }


def items_of(table: str) -> list[Json]:
    """The items of a table, as they are now, whatever is written meanwhile."""
    stored = list(dynamodb._tables[table]["items"].values())
    return [item for each in stored for item in list(each.values())]


def random_name() -> str:
    """The name of a data file: DynamoDB's have 26 characters."""
    return (
        base64.b32encode(hashlib.sha256(str(time.time_ns()).encode()).digest())
        .decode()[:26]
        .lower()
    )


def digests(body: bytes) -> dict[str, str]:
    """What the manifest says of a file."""
    found = hashlib.md5(body, usedforsecurity=False)
    return {"md5Checksum": base64.b64encode(found.digest()).decode(), "etag": found.hexdigest()}


def summary_of(made: Json) -> Json:
    """What the summary of an export says, but for its files."""
    at = datetime.fromtimestamp(made["StartTime"], UTC).isoformat(timespec="milliseconds")
    times = dict.fromkeys(("startTime", "endTime", "exportTime"), at.replace("+00:00", "Z"))
    return {
        "version": "2020-06-30",
        "exportArn": made["ExportArn"],
        **times,
        "tableArn": made["TableArn"],
        "tableId": made["TableId"],
        "s3Bucket": made["S3Bucket"],
        "s3Prefix": made.get("S3Prefix"),
        "s3SseAlgorithm": made.get("S3SseAlgorithm", "AES256"),
        "s3SseKmsKeyId": made.get("S3SseKmsKeyId"),
        "outputFormat": "DYNAMODB_JSON",
    }


def refused_table(principal: PrincipalInfo | None, arn: str) -> str:
    """Why a caller may not use the key of a table; empty if it may."""
    if principal is None:
        return ""
    refusal = keys.refused(principal, "dynamodb", keys.of_table(arn), ("kms:Decrypt",))
    return refusal.message if refusal else ""


def put(principal: PrincipalInfo | None, made: Json, name: str, body: bytes) -> None:
    """Puts an object of an export in the name of the caller."""
    arn, key = f"arn:aws:s3:::{made['S3Bucket']}/{name}", made.get("S3SseKmsKeyId")
    algorithm = {"KMS": "aws:kms"}.get(made.get("S3SseAlgorithm", ""), "AES256")
    headers = {keys.SSE: algorithm, **({keys.SSE_KEY: key} if key else {})}
    if principal:
        for action in WRITES:
            if rights.denial(principal, action, arn):
                raise DeniedError(f"{principal.arn} may not {action} on {arn}")
        encrypted = keys.of_new_object(arn, headers)
        if refusal := keys.refused(principal, "s3", encrypted, TO_WRITE):
            raise DeniedError(refusal.message)
    status, _, answer = s3._put_object(made["S3Bucket"], name, body, headers)
    if status >= 300:
        raise DeniedError(answer.decode())


def install(count: Callable[..., None]) -> None:
    """Replaces MiniStack's functions; before those that ask for the rights of schedules' roles."""
    invoke = eventbridge._invoke_target

    def invoked(target: Json, event: Any, rule: Mapping[str, Any], view: Any = None) -> None:
        if target.get("Arn") != EXPORT_TABLE:
            invoke(target, event, rule, view)
            return
        role = rights.of_role(target.get("RoleArn", ""), SCHEDULER, rule["Arn"])
        if export(role, json.loads(target["Input"]))[0] != 200:
            group = {"ScheduleGroup": rule.get("GroupName", "default")}
            count("AWS/Scheduler", group, TargetErrorCount=1, InvocationDroppedCount=1)

    eventbridge._invoke_target = invoked
    dynamodb._export_table_to_point_in_time = lambda data: export(keys.caller.get(None), data)
