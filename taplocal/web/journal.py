"""What a load balancer tells of its work: metrics of AWS/ApplicationELB, lines of its access log.

By "CloudWatch metrics for your Application Load Balancer" and "Access logs for your Application
Load Balancer" of AWS's user guide. The dimension AvailabilityZone is left out: a laptop has none.
"""

from __future__ import annotations

import re
import time
from collections import defaultdict, deque
from collections.abc import Iterable
from datetime import UTC, datetime
from functools import lru_cache
from typing import NamedTuple

from taplocal.web import http1
from taplocal.web.targets import HEALTHY, Group, Member

MOST_LINES = 100_000  # of an access log that nobody takes; about 50 MB
MOST_AGENT = 8 << 10  # "If the string is longer than 8 KB, it is truncated"

Dimensions = tuple[tuple[str, str], ...]


class Metric(NamedTuple):
    """A metric of AWS/ApplicationELB since the last call: how often each value was seen.

    Sums are the sum of value x count. Response times are rounded to milliseconds, so that a
    second of 10,000 requests has few values.
    """

    dimensions: Dimensions  # (("LoadBalancer", "app/..."), ...)
    name: str
    values: dict[float, int]
    unit: str


#: Metrics that AWS gives by target group as well as by load balancer.
_BY_GROUP = re.compile(r"RequestCount|HTTPCode_Target_.XX_Count|Target\w+")
_UNITS = {"TargetResponseTime": "Seconds", "ProcessedBytes": "Bytes"}


class Exchange:
    """One request and what became of it."""

    __slots__ = (
        "action", "agent", "answer", "answered", "began", "body", "created", "group", "length",
        "location", "member", "reason", "rechunk", "request", "response", "sent", "sent_at",
        "status", "target", "tier", "trace", "tried", "tunnel",
    )  # fmt: skip

    def __init__(self, head_length: int, now: float):
        self.began, self.created = now, time.time()
        self.length, self.sent = head_length, 0  # bytes from the client, and to it
        self.request = http1.MALFORMED  # until its head is read
        self.response: http1.Response | None = None
        self.body: http1.Body = http1.Sized(0)  # the request's
        self.answer: http1.Body = http1.Sized(0)  # the target's
        self.rechunk = self.tunnel = False
        self.status = 0  # as told to the client; 0 until something was
        self.member: Member | None = None  # while it has the request
        self.tried: list[Member] = []
        self.group = self.target = ""  # the group's ARN; the address of who answered or did not
        self.sent_at = self.answered = 0.0
        self.action = self.reason = "-"
        self.location = self.trace = b"-"
        self.tier = 0

    def release(self) -> None:
        """The target has nothing more to do with it."""
        if self.member:
            self.member.outstanding -= 1
            self.member = None


class Connection(NamedTuple):
    """What the access log says of a client's connection."""

    client: str  # address and port
    scheme: str
    port: int  # that the client used
    trace: str  # TID_...
    cipher: str = "-"
    protocol: str = "-"
    domain: str = "-"  # of the TLS handshake, if the certificate is valid for it
    certificate: str = "-"


class Journal:
    """The counts and lines of one load balancer."""

    def __init__(self, suffix: str):
        self.suffix = suffix
        self.lines: deque[str] = deque(maxlen=MOST_LINES)
        self._counts: dict[tuple[str, str], dict[float, int]] = defaultdict(dict)
        self._bytes = 0

    def count(self, name: str, value: float = 1, group: str = "") -> None:
        values = self._counts[group, name]
        values[value] = values.get(value, 0) + 1

    def record(self, exchange: Exchange, connection: Connection, log: bool) -> None:
        """Counts an exchange that is over, and writes its line if there is a log."""
        status, group = exchange.status, exchange.group
        if exchange.target:
            self.count("RequestCount", group=group)
        if response := exchange.response:
            self.count(f"HTTPCode_Target_{response.status // 100}XX_Count", group=group)
            waited = round(exchange.answered - exchange.sent_at, 3)
            self.count("TargetResponseTime", waited, group)
        else:
            self.count(f"HTTPCode_ELB_{status // 100}XX_Count")
            if status in (500, 502, 503, 504):
                self.count(f"HTTPCode_ELB_{status}_Count")
            if exchange.action in _OWN_ACTIONS:
                self.count(_OWN_ACTIONS[exchange.action])
        if exchange.tier:
            self.count("DesyncMitigationMode_NonCompliant_Request_Count")
        if exchange.request.dropped:
            self.count("DroppedInvalidHeaderRequestCount")
        self._bytes += exchange.length + exchange.sent
        if log:
            self.lines.append(self._line(exchange, connection))

    def take(self, groups: Iterable[Group], connections: int) -> list[Metric]:
        """The metrics since the last call; hosts and connections are those of now."""
        counts, self._counts = self._counts, defaultdict(dict)
        if self._bytes:
            counts["", "ProcessedBytes"][self._bytes] = 1
            self._bytes = 0
        balancer = ("LoadBalancer", self.suffix)
        found: dict[tuple[Dimensions, str], dict[float, int]] = defaultdict(dict)

        def add(name: str, values: dict[float, int], *dimensions: tuple[str, str]) -> None:
            total = found[dimensions, name]
            for value, times in values.items():
                total[value] = total.get(value, 0) + times

        for (group, name), values in counts.items():
            add(name, values, balancer)
            if group and _BY_GROUP.fullmatch(name):
                add(name, values, balancer, _dimension(group))
        if connections:
            add("ActiveConnectionCount", {connections: 1}, balancer)
        for each in groups:
            arn, members = each.group.arn, each.members.values()
            target_group = _dimension(arn)
            healthy = sum(member.health is HEALTHY for member in members)
            unhealthy = sum(member.health.state == "unhealthy" for member in members)
            add("HealthyHostCount", {healthy: 1}, balancer, target_group)
            add("UnHealthyHostCount", {unhealthy: 1}, balancer, target_group)
            requests = sum(counts.get((arn, "RequestCount"), {}).values())
            share = {requests / (healthy or unhealthy or 1): 1}
            add("RequestCountPerTarget", share, target_group)
            add("RequestCountPerTarget", share, balancer, target_group)
        return [
            Metric(dimensions, name, values, _UNITS.get(name, "Count"))
            for (dimensions, name), values in found.items()
        ]

    def _line(self, exchange: Exchange, connection: Connection) -> str:
        """An entry with all fields of AWS's syntax, in its order."""
        request, response = exchange.request, exchange.response
        scheme, target = connection.scheme, exchange.target or "-"
        if exchange.tunnel:
            scheme = scheme.replace("http", "ws")
        agent, line = "-", f"- {connection.scheme}://-:{connection.port}- -"
        if request is not http1.MALFORMED:
            agent = _quoted(request.header(b"user-agent")[:MOST_AGENT]) or "-"
            host = request.own.get(b"host", b"127.0.0.1").decode("latin-1")
            host = host if _PORT.search(host) else f"{host}:{connection.port}"
            url = f"{connection.scheme}://{host}{_quoted(request.target)}"
            line = f"{request.method.decode()} {url} {request.version.decode()}"
        times, told = "-1 -1 -1", "-"
        if response:
            before, waited = exchange.sent_at - exchange.began, exchange.answered - exchange.sent_at
            times, told = f"{before:.3f} {waited:.3f} 0.000", str(response.status)
        rule = "0" if exchange.action != "-" else "-"
        return (
            f"{scheme} {_iso(time.time())} {self.suffix} {connection.client} {target} {times} "
            f'{exchange.status} {told} {exchange.length} {exchange.sent} "{line}" "{agent}" '
            f"{connection.cipher} {connection.protocol} {exchange.group or '-'} "
            f'"{_quoted(exchange.trace)}" "{connection.domain}" "{connection.certificate}" {rule} '
            f'{_iso(exchange.created)} "{exchange.action}" "{_quoted(exchange.location)}" "-" '
            f'"{target}" "{told}" "{http1.TIERS[exchange.tier]}" "{exchange.reason}" '
            f"{connection.trace}"
        )


_OWN_ACTIONS = {"redirect": "HTTP_Redirect_Count", "fixed-response": "HTTP_Fixed_Response_Count"}


def _dimension(arn: str) -> tuple[str, str]:
    return "TargetGroup", arn.rpartition(":")[2]


def _iso(seconds: float) -> str:
    return f"{_second(int(seconds))}.{int(seconds % 1 * 1e6):06d}Z"


@lru_cache(maxsize=64)
def _second(seconds: int) -> str:
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%S}"


def _quoted(value: bytes) -> str:
    """A value that cannot leave its quotes: as on AWS, quotes and controls are \\xNN."""
    text = value.decode("latin-1")
    if not _UNSAFE.search(text):
        return text
    return _UNSAFE.sub(lambda found: f"\\x{ord(found[0]):02X}", text)


_PORT = re.compile(r":\d+$")
_UNSAFE = re.compile(r"[^ !#-\[\]-~]")
