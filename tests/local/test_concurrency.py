"""Reserved concurrency: shared by all versions of a function, refused beyond it."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor

from tests.local.small import Small, code, eventually, statement


def test_nothing_reserved_stops_the_function(small: Small) -> None:
    functions, function = small.client("lambda"), small.function()
    api = small.api(function, "GET /a")
    small.permit("apigateway.amazonaws.com", small.arn("execute-api", f"{api}/*"))
    functions.put_function_concurrency(FunctionName=small.name, ReservedConcurrentExecutions=0)
    call = {"FunctionName": small.name, "Payload": "{}"}
    assert code(lambda: functions.invoke(**call)) == "TooManyRequestsException"
    assert small.get(api, "/a")[::2] == (503, {"message": "Service Unavailable"})
    assert small.count("Throttles") >= 2
    assert small.count("Invocations") == 0
    functions.delete_function_concurrency(FunctionName=small.name)
    assert small.get(api, "/a")[0] == 200


def test_an_event_for_a_stopped_function_goes_to_its_destination_at_once(small: Small) -> None:
    url, queue = small.queue(), small.arn("sqs", small.name)
    small.function(Role=small.role(statement("sqs:SendMessage", on=queue)))
    functions = small.client("lambda")
    functions.put_function_event_invoke_config(
        FunctionName=small.name, DestinationConfig={"OnFailure": {"Destination": queue}}
    )
    functions.put_function_concurrency(FunctionName=small.name, ReservedConcurrentExecutions=0)
    functions.invoke(FunctionName=small.name, InvocationType="Event", Payload='{"n": 1}')
    (message,) = eventually(small.messages)
    assert url
    assert json.loads(message["Body"])["requestPayload"] == {"n": 1}


def test_versions_share_what_is_reserved_and_events_wait_for_it(small: Small) -> None:
    functions = small.client("lambda")
    small.function(Timeout=20)
    functions.publish_version(FunctionName=small.name)
    functions.put_function_concurrency(FunctionName=small.name, ReservedConcurrentExecutions=1)

    def invoke(qualifier: str) -> str:
        # Longer than until the second attempt of the SDK.
        call = {"FunctionName": small.name, "Qualifier": qualifier, "Payload": '{"sleep": 5}'}
        return code(lambda: functions.invoke(**call))

    with ThreadPoolExecutor(3) as pool:
        codes = sorted(pool.map(invoke, ("1", "1", "$LATEST")))
    assert codes == ["", "TooManyRequestsException", "TooManyRequestsException"]
    event = {"FunctionName": small.name, "InvocationType": "Event", "Payload": '{"sleep": 0.5}'}
    for _ in range(2):
        functions.invoke(**event)
    small.wait_for("Invocations", 3)  # what was throttled is tried again
