"""Redrives the events in a dead-letter queue to their function, after the cause is fixed.

    python -m ops.redrive --queue-url URL --function NAME [--dry-run]

Uses the AWS credentials and region of the environment, as the AWS CLI does. They must allow
sqs:ReceiveMessage, sqs:DeleteMessage, sqs:ChangeMessageVisibility and sqs:GetQueueAttributes on the
queue, lambda:InvokeFunction on the alias, and kms:Decrypt on the key. Safe to repeat: the function
is idempotent.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any

import typer

VISIBILITY_TIMEOUT_SECONDS = 60


@dataclass(frozen=True)
class Letter:
    """A message of the dead-letter queue: the failed event and its error."""

    receipt: str
    event: Any  # None if Lambda did not write the message
    error: str


def redrive(
    sqs: Any, functions: Any, queue_url: str, function: str, dry_run: bool = False
) -> Iterator[Letter]:
    """Invokes the function's alias `live` with each event, deletes its message and yields it.

    Stops when the queue is empty, or after as many messages as it had at the start: an event that
    fails again arrives as a new message. Messages that Lambda did not write, and all messages of a
    dry run, stay in the queue. Raises botocore's errors.
    """
    attributes = sqs.get_queue_attributes(
        QueueUrl=queue_url, AttributeNames=["ApproximateNumberOfMessages"]
    )
    remaining = int(attributes["Attributes"]["ApproximateNumberOfMessages"])
    retained = []
    while remaining > 0 and (letters := receive(sqs, queue_url, remaining)):
        for letter in letters:
            if letter.event is None or dry_run:
                retained.append(letter)
            else:
                functions.invoke(
                    FunctionName=function,
                    Qualifier="live",
                    InvocationType="Event",
                    Payload=json.dumps(letter.event).encode(),
                )
                sqs.delete_message(QueueUrl=queue_url, ReceiptHandle=letter.receipt)
            yield letter
        remaining -= len(letters)
    for letter in retained:
        sqs.change_message_visibility(
            QueueUrl=queue_url, ReceiptHandle=letter.receipt, VisibilityTimeout=0
        )


def receive(sqs: Any, queue_url: str, limit: int) -> list[Letter]:
    """At most `limit` messages, hidden from other consumers for a minute."""
    received = sqs.receive_message(
        QueueUrl=queue_url,
        MaxNumberOfMessages=min(limit, 10),
        VisibilityTimeout=VISIBILITY_TIMEOUT_SECONDS,
        WaitTimeSeconds=1,
    )
    return [read_letter(message) for message in received.get("Messages", [])]


def read_letter(message: dict[str, Any]) -> Letter:
    """Reads the record that Lambda writes about a failed event."""
    try:
        body = json.loads(message["Body"])
        event, response = body["requestPayload"], body.get("responsePayload") or {}
    except (ValueError, KeyError, TypeError, AttributeError):
        return Letter(message["ReceiptHandle"], None, "the message was not written by Lambda")
    error = response.get("errorMessage") if isinstance(response, dict) else response
    return Letter(message["ReceiptHandle"], event, str(error or "unknown error"))


def describe(letter: Letter) -> str:
    """A message in one line: the object keys in its event, and the error."""
    keys = re.findall(r'"key": ("(?:[^"\\]|\\.)*")', json.dumps(letter.event))
    return f"{', '.join(keys) or 'an event'}: {letter.error}"


def main(
    queue_url: Annotated[str, typer.Option(help="the stack's output files_dead_letters_url")],
    function: Annotated[str, typer.Option(help="the stack's output files_function_name")],
    dry_run: Annotated[
        bool, typer.Option(help="show the messages and leave them in the queue")
    ] = False,
) -> None:
    """Redrives the events in a dead-letter queue to their function."""
    import boto3
    from botocore.exceptions import BotoCoreError, ClientError

    counts = {True: 0, False: 0}
    try:
        clients = boto3.client("sqs"), boto3.client("lambda")
        for letter in redrive(*clients, queue_url, function, dry_run):
            counts[letter.event is not None] += 1
            typer.echo(describe(letter))
    except (BotoCoreError, ClientError) as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(1) from None
    done = "would be redriven" if dry_run else "redriven"
    typer.echo(f"{counts[True]} {done}, {counts[False]} left in the queue")


if __name__ == "__main__":
    typer.run(main)
