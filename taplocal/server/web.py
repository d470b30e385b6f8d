"""What the emulator has registered of the web environment, and what the supervisor says of it.

One private path is all that they share: the supervisor tells each 0.2 s what is there, and gets
what is wanted. This module runs in the emulator's process, starts the supervisor when there is
something to run, and again when it has died.
"""

from __future__ import annotations

import hashlib
import ipaddress
import json
import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

from ministack import app as ministack
from ministack.core.responses import request_scope
from ministack.services import acm, alb, autoscaling, cloudwatch, ec2, rds

from taplocal import web as files
from taplocal.emulator import PREFERRED_PORT as EMULATOR_PORT
from taplocal.server import databases, metrics, scaling, schedules
from taplocal.server.debuggee import free
from taplocal.server.guard import App, Body, Message, Receive, Send

Json = dict[str, Any]
PROGRAM = Path(__file__).parents[1] / "web" / "supervisor.py"
LOG = logging.getLogger("web")
LOOK_SECONDS, RETRY_SECONDS = 0.1, 1.0
PREFERRED_PORT = 8080
SMALLEST_SUBNET = 27  # of a load balancer: bits of its prefix


class Records:
    """The exchange, as an ASGI application before MiniStack's."""

    def __init__(self, app: App, changed: Callable[[], None]):
        self.app, self.changed = app, changed
        self.last: Any = None

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Answers the supervisor; the guard has verified its signature."""
        if scope["type"] != "http" or not scope["path"].startswith(files.PATH):
            await self.app(scope, receive, send)
            return
        told = json.loads(await Body(receive).read() or b"{}")
        if scope["path"] == f"{files.PATH}/token":
            result: Json = {"valid": databases.valid_token(**told)}
        elif scope["path"] == f"{files.PATH}/restore":
            result = await databases.restore_in_place(**told)
        elif scope["path"] == f"{files.PATH}/interrupt":
            result = scaling.interrupt(**told)
        else:
            result = self.exchange(told)
        head = {"Content-Type": "application/json"}
        await ministack._send_response(send, 200, head, json.dumps(result).encode())

    def exchange(self, told: Json) -> Json:
        """Writes what is there; returns what is wanted, by region."""
        wanted = {}
        for account, region in scopes():
            with request_scope(account, region):
                if region in told:
                    self.report(told[region])
                if schedules.act(datetime.now(UTC)):
                    self.changed()
                wanted[region] = registered(told.get(region, {}).get("known", ()))
        shown = {region: (each["groups"], each["databases"]) for region, each in told.items()}
        if shown != self.last:
            self.last = shown
            self.changed()
        return wanted

    def report(self, told: Json) -> None:
        """Writes what the supervisor says of a region."""
        for name, group in told["groups"].items():
            scaling.report(name, group)
        for name, database in told["databases"].items():
            databases.report(name, database)
        for arn, error in told["balancers"].items():
            if arn in alb._lbs:
                alb._lbs[arn] |= {"State": "failed" if error else "active", "Reason": error}
        health.update(told["health"])
        databases.deleted(told["deleted"])
        for namespace, dimensions, name, value, times in told["metrics"]:
            metrics.record(namespace, dimensions, {name: value}, times)


#: Target group -> target -> state, reason and description, as the balancer sees them.
health: dict[str, dict[str, list[str]]] = {}


def scopes() -> set[tuple[str, str]]:
    """The accounts and regions that have something to run."""
    stores = (alb._lbs, alb._tgs, autoscaling._asgs, rds._instances)
    found = {key[:2] for store in stores for key in list(store._data)}
    return found | set(databases.gone)


def networks() -> bool:
    """Whether somebody has made a network: something will run there, and starting takes time."""
    return any(not each.get("IsDefault") for each in list(ec2._vpcs._data.values()))


def registered(known: Collection[str]) -> Json:
    """What is registered in the request's scope; templates that are known are not told again."""
    groups = scaling.registered()
    if any(scaling.refreshing(each) for each in groups.values()):
        cloudwatch._evaluate_all_alarms()
    return {
        "balancers": [
            {**each, "Attributes": attributes(alb._lb_attrs, each["LoadBalancerArn"])}
            for each in alb._lbs.values()
        ],
        "listeners": list(alb._listeners.values()),
        "certificates": {
            arn: [each["DomainName"], *each.get("SubjectAlternativeNames", [])]
            for arn, each in acm._certificates.items()
        },
        "target_groups": [
            {
                **each,
                "Attributes": attributes(alb._tg_attrs, each["TargetGroupArn"]),
                "Targets": alb._targets.get(each["TargetGroupArn"], []),
            }
            for each in alb._tgs.values()
        ],
        "groups": groups,
        "templates": unknown(groups.values(), known),
        "databases": databases.registered(),
        "alarms": {name: each["StateValue"] for name, each in cloudwatch._alarms.items()},
    }


def unknown(groups: Iterable[Json], known: Collection[str]) -> Json:
    """Has groups name their templates by digests; the data of those that are not known.

    They are large, the user data above all, and change seldom.
    """
    found: Json = {}
    for group in groups:
        for version, data in group["Templates"].items():
            key = hashlib.sha256(json.dumps(data).encode()).hexdigest()
            group["Templates"][version] = key
            found |= {} if key in known else {key: data}
    return found


def attributes(store: Any, arn: str) -> Json:
    """The attributes of a load balancer or target group, by key."""
    return {each["Key"]: each["Value"] for each in store.get(arn, [])}


def base_ports() -> Iterator[int]:
    """Ports for listener 80 and the next one for 443: those of no load balancer.

    Where the emulator has not its own preferred port, there is another one, which may choose now.
    """
    first = PREFERRED_PORT + (int(os.environ["GATEWAY_PORT"]) - EMULATOR_PORT) % 2_048 * 10
    taken = {each.get("BasePort") for each in alb._lbs._data.values()}
    yield from (each for each in range(first, 65_000, 10) if each not in taken)


def create_balancer(parameters: Json) -> Any:
    """CreateLoadBalancer: its DNS name is an address of this machine."""
    for each in alb._parse_member_list(parameters, "Subnets"):
        block = ec2._subnets.get(each, {}).get("CidrBlock", "0.0.0.0/0")
        if ipaddress.IPv4Network(block).prefixlen > SMALLEST_SUBNET:
            why = f"The subnet {each} ({block}) must have /{SMALLEST_SUBNET} and 8 free addresses"
            return alb._error("InvalidSubnet", why)
    before = set(alb._lbs)
    _create_lb(parameters)
    (arn,) = set(alb._lbs) - before or {None}
    if arn is None:
        return _create_lb(parameters)  # the error
    balancer = alb._lbs[arn]
    balancer["BasePort"] = next(each for each in base_ports() if free(each) and free(each + 1))
    balancer |= {"DNSName": f"127.0.0.1:{balancer['BasePort']}", "State": "provisioning"}
    shown = f"<LoadBalancers>{balancer_xml(balancer)}</LoadBalancers>"
    return alb._xml(200, "CreateLoadBalancer", shown)


_create_lb, _lb_xml = alb._create_lb, alb._lb_xml


def balancer_xml(balancer: Json) -> str:
    """A load balancer, with the reason why it failed."""
    reason = f"</Code><Reason>{escape(balancer.get('Reason', ''))}</Reason></State>"
    return str(_lb_xml(balancer)).replace("</Code></State>", reason)


def describe_health(parameters: Json) -> Any:
    """DescribeTargetHealth: as the balancer sees it."""
    arn = alb._p(parameters, "TargetGroupArn")
    if arn not in alb._tgs:
        return alb._error("TargetGroupNotFound", f"Target group '{arn}' not found.")
    wanted = {each["Id"] for each in alb._parse_targets_param(parameters)}
    port, found = alb._tgs[arn]["Port"], ""
    unused = ["unused", "Target.NotInUse", "Target group is not in use"]
    registered = {each["Id"]: unused for each in alb._targets.get(arn, [])}
    for target, (state, reason, description) in {**registered, **health.get(arn, {})}.items():
        if not wanted or target in wanted:
            why = f"<Reason>{reason}</Reason><Description>{description}</Description>"
            found += (
                f"<member><Target><Id>{target}</Id><Port>{port}</Port></Target>"
                f"<HealthCheckPort>{port}</HealthCheckPort><TargetHealth><State>{state}</State>"
                f"{why if reason else ''}</TargetHealth></member>"
            )
    shown = f"<TargetHealthDescriptions>{found}</TargetHealthDescriptions>"
    return alb._xml(200, "DescribeTargetHealth", shown)


class Supervisor:
    """Starts the supervisor when there is something to run, and again when it has died."""

    def __init__(self, given: Json):
        self.given = given

    def watch(self) -> None:
        """Looks for ever; the pipe to the process is its lifeline."""
        process: subprocess.Popen[bytes] | None = None
        while True:
            time.sleep(LOOK_SECONDS)
            if process is None or process.poll() is not None:
                if process:  # nothing runs any more, until the next one says so
                    health.clear()
                    databases.ended()
                try:
                    process = self.start() if scopes() or networks() else None
                except OSError:  # the disk is full, or there cannot be another process
                    LOG.exception("what runs the web environment does not start")
                    time.sleep(RETRY_SECONDS)

    def start(self) -> subprocess.Popen[bytes]:
        """The process, with its keys on standard input: not in arguments, which others read."""
        for each in list(alb._lbs._data.values()):
            each["State"] = "provisioning"  # until it listens
        with Path(files.LOG).open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-P", str(PROGRAM)],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # an emulator that is killed leaves it time to stop
            )
        if process.stdin:
            process.stdin.write(json.dumps(self.given).encode() + b"\n")
            process.stdin.flush()
        return process


def install(given: Json, changed: Callable[[], None]) -> None:
    """Puts the exchange before MiniStack, and has its API tell the truth.

    `given` is for the supervisor: URL and keys of the emulator. `changed` announces that the
    records are to be saved.
    """
    ministack.app = Records(ministack.app, changed)
    alb._ACTION_MAP |= {
        "CreateLoadBalancer": create_balancer,
        "DescribeTargetHealth": describe_health,
    }
    alb._lb_xml = balancer_xml
    scaling.install()
    schedules.install()
    databases.install()
    threading.Thread(target=Supervisor(given).watch, daemon=True).start()
