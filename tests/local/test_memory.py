"""Memory does not grow with requests: the emulator's stores, what runs the web environment."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from benchmarks.emulator_memory import UNTHROTTLED, Load, memory
from benchmarks.web_soak import CLIENTS, INSTANCES, PARTS, processes
from demo.web import WebEnvironment
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

VISITS = 4_000
GROWTH_MIB = 8  # of a part; 2 KiB a request, which is far more than what differs from run to run

#: It has so many points a minute: some 10 elements a request if each value stays.
METRICS = "ministack.services.cloudwatch._metrics"


@pytest.fixture
def counted(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Iterator[Session]:
    """These systems of the dev environment on an emulator that counts its stores."""
    monkeypatch.setattr(emulator, "PROGRAM", ROOT / "tests" / "ministack_probe.py")
    try:
        yield session.up(
            ROOT,
            "dev",
            folder=tmp_path,
            config={**UNTHROTTLED, "systems": request.param},
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


def assert_level(before: dict[str, int], after: dict[str, int], requests: int) -> None:
    """No store has grown with so many requests, but for data and a few points of metrics."""
    grown = {name: (count - before.get(name, 0)) / requests for name, count in after.items()}
    limits = {**dict.fromkeys(grown, 0.5), **dict.fromkeys(DATA, 100.0), METRICS: 3.0}
    # Points are objects, too, and so are changes of tables, of which 20,000 are kept for a restore.
    limits["objects"] = limits[METRICS] + 1.0
    assert not {name: count for name, count in grown.items() if count > limits[name]}


# Without the web environment, whose instances log all the time.
@pytest.mark.parametrize("counted", ["api,files"], indirect=True)
def test_no_store_grows_with_the_requests(counted: Session, tmp_path: Path) -> None:
    load = Load(counted)
    load.run(range(WARM))
    time.sleep(SETTLE_SECONDS)
    before = stores(counted, tmp_path)
    load.run(range(WARM, WARM + MEASURED))
    time.sleep(SETTLE_SECONDS)
    assert_level(before, stores(counted, tmp_path), MEASURED)


@pytest.mark.skipif(not Path("/proc").exists(), reason="no /proc")
@pytest.mark.parametrize("counted", ["web"], indirect=True)
def test_the_web_environments_memory_is_level(counted: Session, tmp_path: Path) -> None:
    found, emulator_pid = WebEnvironment(counted), counted.cloud.emulator.pid
    found.resize(INSTANCES)

    def visited() -> tuple[dict[str, int], dict[str, float]]:
        with found.visitors(CLIENTS, 0) as visitors:
            eventually(lambda: visitors.answers > VISITS)
        assert not visitors.failures
        time.sleep(SETTLE_SECONDS)
        parts = processes(found, emulator_pid)
        used = {part: sum(memory(each)[1] for each in parts[part]) for part in PARTS}
        return stores(counted, tmp_path), used

    before, used_before = visited()
    after, used_after = visited()
    assert_level(before, after, VISITS)
    grown = {part: used_after[part] - used_before[part] for part in PARTS}
    assert not {part: mib for part, mib in grown.items() if mib > GROWTH_MIB}, used_after
