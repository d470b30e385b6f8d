"""Ten releases of the api function while requests arrive: eight good ones, two bad ones."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from demo.load import arriving
from demo.report import Report
from taplocal import session
from taplocal.access import Response
from taplocal.errors import TapLocalError
from taplocal.session import Session

ROOT = Path(__file__).resolve().parents[1]
PROGRAM_FILES = ("tap_stack.py", "Pulumi.yaml", "Pulumi.{env}.yaml")
RATE = 20  # requests a second
OK_TIMEOUT_SECONDS = 320  # the longest evaluation range of an alarm, and a little more
PERCENT, MINUTES = 10, 20  # the local cloud shortens them to 1.2 seconds
CANARY = ("-c", f"canary_percent={PERCENT}")
WITH_BAKE_TIME = (*CANARY, "-c", f"canary_minutes={MINUTES}")
ALL_AT_ONCE = ("-c", "canary_percent=100")
HEADER = '"cache-control": "private, no-cache"'
REQUEST = "    request = Request(event)\n"
CLIENTS = '    service("ssm")\n'


@dataclass(frozen=True)
class Change:
    """One release: a text of the program, its replacement, the options, the expected outcome."""

    title: str
    old: str
    new: str
    options: tuple[str, ...] = WITH_BAKE_TIME
    error: str = ""  # a part of the error of a bad release


def numbered(number: int, options: tuple[str, ...] = WITH_BAKE_TIME) -> Change:
    """A good release: one more header in each response."""
    return Change(
        f"release {number}: a header", HEADER, f'{HEADER}, "x-release": "{number}"', options
    )


CHANGES = (
    numbered(1),
    numbered(2),
    numbered(3),
    Change(
        "release 4: an import that fails",
        CLIENTS,
        f'{CLIENTS}    __import__("nowhere")\n',
        error="failed its smoke test",
    ),
    numbered(5),
    numbered(6),
    numbered(7),
    Change(
        "release 8: an exception in the handler",
        REQUEST,
        f'{REQUEST}    if request.path_id():\n        raise RuntimeError("a mistake")\n',
        options=(*CANARY, "-c", "canary_minutes=120"),  # long enough to receive a request
        error="was rolled back",
    ),
    numbered(9, ALL_AT_ONCE),  # the hotfix, while the alarms are still in ALARM
    Change("release 10: the original program", "", "", ()),
)


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

    def __init__(self, opened: Session, env: str, report: Report, request: Callable[[], Response]):
        self.env, self.report, self.check, self.request = env, report, report.check, request
        self.alarms = opened.cloud.client("cloudwatch")
        self.names = [f"tap-stack-api-{each}-{env}" for each in ("errors", "5xx", "latency")]
        self.source = (ROOT / "tap_stack.py").read_text()

    def run(self) -> None:
        """Makes the releases one by one, and counts the failed requests of each."""
        self.report.step(
            f"Ten releases, two of them bad, while {RATE} requests arrive a second; "
            f"{PERCENT} % first"
        )
        wait_until_ok(self.alarms, *self.names)
        gradual_by_default = self.env != "dev"
        with (
            TemporaryDirectory() as folder,
            arriving(self.request, RATE, lambda response: str(response.status)) as outcomes,
        ):
            for change in CHANGES:
                if not change.options and gradual_by_default:
                    self.report.say("waiting a minute for the alarms of release 8 to return to OK")
                    wait_until_ok(self.alarms, *self.names)
                self.release(change, Path(folder), outcomes)
        total = outcomes.total()
        self.report.say(f"{total} requests in all, by status: {dict(outcomes)}")
        self.check("the last release's header is gone", None, self.header())

    def release(self, change: Change, folder: Path, outcomes: Counter[str]) -> None:
        """Makes a release; checks its outcome and how many requests failed."""
        before, started = outcomes.copy(), time.monotonic()
        error = self.up(change, folder)
        time.sleep(0.2)  # for the responses to the last requests
        arrived = outcomes - before
        failed, seconds = arrived.total() - arrived["200"], time.monotonic() - started
        limit = arrived.total() * PERCENT // 100 if change.error else 0
        self.check(change.title, change.error or "released", self.outcome(error, change))
        self.check(
            f"... requests that failed, of {arrived.total()} in {seconds:.1f} s",
            f"{limit} at most" if limit else "0",
            f"{limit} at most" if limit and failed <= limit else str(failed),
        )
        if change.error:
            self.report.say(f"{failed} failed; {error}")

    def up(self, change: Change, folder: Path) -> str:
        """Deploys the changed program; returns the error, if any."""
        if change.old not in self.source:
            raise TapLocalError(f"tap_stack.py does not contain the text to change: {change.old}")
        for each in PROGRAM_FILES:
            name = each.format(env=self.env)
            (folder / name).write_text((ROOT / name).read_text())
        if change.old:
            (folder / "tap_stack.py").write_text(self.source.replace(change.old, change.new, 1))
        options = ("--program", str(folder), "--data", str(session.folder_of(ROOT)), "--json")
        command = [sys.executable, "-m", "taplocal", "up", "--env", self.env, *options]
        done = subprocess.run(
            [*command, *change.options], cwd=ROOT, capture_output=True, text=True, check=False
        )
        if done.returncode:
            return done.stderr.strip().splitlines()[-1]
        steps = [f"{each['action']} {each['name']}" for each in json.loads(done.stdout)["steps"]]
        changed = {"updated api-items-function", "updated api-items-rollout"}
        return "" if changed <= set(steps) else f"changed {steps}"

    @staticmethod
    def outcome(error: str, change: Change) -> str:
        """The outcome in the words of the check."""
        if not error:
            return "released"
        return change.error if change.error and change.error in error else error

    def header(self) -> str | None:
        """The release that responds."""
        return self.request().headers.get("x-release")
