"""AWS Lambda Powertools, bare: its HTTP API resolver alone."""

from __future__ import annotations

from typing import Any

from aws_lambda_powertools.event_handler import APIGatewayHttpResolver
from aws_lambda_powertools.event_handler.exceptions import NotFoundError

from benchmarks.apps import stub

KIND, DISTRIBUTIONS = "v2", ("aws-lambda-powertools",)
app = APIGatewayHttpResolver()


class Context:
    function_name = "items"
    memory_limit_in_mb = 512
    invoked_function_arn = "arn:aws:lambda:eu-west-1:111122223333:function:items"
    aws_request_id = "request"


@app.get("/items/<item_id>")
def read(item_id: str) -> Any:
    if (item := stub.get(item_id)) is None:
        raise NotFoundError("There is no such item.")
    return item


def bare(event: dict[str, Any]) -> Any:
    return app.resolve(event, Context())  # type: ignore[arg-type]
