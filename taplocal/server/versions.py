"""An object's versions: what is read of one, and the event of each delete marker.

MiniStack reads in part, and responds with the headers that a request names, for an object's current
version only. It has no event for a delete marker where there is no current version: the marker's
removal would then be of something that nobody ever heard of.
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


def announced(record: Callable[..., str]) -> Callable[..., str]:
    """MiniStack's _record_delete_marker, with the event that its callers leave out."""

    def recorded(bucket: str, key: str, current: Any) -> str:
        marker = record(bucket, key, current)
        if current is None:
            name, kind = "s3:ObjectRemoved:DeleteMarkerCreated", "Delete Marker Created"
            s3._fire_s3_event_async(bucket, key, name, deletion_type=kind, version_id=marker)
        return marker

    return recorded


def install() -> None:
    """Replaces MiniStack's functions."""
    s3._get_object = in_part(s3._get_object)
    s3._record_delete_marker = announced(s3._record_delete_marker)
