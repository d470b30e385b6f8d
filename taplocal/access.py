"""Signs people and machines in to the deployed stack, and calls its API."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import http.client
import json
import secrets
import urllib.parse
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from taplocal.errors import TapLocalError
from taplocal.session import Session

TIMEOUT_SECONDS = 60
URL_CHARACTERS = "%/:?#[]@!$&'()*+,;=~"  # besides letters, digits and -._


@dataclass(frozen=True)
class Response:
    """An HTTP response; header names are in lower case."""

    status: int
    headers: dict[str, str]
    body: str

    def json(self) -> Any:
        """The body as JSON."""
        return json.loads(self.body)


class _AsItIs(urllib.request.HTTPErrorProcessor):
    """Takes redirects and error statuses for responses like any other."""

    def http_response(self, request: Any, response: Any) -> Any:  # noqa: ARG002 - of urllib
        return response

    https_response = http_response


# Without proxies: all URLs are on this machine.
_opener = urllib.request.build_opener(urllib.request.ProxyHandler({}), _AsItIs)


def request(
    method: str, url: str, body: bytes | None = None, headers: Mapping[str, str] | None = None
) -> Response:
    """Sends an HTTP request; redirects and error statuses are returned.

    TapLocalError if there is no whole response, or if HTTP cannot carry what was given.
    """
    try:
        call = urllib.request.Request(url, data=body, method=method, headers=dict(headers or {}))
        with _opener.open(call, timeout=TIMEOUT_SECONDS) as response:
            text = response.read().decode(errors="replace")
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise TapLocalError(f"{method} {url} failed: {error}") from None
    return Response(response.status, {k.lower(): v for k, v in response.headers.items()}, text)


def call(
    session: Session,
    method: str,
    path: str,
    token: str,
    body: str | None = None,
    headers: Mapping[str, str] | None = None,
) -> Response:
    """Sends a request to the API with an access token; an empty token sends none.

    What a URL has no characters for is encoded in the path and its query, as a browser does.
    """
    sent = {"authorization": f"Bearer {token}"} if token else {}
    if body is not None:
        sent["content-type"] = "application/json"
    sent.update({name.lower(): value for name, value in (headers or {}).items()})
    encoded = urllib.parse.quote(path.lstrip("/"), safe=URL_CHARACTERS, errors="surrogateescape")
    content = None if body is None else body.encode(errors="surrogateescape")
    return request(method.upper(), f"{session.state.api_url}/{encoded}", content, sent)


def upload(
    session: Session, token: str, name: str, content: bytes, content_type: str, folder: str = ""
) -> tuple[Response, Response]:
    """Uploads a file as a browser does: requests a presigned form from the API and posts it to S3.

    Returns the responses of the API and of S3; without a form, that of the API twice.
    """
    upload_request = {"name": name, "folder": folder, "content_type": content_type}
    form = call(session, "POST", "/files", token, json.dumps(upload_request))
    return form, send(form, content) if form.status == 201 else form


def send(form: Response, content: bytes, **headers: str) -> Response:
    """Posts a file to S3 with the presigned form in the API's response."""
    from urllib3.filepost import encode_multipart_formdata

    fields = {**form.json()["fields"], "file": ("file", content)}
    body, content_type = encode_multipart_formdata(fields)
    return request("POST", form.json()["url"], body, {**headers, "content-type": content_type})


def machine_token(session: Session, scopes: str = "", machine: str = "") -> str:
    """An access token of a machine (client credentials grant), by default of the only one."""
    ids: dict[str, str] = session.outputs.get("machine_client_ids", {})
    names = [machine] if machine else list(ids)
    if len(names) != 1 or names[0] not in ids:
        problem = f"no machine client {machine}" if machine else f"{len(ids)} machine clients"
        raise TapLocalError(
            f"the stack has {problem}: use --client with one of {', '.join(ids)}, or --user"
            if ids
            else "the stack has no machine client: use --user"
        )
    client_id = ids[names[0]]
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
    """An access token of a person (authorization code grant with PKCE), who is created if missing.

    The password is new each time and not stored.
    """
    password = f"Aa1!{secrets.token_urlsafe(24)}"
    _create_user(session, user, password)
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


def _create_user(session: Session, user: str, password: str) -> None:
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
    """Signs in as a browser does and returns the authorization code in the redirect."""
    base = session.cloud.emulator.url
    page = request("GET", f"{base}/oauth2/authorize?{urllib.parse.urlencode(authorize)}")
    if page.status != 200:
        raise TapLocalError(f"the sign-in page returned {page.status}: {page.body[:200]}")
    form = urllib.parse.urlencode({**authorize, "username": user, "password": password}).encode()
    response = request(
        "POST", f"{base}/login", form, {"content-type": "application/x-www-form-urlencoded"}
    )
    query = urllib.parse.parse_qs(urllib.parse.urlsplit(response.headers.get("location", "")).query)
    if "code" not in query or query.get("state") != [authorize["state"]]:
        raise TapLocalError(f"{user} could not sign in: {response.status} {response.body[:200]}")
    return query["code"][0]


def _token(session: Session, form: Mapping[str, str], **headers: str) -> str:
    body = urllib.parse.urlencode({key: value for key, value in form.items() if value}).encode()
    headers["content-type"] = "application/x-www-form-urlencoded"
    response = request("POST", f"{session.cloud.emulator.url}/oauth2/token", body, headers)
    if response.status != 200:
        raise TapLocalError(f"no token was issued: {response.status} {response.body[:200]}")
    return str(response.json()["access_token"])
