"""API Gateway around its integrations: throttling, access log, metrics, a function's errors.

MiniStack routes, checks tokens and invokes. Here, as on AWS, a stage admits of each route what its
settings say, 429 beyond, and writes a line of its access log for each request, also for those that
no function sees. The id in the log is the one that the function and the caller get. What a function
does wrong is no business of the caller: 500, and 503 where it is throttled or slower than its
integration's timeout (as users of HTTP APIs report: serverless/serverless#11222, chalice#1580 is of
REST APIs, which respond with 504).
"""

from __future__ import annotations

import asyncio
import base64
import contextvars
import json
import math
import os
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote

from ministack.core import iam_evaluator
from ministack.services import apigateway, cloudwatch_logs, lambda_svc

from taplocal.server import workers
from taplocal.server.capacity import Bucket
from taplocal.server.metrics import count

Response = tuple[int, dict[str, Any], bytes]

ACCOUNT_LIMITS = {"throttlingRateLimit": 10_000.0, "throttlingBurstLimit": 5_000}
VARIABLE = re.compile(r"\$context\.(\w+(?:\.\w+)*)")
PATH_CHARACTERS = "/:@!$&'()*+,;=~"  # of RFC 3986; any other would break a line of JSON


@dataclass
class Call:
    """A request at the gateway, and what its line of the access log tells of it."""

    method: str
    path: str
    headers: Mapping[str, str]
    route: Mapping[str, Any] | None
    started: float = field(default_factory=time.time)
    id: str = field(default_factory=lambda: base64.b64encode(os.urandom(11)).decode())
    claims: Mapping[str, Any] = field(default_factory=dict)
    made: dict[str, Any] = field(default_factory=dict)  # variables that only some requests have

    @property
    def route_key(self) -> str:
        """The key of the route; "None" if no route takes the request."""
        return str(self.route and self.route["routeKey"])


#: The request that this context answers.
current: contextvars.ContextVar[Call | None] = contextvars.ContextVar("call", default=None)


class Gateway:
    """Stands around MiniStack's data plane of HTTP APIs."""

    def __init__(self) -> None:
        self._handle, self._match = apigateway._handle_execute_in_scope, apigateway._match_route
        self._authorize = apigateway._validate_jwt_authorizer
        self._invoke = apigateway._invoke_lambda_proxy
        self._buckets: dict[tuple[str, ...], Bucket] = {}

    async def handle(
        self, api_id: str, stage: str, path: str, method: str, headers: Mapping[str, str],
        body: bytes, query: Any, account: str, region: str, raw_query: str | None = None,
    ) -> Response:  # fmt: skip
        """Replaces MiniStack's _handle_execute_in_scope."""
        settings = apigateway._stages.get(api_id, {}).get(stage)
        request = (
            api_id, stage, path, method, headers, body, query, account, region, raw_query
        )  # fmt: skip
        if settings is None:
            return await self._handle(*request)  # type: ignore[no-any-return]
        call = Call(method, path, headers, self._match(api_id, method, "/" + path.lstrip("/")))
        token = current.set(call)
        try:
            if call.route and not self._admits(settings, (account, region, api_id, stage), call):
                status, made, content = failure(429, "Too Many Requests")
            else:
                status, made, content = await self._handle(*request)
        finally:
            current.reset(token)
        made["apigw-requestid"] = call.id
        measure(api_id, stage, call, status, of_route(settings, call))
        if log := settings.get("accessLogSettings"):
            place = {"accountId": account, "apiId": api_id, "stage": stage}
            write(log, call, {**place, "status": status}, content)
        return status, made, content

    def _admits(self, settings: Mapping[str, Any], place: tuple[str, ...], call: Call) -> bool:
        """Takes a token of the route's bucket, if it has one."""
        key, given = call.route_key, of_route(settings, call)
        limits = given if given.keys() & ACCOUNT_LIMITS.keys() else ACCOUNT_LIMITS
        rate, burst = (float(limits.get(each, 0)) for each in ACCOUNT_LIMITS)
        bucket = self._buckets.setdefault((*place, key), Bucket(burst))
        if bucket.fill(rate, burst) < 1:
            return False
        bucket.units -= 1
        return True

    def match(self, api_id: str, method: str, path: str) -> Any:
        """Replaces MiniStack's _match_route, which is called once for each request."""
        call = current.get()
        return call.route if call else self._match(api_id, method, path)

    async def authorize(
        self, route: Any, authorizer: Mapping[str, Any], *request: Mapping[str, Any]
    ) -> Any:
        """Replaces MiniStack's _validate_jwt_authorizer."""
        sources = authorizer.get("identitySource", [])
        claims, scopes, refusal = None, None, apigateway._jwt_unauthorized()
        token = apigateway._extract_token_from_identity_source(sources, *request)
        if is_plain(token or ""):
            claims, scopes, refusal = await self._authorize(route, authorizer, *request)
        if refusal and refusal[0] == 401:  # API Gateway's guide, http-api-troubleshooting-jwt
            refusal[1]["www-authenticate"] = CHALLENGE if token else "Bearer"
        if call := current.get():
            call.claims = claims or {}
            if refusal:
                call.made["authorizer.error"] = json.loads(refusal[2])["message"]
        return claims, scopes, refusal

    async def invoke(self, integration: Mapping[str, Any], *arguments: Any, **more: Any) -> Any:
        """Replaces MiniStack's _invoke_lambda_proxy."""
        call, began = current.get(), time.monotonic()
        try:
            seconds = integration.get("timeoutInMillis", 30_000) / 1000
            async with asyncio.timeout(None if workers.debugged() else seconds):
                response = await self._invoke(integration, *arguments, **more)
        except TimeoutError:
            why = "Endpoint request timed out"
            response = integration_failure(503, "Service Unavailable", why)
        if call:
            latency = round((time.monotonic() - began) * 1000)
            call.made |= {"integrationLatency": latency, "integration.latency": latency}
            if "integrationErrorMessage" not in call.made:
                lambda_says = {"integrationStatus": 200, "integration.integrationStatus": 200}
                call.made |= {**lambda_says, "integration.status": response[0]}
        return response


#: Behind which AWS also says, in words of its own, what is wrong.
CHALLENGE = 'Bearer scope="" error="invalid_token"'


def is_plain(token: str) -> bool:
    """Whether a token has its key's algorithm, no extension (RFC 7515, 4.1.11), an end, and times
    that are numbers. MiniStack verifies RS256 whatever the token says, and fails on other times."""
    try:
        header, claims = (
            json.loads(base64.urlsafe_b64decode(f"{part}==")) for part in token.split(".")[:2]
        )
        times = [claims["exp"], *(claims[x] for x in ("nbf", "iat") if x in claims)]
        numbers = all(type(x) in (int, float) and math.isfinite(x) for x in times)
        return numbers and header["alg"] == "RS256" and "crit" not in header
    except (ValueError, KeyError, TypeError, RecursionError):
        return False


def of_route(settings: Mapping[str, Any], call: Call) -> Mapping[str, Any]:
    """The settings of a request's route: its own, in place of all default ones."""
    own = (settings.get("routeSettings") or {}).get(call.route_key)
    return own or settings.get("defaultRouteSettings") or {}


def measure(api_id: str, stage: str, call: Call, status: int, settings: Mapping[str, Any]) -> None:
    """Records the metrics of a request, by route too where these are detailed."""
    kinds = {f"{kind}xx": status // 100 == kind for kind in (4, 5)}
    values = {"Count": 1, "Latency": round((time.time() - call.started) * 1000), **kinds}
    of_stage = {"ApiId": api_id, "Stage": stage}
    count("AWS/ApiGateway", of_stage, **values)
    method, _, resource = call.route_key.partition(" ")
    if resource and settings.get("detailedMetricsEnabled"):
        count("AWS/ApiGateway", {**of_stage, "Method": method, "Resource": resource}, **values)


def failure(status: int, message: str) -> Response:
    """A response of the gateway's own, whose message the access log has too."""
    if call := current.get():
        call.made |= {"error.message": message, "error.messageString": json.dumps(message)}
    return status, {"Content-Type": "application/json"}, json.dumps({"message": message}).encode()


def integration_failure(status: int, message: str, why: str) -> Response:
    """The gateway's answer for a function that did not answer; only the log says why."""
    if call := current.get():
        call.made |= {"integrationErrorMessage": why, "integration.error": why}
    return failure(status, message)


def proxied(respond: Callable[..., Any]) -> Callable[..., Any]:
    """MiniStack's lambda_execute_result_to_api_proxy_response, as HTTP APIs have it."""

    def response_of(result: Mapping[str, Any]) -> Any:
        if not (current.get() and result.get("error")):
            return respond(result)
        body = result.get("body")
        why = body.get("errorMessage") or body.get("message") if isinstance(body, dict) else body
        if result.get("throttle"):
            status, headers, content = integration_failure(503, "Service Unavailable", str(why))
        else:
            told = f"The Lambda function returned the following error: {why}."
            status, headers, content = integration_failure(500, "Internal Server Error", told)
        return {"statusCode": status, "headers": headers, "body": content.decode()}, None

    return response_of


def write(
    settings: Mapping[str, str], call: Call, known: Mapping[str, Any], content: bytes
) -> None:
    """Writes a request's line into the log group of a stage's settings."""
    group = cloudwatch_logs._log_groups.get(
        settings["destinationArn"].split(":log-group:")[1].removesuffix(":*")
    )
    if group is None:
        return
    stream = group["streams"].setdefault(known["apiId"], new_stream())
    values = variables(call, known, content)

    def value(found: re.Match[str]) -> str:
        of_request = values.get(found[1])
        return "-" if of_request is None else str(of_request)

    line = VARIABLE.sub(value, settings["format"])
    at = round(time.time() * 1000)  # not when it began: MiniStack sorts all lines for a late one
    event = {"timestamp": at, "message": line, "ingestionTime": at}
    cloudwatch_logs._append_log_events(stream, [event])


def new_stream() -> dict[str, Any]:
    """An empty log stream, as MiniStack has them."""
    times = ("firstEventTimestamp", "lastEventTimestamp", "lastIngestionTime")
    created = {"creationTime": round(time.time() * 1000), "uploadSequenceToken": "1"}
    return {"events": [], **created, **dict.fromkeys(times)}


def variables(call: Call, known: Mapping[str, Any], content: bytes) -> dict[str, Any]:
    """$context variable -> its value for a request; as on AWS, any other is "-"."""
    at = datetime.fromtimestamp(call.started, UTC)
    path = call.path if known["stage"] == "$default" else f"/{known['stage']}{call.path}"
    return {
        "extendedRequestId": call.id,
        "httpMethod": call.method,
        "identity.sourceIp": iam_evaluator._request_origin.get()[0],
        "identity.userAgent": call.headers.get("user-agent"),
        "path": quote(path, safe=PATH_CHARACTERS),
        "protocol": "HTTP/1.1",
        "requestId": call.id,
        "requestTime": f"{at:%d/%b/%Y:%H:%M:%S} +0000",
        "requestTimeEpoch": int(call.started),
        "responseLatency": round((time.time() - call.started) * 1000),
        "responseLength": len(content),
        "routeKey": call.route and call.route["routeKey"],
        **{f"authorizer.claims.{name}": value for name, value in call.claims.items()},
        **known,
        **call.made,
    }


def opened(authorization_type: Callable[..., Any]) -> Callable[..., Any]:
    """MiniStack's route_authorization_type; what no route takes needs no signature for its 404."""

    def type_of(api_id: str, *request: str) -> Any:
        return authorization_type(api_id, *request) or (
            apigateway.find_api_scope(api_id) and "NONE"
        )

    return type_of


def install() -> None:
    """Replaces MiniStack's functions."""
    gateway, new_id = Gateway(), apigateway.new_uuid
    apigateway.route_authorization_type = opened(apigateway.route_authorization_type)
    apigateway._handle_execute_in_scope = gateway.handle
    apigateway._match_route = gateway.match
    apigateway._validate_jwt_authorizer = gateway.authorize
    apigateway._invoke_lambda_proxy = gateway.invoke
    apigateway.new_uuid = lambda: call.id if (call := current.get()) else new_id()
    lambda_svc.lambda_execute_result_to_api_proxy_response = proxied(
        lambda_svc.lambda_execute_result_to_api_proxy_response
    )
