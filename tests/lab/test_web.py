"""A web instance as its launch template makes it: systemd's unit, TLS to a real PostgreSQL, failures."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.lab.aws import Aws
from tests.lab.image import DATABASE
from tests.lab.vpc import Machine, Vpc, inside, until
from tests.local.postgres import Postgres, binaries
from tests.stack.conftest import graph_of

pytestmark = pytest.mark.skipif(
    binaries() is None, reason="there is no PostgreSQL: apt-get install postgresql"
)


@dataclass
class Web:
    """The web environment behind NAT gateways."""

    vpc: Vpc
    aws: Aws
    balancer: Machine
    instance: Machine
    complaints: list[str]

    def get(self, path: str) -> tuple[int, str]:
        """What the load balancer gets."""
        return self.balancer.get(f"http://{self.instance.address}:8080{path}")

    def ready(self) -> bool:
        return self.get("/readyz")[0] == 200


@pytest.fixture(scope="module")
def web(built: Path, disk: Path) -> Iterator[Web]:
    """One instance, booted, with its database."""
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
            balancer = vpc.machine("balancer", "public-0", "balancer").plain()
            instance = vpc.machine("web-0", "private-0", "web", "web-fleet").boot()
            yield Web(vpc, aws, balancer, instance, instance.cloud_init())
        finally:
            inside(server.space, postgres.close)


def test_user_data_makes_it_ready_behind_the_load_balancer(web: Web) -> None:
    assert web.complaints == []
    assert web.get("/readyz") == (200, '{"status": "ready"}')
    assert web.get("/visits") == (200, '{"visits": 0}')
    assert ("web-0", "GetSecretValue") in web.aws.calls  # once, to migrate
    assert "ERROR" not in web.instance.run("cat", "/var/log/web.log")


def test_its_unit_is_protected_and_restarts_it(web: Web) -> None:
    report = web.instance.run("systemd-analyze", "security", "--no-pager", "web", check=False)
    (exposure,) = re.findall(r"exposure level for web.service: ([\d.]+)", report)
    assert float(exposure) < 4  # 9.2 without any protection
    for _ in range(8):  # systemd gives up after five in ten seconds, unless told not to
        web.instance.run("systemctl", "kill", "-s", "KILL", "web", check=False)
        time.sleep(1.1)
    until(web.ready, web.instance)


def test_only_what_a_flow_allows_reaches_it(web: Web) -> None:
    bastion = web.vpc.machine("bastion-0", "public-0", "bastion", "bastion-fleet").plain()
    address = web.instance.address
    assert (web.balancer.connects(address, 8080), web.balancer.connects(address, 22)) == (True, False)  # fmt: skip
    assert (bastion.connects(address, 8080), bastion.connects(address, 22)) == (False, True)
    assert not web.balancer.connects(DATABASE, 5432)
    assert not bastion.connects(DATABASE, 5432)
    assert web.instance.connects(DATABASE, 5432)


def test_a_reboot_brings_it_back(web: Web) -> None:
    web.instance.reboot()
    until(web.ready, web.instance)
