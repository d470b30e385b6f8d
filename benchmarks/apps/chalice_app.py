"""Chalice: takes the REST API's event format; validation by hand, it has none."""

from __future__ import annotations

from typing import Any

from chalice import BadRequestError, Chalice, NotFoundError, Response

from benchmarks.apps import stub
from benchmarks.apps.log import log

KIND, DISTRIBUTIONS = "v1", ("chalice",)
app = Chalice(app_name="items")


class Context:
    aws_request_id = "request"


@app.route("/items/{item_id}")
def read(item_id: str) -> Any:
    if (item := stub.get(item_id)) is None:
        raise NotFoundError("There is no such item.")
    return item


@app.route("/items", methods=["POST"])
def create() -> Any:
    body = app.current_request.json_body
    if not isinstance(body.get("name"), str) or not isinstance(body.get("price"), int):
        raise BadRequestError("name and price")
    return Response(stub.put(body), status_code=201)


def bare(event: dict[str, Any]) -> Any:
    return app(event, Context())


def full(event: dict[str, Any]) -> Any:
    answer = app(event, Context())
    log(answer["statusCode"])
    return answer
