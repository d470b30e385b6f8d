"""Athena: workgroups and saved queries."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from taplocal.cloud import Cloud
from taplocal.resources.base import (
    Handler,
    Inputs,
    Named,
    Outputs,
    given,
    pascal,
    removed_tags,
    tag_list,
)


class Workgroup(Named):
    uses = """name forceDestroy configuration.bytesScannedCutoffPerQuery
        configuration.enforceWorkgroupConfiguration configuration.engineVersion
        configuration.resultConfiguration tags"""
    replace_on = "name"
    tag_operation = "athena list_tags_for_resource ResourceARN Tags"

    def name(self, cloud: Cloud, inputs: Inputs) -> str:
        return cloud.arn("athena", f"workgroup/{inputs['name']}")

    def tags(self, cloud: Cloud, inputs: Inputs) -> Mapping[str, str] | None:
        groups = cloud.client("athena").list_work_groups()["WorkGroups"]
        if inputs["name"] not in [each["Name"] for each in groups]:
            return None
        return super().tags(cloud, inputs)

    def create(self, cloud: Cloud, inputs: Inputs) -> tuple[str, Outputs]:
        cloud.client("athena").create_work_group(
            Name=inputs["name"],
            Configuration=_configuration(inputs),
            Tags=tag_list(inputs.get("tags")),
        )
        return inputs["name"], {"arn": self.name(cloud, inputs)}

    def update(
        self, cloud: Cloud, resource_id: str, old: Inputs, new: Inputs, outputs: Outputs
    ) -> Outputs:
        athena, arn, settings = cloud.client("athena"), outputs["arn"], _configuration(new)
        settings["ResultConfigurationUpdates"] = settings.pop("ResultConfiguration")
        athena.update_work_group(WorkGroup=resource_id, ConfigurationUpdates=settings)
        if removed := removed_tags(old, new):
            athena.untag_resource(ResourceARN=arn, TagKeys=removed)
        athena.tag_resource(ResourceARN=arn, Tags=tag_list(new.get("tags")))
        return outputs

    def delete(self, cloud: Cloud, resource_id: str, inputs: Inputs, outputs: Outputs) -> None:
        cloud.client("athena").delete_work_group(
            WorkGroup=resource_id, RecursiveDeleteOption=inputs.get("forceDestroy", False)
        )


class NamedQuery(Handler):
    """A saved query; AWS generates its id, so that several may have a name."""

    uses = replace_on = "name description database workgroup query"

    def create(self, cloud: Cloud, inputs: Inputs) -> tuple[str, Outputs]:
        made = cloud.client("athena").create_named_query(
            Name=inputs["name"],
            Description=inputs.get("description", ""),
            Database=inputs["database"],
            WorkGroup=inputs["workgroup"],
            QueryString=inputs["query"],
        )
        return made["NamedQueryId"], {}

    def delete(self, cloud: Cloud, resource_id: str, inputs: Inputs, outputs: Outputs) -> None:
        cloud.client("athena").delete_named_query(NamedQueryId=resource_id)

    def find(self, cloud: Cloud, inputs: Inputs) -> str | None:
        athena = cloud.client("athena")
        ids = athena.list_named_queries(WorkGroup=inputs["workgroup"])["NamedQueryIds"]
        found = athena.batch_get_named_query(NamedQueryIds=ids)["NamedQueries"] if ids else []
        same = (inputs["name"], inputs["query"])
        return next(
            (x["NamedQueryId"] for x in found if (x["Name"], x["QueryString"]) == same), None
        )


def _configuration(inputs: Inputs) -> dict[str, Any]:
    settings = dict(inputs["configuration"])
    enforced, result = (
        settings.pop("enforceWorkgroupConfiguration"),
        settings["resultConfiguration"],
    )
    if encryption := result.get("encryptionConfiguration"):
        key = {"kmsKey": encryption.get("kmsKeyArn")}  # not as Pulumi writes it
        kept = {"encryptionOption": encryption["encryptionOption"], **given(**key)}
        settings["resultConfiguration"] = {**result, "encryptionConfiguration": kept}
    return {**pascal(settings), "EnforceWorkGroupConfiguration": enforced}
