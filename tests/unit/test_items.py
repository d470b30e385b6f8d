"""The operations on items: what they answer and store, conditions, retries, merges."""

from __future__ import annotations

import json
import re
import time
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import tap_stack
from tests.fakes import service_error
from tests.unit.conftest import Api, assert_problem

UUID7 = r"[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}"


# POST /items


def test_create_responds_with_item_location_and_etag(api: Api) -> None:
    response = api("POST", "/items", {"name": "tea", "version": 9, "created_at": "x"})
    assert response.status == 201
    assert re.fullmatch(UUID7, response.json["id"])
    assert response.headers["location"] == f"/items/{response.json['id']}"
    assert re.fullmatch(f'"{UUID7}"', response.headers["etag"])
    assert response.json["version"] == 1
    assert response.json["created_at"] == response.json["updated_at"]
    assert list(response.json) == ["id", "version", "created_at", "updated_at", "name"]


def test_generated_ids_sort_by_time(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(1_700_000_000, 1_700_000_050))
    monkeypatch.setattr(time, "time", lambda: next(clock))
    ids = [tap_stack.new_id() for _ in range(50)]
    assert ids == sorted(ids)
    assert all(re.fullmatch(UUID7, each) for each in ids)


def test_an_id_is_taken_for_its_owner_only(api: Api) -> None:
    for caller in ("ann", "bob"):
        assert api("POST", "/items", {"id": "a", "of": caller}, caller=caller).status == 201
        assert_problem(api("POST", "/items", {"id": "a"}, caller=caller), 409)
    assert api("DELETE", "/items/a", caller="bob").status == 204
    assert api("GET", "/items/a").json["of"] == "ann"


IDS = st.sampled_from(["a", "b"])
ANY_CALL: st.SearchStrategy[Any] = st.one_of(
    st.tuples(st.just("POST"), IDS, st.sampled_from([{}, {"idempotency_key": "k"}])),
    st.tuples(st.sampled_from(["GET", "PUT", "PATCH"]), IDS, st.just({})),
    st.tuples(st.just("DELETE"), IDS, st.sampled_from([{}, {"if_match": '"x"'}])),
    st.tuples(st.just("LIST"), st.sampled_from(["", "category=c&", "order=asc&"]), st.just({})),
)


def answer(api: Api, caller: str, call: tuple[str, str, dict[str, str]]) -> Any:
    """What a caller sees of a call, but for times, tags and tokens, which differ each time."""
    method, on, headers = call
    if method == "LIST":
        response = api("GET", f"/items?{on}limit=1", caller=caller)
        return [each["id"] for each in response.json["items"]], "next" in response.json
    path, body = f"/items/{on}", None if method in ("GET", "DELETE") else {"category": "c"}
    if method == "POST":
        path, body = "/items", {"id": on, "of": caller, "category": "c"}
    response = api(method, path, body, caller=caller, **headers)
    shown = json.loads(response.text or "{}")
    return response.status, {k: v for k, v in shown.items() if not k.endswith("_at")}


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=200)
@given(st.lists(st.tuples(st.sampled_from(["ann", "bob"]), ANY_CALL), max_size=15))
def test_nobody_sees_what_another_caller_does_with_the_same_ids_and_keys(
    api: Api, calls: list[tuple[str, Any]]
) -> None:
    def answers(of: list[tuple[str, Any]]) -> list[Any]:
        api.table.items.clear()
        given = [(caller, answer(api, caller, call)) for caller, call in of]
        return [each for caller, each in given if caller == "ann"]

    assert answers(calls) == answers([each for each in calls if each[0] == "ann"])


@pytest.mark.parametrize(
    "item_id",
    ["", ".", "..", "a/b", "a b", "é", "x" * 129, "-a", "a\n", 5, True, [], "idempotency#1"],
)
def test_an_id_that_a_url_cannot_carry_is_422(api: Api, item_id: Any) -> None:
    assert_problem(api("POST", "/items", {"id": item_id}), 422, "An id is text")
    assert not api.table.items


@pytest.mark.parametrize(
    "name",
    ["owner", "revision", "content", "expires_at", "a.b", "#x", ":y", "SELECT", "ünï ☕", "size"],
)
def test_any_field_name_works(api: Api, name: str) -> None:
    assert api("POST", "/items", {"id": "a", name: {name: [name]}}).json[name] == {name: [name]}
    assert api("GET", "/items/a").json[name] == {name: [name]}
    assert api("PATCH", "/items/a", {name: 1}).json[name] == 1


@pytest.mark.parametrize("body", ["[]", "1", "null", '"a"'])
def test_an_item_is_an_object(api: Api, body: str) -> None:
    assert_problem(api("POST", "/items", body), 422, "JSON object")


def test_an_item_above_dynamodbs_limit_is_413(api: Api) -> None:
    def too_large(operation: str, arguments: Any) -> None:
        message = "Item size has exceeded the maximum allowed size"
        if operation == "TransactWriteItems":
            reasons = [{"Code": "ValidationError", "Message": message}, {"Code": "None"}]
            raise service_error(
                "TransactionCanceledException", operation, CancellationReasons=reasons
            )
        raise service_error("ValidationException", operation, message)

    api.table.before = too_large
    assert_problem(api("POST", "/items", {}), 413, "400 KB")
    assert_problem(api("POST", "/items", {}, idempotency_key="k"), 413, "400 KB")


def test_a_category_too_long_for_its_index_is_422(api: Api) -> None:
    assert api("POST", "/items", {"category": "é" * 512}).status == 201
    assert_problem(api("POST", "/items", {"category": "é" * 513}), 422, "category")
    api("POST", "/items", {"id": "a"})
    assert_problem(api("PATCH", "/items/a", {"category": "x" * 1025}), 422, "category")


DEEP = "[" * 31 + "[1]" + "]" * 31
WRONG = """{"id": null, "category": "LONG", "": 1, "a/b": {"~": [0, 1e400, {"": true}], "\\udc00": 2},
 "deep": DEEP, "version": 1e400, "text": "\\ud800"}""".replace("DEEP", DEEP).replace(
    "LONG", "c" * 1025
)


@pytest.mark.parametrize("route", ["POST /items", "PUT /items/a", "PATCH /items/a"])
def test_all_mistakes_of_a_body_are_named_at_once(api: Api, route: str) -> None:
    api("POST", "/items", {"id": "a"})
    method, path = route.split()
    response = api(method, path, WRONG)
    assert_problem(response, 422, "An id is text", "invalid-fields")
    wrong = {each["pointer"]: each["detail"] for each in response.json["errors"]}
    deep = "/deep" + "/0" * 31
    assert wrong.keys() == {
        "/id", "/category", "/", "/a~1b/~0/1", "/a~1b/~0/2/", "/a~1b/\udc00", deep, "/text",
    }  # fmt: skip
    assert "38 digits" in wrong["/a~1b/~0/1"]
    assert "31 levels" in wrong[deep]


def test_a_problem_stays_small_however_many_and_long_the_mistakes_are(api: Api) -> None:
    body = json.dumps({"n" * 200_000: {str(n): "\ud800" for n in range(10_000)}})
    response = api("POST", "/items", body)
    assert [each["pointer"] for each in response.json["errors"]] == [""]
    many = api("POST", "/items", {str(n): "\ud800" for n in range(10_000)})
    assert len(many.json["errors"]) == tap_stack.ERRORS_LIMIT
    assert len(response.text) + len(many.text) < 5_000


def test_an_id_is_null_nowhere(api: Api) -> None:
    for body in ({"id": None}, {"id": None, "a": 1}):
        assert_problem(api("POST", "/items", body), 422, "An id is text", "invalid-fields")


# Idempotency-Key


def test_a_retry_with_the_same_key_returns_the_first_response(api: Api) -> None:
    first = api("POST", "/items", {"name": "tea", "price": 1.5}, idempotency_key="k 1")
    api("PATCH", f"/items/{first.json['id']}", {"name": "coffee"})
    again = api("POST", "/items", '{"price":1.50,"name":"tea"}', idempotency_key="k 1")
    assert (again.status, again.json, again.headers) == (201, first.json, first.headers)
    assert len(api.table.items) == 2  # the item and the record of the key


def test_another_body_under_the_same_key_is_rejected(api: Api) -> None:
    api("POST", "/items", {"id": "a", "n": 1}, idempotency_key="k")
    for body in ({"id": "a", "n": 2}, {"id": "b", "n": 1}, {"n": 1}):
        assert_problem(
            api("POST", "/items", body, idempotency_key="k"),
            422,
            "another body",
            "idempotency-key-reused",
        )


def test_a_key_belongs_to_its_caller(api: Api) -> None:
    api("POST", "/items", {"n": 1}, idempotency_key="k")
    assert api("POST", "/items", {"n": 2}, caller="bob", idempotency_key="k").status == 201


def test_a_taken_id_is_409_with_a_key_too_and_the_key_stays_free(api: Api) -> None:
    api("POST", "/items", {"id": "a"})
    assert_problem(api("POST", "/items", {"id": "a"}, idempotency_key="k"), 409)
    assert api("POST", "/items", {"id": "b"}, idempotency_key="k").status == 201


def test_a_key_is_forgotten_after_its_time(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    api("POST", "/items", {"n": 1}, idempotency_key="k")
    later = time.time() + 86_401
    monkeypatch.setattr(time, "time", lambda: later)
    assert api("POST", "/items", {"n": 2}, idempotency_key="k").status == 201


@pytest.mark.parametrize("key", ["", " ", "é", "x" * 256, "a\tb"])
def test_an_unusable_key_is_400(api: Api, key: str) -> None:
    assert_problem(api("POST", "/items", {}, idempotency_key=key), 400, "Idempotency-Key")


# GET /items/{id}


def test_get_responds_with_304_for_the_version_that_the_caller_has(api: Api) -> None:
    tag = api("POST", "/items", {"id": "a"}).headers["etag"]
    whole = api("GET", "/items/a").headers  # RFC 9110, 15.4.5: what a cache renews
    for header in (tag, f'"x", {tag}', f"W/{tag}", "*"):
        response = api("GET", "/items/a", if_none_match=header)
        assert (response.status, response.headers["etag"], response.text) == (304, tag, "")
        assert response.headers["cache-control"] == whole["cache-control"]
    assert api("GET", "/items/a", if_none_match='"x"').json["id"] == "a"


def test_an_etag_is_not_reused_after_delete_and_create(api: Api) -> None:
    first = api("POST", "/items", {"id": "a"}).headers["etag"]
    api("DELETE", "/items/a")
    assert api("POST", "/items", {"id": "a"}).headers["etag"] != first


@pytest.mark.parametrize("method", ["GET", "PUT", "PATCH", "DELETE"])
def test_somebody_elses_item_is_as_missing_as_a_missing_one(api: Api, method: str) -> None:
    api("POST", "/items", {"id": "a"}, caller="bob")
    api("POST", "/items", {"id": "b"}, idempotency_key="k")
    record = next(each.split()[1] for each in api.table.items if "idempotency#" in each)
    body: Any = {} if method in ("PUT", "PATCH") else None
    responses = [api(method, f"/items/{each}", body) for each in ("a", "nothing", "%20", record)]
    for response in responses:
        assert_problem(response, 404)
    assert len({response.text for response in responses}) == 1
    assert api("GET", "/items/a", caller="bob").json["version"] == 1


# PUT, PATCH, DELETE


def test_put_replaces_all_fields_and_keeps_the_services_own(api: Api) -> None:
    first = api("POST", "/items", {"id": "a", "x": 1, "category": "c"}).json
    response = api("PUT", "/items/a", {**first, "x": None, "y": 2})
    del response.json["y"]
    assert response.json == {
        **first,
        "x": None,
        "y": 2,
        "version": 2,
        "updated_at": response.json["updated_at"],
    }
    assert "category" not in api("PUT", "/items/a", {}).json
    assert "owner_category" not in api.table.items["ann a"]


def test_put_of_another_id_is_422(api: Api) -> None:
    api("POST", "/items", {"id": "a"})
    assert_problem(api("PUT", "/items/a", {"id": "b"}), 422, "not the one in the path")


@pytest.mark.parametrize("method", ["PUT", "PATCH", "DELETE"])
def test_if_match_lets_only_the_version_through_that_the_caller_saw(api: Api, method: str) -> None:
    old = api("POST", "/items", {"id": "a"}).headers["etag"]
    new = api("PUT", "/items/a", {"n": 2}).headers["etag"]
    body: Any = None if method == "DELETE" else {"n": 3}
    for header in (old, f"W/{new}", '"x", "y"'):
        assert_problem(api(method, "/items/a", body, if_match=header), 412)
    assert api("GET", "/items/a").json["n"] == 2
    assert api(method, "/items/a", body, if_match=f'"x", {new}').status in (200, 204)


@pytest.mark.parametrize("method", ["PUT", "PATCH", "DELETE"])
def test_if_match_star_wants_any_item(api: Api, method: str) -> None:
    body: Any = None if method == "DELETE" else {}
    assert_problem(api(method, "/items/a", body, if_match="*"), 404)
    api("POST", "/items", {"id": "a"})
    assert api(method, "/items/a", body, if_match="*").status in (200, 204)


def test_patch_merges_with_either_media_type(api: Api) -> None:
    api("POST", "/items", {"id": "a", "x": {"y": 1, "z": 2}, "w": [1]})
    response = api(
        "PATCH",
        "/items/a",
        {"x": {"y": None, "v": 3}, "w": [2]},
        content_type="application/merge-patch+json",
    )
    assert {key: response.json[key] for key in "xw"} == {"x": {"z": 2, "v": 3}, "w": [2]}
    assert response.json["version"] == 2
    assert api("PATCH", "/items/a", {"category": "c"}).json["category"] == "c"
    assert api.table.items["ann a"]["owner_category"] == {"S": "ann#c"}


def test_patch_merges_into_what_a_faster_writer_left(api: Api) -> None:
    api("POST", "/items", {"id": "a", "n": 1})
    others = iter(range(3))

    def interfere(operation: str, arguments: Any) -> None:
        if operation == "UpdateItem" and (turn := next(others, None)) is not None:
            api.table.items["ann a"]["revision"] = {"S": f"other-{turn}"}
            api.table.items["ann a"]["content"]["M"][f"other{turn}"] = {"N": "1"}

    api.table.before = interfere
    response = api("PATCH", "/items/a", {"n": 2})
    assert {
        key: value for key, value in response.json.items() if key not in tap_stack.READ_ONLY_FIELDS
    } == {
        "n": 2,
        "other0": 1,
        "other1": 1,
        "other2": 1,
    }


def test_patch_gives_up_with_409_when_it_never_gets_through(api: Api) -> None:
    api("POST", "/items", {"id": "a"})
    counter = iter(range(100))

    def interfere(operation: str, arguments: Any) -> None:
        if operation == "UpdateItem":
            api.table.items["ann a"]["revision"] = {"S": f"other-{next(counter)}"}

    api.table.before = interfere
    response = api("PATCH", "/items/a", {"n": 2})
    assert_problem(response, 409)
    assert response.headers["retry-after"] == "1"
    assert api.table.calls.count("UpdateItem") == tap_stack.WRITE_ATTEMPTS


def test_patch_of_an_item_deleted_meanwhile_is_404(api: Api) -> None:
    api("POST", "/items", {"id": "a"})
    api.table.before = lambda operation, _: (
        api.table.items.pop("ann a", None) if operation == "UpdateItem" else None
    )  # type: ignore[assignment]
    assert_problem(api("PATCH", "/items/a", {"n": 2}), 404)


def test_delete_is_204_then_404(api: Api) -> None:
    api("POST", "/items", {"id": "a"})
    deleted = api("DELETE", "/items/a")
    assert (deleted.status, deleted.text) == (204, "")
    assert_problem(api("DELETE", "/items/a"), 404)


def test_a_write_whose_response_was_lost_is_not_taken_for_a_conflict(api: Api) -> None:
    api.table.lose_responses = True
    created = api("POST", "/items", {"id": "a", "n": 1})
    assert created.status == 201
    replaced = api("PUT", "/items/a", {"n": 2}, if_match=created.headers["etag"])
    assert (replaced.status, replaced.json["n"], replaced.json["version"]) == (200, 2, 2)
    patched = api("PATCH", "/items/a", {"m": 3})
    assert (patched.json["n"], patched.json["m"], patched.json["version"]) == (2, 3, 3)
    assert api("DELETE", "/items/a").status == 204


@pytest.mark.parametrize("method", ["PUT", "PATCH"])
def test_a_write_whose_response_was_lost_does_not_overwrite_what_came_after_it(
    api: Api, method: str
) -> None:
    api("POST", "/items", {"id": "a", "n": 0})

    def another_writes() -> None:
        api.table.lose_responses = False
        assert api("PATCH", "/items/a", {"n": 2}).status == 200

    api.table.lose_responses, api.table.meanwhile = True, another_writes
    response = api(method, "/items/a", {"n": 1})
    assert_problem(response, 503)
    assert response.headers["retry-after"] == "1"
    item = api("GET", "/items/a").json
    assert (item["n"], item["version"]) == (2, 3)


def test_a_creation_whose_response_was_lost_is_not_409_when_another_has_changed_its_item(
    api: Api,
) -> None:
    def another_writes() -> None:
        api.table.lose_responses = False
        assert api("PUT", "/items/a", {"n": 2}).status == 200

    api.table.lose_responses, api.table.meanwhile = True, another_writes
    response = api("POST", "/items", {"id": "a", "n": 1})
    assert_problem(response, 503)
    assert response.headers["retry-after"] == "1"
    assert api("GET", "/items/a").json["n"] == 2
    assert_problem(api("POST", "/items", {"id": "a", "n": 1}), 409, kind="id-taken")


@pytest.mark.parametrize(
    ("method", "path"), [("POST", ""), ("PUT", "/a"), ("PATCH", "/a"), ("DELETE", "/a")]
)
def test_a_write_to_an_item_that_a_transaction_has_is_503(api: Api, method: str, path: str) -> None:
    item = api("POST", "/items", {"id": "a"})

    def conflict(operation: str, _: Any) -> None:
        if operation != "GetItem":
            raise service_error("TransactionConflictException", operation)

    api.table.before = conflict
    response = api(method, f"/items{path}", None if method == "DELETE" else {"id": "a"})
    assert_problem(response, 503)
    assert response.headers["retry-after"] == "1"
    assert api("GET", "/items/a").text == item.text


def test_a_put_whose_response_was_lost_is_applied_once(api: Api) -> None:
    api("POST", "/items", {"id": "a"})
    api.table.lose_responses = True
    assert api("PUT", "/items/a", {"n": 1}).json["version"] == 2
    api.table.lose_responses = False
    assert api("GET", "/items/a").json["version"] == 2


@pytest.mark.parametrize("header", ["if_match", "if_none_match"])
@pytest.mark.parametrize(
    "value",
    ["", " ", "a", '"a', 'a"', '"a" "b"', ",", "*, *", '*, "a"', '"a b"', '"\n"', '"a",' * 101],
)
def test_a_malformed_list_of_tags_is_400_everywhere(api: Api, header: str, value: str) -> None:
    api("POST", "/items", {"id": "a"})
    for route in tap_stack.all_routes():
        method, path = route.split()
        body: Any = {} if method in ("POST", "PUT", "PATCH") else None
        for item_id in ("a", "nothing"):
            response = api(method, path.format(id=item_id), body, **{header: value})
            assert_problem(response, 400, header.replace("_", "-").title())


@pytest.mark.parametrize("value", ['"a",{}', ",,{}", 'W/"a" ,\t{} , ,', '{},"a"' + ',"a"' * 98])
def test_a_list_of_tags_may_have_empty_elements(api: Api, value: str) -> None:
    tag = api("POST", "/items", {"id": "a"}).headers["etag"]
    assert api("GET", "/items/a", if_none_match=value.format(tag)).status == 304
    assert api("DELETE", "/items/a", if_match=value.format(tag)).status == 204


def test_a_list_of_tags_takes_linear_time() -> None:
    steps = [re.fullmatch(tap_stack.ETAGS, text) for text in ("," * 99_999, '"a" ,' * 50_000 + "b")]
    assert steps == [None, None]


def test_a_read_honours_if_match(api: Api) -> None:
    tag = api("POST", "/items", {"id": "a"}).headers["etag"]
    assert api("GET", "/items/a", if_match=tag).status == 200
    assert api("GET", "/items/a", if_match=f'"x", {tag}').status == 200
    assert api("GET", "/items/a", if_match="*").status == 200
    for other in ('"x"', f"W/{tag}"):
        assert_problem(api("GET", "/items/a", if_match=other), 412)


@pytest.mark.parametrize("method", ["PUT", "PATCH", "DELETE"])
def test_if_none_match_holds_back_a_write_to_what_exists(api: Api, method: str) -> None:
    tag = api("POST", "/items", {"id": "a"}).headers["etag"]
    body: Any = None if method == "DELETE" else {}
    for value in ("*", tag, f"W/{tag}"):
        assert_problem(api(method, "/items/a", body, if_none_match=value), 412)
        assert_problem(api(method, "/items/b", body, if_none_match=value), 404)
    assert_problem(api(method, "/items/a", body, if_none_match='"x"', if_match='"y"'), 412)
    assert api(method, "/items/a", body, if_none_match='"x"', if_match=tag).status in (200, 204)


def test_if_match_goes_before_if_none_match(api: Api) -> None:
    tag = api("POST", "/items", {"id": "a"}).headers["etag"]
    assert_problem(api("GET", "/items/a", if_match='"x"', if_none_match=tag), 412)
    assert api("GET", "/items/a", if_match=tag, if_none_match=tag).status == 304
