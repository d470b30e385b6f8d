"""How long the local cloud takes, and its memory: `python -m benchmarks.deploy [ROUNDS [ENV]]`.

Each round deploys all systems from nothing, again without a change, and with another handler of the
API, which is released; then it calls the API. All that in turns without and with the process from
which commands are forked (`taplocal/ready.py`), which another folder's deployment has started.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from demo.releases import VERSIONS, write_program
from taplocal import ready

ROOT = Path(__file__).resolve().parents[1]
CALLS = 3


def taplocal(data: str, env: str, *arguments: str) -> tuple[float, Any]:
    """Seconds that a command took, start of Python included, and what it printed."""
    started = time.perf_counter()
    command = [sys.executable, "-m", "taplocal", *arguments, "--data", data, "--json"]
    done = subprocess.run(
        [*command, "--env", env],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        check=True,
    )
    return time.perf_counter() - started, json.loads(done.stdout)


def memory_mib(pid: int) -> float:
    """Resident memory of the emulator and the workers of its functions."""
    listed = subprocess.run(
        ["/bin/ps", "-o", "rss=", "-g", str(pid)], capture_output=True, text=True, check=True
    )
    return sum(map(int, listed.stdout.split())) / 1024


@contextmanager
def process(env: str) -> Iterator[None]:
    """The process from which commands are forked, for as long."""
    os.environ["TAPLOCAL_READY"] = "1"
    with tempfile.TemporaryDirectory() as data:
        taplocal(data, env, "up")
        while not ready._address().exists():
            time.sleep(0.05)
        yield
        taplocal(data, env, "down")  # which ends it
    os.environ["TAPLOCAL_READY"] = "0"


def turn(env: str) -> Iterator[tuple[str, float]]:
    """The rows of one deployment."""
    with tempfile.TemporaryDirectory() as data:
        seconds, value = taplocal(data, env, "up")
        yield f"up from nothing ({value['counts']['created']} resources), s", seconds
        yield "up without a change, s", taplocal(data, env, "up")[0]
        with tempfile.TemporaryDirectory() as program:
            write_program(Path(program), VERSIONS / "good.py", env)
            seconds, value = taplocal(data, env, "up", "--program", program)
        assert "api-items-rollout" in {each["name"] for each in value["steps"]}
        yield "up with a changed handler, s", seconds
        for _ in range(CALLS):
            yield "call, s", taplocal(data, env, "call", "GET", "/items")[0]
        pid = json.loads(Path(data, "emulator.json").read_text())["pid"]
        yield "memory of the emulator and its functions, MiB", memory_mib(pid)
        yield "down, s", taplocal(data, env, "down", "--env", env)[0]


def main(rounds: int = 3, env: str = "dev") -> None:
    os.environ["TAPLOCAL_READY"] = "0"
    rows: dict[str, list[float]] = {}
    for _ in range(rounds):
        for label, value in turn(env):
            rows.setdefault(label, []).append(value)
        with process(env):
            for label, value in turn(env):
                rows.setdefault(f"{label}, with the process", []).append(value)
    table = Table(title=f"The local cloud ({rounds} rounds)", title_justify="left")
    for heading in ("", "median", "best", "worst"):
        table.add_column(heading, justify="right" if heading else "left")
    for label, values in rows.items():
        table.add_row(
            label,
            *(f"{value:.2f}" for value in (statistics.median(values), min(values), max(values))),
        )
    Console(width=110).print(table)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:2]), *sys.argv[2:])
