"""Checksums of uploads by a form: S3 compares the file with the one that the form names.

MiniStack does so for PUT only: a form's object would have no checksum, and any content would do.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextvars import ContextVar
from typing import Any

from ministack.services import s3

#: The form that is being handled: its file as `content`, then its `checksums`.
form: ContextVar[dict[str, Any]] = ContextVar("form", default={})  # noqa: B039 - never changed


def posted(post: Callable[..., Any]) -> Callable[..., Any]:
    """MiniStack's _post_object, which notes the file for the two below."""

    def handled(bucket: str, body: bytes, headers: Mapping[str, str]) -> Any:
        parts = s3._parse_multipart_form(headers.get("content-type", ""), body) or ()
        files = [content for name, _, _, content in parts if name == "file"]
        before = form.set({"content": files[-1] if files else b""})
        try:
            return post(bucket, body, headers)
        finally:
            form.reset(before)

    return handled


def compared(enforce: Callable[..., Any]) -> Callable[..., Any]:
    """MiniStack's _enforce_signed_post_policy, then the checksum: an error, or None."""

    def enforced(fields: Mapping[str, str], *more: Any) -> Any:
        if refused := enforce(fields, *more):
            return refused
        found, wrong = s3._resolve_object_checksums(form.get()["content"], fields)
        form.get()["checksums"] = found
        return wrong

    return enforced


def kept(build: Callable[..., Any]) -> Callable[..., Any]:
    """MiniStack's _build_object_record, with the checksum of the form."""

    def built(
        body: bytes, headers: Mapping[str, str], etag: Any = None, checksums: Any = None
    ) -> Any:
        return build(body, headers, etag, checksums or form.get().get("checksums"))

    return built


def install() -> None:
    """Replaces MiniStack's functions."""
    s3._post_object = posted(s3._post_object)
    s3._enforce_signed_post_policy = compared(s3._enforce_signed_post_policy)
    s3._build_object_record = kept(s3._build_object_record)
