"""Whatever is sent, the API responds as its contract says, and never with 5xx."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import tap_stack
from tests.unit.conftest import Api

values: st.SearchStrategy[Any] = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**40), 10**40)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.sampled_from([1e30, -0.0, 1e125, 1e-130, 10**38, 2**63, "", "..", "image/png", "1e30"])
    | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4)
    ),
    max_leaves=10,
)
FIELDS = ("id", "name", "folder", "content_type", "size", "category", "version", "owner", "a")
bodies = (
    st.dictionaries(st.sampled_from(FIELDS), values, max_size=6).map(json.dumps)
    | values.map(json.dumps)
    | st.text(max_size=50)
    | st.none()
)
PARAMETERS = (
    "category", "order", "limit", "next", "folder", "content_type", "day", "from", "to", "x",
)  # fmt: skip
HEADERS = ("content-type", "if-match", "if-none-match", "idempotency-key", "content-encoding")
texts = st.text(max_size=30) | st.sampled_from(
    [
        "application/json", "application/merge-patch+json", "*", '"a"', 'W/"a"', "asc", "desc",
        "1", "100", "2026-02-30", "2026-11-24", "0001-01-01", "9999-12-31", ",", '"', "é",
    ]
)  # fmt: skip
paths = st.text(st.characters(exclude_characters="/?", exclude_categories=["Cs"]), min_size=1)


@settings(max_examples=400, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    route=st.sampled_from(sorted(tap_stack.all_routes())),
    identity=paths | st.just("ab" * 20),
    query=st.dictionaries(st.sampled_from(PARAMETERS), texts, max_size=4),
    headers=st.dictionaries(st.sampled_from(HEADERS), texts, max_size=4),
    body=bodies,
    encoded=st.booleans(),
)
def test_no_request_fails(
    api: Api,
    route: str,
    identity: str,
    query: dict[str, str],
    headers: dict[str, str],
    body: str | None,
    encoded: bool,
) -> None:
    method, path = route.split()
    more: dict[str, Any] = {"queryStringParameters": query}
    if encoded and body is not None:
        raw = body.encode("utf-8", "surrogatepass")
        more |= {"isBase64Encoded": True, "body": base64.b64encode(raw).decode()}
    headers = {"content-type": "application/json", **headers}
    response = api.raw(method, path.replace("{id}", identity), "", body, headers, **more)
    assert response.status < 500, response.text


@pytest.mark.parametrize("size", ["1e30", "1e400", "-1e30", "1.0", "1e0", "0.1", "999999999999"])
def test_a_size_is_a_number_of_bytes_or_rejected(api: Api, size: str) -> None:
    text = f'{{"name": "a.png", "content_type": "image/png", "size": {size}}}'
    assert api("POST", "/files", text).status == (201 if size in ("1.0", "1e0") else 422)
