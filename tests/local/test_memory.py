"""What the emulator stores does not grow with the requests that it has answered."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from benchmarks.emulator_memory import UNTHROTTLED, Load
from taplocal import emulator, session
from taplocal.server.bounds import RECENT_SECONDS, SWEEP_SECONDS
from taplocal.session import Session
from tests.local.conftest import HANG_SECONDS, ROOT

WARM, MEASURED = 1_500, 1_500
SETTLE_SECONDS = RECENT_SECONDS + SWEEP_SECONDS + 1
#: Stores that grow because data do, or for a time that AWS sets.
DATA = {
    "ministack.services.dynamodb._tables": "items, and a record of each file",
    "ministack.services.dynamodb._txn_idempotency": "DynamoDB keeps a client's token for ten minutes",
    "ministack.services.s3._object_versions": "versions of files",
}

#: It has so many points a minute: some 10 elements a request if each value stays.
METRICS = "ministack.services.cloudwatch._metrics"


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Session]:
    """The dev environment on an emulator that counts its stores."""
    monkeypatch.setattr(emulator, "PROGRAM", ROOT / "tests" / "ministack_probe.py")
    try:
        yield session.up(
            ROOT,
            "dev",
            folder=tmp_path,
            config={**UNTHROTTLED, "systems": "api,files"},  # web instances log all the time
            say=print,
            report=lambda _: None,
        )[0]
    finally:
        session.down(ROOT, None, folder=tmp_path, report=lambda _: None)


def stores(opened: Session, folder: Path) -> dict[str, int]:
    """How many elements each store has."""
    path = folder / "stores.json"
    path.unlink(missing_ok=True)
    os.kill(opened.cloud.emulator.pid, signal.SIGUSR1)
    eventually(path.exists)
    found: dict[str, int] = json.loads(path.read_text())
    return found


def eventually(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + HANG_SECONDS
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_no_store_grows_with_the_requests(counted: Session, tmp_path: Path) -> None:
    load = Load(counted)
    load.run(range(WARM))
    time.sleep(SETTLE_SECONDS)
    before = stores(counted, tmp_path)
    load.run(range(WARM, WARM + MEASURED))
    time.sleep(SETTLE_SECONDS)
    after = stores(counted, tmp_path)
    grown = {name: (count - before.get(name, 0)) / MEASURED for name, count in after.items()}
    limits = {**dict.fromkeys(grown, 0.5), **dict.fromkeys(DATA, 100.0), METRICS: 3.0}
    limits["objects"] = limits[METRICS]  # points are objects, too
    assert not {name: count for name, count in grown.items() if count > limits[name]}
