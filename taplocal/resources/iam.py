"""IAM: roles and their inline policies."""

from __future__ import annotations

from taplocal.cloud import Cloud
from taplocal.resources.base import Handler, Inputs, Outputs, lost_tags, tag_list
from taplocal.resources.policies import adapted, policy_notes


class Role(Handler):
    uses = "name description assumeRolePolicy tags"
    replace_on = "name"
    not_emulated = {"assumeRolePolicy": "trust is not checked when a service takes the role"}

    def create(self, cloud: Cloud, inputs: Inputs) -> tuple[str, Outputs]:
        role = cloud.client("iam").create_role(
            RoleName=inputs["name"],
            Description=inputs.get("description", ""),
            AssumeRolePolicyDocument=inputs["assumeRolePolicy"],
            Tags=tag_list(inputs.get("tags")),
        )["Role"]
        return inputs["name"], {"arn": role["Arn"]}

    def update(
        self, cloud: Cloud, identity: str, old: Inputs, new: Inputs, outputs: Outputs
    ) -> Outputs:
        iam = cloud.client("iam")
        iam.update_role(RoleName=identity, Description=new.get("description", ""))
        iam.update_assume_role_policy(RoleName=identity, PolicyDocument=new["assumeRolePolicy"])
        if lost := lost_tags(old, new):
            iam.untag_role(RoleName=identity, TagKeys=lost)
        iam.tag_role(RoleName=identity, Tags=tag_list(new.get("tags")))
        return outputs

    def delete(self, cloud: Cloud, identity: str, inputs: Inputs, outputs: Outputs) -> None:
        iam = cloud.client("iam")
        for name in iam.list_role_policies(RoleName=identity)["PolicyNames"]:
            iam.delete_role_policy(RoleName=identity, PolicyName=name)
        iam.delete_role(RoleName=identity)


class RolePolicy(Handler):
    uses = "name role policy"
    replace_on = "name role"

    def create(self, cloud: Cloud, inputs: Inputs) -> tuple[str, Outputs]:
        cloud.client("iam").put_role_policy(
            RoleName=inputs["role"],
            PolicyName=inputs["name"],
            PolicyDocument=adapted(inputs["policy"])[0],
        )
        return f"{inputs['role']}:{inputs['name']}", {}

    def delete(self, cloud: Cloud, identity: str, inputs: Inputs, outputs: Outputs) -> None:
        cloud.client("iam").delete_role_policy(RoleName=inputs["role"], PolicyName=inputs["name"])

    def notes(self, inputs: Inputs) -> list[tuple[str, str]]:
        return policy_notes(inputs["policy"])
