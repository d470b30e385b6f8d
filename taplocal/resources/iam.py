"""IAM: roles and their inline policies."""

from __future__ import annotations

import json
from typing import Any

from taplocal.cloud import Cloud
from taplocal.resources.base import Handler, Inputs, Outputs, lost_tags, tag_list


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
        document, _ = adapted(json.loads(inputs["policy"]))
        cloud.client("iam").put_role_policy(
            RoleName=inputs["role"], PolicyName=inputs["name"], PolicyDocument=json.dumps(document)
        )
        return f"{inputs['role']}:{inputs['name']}", {}

    def delete(self, cloud: Cloud, identity: str, inputs: Inputs, outputs: Outputs) -> None:
        cloud.client("iam").delete_role_policy(RoleName=inputs["role"], PolicyName=inputs["name"])

    def notes(self, inputs: Inputs) -> list[tuple[str, str]]:
        return [
            ("policy", f"adapted for the emulator: {each}")
            for each in adapted(json.loads(inputs["policy"]))[1]
        ]


def adapted(document: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """The emulator's copy of a policy, and what was changed in it.

    AWS authorises log writes on `<group>:*`; the emulator names the group without the suffix and
    would deny them.
    """
    changes, statements = [], []
    for statement in document["Statement"]:
        resources = statement.get("Resource", [])
        resources = [resources] if isinstance(resources, str) else resources
        groups = [
            arn.removesuffix(":*") for arn in resources if ":logs:" in arn and arn.endswith(":*")
        ]
        if groups:
            changes.append(f"log writes also on {', '.join(groups)}, without :*")
            statement = {**statement, "Resource": [*resources, *groups]}
        statements.append(statement)
    return {**document, "Statement": statements}, changes
