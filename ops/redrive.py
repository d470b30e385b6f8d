"""Puts the events in a dead-letter queue back to their function, once what failed is mended.

    python -m ops.redrive --queue-url URL --function NAME [--dry-run]

Uses the AWS credentials and region of the environment, as the AWS CLI does. They need
sqs:ReceiveMessage, sqs:DeleteMessage, sqs:ChangeMessageVisibility and sqs:GetQueueAttributes on the
queue, lambda:InvokeFunction on the alias, and kms:Decrypt on the key. Safe to repeat: the function
counts no event twice.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any

import typer

SECONDS_HIDDEN = 60  # how long a letter that is being looked at is shown to nobody else


@dataclass(frozen=True)
class Letter:
    """A message of the queue: the event that failed, and why."""

    receipt: str
    event: Any  # None if the message is no letter of Lambda's
    error: str


def redrive(
    sqs: Any, functions: Any, queue_url: str, function: str, dry_run: bool = False
) -> Iterator[Letter]:
    """Invokes the function's alias `live` with each event, removes its letter and yields it.

    Ends when the queue is empty, or when it has seen as many letters as there were at the start: an
    event that fails again comes back as a new one. Raises botocore's errors.
    """
    counted = sqs.get_queue_attributes(
        QueueUrl=queue_url, AttributeNames=["ApproximateNumberOfMessages"]
    )
    left = int(counted["Attributes"]["ApproximateNumberOfMessages"])
    kept = []
    while left > 0 and (letters := receive(sqs, queue_url, left)):
        for letter in letters:
            if letter.event is None or dry_run:
                kept.append(letter)
            else:
                functions.invoke(
                    FunctionName=function,
                    Qualifier="live",
                    InvocationType="Event",
                    Payload=json.dumps(letter.event).encode(),
                )
                sqs.delete_message(QueueUrl=queue_url, ReceiptHandle=letter.receipt)
            yield letter
        left -= len(letters)
    for letter in kept:
        sqs.change_message_visibility(
            QueueUrl=queue_url, ReceiptHandle=letter.receipt, VisibilityTimeout=0
        )


def receive(sqs: Any, queue_url: str, most: int) -> list[Letter]:
    """Some letters, hidden from everybody else for a minute; none if the queue is empty."""
    received = sqs.receive_message(
        QueueUrl=queue_url,
        MaxNumberOfMessages=min(most, 10),
        VisibilityTimeout=SECONDS_HIDDEN,
        WaitTimeSeconds=1,
    )
    return [read_letter(message) for message in received.get("Messages", [])]


def read_letter(message: dict[str, Any]) -> Letter:
    """What Lambda wrote about an event that failed; anything else is left where it is."""
    try:
        body = json.loads(message["Body"])
        event, answer = body["requestPayload"], body.get("responsePayload") or {}
    except (ValueError, KeyError, TypeError, AttributeError):
        return Letter(message["ReceiptHandle"], None, "this is no letter of Lambda's")
    error = answer.get("errorMessage") if isinstance(answer, dict) else answer
    return Letter(message["ReceiptHandle"], event, str(error or "no error was given"))


def told(letter: Letter) -> str:
    """A letter as a line for a person: the keys that its event names, and the error."""
    keys = re.findall(r'"key": ("(?:[^"\\]|\\.)*")', json.dumps(letter.event))
    return f"{', '.join(keys) or 'an event'}: {letter.error}"


def main(
    queue_url: Annotated[str, typer.Option(help="the stack's output files_dead_letters_url")],
    function: Annotated[str, typer.Option(help="the stack's output files_function_name")],
    dry_run: Annotated[bool, typer.Option(help="show the letters, change nothing")] = False,
) -> None:
    """Puts the events in a dead-letter queue back to their function."""
    import boto3
    from botocore.exceptions import BotoCoreError, ClientError

    counts = {True: 0, False: 0}
    try:
        clients = boto3.client("sqs"), boto3.client("lambda")
        for letter in redrive(*clients, queue_url, function, dry_run):
            counts[letter.event is not None] += 1
            typer.echo(told(letter))
    except (BotoCoreError, ClientError) as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(1) from None
    done = "would be put back" if dry_run else "put back"
    typer.echo(f"{counts[True]} {done}, {counts[False]} left where they are")


if __name__ == "__main__":
    typer.run(main)
