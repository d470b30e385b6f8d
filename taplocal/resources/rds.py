"""RDS: databases, which `taplocal/web` runs, and what belongs to them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from taplocal.cloud import Cloud
from taplocal.errors import TapLocalError
from taplocal.resources.base import (
    Inputs,
    Named,
    Outputs,
    Recorded,
    removed_tags,
    settled,
    tag_list,
)


class RdsResource(Named):
    """A resource of RDS, which has tags."""

    tag_operation = "rds list_tags_for_resource ResourceName TagList"
    kind = ""  # as in its ARN

    def name(self, cloud: Cloud, inputs: Inputs) -> str:
        return cloud.arn("rds", f"{self.kind}:{inputs[self.id_input]}")


class SubnetGroup(RdsResource):
    uses = "name description subnetIds tags"
    replace_on = "name"
    kind = "subgrp"
    overwrites = True

    def tags(self, cloud: Cloud, inputs: Inputs) -> Mapping[str, str] | None:
        pages = cloud.client("rds").get_paginator("describe_db_subnet_groups").paginate()
        names = {x["DBSubnetGroupName"] for page in pages for x in page["DBSubnetGroups"]}
        return super().tags(cloud, inputs) if inputs["name"] in names else None

    def create(self, cloud: Cloud, inputs: Inputs) -> tuple[str, Outputs]:
        cloud.client("rds").create_db_subnet_group(
            DBSubnetGroupName=inputs["name"],
            DBSubnetGroupDescription=inputs["description"],
            SubnetIds=inputs["subnetIds"],
            Tags=tag_list(inputs.get("tags")),
        )
        return inputs["name"], {"arn": self.name(cloud, inputs)}

    def update(
        self, cloud: Cloud, resource_id: str, old: Inputs, new: Inputs, outputs: Outputs
    ) -> Outputs:
        cloud.client("rds").modify_db_subnet_group(
            DBSubnetGroupName=resource_id,
            DBSubnetGroupDescription=new["description"],
            SubnetIds=new["subnetIds"],
        )
        return retagged(cloud, old, new, outputs)

    def delete(self, cloud: Cloud, resource_id: str, inputs: Inputs, outputs: Outputs) -> None:
        cloud.client("rds").delete_db_subnet_group(DBSubnetGroupName=resource_id)


class ParameterGroup(RdsResource):
    uses = "name family description parameters tags"
    replace_on = "name family description"
    kind = "pg"

    def create(self, cloud: Cloud, inputs: Inputs) -> tuple[str, Outputs]:
        cloud.client("rds").create_db_parameter_group(
            DBParameterGroupName=inputs["name"],
            DBParameterGroupFamily=inputs["family"],
            Description=inputs["description"],
            Tags=tag_list(inputs.get("tags")),
        )
        self._set(cloud, inputs)
        return inputs["name"], {"arn": self.name(cloud, inputs)}

    def update(
        self, cloud: Cloud, resource_id: str, old: Inputs, new: Inputs, outputs: Outputs
    ) -> Outputs:
        self._set(cloud, new)
        return retagged(cloud, old, new, outputs)

    @staticmethod
    def _set(cloud: Cloud, inputs: Inputs) -> None:
        values = [
            {
                "ParameterName": each["name"],
                "ParameterValue": each["value"],
                "ApplyMethod": each.get("applyMethod", "immediate"),
            }
            for each in inputs.get("parameters", [])
        ]
        if values:
            cloud.client("rds").modify_db_parameter_group(
                DBParameterGroupName=inputs["name"], Parameters=values
            )

    def delete(self, cloud: Cloud, resource_id: str, inputs: Inputs, outputs: Outputs) -> None:
        cloud.client("rds").delete_db_parameter_group(DBParameterGroupName=resource_id)


AVAILABLE_SECONDS = 120  # a guard against hanging: it takes one
#: Input -> argument of CreateDBInstance; also of ModifyDBInstance, except those in FIXED.
ARGUMENTS = {
    "engine": "Engine",
    "engineVersion": "EngineVersion",
    "instanceClass": "DBInstanceClass",
    "allocatedStorage": "AllocatedStorage",
    "maxAllocatedStorage": "MaxAllocatedStorage",
    "storageType": "StorageType",
    "iops": "Iops",
    "storageEncrypted": "StorageEncrypted",
    "kmsKeyId": "KmsKeyId",
    "dbName": "DBName",
    "username": "MasterUsername",
    "manageMasterUserPassword": "ManageMasterUserPassword",
    "masterUserSecretKmsKeyId": "MasterUserSecretKmsKeyId",
    "iamDatabaseAuthenticationEnabled": "EnableIAMDatabaseAuthentication",
    "port": "Port",
    "publiclyAccessible": "PubliclyAccessible",
    "dbSubnetGroupName": "DBSubnetGroupName",
    "vpcSecurityGroupIds": "VpcSecurityGroupIds",
    "parameterGroupName": "DBParameterGroupName",
    "caCertIdentifier": "CACertificateIdentifier",
    "multiAz": "MultiAZ",
    "backupRetentionPeriod": "BackupRetentionPeriod",
    "backupWindow": "PreferredBackupWindow",
    "maintenanceWindow": "PreferredMaintenanceWindow",
    "copyTagsToSnapshot": "CopyTagsToSnapshot",
    "deletionProtection": "DeletionProtection",
    "autoMinorVersionUpgrade": "AutoMinorVersionUpgrade",
    "enabledCloudwatchLogsExports": "EnableCloudwatchLogsExports",
    "performanceInsightsEnabled": "EnablePerformanceInsights",
    "performanceInsightsKmsKeyId": "PerformanceInsightsKMSKeyId",
    "performanceInsightsRetentionPeriod": "PerformanceInsightsRetentionPeriod",
    "monitoringInterval": "MonitoringInterval",
    "monitoringRoleArn": "MonitoringRoleArn",
}
FIXED = "engine storageEncrypted kmsKeyId dbName username dbSubnetGroupName"


class Instance(RdsResource):
    uses = f"""identifier {" ".join(ARGUMENTS)} allowMajorVersionUpgrade deleteAutomatedBackups
        skipFinalSnapshot finalSnapshotIdentifier applyImmediately tags"""
    id_input = "identifier"
    kind = "db"
    replace_on = f"identifier {FIXED}"

    def create(self, cloud: Cloud, inputs: Inputs) -> tuple[str, Outputs]:
        name = inputs["identifier"]
        made = cloud.client("rds").create_db_instance(
            DBInstanceIdentifier=name,
            Tags=tag_list(inputs.get("tags")),
            **{argument: inputs[key] for key, argument in ARGUMENTS.items() if key in inputs},
        )
        found = available(cloud, name)
        address = found["Endpoint"]["Address"]
        return name, {
            "arn": self.name(cloud, inputs),
            "address": address,
            "endpoint": f"{address}:{found['Endpoint']['Port']}",
            "resourceId": made["DBInstance"]["DbiResourceId"],
            "masterUserSecrets": [
                {"secretArn": each["SecretArn"]} for each in [found.get("MasterUserSecret")] if each
            ],
        }

    def update(
        self, cloud: Cloud, resource_id: str, old: Inputs, new: Inputs, outputs: Outputs
    ) -> Outputs:
        fixed = {*FIXED.split(), "port", "enabledCloudwatchLogsExports"}
        changed = {
            argument: new[key]
            for key, argument in ARGUMENTS.items()
            if key in new and key not in fixed and new[key] != old.get(key)
        }
        cloud.client("rds").modify_db_instance(
            DBInstanceIdentifier=resource_id, ApplyImmediately=True, **changed
        )
        available(cloud, resource_id)
        return retagged(cloud, old, new, outputs)

    def settle(self, cloud: Cloud, inputs: Inputs) -> None:
        available(cloud, inputs["identifier"])

    def delete(self, cloud: Cloud, resource_id: str, inputs: Inputs, outputs: Outputs) -> None:
        rds = cloud.client("rds")
        if inputs.get("deletionProtection"):
            rds.modify_db_instance(
                DBInstanceIdentifier=resource_id, DeletionProtection=False, ApplyImmediately=True
            )
        rds.delete_db_instance(DBInstanceIdentifier=resource_id, SkipFinalSnapshot=True)


class EventSubscription(Recorded):
    uses = "name snsTopic sourceType sourceIds eventCategories tags"


def available(cloud: Cloud, name: str) -> Any:
    """The description of a database that serves; TapLocalError with its log if it cannot."""
    rds = cloud.client("rds")

    def described() -> Any:
        return rds.describe_db_instances(DBInstanceIdentifier=name)["DBInstances"][0]

    def look() -> str:
        status = described()["DBInstanceStatus"]
        why = f"the database {name} is {status}: web.log in the data folder says why"
        if status == "failed":
            raise TapLocalError(why)
        return "" if status == "available" else why

    settled(look, AVAILABLE_SECONDS)
    return described()


def retagged(cloud: Cloud, old: Inputs, new: Inputs, outputs: Outputs) -> Outputs:
    """Updates the tags."""
    rds: Any = cloud.client("rds")
    if removed := removed_tags(old, new):
        rds.remove_tags_from_resource(ResourceName=outputs["arn"], TagKeys=removed)
    rds.add_tags_to_resource(ResourceName=outputs["arn"], Tags=tag_list(new.get("tags")))
    return outputs
