"""The contract, openapi.yaml, as tests hold responses against it."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import yaml

ROOT = Path(__file__).parents[1]
METHODS = ("get", "post", "put", "patch", "delete", "head")


@cache
def contract() -> Any:
    """The whole document."""
    return yaml.safe_load((ROOT / "openapi.yaml").read_text())


def operations() -> dict[str, Any]:
    """Route -> operation, as in `GET /items/{id}`."""
    paths = contract()["paths"].items()
    return {f"{m.upper()} {path}": item[m] for path, item in paths for m in METHODS if m in item}


def follow(node: Any) -> Any:
    """The node that a reference points at, or the node itself."""
    while "$ref" in node:
        target = contract()
        for part in node["$ref"].removeprefix("#/").split("/"):
            target = target[part]
        node = target
    return node


def check_response(route: str, status: int, headers: dict[str, str], body: str) -> None:
    """Fails if a response of a route is not what the contract promises for its status."""
    responses = operations()[route]["responses"]
    assert str(status) in responses, f"{route} does not document {status}"
    response = follow(responses[str(status)])
    for name, header in response.get("headers", {}).items():
        header = follow(header)
        if header.get("required", True) or name.lower() in headers:
            validate(headers[name.lower()], header["schema"])
    if status == 503 and headers["content-type"] == "application/problem+json":
        assert "retry-after" in headers, "the contract says it in words: the gateway has none"
    if "content" not in response:
        assert body == ""
        return
    media_type = headers["content-type"].partition(";")[0]
    assert media_type in response["content"], f"{route} {status} does not document {media_type}"
    if media_type.endswith("json") and (body or not route.startswith("HEAD ")):
        validate(json.loads(body), response["content"][media_type]["schema"])


def validate(value: Any, schema: Any) -> None:
    whole = {**schema, "components": contract()["components"]}
    jsonschema.Draft202012Validator(whole).validate(value)
