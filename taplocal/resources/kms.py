"""KMS: keys and aliases."""

from __future__ import annotations

from taplocal.cloud import Cloud
from taplocal.resources.base import (
    Handler,
    Inputs,
    Named,
    Outputs,
    arn_by_tag,
    removed_tags,
    tag_list,
)


class Key(Handler):
    uses = "description policy enableKeyRotation deletionWindowInDays tags"

    def create(self, cloud: Cloud, inputs: Inputs) -> tuple[str, Outputs]:
        kms = cloud.client("kms")
        tags = tag_list(inputs.get("tags"), "TagKey", "TagValue")
        key = kms.create_key(
            Description=inputs.get("description", ""), Policy=inputs["policy"], Tags=tags
        )["KeyMetadata"]
        if inputs.get("enableKeyRotation"):
            kms.enable_key_rotation(KeyId=key["KeyId"])
        return key["KeyId"], {"arn": key["Arn"], "keyId": key["KeyId"]}

    def update(
        self, cloud: Cloud, resource_id: str, old: Inputs, new: Inputs, outputs: Outputs
    ) -> Outputs:
        kms = cloud.client("kms")
        kms.put_key_policy(KeyId=resource_id, PolicyName="default", Policy=new["policy"])
        kms.update_key_description(KeyId=resource_id, Description=new.get("description", ""))
        rotate = (
            kms.enable_key_rotation if new.get("enableKeyRotation") else kms.disable_key_rotation
        )
        rotate(KeyId=resource_id)
        if removed := removed_tags(old, new):
            kms.untag_resource(KeyId=resource_id, TagKeys=removed)
        kms.tag_resource(KeyId=resource_id, Tags=tag_list(new.get("tags"), "TagKey", "TagValue"))
        return outputs

    def delete(self, cloud: Cloud, resource_id: str, inputs: Inputs, outputs: Outputs) -> None:
        window = inputs.get("deletionWindowInDays", 30)
        cloud.client("kms").schedule_key_deletion(KeyId=resource_id, PendingWindowInDays=window)

    def find(self, cloud: Cloud, inputs: Inputs) -> str | None:
        kms = cloud.client("kms")
        for arn in arn_by_tag(cloud, inputs, "kms:key"):
            key = kms.describe_key(KeyId=arn)["KeyMetadata"]
            if key["KeyState"] == "Enabled":
                return str(key["KeyId"])
        return None


class Alias(Named):
    uses = "name targetKeyId"
    replace_on = "name"

    def create(self, cloud: Cloud, inputs: Inputs) -> tuple[str, Outputs]:
        cloud.client("kms").create_alias(
            AliasName=inputs["name"], TargetKeyId=inputs["targetKeyId"]
        )
        return inputs["name"], {"arn": cloud.arn("kms", inputs["name"])}

    def update(
        self, cloud: Cloud, resource_id: str, old: Inputs, new: Inputs, outputs: Outputs
    ) -> Outputs:
        cloud.client("kms").update_alias(AliasName=resource_id, TargetKeyId=new["targetKeyId"])
        return outputs

    def delete(self, cloud: Cloud, resource_id: str, inputs: Inputs, outputs: Outputs) -> None:
        cloud.client("kms").delete_alias(AliasName=resource_id)

    def find(self, cloud: Cloud, inputs: Inputs) -> str | None:
        pages = cloud.client("kms").get_paginator("list_aliases").paginate()
        aliases = {x["AliasName"]: x.get("TargetKeyId") for page in pages for x in page["Aliases"]}
        same = aliases.get(inputs["name"]) == inputs["targetKeyId"]
        return str(inputs["name"]) if same else None
