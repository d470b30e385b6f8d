"""The canary's function, against a server that says what it is told to."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any
from urllib.parse import parse_qs

import pytest

import tap_stack
from tests.fakes import FakeContext
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


def test_a_token_that_may_be_the_reason_is_not_kept(
    pool: Pool, signed_in: Callable[..., Script], monkeypatch: pytest.MonkeyPatch
) -> None:
    signed_in(TOKEN)
    monkeypatch.setenv("API_URL", "http://127.0.0.1:1")  # where nobody responds
    for _ in range(2):
        tap_stack.walk_api({}, FakeContext(90))
    assert pool.reads == 2
