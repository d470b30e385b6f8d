"""Redrives the events in a dead-letter queue to their function, after the cause is fixed.

    python -m ops.redrive --queue-url URL --function NAME [--dry-run]

Uses the AWS credentials and region of the environment, as the AWS CLI does. They must allow
sqs:ReceiveMessage, sqs:DeleteMessage, sqs:ChangeMessageVisibility and sqs:GetQueueAttributes on the
queue, lambda:InvokeFunction on the alias, and kms:Decrypt on the key.

One event at a time is with the function, and its message is deleted when the function has
succeeded: stopped at any moment, by Ctrl-C or otherwise, nothing is lost, and another run goes on
with the rest. The function is idempotent, so an event that succeeded just then may be repeated. It
is as fast as the function, and slower while that is throttled or fails.
"""

from __future__ import annotations

import json
import os
import random
import re
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from typing import Annotated, Any

import typer

HIDDEN_SECONDS = 900  # what is received is hidden from others, and comes back if this process dies
FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 0.5, 10.0
READ_TIMEOUT_SECONDS = 90  # the function may take 60 s
STOPPED = "stopped: run it again to go on with the rest"


@dataclass(frozen=True)
class Letter:
    """A message of the dead-letter queue: the failed event, and what became of it."""

    id: str
    receipt: str
    event: Any  # None if Lambda did not write the message
    error: str  # why it is in the queue; empty if it was redriven
    number: int = 0  # in this run, from 1
    of: int = 0  # messages when the run began


class Pace:
    """The pause before an event: twice as long after each failure, half as long after a success."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def wait(self) -> None:
        """Pauses, with jitter."""
        time.sleep(random.uniform(0.5, 1) * self.seconds)  # noqa: S311 - no secret

    def adapt(self, succeeded: bool) -> None:
        """Faster or slower from now on."""
        if not succeeded:
            longer = max(2 * self.seconds, FIRST_PAUSE_SECONDS)
            self.seconds = min(longer, LONGEST_PAUSE_SECONDS)
        else:
            self.seconds = self.seconds / 2 if self.seconds > FIRST_PAUSE_SECONDS else 0


def redrive(
    sqs: Any, functions: Any, queue_url: str, function: str, dry_run: bool = False
) -> Generator[Letter, None, None]:
    """Invokes the function's alias `live` with each event, deletes its message and yields it.

    Ends when the queue is empty, or after as many messages as it had at the start. An event that
    fails is tried once more after the others, if one of those succeeded: a scan needs the upload of
    its version, which may come after it. One that fails again, a message that Lambda did not write,
    and all messages of a dry run stay in the queue and are visible when this ends, however it does.
    Raises botocore's errors.
    """
    hidden: dict[str, str] = {}  # id -> newest receipt, of what was received and is in the queue
    pace, failed, helped = Pace(), list[Letter](), False

    def tried(letter: Letter) -> Letter:
        error = deliver(functions, function, letter.event, pace)
        if not error:
            sqs.delete_message(QueueUrl=queue_url, ReceiptHandle=hidden.pop(letter.id))
        return replace(letter, error=error)

    try:
        for letter in receive(sqs, queue_url, hidden):
            if letter.event is None or dry_run:
                yield letter
            elif (done := tried(letter)).error:
                failed.append(done)
            else:
                helped = True
                yield done
        for letter in failed:
            yield tried(letter) if helped else letter
    finally:
        for receipt in hidden.values():
            sqs.change_message_visibility(
                QueueUrl=queue_url, ReceiptHandle=receipt, VisibilityTimeout=0
            )


def receive(sqs: Any, queue_url: str, hidden: dict[str, str]) -> Iterator[Letter]:
    """Each message once, as many as there are now, and notes in `hidden` which are received."""
    attributes = sqs.get_queue_attributes(
        QueueUrl=queue_url, AttributeNames=["ApproximateNumberOfMessages"]
    )
    total, told = int(attributes["Attributes"]["ApproximateNumberOfMessages"]), 0
    while told < total:
        messages = sqs.receive_message(
            QueueUrl=queue_url,
            MaxNumberOfMessages=min(total - told, 10),
            VisibilityTimeout=HIDDEN_SECONDS,
            WaitTimeSeconds=1,
        ).get("Messages", [])
        if not messages:
            return
        letters = [read_letter(each) for each in messages]
        new = [each for each in letters if each.id not in hidden]
        hidden.update((each.id, each.receipt) for each in letters)
        for letter in new:
            told += 1
            yield replace(letter, number=told, of=total)


def deliver(functions: Any, function: str, event: Any, pace: Pace) -> str:
    """The function's error with an event, empty if it succeeded; waits while it is throttled."""
    from botocore.exceptions import ClientError

    while True:
        pace.wait()
        try:
            response = functions.invoke(
                FunctionName=function, Qualifier="live", Payload=json.dumps(event).encode()
            )
        except ClientError as error:
            if error.response["Error"]["Code"] != "TooManyRequestsException":
                raise
            pace.adapt(succeeded=False)
            continue
        failed = "FunctionError" in response
        pace.adapt(succeeded=not failed)
        return error_of(json.loads(response["Payload"].read())) if failed else ""


def read_letter(message: dict[str, Any]) -> Letter:
    """Reads the record that Lambda writes about a failed event."""
    names = message["MessageId"], message["ReceiptHandle"]
    try:
        body = json.loads(message["Body"])
        event, response = body["requestPayload"], body.get("responsePayload")
    except (ValueError, KeyError, TypeError, AttributeError):
        return Letter(*names, None, "the message was not written by Lambda")
    return Letter(*names, event, error_of(response))


def error_of(response: Any) -> str:
    """The error in what a function responded."""
    error = response.get("errorMessage") if isinstance(response, dict) else response
    return str(error or "unknown error")


def describe(letter: Letter) -> str:
    """A message in one line: the object keys in its event, and the error."""
    keys = re.findall(r'"(?:key|objectKey)": ("(?:[^"\\]|\\.)*")', json.dumps(letter.event))
    return f"{', '.join(keys) or 'an event'}: {letter.error or 'redriven'}"


def progress(letters: Generator[Letter, None, None], say: Callable[[str], None]) -> list[str]:
    """Redrives, and says of each message what became of it, then how many; returns their lines."""
    lines: list[str] = []
    redriven = 0
    try:
        with closing(letters):
            for letter in letters:
                lines.append(describe(letter))
                redriven += not letter.error
                say(f"{letter.number} of {letter.of}: {lines[-1]}")
    finally:
        say(f"{redriven} redriven, {len(lines) - redriven} seen and left in the queue")
    return lines


def main(
    queue_url: Annotated[str, typer.Option(help="the stack's output files_dead_letters_url")],
    function: Annotated[str, typer.Option(help="the stack's output files_function_name")],
    dry_run: Annotated[
        bool, typer.Option(help="show the messages and leave them in the queue")
    ] = False,
) -> None:
    """Redrives the events in a dead-letter queue to their function."""
    import boto3
    from botocore.config import Config
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        config = Config(read_timeout=READ_TIMEOUT_SECONDS)
        of: Any = {"region_name": os.environ.get("AWS_REGION")}  # the SDK's name for it is another
        clients = boto3.client("sqs", **of), boto3.client("lambda", config=config, **of)
        progress(redrive(*clients, queue_url, function, dry_run), typer.echo)
    except (BotoCoreError, ClientError) as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(1) from None
    except KeyboardInterrupt:
        typer.echo(STOPPED, err=True)
        raise typer.Exit(130) from None


if __name__ == "__main__":
    typer.run(main)
