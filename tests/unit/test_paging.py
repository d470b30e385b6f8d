"""Paging: complete and ordered lists, tokens that nobody can forge, keys that rotate."""

from __future__ import annotations

import base64
import datetime as dt
import json
import re
import time
from datetime import UTC, date, datetime, timedelta, timezone
from typing import Any
from urllib.parse import parse_qsl, urlencode, urlsplit

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import tap_stack
from tap_stack import connection_error, file_id, paging_keys, sign_page_token, verify_page_token
from tests.fakes import FakeContext, service_error
from tests.unit.conftest import ENVIRONMENT, KEY, NEVER, Api, Response, assert_problem
from tests.unit.test_files import upload

fixture_is_fine = settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=50
)


def pages(api: Api, query: str = "", caller: str = "ann") -> list[list[str]]:
    """The ids on each page of a list, to its end, by the links of its pages."""
    found, path = [], f"/items?{query}"
    while path:
        response = api("GET", path, caller=caller)
        assert response.status == 200, response.text
        found.append([item["id"] for item in response.json["items"]])
        path = next_path(response)
    return found


def next_path(response: Response) -> str:
    """The path and query in the Link of a page, which has the token of its body; "" on the last."""
    if "next" not in response.json:
        assert "link" not in response.headers
        return ""
    (path,) = re.findall('^<([!#-;=?-~]+)>; rel="next"$', response.headers["link"])
    assert dict(parse_qsl(urlsplit(path).query))["next"] == response.json["next"]
    return str(path)


def item_at(api: Api, created: str, caller: str = "ann", **fields: Any) -> str:
    """The id of a new item that was created at a time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tap_stack, "now", lambda: created)
        return str(api("POST", "/items", fields, caller=caller).json["id"])


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


times = st.datetimes(datetime(2026, 11, 28), datetime(2026, 12, 2)).map(
    lambda at: at.replace(microsecond=at.microsecond // 250_000 * 250_000, second=0, minute=0)
)
zones = st.integers(-14 * 60, 14 * 60).map(lambda minutes: timezone(timedelta(minutes=minutes)))
bounds = st.none() | times.map(datetime.date) | st.builds(datetime.astimezone, times, zones)


def stored(at: datetime) -> str:
    return at.isoformat(timespec="microseconds") + "Z"


@fixture_is_fine
@given(
    created=st.lists(st.tuples(times, st.booleans(), st.booleans()), max_size=12),
    first=bounds,
    last=bounds,
    order=st.sampled_from(["asc", "desc"]),
    category=st.sampled_from(["", 'x" &=+/é']),
)
def test_a_range_holds_what_was_created_in_it_both_ends_included(
    api: Api, created: list[Any], first: Any, last: Any, order: str, category: str
) -> None:
    def moment(bound: Any, default: datetime, of_day: dt.time) -> datetime:
        if isinstance(bound, datetime):
            return bound.astimezone(UTC).replace(tzinfo=None)
        return datetime.combine(bound, of_day) if bound else default

    low = moment(first, datetime.min, dt.time.min)
    high = moment(last, datetime.max, dt.time.max)
    api.table.items.clear()
    expected = []
    for at, mine, categorised in sorted(created):
        fields = {"category": category} if categorised and category else {}
        new = item_at(api, stored(at), "ann" if mine else "bob", **fields)
        if mine and low <= at <= high and (categorised or not category):
            expected.append((stored(at), new))
    query = {"from": first, "to": last, "category": category, "order": order, "limit": 2}
    given_ones = {
        k: v.isoformat() if isinstance(v, date) else v
        for k, v in query.items()
        if v not in (None, "")
    }
    api.table.calls.clear()
    if low > high:
        assert_problem(api("GET", f"/items?{urlencode(given_ones)}"), 400, "from is later than to.")
        return
    found = pages(api, urlencode(given_ones))
    expected.sort(reverse=order == "desc")
    assert [each for page in found for each in page] == [each for _, each in expected]
    assert api.table.calls == ["Query"] * len(found)  # it reads nothing that it does not show
    assert len(found) == max(1, -(-len(expected) // 2))


@pytest.mark.parametrize(
    "query",
    [
        "from=2026-02-30",
        "to=2026-11-30T24:00:00Z",
        "to=2026-11-30T08:00:00",
        "from=2026-11-30 08:00:00Z",
        "from=0001-01-01T00:00:00%2B14:00",
        "to=9999-12-31T23:59:59-14:00",
        "from=20261130",
        "to=\u0662026-11-30",
        "from=",
    ],
)
def test_what_is_no_time_is_400(api: Api, query: str) -> None:
    assert_problem(api("GET", f"/items?{query}"), 400, "is a day or a time such as 2026-11-30")


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


texts = st.text(st.characters(exclude_categories=["Cs"]))
scopes = st.lists(st.none() | texts, max_size=3).map(tuple)


@fixture_is_fine
@given(
    created=texts.filter(lambda text: "\n" not in text),
    item=texts,
    scope=scopes,
    other=scopes,
)
def test_a_token_opens_only_in_its_scope(
    api: Api, created: str, item: str, scope: tap_stack.Scope, other: tap_stack.Scope
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


LISTS = (
    "/items",
    "/items?order=asc",
    "/items?category=x",
    "/items?category=x&order=asc",
    "/items?category=",
    "/items?from=2026-11-20",
    "/items?to=2026-11-30",
    "/items?from=2026-11-20&to=2026-11-30",
    "/items?from=2026-11-20&to=2026-11-30&category=x",
    "/files",
    "/files?order=asc",
    "/files?folder=x",
    "/files?folder=",
    "/files?content_type=text/plain",
    "/files?below=x",
    "/files?from=2026-11-21&to=2026-11-21",
    "/files?folder=x&from=2026-11-21",
    "/files/{x}",
    "/files/{x}?order=asc",
    "/files/{root}",
    "/files/totals?from=2026-11-20&to=2026-11-30",
    "/files/totals?from=2026-11-21&to=2026-11-30",
    "/files/totals?from=2026-11-21&to=2026-11-30&order=asc",
)


def test_a_token_opens_the_list_that_it_is_of_and_is_400_in_every_other(api: Api) -> None:
    lists = []
    for caller in ("ann", "bob"):
        for category in ("x", "x", "", ""):
            item_at(api, "2026-11-25T10:00:00.000000Z", caller, category=category)
        for name in ("x/1", "x/2", "1", "2"):
            upload(api, f"{caller}/{name}", b"%PDF-")
            upload(api, f"{caller}/{name}")
        x, root = (file_id(f"{caller}/{each}") for each in ("x/1", "1"))
        paths = [each.replace("{x}", x).replace("{root}", root) for each in LISTS]
        lists += [(caller, path) for path in paths]
    tokens = {}
    for caller, path in lists:
        response = api("GET", f"{path}{'&' if '?' in path else '?'}limit=1", caller=caller)
        tokens[caller, path] = response.json["next"]
    assert len(set(tokens.values())) == len(lists)
    for source, token in tokens.items():
        for target in lists:
            caller, path = target
            response = api("GET", f"{path}{'&' if '?' in path else '?'}next={token}", caller=caller)
            assert response.status == (200 if source == target else 400), (source, target)


def test_a_page_links_to_the_next_with_the_callers_parameters(api: Api) -> None:
    for n in range(3):
        item_at(api, f"2026-11-0{n + 1}T00:00:00.000000Z", category='<a>; b="c"&d+é')
    category = "%3Ca%3E%3B%20b%3D%22c%22%26d%2B%C3%A9"
    response = api("GET", f"/items?limit=2&order=asc&from=2026-11-01&category={category}")
    given_ones, _, token = next_path(response).rpartition("&next=")
    assert given_ones == f"/items?limit=2&order=asc&from=2026-11-01&category={category}"
    assert token == response.json["next"]


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


def test_a_rotation_whose_response_is_lost_drops_no_key_in_use(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    put, lost = api.ssm.put_parameter, iter([True, True])

    def put_and_be_lost(**arguments: Any) -> None:
        put(**arguments)
        if next(lost, False):
            raise connection_error("PutParameter", "it is lost", 0)

    monkeypatch.setattr(api.ssm, "put_parameter", put_and_be_lost)
    monkeypatch.setattr(time, "sleep", lambda _: None)
    tap_stack.rotate_paging_key({}, FakeContext(90))
    new, *before = api.ssm.parameters["paging"].split(",")
    assert before == [KEY] and new != KEY and len(api.ssm.key_ids) == 3


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
