"""The database as it is registered."""

from __future__ import annotations

import tap_stack
from tests.stack.conftest import (
    Graph,
)


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
    parameters = {
        each["name"]: each["value"] for each in graph.one("ParameterGroup").inputs["parameters"]
    }
    assert parameters["rds.force_ssl"] == "1"
    subnets = graph.one("aws:rds/subnetGroup:SubnetGroup").inputs["subnetIds"]
    assert all("isolated" in each for each in subnets)
    assert len(subnets) == tier.zones
