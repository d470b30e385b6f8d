"""The database as it is registered."""

from __future__ import annotations

import pytest

import tap_stack
from tests.stack.conftest import Graph, graph_of, statements


def test_the_database_is_private_encrypted_backed_up_and_protected(graph: Graph, env: str) -> None:
    tier, database = (
        tap_stack.TapStackArgs(environment_suffix=env),
        graph.one("aws:rds/instance:Instance").inputs,
    )
    assert database["publiclyAccessible"] is False
    assert database["manageMasterUserPassword"] is True
    assert "password" not in database
    assert database["iamDatabaseAuthenticationEnabled"] is True
    assert database["multiAz"] is tier.database_multi_az
    assert database["backupRetentionPeriod"] == tier.backup_days
    assert database["deletionProtection"] is (env == "prod")
    assert database["skipFinalSnapshot"] is (env == "dev")
    for group in graph.of("ParameterGroup"):
        parameters = {each["name"]: each["value"] for each in group.inputs["parameters"]}
        assert parameters["rds.force_ssl"] == "1"
        logged = "all" if group.inputs["family"] == "postgres18" else "1"
        assert parameters["log_connections"] == logged
        # These are RDS's defaults, and it keeps their method: another one is a change at each `up`.
        applied = {each["name"]: each["applyMethod"] for each in group.inputs["parameters"]}
        of_defaults = {applied[each] for each in ("rds.force_ssl", "password_encryption")}
        assert of_defaults == {"pending-reboot"}
    subnets = graph.one("aws:rds/subnetGroup:SubnetGroup").inputs["subnetIds"]
    assert all("isolated" in each for each in subnets)
    assert len(subnets) == tier.zones


@pytest.mark.parametrize("version", tap_stack.DATABASE_VERSIONS)
def test_an_upgrade_changes_version_and_parameters_and_keeps_the_old_ones_until_it_is_done(
    version: str,
) -> None:
    graph = graph_of("prod", database_version=version)
    database = graph.one("aws:rds/instance:Instance").inputs
    assert (database["engineVersion"], database["allowMajorVersionUpgrade"]) == (version, True)
    families = {each.inputs["name"]: each.inputs["family"] for each in graph.of("ParameterGroup")}
    assert families[database["parameterGroupName"]] == f"postgres{version}"
    # RDS refuses to delete a group that is in use until the maintenance window.
    assert families.keys() == {
        each.inputs["name"] for each in graph_of("prod").of("ParameterGroup")
    }


def test_more_storage_is_a_change_that_reaches_the_database() -> None:
    for size in ("20", "399", "400"):
        database = graph_of("prod", database_gb=size).one("aws:rds/instance:Instance")
        assert "allocatedStorage" not in database.ignore_changes
        assert database.inputs["allocatedStorage"] == int(size)
        assert database.inputs["maxAllocatedStorage"] == 5 * int(size)
        # From 400 GB on gp3 is striped, and the provider would send the IOPS of before.
        assert database.inputs.get("iops") == (12_000 if int(size) >= 400 else None)


def test_enhanced_monitoring_may_create_its_log_group_by_the_arn_that_logs_checks(
    graph: Graph,
) -> None:
    role = graph.one("RolePolicy", "database-monitoring-role-policy").inputs["policy"]
    for statement in statements(role):
        assert statement["Resource"].endswith(":log-group:RDSOSMetrics:*")


def test_the_final_snapshot_is_new_in_each_life_of_the_stack_and_its_key_outlives_it(
    graph: Graph, env: str
) -> None:
    database = graph.one("aws:rds/instance:Instance").inputs
    key = graph.one("aws:kms/key:Key", "encryption-key")
    vpc = graph.one("aws:ec2/vpc:Vpc")
    if env == "dev":
        assert "finalSnapshotIdentifier" not in database
    else:
        name = database["finalSnapshotIdentifier"]
        prefix = f"tap-stack-database-{env}-final-"
        assert name.startswith(prefix)
        assert name.removeprefix(prefix) == f"{vpc.name}-id"
    assert key.retain_on_delete is (env != "dev")
