"""Reserved concurrency, and where an event goes that no attempt processed.

MiniStack limits what `$LATEST` alone has in flight, and delivers events without asking anybody.
Here all versions of a function share what is reserved for it, and an event is delivered with the
rights of the function's role: its destination, the dead-letter queue, the key of either. Without
them, as on AWS, the event is lost, and only a metric says so.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from ministack.core.responses import new_uuid
from ministack.services import lambda_svc, sns, sqs

from taplocal.server import keys, rights
from taplocal.server.metrics import count
from taplocal.server.releases import qualifier_of_call

LAMBDA = "lambda.amazonaws.com"
ACTIONS = {"sqs": "sqs:SendMessage", "sns": "sns:Publish", "lambda": "lambda:InvokeFunction"}


def reserved(_function: Any, config: Mapping[str, Any]) -> int | None:
    """Replaces MiniStack's _reserved_concurrency: what is reserved for all versions together."""
    found = lambda_svc._functions.get(config.get("FunctionName")) or {}
    concurrency = found.get("concurrency")
    return None if concurrency is None else int(concurrency)


def settings(name: str) -> Mapping[str, Any]:
    """What is set for events that invoke a function by the qualifier of this call."""
    qualifier, latest = qualifier_of_call.get(), ("", "$LATEST")
    found = lambda_svc._functions[name].get("event_invoke_configs") or {}
    names = latest if qualifier in latest else (qualifier,)
    return next((found[each] for each in names if each in found), {})


def targets(name: str) -> Iterator[tuple[str, str]]:
    """The metric of a failure and the ARN, for each place that gets a function's lost events."""
    on_failure = (settings(name).get("DestinationConfig") or {}).get("OnFailure") or {}
    if arn := on_failure.get("Destination"):
        yield "DestinationDeliveryFailures", arn
    config = lambda_svc._functions[name]["config"]
    if arn := (config.get("DeadLetterConfig") or {}).get("TargetArn"):
        yield "DeadLetterErrors", arn


def lose(name: str, event: Any, result: Mapping[str, Any]) -> None:
    """Delivers an event that was not processed."""
    for metric, arn in targets(name):
        if not may(lambda_svc._functions[name]["config"], arn):
            count("AWS/Lambda", {"FunctionName": name}, **{metric: 1})
        elif metric == "DeadLetterErrors":
            send(arn, event, result)
        else:
            lambda_svc._route_async_failure(arn, name, event, result)


def may(config: Mapping[str, Any], arn: str) -> bool:
    """Whether a function's role may deliver to a place that exists."""
    service = arn.split(":")[2]
    exists = {
        "sqs": sqs._queue_by_arn,
        "sns": sns._topics.get,
        "lambda": lambda x: lambda_svc._get_func_record_for_ref(x)[0],
    }[service](arn)
    role, action = rights.of_role(config["Role"], LAMBDA, config["FunctionArn"]), ACTIONS[service]
    return (
        exists is not None
        and rights.denial(role, action, arn) is None
        and keys.denial(role, action, arn, {}) is None
    )


def send(arn: str, event: Any, result: Mapping[str, Any]) -> None:
    """Sends the event itself to a dead-letter queue or topic, and why as attributes."""
    body = result.get("body")
    why = body.get("errorMessage") or body.get("message") if isinstance(body, dict) else body
    told = {"RequestID": new_uuid(), "ErrorCode": "200", "ErrorMessage": str(why)[:1024]}
    attributes = {
        name: {"DataType": "Number" if name == "ErrorCode" else "String", "StringValue": text}
        for name, text in told.items()
    }
    if arn.split(":")[2] == "sns":
        sns._fanout(arn, new_uuid(), json.dumps(event), "", message_attributes=attributes)
        return
    message = {"MessageBody": json.dumps(event), "MessageAttributes": attributes}
    sqs._act_send_message(message, arn.split(":")[5])


def install() -> None:
    """Replaces MiniStack's function."""
    lambda_svc._reserved_concurrency = reserved
