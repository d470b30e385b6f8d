"""The canary's function, against a server that says what it is told to."""

from __future__ import annotations

import functools
import json
import time
from collections.abc import Callable
from typing import Any
from urllib.parse import parse_qs

import pytest

import tap_stack
from tests.fakes import FakeContext
from tests.unit.conftest import Api
from tests.unit.test_transport import (
    Script,
    respond,
    serve,  # noqa: F401
)

Serve = Callable[..., tuple[str, Script]]
SECRETS = {"UserPoolClient": {"ClientId": "id", "ClientSecret": "secret"}}
TOKEN = respond(200, {"access_token": "token"})


class Pool:
    """Cognito with one app client; counts how often its secret is read."""

    reads = 0

    def describe_user_pool_client(self, **_: str) -> dict[str, Any]:
        self.reads += 1
        return SECRETS


@pytest.fixture
def pool(monkeypatch: pytest.MonkeyPatch) -> Pool:
    made = Pool()
    monkeypatch.setattr(tap_stack, "client", lambda _: made)
    variables = {"USER_POOL_ID": "p", "CLIENT_ID": "id", "METRICS_NAMESPACE": "n"}
    for name, value in {**variables, "ENVIRONMENT": "dev"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("AWS_ENDPOINT_URL", raising=False)
    tap_stack.walker_token.cache_clear()
    return made


@pytest.fixture
def signed_in(pool: Pool, serve: Serve, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Script]:  # noqa: F811
    def start(*steps: Any) -> Script:
        url, script = serve(list(steps))
        monkeypatch.setenv("SIGN_IN_URL", url)
        return script

    return start


def test_the_token_is_that_of_the_machine_and_kept_for_an_hour(
    pool: Pool, signed_in: Callable[..., Script]
) -> None:
    script = signed_in(TOKEN)
    assert [tap_stack.walker_token(each) for each in (1, 1, 2)] == ["token"] * 3
    assert (pool.reads, len(script.requests)) == (2, 2)
    headers, body = script.requests[0]
    assert headers["content-type"] == "application/x-www-form-urlencoded"
    assert parse_qs(body.decode()) == {
        "client_id": ["id"],
        "client_secret": ["secret"],
        "grant_type": ["client_credentials"],
    }


def test_a_walk_without_a_token_is_red_names_no_secret_and_asks_again(
    pool: Pool,
    signed_in: Callable[..., Script],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    signed_in(respond(400, {"error": "invalid_client"}))
    monkeypatch.setenv("API_URL", "http://127.0.0.1:1")
    for _ in range(2):
        tap_stack.walk_api({}, FakeContext(90))
    printed = capsys.readouterr().out
    error, metric, *_ = map(json.loads, printed.splitlines())
    assert "POST /oauth2/token: 400" in error["message"] and error["level"] == "ERROR"
    assert metric["WalksPassed"] == 0
    assert "secret" not in printed
    assert pool.reads == 2


class Front:
    """The API as `fetch` sees it; what it responds to a numbered request may be changed."""

    def __init__(self, api: Api):
        self.api, self.requests, self.wrong = api, list[str](), dict[int, Any]()

    def __call__(self, method: str, url: str, body: Any = None, headers: Any = None) -> Any:
        path = url.removeprefix("https://api.example")
        assert headers["authorization"] == "Bearer token"
        found = self.api.raw(method, path, "", body, headers, "walker")
        self.requests.append(f"{method} {path}")
        status, shown = found.status, found.json if found.text else {}
        status, shown = self.wrong.get(len(self.requests), lambda *x: x)(status, shown)
        return status, found.headers, shown


@pytest.fixture
def front(api: Api, pool: Pool, monkeypatch: pytest.MonkeyPatch) -> Front:
    made = Front(api)
    monkeypatch.setenv("API_URL", "https://api.example")
    monkeypatch.setattr(tap_stack, "walker_token", functools.lru_cache(lambda _: "token"))
    monkeypatch.setattr(tap_stack, "fetch", made)
    return made


def walked(capsys: pytest.CaptureFixture[str]) -> tuple[int, list[str]]:
    """What a walk counts, and the failures that it tells."""
    capsys.readouterr()
    tap_stack.walk_api({}, FakeContext(90))
    lines = map(json.loads, capsys.readouterr().out.splitlines())
    *steps, metric = (each for each in lines if "route" not in each)  # the API's own
    return metric["WalksPassed"], [each["message"] for each in steps]


def left(api: Api) -> list[str]:
    """The ids of the items that are there; what remembers a request expires."""
    return [x["id"]["S"] for x in api.table.items.values() if "content" in x]


def test_a_walk_through_a_sound_api_passes_and_leaves_nothing(
    front: Front, api: Api, capsys: pytest.CaptureFixture[str]
) -> None:
    assert walked(capsys) == (1, [])
    assert len(front.requests) == 1 + len(tap_stack.WALK)
    assert left(api) == []


def status(to: int) -> Callable[..., Any]:
    return lambda _, shown: (to, shown)


@pytest.mark.parametrize("step", range(len(tap_stack.WALK)))
def test_each_step_that_goes_wrong_is_seen_and_told(
    front: Front, capsys: pytest.CaptureFixture[str], step: int
) -> None:
    front.wrong[2 + step] = status(500)
    passed, told = walked(capsys)
    assert (passed, len(told)) == (0, 1)
    request, expected, *_ = tap_stack.WALK[step]
    assert told[0].startswith(f"{request}: 500") and f", not {expected.split()[0]}" in told[0]


def test_another_item_than_the_own_is_seen(
    front: Front, capsys: pytest.CaptureFixture[str]
) -> None:
    for step, change in ((3, {"id": "another"}), (4, {"name": "x"})):  # a repetition, a reading
        front.wrong = {step: lambda s, shown, change=change: (s, {**shown, **change})}
        front.requests.clear()
        passed, (told,) = walked(capsys)
        assert passed == 0 and next(iter(change.values())) in told


def test_without_an_item_the_walk_ends(front: Front, capsys: pytest.CaptureFixture[str]) -> None:
    front.wrong[2] = lambda *_: (503, {"title": "Service Unavailable"})
    assert walked(capsys) == (0, ["POST /items: 503 Service Unavailable, not 201 walk"])
    assert len(front.requests) == 2


def test_what_walks_left_that_are_over_is_deleted_and_nothing_younger(
    front: Front, api: Api, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, age in (("old", tap_stack.WALK_SECONDS + 5), ("young", 5)):
        api("POST", "/items", {"id": name}, "walker")
        created = tap_stack.second(int(time.time()) - age)
        api.table.items[f"walker {name}"]["created_at"] = {"S": created}
    assert walked(capsys) == (1, [])
    assert front.requests[1] == "DELETE /items/old"
    assert left(api) == ["young"]


def test_a_token_that_may_be_the_reason_is_not_kept(
    pool: Pool, signed_in: Callable[..., Script], monkeypatch: pytest.MonkeyPatch
) -> None:
    signed_in(TOKEN)
    monkeypatch.setenv("API_URL", "http://127.0.0.1:1")  # where nobody responds
    for _ in range(2):
        tap_stack.walk_api({}, FakeContext(90))
    assert pool.reads == 2
