"""The emulator's keeper: what is saved, and when."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from taplocal.keeper import Keeper, unsaved


def request(operation: str, method: str = "POST", path: str = "/") -> dict[str, Any]:
    target = [(b"x-amz-target", f"Service_1.{operation}".encode())] if operation else []
    return {"type": "http", "method": method, "path": path, "headers": target}


@pytest.mark.parametrize(
    ("scope", "now", "later"),
    [
        (request("PutItem"), True, False),
        (request("GetItem"), False, False),
        (request("PutMetricData"), False, True),  # an agent's, each second
        (request("PutLogEvents"), False, True),
        (request("", "GET"), False, False),
        (request("", "GET", "/_aws/execute-api/x/items"), True, False),
        (request("", "PUT"), True, False),
        ({"type": "lifespan"}, False, False),
    ],
)
def test_a_change_is_announced_at_once_and_telemetry_with_the_next_one(
    tmp_path: Path, scope: dict[str, Any], now: bool, later: bool
) -> None:
    (tmp_path / "state").mkdir()
    keeper = Keeper(tmp_path, list)
    keeper._note(scope)()
    assert (unsaved(tmp_path) is not None) is now
    assert (keeper.telemetry is not None) is later
