"""AWS WAF: web ACLs and what they stand before; no request is inspected."""

from __future__ import annotations

from typing import Any

from taplocal.cloud import Cloud
from taplocal.resources.base import (
    Handler,
    Inputs,
    Outputs,
    has_owner,
    pascal,
    removed_tags,
    tag_list,
    tag_map,
)


class WebAcl(Handler):
    uses = "name description scope defaultAction rules visibilityConfig tags"
    replace_on = distinct = "name scope"

    def create(self, cloud: Cloud, inputs: Inputs) -> tuple[str, Outputs]:
        made = cloud.client("wafv2").create_web_acl(**_acl(inputs), Tags=tag_list(inputs["tags"]))
        return made["Summary"]["Id"], {"arn": made["Summary"]["ARN"]}

    def update(
        self, cloud: Cloud, resource_id: str, old: Inputs, new: Inputs, outputs: Outputs
    ) -> Outputs:
        waf, arn = cloud.client("wafv2"), outputs["arn"]
        waf.update_web_acl(**{**_acl(new), **self._lock(cloud, resource_id, new)})
        if removed := removed_tags(old, new):
            waf.untag_resource(ResourceARN=arn, TagKeys=removed)
        waf.tag_resource(ResourceARN=arn, Tags=tag_list(new["tags"]))
        return outputs

    def delete(self, cloud: Cloud, resource_id: str, inputs: Inputs, outputs: Outputs) -> None:
        cloud.client("wafv2").delete_web_acl(**self._lock(cloud, resource_id, inputs))

    def find(self, cloud: Cloud, inputs: Inputs) -> str | None:
        waf = cloud.client("wafv2")
        for each in waf.list_web_acls(Scope=inputs["scope"])["WebACLs"]:
            tags = waf.list_tags_for_resource(ResourceARN=each["ARN"])["TagInfoForResource"]
            if has_owner(tag_map(tags["TagList"]), inputs):
                return str(each["Id"])
        return None

    @staticmethod
    def _lock(cloud: Cloud, resource_id: str, inputs: Inputs) -> dict[str, str]:
        """What names the ACL as it is now."""
        which = {"Name": inputs["name"], "Scope": inputs["scope"], "Id": resource_id}
        return {**which, "LockToken": cloud.client("wafv2").get_web_acl(**which)["LockToken"]}


class WebAclAssociation(Handler):
    uses = "resourceArn webAclArn"
    replace_on = "resourceArn webAclArn"

    def create(self, cloud: Cloud, inputs: Inputs) -> tuple[str, Outputs]:
        arn = inputs["resourceArn"]
        cloud.client("wafv2").associate_web_acl(WebACLArn=inputs["webAclArn"], ResourceArn=arn)
        return arn, {}

    def delete(self, cloud: Cloud, resource_id: str, inputs: Inputs, outputs: Outputs) -> None:
        cloud.client("wafv2").disassociate_web_acl(ResourceArn=resource_id)

    def find(self, cloud: Cloud, inputs: Inputs) -> str | None:
        return None


def _acl(inputs: Inputs) -> dict[str, Any]:
    names = {"cloudwatchMetricsEnabled": "CloudWatchMetricsEnabled"}  # not as Pulumi writes it
    shown = {k: inputs[k] for k in WebAcl.uses.split() if k in inputs and k != "tags"}
    return dict(pascal(_renamed(shown, names)))


def _renamed(value: Any, names: dict[str, str]) -> Any:
    """A value with some of its members under other names."""
    if isinstance(value, dict):
        return {names.get(key, key): _renamed(each, names) for key, each in value.items()}
    return [_renamed(each, names) for each in value] if isinstance(value, list) else value
