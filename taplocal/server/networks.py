"""What EC2 refuses of a network, and MiniStack does not: what Pulumi makes before it deletes.

A CIDR block that another subnet of the VPC has, a second route to a destination, a NAT gateway with
an address in use. Runs in the emulator's process, in the scope of a request.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Mapping
from typing import Any

from ministack.services import ec2

Json = dict[str, Any]


def subnet(parameters: Json) -> str:
    """Of CreateSubnet."""
    block = ipaddress.IPv4Network(ec2._p(parameters, "CidrBlock"))
    vpc = ec2._p(parameters, "VpcId")
    others = (each["CidrBlock"] for each in ec2._subnets.values() if each["VpcId"] == vpc)
    if any(block.overlaps(ipaddress.IPv4Network(each)) for each in others):
        return f"InvalidSubnet.Conflict: The CIDR '{block}' conflicts with another subnet"
    return ""


def route(parameters: Json) -> str:
    """Of CreateRoute."""
    table = ec2._route_tables.get(ec2._p(parameters, "RouteTableId"), {})
    target = ec2._p(parameters, "DestinationCidrBlock")
    if any(each.get("DestinationCidrBlock") == target for each in table.get("Routes", ())):
        return f"RouteAlreadyExists: The route identified by {target} already exists."
    return ""


def nat_gateway(parameters: Json) -> str:
    """Of CreateNatGateway."""
    address = ec2._p(parameters, "AllocationId")
    used = (x["AllocationId"] for x in ec2._nat_gateways.values() if x["State"] != "deleted")
    if address in used:
        return (
            f"Resource.AlreadyAssociated: Elastic IP address [{address}] is already associated "
            "with another resource"
        )
    return ""


CHECKS: Mapping[str, Callable[[Json], str]] = {
    "CreateSubnet": subnet,
    "CreateRoute": route,
    "CreateNatGateway": nat_gateway,
}


def checked(operation: str, check: Callable[[Json], str]) -> Callable[[Json], Any]:
    """The operation, unless the check has a code and a message against it."""
    made = ec2._ACTION_MAP[operation]

    def called(parameters: Json) -> Any:
        if problem := check(parameters):
            code, _, message = problem.partition(": ")
            return ec2._error(code, message, 400)
        return made(parameters)

    return called


def install() -> None:
    """Has MiniStack refuse them."""
    ec2._ACTION_MAP |= {key: checked(key, check) for key, check in CHECKS.items()}
