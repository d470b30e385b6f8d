"""Ten releases of the api function while requests arrive: eight good ones, two bad ones."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from string import Template
from tempfile import TemporaryDirectory
from typing import Any

from demo.load import arriving
from demo.report import Report
from taplocal import session
from taplocal.access import Response
from taplocal.errors import TapLocalError

ROOT = Path(__file__).resolve().parents[1]
PROGRAM = ROOT / "demo" / "program"
VERSIONS = ROOT / "demo" / "versions"
RATE = 20  # requests a second
OK_TIMEOUT_SECONDS = 320  # the longest evaluation range of an alarm, and a little more
PERCENT, MINUTES = 10, 20  # the local cloud shortens them to 1.2 seconds
CANARY = ("-c", f"canary_percent={PERCENT}")
WITH_BAKE_TIME = (*CANARY, "-c", f"canary_minutes={MINUTES}")
ALL_AT_ONCE = ("-c", "canary_percent=100")


@dataclass(frozen=True)
class Release:
    """A version of the handler, the options of its deployment, the expected outcome."""

    number: int
    title: str
    version: str  # a file of demo/versions; none is the repository's own program
    options: tuple[str, ...] = WITH_BAKE_TIME
    error: str = ""  # a part of the error of a bad release


RELEASES = (
    Release(1, "a header", "good.py"),
    Release(2, "a header", "good.py"),
    Release(3, "a header", "good.py"),
    Release(4, "an import that fails", "broken_import.py", error="failed its smoke test"),
    Release(5, "a header", "good.py"),
    Release(6, "a header", "good.py"),
    Release(7, "a header", "good.py"),
    Release(
        8,
        "an exception in the handler",
        "raising.py",
        options=(*CANARY, "-c", "canary_minutes=120"),  # long enough to receive a request
        error="was rolled back",
    ),
    Release(9, "a header", "good.py", ALL_AT_ONCE),
    Release(10, "the original program", "", ()),
)


def write_program(folder: Path, version: Path, env: str, number: int = 0) -> Path:
    """Writes the program with a version of the handler to a folder, and returns that."""
    shutil.copytree(PROGRAM, folder, dirs_exist_ok=True)
    shutil.copy(ROOT / f"Pulumi.{env}.yaml", folder)
    text = Template(version.read_text()).substitute(number=number)
    (folder / "version.py").write_text(text)
    return folder


def wait_until_ok(cloudwatch: Any, *names: str) -> None:
    """Waits until none of these alarms is in ALARM, as after another demonstration a minute ago."""
    deadline = time.monotonic() + OK_TIMEOUT_SECONDS
    while time.monotonic() < deadline:
        found = cloudwatch.describe_alarms(AlarmNames=list(names))["MetricAlarms"]
        if not [each for each in found if each["StateValue"] == "ALARM"]:
            return
        time.sleep(1)
    raise TapLocalError(
        f"one of these alarms is still in ALARM after {OK_TIMEOUT_SECONDS} s: {', '.join(names)}"
    )


class Releases:
    """The step on one deployed environment; `request` is sent at the rate all the time."""

    def __init__(self, env: str, report: Report, request: Callable[[], Response]):
        self.env, self.report, self.check, self.request = env, report, report.check, request

    def run(self) -> None:
        """Makes the releases one by one, and counts the failed requests of each."""
        self.report.step(
            f"Ten releases, two of them bad, while {RATE} requests arrive a second; "
            f"{PERCENT} % first"
        )
        with arriving(self.request, RATE, lambda answer: str(answer.status)) as outcomes:
            for release in RELEASES:
                self.release(release, outcomes)
        total = outcomes.total()
        self.report.say(f"{total} requests in all, by status: {dict(outcomes)}")
        self.check("the last release's header is gone", None, self.header())

    def release(self, release: Release, outcomes: Counter[str]) -> None:
        """Makes a release; checks its outcome and how many requests failed."""
        before, started = outcomes.copy(), time.monotonic()
        error = self.up(release)
        time.sleep(0.2)  # for the responses to the last requests
        arrived = outcomes - before
        failed, seconds = arrived.total() - arrived["200"], time.monotonic() - started
        limit = arrived.total() * PERCENT // 100 if release.error else 0
        self.check(
            f"release {release.number}: {release.title}",
            release.error or "released",
            self.outcome(error, release),
        )
        self.check(
            f"... requests that failed, of {arrived.total()} in {seconds:.1f} s",
            f"{limit} at most" if limit else "0",
            f"{limit} at most" if limit and failed <= limit else str(failed),
        )
        if release.error:
            self.report.say(f"{failed} failed; {error}")

    def up(self, release: Release) -> str:
        """Deploys the program of a release; returns the error, if any."""
        with TemporaryDirectory() as folder:
            program = ROOT
            if release.version:
                program = Path(folder)
                write_program(program, VERSIONS / release.version, self.env, release.number)
            options = ("--program", str(program), "--data", str(session.folder_of(ROOT)), "--json")
            command = [sys.executable, "-m", "taplocal", "up", "--env", self.env, *options]
            done = subprocess.run(  # in ROOT, where `import tap_stack` finds it
                [*command, *release.options], cwd=ROOT, capture_output=True, text=True, check=False
            )
        if done.returncode:
            return done.stderr.strip().splitlines()[-1]
        steps = [f"{each['action']} {each['name']}" for each in json.loads(done.stdout)["steps"]]
        changed = {"updated api-items-function", "updated api-items-rollout"}
        return "" if changed <= set(steps) else f"changed {steps}"

    @staticmethod
    def outcome(error: str, release: Release) -> str:
        """The outcome in the words of the check."""
        if not error:
            return "released"
        return release.error if release.error and release.error in error else error

    def header(self) -> str | None:
        """The release that responds."""
        return self.request().headers.get("x-release")
