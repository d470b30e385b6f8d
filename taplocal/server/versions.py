"""Reads of an object's version: in part, and with the response headers that the request names.

MiniStack has both for an object's current version only, without a version id.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ministack.services import s3

Response = tuple[int, dict[str, str], bytes]


def in_part(get: Callable[..., Response]) -> Callable[..., Response]:
    """MiniStack's _get_object, with Range and response-* beside versionId."""

    def got(bucket: str, key: str, headers: Mapping[str, str], query: Any = None) -> Response:
        whole = get(bucket, key, headers, query)
        status, answered, body = whole
        if status != 200 or not s3._qp(query or {}, "versionId"):
            return whole
        s3._apply_response_overrides(answered, query)
        if not (wanted := headers.get("range", "")):
            return whole
        found = s3._parse_range(wanted, len(body))
        if found is None:
            error = s3._xml_body(s3._range_error_xml(bucket, key))
            return (
                416,
                {"Content-Type": "application/xml", "Content-Range": f"bytes */{len(body)}"},
                error,
            )
        first, last = found
        part = body[first : last + 1]
        kept = {k: v for k, v in answered.items() if not k.lower().startswith("x-amz-checksum-")}
        content_range = f"bytes {first}-{last}/{len(body)}"
        return 206, {**kept, "Content-Length": str(len(part)), "Content-Range": content_range}, part

    return got


def install() -> None:
    """Replaces MiniStack's function."""
    s3._get_object = in_part(s3._get_object)
