"""The agent of an instance: which lines of its log files are shipped."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Any

import pytest

from taplocal.web.agent import EVENTS_LIMIT, Agent


def agent(*paths: Path) -> Agent:
    files = [{"file_path": str(each), "log_group_name": each.name} for each in paths]

    async def keys() -> dict[str, str]:
        return {}

    return Agent(
        {"logs": {"logs_collected": {"files": {"collect_list": files}}}},
        endpoint="http://127.0.0.1:1", region="eu-west-1", names={"instance_id": "i-1"},
        owner=os.geteuid(), keys=keys, measure=dict, say=lambda _: None,
    )  # fmt: skip


def test_new_whole_lines_of_each_file_are_shipped_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    missing, quiet, busy = (tmp_path / each for each in ("missing", "quiet", "busy"))
    quiet.touch()
    busy.write_text("one\n\ntwo\nhal")
    made, calls = agent(missing, quiet, busy), list[Any]()

    async def call(_service: str, operation: str, arguments: dict[str, Any]) -> None:
        calls.append((operation, arguments["logGroupName"], arguments.get("logEvents")))

    monkeypatch.setattr(made, "call", call)
    asyncio.run(made.ship())
    asyncio.run(made.ship())
    busy.write_text("one\n\ntwo\nhalf\n")
    asyncio.run(made.ship())
    shipped = [[x["message"] for x in events] for _, _, events in calls if events]
    assert shipped == [["one", "two"], ["half"]]
    assert [operation for operation, *_ in calls] == ["CreateLogStream", *["PutLogEvents"] * 2]
    assert {group for _, group, _ in calls} == {"busy"}


def test_more_lines_than_a_call_takes_are_shipped_by_several(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A line ends with a newline, whatever else is in it."""
    lines = [f"{number}\u2028{number}" for number in range(EVENTS_LIMIT + 5)]
    text = "\n" * EVENTS_LIMIT + "".join(f"{each}\r\n" for each in lines)
    (tmp_path / "busy").write_text(text, newline="")
    made, shipped = agent(tmp_path / "busy"), list[list[str]]()

    async def call(_service: str, operation: str, arguments: dict[str, Any]) -> None:
        if operation == "PutLogEvents":
            shipped.append([x["message"] for x in arguments["logEvents"]])

    monkeypatch.setattr(made, "call", call)
    for _ in range(4):
        asyncio.run(made.ship())
    assert shipped == [lines[:EVENTS_LIMIT], lines[EVENTS_LIMIT:]]
