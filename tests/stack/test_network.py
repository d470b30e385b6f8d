"""The network as it is registered: who reaches whom, the way out by each strategy, nothing open."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

import tap_stack
from taplocal.errors import TapLocalError
from taplocal.program import run
from tests.stack.conftest import (
    ACCOUNT,
    ISOLATED,
    REGION,
    Graph,
    Recorder,
    graph_of,
    statements,
    with_defaults,
)

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
    ("nat", "endpoints", 443),
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


def test_zones_may_be_named() -> None:
    graph = graph_of("dev", systems=WEB, zone_names=f"{REGION}c,{REGION}a")
    zones = [each.inputs["availabilityZone"] for each in graph.of("Subnet")]
    assert zones == [f"{REGION}c", f"{REGION}a"] * 3


def test_an_impaired_zone_moves_no_subnet_to_another() -> None:
    """Of the zones that are available the second would be the first while that is not."""
    asked = []

    class Asked(Recorder):
        def invoke(self, token: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
            asked.append((token, arguments))
            return super().invoke(token, arguments)

    run(with_defaults("dev", systems=WEB, **{"aws:region": REGION}), Asked())
    (zones,) = [arguments for token, arguments in asked if "getAvailabilityZones" in token]
    assert zones["filters"] and not zones.get("state")


def test_more_zones_than_the_region_has_are_refused() -> None:
    args = tap_stack.TapStackArgs(zones=3)
    with pytest.raises(tap_stack.SettingsError, match="zones must be among a, b, not 3"):
        tap_stack.chosen_zones(args, ["a", "b"])


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
    del routes["network-public-routes-0-id"]
    # A NAT instance makes its route itself: whatever stood here would take it back.
    tables = {f"network-private-gateway-routes-{n}-id" for n in range(tier.zones)}
    assert routes.keys() == (set() if tier.nat == "instance" else tables)
    gateways = {each["natGatewayId"] for each in routes.values()}
    assert len(gateways) == {"per_az": tier.zones, "single": 1, "instance": 0}[tier.nat]
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
    out = [each for each in graph.of("aws:ec2/route:Route") if "-out-" in each.name]
    assert len(out) == (2 if gateways else 0)


@pytest.mark.parametrize("nat", ["single", "none"])
def test_another_kind_of_nat_has_addresses_and_route_tables_of_its_own(nat: str) -> None:
    """Pulumi makes the new ones before it deletes the old: an address has one user, a table one
    way out. The subnets move last."""
    before = graph_of("dev", systems=WEB, nat="instance")
    after = graph_of("dev", systems=WEB, nat=nat, **(ISOLATED if nat == "none" else {}))

    def names(graph: Graph, kind: str, part: str = "") -> set[str]:
        return {each.name for each in graph.of(kind) if part in each.name}

    assert names(before, "Eip").isdisjoint(names(after, "Eip"))
    assert names(before, "RouteTable", "private").isdisjoint(names(after, "RouteTable", "private"))
    assert names(before, "RouteTableAssociation") == names(after, "RouteTableAssociation")
    order = [each.name for each in after.custom()]
    moved = [order.index(each) for each in names(after, "RouteTableAssociation", "private")]
    ways = [order.index(each) for each in names(after, "aws:ec2/route:Route", "-out-")]
    assert max(ways, default=0) < min(moved)


@pytest.mark.parametrize(("nat", "tables"), [("instance", [[0, 1]]), ("instance_ha", [[0], [1]])])
def test_a_nat_instance_may_change_its_own_routes_address_and_check_and_no_others(
    nat: str, tables: list[list[int]]
) -> None:
    graph = graph_of("dev", systems=WEB, nat=nat)
    own = f"arn:aws:ec2:{REGION}:{ACCOUNT}"
    for number, of in enumerate(tables):
        name = f"tap-stack-nat{f'-{number}' if number else ''}-dev"
        role = graph.one("RolePolicy", f"network-nat-{number}-role-policy").inputs
        tag = {"aws:ResourceTag/Name": name}
        made = f"arn:aws:test:{REGION}:{ACCOUNT}"
        assert [each for each in statements(role["policy"]) if each["Action"][0].startswith("ec2:")] == [
            {
                "Effect": "Allow",
                "Action": ["ec2:CreateRoute", "ec2:ReplaceRoute"],
                "Resource": [f"{made}:RouteTable/network-private-instance-routes-{n}" for n in of],
            },
            {
                "Effect": "Allow",
                "Action": ["ec2:AssociateAddress"],
                "Resource": f"{made}:Eip/network-nat-instance-address-{number}",
            },
            {
                "Effect": "Allow",
                "Action": ["ec2:AssociateAddress"],
                "Resource": [f"{own}:instance/*", f"{own}:network-interface/*"],
                "Condition": {"StringEquals": tag},
            },
            {
                "Effect": "Allow",
                "Action": ["ec2:ModifyInstanceAttribute"],
                "Resource": f"{own}:instance/*",
                "Condition": {"StringEquals": {**tag, "ec2:Attribute/SourceDestCheck": "false"}},
            },
        ]  # fmt: skip


def test_interface_endpoints_are_private_and_behind_their_group() -> None:
    graph = graph_of("dev", systems=WEB, interface_endpoints='["ssm", "ecr.api"]')
    for name, service in (("ssm", "ssm"), ("ecr-api", "ecr.api")):
        endpoint: dict[str, Any] = graph.one("VpcEndpoint", f"network-{name}-interface").inputs
        assert endpoint["serviceName"].endswith(service)
        assert endpoint["privateDnsEnabled"] is True
        assert endpoint["securityGroupIds"] == ["network-endpoints-group-id"]
    users = {(each, "endpoints", 443) for each in ("web", "bastion", "nat")}
    assert users <= pairs(graph)["Egress"] & pairs(graph)["Ingress"]  # nat calls ec2, autoscaling


def test_the_flow_log_is_kept_under_the_key(graph: Graph, env: str) -> None:
    flow_log = graph.one("FlowLog").inputs
    assert flow_log["trafficType"] == ("ALL" if env == "prod" else "REJECT")
    assert flow_log["logDestination"].endswith("network-flow-logs")


def test_what_is_private_waits_until_nat_instances_are_in_service() -> None:
    graph = graph_of("dev")
    rollout = graph.one("FleetRollout", "network-nat-0-rollout").urn  # which waits for them
    waiting = [graph.one("aws:autoscaling/group:Group", "web-fleet-group")]
    waiting += [graph.one("RouteTableAssociation", f"network-private-{n}-routes") for n in (0, 1)]
    assert all(rollout in each.depends_on for each in waiting)
