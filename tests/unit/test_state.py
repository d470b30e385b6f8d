"""The local cloud's state on a disk that is full, and after a crash: nothing that was written is lost."""

from __future__ import annotations

import json
import resource
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from taplocal.emulator import RECORD, Emulator, recorded
from taplocal.errors import TapLocalError
from taplocal.state import Deployed, State


@contextmanager
def room_for(size: int) -> Iterator[None]:
    """No file may become longer: as on a full disk, a part of a write succeeds."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def deployed(name: str) -> Deployed:
    return Deployed(type="aws:sqs/queue:Queue", name=name, id=name, inputs={}, outputs={})


def test_a_journal_whose_disk_was_full_for_a_moment_has_all_other_changes(tmp_path: Path) -> None:
    state = State(tmp_path / "state.json")
    state.reset("m", "eu-west-1")
    state.put("urn:a", deployed("a"))
    for room in range(1, 40, 3):
        with (
            room_for(state.journal.stat().st_size + room),
            pytest.raises(OSError, match="journal"),
        ):
            state.put(f"urn:lost-{room}", deployed("b"))
        state.put(f"urn:{room}", deployed("c"))
    expected = {"urn:a", *(f"urn:{room}" for room in range(1, 40, 3))}
    assert set(State(tmp_path / "state.json").resources) == expected == set(state.resources)


def test_a_state_that_does_not_fit_leaves_the_one_before(tmp_path: Path) -> None:
    state = State(tmp_path / "state.json")
    state.reset("m", "eu-west-1")
    state.put("urn:a", deployed("a"))
    with room_for(20), pytest.raises(OSError):
        state.finish({"url": "x"})
    again = State(tmp_path / "state.json")
    assert (set(again.resources), again.complete, again.outputs) == ({"urn:a"}, False, {})


def test_half_a_line_of_a_crash_is_given_up_before_another_follows(tmp_path: Path) -> None:
    state = State(tmp_path / "state.json")
    state.reset("m", "eu-west-1")
    state.put("urn:a", deployed("a"))
    with state.journal.open("ab") as file:
        file.write(b'{"urn:half": {"type"')
    for name in "bc":
        State(state.path).put(f"urn:{name}", deployed(name))
    assert [*State(state.path).resources] == ["urn:a", "urn:b", "urn:c"]


def test_a_line_that_is_being_written_is_left_to_its_writer(tmp_path: Path) -> None:
    state = State(tmp_path / "state.json")
    state.reset("m", "eu-west-1")
    state.put("urn:a", deployed("a"))
    line = json.dumps({"urn:b": asdict(deployed("b"))}) + "\n"
    with state.journal.open("ab", buffering=0) as file:
        file.write(line[:20].encode())
        assert [*State(state.path).resources] == ["urn:a"], "as `status` reads it"
        file.write(line[20:].encode())
    assert [*State(state.path).resources] == ["urn:a", "urn:b"]


def test_a_state_is_read_while_runs_end(tmp_path: Path) -> None:
    state = State(tmp_path / "state.json")
    state.reset("m", "eu-west-1")
    ended = threading.Event()

    def runs() -> None:
        for number in range(1_000):
            state.put("urn:a", deployed(f"{number}"))
            state.finish({})
        ended.set()

    threading.Thread(target=runs).start()
    while not ended.is_set():
        assert State(state.path).marker == "m"


def test_a_whole_journal_is_read_and_left_as_it_is(tmp_path: Path) -> None:
    state = State(tmp_path / "state.json")
    state.reset("m", "eu-west-1")
    state.put("urn:a", deployed("a"))
    before = state.journal.stat()
    assert set(State(state.path).resources) == {"urn:a"}
    assert state.journal.stat() == before, "another process may be writing it"


def test_the_emulator_of_a_folder_is_what_its_record_says(tmp_path: Path) -> None:
    assert recorded(tmp_path) is None
    (tmp_path / RECORD).write_text(json.dumps({"url": "http://a", "marker": "m", "pid": 7}))
    assert recorded(tmp_path) == Emulator("http://a", "m", 7)


@pytest.mark.parametrize(
    "record",
    ["", "[]", "{}", {"url": 1, "marker": "m"}, {"url": "http://a", "marker": "m", "pid": "7"}],
)
def test_a_record_of_an_emulator_that_is_none_says_what_to_do(tmp_path: Path, record: Any) -> None:
    text = record if isinstance(record, str) else json.dumps(record)
    (tmp_path / RECORD).write_text(text)
    with pytest.raises(TapLocalError, match=r"emulator.json is not valid .*: delete .* run `up`"):
        recorded(tmp_path)
