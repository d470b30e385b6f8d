"""Who reaches whom in the registered network, packet by packet, and each strategy's way out."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tap_stack import FLOWS, SECURITY_GROUPS
from tests.lab.aws import Aws
from tests.lab.image import INTERNET, OPERATOR, OPERATORS
from tests.lab.vpc import GATEWAYS, Machine, Vpc, reached
from tests.stack.conftest import ISOLATED, graph_of

#: Where a machine of each group is; the load balancer's has an address, as the real one has.
SUBNETS = {
    "balancer": "public-1",
    "web": "private-0",
    "database": "isolated-0",
    "bastion": "public-0",
    "nat": "public-0",
    "endpoints": "private-1",
}
FLEETS = {"bastion": "bastion-fleet", "nat": "network-nat-0"}
PORTS = sorted({22, 80, 443, 5432, 8080, *(port for *_, port in FLOWS), random.randint(1024, 4999)})  # noqa: S311


def allowed(source: str, target: str, port: int) -> bool:
    """Whether FLOWS lets a connection through: out of the source's group, into the target's."""

    def ends(name: str) -> set[str]:
        """What a machine is to a flow: everybody is of the internet, too."""
        return {name, "internet"} | ({"network"} if name in SECURITY_GROUPS else set())

    leaves = source not in SECURITY_GROUPS or any(
        a == source and b in ends(target) and c == port for a, b, c in FLOWS
    )
    enters = target not in SECURITY_GROUPS or any(
        a in ends(source) and b == target and c == port for a, b, c in FLOWS
    )
    return leaves and enters


@pytest.fixture(scope="module")
def groups(built: Path, disk: Path) -> Iterator[dict[str, Machine]]:
    """A machine of each security group, a real NAT instance among them, and the internet."""
    settings = {"interface_endpoints": '["ssm"]', "bastion_cidrs": f'["{OPERATORS}"]'}
    graph = graph_of("dev", nat="instance", **settings)
    with Vpc(graph, built, disk) as vpc, Aws(vpc):
        made = {
            group: vpc.machine(group, subnet, group, FLEETS.get(group, ""))
            for group, subnet in SUBNETS.items()
        }
        made["balancer"].public = "203.0.113.100"
        vpc.apply()
        for group, each in made.items():
            each.boot() if group == "nat" else each.plain()
        assert made["nat"].cloud_init() == []
        yield made


def test_one_nat_instance_serves_all_zones(groups: dict[str, Machine]) -> None:
    clients = [groups["web"], groups["web"].vpc.machine("second", "private-1", "web").plain()]
    seen = [each.get(f"http://{INTERNET}:443/") for each in clients]
    assert seen == [(200, "203.0.113.1")] * 2


def test_each_flow_passes_and_no_other(groups: dict[str, Machine]) -> None:
    vpc = groups["web"].vpc
    assert groups.keys() == set(SECURITY_GROUPS)
    spaces = {name: (each.space, "0.0.0.0") for name, each in groups.items()}  # noqa: S104 - any
    spaces |= {"internet": (vpc.internet, INTERNET), "operators": (vpc.internet, OPERATOR)}

    def addresses(source: str) -> dict[str, str]:
        """Target -> where a source finds it; the internet only what has a public address."""
        inner = source in SECURITY_GROUPS
        found = {name: x.address if inner else x.public for name, x in groups.items()}
        return {**found, **({"internet": INTERNET} if inner else {})}

    def passing(source: str) -> set[tuple[str, str, int]]:
        names = {address: name for name, address in addresses(source).items() if address}
        space, own = spaces[source]
        found = reached(space, itertools.product(names, PORTS), own)
        return {(source, names[address], port) for address, port in found}

    with ThreadPoolExecutor(len(spaces)) as pool:
        passed = set().union(*pool.map(passing, spaces))
    pairs = [
        (source, target)
        for source in spaces
        for target, address in addresses(source).items()
        if address and target != source
    ]
    assert len(pairs) == 6 * 5 + 6 + 2 * 3
    inside = {each for each in passed if each[0] != each[1]}  # to itself needs no rule
    # Isolated subnets have no way out, whatever a rule says.
    expected = {(*pair, port) for pair in pairs for port in PORTS if allowed(*pair, port)} - {
        ("database", "internet", port) for port in PORTS
    }
    assert inside == expected
    # Each flow of the table was seen, from the network's machines to the NAT instance too.
    named = {(a, b, c) for a, b, c in FLOWS if a != "network"}
    assert named <= passed
    assert ("web", "nat", 443) in passed


@pytest.mark.parametrize("strategy", ["per_az", "single", "none"])
def test_private_subnets_get_out_as_the_strategy_says(
    built: Path, disk: Path, strategy: str
) -> None:
    folder = disk / strategy
    folder.mkdir()
    settings = ISOLATED if strategy == "none" else {}
    with Vpc(graph_of("dev", nat=strategy, **settings), built, folder) as vpc, Aws(vpc):
        clients = [vpc.machine(f"c{n}", f"private-{n}", "web").plain() for n in (0, 1)]
        seen = [each.get(f"http://{INTERNET}:443/", 2)[1] for each in clients]
        gateways = list(GATEWAYS.values())
        assert seen == {"per_az": gateways[:2], "single": gateways[:1] * 2, "none": ["", ""]}[strategy]  # fmt: skip
        if strategy == "none":
            endpoint = vpc.machine("endpoint", "private-1", "endpoints").plain()
            vpc.apply()
            assert clients[0].connects(endpoint.address, 443)
            assert not clients[0].connects(endpoint.address, 80)
