"""Memory of the local cloud's emulator under requests: `python -m benchmarks.emulator_memory [REQUESTS]`.

It deploys `dev` from nothing, and sends the requests from two threads: lists, reads and replacements of ten
items; one in a hundred uploads a file. After each tenth it prints the emulator's own memory (without its
functions), and what the data folder has. Files and their records are data, and stay as on AWS.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from taplocal.cloud import isolate

isolate()

from taplocal import access, session  # noqa: E402

ROOT = Path(__file__).resolve().parents[1]
UNTHROTTLED = {"throttle_rate": "10000", "throttle_burst": "5000", "api_concurrency": "0"}
ITEMS = 10
ONE_FILE_IN = 100
THREADS = 2
SETTLE_SECONDS = 6  # until what is bounded is bounded, and saved
MIB = 2**20


class Load:
    """The requests of one person."""

    def __init__(self, opened: session.Session):
        self.opened, self.token = opened, access.person_token(opened, "load@example.com")
        for number in range(ITEMS):
            body = f'{{"id": "item-{number}"}}'
            access.call(opened, "POST", "/items", self.token, body)

    def one(self, number: int) -> None:
        """Sends a request; each number the same one."""
        path = f"/items/item-{number % ITEMS}"
        if number % ONE_FILE_IN == 0:
            content = b"number %d" % number
            form, response = access.upload(self.opened, self.token, "a.txt", content, "text/plain")
            assert (form.status, response.status) == (201, 204), response.body
            return
        request = [("GET", path, None), ("GET", "/items", None), ("PUT", path, '{"n": 1}')]
        method, path, body = request[number % len(request)]
        response = access.call(self.opened, method, path, self.token, body)
        assert response.status == 200, response.body

    def run(self, numbers: range) -> None:
        """Sends requests from all threads."""
        with ThreadPoolExecutor(THREADS) as threads:
            deque(threads.map(self.one, numbers), maxlen=0)  # raises what one of them raised


def memory(pid: int) -> list[float]:
    """Resident and proportional set size of a process, MiB."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    kib = {
        line.split()[0]: int(line.split()[1]) for line in lines if line.startswith(("Rss", "Pss:"))
    }
    return [kib["Rss:"] / 1024, kib["Pss:"] / 1024]


def stored(folder: Path) -> list[float]:
    """MiB of the last snapshot without objects, of the log, and of the traces."""
    state = sum(path.stat().st_size for path in (folder / "state" / "current").rglob("*.*"))
    return [
        x / MIB
        for x in (
            state,
            *((folder / name).stat().st_size for name in ("emulator.log", "traces.jsonl")),
        )
    ]


def main(requests: int = 100_000) -> None:
    """Prints a row after each tenth of the requests."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        try:
            opened, _ = session.up(
                ROOT,
                "dev",
                folder=folder,
                config=UNTHROTTLED,
                say=lambda _: None,
                report=lambda _: None,
            )
            load, began = Load(opened), time.monotonic()
            print("requests    RSS    PSS  snapshot   log  traces  (MiB)  seconds")
            for done in range(0, requests + 1, requests // 10):
                load.run(range(done - requests // 10, done) if done else range(0))
                time.sleep(SETTLE_SECONDS)
                figures = [*memory(opened.cloud.emulator.pid), *stored(folder)]
                shown = "%6.1f %6.1f %9.1f %5.1f %7.1f" % tuple(figures)  # noqa: UP031
                print(f"{done:8,} {shown} {time.monotonic() - began:16.0f}", flush=True)
        finally:
            session.down(ROOT, None, folder=folder, report=lambda _: None)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
