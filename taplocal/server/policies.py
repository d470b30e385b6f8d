"""Identity policies: a `*` matches any character, PutMetricData has its condition key.

In MiniStack a `*` matches no newline, which S3 allows in keys, and `cloudwatch:namespace` is never
there.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Mapping
from typing import Any

from ministack.core import iam_actions, iam_evaluator


def install() -> None:
    """Replaces MiniStack's functions."""
    match_newlines()
    tags = iam_actions.request_tag_context

    def context(service: str, action: str, body: bytes, parameters: Any) -> dict[str, Any]:
        found: dict[str, Any] = tags(service, action, body, parameters)
        if action == "cloudwatch:PutMetricData":
            found["cloudwatch:namespace"] = namespace(body, parameters)
        return found

    iam_actions.request_tag_context = context


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
