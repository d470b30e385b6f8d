"""The application of web instances without its database: what a caller gets."""

from __future__ import annotations

import json
from typing import Any

import psycopg
import pytest
from botocore.exceptions import ClientError

import tap_stack

UNAVAILABLE = ("503 Service Unavailable", {"error": "The database is unavailable."}, "1")
INTERNAL = ("500 Internal Server Error", {"error": "Internal error."}, None)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (psycopg.OperationalError("no route"), UNAVAILABLE),
        (ClientError({"Error": {}}, "GetSecretValue"), UNAVAILABLE),
        (ZeroDivisionError("of our own"), INTERNAL),
    ],
)
def test_only_an_outage_of_the_database_is_503(
    monkeypatch: pytest.MonkeyPatch, error: Exception, expected: Any
) -> None:
    def serve(_method: str, _path: str) -> Any:
        raise error

    told: list[Any] = []
    monkeypatch.setattr(tap_stack, "serve", serve)
    (content,) = tap_stack.web({"REQUEST_METHOD": "GET"}, lambda *x: told.append(x))
    ((status, headers),) = told
    assert (status, json.loads(content), dict(headers).get("Retry-After")) == expected
