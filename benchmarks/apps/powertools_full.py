"""AWS Lambda Powertools with validation by pydantic, its Logger and its Metrics."""

import os
from typing import Any

os.environ.update(POWERTOOLS_SERVICE_NAME="items", POWERTOOLS_METRICS_NAMESPACE="tap-stack")

from aws_lambda_powertools import Logger, Metrics
from aws_lambda_powertools.event_handler import APIGatewayHttpResolver, Response
from pydantic import BaseModel

from benchmarks.apps import stub
from benchmarks.apps.powertools import Context

KIND, DISTRIBUTIONS = "v2", ("aws-lambda-powertools", "pydantic")
app = APIGatewayHttpResolver(enable_validation=True)
logger, metrics = Logger(), Metrics()


class Item(BaseModel):
    id: str
    name: str
    price: int


@app.post("/items")
def create(item: Item) -> Response[dict[str, Any]]:
    return Response(201, content_type="application/json", body=stub.put(item.model_dump()))


@metrics.log_metrics
def handler(event: dict[str, Any], context: Any) -> Any:
    answer = app.resolve(event, context)
    logger.info("request", extra={"status": answer["statusCode"], "caller": "ann"})
    metrics.add_metric("ItemsCreated", "Count", 1)
    return answer


def full(event: dict[str, Any]) -> Any:
    return handler(event, Context())
