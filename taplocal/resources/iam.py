"""IAM: roles, their policies and what bounds them, identity providers."""

from __future__ import annotations

from typing import Any

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

SESSION_SECONDS = 3_600  # of a role, unless it says more: IAM's default


class Role(Named):
    uses = "name description assumeRolePolicy maxSessionDuration permissionsBoundary tags"
    replace_on = "name"
    tag_operation = "iam list_role_tags RoleName Tags"

    def create(self, cloud: Cloud, inputs: Inputs) -> tuple[str, Outputs]:
        role = cloud.client("iam").create_role(
            RoleName=inputs["name"],
            Description=inputs.get("description", ""),
            AssumeRolePolicyDocument=inputs["assumeRolePolicy"],
            MaxSessionDuration=int(inputs.get("maxSessionDuration") or SESSION_SECONDS),
            Tags=tag_list(inputs.get("tags")),
            **_bounded(inputs),
        )["Role"]
        return inputs["name"], {"arn": role["Arn"]}

    def update(
        self, cloud: Cloud, resource_id: str, old: Inputs, new: Inputs, outputs: Outputs
    ) -> Outputs:
        iam = cloud.client("iam")
        iam.update_role(
            RoleName=resource_id,
            Description=new.get("description", ""),
            MaxSessionDuration=int(new.get("maxSessionDuration") or SESSION_SECONDS),
        )
        if bounded := _bounded(new):
            iam.put_role_permissions_boundary(RoleName=resource_id, **bounded)
        elif _bounded(old):
            iam.delete_role_permissions_boundary(RoleName=resource_id)
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


def _bounded(inputs: Inputs) -> dict[str, str]:
    boundary = inputs.get("permissionsBoundary")
    return {"PermissionsBoundary": boundary} if boundary else {}


class Policy(Named):
    uses = "name description policy tags"
    replace_on = "name description"
    tag_operation = "iam list_policy_tags PolicyArn Tags"

    def name(self, cloud: Cloud, inputs: Inputs) -> str:
        return f"arn:aws:iam::{cloud.account}:policy/{inputs['name']}"

    resource_id = name

    def create(self, cloud: Cloud, inputs: Inputs) -> tuple[str, Outputs]:
        made = cloud.client("iam").create_policy(
            PolicyName=inputs["name"],
            Description=inputs.get("description", ""),
            PolicyDocument=inputs["policy"],
            Tags=tag_list(inputs.get("tags")),
        )["Policy"]
        return made["Arn"], {"arn": made["Arn"]}

    def update(
        self, cloud: Cloud, resource_id: str, old: Inputs, new: Inputs, outputs: Outputs
    ) -> Outputs:
        iam = cloud.client("iam")
        if old["policy"] != new["policy"]:
            made = iam.create_policy_version(
                PolicyArn=resource_id, PolicyDocument=new["policy"], SetAsDefault=True
            )
            self._keep(iam, resource_id, made["PolicyVersion"]["VersionId"])
        if removed := removed_tags(old, new):
            iam.untag_policy(PolicyArn=resource_id, TagKeys=removed)
        iam.tag_policy(PolicyArn=resource_id, Tags=tag_list(new.get("tags")))
        return outputs

    def delete(self, cloud: Cloud, resource_id: str, inputs: Inputs, outputs: Outputs) -> None:
        iam = cloud.client("iam")
        self._keep(iam, resource_id)
        iam.delete_policy(PolicyArn=resource_id)

    def _keep(self, iam: Any, arn: str, kept: str = "") -> None:
        """Deletes the versions that are not the default one: a policy has five at most."""
        for each in iam.list_policy_versions(PolicyArn=arn)["Versions"]:
            if not each["IsDefaultVersion"] and each["VersionId"] != kept:
                iam.delete_policy_version(PolicyArn=arn, VersionId=each["VersionId"])


class RolePolicyAttachment(Handler):
    uses = "role policyArn"
    replace_on = "role policyArn"

    def create(self, cloud: Cloud, inputs: Inputs) -> tuple[str, Outputs]:
        role, arn = inputs["role"], inputs["policyArn"]
        cloud.client("iam").attach_role_policy(RoleName=role, PolicyArn=arn)
        return f"{role}:{arn}", {}

    def delete(self, cloud: Cloud, resource_id: str, inputs: Inputs, outputs: Outputs) -> None:
        cloud.client("iam").detach_role_policy(
            RoleName=inputs["role"], PolicyArn=inputs["policyArn"]
        )

    def find(self, cloud: Cloud, inputs: Inputs) -> str | None:
        role, arn = inputs["role"], inputs["policyArn"]
        attached = cloud.client("iam").list_attached_role_policies(RoleName=role)
        arns = [each["PolicyArn"] for each in attached["AttachedPolicies"]]
        return f"{role}:{arn}" if arn in arns else None


class OpenIdConnectProvider(Named):
    uses = "url clientIdLists tags"
    id_input = "url"
    replace_on = "url"
    tag_operation = "iam get_open_id_connect_provider OpenIDConnectProviderArn Tags"

    def name(self, cloud: Cloud, inputs: Inputs) -> str:
        host = inputs["url"].removeprefix("https://")
        return f"arn:aws:iam::{cloud.account}:oidc-provider/{host}"

    resource_id = name

    def create(self, cloud: Cloud, inputs: Inputs) -> tuple[str, Outputs]:
        arn = cloud.client("iam").create_open_id_connect_provider(
            Url=inputs["url"],
            ClientIDList=inputs["clientIdLists"],
            Tags=tag_list(inputs.get("tags")),
        )["OpenIDConnectProviderArn"]
        return arn, {"arn": arn}

    def update(
        self, cloud: Cloud, resource_id: str, old: Inputs, new: Inputs, outputs: Outputs
    ) -> Outputs:
        self.delete(cloud, resource_id, old, outputs)
        return self.create(cloud, new)[1]

    def delete(self, cloud: Cloud, resource_id: str, inputs: Inputs, outputs: Outputs) -> None:
        cloud.client("iam").delete_open_id_connect_provider(OpenIDConnectProviderArn=resource_id)


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
