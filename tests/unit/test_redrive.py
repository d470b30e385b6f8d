"""Redriving dead letters: nothing lost, nothing doubled, no faster than the function."""

from __future__ import annotations

import io
import json
from typing import Any

import pytest
import typer
from botocore.exceptions import ClientError
from typer.testing import CliRunner

from ops.redrive import LONGEST_PAUSE_SECONDS, Letter, describe, main, redrive
from tests.fakes import client_error


class Queue:
    """A queue of SQS: messages are hidden while they are with somebody."""

    def __init__(self, *bodies: str):
        self.messages = {str(number): body for number, body in enumerate(bodies)}
        self.hidden: set[str] = set()
        self.receipts = 0

    def get_queue_attributes(self, **_: Any) -> dict[str, Any]:
        visible = len(self.messages) - len(self.hidden)
        return {"Attributes": {"ApproximateNumberOfMessages": str(visible)}}

    def receive_message(self, **wanted: Any) -> dict[str, Any]:
        assert wanted["VisibilityTimeout"] >= 10 * (60 + LONGEST_PAUSE_SECONDS)
        found = [x for x in self.messages if x not in self.hidden][: wanted["MaxNumberOfMessages"]]
        self.hidden.update(found)
        self.receipts += 1
        return {
            "Messages": [
                {"MessageId": x, "ReceiptHandle": f"{x}/{self.receipts}", "Body": self.messages[x]}
                for x in found
            ]
        }

    def delete_message(self, **message: Any) -> None:
        gone = message["ReceiptHandle"].partition("/")[0]
        del self.messages[gone]
        self.hidden.remove(gone)

    def change_message_visibility(self, **message: Any) -> None:
        assert message["VisibilityTimeout"] == 0
        self.hidden.discard(message["ReceiptHandle"].partition("/")[0])


class Function:
    """The function: `outcomes` are its next ones, a success each after the last."""

    def __init__(self, *outcomes: Any):
        self.outcomes, self.events = list(outcomes), []  # type: ignore[var-annotated]

    def invoke(self, **invocation: Any) -> dict[str, Any]:
        assert "InvocationType" not in invocation  # it waits for the outcome
        assert invocation["Qualifier"] == "live"
        outcome = self.outcomes.pop(0) if self.outcomes else None
        if isinstance(outcome, BaseException):
            raise outcome
        self.events.append(json.loads(invocation["Payload"])["n"])
        error = {"errorMessage": outcome}
        failed = {"FunctionError": "Unhandled"} if outcome else {}
        return {**failed, "Payload": io.BytesIO(json.dumps(error).encode())}


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """How long it would have waited before each event, at most."""
    found: list[float] = []
    monkeypatch.setattr("random.uniform", lambda low, high: high)
    monkeypatch.setattr("time.sleep", found.append)
    return found


def letter(number: int) -> str:
    """What Lambda writes about an event."""
    payload = {"n": number, "Records": [{"s3": {"object": {"key": f"ann/{number}"}}}]}
    return json.dumps({"requestPayload": payload, "responsePayload": {"errorMessage": "throttled"}})


def throttled() -> ClientError:
    return client_error("TooManyRequestsException", "Invoke")


def run(queue: Queue, function: Function, dry_run: bool = False) -> list[Letter]:
    return list(redrive(queue, function, "url", "files", dry_run))


def test_each_letter_is_redriven_once_and_progress_is_told(pauses: list[float]) -> None:
    queue, function = Queue(*map(letter, range(25))), Function()
    done = run(queue, function)
    assert function.events == list(range(25))
    assert queue.messages == {}
    assert [(each.number, each.of) for each in done] == [(n + 1, 25) for n in range(25)]
    assert describe(done[3]) == '"ann/3": redriven'
    assert set(pauses) == {0}


def test_a_letter_of_a_scan_names_its_object_too(pauses: list[float]) -> None:
    payload = {"n": 0, "detail": {"s3ObjectDetails": {"objectKey": "ann/a"}}}
    queue = Queue(json.dumps({"requestPayload": payload, "responsePayload": None}))
    assert [describe(each) for each in run(queue, Function())] == ['"ann/a": redriven']


def test_it_slows_down_while_the_function_is_throttled_and_the_letter_is_not_given_up(
    pauses: list[float],
) -> None:
    queue, function = Queue(*map(letter, range(5))), Function(None, *[throttled()] * 7)
    run(queue, function)
    assert function.events == [0, 1, 2, 3, 4]
    assert pauses == [0, 0, 0.5, 1, 2, 4, 8, 10, 10, 5, 2.5, 1.25]
    assert queue.messages == {}


def test_a_letter_that_fails_again_stays_once_with_its_error_and_slows_it_down(
    pauses: list[float],
) -> None:
    poison = "1 of 1 records: ann/1: poison"
    queue, function = Queue(*map(letter, range(3))), Function(None, poison, None, poison)
    done = run(queue, function)
    assert [each.number for each in done] == [1, 3, 2]
    assert describe(done[2]) == f'"ann/1": {poison}'
    assert queue.messages == {"1": letter(1)}
    assert queue.hidden == set()
    assert pauses == [0, 0, 0.5, 0]


def test_a_letter_that_needs_a_later_one_is_redriven_after_it(pauses: list[float]) -> None:
    queue, function = Queue(*map(letter, range(3))), Function("its upload is not recorded")
    assert [each.error for each in run(queue, function)] == ["", "", ""]
    assert function.events == [0, 1, 2, 0]
    assert queue.messages == {}


def test_nothing_is_tried_twice_while_nothing_succeeds(pauses: list[float]) -> None:
    queue, function = Queue(*map(letter, range(2))), Function("no", "no")
    assert [each.error for each in run(queue, function)] == ["no", "no"]
    assert function.events == [0, 1]


def test_what_lambda_did_not_write_stays(pauses: list[float]) -> None:
    queue, function = Queue("hello", letter(1)), Function()
    done = run(queue, function)
    assert (done[0].event, done[0].error) == (None, "the message was not written by Lambda")
    assert (queue.messages, queue.hidden, function.events) == ({"0": "hello"}, set(), [1])


def test_a_dry_run_changes_nothing(pauses: list[float]) -> None:
    queue, function = Queue(*map(letter, range(12))), Function()
    assert [each.error for each in run(queue, function, dry_run=True)] == ["throttled"] * 12
    assert (len(queue.messages), queue.hidden, function.events) == (12, set(), [])


@pytest.mark.parametrize("stop", [KeyboardInterrupt(), client_error("AccessDenied", "Invoke")])
def test_one_that_was_stopped_goes_on_without_losing_or_doubling_a_letter(
    pauses: list[float], stop: BaseException
) -> None:
    queue, function = Queue(*map(letter, range(15))), Function(*[None] * 6, stop)
    with pytest.raises(type(stop)):
        run(queue, function)
    assert len(queue.messages) == 9
    assert queue.hidden == set()  # not for another quarter of an hour
    run(queue, function)
    assert sorted(function.events) == list(range(15))
    assert queue.messages == {}


def test_one_that_is_left_early_releases_what_it_received(pauses: list[float]) -> None:
    queue = Queue(*map(letter, range(5)))
    letters = redrive(queue, Function(), "url", "files")
    next(letters)
    letters.close()
    assert (len(queue.messages), queue.hidden) == (4, set())


def test_a_message_that_comes_back_meanwhile_is_not_redriven_twice(pauses: list[float]) -> None:
    queue, function = Queue(*map(letter, range(12))), Function("poison", *[None] * 11, "poison")
    letters = redrive(queue, function, "url", "files")
    next(letters)
    queue.hidden.discard("0")  # its time was over
    for _ in letters:
        pass
    assert function.events == [*range(12), 0]  # what failed again, once more
    assert queue.messages == {"0": letter(0)}
    assert queue.hidden == set()


def test_the_command_says_how_to_go_on_when_it_is_stopped(
    pauses: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    clients = {"sqs": Queue(*map(letter, range(3))), "lambda": Function(None, KeyboardInterrupt())}
    regions = []

    def client(name: str, region_name: str, **_: Any) -> Any:
        regions.append(region_name)
        return clients[name]

    monkeypatch.setattr("boto3.client", client)
    monkeypatch.setenv("AWS_REGION", "eu-west-9")
    app = typer.Typer()
    app.command()(main)
    result = CliRunner().invoke(app, ["--queue-url", "url", "--function", "files"])
    assert result.exit_code == 130
    assert regions == ["eu-west-9", "eu-west-9"]
    assert '1 of 3: "ann/0": redriven' in result.output
    assert "run it again to go on" in result.output
    assert "1 redriven, 0 seen and left in the queue" in result.output
