"""Glue: databases and tables of the Data Catalog, which Athena reads."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from taplocal.cloud import Cloud
from taplocal.resources.base import Handler, Inputs, Named, Outputs, pascal, removed_tags


class Database(Named):
    uses = "name description tags"
    replace_on = "name"
    tag_operation = "glue get_tags ResourceArn Tags"

    def name(self, cloud: Cloud, inputs: Inputs) -> str:
        return cloud.arn("glue", f"database/{inputs['name']}")

    def tags(self, cloud: Cloud, inputs: Inputs) -> Mapping[str, str] | None:
        databases = cloud.client("glue").get_databases()["DatabaseList"]
        if inputs["name"] not in [each["Name"] for each in databases]:
            return None
        return super().tags(cloud, inputs)

    def create(self, cloud: Cloud, inputs: Inputs) -> tuple[str, Outputs]:
        cloud.client("glue").create_database(
            DatabaseInput=_named(inputs), Tags=inputs.get("tags") or {}
        )
        return inputs["name"], {"arn": self.name(cloud, inputs)}

    def update(
        self, cloud: Cloud, resource_id: str, old: Inputs, new: Inputs, outputs: Outputs
    ) -> Outputs:
        glue, arn = cloud.client("glue"), outputs["arn"]
        glue.update_database(Name=resource_id, DatabaseInput=_named(new))
        if removed := removed_tags(old, new):
            glue.untag_resource(ResourceArn=arn, TagsToRemove=removed)
        glue.tag_resource(ResourceArn=arn, TagsToAdd=new.get("tags") or {})
        return outputs

    def delete(self, cloud: Cloud, resource_id: str, inputs: Inputs, outputs: Outputs) -> None:
        cloud.client("glue").delete_database(Name=resource_id)


class Table(Handler):
    uses = """name databaseName tableType parameters storageDescriptor.location
        storageDescriptor.columns storageDescriptor.inputFormat storageDescriptor.outputFormat
        storageDescriptor.serDeInfo"""
    replace_on = "name databaseName"

    def create(self, cloud: Cloud, inputs: Inputs) -> tuple[str, Outputs]:
        cloud.client("glue").create_table(
            DatabaseName=inputs["databaseName"], TableInput=_table(inputs)
        )
        return f"{cloud.account}:{inputs['databaseName']}:{inputs['name']}", {}

    def update(
        self, cloud: Cloud, resource_id: str, old: Inputs, new: Inputs, outputs: Outputs
    ) -> Outputs:
        cloud.client("glue").update_table(DatabaseName=new["databaseName"], TableInput=_table(new))
        return outputs

    def delete(self, cloud: Cloud, resource_id: str, inputs: Inputs, outputs: Outputs) -> None:
        cloud.client("glue").delete_table(DatabaseName=inputs["databaseName"], Name=inputs["name"])

    def find(self, cloud: Cloud, inputs: Inputs) -> str | None:
        database, name = inputs["databaseName"], inputs["name"]
        cloud.client("glue").get_table(DatabaseName=database, Name=name)
        return f"{cloud.account}:{database}:{name}"


def _named(inputs: Inputs) -> dict[str, Any]:
    return {"Name": inputs["name"], "Description": inputs.get("description", "")}


def _table(inputs: Inputs) -> dict[str, Any]:
    stored = dict(inputs["storageDescriptor"])
    serde = stored.pop("serDeInfo")
    described = pascal({**stored, "serdeInfo": {k: serde[k] for k in serde if k != "parameters"}})
    described["SerdeInfo"]["Parameters"] = serde.get("parameters", {})  # whose keys are data
    return {
        "Name": inputs["name"],
        "TableType": inputs["tableType"],
        "Parameters": inputs.get("parameters", {}),
        "StorageDescriptor": described,
    }
