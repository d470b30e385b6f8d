"""The web environment's part of the demonstration: its resources, and the snapshot function."""

from __future__ import annotations

import json
from typing import Any

from demo.report import Report
from taplocal.session import Session


class Web:
    """The steps on one deployed environment."""

    def __init__(self, session: Session, report: Report, run_id: str):
        self.report, self.check, self.run_id = report, report.check, run_id
        self.client, self.outputs = session.cloud.client, session.outputs

    def run(self) -> None:
        """All steps in order."""
        self.network()
        self.snapshots()

    def network(self) -> None:
        """The subnets, the default security group and the database, as the emulator has them."""
        self.report.step("The web environment: a network, a load balancer, instances, a database")
        ec2, filters = self.client("ec2"), [{"Name": "vpc-id", "Values": [self.outputs["vpc_id"]]}]
        subnets = ec2.describe_subnets(Filters=filters)["Subnets"]
        zones = {each["AvailabilityZone"] for each in subnets}
        self.check("subnets: three tiers in each zone", 3 * len(zones), len(subnets))
        security_groups = ec2.describe_security_groups(Filters=filters)["SecurityGroups"]
        (default,) = (each for each in security_groups if each["GroupName"] == "default")
        rules = len(default["IpPermissions"]) + len(default.get("IpPermissionsEgress", []))
        self.check("rules of the default security group", 0, rules)
        database = self.client("rds").describe_db_instances(
            DBInstanceIdentifier=self.outputs["database_name"]
        )["DBInstances"][0]
        self.check("the database is encrypted", True, database["StorageEncrypted"])
        self.check("the database is public", False, database["PubliclyAccessible"])
        self.report.say(
            "no instance and no database runs locally: `make local` tests the application with "
            "gunicorn and PostgreSQL, through a crash and a rotated password"
        )

    def snapshots(self) -> None:
        """The snapshot function: a dry run, a run, and a manual snapshot that it must not delete."""
        self.report.step("The daily snapshot, by the real function on the emulated RDS")
        rds, database = self.client("rds"), self.outputs["database_name"]
        manual = f"{self.run_id}-by-hand"
        rds.create_db_snapshot(DBInstanceIdentifier=database, DBSnapshotIdentifier=manual)
        before = self.names()
        self.check("a dry run creates none", True, self.invoke(dry_run=True)["dry_run"])
        self.check("... and deletes none", before, self.names())
        taken = self.invoke()["snapshot"]
        self.check("a run creates one", True, taken in self.names())
        self.check("the manual snapshot stays", True, manual in self.names())
        rds.delete_db_snapshot(DBSnapshotIdentifier=manual)

    def invoke(self, **event: Any) -> Any:
        """Calls the function as the scheduler does, and waits for its response."""
        response = self.client("lambda").invoke(
            FunctionName=self.outputs["snapshots_function_name"],
            Qualifier="live",
            Payload=json.dumps(event).encode(),
        )
        return json.loads(response["Payload"].read())

    def names(self) -> set[str]:
        """The snapshots of the database."""
        found = self.client("rds").describe_db_snapshots(
            DBInstanceIdentifier=self.outputs["database_name"]
        )
        return {each["DBSnapshotIdentifier"] for each in found["DBSnapshots"]}
