"""Signs people and machines in to the deployed stack, and calls its API."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import secrets
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from taplocal.errors import TapLocalError
from taplocal.session import Session

CALL_SECONDS = 60


@dataclass(frozen=True)
class Response:
    """An HTTP answer; header names are lower-case."""

    status: int
    headers: dict[str, str]
    body: str

    def json(self) -> Any:
        """The body as JSON."""
        return json.loads(self.body)


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: Any) -> None:
        return None


# Without proxies: everything that is called is on this machine.
_opener = urllib.request.build_opener(urllib.request.ProxyHandler({}), _NoRedirect)


def request(
    method: str, url: str, body: bytes | None = None, headers: Mapping[str, str] | None = None
) -> Response:
    """One HTTP request, redirects and error statuses returned as they are."""
    call = urllib.request.Request(url, data=body, method=method, headers=dict(headers or {}))
    try:
        response = _opener.open(call, timeout=CALL_SECONDS)
    except urllib.error.HTTPError as error:
        response = error
    except OSError as error:
        raise TapLocalError(f"{method} {url} failed: {error}") from None
    with response:
        text = response.read().decode(errors="replace")
        return Response(response.status, {k.lower(): v for k, v in response.headers.items()}, text)


def call(
    session: Session, method: str, path: str, token: str, body: str | None = None, **headers: str
) -> Response:
    """Calls the API under a token."""
    sent = {"authorization": f"Bearer {token}"} if token else {}
    if body is not None:
        sent["content-type"] = "application/json"
    sent.update({name.lower(): value for name, value in headers.items()})
    url = session.outputs["api_url"] + "/" + path.lstrip("/")
    return request(method.upper(), url, None if body is None else body.encode(), sent)


def upload(
    session: Session, token: str, name: str, content: bytes, content_type: str, folder: str = ""
) -> tuple[Response, Response]:
    """Uploads a file as a browser does: asks the API for the form, sends it to S3.

    Returns both answers; of S3, the API's own if that gave no form.
    """
    wanted = {"name": name, "folder": folder, "content_type": content_type}
    form = call(session, "POST", "/files", token, json.dumps(wanted))
    return form, send(form, content) if form.status == 201 else form


def send(form: Response, content: bytes) -> Response:
    """Sends a file to S3 with the form that the API gave."""
    from urllib3.filepost import encode_multipart_formdata

    fields = {**form.json()["fields"], "file": ("file", content)}
    body, content_type = encode_multipart_formdata(fields)
    return request("POST", form.json()["url"], body, {"content-type": content_type})


def machine_token(session: Session, scopes: str = "") -> str:
    """An access token of the machine client (client credentials)."""
    client_id = session.outputs["machine_client_id"]
    described = session.cloud.client("cognito-idp").describe_user_pool_client(
        UserPoolId=session.outputs["user_pool_id"], ClientId=client_id
    )
    secret = described["UserPoolClient"]["ClientSecret"]
    basic = base64.b64encode(f"{client_id}:{secret}".encode()).decode()
    return _token(
        session,
        {"grant_type": "client_credentials", "scope": scopes},
        authorization=f"Basic {basic}",
    )


def person_token(session: Session, user: str, scopes: str = "") -> str:
    """An access token of a person, who is invited first if need be: authorization code with PKCE.

    The password is new each time and kept nowhere.
    """
    password = f"Aa1!{secrets.token_urlsafe(24)}"
    _invite(session, user, password)
    client = session.cloud.client("cognito-idp").describe_user_pool_client(
        UserPoolId=session.outputs["user_pool_id"], ClientId=session.outputs["people_client_id"]
    )["UserPoolClient"]
    verifier = secrets.token_urlsafe(48)
    challenge = (
        base64.urlsafe_b64encode(hashlib.sha256(verifier.encode()).digest()).decode().rstrip("=")
    )
    authorize = {
        "client_id": client["ClientId"],
        "redirect_uri": client["CallbackURLs"][0],
        "response_type": "code",
        "scope": scopes or " ".join(client["AllowedOAuthScopes"]),
        "state": secrets.token_urlsafe(12),
        "code_challenge": challenge,
        "code_challenge_method": "S256",
    }
    code = _sign_in(session, authorize, user, password)
    exchange = {
        "grant_type": "authorization_code",
        "client_id": client["ClientId"],
        "redirect_uri": authorize["redirect_uri"],
        "code": code,
        "code_verifier": verifier,
    }
    return _token(session, exchange)


def _invite(session: Session, user: str, password: str) -> None:
    cognito, pool = session.cloud.client("cognito-idp"), session.outputs["user_pool_id"]
    with contextlib.suppress(cognito.exceptions.UsernameExistsException):
        cognito.admin_create_user(
            UserPoolId=pool,
            Username=user,
            TemporaryPassword=password,
            MessageAction="SUPPRESS",
            UserAttributes=[
                {"Name": "email", "Value": user},
                {"Name": "email_verified", "Value": "true"},
            ],
        )
    cognito.admin_set_user_password(
        UserPoolId=pool, Username=user, Password=password, Permanent=True
    )


def _sign_in(session: Session, authorize: Mapping[str, str], user: str, password: str) -> str:
    """Signs in as a browser does: the page, its form, the code in the redirect."""
    base = session.cloud.emulator.url
    page = request("GET", f"{base}/oauth2/authorize?{urllib.parse.urlencode(authorize)}")
    if page.status != 200:
        raise TapLocalError(f"the sign-in page answered {page.status}: {page.body[:200]}")
    form = urllib.parse.urlencode({**authorize, "username": user, "password": password}).encode()
    answer = request(
        "POST", f"{base}/login", form, {"content-type": "application/x-www-form-urlencoded"}
    )
    query = urllib.parse.parse_qs(urllib.parse.urlsplit(answer.headers.get("location", "")).query)
    if "code" not in query or query.get("state") != [authorize["state"]]:
        raise TapLocalError(f"{user} could not sign in: {answer.status} {answer.body[:200]}")
    return query["code"][0]


def _token(session: Session, form: Mapping[str, str], **headers: str) -> str:
    body = urllib.parse.urlencode({key: value for key, value in form.items() if value}).encode()
    headers["content-type"] = "application/x-www-form-urlencoded"
    answer = request("POST", f"{session.cloud.emulator.url}/oauth2/token", body, headers)
    if answer.status != 200:
        raise TapLocalError(f"no token was given: {answer.status} {answer.body[:200]}")
    return str(answer.json()["access_token"])
