"""The subnet planner: every range apart from the others, wherever it starts and however it grows."""

from __future__ import annotations

import ipaddress
from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tap_stack import FLOWS, SECURITY_GROUPS, PlanError, SettingsError, TapStackArgs, plan_subnets

networks = st.builds(
    lambda bits, number: ipaddress.IPv4Network((number << 32 - bits & 0xFFFFFFFF, bits)),
    st.integers(16, 23),
    st.integers(0, 2**24 - 1),
)


def ranges(plan: dict[str, list[str]]) -> list[ipaddress.IPv4Network]:
    return [ipaddress.IPv4Network(each) for tier in plan.values() for each in tier]


@given(networks, st.integers(2, 4))
def test_subnets_lie_in_the_network_apart_from_each_other(
    network: ipaddress.IPv4Network, zones: int
) -> None:
    plan = plan_subnets(str(network), zones)
    assert {tier: len(each) for tier, each in plan.items()} == dict.fromkeys(
        ("public", "private", "isolated"), zones
    )
    found = ranges(plan)
    assert all(each.subnet_of(network) and each.num_addresses >= 32 for each in found)
    assert not any(one.overlaps(other) for one, other in combinations(found, 2))
    # A quarter of the network stays free.
    last = list(network.subnets(prefixlen_diff=2))[3]
    assert not any(each.overlaps(last) for each in found)


@given(networks)
def test_another_zone_renumbers_nothing(network: ipaddress.IPv4Network) -> None:
    two, three = plan_subnets(str(network), 2), plan_subnets(str(network), 3)
    for tier, each in two.items():
        assert three[tier][:2] == each


@given(networks, networks)
def test_overlaps_are_rejected_with_numbers(
    network: ipaddress.IPv4Network, other: ipaddress.IPv4Network
) -> None:
    if not network.overlaps(other):
        assert plan_subnets(str(network), 2, [str(other)])
        return
    shared = min(network.num_addresses, other.num_addresses)
    with pytest.raises(PlanError, match=f"{shared:,} addresses"):
        plan_subnets(str(network), 2, [str(other)])


@pytest.mark.parametrize(
    ("cidr", "why"),
    [
        ("10.0.0.0/24", "256"),
        ("10.0.0.0/8", "16,777,216"),
        ("10.0.0.1/16", "host bits"),
        ("10.0.0.0/33", "33"),
        ("everything", "everything"),
        ("fd00::/56", "fd00"),
    ],
)
def test_a_range_that_cannot_be_divided_is_rejected(cidr: str, why: str) -> None:
    with pytest.raises(PlanError, match=why):
        plan_subnets(cidr, 2)
    with pytest.raises(SettingsError, match="vpc_cidr"):
        TapStackArgs(vpc_cidr=cidr)


def test_the_flows_name_groups_and_ranges_only() -> None:
    known = {*SECURITY_GROUPS, "internet", "network", "operators"}
    for source, target, port in FLOWS:
        assert {source, target} <= known
        assert 0 < port < 65_536
    assert len(set(FLOWS)) == len(FLOWS)
