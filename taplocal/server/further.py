"""What a call needs beyond the action and the resource that MiniStack checks.

A snapshot's name and tags are checked on their own, as on AWS; an instance's health is its group's;
S3 tells whether an object is gone only those who may list the bucket.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any
from urllib.parse import parse_qsl, unquote

from ministack.core import iam_actions, iam_evaluator
from ministack.core.iam_evaluator import AuthError
from ministack.core.responses import get_account_id, get_region
from ministack.services import autoscaling, rds, s3, tagging

from taplocal.server import keys, rights

#: An action, its resource, keys of conditions.
Check = tuple[str, str, dict[str, str]]


def of_snapshot(call: Mapping[str, str]) -> list[Check]:
    """What CreateDBSnapshot needs besides the database."""
    arn = snapshot_arn(call)
    tags = {
        f"aws:RequestTag/{value}": call[f"{field.removesuffix('Key')}Value"]
        for field, value in call.items()
        if re.fullmatch(r"Tags\.\w+\.\d+\.Key", field)
    }
    adds = [("rds:AddTagsToResource", arn, tags)] if tags else []
    return [("rds:CreateDBSnapshot", arn, tags), *adds]


FURTHER: Mapping[str, Callable[[Mapping[str, str]], list[Check]]] = {
    "rds:CreateDBSnapshot": of_snapshot
}


def check_more() -> None:
    """Makes a call that MiniStack allows need what FURTHER says."""
    enforce = iam_evaluator.enforce

    def enforced(access_key: str, action: str, *more: Any, **named: Any) -> Any:
        refusal = enforce(access_key, action, *more, **named)
        if refusal or action not in FURTHER or not (principal := keys.caller.get(None)):
            return refusal
        call = dict(parse_qsl(keys.asked.get()[2].decode()))
        for each, arn, condition in FURTHER[action](call):
            if rights.denial(principal, each, arn, **condition):
                why = (
                    f"User: {principal.arn} is not authorized to perform: {each} on resource: {arn}"
                )
                return AuthError("AccessDenied", why)
        return None

    iam_evaluator.enforce = enforced


def name_resources() -> None:
    """Makes the resource of a call about a snapshot, or an instance's health, what it is about."""
    of_request = iam_actions.extract_resource_arn

    def resource(service: str, *request: Any) -> Any:
        found = of_request(service, *request)
        if found != "*" or service not in ("autoscaling", "rds"):
            return found
        call = dict(parse_qsl(request[3].decode(errors="replace")))
        arns = snapshot_arn(call), group_arn(call.get("InstanceId", ""))
        return next(filter(None, arns), found)

    iam_actions.extract_resource_arn = resource


def snapshot_arn(call: Mapping[str, str]) -> str:
    """The ARN of the snapshot that a call of RDS names; empty if it names none."""
    name = call.get("DBSnapshotIdentifier")
    return f"arn:aws:rds:{get_region()}:{get_account_id()}:snapshot:{name}" if name else ""


def snapshot_tags() -> Iterator[tuple[str, list[dict[str, str]]]]:
    """The tags of each snapshot, by its ARN."""
    for each in rds._snapshots.values():
        yield each["DBSnapshotArn"], each.get("TagList") or []


def group_arn(instance: str) -> str:
    """The ARN of the group that has an instance; empty if none has."""
    for name, group in autoscaling._asgs.items():
        if instance in [each["InstanceId"] for each in group.get("Instances", [])]:
            return str(group.get("AutoScalingGroupARN") or name)
    return ""


def hide_missing() -> None:
    """Answers 403, not 404, to who may not list the bucket of an object that is gone."""

    def hidden(read: Callable[..., Any]) -> Callable[..., Any]:
        def found(bucket: str, key: str, headers: Any, *request: Any, **more: Any) -> Any:
            response = read(bucket, key, headers, *request, **more)
            principal = keys.caller.get(None) if response[0] == 404 else None
            if copied := headers.get("x-amz-copy-source"):
                bucket, _, key = unquote(copied.partition("?")[0]).lstrip("/").partition("/")
            if principal and rights.denial(principal, "s3:ListBucket", f"arn:aws:s3:::{bucket}"):
                return s3._error("AccessDenied", "Access Denied", 403, f"/{bucket}/{key}")
            return response

        return found

    for name in ("_head_object", "_get_object", "_copy_object"):
        setattr(s3, name, hidden(getattr(s3, name)))


def install() -> None:
    """Replaces MiniStack's functions, after those that know the caller."""
    check_more()
    name_resources()
    tagging._RESOURCE_TAG_COLLECTORS["rds"] = snapshot_tags
    hide_missing()
