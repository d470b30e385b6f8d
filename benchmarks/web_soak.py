"""Memory of the web environment under requests: `python -m benchmarks.web_soak [--requests N]`, after
`python -m taplocal up`.

Visitors without a pause, each in turn a visit that is written (PUT) and the page that is read (GET), over
the load balancer to two instances and the database. After each tenth it prints the memory of each part:
the proportional set size, MiB, all processes of a part together. It fails if a request failed or an
acknowledged visit is not in the database.
"""

from __future__ import annotations

import json
import time
from contextlib import suppress
from pathlib import Path
from typing import Annotated

import typer

from benchmarks.emulator_memory import ROOT, memory
from demo.web import WebEnvironment
from taplocal import session, web
from taplocal.web.processes import RECORD

CLIENTS, INSTANCES = 8, 2
PARTS = ("supervisor", "instances", "database", "emulator")


def processes(found: WebEnvironment, emulator: int) -> dict[str, list[int]]:
    """The processes of each part; the load balancer is the supervisor's, functions are left out."""
    record = json.loads((web.home(found.folder) / RECORD).read_text())
    children: dict[int, list[int]] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):  # it has ended
            parent = int(path.read_text().rpartition(")")[2].split()[1])
            children.setdefault(parent, []).append(int(path.parent.name))
    members: dict[str, list[int]] = {}
    for part, text in {"instances": "gunicorn", "database": "/postgres -D"}.items():
        members[part] = [int(group) for group, command in record.items() if text in command]
        for each in members[part]:  # which grows meanwhile
            members[part] += children.get(each, [])
    supervisor = int((found.folder / web.FOLDER / "lock").read_text())
    return {**members, "supervisor": [supervisor], "emulator": [emulator]}


def sample(found: WebEnvironment, emulator: int) -> str:
    """The memory of each part, as a row."""
    parts = processes(found, emulator)
    return " ".join(f"{sum(memory(each)[1] for each in parts[part]):10.1f}" for part in PARTS)


def main(
    requests: Annotated[int, typer.Option(help="How many to send.")] = 100_000,
    env: Annotated[str, typer.Option(help="dev, staging or prod")] = "dev",
    data: Annotated[Path | None, typer.Option(help="The data folder.")] = None,
) -> None:
    """Prints a row after each tenth of the requests."""
    opened = session.opened(ROOT, env, data)
    found, emulator = WebEnvironment(opened), opened.cloud.emulator.pid
    found.resize(INSTANCES)
    print("requests ", *(f"{part:>10}" for part in PARTS), " (MiB)  a second", flush=True)
    print(f"{0:9,} {sample(found, emulator)}", flush=True)
    began = time.monotonic()
    with found.visitors(CLIENTS, 0) as visitors:
        for done in range(requests // 10, requests + 1, requests // 10):
            while visitors.answers < done:
                time.sleep(0.1)
            rate = visitors.answers / (time.monotonic() - began)
            print(f"{visitors.answers:9,} {sample(found, emulator)} {rate:17.0f}", flush=True)
    lost = visitors.acknowledged - found.visits()
    print(f"failed: {dict(visitors.failures)}; lost of {len(visitors.acknowledged):,}: {len(lost)}")
    raise typer.Exit(bool(visitors.failures or lost))


if __name__ == "__main__":
    typer.run(main)
