"""The guard of the emulator: only the owner of its folder, and what its stack serves, gets in.

A loopback port is open to every user of the machine, and to every page in its user's browser. So

- a request names a loopback host or one of the stack's own (no DNS rebinding),
- a page of another site reaches only what is meant for browsers: the API, Cognito's pages, S3's
  forms and presigned URLs,
- every other request is signed (SigV4), by the folder's key or by what was issued with it,
- the emulator's own paths, /_ministack/*, are the folder's owner's alone.

MiniStack verifies signatures of users and roles, not of root, and derives the secrets of functions'
roles from their names. It runs in MiniStack's process, and uses its code for signatures.
"""

from __future__ import annotations

import contextvars
import functools
import hashlib
import json
import re
import secrets
import uuid
from collections.abc import Awaitable, Callable, Mapping
from typing import Any
from urllib.parse import parse_qs

from ministack import app as ministack
from ministack.core import iam_actions, iam_evaluator, lambda_runtime
from ministack.core.iam_actions import unsigned_operations
from ministack.core.iam_evaluator import AuthError
from ministack.core.responses import get_account_id
from ministack.core.router import detect_service
from ministack.services import alb, lambda_svc, s3, sts

Message = Mapping[str, Any]
Receive = Callable[[], Awaitable[Any]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]
Response = tuple[int, dict[str, str], Any]

LOOPBACK = re.compile(r"(127\.0\.0\.1|localhost|\[::1\]|[a-z0-9.-]+\.localhost)(:\d+)?")
OWN_PATHS = ("/_ministack/", "/_localstack/")
HEALTH = "/_ministack/health"
COGNITO_PAGES = re.compile(
    r"/oauth2/(authorize|login|token|userInfo|userinfo)|/login|/logout|/[\w-]+/\.well-known/[\w.-]+"
)
COGNITO_TARGET = "AWSCognitoIdentityProviderService."
S3_FORM = re.compile(r"/[a-z0-9][a-z0-9.-]+/?")
SHA256 = re.compile("[0-9a-f]{64}")
OF_TIME = ("Expired", "RequestExpired", "RequestTime")
HINT = (
    'The keys are in the folder that started the emulator: eval "$(python -m taplocal env)" there, '
    "or `up --emulator FOLDER`"
)
#: Whether MiniStack may take this request, which has no key, for root.
keyless: contextvars.ContextVar[bool] = contextvars.ContextVar("keyless", default=False)


class Request:
    """What the guard looks at in a request."""

    def __init__(self, scope: Message):
        self.method: str = scope["method"]
        self.path: str = scope["path"]
        self.raw_headers: list[tuple[bytes, bytes]] = scope["headers"]
        self.raw_path = scope["raw_path"].decode("latin-1")
        self.query = parse_qs(
            scope["query_string"].decode(errors="replace"), keep_blank_values=True
        )
        self.headers: dict[str, str] = {}
        for name, value in self.raw_headers:  # one on several lines as MiniStack joins it
            key, text = name.decode("latin-1").lower(), value.decode("latin-1")
            self.headers[key] = f"{self.headers[key]}, {text}" if key in self.headers else text
        self.host = self.headers.get("host", "").lower()

    @property
    def host_is_known(self) -> bool:
        """Whether its host is this machine or the stack, so that no other site has the name."""
        return bool(LOOPBACK.fullmatch(self.host)) or self._host_is_of_stack

    @functools.cached_property
    def _host_is_of_stack(self) -> bool:
        return bool(
            ministack._parse_execute_api_url(self.host, "/")
            or ministack._resolve_custom_domain_request(self.host, self.path)
            or alb.find_lb_for_host(self.host)
        )

    @property
    def from_another_site(self) -> bool:
        """Whether a page of another origin sent it; programs send neither header."""
        site = self.headers.get("sec-fetch-site", "none")
        origin = self.headers.get("origin")
        return site not in ("none", "same-origin") or origin not in (None, f"http://{self.host}")

    @property
    def own(self) -> bool:
        """Whether it is for the emulator itself, and no service of AWS."""
        registry = ministack._is_ecr_registry_path(self.path)  # answers anybody, on any host
        return bool(registry) or self.path.startswith(OWN_PATHS)

    @functools.cached_property
    def service(self) -> str:
        """The service of AWS that it is for, as MiniStack routes it."""
        return str(detect_service(self.method, self.path, self.headers, self.query))

    @functools.cached_property
    def for_browsers(self) -> str:
        """Which of the ways for pages of any site it takes; empty for none."""
        if self.own:
            return ""
        if (
            ministack._parse_execute_api_url(self.host, self.path)
            or self.path.startswith(("/_aws/lambda-url/", "/_alb/"))
            or self._host_is_of_stack
        ):
            return "stack"
        if COGNITO_PAGES.fullmatch(self.path):
            return "sign-in"
        return self._to_s3 if self.service == "s3" else ""

    @property
    def _to_s3(self) -> str:
        if self.method == "OPTIONS":
            return "preflight" if ministack._s3_cors_target(self.host, self.path) else ""
        if "authorization" in self.headers:
            return ""
        if iam_evaluator._s3_presigned_query(self.query):
            return "presigned"
        multipart = self.headers.get("content-type", "").startswith("multipart/form-data")
        form = self.method == "POST" and not self.query and S3_FORM.fullmatch(self.path)
        return "form" if form and multipart else ""

    @property
    def unsigned_by_design(self) -> bool:
        """Whether it is an operation of Cognito that SDKs do not sign, such as InitiateAuth."""
        target = self.headers.get("x-amz-target", "")
        return (
            (self.method, self.path) == ("POST", "/")
            and "authorization" not in self.headers
            and not self.query
            and target.startswith(COGNITO_TARGET)
            and target.removeprefix(COGNITO_TARGET) in unsigned_operations("cognito-idp")
        )


class Body:
    """The body of a request, which is read to verify it and then passed on."""

    def __init__(self, receive: Receive):
        self._receive = receive
        self._read: list[Any] = []

    async def read(self) -> bytes:
        """The whole body."""
        while not self._read or self._read[-1].get("more_body"):
            self._read.append(await self._receive())
        return b"".join(each.get("body", b"") for each in self._read)

    async def receive(self) -> Any:
        """The next message, of those that were read or a new one."""
        return self._read.pop(0) if self._read else await self._receive()


class Guard:
    """An ASGI application that passes on to MiniStack's what may get in."""

    def __init__(self, app: App, access_key: str, secret_key: str):
        account = get_account_id()
        self.app, self.access_key = app, access_key
        self.root = {
            "Arn": f"arn:aws:iam::{account}:root",
            "UserId": account,
            "PrincipalType": "Root",
            "SecretAccessKey": secret_key,
        }

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Answers a request, or has MiniStack answer it."""
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
        elif scope["type"] != "http":  # no stack here has a WebSocket
            await send({"type": "websocket.close", "code": 1008})
        else:
            request, body = Request(scope), Body(receive)
            refusal = await self.refusal(request, body)
            if refusal:
                await ministack._send_response(send, *refusal)
            else:
                answer = send if request.for_browsers else without_cors(send)
                await self.app(scope, body.receive, answer)

    async def refusal(self, request: Request, body: Body) -> Response | None:
        """Why a request does not get in; None if it does."""
        if not request.host_is_known:
            return forbidden(
                f"{request.host!r} is no name of this emulator: use 127.0.0.1 or localhost"
            )
        if request.from_another_site and not request.for_browsers:
            return forbidden(
                "a page of another site may call the API, sign in, and use forms and presigned "
                "URLs of S3, no more; a program sends no Origin and no Sec-Fetch-Site"
            )
        sts._sessions.setdefault(self.access_key, self.root)
        pinned = iam_evaluator.pin_signed_request
        pinned(request.method, request.raw_path, request.query, request.raw_headers)
        keyless.set(request.for_browsers == "form" or request.unsigned_by_design)
        health = (request.method, request.path) == ("GET", HEALTH)
        if keyless.get() or health or request.for_browsers in ("stack", "sign-in", "preflight"):
            return None
        return await unverified(request, body)


async def unverified(request: Request, body: Body) -> Response | None:
    """The refusal of a request whose signature is missing or wrong; None for a right one."""
    signed = iam_evaluator._signed_request.get()
    if signed is None:
        return refused(request, "MissingAuthenticationToken", "The request is not signed.")
    ministack.set_request_account_id(signed.access_key_id)
    if signed.s3_scoped:
        if request.service == "s3" and not request.own:
            verify = s3._verify_presigned_sigv4
            return verify(request.method, request.path, request.headers, request.query)  # type: ignore[no-any-return]
        return refused(request, "SignatureDoesNotMatch", "It is signed for S3.")
    content = await body.read()
    declared = request.headers.get("x-amz-content-sha256", "")
    if SHA256.fullmatch(declared) and hashlib.sha256(content).hexdigest() != declared:
        why = "The body is another one than x-amz-content-sha256 says."
        return refused(request, "XAmzContentSHA256Mismatch", why)
    iam_evaluator.pin_signed_body(content)
    checked = iam_evaluator.authenticate(signed.access_key_id, get_account_id())
    if isinstance(checked, AuthError):
        return refused(request, checked.code, checked.message)
    if request.own and checked.principal_type != "Root":
        return forbidden(f"{request.path} is for the key of the emulator's folder alone")
    return None


def forbidden(why: str) -> Response:
    """A refusal in plain JSON."""
    return 403, {"Content-Type": "application/json"}, json.dumps({"message": why}).encode()


def refused(request: Request, code: str, why: str) -> Response:
    """A refusal as the service words it, so that SDKs understand it."""
    error = AuthError(code, why)
    return ministack._credential_failure(  # type: ignore[no-any-return]
        request.service, "", str(uuid.uuid4()), error, request.headers
    )


def without_cors(send: Send) -> Send:
    """Sends a response without the headers that let pages of any site read it."""

    async def sent(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = [
                each for each in message["headers"]
                if not each[0].lower().startswith(b"access-control-")
            ]  # fmt: skip
            message = {**message, "headers": headers}
        await send(message)

    return sent


def install(access_key: str, secret_key: str) -> None:
    """Puts the guard before MiniStack's application; its root is the owner of these keys alone."""
    ministack.app = Guard(ministack.app, access_key, secret_key)
    ministack.pin_signed_request = lambda *_: None  # the guard has pinned, and verified, it
    iam_evaluator.is_root_access_key = lambda key: not key and keyless.get()
    s3._enforce_post_policy_size = lambda *_: s3._error(
        "AccessDenied", "The form is not signed.", 403
    )
    explain_failures()
    make_role_keys_secret()


def explain_failures() -> None:
    """Makes the error of a missing or wrong signature say where the keys are."""
    original = iam_actions._auth_failure

    def explained(service: str, code: str, message: str, headers: Any) -> tuple[str, int, str]:
        shown, status, why = original(service, code, message, headers)
        return shown, status, why if code.startswith(OF_TIME) else f"{why.rstrip('.')}. {HINT}"

    iam_actions._auth_failure = explained


def make_role_keys_secret() -> None:
    """Makes the keys of functions' roles random: MiniStack's are hashes of two ARNs."""
    original, salt = lambda_runtime.execution_credentials, secrets.token_hex()

    def issued(config: Mapping[str, Any]) -> dict[str, str]:
        salted: dict[str, str] = original(
            {**config, "FunctionArn": f"{config['FunctionArn']}:{salt}"}
        )
        return salted

    lambda_runtime.execution_credentials = lambda_svc.execution_credentials = issued
