"""The file pipeline's function beside a plain one: `python -m benchmarks.files [ROUNDS]`.

Both run as fresh processes in turns, on the real SDK, S3 and DynamoDB of the local cloud: the same
objects, one event each.
"""

from __future__ import annotations

import importlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

import tap_stack
from benchmarks.apps.stub import Context

ROOT = Path(__file__).resolve().parents[1]
OBJECTS = 200
SIZES = {"1 KB": 1_000, "1 MB": 1_000_000}
APPS = ("tap-stack", "plain sample")


def taplocal(data: str, *arguments: str) -> Any:
    command = [sys.executable, "-m", "taplocal", *arguments, "--data", data, "--json"]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, check=True)
    return json.loads(done.stdout)


def measure(app: str, bundle: str, events: str, environment: dict[str, str]) -> dict[str, Any]:
    """One fresh process: its import, its calls of AWS, its objects per second."""
    command = [sys.executable, "-m", "benchmarks.files", "--measure", app, bundle, events]
    whole = {**os.environ, **environment}
    done = subprocess.run(command, cwd=ROOT, env=whole, stdout=subprocess.PIPE, check=True)
    return dict(json.loads(done.stdout.splitlines()[-1]))


def run(app: str, bundle: str, events: str) -> dict[str, Any]:
    """What a fresh process does."""
    import botocore.client  # the runtime has it; its import is nobody's own

    calls = [0]

    def count(owner: Any, method: str) -> None:
        original = getattr(owner, method)

        def counted(*arguments: Any, **named: Any) -> Any:
            calls[0] += 1
            return original(*arguments, **named)

        setattr(owner, method, counted)

    count(botocore.client.BaseClient, "_make_api_call")
    started = time.perf_counter()
    if app == "tap-stack":
        sys.path.insert(0, str(Path(bundle).parent))
        index = importlib.import_module("index")
        handler = index.record_files
        count(index.Service, "call")
    else:
        handler = importlib.import_module("benchmarks.apps.s3_sample").handler
    imported = time.perf_counter() - started
    context = Context()
    waiting = [json.loads(line) for line in Path(events).read_text().splitlines()]
    handler(waiting.pop(), context)  # connections are made
    calls[0], begun, cpu = 0, time.perf_counter(), time.process_time()
    for event in waiting:
        handler(event, context)
    seconds = time.perf_counter() - begun
    return {
        "cold_ms": imported * 1000,
        "objects_s": len(waiting) / seconds,
        "cpu_ms": (time.process_time() - cpu) / len(waiting) * 1000,
        "calls": calls[0] / len(waiting),
    }


def uploaded(s3: Any, bucket: str, size: int, mark: str) -> list[dict[str, Any]]:
    """Objects to describe, and their events."""
    events = []
    for number in range(OBJECTS):
        key = f"bench/{mark}/{number}"
        body = b"\x89PNG\r\n\x1a\n".ljust(size, b"\0")
        version = s3.put_object(Bucket=bucket, Key=key, Body=body)["VersionId"]
        stored = {"key": key, "versionId": version, "sequencer": f"{number:018X}"}
        record = {
            "eventName": "ObjectCreated:Put",
            "eventTime": "2026-11-21T10:00:00.000Z",
            "s3": {"bucket": {"name": bucket}, "object": stored},
        }
        events.append({"Records": [record]})
    return events


def compare(console: Console, rounds: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        bundle = Path(folder, "index.py")
        bundle.write_text(tap_stack.bundle(tap_stack.record_files, tap_stack.open_file_clients))
        console.print(
            f"Python {sys.version.split()[0]}, {os.cpu_count()} cores; {OBJECTS} objects a round"
        )
        up = taplocal(folder, "up")
        environment = {
            **taplocal(folder, "env"),
            "FILES_TABLE_NAME": up["outputs"]["files_table_name"],
            "ENVIRONMENT": "dev",
            "METRICS_NAMESPACE": "bench",
        }
        os.environ.update(environment)
        import boto3

        s3, bucket = boto3.client("s3"), up["outputs"]["files_bucket_name"]
        s3.put_bucket_notification_configuration(Bucket=bucket, NotificationConfiguration={})
        for label, size in SIZES.items():
            results: dict[str, list[dict[str, Any]]] = {app: [] for app in APPS}
            for number in range(rounds):
                for app in APPS:
                    events = Path(folder, "events")
                    made = uploaded(s3, bucket, size, f"{size}-{number}-{app}")
                    events.write_text("\n".join(map(json.dumps, made)))
                    results[app].append(measure(app, str(bundle), str(events), environment))
            console.print(table(label, rounds, results))
        taplocal(folder, "down")


def table(label: str, rounds: int, results: dict[str, list[dict[str, Any]]]) -> Table:
    title = f"Objects of {label} (medians of {rounds} fresh processes, alternating)"
    made = Table(title=title, title_justify="left")
    for heading in (
        "",
        "objects/s",
        "ratio",
        "CPU ms an object",
        "AWS calls an object",
        "cold start ms",
    ):
        made.add_column(heading, justify="left" if not heading else "right")
    medians = {
        app: {key: statistics.median(run[key] for run in runs) for key in runs[0]}
        for app, runs in results.items()
    }
    for app, found in medians.items():
        made.add_row(
            app,
            f"{found['objects_s']:.0f}",
            f"{found['objects_s'] / medians['tap-stack']['objects_s']:.2f}",
            f"{found['cpu_ms']:.1f}",
            f"{found['calls']:.0f}",
            f"{found['cold_ms']:.0f}",
        )
    return made


def main(rounds: int = 5) -> None:
    console = Console(width=130)
    compare(console, rounds)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--measure"]:
        out = os.dup(1)
        with open(os.devnull, "w") as sink:  # what the function logs
            os.dup2(sink.fileno(), 1)
            result = run(*sys.argv[2:5])
            sys.stdout.flush()
        os.write(out, json.dumps(result).encode())
    else:
        main(*map(int, sys.argv[1:]))
