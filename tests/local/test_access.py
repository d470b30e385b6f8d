"""Who gets in: only tokens of the pool's own clients with the scope of the route."""

from __future__ import annotations

import base64
import json

import pytest

from taplocal import access
from taplocal.session import Session
from tests.local.conftest import caller


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
            assert access.call(deployed, "GET", path, token).status == 401
    assert access.call(deployed, "GET", "/items", good).status == 200


@pytest.mark.parametrize(
    ("scope", "method", "path", "status"),
    [
        ("items/read", "GET", "/items", 200),
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
    assert call(method, path, None if method in ("GET", "DELETE") else "{}").status == status


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
