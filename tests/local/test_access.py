"""Who gets in: only tokens of the pool's own clients with the scope of the route."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from taplocal import access, session
from taplocal.errors import TapLocalError
from taplocal.session import Session
from tests.local.conftest import ROOT, caller


def encoded(part: object) -> str:
    return base64.urlsafe_b64encode(json.dumps(part).encode()).decode().rstrip("=")


def decoded(token: str, part: int) -> dict[str, object]:
    text = token.split(".")[part]
    return dict(json.loads(base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))))


def test_without_a_good_token_nobody_gets_in(deployed: Session) -> None:
    good = access.machine_token(deployed)
    header, claims, signature = good.split(".")
    changed = {**decoded(good, 1), "sub": "somebody-else"}
    for token in (
        "",
        "garbage",
        f"{encoded({'alg': 'none'})}.{claims}.",
        f"{header}.{encoded(changed)}.{signature}",
        f"{header}.{claims}.{signature[:-8]}AAAAAAAA",
    ):
        for path in ("/items", "/nothing"):
            refused = access.call(deployed, "GET", path, token)
            assert refused.status == 401
            assert refused.headers["www-authenticate"].startswith("Bearer")
            assert ("invalid_token" in refused.headers["www-authenticate"]) == bool(token)
    assert access.call(deployed, "GET", "/items", good).status == 200


@pytest.mark.parametrize("path", ["/health", "/openapi.yaml"])
def test_without_a_token_two_paths_respond(deployed: Session, path: str) -> None:
    url = deployed.outputs["api_url"] + path
    get, head = access.request("GET", url), access.request("HEAD", url)
    assert (get.status, head.status, head.body) == (200, 200, "")
    own = ("date", "apigw-requestid")  # of each response
    sent = {name: value for name, value in head.headers.items() if name not in own}
    assert sent.items() <= get.headers.items()
    tags = {"if-none-match": get.headers.get("etag", '"none"')}
    assert access.request("GET", url, headers=tags).status == (304 if "etag" in sent else 200)


@pytest.mark.parametrize(
    ("scope", "method", "path", "status"),
    [
        ("items/read", "GET", "/items", 200),
        ("items/read", "HEAD", "/items", 200),
        ("items/write", "HEAD", "/items/none", 403),
        ("items/read", "GET", "/items/none", 404),
        ("items/read", "POST", "/items", 403),
        ("items/read", "PUT", "/items/none", 403),
        ("items/read", "PATCH", "/items/none", 403),
        ("items/read", "DELETE", "/items/none", 403),
        ("items/write", "GET", "/items", 403),
        ("items/write", "GET", "/items/none", 403),
        ("items/write", "POST", "/items", 201),
        ("items/write", "DELETE", "/items/none", 404),
    ],
)
def test_a_token_opens_what_its_scope_says(
    deployed: Session, scope: str, method: str, path: str, status: int
) -> None:
    call = caller(deployed, access.machine_token(deployed, scope))
    assert call(method, path, "{}" if method in ("POST", "PUT", "PATCH") else None).status == status


def test_an_id_token_is_no_access_token(deployed: Session) -> None:
    """It proves who somebody is to the app; it has no scopes, so every route refuses it."""
    cognito, outputs = deployed.cloud.client("cognito-idp"), deployed.outputs
    client = cognito.create_user_pool_client(
        UserPoolId=outputs["user_pool_id"],
        ClientName="password",
        ExplicitAuthFlows=["ALLOW_USER_PASSWORD_AUTH"],
    )["UserPoolClient"]["ClientId"]
    access.person_token(deployed, "eve@example.com")
    password = {
        "Password": "Aa1!aaaaaaaaaaaaaa",
        "UserPoolId": outputs["user_pool_id"],
        "Username": "eve@example.com",
    }
    cognito.admin_set_user_password(**password, Permanent=True)
    tokens = cognito.initiate_auth(
        ClientId=client,
        AuthFlow="USER_PASSWORD_AUTH",
        AuthParameters={"USERNAME": "eve@example.com", "PASSWORD": password["Password"]},
    )["AuthenticationResult"]
    for token in (
        tokens["IdToken"],
        tokens["AccessToken"],
    ):  # of a client that the API does not know
        assert access.call(deployed, "GET", "/items", token).status in (401, 403)
    cognito.delete_user_pool_client(UserPoolId=outputs["user_pool_id"], ClientId=client)


@pytest.fixture(scope="module")
def machines(
    deployed: Session, data: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Session]:
    """A stack with two machines, beside that of the other tests."""
    folder = tmp_path_factory.mktemp("machines")
    config = {
        "systems": "api",
        "machine_clients": '{"one": ["*"], "two": ["items/read"]}',
        "api_domain_name": "api.tap.dev",
        "hosted_zone_id": "Z0123456789ABC",
    }
    quiet: dict[str, Any] = {"say": lambda _: None, "report": lambda _: None}
    at = str(data)
    try:
        yield session.up(ROOT, "dev-two", folder=folder, emulator=at, config=config, **quiet)[0]
    finally:
        session.down(ROOT, None, folder=folder, report=quiet["report"])


def test_each_machine_has_its_own_scopes_and_data(machines: Session) -> None:
    one, two = (caller(machines, access.machine_token(machines, "", x)) for x in ("one", "two"))
    path = one("POST", "/items", "{}").headers["location"]
    assert one("GET", path).status == 200
    assert two("GET", path).status == 404, "of another machine"
    assert two("GET", "/items").json()["items"] == []
    assert two("POST", "/items", "{}").status == 403


def test_an_api_with_its_own_domain_name_is_called_on_this_machine(machines: Session) -> None:
    assert machines.outputs["api_url"] == "https://api.tap.dev"
    url = str(machines.state.api_url)
    assert url.startswith(machines.cloud.emulator.url)
    assert access.request("GET", f"{url}/items").status == 401


def test_a_machine_gets_no_scope_that_it_may_not_have(machines: Session) -> None:
    with pytest.raises(TapLocalError, match="no token was issued"):
        access.machine_token(machines, "items/write", "two")


def test_one_of_several_machines_is_named(machines: Session) -> None:
    with pytest.raises(TapLocalError, match="has 2 machine clients: use --client with one of one,"):
        access.machine_token(machines)
    with pytest.raises(TapLocalError, match="has no machine client three: use --client with one"):
        access.machine_token(machines, "", "three")


def test_people_sign_in_with_pkce_and_own_their_items(deployed: Session) -> None:
    token = access.person_token(deployed, "carol@example.com")
    claims = decoded(token, 1)
    assert claims["token_use"] == "access"
    assert {"items/read", "items/write"} <= set(str(claims["scope"]).split())
    made = access.call(deployed, "POST", "/items", token, "{}").json()["id"]
    again = access.person_token(deployed, "carol@example.com")
    assert access.call(deployed, "GET", f"/items/{made}", again).status == 200


def test_a_browser_on_a_configured_origin_may_ask_first(deployed: Session) -> None:
    url = f"{deployed.outputs['api_url']}/items"
    preflight = {"origin": "http://localhost:3000", "access-control-request-method": "POST"}
    response = access.request("OPTIONS", url, headers=preflight)
    assert response.status in (200, 204)
    assert response.headers["access-control-allow-origin"] == "http://localhost:3000"
    foreign = access.request(
        "OPTIONS", url, headers={**preflight, "origin": "https://evil.example"}
    )
    assert "access-control-allow-origin" not in foreign.headers
