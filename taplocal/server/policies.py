"""Policies as AWS reads them.

In MiniStack a `*` matches no newline, which S3 allows in keys, `cloudwatch:namespace` and
`s3:RequestObjectTagKeys` are never there, an object has no tags while it is copied, and what
concerns a log stream is allowed by its group's ARN, not by `<log group>:*`; `aws:PrincipalArn` is
that of a role's session, not the role's. A request over loopback, which no network carries, counts
as one with TLS.
"""

from __future__ import annotations

import contextvars
import functools
import json
import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import parse_qs

from ministack.core import iam_actions, iam_evaluator
from ministack.services import s3

OBJECT_TAGS = "s3:RequestObjectTagKeys"
#: The object that this request copies, by ARN and version.
copied: contextvars.ContextVar[tuple[str, str]] = contextvars.ContextVar("copied", default=("", ""))
SESSION = re.compile(r"arn:aws:sts::(\d+):assumed-role/([^/]+)/.+")


def install() -> None:
    """Replaces MiniStack's functions."""
    match_newlines()
    name_log_streams()
    resolve_principals()
    name_copied_tags()
    tags = iam_actions.request_tag_context

    def context(service: str, action: str, body: bytes, parameters: Any) -> dict[str, Any]:
        found: dict[str, Any] = tags(service, action, body, parameters)
        if action == "cloudwatch:PutMetricData":
            found["cloudwatch:namespace"] = namespace(body, parameters)
        if action in ("s3:PutObjectTagging", "s3:PutObjectVersionTagging"):
            found[OBJECT_TAGS] = [x.decode() for x in re.findall(rb"<Key>(.*?)</Key>", body)]
        return found

    of_object = iam_actions._s3_object_context

    def object_context(action: str, query: Any, path: str, headers: Any) -> dict[str, Any]:
        tags = parse_qs(headers.get("x-amz-tagging", ""), keep_blank_values=True)
        return {
            **of_object(action, query, path, headers),
            **({OBJECT_TAGS: [*tags]} if tags else {}),
        }

    iam_actions.request_tag_context = context
    iam_actions._s3_object_context = object_context


def namespace(body: bytes, parameters: Mapping[str, Any]) -> str:
    """The namespace of PutMetricData, in the protocols that the emulator has: Query and JSON."""
    if parameters.get("Namespace"):
        return str(parameters["Namespace"][0])
    return str(json.loads(body).get("Namespace", "")) if body[:1] == b"{" else ""


def match_newlines() -> None:
    """Makes a * match newlines too."""
    original = iam_evaluator._fnmatch_compile

    @functools.lru_cache(maxsize=10_000)
    def compiled(pattern: str, ignore_case: bool) -> re.Pattern[str]:
        found = original(pattern, ignore_case)
        return re.compile(found.pattern, found.flags | re.DOTALL)

    iam_evaluator._fnmatch_compile = compiled


def name_log_streams() -> None:
    """Makes the resource of a call about a log stream the stream, of a list of them all."""
    of_request = iam_actions.extract_resource_arn

    def resource(service: str, *request: Any) -> Any:
        found, (headers, body) = of_request(service, *request), request[2:4]
        stream = service == "logs" and iam_actions._safe_json_field(body, "logStreamName")
        listed = headers.get("x-amz-target", "").endswith(".DescribeLogStreams")
        return f"{found}:log-stream:{stream or ''}" if stream or listed else found

    iam_actions.extract_resource_arn = resource


def name_copied_tags() -> None:
    """Makes what a copy reads have its tags."""
    checks, resources = iam_actions.s3_additional_checks, iam_actions.s3_access_point_resources

    def checked(method: str, path: str, headers: Any, *request: Any) -> Any:
        copied.set(iam_actions._s3_source_object(headers) or ("", ""))
        return checks(method, path, headers, *request)

    def named(arn: str) -> Any:
        source, version = copied.get()
        if arn != source:
            return resources(arn)
        query = {"versionId": [version]} if version else {}
        place = arn.removeprefix("arn:aws:s3:::").split("/", 1)
        tags = s3.object_tags_for_condition(*place, query)
        of_object = {f"s3:ExistingObjectTag/{name}": value for name, value in tags.items()}
        return [(resource, {**keys, **of_object}) for resource, keys in resources(arn)]

    iam_actions.s3_additional_checks, iam_actions.s3_access_point_resources = checked, named


def resolve_principals() -> None:
    """Makes `aws:SecureTransport` true, and `aws:PrincipalArn` the role of a session."""
    resolve = iam_evaluator._resolve_condition_key

    def resolved(key: str, context: Any) -> Any:
        if key.lower() == "aws:securetransport":
            return "true"
        found = resolve(key, context)
        session = key.lower() == "aws:principalarn" and SESSION.fullmatch(str(found))
        return f"arn:aws:iam::{session[1]}:role/{session[2]}" if session else found

    iam_evaluator._resolve_condition_key = resolved
