"""Target groups: who is in them, who is healthy, and who gets the next request.

The states, reasons and rules are of "Health checks for your target groups" and "Target groups" in
AWS's user guide for Application Load Balancers. Slow start is left out: AWS excludes it together
with least_outstanding_requests, and no program of ours sets it.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

CONNECT_SECONDS = 10  # "the connection timeout expired (10 seconds)", HTTP 504 in the guide
_MOST_CHECKED = 32 << 10  # of a health check's response head, as for every response


@dataclass(frozen=True)
class Target:
    """An instance in a target group; the same id at another address is another process."""

    id: str
    host: str
    port: int


@dataclass(frozen=True)
class HealthCheck:
    """How targets are asked; times are real seconds, as the caller has scaled them."""

    path: str = "/"
    interval: float = 30
    timeout: float = 5
    healthy: int = 5  # checks that must pass before an unhealthy target is healthy again
    unhealthy: int = 2  # checks that must fail before a healthy target is unhealthy
    matcher: str = "200"  # "200", "200-299", "200,301"

    def matches(self, status: int) -> bool:
        """Whether a status is one that a healthy target gives."""
        ranges = (each.partition("-") for each in self.matcher.split(","))
        return any(int(low) <= status <= int(high or low) for low, _, high in ranges)


@dataclass(frozen=True)
class TargetGroup:
    """A target group as registered, with its targets; those that are gone are drained."""

    arn: str
    name: str
    health_check: HealthCheck
    targets: tuple[Target, ...] = ()
    algorithm: str = "round_robin"  # or "least_outstanding_requests"
    deregistration_delay: float = 300  # real seconds: it is the most that a request may still take


class Health(NamedTuple):
    """As describe_target_health tells it; reason and description are empty where AWS has none."""

    state: str  # initial, healthy, unhealthy, draining, unused
    reason: str = ""  # as "Target.ResponseCodeMismatch"
    description: str = ""


REGISTERING = Health("initial", "Elb.RegistrationInProgress", "Target registration is in progress")
INITIAL = Health("initial", "Elb.InitialHealthChecking", "Initial health checks in progress")
HEALTHY = Health("healthy")
DRAINING = Health(
    "draining", "Target.DeregistrationInProgress", "Target deregistration is in progress"
)
UNUSED = Health(
    "unused",
    "Target.NotInUse",
    "Target group is not configured to receive traffic from the load balancer",
)
TIMED_OUT = Health("unhealthy", "Target.Timeout", "Request timed out")
FAILED = Health("unhealthy", "Target.FailedHealthChecks", "Health checks failed")


class Member:
    """A target that has requests, connections and a state.

    `open` and `idle` are connections to it, of which only their owner knows more than the methods
    close() and abort().
    """

    def __init__(self, target: Target):
        self.target = target
        self.health = REGISTERING
        self.outstanding = 0  # requests that it has not answered, and WebSockets
        self.open: set[Any] = set()
        self.idle: list[Any] = []  # the last one used is last
        self.drained_by: float | None = None  # of the loop's clock; None unless it is draining
        self.checks: asyncio.Task[None] | None = None
        self._passed = self._failed = 0

    def learn(self, result: Health, check: HealthCheck) -> None:
        """Counts a health check.

        "It must pass one health check to be considered healthy" after its registration; from then
        on the thresholds count.
        """
        passed = result is HEALTHY
        self._passed, self._failed = (self._passed + 1, 0) if passed else (0, self._failed + 1)
        state = self.health.state
        if passed and (state == "initial" or self._passed >= check.healthy):
            self.health = HEALTHY
        elif not passed and (state == "unhealthy" or self._failed >= check.unhealthy):
            self.health = result
        elif self.health is REGISTERING:
            self.health = INITIAL

    def drain(self, until: float) -> None:
        """No request from now on; those that it has may end until then."""
        self.drained_by, self.health = until, DRAINING
        self.stop_checks()
        for each in [*self.idle]:
            each.close()

    def stop_checks(self) -> None:
        if self.checks:
            self.checks.cancel()
            self.checks = None


class Group:
    """A target group that runs: its members, those that drain included."""

    def __init__(self, group: TargetGroup):
        self.group = group
        self.members: dict[Target, Member] = {}
        self.draining: list[Member] = []
        self.used = False  # whether a listener forwards to it
        self._turn = 0

    def apply(self, group: TargetGroup, used: bool, now: float) -> None:
        """Makes the members those of the target group; health checks follow their settings."""
        for target in self.members.keys() - set(group.targets):
            member = self.members.pop(target)
            member.drain(now + group.deregistration_delay)
            self.draining.append(member)
        changed = (group.health_check, used) != (self.group.health_check, self.used)
        self.group, self.used = group, used
        for target in group.targets:
            member = self.members.setdefault(target, Member(target))
            if changed:
                member.stop_checks()
            if used and member.checks is None:
                if member.health is UNUSED:
                    member.health = REGISTERING
                member.checks = asyncio.create_task(_watch(member, group.health_check))
            elif not used:
                member.health = UNUSED

    def choose(self, tried: Iterable[Member] = ()) -> Member | None:
        """The member for the next request, but for those that were tried; None if there is none.

        "If a target group contains only unhealthy registered targets, the load balancer routes
        requests to all those targets": it fails open. One that is initial gets none.
        """
        able = [each for each in self.members.values() if each.health is HEALTHY]
        if not able:
            able = [each for each in self.members.values() if each.health.state == "unhealthy"]
        able = [each for each in able if each not in tried] if tried else able
        if not able:
            return None
        self._turn += not tried
        turn = self._turn % len(able)
        if self.group.algorithm == "round_robin":
            return able[turn]
        return min(able[turn:] + able[:turn], key=lambda each: each.outstanding)

    def sweep(self, now: float, idle_since: float) -> None:
        """Forgets what has drained, ends what drains for too long, and what idles."""
        for member in [*self.draining]:
            if member.drained_by is not None and now >= member.drained_by:
                for each in [*member.open]:
                    each.abort()
            if not member.open and not member.outstanding:
                self.draining.remove(member)
        for member in self.members.values():
            for each in [*member.idle]:
                if each.used < idle_since:
                    each.close()

    def health(self) -> dict[str, Health]:
        """By target id; one that is registered goes before one that drains."""
        everyone = [*self.draining, *self.members.values()]
        return {each.target.id: each.health for each in everyone}

    def busy(self) -> bool:
        """Whether a connection to a member is open."""
        return any(each.open for each in [*self.draining, *self.members.values()])

    def stop(self) -> None:
        """Ends checks and connections."""
        for member in [*self.draining, *self.members.values()]:
            member.stop_checks()
            for each in [*member.open]:
                each.abort()


async def _watch(member: Member, check: HealthCheck) -> None:
    """Asks a target for ever; a slow answer does not shift the next check."""
    clock = asyncio.get_running_loop().time
    due = clock()
    while True:
        member.learn(await _ask(member.target, check), check)
        due = max(due + check.interval, clock())
        await asyncio.sleep(due - clock())


async def _ask(target: Target, check: HealthCheck) -> Health:
    """One health check, with a connection of its own as on AWS."""
    request = (
        f"GET {check.path} HTTP/1.1\r\nHost: {target.host}:{target.port}\r\nConnection: close\r\n"
        "User-Agent: ELB-HealthChecker/2.0\r\nAccept-Encoding: gzip, compressed\r\n\r\n"
    )
    try:
        async with asyncio.timeout(check.timeout):
            opened = asyncio.open_connection(target.host, target.port, limit=_MOST_CHECKED)
            reader, writer = await opened
            try:
                writer.write(request.encode())
                head = await reader.readuntil(b"\r\n\r\n")
            finally:
                writer.transport.abort()
    except TimeoutError:
        return TIMED_OUT
    except (OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
        return FAILED
    found = re.match(rb"HTTP/1\.[01] (\d{3})[ \r]", head)
    if not found:
        return FAILED
    if check.matches(int(found[1])):
        return HEALTHY
    told = f"Health checks failed with these codes: [{int(found[1])}]"
    return Health("unhealthy", "Target.ResponseCodeMismatch", told)
