"""SSM: parameters."""

from __future__ import annotations

from collections.abc import Mapping

from taplocal.cloud import Cloud
from taplocal.errors import TapLocalError
from taplocal.resources.base import Inputs, Named, Outputs, given, removed_tags, tag_list, tag_map


class Parameter(Named):
    uses = "name description type keyId value valueWo valueWoVersion tags"
    replace_on = "name"

    def create(self, cloud: Cloud, inputs: Inputs) -> tuple[str, Outputs]:
        self._put(cloud, inputs)
        return inputs["name"], {"arn": cloud.arn("ssm", f"parameter/{inputs['name'].lstrip('/')}")}

    def update(
        self, cloud: Cloud, resource_id: str, old: Inputs, new: Inputs, outputs: Outputs
    ) -> Outputs:
        ssm = cloud.client("ssm")
        settings = [{key: side.get(key) for key in _WRITTEN} for side in (old, new)]
        if settings[0] != settings[1]:
            self._put(cloud, new, old)
        if removed := removed_tags(old, new):
            ssm.remove_tags_from_resource(
                ResourceType="Parameter", ResourceId=resource_id, TagKeys=removed
            )
        if new.get("tags"):
            ssm.add_tags_to_resource(
                ResourceType="Parameter", ResourceId=resource_id, Tags=tag_list(new["tags"])
            )
        return outputs

    @staticmethod
    def _put(cloud: Cloud, inputs: Inputs, old: Inputs | None = None) -> None:
        """As the provider does it: an update names a key only if it is another one, and a
        write-only value only under another version."""
        before = old or {}
        value, key = inputs.get("value", ""), inputs.get("keyId")
        if "valueWo" in inputs and inputs["valueWoVersion"] != before.get("valueWoVersion"):
            value = inputs["valueWo"]
        if not value:
            raise TapLocalError(
                f"SSM rejects the empty value of {inputs['name']}: the provider sends a write-only "
                "value only when its version changes"
            )
        cloud.client("ssm").put_parameter(
            Name=inputs["name"],
            Type=inputs["type"],
            Value=value,
            # As SSM has it: tags with the first version only.
            **({"Overwrite": True} if old else {"Tags": tag_list(inputs.get("tags"))}),
            **given(
                Description=inputs.get("description"),
                KeyId=key if key != before.get("keyId") else None,
            ),
        )

    def delete(self, cloud: Cloud, resource_id: str, inputs: Inputs, outputs: Outputs) -> None:
        cloud.client("ssm").delete_parameter(Name=resource_id)

    def tags(self, cloud: Cloud, inputs: Inputs) -> Mapping[str, str] | None:
        found = cloud.client("ssm").list_tags_for_resource(
            ResourceType="Parameter", ResourceId=inputs["name"]
        )
        return tag_map(found["TagList"])


_WRITTEN = ("type", "keyId", "description", "value", "valueWoVersion")
