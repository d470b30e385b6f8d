"""EC2: networks and launch templates. Instances are records in the emulator: none runs."""

from __future__ import annotations

from typing import Any

from taplocal.cloud import Cloud
from taplocal.resources.base import (
    OWNER,
    Handler,
    Inputs,
    Outputs,
    Recorded,
    given,
    pascal,
    removed_tags,
    tag_list,
)


class Ec2Resource(Handler):
    """A resource of EC2 that one call creates; only its tags are updated in place."""

    noun = ""  # as in create_<noun>
    create_verb, delete_verb = "create", "delete"
    resource_type = ""  # in tag specifications and ARNs; by default the noun with hyphens
    id_key = ""  # in requests and responses; by default <Noun>Id

    def __init__(self) -> None:
        self.response_key = "".join(map(str.capitalize, self.noun.split("_")))
        self.resource_type = self.resource_type or self.noun.replace("_", "-")
        self.id_key = self.id_key or f"{self.response_key}Id"
        self.distinct = self.distinct or self.uses

    def arguments(self, inputs: Inputs) -> dict[str, Any]:
        """The arguments of the create operation."""
        raise NotImplementedError

    def computed(self, cloud: Cloud, made: dict[str, Any]) -> Outputs:
        """The outputs that AWS computes, except the ARN."""
        return {}

    def create(self, cloud: Cloud, inputs: Inputs) -> tuple[str, Outputs]:
        tags = [{"ResourceType": self.resource_type, "Tags": tag_list(inputs.get("tags"))}]
        given_tags = {"TagSpecifications": tags} if "tags" in inputs else {}
        operation = getattr(cloud.client("ec2"), f"{self.create_verb}_{self.noun}")
        response = operation(**self.arguments(inputs), **given_tags)
        made = response.get(self.response_key, response)
        resource_id = str(made[self.id_key])
        arn = cloud.arn("ec2", f"{self.resource_type}/{resource_id}")
        return resource_id, {"arn": arn, **self.computed(cloud, made)}

    def update(
        self, cloud: Cloud, resource_id: str, old: Inputs, new: Inputs, outputs: Outputs
    ) -> Outputs:
        ec2 = cloud.client("ec2")
        if removed := removed_tags(old, new):
            ec2.delete_tags(Resources=[resource_id], Tags=[{"Key": key} for key in removed])
        ec2.create_tags(Resources=[resource_id], Tags=tag_list(new.get("tags")))
        return outputs

    def replaces(self) -> set[str]:
        return {each.partition(".")[0] for each in self.uses.split()} - {"tags"}

    def delete(self, cloud: Cloud, resource_id: str, inputs: Inputs, outputs: Outputs) -> None:
        operation = getattr(cloud.client("ec2"), f"{self.delete_verb}_{self.noun}")
        operation(**{self.id_key: resource_id})

    def find(self, cloud: Cloud, inputs: Inputs) -> str | None:
        return _id_by_owner(cloud, inputs, self.resource_type)


class Vpc(Ec2Resource):
    uses = "cidrBlock enableDnsSupport enableDnsHostnames tags"
    noun = "vpc"

    def arguments(self, inputs: Inputs) -> dict[str, Any]:
        return {"CidrBlock": inputs["cidrBlock"]}


class Subnet(Ec2Resource):
    uses = "vpcId cidrBlock availabilityZone mapPublicIpOnLaunch tags"
    noun = "subnet"

    def arguments(self, inputs: Inputs) -> dict[str, Any]:
        return pascal({key: inputs[key] for key in ("vpcId", "cidrBlock", "availabilityZone")})  # type: ignore[no-any-return]


class InternetGateway(Ec2Resource):
    uses = "vpcId tags"
    noun = "internet_gateway"

    def arguments(self, inputs: Inputs) -> dict[str, Any]:
        return {}

    def create(self, cloud: Cloud, inputs: Inputs) -> tuple[str, Outputs]:
        resource_id, outputs = super().create(cloud, inputs)
        cloud.client("ec2").attach_internet_gateway(
            InternetGatewayId=resource_id, VpcId=inputs["vpcId"]
        )
        return resource_id, outputs

    def delete(self, cloud: Cloud, resource_id: str, inputs: Inputs, outputs: Outputs) -> None:
        cloud.client("ec2").detach_internet_gateway(
            InternetGatewayId=resource_id, VpcId=inputs["vpcId"]
        )
        super().delete(cloud, resource_id, inputs, outputs)


class RouteTable(Ec2Resource):
    uses = "vpcId tags"
    noun = "route_table"

    def arguments(self, inputs: Inputs) -> dict[str, Any]:
        return {"VpcId": inputs["vpcId"]}


class RouteTableAssociation(Handler):
    uses = "subnetId routeTableId"
    replace_on = "subnetId"

    def create(self, cloud: Cloud, inputs: Inputs) -> tuple[str, Outputs]:
        made = cloud.client("ec2").associate_route_table(**pascal(inputs))
        return made["AssociationId"], {}

    def find(self, cloud: Cloud, inputs: Inputs) -> str | None:
        found = cloud.client("ec2").describe_route_tables()["RouteTables"]
        ids = (  # none, if its table is gone: one that it moved to is younger, and goes first
            x["RouteTableAssociationId"]
            for table in found
            for x in table["Associations"]
            if table["RouteTableId"] == inputs["routeTableId"]
            and x.get("SubnetId") == inputs["subnetId"]
        )
        return next(ids, None)

    def update(
        self, cloud: Cloud, resource_id: str, old: Inputs, new: Inputs, outputs: Outputs
    ) -> Outputs:
        if association := self.find(cloud, old):  # else an interrupted run has moved it
            cloud.client("ec2").replace_route_table_association(
                AssociationId=association, RouteTableId=new["routeTableId"]
            )
        return outputs

    def delete(self, cloud: Cloud, resource_id: str, inputs: Inputs, outputs: Outputs) -> None:
        if association := self.find(cloud, inputs):  # another id since its table was changed
            cloud.client("ec2").disassociate_route_table(AssociationId=association)


class Route(Handler):
    uses = "routeTableId destinationCidrBlock gatewayId natGatewayId networkInterfaceId"
    replace_on = distinct = "routeTableId destinationCidrBlock"

    def create(self, cloud: Cloud, inputs: Inputs) -> tuple[str, Outputs]:
        cloud.client("ec2").create_route(**pascal(inputs))
        return f"{inputs['routeTableId']}_{inputs['destinationCidrBlock']}", {}

    def update(
        self, cloud: Cloud, resource_id: str, old: Inputs, new: Inputs, outputs: Outputs
    ) -> Outputs:
        cloud.client("ec2").replace_route(**pascal(new))
        return outputs

    def delete(self, cloud: Cloud, resource_id: str, inputs: Inputs, outputs: Outputs) -> None:
        route = {key: inputs[key] for key in ("routeTableId", "destinationCidrBlock")}
        cloud.client("ec2").delete_route(**pascal(route))

    def find(self, cloud: Cloud, inputs: Inputs) -> str | None:
        return f"{inputs['routeTableId']}_{inputs['destinationCidrBlock']}"


class Eip(Ec2Resource):
    uses = "domain networkInterface tags"
    noun = "address"
    create_verb, delete_verb = "allocate", "release"
    resource_type, id_key = "elastic-ip", "AllocationId"

    def arguments(self, inputs: Inputs) -> dict[str, Any]:
        return {"Domain": inputs["domain"]}

    def computed(self, cloud: Cloud, made: dict[str, Any]) -> Outputs:
        return {"allocationId": made["AllocationId"], "publicIp": made.get("PublicIp", "")}


class NatGateway(Ec2Resource):
    uses = "allocationId subnetId tags"
    noun = "nat_gateway"
    resource_type = "natgateway"

    def arguments(self, inputs: Inputs) -> dict[str, Any]:
        return {"AllocationId": inputs["allocationId"], "SubnetId": inputs["subnetId"]}


class SecurityGroup(Ec2Resource):
    uses = "name description vpcId tags"
    noun = "security_group"
    distinct = "vpcId name"
    id_key = "GroupId"

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
        (security_group,) = ec2.describe_security_groups(
            Filters=[{"Name": key, "Values": [value]} for key, value in filters.items()]
        )["SecurityGroups"]
        resource_id = security_group["GroupId"]
        if security_group["IpPermissions"]:
            ec2.revoke_security_group_ingress(
                GroupId=resource_id, IpPermissions=security_group["IpPermissions"]
            )
        if egress := security_group.get("IpPermissionsEgress"):
            ec2.revoke_security_group_egress(GroupId=resource_id, IpPermissions=egress)
        ec2.create_tags(Resources=[resource_id], Tags=tag_list(inputs.get("tags")))
        return resource_id, {"arn": cloud.arn("ec2", f"security-group/{resource_id}")}

    def delete(self, cloud: Cloud, resource_id: str, inputs: Inputs, outputs: Outputs) -> None:
        """AWS deletes it with its VPC."""


class Rule(Handler):
    """One rule of a security group."""

    uses = """securityGroupId description ipProtocol fromPort toPort cidrIpv4
        referencedSecurityGroupId tags"""
    replace_on = "securityGroupId ipProtocol fromPort toPort cidrIpv4 referencedSecurityGroupId"
    direction = ""

    def create(self, cloud: Cloud, inputs: Inputs) -> tuple[str, Outputs]:
        ec2 = cloud.client("ec2")
        add = getattr(ec2, f"authorize_security_group_{self.direction}")
        add(GroupId=inputs["securityGroupId"], IpPermissions=[self._permission(inputs)])
        peer = inputs.get("cidrIpv4") or inputs["referencedSecurityGroupId"]
        return f"{inputs['securityGroupId']}-{self.direction}-{peer}-{inputs['fromPort']}", {}

    def update(
        self, cloud: Cloud, resource_id: str, old: Inputs, new: Inputs, outputs: Outputs
    ) -> Outputs:
        return outputs  # the emulator uses neither description nor tags

    def delete(self, cloud: Cloud, resource_id: str, inputs: Inputs, outputs: Outputs) -> None:
        revoke = getattr(cloud.client("ec2"), f"revoke_security_group_{self.direction}")
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
    direction = "ingress"


class EgressRule(Rule):
    direction = "egress"


class VpcEndpoint(Ec2Resource):
    uses = """vpcId serviceName vpcEndpointType routeTableIds subnetIds securityGroupIds
        privateDnsEnabled tags"""
    noun = "vpc_endpoint"
    distinct = "vpcId serviceName"

    def arguments(self, inputs: Inputs) -> dict[str, Any]:
        return pascal({key: value for key, value in inputs.items() if key != "tags"})  # type: ignore[no-any-return]

    def delete(self, cloud: Cloud, resource_id: str, inputs: Inputs, outputs: Outputs) -> None:
        cloud.client("ec2").delete_vpc_endpoints(VpcEndpointIds=[resource_id])


class FlowLog(Recorded):
    uses = """vpcId trafficType logDestination iamRoleArn maxAggregationInterval tags"""


class LaunchTemplate(Handler):
    uses = """name imageId instanceType iamInstanceProfile metadataOptions blockDeviceMappings
        networkInterfaces monitoring userData tagSpecifications tags"""
    replace_on = distinct = "name"

    def create(self, cloud: Cloud, inputs: Inputs) -> tuple[str, Outputs]:
        tags = [{"ResourceType": "launch-template", "Tags": tag_list(inputs.get("tags"))}]
        made = cloud.client("ec2").create_launch_template(
            LaunchTemplateName=inputs["name"],
            LaunchTemplateData=self._data(inputs),
            TagSpecifications=tags,
        )["LaunchTemplate"]
        return made["LaunchTemplateId"], self._outputs(cloud, made["LaunchTemplateId"], 1)

    def update(
        self, cloud: Cloud, resource_id: str, old: Inputs, new: Inputs, outputs: Outputs
    ) -> Outputs:
        made = cloud.client("ec2").create_launch_template_version(
            LaunchTemplateId=resource_id, LaunchTemplateData=self._data(new)
        )["LaunchTemplateVersion"]
        return self._outputs(cloud, resource_id, made["VersionNumber"])

    def delete(self, cloud: Cloud, resource_id: str, inputs: Inputs, outputs: Outputs) -> None:
        cloud.client("ec2").delete_launch_template(LaunchTemplateId=resource_id)

    def find(self, cloud: Cloud, inputs: Inputs) -> str | None:
        return _id_by_owner(cloud, inputs, "launch-template")

    @staticmethod
    def _outputs(cloud: Cloud, resource_id: str, version: int) -> Outputs:
        arn = cloud.arn("ec2", f"launch-template/{resource_id}")
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


def _id_by_owner(cloud: Cloud, inputs: Inputs, resource_type: str) -> str | None:
    filters = {"key": OWNER, "value": inputs["tags"][OWNER], "resource-type": resource_type}
    found = cloud.client("ec2").describe_tags(
        Filters=[{"Name": key, "Values": [value]} for key, value in filters.items()]
    )["Tags"]
    return found[0]["ResourceId"] if found else None
