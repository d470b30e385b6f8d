"""Commands of the local cloud as functions: what they print, and what they say of a wrong name."""

from __future__ import annotations

import json
import sys
from types import SimpleNamespace
from typing import Any

import pytest

from taplocal import commands, session
from taplocal.errors import TapLocalError

OUTPUTS = {"table_name": "tap-stack-items-dev", "api_url": "http://127.0.0.1:4566"}


@pytest.fixture(autouse=True)
def opened(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "opened", lambda *_: SimpleNamespace(outputs=OUTPUTS))


def printed(capsys: pytest.CaptureFixture[str], **options: Any) -> str:
    commands.outputs(**options)
    return capsys.readouterr().out


def test_one_output_is_printed_alone_and_all_by_their_names(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert printed(capsys, name="table_name") == "tap-stack-items-dev\n"
    assert json.loads(printed(capsys, name="table_name", as_json=True)) == "tap-stack-items-dev"
    assert json.loads(printed(capsys, as_json=True)) == OUTPUTS
    assert all(each in printed(capsys) for each in [*OUTPUTS, *OUTPUTS.values()])


@pytest.mark.parametrize(
    ("name", "hint"),
    [("table_nam", "did you mean table_name"), ("x", "use one of table_name, api_url")],
)
def test_an_output_that_does_not_exist_is_an_error_with_the_nearest_one(
    name: str, hint: str
) -> None:
    with pytest.raises(TapLocalError, match=f'no output "{name}": {hint}'):
        commands.outputs(name)


@pytest.mark.parametrize("as_json", [True, False])
def test_an_error_is_told_on_standard_error_and_as_json_if_that_is_asked_for(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, as_json: bool
) -> None:
    monkeypatch.setattr(sys, "argv", ["taplocal", "status", *(["--json"] if as_json else [])])
    with pytest.raises(SystemExit) as ended:
        commands._fail("it is away", 3)
    shown, said = capsys.readouterr()
    assert (ended.value.code, said) == (3, "error: it is away\n")
    assert (json.loads(shown) if shown else None) == ({"error": "it is away"} if as_json else None)
