"""Makes an export of the files table now, as its schedule does at night."""

from __future__ import annotations

import json

from taplocal.cloud import Cloud
from taplocal.errors import TapLocalError


def run(cloud: Cloud, name: str) -> None:
    """Exports what the schedule of this name says, as the account's root."""
    target = cloud.client("scheduler").get_schedule(Name=name, GroupName=name)["Target"]
    dynamodb = cloud.client("dynamodb")
    begun = dynamodb.export_table_to_point_in_time(**json.loads(target["Input"]))
    arn = begun["ExportDescription"]["ExportArn"]
    made = dynamodb.describe_export(ExportArn=arn)["ExportDescription"]
    if made["ExportStatus"] != "COMPLETED":
        raise TapLocalError(f"the export of the files table failed: {made['FailureMessage']}")
