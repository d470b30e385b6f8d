"""What no attempt processed goes where the function's role may send it, or is lost and counted."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.local.small import NOTHING, Small, eventually, statement


def fail(small: Small, qualifier: str = "$LATEST") -> None:
    small.client("lambda").invoke(
        FunctionName=small.name,
        Qualifier=qualifier,
        InvocationType="Event",
        Payload='{"fail": 1}',
    )


@pytest.mark.parametrize(
    ("metric", "settings"),
    [
        ("DestinationDeliveryFailures", {}),
        ("DeadLetterErrors", {"DeadLetterConfig": {"TargetArn": "the queue"}}),
    ],
)
def test_an_event_is_delivered_with_the_rights_of_the_functions_role(
    small: Small, metric: str, settings: dict[str, Any]
) -> None:
    key, queue = small.key(), small.arn("sqs", small.name)
    small.queue(KmsMasterKeyId=key)
    role = small.role(NOTHING)
    dead = {"DeadLetterConfig": {"TargetArn": queue}} if settings else {}
    small.function(Role=role, **dead)
    destination = {} if dead else {"OnFailure": {"Destination": queue}}
    small.client("lambda").put_function_event_invoke_config(
        FunctionName=small.name, MaximumRetryAttempts=0, DestinationConfig=destination
    )
    send = statement("sqs:SendMessage", on=queue)
    use = statement("kms:Decrypt", "kms:GenerateDataKey", on=key)
    for lost, rights in enumerate(([NOTHING], [send], [use]), start=1):
        small.grant(role, *rights)
        fail(small)
        small.wait_for(metric, lost)
    assert small.messages() == []
    small.grant(role, send, use)
    fail(small)
    (message,) = eventually(small.messages)
    body = json.loads(message["Body"])
    if dead:
        assert body == {"fail": 1}
        assert message["MessageAttributes"]["ErrorMessage"]["StringValue"] == "as asked"
    else:
        assert body["requestPayload"] == {"fail": 1}
    assert small.count(metric) == 3
    assert small.count("AsyncEventsDropped") == 4


def test_a_place_that_is_gone_is_counted(small: Small) -> None:
    queue = small.arn("sqs", "nowhere")
    small.function(Role=small.role(statement("sqs:SendMessage", on=queue)))
    small.client("lambda").put_function_event_invoke_config(
        FunctionName=small.name,
        MaximumRetryAttempts=0,
        DestinationConfig={"OnFailure": {"Destination": queue}},
    )
    fail(small)
    small.wait_for("DestinationDeliveryFailures", 1)


def test_the_settings_of_an_alias_are_those_of_its_events_alone(small: Small) -> None:
    queue = small.arn("sqs", small.name)
    small.queue()
    small.function(Role=small.role(statement("sqs:SendMessage", on=queue)))
    functions, name = small.client("lambda"), {"FunctionName": small.name}
    version = functions.publish_version(**name)["Version"]
    functions.create_alias(**name, Name="live", FunctionVersion=version)
    to_queue = {"OnFailure": {"Destination": queue}}
    functions.put_function_event_invoke_config(
        **name, Qualifier="live", MaximumRetryAttempts=0, DestinationConfig=to_queue
    )
    functions.put_function_event_invoke_config(**name, MaximumRetryAttempts=0)
    fail(small)
    small.wait_for("AsyncEventsDropped", 1)
    assert small.messages() == []
    fail(small, "live")
    assert len(eventually(small.messages)) == 1


#: What happens to the process of a function -> its code, and what Lambda says of it.
DEATHS = {
    "it is too slow": (
        "import time\n\ndef handler(event, context):\n    time.sleep(60)",
        "timed out",
    ),
    "it ends": ("import os\n\ndef handler(event, context):\n    os._exit(1)", ""),
    "it cannot be imported": ("raise RuntimeError('as asked')", "as asked"),
    "it calls itself": ("def handler(event, context):\n    handler(event, context)", "recursion"),
    "its result is no JSON": ("def handler(event, context):\n    return object()", ""),
}


@pytest.mark.parametrize("death", DEATHS)
def test_an_event_whose_function_dies_is_not_lost_and_counts_as_an_error(
    small: Small, death: str
) -> None:
    (source, told), queue = DEATHS[death], small.arn("sqs", small.name)
    small.queue()
    rights = small.role(statement("sqs:SendMessage", on=queue))
    small.function(source=source, Timeout=1, Role=rights)
    small.client("lambda").put_function_event_invoke_config(
        FunctionName=small.name,
        MaximumRetryAttempts=0,
        DestinationConfig={"OnFailure": {"Destination": queue}},
    )
    fail(small)
    small.wait_for("AsyncEventsDropped", 1)
    (message,) = eventually(small.messages)
    letter = json.loads(message["Body"])
    assert letter["requestPayload"] == {"fail": 1}
    assert told in json.dumps(letter["responsePayload"])
    assert small.count("Errors") == 1
