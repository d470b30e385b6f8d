"""IAM: roles and their inline policies."""

from __future__ import annotations

from taplocal.cloud import Cloud
from taplocal.resources.base import (
    Handler,
    Inputs,
    Named,
    Outputs,
    Recorded,
    removed_tags,
    tag_list,
)


class Role(Named):
    uses = "name description assumeRolePolicy tags"
    replace_on = "name"
    tag_operation = "iam list_role_tags RoleName Tags"

    def create(self, cloud: Cloud, inputs: Inputs) -> tuple[str, Outputs]:
        role = cloud.client("iam").create_role(
            RoleName=inputs["name"],
            Description=inputs.get("description", ""),
            AssumeRolePolicyDocument=inputs["assumeRolePolicy"],
            Tags=tag_list(inputs.get("tags")),
        )["Role"]
        return inputs["name"], {"arn": role["Arn"]}

    def update(
        self, cloud: Cloud, resource_id: str, old: Inputs, new: Inputs, outputs: Outputs
    ) -> Outputs:
        iam = cloud.client("iam")
        iam.update_role(RoleName=resource_id, Description=new.get("description", ""))
        iam.update_assume_role_policy(RoleName=resource_id, PolicyDocument=new["assumeRolePolicy"])
        if removed := removed_tags(old, new):
            iam.untag_role(RoleName=resource_id, TagKeys=removed)
        iam.tag_role(RoleName=resource_id, Tags=tag_list(new.get("tags")))
        return outputs

    def delete(self, cloud: Cloud, resource_id: str, inputs: Inputs, outputs: Outputs) -> None:
        iam = cloud.client("iam")
        for name in iam.list_role_policies(RoleName=resource_id)["PolicyNames"]:
            iam.delete_role_policy(RoleName=resource_id, PolicyName=name)
        iam.delete_role(RoleName=resource_id)


class RolePolicy(Handler):
    uses = "name role policy"
    replace_on = "name role"

    def create(self, cloud: Cloud, inputs: Inputs) -> tuple[str, Outputs]:
        cloud.client("iam").put_role_policy(
            RoleName=inputs["role"],
            PolicyName=inputs["name"],
            PolicyDocument=inputs["policy"],
        )
        return f"{inputs['role']}:{inputs['name']}", {}

    def delete(self, cloud: Cloud, resource_id: str, inputs: Inputs, outputs: Outputs) -> None:
        cloud.client("iam").delete_role_policy(RoleName=inputs["role"], PolicyName=inputs["name"])


class InstanceProfile(Named):
    uses = "name role tags"
    replace_on = "name role"
    tag_operation = "iam list_instance_profile_tags InstanceProfileName Tags"

    def create(self, cloud: Cloud, inputs: Inputs) -> tuple[str, Outputs]:
        iam, name = cloud.client("iam"), inputs["name"]
        made = iam.create_instance_profile(
            InstanceProfileName=name, Tags=tag_list(inputs.get("tags"))
        )["InstanceProfile"]
        iam.add_role_to_instance_profile(InstanceProfileName=name, RoleName=inputs["role"])
        return name, {"arn": made["Arn"]}

    def update(
        self, cloud: Cloud, resource_id: str, old: Inputs, new: Inputs, outputs: Outputs
    ) -> Outputs:
        return outputs  # only the tags changed, and the emulator does not use them

    def delete(self, cloud: Cloud, resource_id: str, inputs: Inputs, outputs: Outputs) -> None:
        iam = cloud.client("iam")
        iam.remove_role_from_instance_profile(
            InstanceProfileName=resource_id, RoleName=inputs["role"]
        )
        iam.delete_instance_profile(InstanceProfileName=resource_id)


class ServiceLinkedRole(Recorded):
    uses = "awsServiceName customSuffix description tags"

    def create(self, cloud: Cloud, inputs: Inputs) -> tuple[str, Outputs]:
        service, name = inputs["awsServiceName"], f"AutoScaling_{inputs['customSuffix']}"
        path = f"role/aws-service-role/{service}/AWSServiceRoleFor{name}"
        return name, {"arn": f"arn:aws:iam::{cloud.account}:{path}"}
