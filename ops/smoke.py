"""Compares the program's own client of DynamoDB and SSM with the SDK, on a deployed stack.

    pulumi stack output --json | python -m ops.smoke

Uses the AWS credentials and region of the environment, as the AWS CLI does. They must allow
dynamodb:GetItem, PutItem, UpdateItem, DeleteItem and Query on the items table and its indexes,
ssm:GetParameter on the paging key, and use of the key. It writes one item, `smoke#...`, which no
caller of the API can name, deletes it, and lets it expire in an hour if it could not. The exit code
is 1 if a check failed. Against an emulator (AWS_ENDPOINT_URL) what only AWS does is left out.
"""

from __future__ import annotations

import json
import os
import ssl
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import typer

import tap_stack

Call = tuple[str, dict[str, Any], str]  # operation, arguments, the error code that AWS documents
Outcome = tuple[str, Any]
Answer = tuple[int, dict[str, str], bytes]  # status, headers by their names in lower case, body
FOREIGN_ACCOUNT = "111122223333"  # of AWS's documentation; nobody may read its tables
TIMEOUT_SECONDS = 30


class Check(NamedTuple):
    """A line of the report."""

    name: str
    passed: bool
    found: str


class Stack:
    """A deployed stack by its outputs, and the two clients of each service."""

    def __init__(self, outputs: dict[str, Any]):
        import boto3

        self.outputs = outputs
        region = outputs["key_arn"].split(":")[3]
        found = boto3.Session().get_credentials()
        if found is None:
            raise typer.BadParameter("there are no AWS credentials: set AWS_PROFILE, or its like")
        keys = found.get_frozen_credentials()
        os.environ.update(
            AWS_REGION=region, AWS_DEFAULT_REGION=region,
            AWS_ACCESS_KEY_ID=keys.access_key, AWS_SECRET_ACCESS_KEY=keys.secret_key,
            AWS_SESSION_TOKEN=keys.token or "",
        )  # fmt: skip
        if not keys.token:
            del os.environ["AWS_SESSION_TOKEN"]
        self.region, self.table = region, outputs["table_name"]
        project, environment = outputs["function_name"].rsplit("-api-", 1)
        self.paging_key = f"/{project}/{environment}/paging-key"
        self.on_aws = not any(name.startswith("AWS_ENDPOINT_URL") for name in os.environ)
        self.sdk = {name: boto3.client(name, region_name=region) for name in ("dynamodb", "ssm")}
        self.own = {name: tap_stack.Service(name) for name in self.sdk}


def key_of(item_id: str) -> dict[str, Any]:
    """The key of an item of the check, which is its own owner."""
    return {"owner": {"S": item_id}, "id": {"S": item_id}}


def calls_of_dynamodb(stack: Stack, item_id: str) -> Iterator[Call]:
    """The operations that the functions use, and each kind of error; what is written is deleted."""
    table, key = {"TableName": stack.table}, {"Key": key_of(item_id)}
    new = {**table, "ConditionExpression": "attribute_not_exists(id)"}
    item = {
        **key_of(item_id),
        "expires_at": {"N": str(int(time.time()) + 3600)},
        "content": {"M": {"täa ☕": {"L": [{"N": "1.50"}, {"NULL": True}, {"BOOL": False}]}}},
    }
    put = {**new, "Item": item, "ReturnValuesOnConditionCheckFailure": "ALL_OLD"}
    failed = "ConditionalCheckFailedException"
    capacity = {"ReturnConsumedCapacity": "TOTAL"}
    yield "get_item", {**table, **key, "ConsistentRead": True, **capacity}, ""
    yield "put_item", {**put, **capacity}, ""
    yield "put_item", put, failed
    yield "get_item", {**table, **key, "ConsistentRead": True}, ""
    change = {
        "UpdateExpression": "SET changed = :v",
        "ExpressionAttributeValues": {":v": {"N": "2"}},
    }
    yield "update_item", {**table, **key, **change, "ReturnValues": "ALL_NEW"}, ""
    owned = {
        "IndexName": "by_owner", "KeyConditionExpression": "#owner = :owner",
        "ExpressionAttributeNames": {"#owner": "owner"},
        "ExpressionAttributeValues": {":owner": {"S": item_id}},
    }  # fmt: skip
    yield "query", {**table, **owned}, ""
    writes = [{"Put": {**new, "Item": item}}]
    yield "transact_write_items", {"TransactItems": writes}, "TransactionCanceledException"
    yield "get_item", {**table, "Key": {"id": {"N": "1"}}}, "ValidationException"
    yield "get_item", {**key, "TableName": f"{stack.table}.none"}, "ResourceNotFoundException"
    yield "delete_item", {**table, **key}, ""
    yield "delete_item", {**table, **key, "ConditionExpression": "attribute_exists(id)"}, failed
    if stack.on_aws:
        foreign = f"arn:aws:dynamodb:{stack.region}:{FOREIGN_ACCOUNT}:table/none"
        yield "get_item", {**key, "TableName": foreign}, "AccessDeniedException"


def calls_of_ssm(stack: Stack) -> Iterator[Call]:
    """The paging key, still encrypted, and a parameter that does not exist."""
    yield "get_parameter", {"Name": stack.paging_key}, ""
    yield "get_parameter", {"Name": f"{stack.paging_key}/none"}, "ParameterNotFound"


def outcome(client: Any, operation: str, arguments: dict[str, Any]) -> Outcome:
    """The error code, empty for none, and what else the response says."""
    from botocore.exceptions import ClientError

    try:
        response = dict(getattr(client, operation)(**arguments))
    except (ClientError, tap_stack.ServiceError) as error:
        response = dict(error.response)
        response.pop("message", None)  # the SDK has it once more for some errors
    response.pop("ResponseMetadata", None)
    code = response.get("Error", {}).get("Code", "")
    # SSM's are times in the SDK, seconds in its JSON.
    response.get("Parameter", {}).pop("LastModifiedDate", None)
    return code, response


def compare(stack: Stack, service: str, call: Call, undo: Callable[[], None]) -> Check:
    """The same call by both clients from the same state."""
    operation, arguments, code = call
    expected = outcome(stack.sdk[service], operation, arguments)
    if not code:
        undo()
    found = outcome(stack.own[service], operation, arguments)
    name = f"{service} {operation}{' ' if code else ''}{code}"
    if found != expected:
        return Check(name, False, f"the client: {shown(found)}; the SDK: {shown(expected)}")
    return Check(name, found[0] == code, "as the SDK" if found[0] == code else shown(found))


def shown(found: Outcome) -> str:
    """An outcome in a line, without what a parameter holds."""
    code, response = found
    return (
        f"{code} {response['Error'].get('Message')}" if code else f"a result of {sorted(response)}"
    )


def check_calls(stack: Stack) -> Iterator[Check]:
    """All operations and errors by both clients, then that the item is gone."""
    item_id = f"smoke#{uuid.uuid4().hex}"
    here = {"TableName": stack.table, "Key": key_of(item_id)}
    table = stack.sdk["dynamodb"]
    try:
        for call in calls_of_dynamodb(stack, item_id):
            before = table.get_item(**here, ConsistentRead=True).get("Item")

            def undo(before: Any = before) -> None:
                if before:
                    table.put_item(TableName=stack.table, Item=before)
                else:
                    table.delete_item(**here)

            yield compare(stack, "dynamodb", call, undo)
    finally:
        table.delete_item(**here)
    for call in calls_of_ssm(stack):
        yield compare(stack, "ssm", call, lambda: None)


def check_connections(stack: Stack) -> Iterator[Check]:
    """One kept connection, the checksum, the authorities that it trusts."""
    here = {"TableName": stack.table, "Key": key_of("smoke#")}
    calls = {"dynamodb": ("get_item", here), "ssm": ("get_parameter", {"Name": stack.paging_key})}
    for name, (operation, arguments) in calls.items():
        sockets = []
        for _ in range(5):
            getattr(stack.own[name], operation)(**arguments)
            sockets.append(stack.own[name].connection.socket)
        kept = sockets[0] is not None and all(each is sockets[0] for each in sockets)
        yield Check(f"{name}: one connection serves many calls", kept, "kept" if kept else "not")
        if stack.on_aws:
            connection = stack.own[name].connection
            picked = isinstance(connection.socket, ssl.SSLSocket) and not connection.all_authorities
            yield Check(f"{name}: Amazon's authorities are enough", picked, f"{picked}")
    headers = stack.sdk["dynamodb"].get_item(**here)["ResponseMetadata"]["HTTPHeaders"]
    checksum = headers.get("x-amz-crc32", "")
    yield Check("dynamodb: responses have a checksum", checksum.isdecimal(), checksum or "none")


def check_api(stack: Stack) -> Iterator[Check]:
    """What callers without a token get through the gateway."""
    status, _, _ = get(stack, "GET", "/items")
    yield Check("GET /items without a token is 401", status == 401, f"{status}")
    if "GET /health" in tap_stack.all_routes():
        status, _, body = get(stack, "GET", "/health")
        yield Check("GET /health is 200", status == 200, f"{status}")
        status, head, nothing = get(stack, "HEAD", "/health")
        length = head.get("content-length")
        same = (status, length, nothing) == (200, str(len(body)), b"")
        yield Check("HEAD /health has GET's length", same, f"{status}, {length} for {len(body)}")


def get(stack: Stack, method: str, path: str) -> Answer:
    """What the API answers."""
    url = stack.outputs["api_url"].rstrip("/") + path
    return answer(Request(url, method=method), urlopen)  # noqa: S310 - our own output


def answer(request: Request, send: Callable[..., Any]) -> Answer:
    """What a request gets, sent by `urlopen` or its like, whatever the status."""
    try:
        with send(request, timeout=TIMEOUT_SECONDS) as response:
            found = response.status, response.headers, response.read()
    except HTTPError as error:
        found = error.code, error.headers, error.read()
    return found[0], {name.lower(): value for name, value in found[1].items()}, found[2]


def main() -> None:
    """Compares the program's own client with the SDK; reads the stack's outputs as JSON."""
    try:
        stack = Stack(json.load(sys.stdin))
    except (ValueError, KeyError, TypeError) as error:
        typer.echo(
            "error: expected the outputs of a stack with the API on standard input, as JSON: "
            f"pulumi stack output --json | python -m ops.smoke ({tap_stack.format_error(error)})",
            err=True,
        )
        raise typer.Exit(2) from None
    failures = 0
    for part in (check_calls, check_connections, check_api):
        try:
            for check in part(stack):
                failures += not check.passed
                report(check)
        except Exception as error:  # noqa: BLE001 - the other parts are still to be checked
            failures += 1
            report(Check(part.__name__, False, tap_stack.format_error(error)))
    typer.echo(f"{failures} failed" if failures else "all passed")
    raise typer.Exit(1 if failures else 0)


def report(check: Check) -> None:
    """Prints a line of the report."""
    typer.echo(f"{'ok' if check.passed else 'FAILED':7}{check.name:62}{check.found}")


if __name__ == "__main__":
    typer.run(main)
