"""EC2: networks and launch templates. Instances are records in the emulator: none runs."""

from __future__ import annotations

from typing import Any

from taplocal.cloud import Cloud
from taplocal.resources.base import (
    Handler,
    Inputs,
    Outputs,
    Recorded,
    given,
    lost_tags,
    pascal,
    tag_list,
)


class Made(Handler):
    """A thing of EC2, made by one call and known by its id; only its tags change in place."""

    make = end = ""  # the operations
    kind = ""  # of tags, and what an ARN says
    answer = ""  # where the answer has it
    identity = ""  # what its id is called

    def arguments(self, inputs: Inputs) -> dict[str, Any]:
        """What the first operation takes."""
        raise NotImplementedError

    def computed(self, cloud: Cloud, made: dict[str, Any]) -> Outputs:
        """What AWS computes, beside the ARN."""
        return {}

    def create(self, cloud: Cloud, inputs: Inputs) -> tuple[str, Outputs]:
        tags = [{"ResourceType": self.kind, "Tags": tag_list(inputs.get("tags"))}]
        given_tags = {"TagSpecifications": tags} if "tags" in inputs else {}
        operation = getattr(cloud.client("ec2"), self.make)
        made = operation(**self.arguments(inputs), **given_tags)
        made = made[self.answer] if self.answer else made
        identity = str(made[self.identity])
        arn = cloud.arn("ec2", f"{self.kind}/{identity}")
        return identity, {"arn": arn, **self.computed(cloud, made)}

    def update(
        self, cloud: Cloud, identity: str, old: Inputs, new: Inputs, outputs: Outputs
    ) -> Outputs:
        ec2 = cloud.client("ec2")
        if lost := lost_tags(old, new):
            ec2.delete_tags(Resources=[identity], Tags=[{"Key": key} for key in lost])
        ec2.create_tags(Resources=[identity], Tags=tag_list(new.get("tags")))
        return outputs

    def replaces(self) -> set[str]:
        return {each.partition(".")[0] for each in self.uses.split()} - {"tags"}

    def delete(self, cloud: Cloud, identity: str, inputs: Inputs, outputs: Outputs) -> None:
        getattr(cloud.client("ec2"), self.end)(**{self.identity: identity})

    def find(self, cloud: Cloud, inputs: Inputs) -> str | None:
        name = inputs.get("tags", {}).get("Name")
        filters = {"key": "Name", "value": name, "resource-type": self.kind}
        found = cloud.client("ec2").describe_tags(
            Filters=[{"Name": key, "Values": [value]} for key, value in filters.items()]
        )["Tags"]
        return found[0]["ResourceId"] if found else None


class Vpc(Made):
    uses = "cidrBlock enableDnsSupport enableDnsHostnames tags"
    make, end, kind, answer, identity = "create_vpc", "delete_vpc", "vpc", "Vpc", "VpcId"

    def arguments(self, inputs: Inputs) -> dict[str, Any]:
        return {"CidrBlock": inputs["cidrBlock"]}


class Subnet(Made):
    uses = "vpcId cidrBlock availabilityZone mapPublicIpOnLaunch tags"
    make, end, kind = "create_subnet", "delete_subnet", "subnet"
    answer, identity = "Subnet", "SubnetId"

    def arguments(self, inputs: Inputs) -> dict[str, Any]:
        return pascal({key: inputs[key] for key in ("vpcId", "cidrBlock", "availabilityZone")})  # type: ignore[no-any-return]


class InternetGateway(Made):
    uses = "vpcId tags"
    make, end, kind = "create_internet_gateway", "delete_internet_gateway", "internet-gateway"
    answer, identity = "InternetGateway", "InternetGatewayId"

    def arguments(self, inputs: Inputs) -> dict[str, Any]:
        return {}

    def create(self, cloud: Cloud, inputs: Inputs) -> tuple[str, Outputs]:
        identity, outputs = super().create(cloud, inputs)
        cloud.client("ec2").attach_internet_gateway(
            InternetGatewayId=identity, VpcId=inputs["vpcId"]
        )
        return identity, outputs

    def delete(self, cloud: Cloud, identity: str, inputs: Inputs, outputs: Outputs) -> None:
        cloud.client("ec2").detach_internet_gateway(
            InternetGatewayId=identity, VpcId=inputs["vpcId"]
        )
        super().delete(cloud, identity, inputs, outputs)


class RouteTable(Made):
    uses = "vpcId tags"
    make, end, kind = "create_route_table", "delete_route_table", "route-table"
    answer, identity = "RouteTable", "RouteTableId"

    def arguments(self, inputs: Inputs) -> dict[str, Any]:
        return {"VpcId": inputs["vpcId"]}


class RouteTableAssociation(Handler):
    uses = "subnetId routeTableId"
    replace_on = "subnetId routeTableId"

    def create(self, cloud: Cloud, inputs: Inputs) -> tuple[str, Outputs]:
        made = cloud.client("ec2").associate_route_table(**pascal(inputs))
        return made["AssociationId"], {}

    def delete(self, cloud: Cloud, identity: str, inputs: Inputs, outputs: Outputs) -> None:
        cloud.client("ec2").disassociate_route_table(AssociationId=identity)


class Route(Handler):
    uses = "routeTableId destinationCidrBlock gatewayId natGatewayId networkInterfaceId"
    replace_on = uses

    def create(self, cloud: Cloud, inputs: Inputs) -> tuple[str, Outputs]:
        cloud.client("ec2").create_route(**pascal(inputs))
        return f"{inputs['routeTableId']}_{inputs['destinationCidrBlock']}", {}

    def delete(self, cloud: Cloud, identity: str, inputs: Inputs, outputs: Outputs) -> None:
        place = {key: inputs[key] for key in ("routeTableId", "destinationCidrBlock")}
        cloud.client("ec2").delete_route(**pascal(place))

    def find(self, cloud: Cloud, inputs: Inputs) -> str | None:
        return f"{inputs['routeTableId']}_{inputs['destinationCidrBlock']}"


class Eip(Made):
    uses = "domain networkInterface tags"
    make, end, kind = "allocate_address", "release_address", "elastic-ip"
    identity = "AllocationId"

    def arguments(self, inputs: Inputs) -> dict[str, Any]:
        return {"Domain": inputs["domain"]}

    def computed(self, cloud: Cloud, made: dict[str, Any]) -> Outputs:
        return {"allocationId": made["AllocationId"], "publicIp": made.get("PublicIp", "")}


class NatGateway(Made):
    uses = "allocationId subnetId tags"
    make, end, kind = "create_nat_gateway", "delete_nat_gateway", "natgateway"
    answer, identity = "NatGateway", "NatGatewayId"
    not_emulated = {"subnetId": "no packet is forwarded"}

    def arguments(self, inputs: Inputs) -> dict[str, Any]:
        return {"AllocationId": inputs["allocationId"], "SubnetId": inputs["subnetId"]}


class NetworkInterface(Made):
    uses = "description subnetId securityGroups sourceDestCheck tags"
    make, end = "create_network_interface", "delete_network_interface"
    kind, answer, identity = "network-interface", "NetworkInterface", "NetworkInterfaceId"
    not_emulated = {"sourceDestCheck": "no packet is forwarded"}

    def arguments(self, inputs: Inputs) -> dict[str, Any]:
        return {
            "SubnetId": inputs["subnetId"],
            "Description": inputs["description"],
            "Groups": inputs["securityGroups"],
        }


class SecurityGroup(Made):
    uses = "name description vpcId tags"
    make, end, kind, identity = (
        "create_security_group",
        "delete_security_group",
        "security-group",
        "GroupId",
    )

    def arguments(self, inputs: Inputs) -> dict[str, Any]:
        return {
            "GroupName": inputs["name"],
            "Description": inputs["description"],
            "VpcId": inputs["vpcId"],
        }


class DefaultSecurityGroup(Handler):
    uses = "vpcId ingress egress tags"
    replace_on = "vpcId"

    def create(self, cloud: Cloud, inputs: Inputs) -> tuple[str, Outputs]:
        ec2 = cloud.client("ec2")
        filters = {"vpc-id": inputs["vpcId"], "group-name": "default"}
        (group,) = ec2.describe_security_groups(
            Filters=[{"Name": key, "Values": [value]} for key, value in filters.items()]
        )["SecurityGroups"]
        identity = group["GroupId"]
        if group["IpPermissions"]:
            ec2.revoke_security_group_ingress(
                GroupId=identity, IpPermissions=group["IpPermissions"]
            )
        if egress := group.get("IpPermissionsEgress"):
            ec2.revoke_security_group_egress(GroupId=identity, IpPermissions=egress)
        ec2.create_tags(Resources=[identity], Tags=tag_list(inputs.get("tags")))
        return identity, {"arn": cloud.arn("ec2", f"security-group/{identity}")}

    def delete(self, cloud: Cloud, identity: str, inputs: Inputs, outputs: Outputs) -> None:
        """It goes with its VPC."""


class Rule(Handler):
    """One rule of a security group."""

    uses = """securityGroupId description ipProtocol fromPort toPort cidrIpv4
        referencedSecurityGroupId tags"""
    replace_on = "securityGroupId ipProtocol fromPort toPort cidrIpv4 referencedSecurityGroupId"
    not_emulated = {"ipProtocol": "no packet is filtered"}
    way = ""

    def create(self, cloud: Cloud, inputs: Inputs) -> tuple[str, Outputs]:
        ec2 = cloud.client("ec2")
        add = getattr(ec2, f"authorize_security_group_{self.way}")
        add(GroupId=inputs["securityGroupId"], IpPermissions=[self._permission(inputs)])
        peer = inputs.get("cidrIpv4") or inputs["referencedSecurityGroupId"]
        return f"{inputs['securityGroupId']}-{self.way}-{peer}-{inputs['fromPort']}", {}

    def update(
        self, cloud: Cloud, identity: str, old: Inputs, new: Inputs, outputs: Outputs
    ) -> Outputs:
        return outputs  # description and tags are nowhere looked at

    def delete(self, cloud: Cloud, identity: str, inputs: Inputs, outputs: Outputs) -> None:
        revoke = getattr(cloud.client("ec2"), f"revoke_security_group_{self.way}")
        revoke(GroupId=inputs["securityGroupId"], IpPermissions=[self._permission(inputs)])

    def find(self, cloud: Cloud, inputs: Inputs) -> str | None:
        return "rule"

    @staticmethod
    def _permission(inputs: Inputs) -> dict[str, Any]:
        ports = pascal({key: inputs[key] for key in ("ipProtocol", "fromPort", "toPort")})
        if cidr := inputs.get("cidrIpv4"):
            return {**ports, "IpRanges": [{"CidrIp": cidr}]}
        return {**ports, "UserIdGroupPairs": [{"GroupId": inputs["referencedSecurityGroupId"]}]}


class IngressRule(Rule):
    way = "ingress"


class EgressRule(Rule):
    way = "egress"


class VpcEndpoint(Made):
    uses = """vpcId serviceName vpcEndpointType routeTableIds subnetIds securityGroupIds
        privateDnsEnabled tags"""
    make, kind, answer, identity = (
        "create_vpc_endpoint",
        "vpc-endpoint",
        "VpcEndpoint",
        "VpcEndpointId",
    )
    not_emulated = {"serviceName": "no packet is forwarded"}

    def arguments(self, inputs: Inputs) -> dict[str, Any]:
        return pascal({key: value for key, value in inputs.items() if key != "tags"})  # type: ignore[no-any-return]

    def delete(self, cloud: Cloud, identity: str, inputs: Inputs, outputs: Outputs) -> None:
        cloud.client("ec2").delete_vpc_endpoints(VpcEndpointIds=[identity])


class FlowLog(Recorded):
    uses = """vpcId trafficType logDestination iamRoleArn maxAggregationInterval tags"""
    not_emulated = {"trafficType": "there is no traffic to log"}


class LaunchTemplate(Handler):
    uses = """name imageId instanceType iamInstanceProfile metadataOptions blockDeviceMappings
        networkInterfaces monitoring userData tagSpecifications tags"""
    replace_on = "name"
    not_emulated = {"userData": "no instance runs; the application is tested as a process"}

    def create(self, cloud: Cloud, inputs: Inputs) -> tuple[str, Outputs]:
        made = cloud.client("ec2").create_launch_template(
            LaunchTemplateName=inputs["name"], LaunchTemplateData=self._data(inputs)
        )["LaunchTemplate"]
        return made["LaunchTemplateId"], self._outputs(cloud, made["LaunchTemplateId"], 1)

    def update(
        self, cloud: Cloud, identity: str, old: Inputs, new: Inputs, outputs: Outputs
    ) -> Outputs:
        made = cloud.client("ec2").create_launch_template_version(
            LaunchTemplateId=identity, LaunchTemplateData=self._data(new)
        )["LaunchTemplateVersion"]
        return self._outputs(cloud, identity, made["VersionNumber"])

    def delete(self, cloud: Cloud, identity: str, inputs: Inputs, outputs: Outputs) -> None:
        cloud.client("ec2").delete_launch_template(LaunchTemplateId=identity)

    def find(self, cloud: Cloud, inputs: Inputs) -> str | None:
        templates = cloud.client("ec2").describe_launch_templates()["LaunchTemplates"]
        named = [x for x in templates if x["LaunchTemplateName"] == inputs["name"]]
        return str(named[0]["LaunchTemplateId"]) if named else None

    @staticmethod
    def _outputs(cloud: Cloud, identity: str, version: int) -> Outputs:
        arn = cloud.arn("ec2", f"launch-template/{identity}")
        return {"arn": arn, "latestVersion": version}

    @staticmethod
    def _data(inputs: Inputs) -> dict[str, Any]:
        return given(
            ImageId=inputs["imageId"],
            InstanceType=inputs["instanceType"],
            IamInstanceProfile=pascal(inputs["iamInstanceProfile"]),
            MetadataOptions=pascal(inputs["metadataOptions"]),
            Monitoring=pascal(inputs.get("monitoring")),
            UserData=inputs["userData"],
        )
