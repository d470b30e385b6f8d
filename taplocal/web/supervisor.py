"""Runs the web environment: load balancers, instances and databases, as the emulator has them.

One process for all environments of a data folder, which is its working directory. The emulator
starts it with its keys on standard input, which then is the lifeline: at its end everything stops.
Each EXCHANGE_SECONDS, or sooner, it tells the emulator what is there and gets what is wanted
(`taplocal/server/web.py`).
"""

from __future__ import annotations

import asyncio
import base64
import functools
import gzip
import json
import logging
import os
import secrets
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[2]))  # a script is in no package
    sys.dont_write_bytecode = False  # as ministack_server.py

import boto3
from botocore.config import Config

from taplocal import web
from taplocal.web import exchange
from taplocal.web.balancer import Balancer, BalancerError
from taplocal.web.certificates import Authority
from taplocal.web.fleet import Fleet, merged
from taplocal.web.instances import Instance, Launch
from taplocal.web.metadata import Metadata
from taplocal.web.pg_installed import DatabaseError, nearest
from taplocal.web.postgres import Database, Snapshots, Spec, discard
from taplocal.web.processes import Processes
from taplocal.web.registered import (
    Certificate,
    FixedResponse,
    Forward,
    Listener,
    LoadBalancer,
    Redirect,
)
from taplocal.web.targets import HealthCheck, Target, TargetGroup

Json = dict[str, Any]
log = logging.getLogger(__name__)
EXCHANGE_SECONDS, BUSY_SECONDS = 0.2, 0.05  # when all is as wanted, and until then
MEASURE_SECONDS = 60 / web.SCALE  # a minute of CloudWatch
CERTIFICATE_SECONDS = 3_600  # between two looks at how long a certificate lasts
LOG_SECONDS = 5 * 60 / web.SCALE  # a load balancer writes its access log each five minutes


class Emulator:
    """The emulator's API, with the keys of its root."""

    def __init__(self, url: str, access_key: str, secret_key: str):
        self.url, self.keys = url, (access_key, secret_key)
        self.post = functools.partial(exchange.post, url, *self.keys)

    @functools.cache  # noqa: B019 - there is one, for as long as the process
    def client(self, service: str, region: str) -> Any:
        """A client of a service in a region."""
        return boto3.client(
            service,
            region_name=region,
            endpoint_url=self.url,
            aws_access_key_id=self.keys[0],
            aws_secret_access_key=self.keys[1],
            config=Config(proxies={}),
        )

    async def credentials(self, role: str, instance_id: str) -> Mapping[str, Any]:
        """The keys of a role for an instance, as STS gives them to the metadata service."""
        region = "us-east-1"  # of IAM, which has none

        def assume() -> Mapping[str, Any]:
            arn = self.client("iam", region).get_role(RoleName=role)["Role"]["Arn"]
            made = self.client("sts", region).assume_role(RoleArn=arn, RoleSessionName=instance_id)
            return dict(made["Credentials"])

        return await asyncio.to_thread(assume)


class Server:
    """A database, with what it still has to do."""

    def __init__(self, database: Database):
        self.database = database
        self.done: dict[str, str] = {}  # task -> its error, or nothing
        self.status, self.password, self.cpu_seconds = "creating", "", 0.0
        self.work: asyncio.Task[None] | None = None

    def look(self, wanted: Json, spec: Spec) -> None:
        """Begins the next thing that is due, if nothing is under way."""
        known = {each["id"] for each in wanted["tasks"]}
        self.done = {key: each for key, each in self.done.items() if key in known}
        if self.work and not self.work.done():
            return
        if step := self._next(wanted, spec):
            self.work = asyncio.create_task(step)

    def _next(self, wanted: Json, spec: Spec) -> Any:
        if self.status in ("creating", "failed"):
            return self._begin(wanted) if self.status == "creating" else None
        if wanted["wish"] != self.status:
            return self._switch(wanted)
        return self._change(wanted, spec) if self.status == "available" else None

    def _switch(self, wanted: Json) -> Any:
        if wanted["wish"] == "stopped":
            return self._do("stopped", self.database.stop())
        return self._do("available", self.database.start(wanted["password"]))

    def _change(self, wanted: Json, spec: Spec) -> Any:
        database = self.database
        if spec != database.spec:
            return self._do("available", database.modify(spec))
        for task in wanted["tasks"]:
            if task["id"] not in self.done:
                return self._perform(task)
        if wanted["password"] != self.password:
            return self._set_password(wanted["password"])
        return None

    async def _begin(self, wanted: Json) -> None:
        self.password = wanted["password"]
        data = self.database.spec.folder.exists()
        if wanted["snapshot"] and not data:
            name = wanted["snapshot"].rpartition(":")[2]
            await self._do("available", self.database.restore(name, self.password))
        else:
            await self._do("available", self.database.start(self.password))

    async def _do(self, status: str, step: Awaitable[Any]) -> None:
        try:
            await step
            self.status = status
        except DatabaseError as error:
            log.error("%s: %s", self.database.spec.identifier, error)
            self.status = "failed"

    async def _set_password(self, password: str) -> None:
        await self._do("available", self.database.set_password(password))
        self.password = password

    async def _perform(self, task: Json) -> None:
        database, kind = self.database, task["kind"]
        steps: Mapping[str, Callable[[], Awaitable[Any]]] = {
            "modify": database.in_step,  # what is registered was changed before
            "reboot": database.reboot,
            "failover": lambda: database.reboot(failover=True),
            "snapshot": lambda: database.snapshot(task["snapshot"].rpartition(":")[2]),
            "restore": lambda: database.restore(task["snapshot"].rpartition(":")[2], self.password),
            "rotate": lambda: self._set_password(task["password"]),
        }
        try:
            await steps[kind]()
            self.done[task["id"]] = ""
        except DatabaseError as error:
            log.error("%s: %s: %s", database.spec.identifier, kind, error)
            self.done[task["id"]] = str(error)

    async def end(self) -> None:
        """Stops it, after what it is doing."""
        if self.work:
            await self.work
        await self.database.stop()

    def measure(self) -> dict[str, float]:
        """Its metrics of a minute, by name."""
        before, self.cpu_seconds = self.cpu_seconds, self.database.cpu_seconds
        spent = max(self.cpu_seconds - before, 0)
        return {
            "CPUUtilization": 100 * spent / MEASURE_SECONDS / (os.cpu_count() or 1),
            "DatabaseConnections": self.database.connections,
            "FreeStorageSpace": self.database.free_storage,
        }

    def busy(self) -> bool:
        """Whether it does something."""
        return self.work is not None and not self.work.done()

    def report(self) -> Json:
        """What is there, for the records."""
        return {
            "resource_id": self.database.spec.folder.name,
            "port": self.database.port if self.status != "creating" else 0,
            "status": self.database.status
            if self.busy() and self.status == "available"
            else self.status,
            "done": self.done,
        }


class Supervisor:
    """All that runs, by region and name."""

    def __init__(self, emulator: Emulator):
        self.emulator, self.folder = emulator, web.make_home(Path())
        self.processes = Processes(self.folder)
        self.authority = Authority(self.folder / "authority")
        self.balancer = Balancer()
        self.metadata = Metadata(emulator.credentials)
        self.fleets: dict[tuple[str, str], Fleet] = {}
        self.servers: dict[tuple[str, str], Server] = {}
        self.deleted: dict[str, list[str]] = {}
        self.certificates: dict[tuple[str, ...], tuple[Path, float]] = {}
        self.measured = self.logged = time.monotonic()
        self.last: Json = {}
        self.templates: dict[str, Json] = {}  # their data, by digest
        self.wrong = ""

    async def run(self) -> None:
        """Exchanges with the emulator until that is gone."""
        await self.metadata.start()
        try:
            while True:
                began = time.monotonic()
                try:
                    told = self.told()
                    found = await asyncio.to_thread(self.emulator.post, web.PATH, told)
                    self.templates = complete(found, self.templates)
                    self.last = found
                except OSError as error:  # it is restarting, or gone: the lifeline says which
                    log.warning("no exchange: %s", error)
                else:
                    await self.apply(self.last)
                spent = time.monotonic() - began
                pause = BUSY_SECONDS if self.busy() else EXCHANGE_SECONDS
                await asyncio.sleep(max(pause - spent, 0.02))
        finally:
            await self.stop()

    def busy(self) -> bool:
        """Whether something is being made or ended, for which somebody waits."""
        servers = any(each.busy() for each in self.servers.values())
        return servers or any(each.busy() for each in self.fleets.values())

    async def stop(self) -> None:
        """Ends everything: connections, instances, then databases."""
        await self.balancer.close()
        await asyncio.gather(*(each.end() for each in self.fleets.values()))
        await asyncio.gather(*(each.end() for each in self.servers.values()))

    def told(self) -> Json:
        """What is there, by region."""
        told: Json = {}
        health = self.balancer.health()
        for region in self.last:
            of_region = [group["TargetGroupArn"] for group in self.last[region]["target_groups"]]
            groups = {name: x.report() for (at, name), x in self.fleets.items() if at == region}
            databases = {n: x.report() for (at, n), x in self.servers.items() if at == region}
            told[region] = {
                "groups": groups,
                "databases": databases,
                "deleted": self.deleted.pop(region, []),
                "balancers": self.balancer.errors,
                "health": {
                    arn: {target: list(state) for target, state in health.get(arn, {}).items()}
                    for arn in of_region
                },
                "metrics": [],
                "known": list(self.templates),
            }
        if told:
            next(iter(told.values()))["metrics"] = self.measure()
        return told

    def measure(self) -> list[Any]:
        """The metrics of the last minute, once for each; and what groups make of them."""
        if time.monotonic() - self.measured < MEASURE_SECONDS:
            return []
        self.measured = time.monotonic()
        found: list[Any] = []
        requests: dict[str, float] = {}  # for each target, by target group
        for metric in self.balancer.take_metrics():
            named = dict(metric.dimensions)
            found += [
                ["AWS/ApplicationELB", named, metric.name, value, times]
                for value, times in metric.values.items()
            ]
            if metric.name == "RequestCountPerTarget":
                requests[named["TargetGroup"]] = max(metric.values)
        for (_, name), server in self.servers.items():
            if server.status == "available":
                of = {"DBInstanceIdentifier": name}
                found += [["AWS/RDS", of, key, each, 1] for key, each in server.measure().items()]
        for (_, name), fleet in self.fleets.items():
            fleet.minute(web.SCALE * sum(requests.get(x, 0) for x in fleet.target_groups()))
            of = {"AutoScalingGroupName": name}
            found += [[space, of, key, value, 1] for space, key, value in fleet.measure()]
        return found

    async def apply(self, wanted: Json) -> None:
        """Makes what runs equal to what is registered."""
        health = {
            arn: {target: list(state) for target, state in states.items()}
            for arn, states in self.balancer.health().items()
        }
        await self._end_unwanted(wanted)
        for region, each in wanted.items():
            await self._apply_databases(region, each["databases"])
        if not any(each.status == "creating" for each in self.servers.values()):
            for region, each in wanted.items():
                self._apply_groups(region, each, health)
        try:
            await self.balancer.apply(
                [x for region, each in wanted.items() for x in self._balancers(each)],
                [x for region, each in wanted.items() for x in self._target_groups(each)],
            )
            self.wrong = ""
        except BalancerError as error:
            if str(error) != self.wrong:
                log.error("%s", error)
            self.wrong = str(error)
        await self._deliver_logs(wanted)

    async def _apply_databases(self, region: str, wanted: Json) -> None:
        for name, each in wanted["instances"].items():
            key = region, name
            spec = self._spec(name, each)
            if key not in self.servers:
                self.servers[key] = Server(self._database(region, spec))
            self.servers[key].look(each, spec)
        for each in wanted["gone"]:
            kind = "snapshots" if each.startswith("arn:") else "databases"
            if await discard(self.folder / kind / each.rpartition(":")[2]):
                self.deleted.setdefault(region, []).append(each)

    def _spec(self, name: str, each: Json) -> Spec:
        values = each["parameters"].items()
        return Spec(
            identifier=name,
            folder=self.folder / "databases" / each["resource_id"],
            host=each["host"],
            port=each["port"],
            engine_version=nearest(each["engine_version"]),
            user=each["user"],
            database=each["database"],
            multi_az=each["multi_az"],
            parameters=tuple(
                (key, value["ParameterValue"], value["ApplyMethod"]) for key, value in values
            ),
        )

    def _database(self, region: str, spec: Spec) -> Database:
        async def verify(_address: str, user: str, token: str) -> bool:
            told = {"identifier": spec.identifier, "region": region, "user": user, "token": token}
            found = await asyncio.to_thread(self.emulator.post, f"{web.PATH}/token", told)
            return bool(found["valid"])

        return Database(
            spec,
            processes=self.processes,
            authority=self.authority,
            snapshots=Snapshots(self.folder / "snapshots"),
            verify=verify,
            event=log.info,
        )

    def _apply_groups(self, region: str, wanted: Json, health: Mapping[str, Any]) -> None:
        for name, record in wanted["groups"].items():
            make = functools.partial(self._instance, region, name)
            fleet = self.fleets.setdefault((region, name), Fleet(name, make, time.monotonic))
            seen = {arn: health[arn] for arn in record["TargetGroupARNs"] if arn in health}
            fleet.look(record, seen, wanted["alarms"])

    def _instance(
        self, region: str, group: str, instance_id: str, data: Json, zone: str
    ) -> Instance:
        wanted = self.last[region]
        script = base64.b64decode(data["UserData"]).decode(errors="replace")
        named = (
            self.servers[region, name].database.port
            for name, each in wanted["databases"]["instances"].items()
            if each["host"] in script
        )
        arns = wanted["groups"][group]["TargetGroupARNs"]
        ports = [x["Port"] for x in wanted["target_groups"] if x["TargetGroupArn"] in arns]
        return Instance(
            Launch(
                instance_id=instance_id,
                user_data=data["UserData"],
                region=region,
                zone=zone,
                role=data["Role"],
                group=group,
                instance_type=data.get("InstanceType", ""),
                image_id=data.get("ImageId", ""),
                target_port=ports[0] if ports else Launch.target_port,  # it may be deleted
                port=web.free_port(),
                database_port=next(named, None),
                endpoint=self.emulator.url,
                authority=self.authority.ca,
            ),
            self.folder / "instances",
            self.processes,
            self.metadata,
        )

    async def _end_unwanted(self, wanted: Json) -> None:
        groups = {(region, name) for region, each in wanted.items() for name in each["groups"]}
        for key in [key for key in self.fleets if key not in groups]:
            await self.fleets.pop(key).end()
        ids = {
            (region, name): database["resource_id"]
            for region, each in wanted.items()
            for name, database in each["databases"]["instances"].items()
        }
        for key, server in list(self.servers.items()):
            if ids.get(key) != server.database.spec.folder.name:  # deleted, or made anew
                await self.servers.pop(key).end()  # its files go when RDS says so

    def _balancers(self, wanted: Json) -> list[LoadBalancer]:
        found = []
        for each in wanted["balancers"]:
            arn, attributes = each["LoadBalancerArn"], each["Attributes"]
            base = each["BasePort"]
            listeners = tuple(
                self._listener(x, base, wanted["certificates"])
                for x in wanted["listeners"]
                if x["LoadBalancerArn"] == arn
            )
            found.append(
                LoadBalancer(
                    arn,
                    arn.partition("loadbalancer/")[2],
                    listeners,
                    idle_timeout=float(attributes.get("idle_timeout.timeout_seconds", 60)),
                    drop_invalid_header_fields=attributes.get(
                        "routing.http.drop_invalid_header_fields.enabled"
                    )
                    == "true",
                    desync_mitigation_mode=attributes.get(
                        "routing.http.desync_mitigation_mode", "defensive"
                    ),
                    log=attributes.get("access_logs.s3.enabled") == "true",
                )
            )
        return found

    def _listener(self, listener: Json, base: int, certificates: Json) -> Listener:
        certificate, port = None, listener["Port"]
        if arns := listener.get("Certificates"):
            names = certificates.get(arns[0]) or ["localhost"]
            files = self._certificate((*names, "localhost", "127.0.0.1"))
            certificate = Certificate(arns[0], files, files)
        return Listener(
            listener["ListenerArn"],
            port,
            listener["Protocol"],
            base + (port == 443),
            action_of(listener["DefaultActions"][0]),
            certificate,
            listener.get("SslPolicy", ""),
        )

    def _certificate(self, names: tuple[str, ...]) -> Path:
        """The file with a certificate and its key; one is asked for once an hour."""
        path, since = self.certificates.get(names, (Path(), 0.0))
        if time.monotonic() - since > CERTIFICATE_SECONDS or not since:
            path = self.authority.issue(*names)
            self.certificates[names] = path, time.monotonic()
        return path

    def _target_groups(self, wanted: Json) -> list[TargetGroup]:
        return [
            TargetGroup(
                each["TargetGroupArn"],
                each["TargetGroupName"],
                HealthCheck(
                    each["HealthCheckPath"],
                    each["HealthCheckIntervalSeconds"] / web.SCALE,
                    each["HealthCheckTimeoutSeconds"],
                    each["HealthyThresholdCount"],
                    each["UnhealthyThresholdCount"],
                    each["Matcher"]["HttpCode"],
                ),
                tuple(
                    Target(member.id, "127.0.0.1", member.runner.port)
                    for member in merged(self.fleets.values(), each["TargetGroupArn"])
                ),
                each["Attributes"].get("load_balancing.algorithm.type", "round_robin"),
                float(each["Attributes"].get("deregistration_delay.timeout_seconds", 300)),
            )
            for each in wanted["target_groups"]
        ]

    async def _deliver_logs(self, wanted: Json) -> None:
        """Puts the access logs of five minutes into their bucket."""
        if time.monotonic() - self.logged < LOG_SECONDS:
            return
        self.logged = time.monotonic()
        taken = self.balancer.take_access_log()
        for region, each in wanted.items():
            for balancer in each["balancers"]:
                if lines := taken.get(balancer["LoadBalancerArn"]):
                    await asyncio.to_thread(self._put_log, region, balancer, lines)

    def _put_log(self, region: str, balancer: Json, lines: list[str]) -> None:
        attributes, arn = balancer["Attributes"], balancer["LoadBalancerArn"]
        account, now = arn.split(":")[4], datetime.now(UTC)
        prefix = attributes.get("access_logs.s3.prefix", "")
        name = arn.partition("loadbalancer/")[2].replace("/", ".")
        key = (
            f"{prefix + '/' if prefix else ''}AWSLogs/{account}/elasticloadbalancing/{region}/"
            f"{now:%Y/%m/%d}/{account}_elasticloadbalancing_{region}_{name}_{now:%Y%m%dT%H%MZ}_"
            f"127.0.0.1_{secrets.token_hex(4)}.log.gz"
        )
        body = gzip.compress("".join(f"{each}\n" for each in lines).encode())
        try:
            self.emulator.client("s3", region).put_object(
                Bucket=attributes["access_logs.s3.bucket"], Key=key, Body=body
            )
        except Exception as error:  # noqa: BLE001 - a load balancer serves without its log
            log.error("%d lines of the access log are lost: %s", len(lines), error)


def complete(wanted: Json, known: Json) -> Json:
    """Gives each group its templates, which were told once; returns those in use, by digest."""
    used: Json = {}
    for each in wanted.values():
        for group in each["groups"].values():
            for version, key in group["Templates"].items():
                used[key] = each["templates"].get(key) or known[key]
                group["Templates"][version] = used[key]
    return used


def action_of(action: Json) -> Forward | Redirect | FixedResponse:
    """A listener's action."""
    if action["Type"] == "redirect":
        told = action["RedirectConfig"]
        status = int(told.get("StatusCode", "HTTP_301").removeprefix("HTTP_"))
        given = {key.lower(): each for key, each in told.items() if key != "StatusCode"}
        return Redirect(**given, status=status)
    if action["Type"] == "fixed-response":
        told = action["FixedResponseConfig"]
        return FixedResponse(
            int(told["StatusCode"]), told.get("ContentType", ""), told.get("MessageBody", "")
        )
    return Forward(action["TargetGroupArn"])


async def serve(given: Json) -> None:
    """Runs until standard input ends, or with the exception of what runs."""
    supervisor, loop = Supervisor(Emulator(**given)), asyncio.get_running_loop()
    running, lifeline = asyncio.create_task(supervisor.run()), asyncio.Event()

    def follow() -> None:
        os.read(sys.stdin.fileno(), 1)
        loop.call_soon_threadsafe(lifeline.set)

    # Not asyncio's executor: at an exception the process would wait for the end of the emulator.
    threading.Thread(target=follow, daemon=True).start()
    ended = asyncio.create_task(lifeline.wait())
    await asyncio.wait([running, ended], return_when=asyncio.FIRST_COMPLETED)
    running.cancel()
    try:
        await running
    except asyncio.CancelledError:
        log.info("the emulator has ended")


if __name__ == "__main__":
    os.umask(0o077)
    logging.basicConfig(stream=sys.stdout, format="%(asctime)s %(message)s", level=logging.INFO)
    alone = web.lock(Path())  # one of an emulator that was killed may still be stopping
    asyncio.run(serve(json.loads(sys.stdin.buffer.readline())))
