"""The pipes of the local cloud: filters, templates, what is kept; and the events of the stack."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ministack.core import persistence
from ministack.services import dynamodb
from ministack.services import pipes as ministack

import tap_stack
from taplocal.server import pipes

VERSION, SIZE, GONE = {"record": "version#00A"}, {"size": "3"}, {"deleted_at": "2026-11-28"}
NEWEST, MARKER = {"record": "newest"}, {"delete_marker": "yes"}


def image(attributes: dict[str, str]) -> dict[str, Any]:
    """An item as a stream has it."""
    return {name: {"N" if name == "size" else "S": text} for name, text in attributes.items()}


def change(name: str, new: dict[str, str], old: dict[str, str] | None = None) -> dict[str, Any]:
    """A record of a stream."""
    images = {"NewImage": image(new)} | ({} if old is None else {"OldImage": image(old)})
    return {"eventID": "e1", "eventName": name, "dynamodb": images}


def told_by(record: dict[str, Any]) -> set[str]:
    """The events of the stack that tell a change."""
    found = set()
    for event, rows in tap_stack.FILE_EVENTS.items():
        patterns = [{"Pattern": tap_stack.event_pattern(*row)} for row in rows]
        pipe = {"SourceParameters": {"FilterCriteria": {"Filters": patterns}}}
        found |= {event} if pipes.passes(pipe, record) else set()
    return found


@pytest.mark.parametrize(
    ("record", "events"),
    [
        (change("INSERT", VERSION | SIZE), {"recorded"}),
        (change("INSERT", VERSION | {"failure": "It was gone."}), set()),
        (change("INSERT", VERSION | MARKER), set()),
        (change("INSERT", VERSION | MARKER | GONE), set()),
        (change("MODIFY", VERSION | MARKER | GONE, VERSION | MARKER), set()),
        (change("MODIFY", VERSION | SIZE | GONE, VERSION | SIZE), {"deleted"}),
        (change("MODIFY", VERSION | SIZE | {"threat": "x"}, VERSION | SIZE), set()),
        (change("INSERT", NEWEST | SIZE), set()),
        (change("MODIFY", NEWEST | SIZE, NEWEST | SIZE), set()),
        (change("MODIFY", NEWEST | SIZE | GONE, NEWEST | SIZE), {"deleted"}),
        (change("INSERT", NEWEST | SIZE | GONE), {"deleted"}),
        (change("MODIFY", NEWEST | SIZE | GONE, NEWEST | SIZE | GONE), set()),
        (change("MODIFY", NEWEST | SIZE | GONE, NEWEST | GONE), {"deleted"}),
        (change("MODIFY", NEWEST | GONE, NEWEST | GONE), set()),
        (change("MODIFY", NEWEST | SIZE, NEWEST | SIZE | GONE), {"recorded"}),
        (change("MODIFY", {"record": "a/2026-11-28/text/plain/0", "bytes": "3"}), set()),
        ({"eventName": "REMOVE", "dynamodb": {"OldImage": image(VERSION | SIZE)}}, set()),
    ],
)
def test_each_change_has_its_event_or_none(record: dict[str, Any], events: set[str]) -> None:
    assert told_by(record) == events


def test_a_pipe_without_filters_takes_all() -> None:
    assert pipes.passes({}, change("INSERT", VERSION))


def test_a_template_has_texts_in_quotes_and_the_record_without_one() -> None:
    record = change("INSERT", {"key": 'a "ä\\\n', **SIZE})
    template = '{"key": <$.dynamodb.NewImage.key.S>, "size": <$.dynamodb.NewImage.size.N>}'
    assert json.loads(pipes.rendered(template, record)) == {"key": 'a "ä\\\n', "size": "3"}
    assert json.loads(pipes.rendered("", record)) == record
    with pytest.raises(pipes.UnknownPath, match=r"nothing at \$\.dynamodb\.NewImage\.id\.S"):
        pipes.rendered('{"id": <$.dynamodb.NewImage.id.S>}', record)


@pytest.fixture
def stream() -> Iterator[str]:
    """The name of a table whose stream has ten records."""
    dynamodb._stream_records["t"] = [change("INSERT", VERSION)] * 10
    yield "t"
    ministack.reset()
    dynamodb._stream_records.clear()
    dynamodb._stream_trimmed.clear()


def reads(name: str, position: int) -> None:
    """A pipe of that table."""
    arn = f"arn:aws:pipes:eu-west-1:0:pipe/{name}"
    source = "arn:aws:dynamodb:eu-west-1:0:table/t/stream/1"
    ministack._pipes[name] = {"Name": name, "Arn": arn, "Source": source}
    ministack._positions[arn] = position


def test_a_record_goes_when_all_pipes_have_read_it(stream: str) -> None:
    for at, left in ((0, 10), (3, 7), (10, 4)):
        reads("fast", at)
        reads("slow", min(at, 6))
        pipes.forget(stream)
        assert len(dynamodb._stream_records[stream]) == left
    assert dynamodb.stream_end_position(stream) == 10


def test_a_stream_is_in_the_state_that_is_kept(
    stream: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("get_state", "load_persisted_state"):
        monkeypatch.setattr(ministack, name, getattr(ministack, name))  # undone at the end
    monkeypatch.setattr(persistence, "STATE_DIR", str(tmp_path))
    monkeypatch.setattr(persistence, "PERSIST_STATE", True)
    pipes.keep_streams()
    reads("slow", 4)
    pipes.forget(stream)
    persistence.save_state("pipes", ministack.get_state())
    ministack.reset()
    dynamodb._stream_records.clear()
    dynamodb._stream_trimmed.clear()
    ministack.load_persisted_state(persistence.load_state("pipes"))
    assert dynamodb.stream_records_since(stream, 4, 100) == [change("INSERT", VERSION)] * 6
    assert (dynamodb.stream_start_position(stream), dynamodb.stream_end_position(stream)) == (4, 10)
    assert [*ministack._positions.values()] == [4]


@pytest.mark.parametrize(
    ("changed", "error"),
    [
        ({"TargetParameters": {"InputTemplate": "<aws.pipes.pipe-arn>"}}, "is no path"),
        ({"SourceParameters": {"FilterCriteria": {"Filters": [{"Pattern": "{"}]}}}, "Invalid JSON"),
    ],
)
def test_a_pipe_that_cannot_be_is_refused(changed: dict[str, Any], error: str) -> None:
    assert pipes.invalid({}) is None
    status, _, body = pipes.invalid(changed)
    assert (status, error in json.loads(body)["message"]) == (400, True)
