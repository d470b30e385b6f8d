"""A web instance as its launch template makes it: systemd's unit, TLS to a real PostgreSQL, failures."""

from __future__ import annotations

import itertools
import json
import re
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.lab.agent import check_agent
from tests.lab.aws import Aws
from tests.lab.image import DATABASE
from tests.lab.vpc import Machine, Vpc, inside, until
from tests.local.postgres import Postgres
from tests.stack.conftest import graph_of


@dataclass
class Web:
    """The web environment behind NAT gateways: two instances that work, and some that cannot."""

    vpc: Vpc
    aws: Aws
    postgres: Postgres
    balancer: Machine
    instances: list[Machine]
    failing: dict[str, Machine]

    def get(
        self, path: str, instance: Machine | None = None, timeout: float = 60
    ) -> tuple[int, str]:
        """What the load balancer gets, of the first instance or of another."""
        address = (instance or self.instances[0]).address
        return self.balancer.get(f"http://{address}:8080{path}", timeout)

    def ready(self) -> bool:
        return self.get("/readyz")[0] == 200


#: Why user data fails -> what the log then says.
FAILURES = {
    "network": "Failed to connect to truststore.pki.rds.amazonaws.com",
    "package": "No match for argument: python3.11",
    "secret": 'password authentication failed for user "master"',
    "disk": "No space left on device",
}


def failing_machines(vpc: Vpc) -> dict[str, Machine]:
    """A machine for each failure, started."""
    made = {
        why: vpc.machine(f"web-{why}", subnet, "web", "web-fleet")
        for why, subnet in {**dict.fromkeys(FAILURES, "private-1"), "network": "isolated-1"}.items()
    }
    made["package"].put("etc/dnf-lacks", "python3.11")
    made["disk"].small(64).put("etc/dnf-fills", "")
    for each in made.values():
        each.boot()
    return made


@pytest.fixture(scope="module")
def web(built: Path, disk: Path) -> Iterator[Web]:
    """Instances, booted, with their database."""
    with Vpc(graph_of("dev", nat="single"), built, disk) as vpc, Aws(vpc) as aws:
        server = vpc.machine("database", "isolated-0", "database", address=DATABASE).plain()
        (disk / "postgres").mkdir()
        postgres = inside(
            server.space,
            lambda: Postgres(disk / "postgres", "database.example", DATABASE, 5432),
        )
        try:
            aws.page = postgres.ca.read_text()  # RDS's authority, from where RDS has it
            aws.secrets["database"] = json.dumps({"username": "master", "password": postgres.password})  # fmt: skip
            aws.secrets["web-secret"] = json.dumps({"username": "master", "password": "another"})
            balancer = vpc.machine("balancer", "public-0", "balancer").plain()
            instances = [vpc.machine(f"web-{n}", f"private-{n}", "web", "web-fleet") for n in (0, 1)]  # fmt: skip
            for each in instances:
                each.boot()
            for each in instances:
                assert each.cloud_init() == [], each.journal()
            yield Web(vpc, aws, postgres, balancer, instances, failing_machines(vpc))
        finally:
            inside(server.space, postgres.close)


def test_user_data_makes_each_ready_behind_the_load_balancer(web: Web) -> None:
    for each in web.instances:
        assert web.get("/readyz", each) == (200, '{"status": "ready"}')
        assert web.get("/visits", each) == (200, '{"visits": 0}')
        assert web.aws.states[each.name] == "CONTINUE"
        assert web.aws.calls.count((each.name, "GetSecretValue")) == 1  # to migrate
        assert "ERROR" not in each.run("cat", "/var/log/web.log")


def test_its_unit_is_protected_and_restarts_it(web: Web, record_property: Any) -> None:
    instance = web.instances[0]
    report = instance.run("systemd-analyze", "security", "--no-pager", "web", check=False)
    (exposure,) = re.findall(r"exposure level for web.service: ([\d.]+)", report)
    record_property("systemd-analyze security", exposure)
    assert float(exposure) < 4  # 9.2 without any protection
    for _ in range(8):  # systemd gives up after five in ten seconds, unless told not to
        instance.run("systemctl", "kill", "-s", "KILL", "web", check=False)
        time.sleep(1.1)
    until(web.ready, instance)


def test_the_application_has_a_token_and_never_the_role(web: Web) -> None:
    instance = web.instances[0]
    (denied,) = re.findall(r"^IPAddressDeny=(.+)$", instance.run("systemctl", "cat", "web"), re.M)
    assert instance.run("stat", "-c", "%U %G %a", "/run/web-token/token") == "root web 640\n"
    ttl, url = "X-aws-ec2-metadata-token-ttl-seconds: 60", "http://169.254.169.254/latest/api/token"

    def session(*protected: str) -> str:
        """A session of the metadata service, which has the role's keys, if it can be had."""
        run = ("systemd-run", "--quiet", "--wait", "--pipe", *protected)
        return instance.run(
            *run, "curl", "-sS", "-m", "5", "-X", "PUT", "-H", ttl, url, check=False
        )

    assert session("-p", "User=web")
    assert not session("-p", "User=web", "-p", f"IPAddressDeny={denied}")


def test_a_reboot_brings_it_back(web: Web, record_property: Any) -> None:
    started = time.monotonic()
    web.instances[0].reboot()
    until(web.ready, web.instances[0])
    record_property("ready after", f"{time.monotonic() - started:.1f} s")


def test_log_memory_and_disk_are_shipped(web: Web) -> None:
    check_agent(web.instances[0], web.aws)
    assert "GET /readyz" in web.instances[0].run("cat", "/var/log/web.log")


def test_health_outlasts_75_seconds_without_a_database(web: Web, record_property: Any) -> None:
    until(lambda: "web-secret" in web.aws.states)  # which needs the database
    before = web.aws.calls.count(("web-0", "GetSecretValue"))
    statuses, ended = Counter[int](), threading.Event()

    def client() -> None:
        while not ended.is_set():
            status, _ = web.get("/visits")
            statuses[status] += 1
            time.sleep(0.2 if status == 200 else 1)

    clients = [threading.Thread(target=client) for _ in range(60)]
    for each in clients:
        each.start()
    try:
        web.postgres.freeze()  # first it is silent, then it refuses
        health = [web.get("/healthz", timeout=5)[0] for _ in seconds(40)]
        web.postgres.freeze(signal.SIGCONT)
        web.postgres.stop()
        health += [web.get("/healthz", timeout=5)[0] for _ in seconds(35)]
        inside(f"{web.vpc.id}-database", web.postgres.start)
        started = time.monotonic()
        until(web.ready, web.instances[0])
        record_property("ready after the server is up", f"{time.monotonic() - started:.1f} s")
    finally:
        ended.set()
        for each in clients:
            each.join()
    record_property("answers by status", dict(statuses))
    assert set(health) == {200}
    assert set(statuses) == {200, 503}
    assert web.aws.calls.count(("web-0", "GetSecretValue")) == before


def seconds(count: int) -> Iterator[int]:
    """Once a second, so long."""
    ends = time.monotonic() + count
    for number in itertools.takewhile(lambda _: time.monotonic() < ends, itertools.count()):
        yield number
        time.sleep(1)


@pytest.mark.parametrize("why", FAILURES)
def test_user_data_that_fails_never_counts_as_healthy(web: Web, why: str) -> None:
    machine = web.failing[why]
    until(lambda: FAILURES[why] in machine.run("journalctl", "-u", "cloud-final"), machine, 200)
    if why != "network":  # which cannot say so: the hook's default is the same
        until(lambda: web.aws.states.get(machine.name) == "ABANDON", machine)
    assert web.aws.states.get(machine.name) != "CONTINUE"
    assert web.get("/readyz", machine, timeout=5)[0] != 200
