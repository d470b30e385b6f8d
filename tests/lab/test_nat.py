"""NAT instances, one a zone, as their launch templates make them: how long a private client is out."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.lab.aws import Aws
from tests.lab.image import INTERNET
from tests.lab.vpc import Machine, Vpc, sh, until
from tests.stack.conftest import graph_of

ADDRESSES = ("203.0.113.1", "203.0.113.2")  # of the Elastic IPs, by zone
Record = Callable[[str, object], None]


@dataclass
class Client:
    """A private machine that asks the internet, again and again, whom it takes it for."""

    machine: Machine
    answered: list[float] = field(default_factory=list)  # when

    def ask(self) -> str:
        """The address that the internet sees, empty if nothing answers within a second."""
        return self.machine.get(f"http://{INTERNET}:443/", 1)[1]

    @contextmanager
    def asking(self, record: Record) -> Iterator[None]:
        """Records the longest time between two answers; it is asked until there is one again."""
        self.answered, stopped = [], threading.Event()

        def run() -> None:
            while not stopped.wait(0.25):
                if self.ask():
                    self.answered.append(time.monotonic())

        thread = threading.Thread(target=run)
        thread.start()
        try:
            yield
            ended = time.monotonic()
            until(lambda: self.answered and self.answered[-1] > ended)
        finally:
            stopped.set()
            thread.join()
        longest = max(b - a for a, b in itertools.pairwise(self.answered))
        record("longest time between two answers", f"{longest:.1f} s")


@dataclass
class Nat:
    """The network, a client in each zone, and the NAT instances that were launched."""

    vpc: Vpc
    aws: Aws
    clients: list[Client]
    instances: list[Machine] = field(default_factory=list)

    def launch(self, zone: int) -> Machine:
        """What a group does: another instance."""
        name = f"nat-{len(self.instances)}"
        made = self.vpc.machine(name, f"public-{zone}", "nat", f"network-nat-{zone}")
        self.instances.append(made)
        return made.boot()


@pytest.fixture(scope="module")
def nat(built: Path, disk: Path) -> Iterator[Nat]:
    """Clients without a way out, and nothing else yet."""
    with Vpc(graph_of("dev", nat="instance_ha"), built, disk) as vpc, Aws(vpc) as aws:
        clients = [
            Client(vpc.machine(f"client-{n}", f"private-{n}", "web").plain()) for n in (0, 1)
        ]
        yield Nat(vpc, aws, clients)


def test_each_zone_gets_a_way_out_and_then_its_instance_comes_into_service(
    nat: Nat, record_property: Record
) -> None:
    assert [each.ask() for each in nat.clients] == ["", ""]
    started = time.monotonic()
    instances = [nat.launch(zone) for zone in (0, 1)]
    until(lambda: all(each.ask() for each in nat.clients), instances[0])
    record_property("both zones out after", f"{time.monotonic() - started:.1f} s")
    assert [each.cloud_init() for each in instances] == [[], []]
    assert [each.ask() for each in nat.clients] == [*ADDRESSES]  # which stay, whatever comes
    assert nat.aws.states == {"nat-0": "CONTINUE", "nat-1": "CONTINUE"}
    assert "nft" not in instances[0].run("ls", "/usr/sbin")  # nothing is installed


def test_networkd_may_reload_and_restart(nat: Nat, record_property: Record) -> None:
    with nat.clients[0].asking(record_property):
        for command in (["networkctl", "reload"], ["systemctl", "restart", "systemd-networkd"]):
            time.sleep(2)
            nat.instances[0].run(*command)
            time.sleep(2)


def test_after_a_reboot_it_is_the_way_out_again(nat: Nat, record_property: Record) -> None:
    instance, ran = nat.instances[0], "/var/lib/cloud/instance/sem/config_scripts_user"
    before, first = instance.pid, instance.run("stat", "-c", "%Y", ran)
    with nat.clients[0].asking(record_property):
        time.sleep(1)
        instance.reboot()
        until(lambda: nat.clients[0].ask() == ADDRESSES[0], instance)
    assert instance.pid != before
    assert instance.cloud_init() == []
    assert instance.run("stat", "-c", "%Y", ran) == first  # no part of its user data ran again
    until(lambda: instance.run("systemctl", "is-active", "nat"), instance)  # and tests itself again


def test_a_replacement_takes_over_beside_the_old_one(nat: Nat, record_property: Record) -> None:
    nat.aws.late = 2  # as it may be for an instance that is ready within seconds
    with nat.clients[0].asking(record_property):
        assert nat.launch(0).cloud_init() == []
        nat.instances[0].stop()
        time.sleep(2)
    assert nat.clients[0].ask() == ADDRESSES[0]
    assert nat.aws.states["nat-2"] == "CONTINUE"
    assert nat.aws.calls.count(("nat-2", "CompleteLifecycleAction")) == 3


def test_one_that_may_not_do_its_work_never_comes_into_service(nat: Nat) -> None:
    nat.aws.denied = {"ec2:ReplaceRoute", "ec2:CreateRoute"}
    instance = nat.launch(0)
    until(lambda: nat.aws.calls.count(("nat-3", "CreateRoute")) > 1, instance)  # again and again
    assert "nat-3" not in nat.aws.states  # and the hook's default is to abandon it
    assert nat.clients[0].ask() == ADDRESSES[0]


def test_one_that_works_stays(nat: Nat) -> None:
    instance = nat.instances[1]
    since = instance.run("systemctl", "show", "nat", "-P", "ActiveEnterTimestampMonotonic")
    # Three looks, which may take 5 s each, decide.
    until(lambda: time.monotonic() > int(since) / 1e6 + 3 * 35 + 5, instance, 200)
    assert nat.aws.states["nat-1"] == "CONTINUE"
    assert instance.run("systemctl", "is-active", "nat") == "active\n"


def test_one_that_forwards_or_translates_nothing_any_more_says_so(nat: Nat) -> None:
    _, forwards, translates, _ = nat.instances
    forwards.run("sysctl", "-w", "net.ipv4.ip_forward=0")
    assert nat.clients[0].ask() == ADDRESSES[0]  # the other zone has its own
    sh("ip", "netns", "exec", translates.space, "nft", "flush", "ruleset")  # networkd's alone
    until(lambda: not any(each.ask() for each in nat.clients), translates)
    broken = (forwards, translates)
    until(lambda: {nat.aws.states[x.name] for x in broken} == {"Unhealthy"}, forwards, 200)
