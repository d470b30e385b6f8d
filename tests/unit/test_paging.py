"""Paging: complete and ordered lists, tokens that nobody can forge, keys that rotate."""

from __future__ import annotations

import base64
import json
import time
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import tap_stack
from tap_stack import paging_keys, sign_page_token, verify_page_token
from tests.fakes import FakeContext, service_error
from tests.unit.conftest import ENVIRONMENT, KEY, NEVER, Api, assert_problem

fixture_is_fine = settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=50
)


def pages(api: Api, query: str = "", caller: str = "ann") -> list[list[str]]:
    """The ids on each page of a list, to its end."""
    found, token = [], ""
    while True:
        response = api("GET", f"/items?{query}{token}", caller=caller)
        assert response.status == 200, response.text
        found.append([item["id"] for item in response.json["items"]])
        if "next" not in response.json:
            return found
        token = f"&next={response.json['next']}"


@fixture_is_fine
@given(count=st.integers(0, 12), limit=st.integers(1, 6), order=st.sampled_from(["asc", "desc"]))
def test_pages_hold_every_item_once_in_order_and_the_last_has_no_next(
    api: Api, count: int, limit: int, order: str
) -> None:
    api.table.items.clear()
    ids = [api("POST", "/items", {"id": f"i{n}"}).json["id"] for n in range(count)]
    found = pages(api, f"limit={limit}&order={order}")
    assert [each for page in found for each in page] == (ids if order == "asc" else ids[::-1])
    assert len(found) == max(1, -(-count // limit))


def test_newest_come_first_by_default(api: Api) -> None:
    for n in range(3):
        api("POST", "/items", {"id": f"i{n}"})
    assert pages(api) == [["i2", "i1", "i0"]]


def test_a_list_holds_only_the_callers_items_of_the_category(api: Api) -> None:
    api("POST", "/items", {"id": "a", "category": "x"})
    api("POST", "/items", {"id": "b", "category": "y"})
    api("POST", "/items", {"id": "c", "category": "x"}, caller="bob")
    api("POST", "/items", {"id": "d"}, idempotency_key="k")
    api("POST", "/items", {"id": "e", "category": 5})
    assert pages(api, "category=x") == [["a"]]
    assert pages(api, "category=y") == [["b"]]
    assert pages(api, "category=z") == [[]]
    assert pages(api) == [["e", "d", "b", "a"]]
    assert pages(api, caller="bob") == [["c"]]
    assert "Scan" not in api.table.calls


@pytest.mark.parametrize(
    "query",
    [
        "limit=0",
        "limit=101",
        "limit=x",
        "limit=1.0",
        "limit=",
        "order=up",
        "x=1",
        f"category={'x' * 1025}",
    ],
)
def test_a_wrong_parameter_is_400(api: Api, query: str) -> None:
    assert api("GET", f"/items?{query}").status == 400


def test_a_page_is_cut_before_it_grows_too_large(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tap_stack, "PAGE_LIMIT", 500)
    for n in range(6):
        api("POST", "/items", {"id": f"i{n}", "text": "x" * 200})
    assert pages(api, "order=asc") == [["i0", "i1"], ["i2", "i3"], ["i4", "i5"]]


scopes = st.lists(st.text(st.characters(exclude_categories=["Cs"])), max_size=3).map(tuple)


@fixture_is_fine
@given(
    created=st.text(st.characters(exclude_categories=["Cs"])),
    item=st.text(st.characters(exclude_categories=["Cs"])),
    scope=scopes,
    other=scopes,
)
def test_a_token_opens_only_in_its_scope(
    api: Api, created: str, item: str, scope: tuple[str, ...], other: tuple[str, ...]
) -> None:
    token = sign_page_token(created, item, scope)
    assert verify_page_token(token, scope) == (created, item)
    if other != scope:
        with pytest.raises(tap_stack.Problem):
            verify_page_token(token, other)


def test_no_text_in_a_filter_moves_the_boundary(api: Api) -> None:
    def mac(*texts: str) -> bytes:
        return tap_stack.page_mac(b"key", "position", "id", texts)

    assert mac("items", "a\nb", "c") != mac("items", "a", "b\nc")
    assert mac("items", 'a", "b') != mac("items", "a", "b")


def test_a_token_of_one_list_is_400_in_any_other(api: Api) -> None:
    for n in range(3):
        api("POST", "/items", {"id": f"i{n}"})
    token = api("GET", "/items?limit=1").json["next"]
    for path in ("/files", "/files/totals", "/items?category=x", "/items?order=asc"):
        response = api("GET", f"{path}{'&' if '?' in path else '?'}next={token}")
        assert_problem(response, 400)


def test_a_token_is_bound_to_caller_category_and_order(api: Api) -> None:
    for n in range(3):
        api("POST", "/items", {"id": f"i{n}", "category": "x"})
    token = api("GET", "/items?category=x&limit=1").json["next"]
    assert api("GET", f"/items?category=x&next={token}&limit=2").status == 200
    for query, caller in (
        ("category=x", "bob"),
        ("category=y", "ann"),
        ("order=asc&category=x", "ann"),
        ("", "ann"),
    ):
        assert (
            api("GET", f"/items?{query}&next={token}".replace("?&", "?"), caller=caller).status
            == 400
        )


@fixture_is_fine
@given(st.binary(max_size=100), st.integers(0, 60), st.integers(1, 255))
def test_no_forged_or_changed_token_opens(api: Api, noise: bytes, byte: int, flip: int) -> None:
    raw = bytearray(
        base64.urlsafe_b64decode(sign_page_token("2026-01-01T00:00:00.000000Z", "a", ("s",)) + "==")
    )
    raw[byte % len(raw)] ^= flip
    for forged in (bytes(raw), noise):
        with pytest.raises(tap_stack.Problem) as caught:
            verify_page_token(base64.urlsafe_b64encode(forged).decode().rstrip("="), ("s",))
        assert caught.value.status == 400


@pytest.mark.parametrize("token", ["", "x", "é", "a b", "====", "A" * 5000])
def test_what_is_no_token_is_400(api: Api, token: str) -> None:
    assert api("GET", f"/items?next={token}").status == 400


# Keys


def test_keys_are_read_once_and_again_after_their_time(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    for _ in range(3):
        assert paging_keys(tap_stack.PAGING_KEY_SECONDS) == [bytes.fromhex(KEY)]
    assert api.ssm.calls == 1
    clock[0] += tap_stack.PAGING_KEY_SECONDS
    paging_keys(tap_stack.PAGING_KEY_SECONDS)
    assert api.ssm.calls == 2


def test_stale_keys_serve_while_ssm_is_away_and_then_no_more(
    api: Api, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    paging_keys(tap_stack.PAGING_KEY_SECONDS)
    api.ssm.fail = True
    clock[0] += tap_stack.PAGING_KEY_STALE_SECONDS - 1
    assert paging_keys(tap_stack.PAGING_KEY_SECONDS) == [bytes.fromhex(KEY)]
    calls = api.ssm.calls
    assert paging_keys(tap_stack.PAGING_KEY_SECONDS) == [bytes.fromhex(KEY)]
    assert api.ssm.calls == calls  # the outage does not slow every list
    clock[0] += 1
    api("POST", "/items", {})
    api("POST", "/items", {})
    capsys.readouterr()
    assert api("GET", "/items?limit=1").status == 503
    assert "ThrottlingException" in json.loads(capsys.readouterr().out)["error"]
    assert api("GET", "/items").status == 200  # a list of one page needs no key


@pytest.mark.parametrize("value", ["unset", "no hex"])
def test_without_a_key_a_list_is_503_and_not_unsigned(api: Api, value: str) -> None:
    api.ssm.parameters["paging"] = value
    api("POST", "/items", {})
    api("POST", "/items", {})
    assert api("GET", "/items?limit=1").status == 503
    api.ssm.parameters["paging"] = KEY
    assert api("GET", "/items?limit=1").status == 200


def test_rotation_keeps_the_tokens_of_the_last_key_and_drops_older_ones(api: Api) -> None:
    def rotate() -> None:
        tap_stack.rotate_paging_key({}, FakeContext())
        tap_stack._paging.update(read=NEVER, tried=NEVER)

    token = sign_page_token("t", "a", ("s",))
    rotate()
    assert verify_page_token(token, ("s",)) == ("t", "a")
    assert sign_page_token("t", "a", ("s",)) != token
    rotate()
    with pytest.raises(tap_stack.Problem):
        verify_page_token(token, ("s",))


def test_a_token_of_a_key_that_another_container_has_first_makes_this_one_look(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    mine = sign_page_token("t", "a", ("s",))
    tap_stack.rotate_paging_key({}, FakeContext())
    newest = bytes.fromhex(api.ssm.parameters["paging"].split(",")[0])
    monkeypatch.setitem(tap_stack._paging, "keys", [newest])
    theirs = sign_page_token("t", "a", ("s",))
    monkeypatch.setitem(tap_stack._paging, "keys", [bytes.fromhex(KEY)])
    clock[0] += tap_stack.PAGING_KEY_MIN_SECONDS
    assert verify_page_token(theirs, ("s",)) == ("t", "a")
    assert verify_page_token(mine, ("s",)) == ("t", "a")


def test_the_first_rotation_replaces_the_placeholder(api: Api) -> None:
    api.ssm.parameters["paging"] = "unset"
    tap_stack.rotate_paging_key({}, FakeContext())
    assert len(bytes.fromhex(api.ssm.parameters["paging"])) == 32
    assert api.ssm.key_ids == [ENVIRONMENT["KEY_ARN"]]


def test_rotation_waits_for_its_policy_and_fails_aloud_in_the_end(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    denials = [2]

    def deny(**arguments: Any) -> Any:
        if denials[0] > 0:
            denials[0] -= 1
            raise service_error("AccessDeniedException", "GetParameter")
        return {"Parameter": {"Value": "unset"}}

    monkeypatch.setattr(api.ssm, "get_parameter", deny)
    tap_stack.rotate_paging_key({}, FakeContext())
    assert api.ssm.parameters["paging"] != KEY
    denials[0] = 100
    with pytest.raises(Exception, match="AccessDenied"):
        tap_stack.rotate_paging_key({}, FakeContext(90))
    assert denials[0] == 100 - tap_stack.ROTATION_ATTEMPTS


def test_rotation_fails_before_lambda_ends_it(
    api: Api, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    slept: list[float] = []
    monkeypatch.setattr(time, "sleep", slept.append)
    api.ssm.fail = True
    with pytest.raises(Exception, match="Throttling"):
        tap_stack.rotate_paging_key({}, FakeContext(tap_stack.RESERVE_SECONDS + 1.5))
    assert slept == [1]  # two seconds more there were not
    assert capsys.readouterr().out.count("ThrottlingException") == 2


def test_a_key_that_may_not_be_read_is_500(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    def deny(**arguments: Any) -> Any:
        raise service_error("AccessDeniedException", "GetParameter")

    monkeypatch.setattr(api.ssm, "get_parameter", deny)
    for _ in range(2):
        api("POST", "/items", {})
    assert_problem(api("GET", "/items?limit=1"), 500)
