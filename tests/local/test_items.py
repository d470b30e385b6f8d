"""A caller's items over HTTP, with everything that can be wrong about a request."""

from __future__ import annotations

import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal

import pytest

import tap_stack
from taplocal.session import Session
from tests.local.conftest import Call, assert_problem

pytestmark = pytest.mark.usefixtures("unthrottled")

DOCUMENT = """{"name": "tea", "a.b": {"#x": [1, 2.50, null, true, {"": "-"}]}, "SELECT": "☕ é \\u0001", "size": 1e20,
 "owner": "me", "big": 12345678901234567890123456789012345678, "small": 1E-130, "negative": -0.000000000000000000001}"""


def test_an_item_lives_from_post_to_delete(ann: Call, fresh: str) -> None:
    created = ann("POST", "/items", json.dumps({"id": fresh, "name": "tea"}))
    assert (created.status, created.headers["location"]) == (201, f"/items/{fresh}")
    path, tag = f"/items/{fresh}", created.headers["etag"]
    assert ann("GET", path).json() == created.json()
    assert ann("GET", path, if_none_match=tag).status == 304
    head = ann("HEAD", path)
    assert (head.status, head.body, head.headers["etag"]) == (200, "", tag)
    assert int(head.headers["content-length"]) == len(created.body)
    replaced = ann("PUT", path, '{"name": "coffee"}', if_match=tag)
    assert (replaced.status, replaced.json()["version"]) == (200, 2)
    assert_problem(ann("PUT", path, '{"name": "water"}', if_match=tag), 412)
    merge = "application/merge-patch+json"
    patched = ann("PATCH", path, '{"name": null, "hot": true}', content_type=merge)
    assert (patched.json()["hot"], "name" in patched.json(), patched.json()["version"]) == (
        True,
        False,
        3,
    )
    assert ann("DELETE", path, if_match=patched.headers["etag"]).status == 204
    assert_problem(ann("DELETE", path), 404)
    assert_problem(ann("GET", path), 404)


def test_every_value_survives_exactly(ann: Call, fresh: str) -> None:
    text = DOCUMENT.replace('{"": "-"}', '{"é": "-"}')
    assert ann("POST", "/items", text.replace("{", f'{{"id": "{fresh}", ', 1)).status == 201

    def exact(body: str) -> object:
        return json.loads(body, parse_int=Decimal, parse_float=Decimal)

    stored = exact(ann("GET", f"/items/{fresh}").body)
    assert isinstance(stored, dict)
    assert {
        name: value for name, value in stored.items() if name not in tap_stack.READ_ONLY_FIELDS
    } == exact(text)


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ("{", 400),
        ('{"a": NaN}', 400),
        ('{"a": 1, "a": 2}', 400),
        ("[" * 50_000, 400),
        ("[]", 422),
        ('{"a": 1e400}', 422),
        ('{"a": 123456789012345678901234567890123456789}', 422),
        ('{"a": "\\ud800"}', 422),
        ('{"": 1}', 422),
        ('{"id": "a/b"}', 422),
        ('{"a": "' + "x" * 410_000 + '"}', 413),
        ('{"a": "' + "x" * 2_600_000 + '"}', 413),
    ],
    ids=lambda value: str(value)[:30],
)
def test_what_cannot_be_stored_is_rejected(ann: Call, body: str, status: int) -> None:
    assert_problem(ann("POST", "/items", body), status)


def test_the_largest_item_is_stored_replaced_and_listed(robot: Call, fresh: str) -> None:
    body = json.dumps({"id": fresh, "category": fresh, "a": "\x01" * 390_000})
    assert robot("POST", "/items", body).status == 201
    assert robot("PUT", f"/items/{fresh}", body).json()["a"] == "\x01" * 390_000
    assert len(robot("GET", f"/items?category={fresh}").json()["items"]) == 1
    assert_problem(robot("PATCH", f"/items/{fresh}", json.dumps({"b": "x" * 20_000})), 413)
    assert robot("DELETE", f"/items/{fresh}").status == 204


def test_what_is_somebody_elses_is_not_there(ann: Call, bob: Call, robot: Call, fresh: str) -> None:
    assert ann("POST", "/items", json.dumps({"id": fresh, "category": fresh})).status == 201
    for other in (bob, robot):
        responses = [other("GET", f"/items/{fresh}"), other("PUT", f"/items/{fresh}", "{}")]
        responses += [other("PATCH", f"/items/{fresh}", "{}"), other("DELETE", f"/items/{fresh}")]
        for response in responses:
            assert_problem(response, 404)
        assert other("GET", f"/items?category={fresh}").json() == {"items": []}
        assert other("POST", "/items", json.dumps({"id": fresh})).status == 201
        assert_problem(other("POST", "/items", json.dumps({"id": fresh})), 409)
        assert other("DELETE", f"/items/{fresh}").status == 204
    assert ann("GET", f"/items/{fresh}").json()["version"] == 1


def test_a_retry_under_an_idempotency_key_creates_nothing(ann: Call, fresh: str) -> None:
    body = json.dumps({"category": fresh, "n": 1})
    with ThreadPoolExecutor(8) as pool:
        responses = list(
            pool.map(lambda _: ann("POST", "/items", body, idempotency_key=fresh), range(8))
        )
    created = [response for response in responses if response.status == 201]
    assert {response.status for response in responses} <= {201, 503}
    assert len({response.body for response in created}) == 1
    assert len(ann("GET", f"/items?category={fresh}").json()["items"]) == 1
    assert_problem(ann("POST", "/items", '{"n": 2}', idempotency_key=fresh), 422)


def test_of_many_writers_with_the_same_version_one_wins(ann: Call, fresh: str) -> None:
    tag = ann("POST", "/items", json.dumps({"id": fresh})).headers["etag"]
    with ThreadPoolExecutor(8) as pool:
        call = [
            pool.submit(ann, "PUT", f"/items/{fresh}", f'{{"n": {n}}}', if_match=tag)
            for n in range(8)
        ]
    statuses = sorted(each.result().status for each in call)
    assert statuses == [200] + [412] * 7


def test_merges_at_the_same_time_all_take_effect_or_say_that_they_did_not(
    ann: Call, fresh: str
) -> None:
    ann("POST", "/items", json.dumps({"id": fresh}))
    with ThreadPoolExecutor(8) as pool:
        calls = [pool.submit(ann, "PATCH", f"/items/{fresh}", f'{{"n{n}": {n}}}') for n in range(8)]
    succeeded = [n for n, call in enumerate(calls) if call.result().status == 200]
    assert {call.result().status for call in calls} <= {200, 409}
    item = ann("GET", f"/items/{fresh}").json()
    assert [n for n in range(8) if f"n{n}" in item] == succeeded
    assert item["version"] == 1 + len(succeeded)


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("PUT", "/items", 405),
        ("POST", "/items/a", 405),
        ("GET", "/nothing", 404),
        ("GET", "/items/a/b", 404),
    ],
)
def test_what_no_route_takes_is_a_problem_too(
    ann: Call, method: str, path: str, status: int
) -> None:
    response = ann(method, path, "{}" if method != "GET" else None)
    assert_problem(response, status)
    assert ("allow" in response.headers) == (status == 405)


@pytest.mark.parametrize(
    "item_id", ["..%2F..%2Fetc", "%00", "%F0%9F%98%80", "a%20b", "%25", "idempotency%23x"]
)
def test_an_odd_id_in_the_path_is_only_a_missing_item(ann: Call, item_id: str) -> None:
    assert_problem(ann("GET", f"/items/{item_id}"), 404)


def test_another_content_type_is_rejected(ann: Call) -> None:
    assert_problem(
        ann("POST", "/items", "a=b", content_type="application/x-www-form-urlencoded"), 415
    )


def test_each_request_leaves_one_line_in_the_functions_log(
    deployed: Session, ann: Call, fresh: str
) -> None:
    created = ann("POST", "/items", json.dumps({"id": fresh}))
    missing = ann("GET", f"/items/{fresh}-not").json()["request_id"]
    group = f"/aws/lambda/{deployed.outputs['function_name']}"
    deadline = time.monotonic() + 20
    lines: list[dict[str, object]] = []
    while time.monotonic() < deadline and not any(
        line.get("request_id") == missing for line in lines
    ):
        events = deployed.cloud.client("logs").filter_log_events(logGroupName=group)["events"]
        lines = [
            json.loads(event["message"]) for event in events if event["message"].startswith("{")
        ]
    (line,) = [line for line in lines if line.get("request_id") == missing]
    assert (line["status"], line["route"], line["RequestsRejected"]) == (404, "GET /items/{id}", 1)
    assert created.status == 201
    assert any(line.get("ItemsCreated") == 1 and line["status"] == 201 for line in lines)


def test_requests_at_once_all_get_a_response(ann: Call, fresh: str) -> None:
    barrier = threading.Barrier(6)

    def story(n: int) -> list[int]:
        barrier.wait()
        statuses = [ann("POST", "/items", json.dumps({"id": f"{fresh}-{n}"})).status]
        statuses += [ann("GET", f"/items/{fresh}-{n}").status for _ in range(5)]
        return statuses

    with ThreadPoolExecutor(6) as pool:
        assert all(statuses == [201] + [200] * 5 for statuses in pool.map(story, range(6)))
