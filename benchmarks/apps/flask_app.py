"""Flask behind apig-wsgi; validation by hand, it has none."""

from __future__ import annotations

from typing import Any

from apig_wsgi import make_lambda_handler
from flask import Flask, abort, request

from benchmarks.apps import stub
from benchmarks.apps.log import log

KIND, DISTRIBUTIONS = "v2", ("flask", "apig-wsgi")
app = Flask("items")


@app.get("/items/<item_id>")
def read(item_id: str) -> Any:
    if (item := stub.get(item_id)) is None:
        abort(404)
    return item


@app.post("/items")
def create() -> Any:
    body = request.get_json()
    if not isinstance(body.get("name"), str) or not isinstance(body.get("price"), int):
        abort(400)
    return stub.put(body), 201


handler = make_lambda_handler(app)


def bare(event: dict[str, Any]) -> Any:
    return handler(event, None)


def full(event: dict[str, Any]) -> Any:
    answer = handler(event, None)
    log(answer["statusCode"])
    return answer
