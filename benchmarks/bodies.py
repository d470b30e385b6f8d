"""CPU and memory of the worst bodies: `python -m benchmarks.bodies`.

Each goes in a fresh process through the shipped bundle of the api function, with a stub of DynamoDB.
They have the API's limit of 2.5 MB, or as many values as an item can hold.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import tap_stack
from tests.unit.conftest import ENVIRONMENT
from tests.unit.test_values import WORST

CHILD = Path(__file__).parent / "apps" / "body.py"


def bodies() -> dict[str, str]:
    """Name of a body -> the body."""
    count = {name: tap_stack.BODY_LIMIT // len(make(1_000)) * 1_000 for name, make in WORST.items()}
    return {
        **{name: make(count[name]) for name, make in WORST.items()},
        "empty lists, stored": WORST["empty lists"](100_000),
        "numbers, stored": WORST["numbers"](130_000),
        "large numbers, stored": WORST["large numbers"](130_000),
        "a text of 400 KB, stored": '{"a":"' + "x" * (tap_stack.ITEM_LIMIT - 100) + '"}',
    }


def main() -> None:
    """Prints a table."""
    print("| body | status | CPU | memory of the process | sent |\n| --- | --- | --- | --- | --- |")
    with TemporaryDirectory() as folder:
        index, body = Path(folder, "index.py"), Path(folder, "body.json")
        index.write_text(tap_stack.bundle(tap_stack.api, tap_stack.open_services))
        for name, text in bodies().items():
            body.write_text(text)
            done = subprocess.run(
                [sys.executable, CHILD, index, body],
                env={**os.environ, **ENVIRONMENT}, check=True, text=True, stdout=subprocess.PIPE,
            )  # fmt: skip
            status, seconds, megabytes, sent = json.loads(done.stdout)
            row = f"{status} | {seconds:.2f} s | {megabytes:.0f} MB | {sent / 1e6:.1f} MB"
            print(f"| {name}, {len(text) / 1e6:.1f} MB | {row} |", flush=True)


if __name__ == "__main__":
    main()
