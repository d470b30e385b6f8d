"""How long the local cloud takes, and its memory: `python -m benchmarks.deploy [ROUNDS]`.

Each round deploys all systems with prod's settings from nothing, again without a change, and with another
handler of the API, which is released to a share of the traffic first; then it calls the API once.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from demo.releases import VERSIONS, write_program

ROOT = Path(__file__).resolve().parents[1]
ENV = "prod"


def taplocal(data: str, *arguments: str) -> tuple[float, Any]:
    """Seconds that a command took, start of Python included, and what it printed."""
    started = time.perf_counter()
    here = ["--env", ENV, "--data", data, "--json"]
    command = [sys.executable, "-m", "taplocal", *arguments, *here]
    done = subprocess.run(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=True
    )
    return time.perf_counter() - started, json.loads(done.stdout)


def memory_mib(pid: int) -> float:
    """Resident memory of the emulator and the workers of its functions."""
    listed = subprocess.run(
        ["/bin/ps", "-o", "rss=", "-g", str(pid)], capture_output=True, text=True, check=True
    )
    return sum(map(int, listed.stdout.split())) / 1024


def main(rounds: int = 3) -> None:
    rows: dict[str, list[float]] = {}
    for _ in range(rounds):
        with tempfile.TemporaryDirectory() as data:
            seconds, value = taplocal(data, "up")
            rows.setdefault(
                f"up from nothing ({value['counts']['created']} resources), s", []
            ).append(seconds)
            rows.setdefault("up without a change, s", []).append(taplocal(data, "up")[0])
            with tempfile.TemporaryDirectory() as program:
                write_program(Path(program), VERSIONS / "good.py", ENV)
                seconds, value = taplocal(data, "up", "--program", program)
            assert "api-items-rollout" in {each["name"] for each in value["steps"]}
            rows.setdefault("up with a changed handler, s", []).append(seconds)
            taplocal(data, "call", "GET", "/items")
            pid = json.loads(Path(data, "emulator.json").read_text())["pid"]
            rows.setdefault("memory of the emulator and its functions, MiB", []).append(
                memory_mib(pid)
            )
            rows.setdefault("down, s", []).append(taplocal(data, "down")[0])
    table = Table(title=f"The local cloud ({rounds} rounds)", title_justify="left")
    for heading in ("", "median", "best", "worst"):
        table.add_column(heading, justify="right" if heading else "left")
    for label, values in rows.items():
        table.add_row(
            label,
            *(f"{value:.1f}" for value in (statistics.median(values), min(values), max(values))),
        )
    Console(width=110).print(table)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
