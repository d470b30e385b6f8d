"""The network as it is registered: who reaches whom, the way out by each strategy, nothing open."""

from __future__ import annotations

from typing import Any

import pytest

import tap_stack
from taplocal.errors import TapLocalError
from tests.stack.conftest import ISOLATED, Graph, graph_of

WEB = '["web"]'
#: Every pair that may talk, and the port. Anything else is a hole.
ALLOWED = {
    ("0.0.0.0/0", "balancer", 443),
    ("0.0.0.0/0", "balancer", 80),
    ("balancer", "web", 8080),
    ("web", "database", 5432),
    ("bastion", "web", 22),
    ("web", "0.0.0.0/0", 443),
    ("bastion", "0.0.0.0/0", 443),
    ("nat", "0.0.0.0/0", 443),
    ("web", "endpoints", 443),
    ("bastion", "endpoints", 443),
}


def pairs(graph: Graph) -> dict[str, set[tuple[str, str, int]]]:
    """What the rules of each way allow, with security groups by their name."""
    names = {f"network-{group}-group-id": group for group in tap_stack.SECURITY_GROUPS}
    found: dict[str, set[tuple[str, str, int]]] = {}
    for way in ("Ingress", "Egress"):
        found[way] = set()
        for rule in graph.of(f"SecurityGroup{way}Rule"):
            each = rule.inputs
            own = names[each["securityGroupId"]]
            peer = each.get("cidrIpv4") or names[each["referencedSecurityGroupId"]]
            assert (each["ipProtocol"], each["fromPort"]) == ("tcp", each["toPort"])
            ends = (peer, own) if way == "Ingress" else (own, peer)
            found[way].add((*ends, each["fromPort"]))
    return found


def test_whoever_reaches_anybody_is_in_the_table(graph: Graph, env: str) -> None:
    cidr = tap_stack.TapStackArgs(environment_suffix=env).vpc_cidr
    unused = {"endpoints"} if env == "dev" else {"endpoints", "nat"}
    groups = set(tap_stack.SECURITY_GROUPS) - unused
    assert {each.name for each in graph.of("SecurityGroup")} == {
        f"network-{group}-group" for group in groups
    }
    allowed = {x for x in ALLOWED | {(cidr, "nat", 443)} if not unused & {x[0], x[1]}}
    found = pairs(graph)
    assert found["Ingress"] | found["Egress"] == allowed
    # Between two groups both sides say so, or the connection would not come about.
    inner = {each for each in allowed if {each[0], each[1]} <= groups}
    assert {x for x in found["Ingress"] if x[0] in groups} == inner
    assert {x for x in found["Egress"] if x[1] in groups} == inner
    closed = graph.one("DefaultSecurityGroup").inputs
    assert (closed.get("ingress", []), closed.get("egress", [])) == ([], [])


def test_operators_reach_the_bastion_from_their_ranges_only() -> None:
    graph = graph_of("dev", systems=WEB, bastion_cidrs='["203.0.113.0/24", "198.51.100.7/32"]')
    found = {each for each in pairs(graph)["Ingress"] if each[1] == "bastion"}
    assert found == {("203.0.113.0/24", "bastion", 22), ("198.51.100.7/32", "bastion", 22)}


@pytest.mark.parametrize("cidr", ["0.0.0.0/0", "0.0.0.0/1", "10.0.0.1/8", "::/0", "x"])
def test_the_whole_internet_is_rejected_at_the_bastion(cidr: str) -> None:
    with pytest.raises(TapLocalError, match="bastion_cidrs must be"):
        graph_of("dev", bastion_cidrs=f'["{cidr}"]')


def test_each_tier_has_its_way_out_and_the_isolated_one_has_none(graph: Graph, env: str) -> None:
    tier = tap_stack.TapStackArgs(environment_suffix=env)
    routes = {
        each.inputs["routeTableId"]: each.inputs
        for each in graph.of("aws:ec2/route:Route")
        if each.inputs["destinationCidrBlock"] == "0.0.0.0/0"
    }
    assert routes["network-public-routes-0-id"]["gatewayId"] == "network-internet-id"
    private = [routes[f"network-private-routes-{n}-id"] for n in range(tier.zones)]
    assert len(routes) == 1 + tier.zones
    assert not any("isolated" in table for table in routes)
    exits = {each.get("natGatewayId") or each["networkInterfaceId"] for each in private}
    assert len(exits) == (tier.zones if tier.nat == "per_az" else 1)
    for name in ("s3", "dynamodb"):
        endpoint = graph.one("VpcEndpoint", f"network-{name}").inputs
        assert endpoint["vpcEndpointType"] == "Gateway"
        assert len(endpoint["routeTableIds"]) == 2 + tier.zones
    for subnet in graph.of("Subnet"):
        assert subnet.inputs["mapPublicIpOnLaunch"] is False


@pytest.mark.parametrize(
    ("nat", "gateways", "instances"),
    [("per_az", 2, 0), ("single", 1, 0), ("instance", 0, 1), ("instance_ha", 0, 2), ("none", 0, 0)],
)
def test_nat_is_what_the_setting_says(nat: str, gateways: int, instances: int) -> None:
    graph = graph_of("dev", systems=WEB, nat=nat, **(ISOLATED if nat == "none" else {}))
    fleets = [each for each in graph.of("aws:autoscaling/group:Group") if "-nat" in each.name]
    assert (len(graph.of("NatGateway")), len(fleets)) == (gateways, instances)
    assert len(graph.of("Eip")) == gateways + instances
    for interface in graph.of("NetworkInterface"):
        assert interface.inputs["sourceDestCheck"] is False
    out = [each for each in graph.of("aws:ec2/route:Route") if "-out-" in each.name]
    assert len(out) == (0 if nat == "none" else 2)


def test_interface_endpoints_are_private_and_behind_their_group() -> None:
    graph = graph_of("dev", systems=WEB, interface_endpoints='["ssm", "ecr.api"]')
    for name, service in (("ssm", "ssm"), ("ecr-api", "ecr.api")):
        endpoint: dict[str, Any] = graph.one("VpcEndpoint", f"network-{name}-interface").inputs
        assert endpoint["serviceName"].endswith(service)
        assert endpoint["privateDnsEnabled"] is True
        assert endpoint["securityGroupIds"] == ["network-endpoints-group-id"]
    assert {("web", "endpoints", 443), ("bastion", "endpoints", 443)} <= pairs(graph)["Egress"]


def test_the_flow_log_is_kept_under_the_key(graph: Graph, env: str) -> None:
    flow_log = graph.one("FlowLog").inputs
    assert flow_log["trafficType"] == ("ALL" if env == "prod" else "REJECT")
    assert flow_log["logDestination"].endswith("network-flow-logs")
