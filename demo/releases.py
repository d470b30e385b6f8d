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
CALM_SECONDS = 320  # the longest that an alarm remembers, and a little
PERCENT, MINUTES = 10, 20  # 1.2 seconds here
AT_A_TENTH = ("-c", f"canary_percent={PERCENT}")
GRADUALLY = (*AT_A_TENTH, "-c", f"canary_minutes={MINUTES}")
AT_ONCE = ("-c", "canary_percent=100")
HEADER = '"cache-control": "private, no-cache"'
REQUEST = "    request = Request(event)\n"
CLIENTS = '    service("ssm")\n'


@dataclass(frozen=True)
class Change:
    """One release: a text of the program and what stands there then, how, and what is to come."""

    done: str
    old: str
    new: str
    options: tuple[str, ...] = GRADUALLY
    refused: str = ""  # what a bad one's error says


def numbered(number: int, options: tuple[str, ...] = GRADUALLY) -> Change:
    """A good release: one more header on every answer."""
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
        refused="failed its smoke test",
    ),
    numbered(5),
    numbered(6),
    numbered(7),
    Change(
        "release 8: items that raise",
        REQUEST,
        f'{REQUEST}    if request.path_id():\n        raise RuntimeError("a mistake")\n',
        options=(*AT_A_TENTH, "-c", "canary_minutes=120"),  # it meets a request for sure
        refused="was rolled back",
    ),
    numbered(9, AT_ONCE),  # the hotfix: the alarms are red still
    Change("release 10: the program as it is", "", "", ()),
)


def calm_down(cloudwatch: Any, *names: str) -> None:
    """Waits until no alarm of these is red, as after another demonstration a minute ago."""
    deadline = time.monotonic() + CALM_SECONDS
    while time.monotonic() < deadline:
        found = cloudwatch.describe_alarms(AlarmNames=list(names))["MetricAlarms"]
        if not [each for each in found if each["StateValue"] == "ALARM"]:
            return
        time.sleep(1)
    raise TapLocalError(f"one of these alarms is red for {CALM_SECONDS} s: {', '.join(names)}")


class Releases:
    """The step on one deployed environment; `request` is what arrives all the time."""

    def __init__(self, opened: Session, env: str, report: Report, request: Callable[[], Response]):
        self.env, self.report, self.check, self.request = env, report, report.check, request
        self.alarms = opened.cloud.client("cloudwatch")
        self.names = [f"tap-stack-api-{each}-{env}" for each in ("errors", "5xx", "latency")]
        self.source = (ROOT / "tap_stack.py").read_text()

    def run(self) -> None:
        """The releases, one after the other, and what became of the requests meanwhile."""
        self.report.step(
            f"Ten releases, two of them bad, while {RATE} requests arrive a second; "
            f"{PERCENT} % first"
        )
        calm_down(self.alarms, *self.names)
        gradual_by_default = self.env != "dev"
        with (
            TemporaryDirectory() as folder,
            arriving(self.request, RATE, lambda answer: str(answer.status)) as outcomes,
        ):
            for change in CHANGES:
                if not change.options and gradual_by_default:
                    self.report.say("the alarms of release 8 have to calm down first: a minute")
                    calm_down(self.alarms, *self.names)
                self.release(change, Path(folder), outcomes)
        total = outcomes.total()
        self.report.say(f"{total} requests in all, by status: {dict(outcomes)}")
        self.check("the last release's header is gone", None, self.header())

    def release(self, change: Change, folder: Path, outcomes: Counter[str]) -> None:
        """One release: whether it went through, and how many requests failed meanwhile."""
        before, started = outcomes.copy(), time.monotonic()
        error = self.up(change, folder)
        time.sleep(0.2)  # the answers of the last requests
        came = outcomes - before
        failed, seconds = came.total() - came["200"], time.monotonic() - started
        most = came.total() * PERCENT // 100 if change.refused else 0
        self.check(change.done, change.refused or "released", self.said(error, change))
        self.check(
            f"... requests that failed, of {came.total()} in {seconds:.1f} s",
            f"{most} at most" if most else "0",
            f"{most} at most" if most and failed <= most else str(failed),
        )
        if change.refused:
            self.report.say(f"{failed} failed; {error}")

    def up(self, change: Change, folder: Path) -> str:
        """Deploys the changed program; returns the error, if any."""
        if change.old not in self.source:
            raise TapLocalError(f"the change does not fit: {change.old!r} is not in tap_stack.py")
        for each in PROGRAM_FILES:
            name = each.format(env=self.env)
            (folder / name).write_text((ROOT / name).read_text())
        if change.old:
            (folder / "tap_stack.py").write_text(self.source.replace(change.old, change.new, 1))
        here = ("--program", str(folder), "--data", str(session.folder_of(ROOT)), "--json")
        command = [sys.executable, "-m", "taplocal", "up", "--env", self.env, *here]
        done = subprocess.run(
            [*command, *change.options], cwd=ROOT, capture_output=True, text=True, check=False
        )
        if done.returncode:
            return done.stderr.strip().splitlines()[-1]
        steps = [f"{each['action']} {each['name']}" for each in json.loads(done.stdout)["steps"]]
        touched = {"updated api-items-function", "updated api-items-rollout"}
        return "" if touched <= set(steps) else f"touched {steps}"

    @staticmethod
    def said(error: str, change: Change) -> str:
        """The outcome in the words of the check."""
        if not error:
            return "released"
        return change.refused if change.refused and change.refused in error else error

    def header(self) -> str | None:
        """The release that answers."""
        return self.request().headers.get("x-release")
