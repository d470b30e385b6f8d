"""Measures one app in this fresh process and prints the numbers as JSON: run by benchmarks.requests."""

from __future__ import annotations

import importlib
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

CALLS = 2_000


def event(kind: str, method: str, path: str, body: str | None = None) -> dict[str, Any]:
    """The request as API Gateway sends it in payload format 2.0 or 1.0."""
    item_id = path.removeprefix("/items").strip("/")
    claims = {"sub": "ann", "client_id": "c", "scope": "items/read items/write"}
    headers = {
        "content-type": "application/json",
        "host": "api.example",
        "authorization": "Bearer x",
    }
    template = "/items/{id}" if item_id else "/items"
    if kind == "v1":
        template = "/items/{item_id}" if item_id else "/items"
        return {
            "httpMethod": method,
            "path": path,
            "resource": template,
            "headers": headers,
            "multiValueQueryStringParameters": None,
            "pathParameters": {"item_id": item_id} if item_id else None,
            "stageVariables": None,
            "body": body,
            "isBase64Encoded": False,
            "requestContext": {
                "httpMethod": method,
                "resourcePath": template,
                "requestId": "r",
                "identity": {},
            },
        }
    http = {
        "method": method,
        "path": path,
        "protocol": "HTTP/1.1",
        "sourceIp": "192.0.2.1",
        "userAgent": "b",
    }
    return {
        "version": "2.0",
        "routeKey": f"{method} {template}",
        "rawPath": path,
        "rawQueryString": "",
        "headers": headers,
        "pathParameters": {"id": item_id} if item_id else None,
        "body": body,
        "isBase64Encoded": False,
        "requestContext": {
            "requestId": "r",
            "stage": "$default",
            "routeKey": f"{method} {template}",
            "http": http,
            "authorizer": {"jwt": {"claims": claims, "scopes": None}},
            "timeEpoch": 0,
        },
    }


def peak_mib() -> float:
    """Peak memory since this program began; getrusage would count the parent's before it."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM"))


def main(name: str, mode: str) -> dict[str, Any]:
    """Cold import, first call, warm calls and peak memory of one app in one mode."""
    started = time.perf_counter()
    app = importlib.import_module(f"benchmarks.apps.{name}")
    imported = time.perf_counter()
    new = '{"id": "tea", "name": "Earl Grey", "price": 4}'
    good = (
        event(app.KIND, "GET", "/items/tea")
        if mode == "bare"
        else event(app.KIND, "POST", "/items", new)
    )
    call = getattr(app, mode)
    answer = call(good)
    first = time.perf_counter()
    rounds = []
    for _ in range(5):
        begun = time.process_time()
        for _ in range(CALLS):
            call(good)
        rounds.append((time.process_time() - begun) / CALLS * 1e6)
    body = json.loads(answer["body"])
    return {
        "import_ms": (imported - started) * 1000,
        "first_ms": (first - imported) * 1000,
        "warm_us": sorted(rounds)[len(rounds) // 2],
        "peak_mib": peak_mib(),
        "answer": [answer["statusCode"], {key: body[key] for key in ("id", "name", "price")}],
        "missing": call(event(app.KIND, "GET", "/items/none"))["statusCode"]
        if mode == "bare"
        else None,
    }


if __name__ == "__main__":
    out = os.dup(1)
    with open(os.devnull, "w") as sink:  # what the app logs
        os.dup2(sink.fileno(), 1)
        result = main(*sys.argv[1:])
        sys.stdout.flush()
    os.write(out, json.dumps(result).encode())
