"""A NAT instance as its launch template makes it: how long a private client is without internet."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.lab.aws import Aws
from tests.lab.image import INTERNET
from tests.lab.vpc import Machine, Vpc, until
from tests.stack.conftest import graph_of

ADDRESS = "203.0.113.1"  # of the NAT instance's Elastic IP


@dataclass
class Client:
    """A private machine that asks the internet, again and again, whom it takes it for."""

    machine: Machine
    answers: list[tuple[float, str]] = field(default_factory=list)
    stopped: threading.Event = field(default_factory=threading.Event)

    def ask(self) -> str:
        """The address that the internet sees, empty if nothing answers within a second."""
        return self.machine.get(f"http://{INTERNET}:443/", 1)[1]

    def run(self) -> None:
        while not self.stopped.is_set():
            answer = self.ask()
            self.answers.append((time.monotonic(), answer))
            time.sleep(0.25)

    @contextmanager
    def asking(self) -> Iterator[list[float]]:
        """The longest time between two answers; it is asked until there is one again."""
        self.answers, longest = [], [0.0]
        self.stopped.clear()
        thread = threading.Thread(target=self.run)
        thread.start()
        try:
            yield longest
            until(lambda: self.answers and self.answers[-1][1])
        finally:
            self.stopped.set()
            thread.join()
        came = [at for at, answer in self.answers if answer]
        longest[0] = max((b - a for a, b in itertools.pairwise(came)), default=0.0)


@dataclass
class Nat:
    """The network of dev, its client, the NAT instances of which the last is the newest."""

    vpc: Vpc
    aws: Aws
    client: Client
    instances: list[Machine]

    def launch(self) -> Machine:
        """What the group does: another instance."""
        name = f"nat-{len(self.instances)}"
        self.instances.append(self.vpc.machine(name, "public-0", "nat", "network-nat-0").boot())
        return self.instances[-1]


@pytest.fixture(scope="module")
def nat(built: Path, disk: Path) -> Iterator[Nat]:
    """A client without a way out, and nothing else yet."""
    with Vpc(graph_of("dev", nat="instance"), built, disk) as vpc, Aws(vpc) as aws:
        client = Client(vpc.machine("client", "private-1", "web").plain())
        yield Nat(vpc, aws, client, [])


def test_it_gives_private_subnets_a_way_out_and_then_comes_into_service(nat: Nat) -> None:
    assert nat.client.ask() == ""
    instance = nat.launch()
    assert instance.cloud_init() == []
    assert nat.client.ask() == ADDRESS  # which stays, whatever comes
    assert nat.aws.states == {"nat-0": "CONTINUE"}
    assert "nft" not in instance.run("ls", "/usr/sbin")  # nothing is installed


def test_networkd_may_reload_and_restart(nat: Nat) -> None:
    with nat.client.asking():
        for command in (["networkctl", "reload"], ["systemctl", "restart", "systemd-networkd"]):
            time.sleep(2)
            nat.instances[-1].run(*command)
            time.sleep(2)


def test_after_a_reboot_it_is_the_way_out_again(nat: Nat) -> None:
    instance, ran = nat.instances[-1], "/var/lib/cloud/instance/sem/config_scripts_user"
    before, first = instance.pid, instance.run("stat", "-c", "%Y", ran)
    with nat.client.asking():
        instance.reboot()
        until(lambda: nat.client.ask() == ADDRESS, instance)
    assert instance.pid != before
    assert instance.cloud_init() == []
    assert instance.run("stat", "-c", "%Y", ran) == first  # no part of its user data ran again


def test_a_replacement_takes_over_beside_the_old_one(nat: Nat) -> None:
    with nat.client.asking():
        assert nat.launch().cloud_init() == []
        nat.instances[0].stop()
        time.sleep(2)
    assert nat.client.ask() == ADDRESS
    assert nat.aws.states["nat-1"] == "CONTINUE"


def test_one_that_forwards_nothing_any_more_says_so(nat: Nat) -> None:
    nat.instances[-1].run("sysctl", "-w", "net.ipv4.ip_forward=0")
    until(lambda: nat.aws.states["nat-1"] == "Unhealthy", nat.instances[-1], 200)


def test_one_that_may_not_do_its_work_never_comes_into_service(nat: Nat) -> None:
    nat.aws.denied = {"ec2:ReplaceRoute", "ec2:CreateRoute"}
    instance = nat.launch()
    until(lambda: ("nat-2", "CreateRoute") in nat.aws.calls, instance)
    time.sleep(5)
    assert "nat-2" not in nat.aws.states  # and the hook's default is to abandon it
