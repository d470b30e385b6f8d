"""Our handler beside the same calls in other frameworks: `python -m benchmarks.requests [ROUNDS]`.

Each measurement is a fresh process; the apps take turns, so that a noisy moment hits all of them. Answers
are compared first. The SDK is loaded by nobody unless its framework does it.
"""

from __future__ import annotations

import importlib.metadata
import io
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

import tap_stack
from taplocal.resources.awslambda import zipped

ROOT = Path(__file__).resolve().parents[1]
APPS = {
    "bare": {
        "tap-stack": "ours",
        "Powertools resolver": "powertools",
        "Chalice": "chalice_app",
        "Flask + apig-wsgi": "flask_app",
        "FastAPI + Mangum": "fastapi_app",
    },
    "full": {
        "tap-stack": "ours",
        "Powertools, all of it": "powertools_full",
        "Chalice": "chalice_app",
        "Flask + apig-wsgi": "flask_app",
        "FastAPI + Mangum": "fastapi_app",
    },
}
TITLES = {
    "bare": "GET /items/{id}, bare",
    "full": "POST /items with validation, one log line, one metric",
}
IN_LAMBDA = {"boto3", "botocore", "s3transfer", "jmespath", "python-dateutil", "six", "urllib3"}


def measure(app: str, mode: str, bundle: str) -> dict[str, Any]:
    """One fresh process."""
    environment = {**os.environ, "BUNDLE": bundle, "AWS_DEFAULT_REGION": "eu-west-1"}
    command = [sys.executable, "-m", "benchmarks.measure", app, mode]
    done = subprocess.run(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, check=True)
    return dict(json.loads(done.stdout))


def compare(mode: str, rounds: int, bundle: str) -> Table:
    """Medians of all rounds and the ratio to ours."""
    results: dict[str, list[dict[str, Any]]] = {label: [] for label in APPS[mode]}
    for _ in range(rounds):
        for label, app in APPS[mode].items():
            results[label].append(measure(app, mode, bundle))
    expected = results["tap-stack"][0]
    for label, runs in results.items():
        for key in ("answer", "missing"):
            assert runs[0][key] == expected[key], (
                f"{label} answers {runs[0][key]}, not {expected[key]}"
            )
    table = Table(
        title=f"{TITLES[mode]} (medians of {rounds} fresh processes, alternating)",
        title_justify="left",
    )
    for heading in (
        "",
        "warm CPU us",
        "ratio",
        "cold import ms",
        "ratio",
        "first call ms",
        "peak MiB",
        "package KB",
    ):
        table.add_column(heading, justify="left" if not heading else "right")
    ours = {key: median(results["tap-stack"], key) for key in ("warm_us", "import_ms")}
    for label, runs in results.items():
        warm, cold = median(runs, "warm_us"), median(runs, "import_ms")
        table.add_row(
            label,
            f"{warm:.1f}",
            f"{warm / ours['warm_us']:.1f}",
            f"{cold:.0f}",
            f"{cold / ours['import_ms']:.1f}",
            f"{median(runs, 'first_ms'):.1f}",
            f"{median(runs, 'peak_mib'):.0f}",
            f"{package_kb(APPS[mode][label], bundle):,.1f}",
        )
    return table


def median(runs: list[dict[str, Any]], key: str) -> float:
    return statistics.median(run[key] for run in runs)


def package_kb(app: str, bundle: str) -> float:
    """The deployment package: our bundle, or the framework and what it needs beyond the runtime's SDK."""
    if app == "ours":
        return len(zipped({"index.py": Path(bundle).read_text()})) / 1024
    source = (ROOT / "benchmarks" / "apps" / f"{app}.py").read_text()
    (names,) = re.findall(r'^KIND, DISTRIBUTIONS = "v\d", \((.+)\)$', source, re.MULTILINE)
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        for distribution in closure(re.findall(r'"([^"]+)"', names)):
            for file in importlib.metadata.files(distribution) or ():
                path = Path(str(file.locate()))
                if path.is_file() and "__pycache__" not in path.parts and ".." not in file.parts:
                    archive.write(path, str(file))
    return len(buffer.getvalue()) / 1024


def closure(names: list[str]) -> list[str]:
    """The distributions and all that they require, without extras and what Lambda has."""
    found: list[str] = []
    while names:
        name = re.sub(r"[-_.]+", "-", names.pop().lower())
        if name in found or name in IN_LAMBDA:
            continue
        try:
            required = importlib.metadata.requires(name) or []
        except importlib.metadata.PackageNotFoundError:
            continue  # for another platform or Python
        found.append(name)
        names += [
            re.split(r"[^A-Za-z0-9._-]", each)[0] for each in required if "extra ==" not in each
        ]
    return found


def main(rounds: int = 7) -> None:
    console = Console(width=130)
    with tempfile.TemporaryDirectory() as folder:
        bundle = Path(folder, "index.py")
        bundle.write_text(tap_stack.bundle(tap_stack.api))
        console.print(
            f"Python {sys.version.split()[0]}, {os.cpu_count()} cores; bundle {bundle.stat().st_size / 1024:.1f} KB of source"
        )
        for mode in APPS:
            console.print(compare(mode, rounds, str(bundle)))


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
