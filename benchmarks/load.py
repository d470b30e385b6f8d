"""Load on the deployed local API: `python -m benchmarks.load [--env ENV]`, after `python -m taplocal up`
with the gateway's limits raised, as `make load` does.

An open loop: requests arrive at a stated rate whether or not earlier ones were answered, and the time
of each counts from when it was due. First a spike of 10,000 in a minute, then a ramp until the machine's
limit, with the CPU of everybody who takes part. Bounded in time and in number, loopback only. The
statistics and the HTTP client are Locust's.
"""

from __future__ import annotations

from gevent import monkey

monkey.patch_all()

import json  # noqa: E402
import random  # noqa: E402
import statistics  # noqa: E402
import time  # noqa: E402
from collections import Counter  # noqa: E402
from collections.abc import Iterator  # noqa: E402
from contextlib import contextmanager  # noqa: E402
from dataclasses import dataclass, field  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import Annotated, Any  # noqa: E402

import gevent  # noqa: E402
import psutil  # noqa: E402
import typer  # noqa: E402
from gevent.pool import Pool  # noqa: E402
from geventhttpclient import HTTPClient  # noqa: E402
from locust.env import Environment  # noqa: E402
from rich.console import Console  # noqa: E402
from rich.table import Table  # noqa: E402

from taplocal.cloud import isolate  # noqa: E402

isolate()

from taplocal import access, session  # noqa: E402

ROOT = Path(__file__).resolve().parents[1]
SPIKE, SPIKE_SECONDS = 10_000, 60
RAMP = (25, 50, 75, 100, 125, 150, 175, 200, 250, 300, 400, 500)  # requests a second
RAMP_SECONDS, REST_SECONDS = 10, 3
UNANSWERED = 2_000  # requests at once; one that is due beyond them counts as an error, "not sent"
TIMEOUT = 30
LATENCY_BOUND_MS, MOST_ERRORS = 1_000, 0.01  # beyond them the machine is at its limit
PARTS = ("load generator", "emulator", "functions")


@dataclass
class Phase:
    """What was sent, what came back, and what it cost."""

    name: str
    rate: float
    seconds: float
    sent: int = 0
    errors: Counter[str] = field(default_factory=Counter)
    began: float = 0.0
    took: float = 0.0
    cpu: dict[str, float] = field(default_factory=dict)
    stats: Any = None

    def percentile(self, share: float) -> float:
        return float(self.stats.get_response_time_percentile(share)) if self.stats else 0.0

    def answered(self) -> int:
        return int(self.stats.num_requests - self.stats.num_failures) if self.stats else 0

    def at_limit(self) -> bool:
        failed = self.errors.total() > MOST_ERRORS * self.sent
        return failed or self.percentile(0.99) > LATENCY_BOUND_MS


class Load:
    """Sends requests to the API of one environment."""

    def __init__(self, opened: session.Session):
        token = access.person_token(opened, "load@example.com")
        made = [access.call(opened, "POST", "/items", token, f'{{"n": {n}}}') for n in range(20)]
        self.base = str(opened.state.api_url)
        self.paths = [each.headers["location"] for each in made]
        self.headers = {"authorization": f"Bearer {token}"}
        self.client = HTTPClient.from_url(
            self.base, concurrency=UNANSWERED, connection_timeout=TIMEOUT, network_timeout=TIMEOUT
        )
        self.prefix = self.base.split("/", 3)[3]
        self.emulator = opened.cloud.emulator
        self.environment = Environment()
        self.environment.create_local_runner()  # which gathers the statistics

    def run(self, name: str, rate: float, seconds: float) -> Phase:
        """Requests at a rate, then the wait for their answers."""
        phase, pool = Phase(name, rate, seconds, began=time.time()), Pool(UNANSWERED)
        with self.measuring(phase):
            started = time.monotonic()
            for number in range(int(rate * seconds)):
                due = started + number / rate
                gevent.sleep(max(0.0, due - time.monotonic()))
                phase.sent += 1
                if pool.full():
                    phase.errors["not sent"] += 1
                else:
                    pool.spawn(self.one, phase, due)
            pool.join(timeout=TIMEOUT)
            phase.took = time.monotonic() - started
            if late := len(pool):
                phase.errors["never answered"] += late
                pool.kill()
        phase.stats = self.environment.stats.entries.get((name, "GET"))
        return phase

    def one(self, phase: Phase, due: float) -> None:
        """One request, told to Locust with the time since it was due."""
        wrong: Exception | None = None
        try:
            path = f"/{self.prefix}{random.choice(self.paths)}"  # noqa: S311 - no secret
            answer = self.client.get(path, headers=self.headers)
            answer.read()
            if answer.status_code != 200:
                wrong = RuntimeError(str(answer.status_code))
        except Exception as error:
            wrong = error
        if wrong:
            phase.errors[str(wrong) or type(wrong).__name__] += 1
        self.environment.events.request.fire(
            request_type="GET", name=phase.name, response_time=(time.monotonic() - due) * 1000,
            response_length=0, exception=wrong, context={},
        )  # fmt: skip

    @contextmanager
    def measuring(self, phase: Phase) -> Iterator[None]:
        """The CPU seconds of a phase, by who spent them."""
        before = self.spent()
        yield
        after = self.spent()
        phase.cpu = {part: after[part] - before[part] for part in PARTS}

    def spent(self) -> dict[str, float]:
        """CPU seconds so far; of functions that have ended too, as their parent's children."""
        main = psutil.Process(self.emulator.pid)
        own, workers = main.cpu_times(), 0.0
        for each in main.children(recursive=True):
            try:
                times = each.cpu_times()
            except psutil.NoSuchProcess:
                continue
            workers += times.user + times.system
        here = psutil.Process().cpu_times()
        return {
            "load generator": here.user + here.system,
            "emulator": own.user + own.system,
            "functions": workers + own.children_user + own.children_system,
        }


def report(phases: list[Phase]) -> Table:
    """A line for each phase."""
    cores = psutil.cpu_count() or 1
    table = Table(title=f"GET /items/{{id}}, open loop, {cores} cores", title_justify="left")
    headings = ("", "due/s", "answered/s", "p50 ms", "p95 ms", "p99 ms", "errors", "CPU busy",
                *(f"{part}, ms" for part in PARTS))  # fmt: skip
    for heading in headings:
        table.add_column(heading, justify="right" if heading else "left")
    for each in phases:
        answered = max(each.answered(), 1)
        table.add_row(
            each.name, f"{each.rate:.0f}", f"{each.answered() / each.took:.0f}",
            *(f"{each.percentile(share):.0f}" for share in (0.5, 0.95, 0.99)),
            ", ".join(f"{count} {what}" for what, count in each.errors.items()) or "0",
            f"{sum(each.cpu.values()) / each.took / cores:.0%}",
            *(f"{each.cpu[part] / answered * 1000:.1f}" for part in PARTS),
        )  # fmt: skip
    return table


def where(opened: session.Session, phases: list[Phase]) -> str:
    """What the limit is, from the CPU that each took of a request at the last good rate."""
    good = [each for each in phases if not each.at_limit()] or phases[:1]
    last, total = good[-1], sum(good[-1].cpu.values())
    shares = {part: last.cpu[part] / total for part in PARTS}
    handler = statistics.median(handler_ms(opened, last))
    told = ", ".join(f"{part} {share:.0%}" for part, share in shares.items())
    most = max(shares, key=lambda part: shares[part])
    return (
        f"The last good rate: {last.rate:.0f} requests a second. Of the CPU of a request there: {told}; "
        f"so the limit is the {most}{', which is one process' if most == 'emulator' else ''}. Our "
        f"handler, by its own log: {handler:.1f} ms, the emulator's DynamoDB included."
    )


def handler_ms(opened: session.Session, phase: Phase) -> list[float]:
    """The latencies that the function logged during a phase."""
    group = f"/aws/lambda/{opened.outputs['function_name']}"
    pages = opened.cloud.client("logs").get_paginator("filter_log_events")
    found = []
    since, until = (int(each * 1000) for each in (phase.began, phase.began + phase.took))
    for page in pages.paginate(logGroupName=group, startTime=since, endTime=until):
        for event in page["events"]:
            if event["message"].startswith('{"level"'):
                found.append(json.loads(event["message"]).get("latency_ms", 0.0))
    return found


def main(env: Annotated[str, typer.Option(help="dev, staging or prod")] = "dev") -> None:
    """A spike of 10,000 requests in a minute, then a ramp to the machine's limit."""
    console = Console(width=140)
    opened = session.opened(ROOT, env)
    load = Load(opened)
    load.run("warming up", 5, 5)
    phases = [load.run("spike", SPIKE / SPIKE_SECONDS, SPIKE_SECONDS)]
    for rate in RAMP:
        gevent.sleep(REST_SECONDS)
        phases.append(load.run(f"ramp {rate}", rate, RAMP_SECONDS))
        console.print(f"{rate} a second: p99 {phases[-1].percentile(0.99):.0f} ms")
        if phases[-1].at_limit():
            break
    console.print(report(phases))
    console.print(where(opened, phases[1:]))


if __name__ == "__main__":
    typer.run(main)
