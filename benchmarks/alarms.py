"""What a month of traffic makes the alarms say: `python -m benchmarks.alarms`.

A simulation, minute by minute, as no cloud can be asked for a month: the requests of 30 days with a
fault now and then, and incidents at known times, go through prod's alarms on the API's metrics as
the program registers them, evaluated as CloudWatch documents it: each minute, those that look back
more than a day each hour, over windows that slide, composite alarms by their rule, pages held back
while a release is watched.

Two services have the same month: a busy one, of 20 requests a second on average, and a quiet one,
of one a minute, without `synthetics`, which alone are 2.2. `count` is the alarm that the API had
before, more than four 5xx in five minutes.
"""

from __future__ import annotations

import math
import random
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, NamedTuple

from rich.console import Console
from rich.table import Table

from taplocal.architecture import metrics_of
from taplocal.server.expressions import Value, value_of
from tests.stack.conftest import Graph, graph_of

DAY = 24 * 60  # minutes
MONTH = 30 * DAY
FAULTS, SLOW = 0.00002, 0.0005  # of the requests, at any time
TRAFFIC = {"busy": 1_200, "quiet": 1}  # requests a minute, on average


class Incident(NamedTuple):
    """What happens: from a minute on, for so long, to these shares of the requests."""

    what: str
    begin: int
    minutes: int
    failed: float = 0
    slow: float = 0
    times: float = 1  # as many requests as usual
    release: bool = False  # watched, by `canary_percent`


#: At most one at a time, with days between them.
INCIDENTS = (
    Incident("a spike, ten times the traffic, served well", 2 * DAY + 600, 20, times=10),
    Incident("a release, good", 4 * DAY + 600, 15, release=True),
    Incident("a failover: everything fails for a minute", 6 * DAY + 180, 1, failed=1),
    Incident(
        "a release whose share of 10 % fails for 3 minutes", 9 * DAY + 600, 3, 0.1, release=True
    ),
    Incident("0.3 % fail, for two days", 12 * DAY, 2 * DAY, failed=0.003),
    Incident("30 % fail, for 40 minutes", 18 * DAY + 780, 40, failed=0.3),
    Incident("8 % are slow, for six hours", 21 * DAY + 480, 360, slow=0.08),
    Incident("everything fails, for two hours at night", 26 * DAY + 120, 120, failed=1),
)


@dataclass(frozen=True)
class Requests:
    """Requests, those that failed and those that were slow; by the minute, added up."""

    total: list[int]
    failed: list[int]
    slow: list[int]

    def between(self, first: int, last: int) -> tuple[int, int, int]:
        """Of the minutes from the first on, before the last."""
        at = max(first, 0)
        return tuple(x[last] - x[at] for x in (self.total, self.failed, self.slow))  # type: ignore[return-value]


def month(
    average: float, incidents: Iterable[Incident] = INCIDENTS, minutes: int = MONTH
) -> Requests:
    """The requests of a service; the same for the same average."""
    chance = random.Random(20)  # noqa: S311 - the same month each time
    at = {
        minute: each
        for each in incidents
        for minute in range(each.begin, each.begin + each.minutes)
    }
    counts = []
    for minute in range(minutes):
        now = at.get(minute, Incident("", 0, 0))
        daily = 1 - 0.8 * math.cos(2 * math.pi * minute / DAY)  # most at noon
        total = some(chance, average * daily * now.times)
        failed = some(chance, total * max(FAULTS, now.failed), total)
        slow = some(chance, total * max(SLOW, now.slow), total - failed)
        counts.append((total, failed, slow))
    columns = zip(*counts, strict=True)
    return Requests(*([0, *accumulate(column)] for column in columns))


def some(chance: random.Random, expected: float, most: float = math.inf) -> int:
    """A number of independent events, of which so many are expected."""
    if expected >= most:
        return int(most)
    if expected > 50:
        return min(
            int(most) if most < math.inf else 10**9,
            max(0, round(chance.gauss(expected, math.sqrt(expected)))),
        )
    threshold, number, product = math.exp(-expected), 0, chance.random()
    while product > threshold:
        number, product = number + 1, product * chance.random()
    return int(min(number, most))


def statistic(metric: Mapping[str, Any], counts: tuple[int, int, int]) -> Value:
    """A metric of API Gateway in a window with these requests; none without any."""
    total, failed, slow = counts
    if not total:
        return None
    name, kind = (
        metric["metricName"],
        metric.get("stat") or metric.get("extendedStatistic") or metric["statistic"],
    )
    if name == "Latency":
        return (
            100 * (1 - slow / total)
            if kind.startswith("PR")
            else (10_000.0 if slow > 0.05 * total else 10.0)
        )
    return {"SampleCount": total, "Sum": float(failed), "Average": failed / total}[kind]


class Alarm:
    """A metric alarm as it is registered, over the requests of a month."""

    def __init__(self, inputs: Mapping[str, Any], requests: Requests):
        self.name, self.inputs, self.requests = inputs["name"], inputs, requests
        self.actions = inputs["alarmActions"]
        queries = inputs.get("metricQueries", ())
        self.metrics = {x["id"]: x["metric"] for x in queries if "metric" in x} or {"it": inputs}
        self.expressions = {x["id"]: x["expression"] for x in queries if "expression" in x}
        self.period = next(iter(self.metrics.values()))["period"] // 60
        self.needed, self.periods = inputs["datapointsToAlarm"], inputs["evaluationPeriods"]
        self.every = 60 if self.period * self.periods > DAY else 1  # minutes
        self.fired = False  # when it was evaluated last

    def fires(self, minute: int) -> bool:
        """Whether it is in ALARM at the end of a minute, asked in order; missing data do not
        breach."""
        if minute % self.every == 0:
            self.fired = self._evaluate(minute)
        return self.fired

    def _evaluate(self, minute: int) -> bool:
        beyond = 0
        for number in range(self.periods):
            last = minute + 1 - number * self.period
            value = self.value(last - self.period, last) if last > 0 else None
            beyond += value is not None and value > self.inputs["threshold"]
        return bool(beyond >= self.needed)

    def value(self, first: int, last: int) -> Value:
        """What it watches, in a window."""
        counts = self.requests.between(first, last)
        if not counts[1] and not counts[2]:
            return None  # nothing bad: no alarm here is on good requests
        values = {name: statistic(metric, counts) for name, metric in self.metrics.items()}
        for name, text in self.expressions.items():
            values[name] = value_of(text, values)
        return values[next(reversed(values))]


def is_of_api(alarm: Mapping[str, Any]) -> bool:
    """Whether an alarm looks at nothing but API Gateway's metrics."""
    return {each["namespace"] for each in metrics_of(alarm)} == {"AWS/ApiGateway"}


def firing(graph: Graph, requests: Requests) -> Iterator[tuple[int, dict[str, bool]]]:
    """Minute -> which alarms with an action fire, by their names."""
    found = [x.inputs for x in graph.of("MetricAlarm") if is_of_api(x.inputs)]
    alarms = [Alarm(inputs, requests) for inputs in found]
    rules = {
        x.inputs["alarmName"]: [
            re.findall(r"ALARM\(([^)]+)\)", each) for each in x.inputs["alarmRule"].split(" OR ")
        ]
        for x in graph.of("CompositeAlarm")
    }
    for minute in range(len(requests.total) - 1):
        states = {each.name: each.fires(minute) for each in alarms}
        heard = {each.name: states[each.name] for each in alarms if each.actions}
        joined = {
            name: any(all(states[x] for x in pair) for pair in rule) for name, rule in rules.items()
        }
        yield minute, heard | joined | {"count": fails_often(requests, minute)}


def fails_often(requests: Requests, minute: int) -> bool:
    """The alarm that the API had before."""
    return requests.between(minute - 4, minute + 1)[1] > 4


def notifications(
    graph: Graph, requests: Requests, incidents: Iterable[Incident] = INCIDENTS
) -> list[tuple[int, str]]:
    """Minute and name of each alarm that goes to ALARM; one that is suppressed waits, and is not
    told if it is over by then."""
    watched = [(x.begin, x.begin + x.minutes + 3) for x in incidents if x.release]
    suppressed = {
        x.inputs["alarmName"] for x in graph.of("CompositeAlarm") if "actionsSuppressor" in x.inputs
    }
    told, before, waiting = [], dict[str, bool](), set[str]()
    for minute, now in firing(graph, requests):
        held = any(begin <= minute < end for begin, end in watched)
        for name, fires in now.items():
            if fires and not before.get(name):
                waiting.add(name)
            if not fires:
                waiting.discard(name)
            if name in waiting and not (held and name in suppressed):
                waiting.remove(name)
                told.append((minute, name))
        before = now
    return told


def kind_of(graph: Graph) -> dict[str, str]:
    """Alarm -> what it is: a page or a ticket."""
    found = {"count": "count"}
    for each in (*graph.of("MetricAlarm"), *graph.of("CompositeAlarm")):
        pages = graph.outputs["pages_topic_arn"] in each.inputs["alarmActions"]
        found[each.inputs.get("alarmName") or each.inputs["name"]] = "page" if pages else "ticket"
    return found


def rows(graph: Graph) -> Iterator[tuple[str, ...]]:
    """A row of the table for each incident, and one for what was told without any: for the busy and
    the quiet service the page and the ticket, with the minutes until it, and `count`."""
    kinds, cells = kind_of(graph), dict[str, list[str]]()
    for average in TRAFFIC.values():
        told = notifications(graph, month(average))
        for each in INCIDENTS:
            until = each.begin + each.minutes + 60
            mine = [x for x in told if each.begin <= x[0] < until]
            told = [x for x in told if x not in mine]
            cells.setdefault(each.what, []).extend(shown(mine, kinds, each.begin))
        cells.setdefault("nothing of these", []).extend(counted(told, kinds))
    for what, row in cells.items():
        yield what, *row


def shown(told: list[tuple[int, str]], kinds: Mapping[str, str], begin: int) -> list[str]:
    """First page and first ticket after so many minutes, and how often `count` told."""
    found = []
    for kind in ("page", "ticket"):
        minutes = [minute - begin + 1 for minute, name in told if kinds[name] == kind]
        found.append(f"after {minutes[0]} min" if minutes else "–")
    return [*found, str(sum(name == "count" for _, name in told))]


def counted(told: list[tuple[int, str]], kinds: Mapping[str, str]) -> list[str]:
    """How many of each."""
    return [
        str(sum(kinds[name] == kind for _, name in told)) for kind in ("page", "ticket", "count")
    ]


HEADINGS = (
    "what happens",
    *(f"{service}: {x}" for service in TRAFFIC for x in ("page", "ticket", "count")),
)


def main() -> None:
    """Prints the table."""
    table = Table(*HEADINGS)
    for row in rows(graph_of("prod", systems="api")):
        table.add_row(*row)
    Console(width=140).print(table)


if __name__ == "__main__":
    main()
