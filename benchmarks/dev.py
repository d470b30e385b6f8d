"""How long from a save to the new answer: `python -m benchmarks.dev [ROUNDS]`.

The same change, one word of an answer, by `taplocal dev`, by `taplocal up` again, and of Chalice's
first example by `chalice local`, in turns. A time is that from the write of the file to the first
new answer over HTTP. Of a setting it is that until a resource has it, the API's log group.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from rich.console import Console
from rich.table import Table

from taplocal import access, session
from taplocal.session import Session

ROOT = Path(__file__).resolve().parents[1]
PROGRAM = (
    "tap_stack.py content_types.py content_types.txt http_connection.py openapi.yaml "
    "requirements-web.txt Pulumi.yaml Pulumi.dev.yaml"
).split()
TITLE = '(404, "Not Found")'
SYSTEMS = ["-c", 'systems=["api"]']
APP = """from chalice import Chalice

app = Chalice(app_name="bench")


@app.route("/")
def index():
    return {"title": "Not Found"}
"""
DAYS = 1, 3, 5, 7, 14, 30, 60, 90, 120, 150  # CloudWatch takes no others
PAUSE_SECONDS = 4.0  # between two saves, so that each meets a candidate at rest
HANG_SECONDS = 60

Change = Callable[[str], None]  # saves another word, and returns when the answer has it


def until(found: Callable[[], bool]) -> None:
    """Waits until something is true."""
    deadline = time.monotonic() + HANG_SECONDS
    while not found():
        assert time.monotonic() < deadline, "nothing has changed"
        time.sleep(0.005)


def taplocal(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "taplocal", *arguments]


@contextmanager
def program() -> Iterator[tuple[Path, Session]]:
    """A copy of the program, deployed."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for each in PROGRAM:
            shutil.copy(ROOT / each, folder)
        shutil.copytree(ROOT / "scripts", folder / "scripts")
        options = ["--program", name]
        subprocess.run(
            taplocal("up", *options, *SYSTEMS), cwd=ROOT, stdout=subprocess.DEVNULL, check=True
        )
        try:
            yield folder, session.opened(folder, "dev")
        finally:
            subprocess.run(
                taplocal("down", *options), cwd=ROOT, stdout=subprocess.DEVNULL, check=True
            )


def answers_of(opened: Session) -> Callable[[str], bool]:
    """Whether the API answers with a word."""
    token = access.machine_token(opened)
    return lambda word: word in access.call(opened, "GET", "/items/none", token).body


@contextmanager
def running(command: list[str], folder: Path) -> Iterator[Path]:
    """A process in a group of its own, until the end; its output."""
    output = folder / "output.log"
    with output.open("w") as file:
        process = subprocess.Popen(
            command, cwd=folder, stdout=file, stderr=subprocess.STDOUT, start_new_session=True
        )
    try:
        yield output
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait()


def save(folder: Path, word: str) -> None:
    """Writes the program with another word in its answer."""
    text = (ROOT / "tap_stack.py").read_text().replace(TITLE, f'(404, "{word}")')
    (folder / "tap_stack.py").write_text(text)


@contextmanager
def watched() -> Iterator[tuple[Path, Session]]:
    """A copy of the program, which `taplocal dev` watches."""
    with program() as (folder, opened), ExitStack() as stack:
        command = [
            "env",
            f"PYTHONPATH={ROOT}",
            *taplocal("dev", "--program", str(folder), *SYSTEMS),
        ]
        output = stack.enter_context(running(command, folder))
        until(lambda: "watching" in output.read_text())
        yield folder, opened


@contextmanager
def by_dev() -> Iterator[Change]:
    """`taplocal dev`."""
    with watched() as (folder, opened):
        answers = answers_of(opened)

        def change(word: str) -> None:
            save(folder, word)
            until(lambda: answers(word))

        yield change


@contextmanager
def by_setting() -> Iterator[Change]:
    """`taplocal dev`, of a setting of a resource."""
    with watched() as (folder, opened):
        settings, logs = folder / "Pulumi.dev.yaml", opened.cloud.client("logs")
        before = settings.read_text()
        (group,) = (
            each.id for each in opened.state.resources.values() if each.name == "api-items-logs"
        )

        def change(word: str) -> None:
            days = DAYS[int(word.split()[1]) % len(DAYS)]
            settings.write_text(f"{before}  tap-stack:log_retention_days: {days}\n")
            asked = {"logGroupNamePrefix": group}
            until(
                lambda: logs.describe_log_groups(**asked)["logGroups"][0]["retentionInDays"] == days
            )

        yield change


@contextmanager
def by_up() -> Iterator[Change]:
    """`taplocal up` again."""
    with program() as (folder, opened):
        answers = answers_of(opened)
        command = taplocal("up", "--program", str(folder), *SYSTEMS)

        def change(word: str) -> None:
            save(folder, word)
            subprocess.run(command, cwd=ROOT, stdout=subprocess.DEVNULL, check=True)
            until(lambda: answers(word))

        yield change


@contextmanager
def by_chalice() -> Iterator[Change]:
    """`chalice local`, which reloads by itself."""
    command = Path(sys.executable).with_name("chalice")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        folder = Path(name)
        (folder / ".chalice").mkdir()
        (folder / ".chalice" / "config.json").write_text('{"version": "2.0", "app_name": "bench"}')
        (folder / "app.py").write_text(APP)
        stack.enter_context(running([str(command), "local", "--port", port], folder))

        def answers(word: str) -> bool:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=5) as response:
                    return word in response.read().decode()
            except OSError:  # it is being started again
                return False

        until(lambda: answers("Not Found"))

        def change(word: str) -> None:
            (folder / "app.py").write_text(APP.replace("Not Found", word))
            until(lambda: answers(word))

        yield change


CANDIDATES = {
    "taplocal dev": by_dev,
    "taplocal dev, a setting": by_setting,
    "taplocal up, again": by_up,
    "chalice local": by_chalice,
}


def main(rounds: int = 10) -> None:
    times: dict[str, list[float]] = {name: [] for name in CANDIDATES}
    with ExitStack() as stack:
        changes = {name: stack.enter_context(make()) for name, make in CANDIDATES.items()}
        for number in range(rounds):
            for name, change in changes.items():
                time.sleep(PAUSE_SECONDS)
                started = time.perf_counter()
                change(f"Word {number}")
                times[name].append((time.perf_counter() - started) * 1000)
    table = Table(title=f"Save to new answer, {rounds} saves", title_justify="left")
    for heading in ("", "median ms", "best", "worst"):
        table.add_column(heading, justify="right" if heading else "left")
    for name, values in times.items():
        shown = (statistics.median(values), min(values), max(values))
        table.add_row(name, *(f"{each:.0f}" for each in shown))
    Console(width=110).print(table)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
