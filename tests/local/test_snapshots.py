"""The snapshot function for real: on the emulated RDS, under its own role."""

from __future__ import annotations

import json
from typing import Any

import pytest

from taplocal.session import Session
from tests.local.small import code
from tests.local.test_policies import as_role

FUNCTION, DATABASE = "tap-stack-snapshots-dev", "tap-stack-database-dev"
TAGS = [{"Key": "CreatedBy", "Value": "tap-stack-snapshots-dev"}]


def invoke(deployed: Session, event: dict[str, Any], version: str = "live") -> Any:
    response = deployed.cloud.client("lambda").invoke(
        FunctionName=FUNCTION, Qualifier=version, Payload=json.dumps(event).encode()
    )
    payload = json.loads(response["Payload"].read())
    assert "FunctionError" not in response, payload
    return payload


def snapshots(deployed: Session) -> dict[str, list[dict[str, str]]]:
    """Name -> tags of the database's snapshots."""
    found = deployed.cloud.client("rds").describe_db_snapshots(DBInstanceIdentifier=DATABASE)
    return {each["DBSnapshotIdentifier"]: each.get("TagList", []) for each in found["DBSnapshots"]}


def test_it_takes_a_tagged_snapshot_and_leaves_those_of_others(deployed: Session) -> None:
    rds = deployed.cloud.client("rds")
    rds.create_db_snapshot(DBInstanceIdentifier=DATABASE, DBSnapshotIdentifier="somebody-s")
    result = invoke(deployed, {})
    assert result["snapshot"] in snapshots(deployed)
    assert invoke(deployed, {})["found"] == 1  # its own; the day's is not taken again
    assert snapshots(deployed)[result["snapshot"]] == TAGS
    assert "somebody-s" in snapshots(deployed)


def test_a_dry_run_takes_none(deployed: Session) -> None:
    before = snapshots(deployed).keys()
    assert invoke(deployed, {"dry_run": True})["dry_run"] is True
    assert snapshots(deployed).keys() == before


def test_what_is_past_retention_is_deleted_unless_it_is_shared(deployed: Session) -> None:
    rds, functions = deployed.cloud.client("rds"), deployed.cloud.client("lambda")
    old, shared = f"{DATABASE}-old", f"{DATABASE}-shared"
    for each in (old, shared):
        rds.create_db_snapshot(DBInstanceIdentifier=DATABASE, DBSnapshotIdentifier=each, Tags=TAGS)
        rds.get_waiter("db_snapshot_available").wait(
            DBSnapshotIdentifier=each, WaiterConfig={"Delay": 0.1, "MaxAttempts": 600}
        )
    attribute = {"DBSnapshotIdentifier": shared, "AttributeName": "restore"}
    rds.modify_db_snapshot_attribute(**attribute, ValuesToAdd=["210987654321"])
    name = {"FunctionName": FUNCTION}
    before = functions.get_function_configuration(**name)["Environment"]["Variables"]
    now = {"Variables": {**before, "SNAPSHOT_DAYS": "0", "SNAPSHOT_KEEP": "0"}}
    functions.update_function_configuration(**name, Environment=now)
    deleted = invoke(deployed, {}, "$LATEST")["deleted"]
    functions.update_function_configuration(**name, Environment={"Variables": before})
    rds.modify_db_snapshot_attribute(**attribute, ValuesToRemove=["210987654321"])
    (kept,) = rds.describe_db_snapshot_attributes(DBSnapshotIdentifier=shared)[
        "DBSnapshotAttributesResult"
    ]["DBSnapshotAttributes"]
    assert kept == {"AttributeName": "restore", "AttributeValues": []}
    assert old in deleted and shared not in deleted
    assert old not in snapshots(deployed) and shared in snapshots(deployed)
    rds.delete_db_snapshot(DBSnapshotIdentifier=shared)


@pytest.mark.parametrize(
    ("operation", "arguments", "allowed"),
    [
        ("delete_db_snapshot", {"DBSnapshotIdentifier": "other-database-2026"}, False),
        (
            "delete_db_instance",
            {"DBInstanceIdentifier": DATABASE, "SkipFinalSnapshot": True},
            False,
        ),
        ("modify_db_instance", {"DBInstanceIdentifier": DATABASE}, False),
    ],
)
def test_its_role_touches_nothing_else(
    deployed: Session, operation: str, arguments: dict[str, Any], allowed: bool
) -> None:
    rds = as_role(deployed, FUNCTION, "rds")
    denied = code(lambda: getattr(rds, operation)(**arguments))
    assert ("AccessDenied" in denied) is not allowed, denied
