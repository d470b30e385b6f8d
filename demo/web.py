"""The web environment's part of the demonstration: what is there, and the snapshot function at work."""

from __future__ import annotations

import json
from typing import Any

from demo.report import Report
from taplocal.session import Session


class Web:
    """The steps on one deployed environment."""

    def __init__(self, session: Session, report: Report, mark: str):
        self.report, self.check, self.mark = report, report.check, mark
        self.client, self.outputs = session.cloud.client, session.outputs

    def run(self) -> None:
        """All steps in order."""
        self.network()
        self.snapshots()

    def network(self) -> None:
        """Subnets, the emptied default group, listeners: as the emulated EC2 and ELB have them."""
        self.report.step("The web environment: a network, a load balancer, instances, a database")
        ec2, here = self.client("ec2"), [{"Name": "vpc-id", "Values": [self.outputs["vpc_id"]]}]
        subnets = ec2.describe_subnets(Filters=here)["Subnets"]
        zones = {each["AvailabilityZone"] for each in subnets}
        self.check("subnets: three tiers in each zone", 3 * len(zones), len(subnets))
        groups = ec2.describe_security_groups(Filters=here)["SecurityGroups"]
        (unused,) = (each for each in groups if each["GroupName"] == "default")
        rules = len(unused["IpPermissions"]) + len(unused.get("IpPermissionsEgress", []))
        self.check("rules of the default security group", 0, rules)
        database = self.client("rds").describe_db_instances(
            DBInstanceIdentifier=self.outputs["database_name"]
        )["DBInstances"][0]
        self.check("the database is encrypted", True, database["StorageEncrypted"])
        self.check("the database is public", False, database["PubliclyAccessible"])
        self.report.say(
            "no instance and no database runs here: `make local` tries the application, its real "
            "gunicorn and PostgreSQL, through a crash and a rotated password"
        )

    def snapshots(self) -> None:
        """The snapshot function takes one, says what it would take, and leaves those of others."""
        self.report.step("The nightly snapshot, by the real function on the emulated RDS")
        rds, database = self.client("rds"), self.outputs["database_name"]
        foreign = f"{self.mark}-by-hand"
        rds.create_db_snapshot(DBInstanceIdentifier=database, DBSnapshotIdentifier=foreign)
        before = self.names()
        self.check("a dry run takes none", True, self.invoke(dry_run=True)["dry_run"])
        self.check("... nor deletes one", before, self.names())
        taken = self.invoke()["snapshot"]
        self.check("a run takes one", True, taken in self.names())
        self.check("somebody else's stays", True, foreign in self.names())
        rds.delete_db_snapshot(DBSnapshotIdentifier=foreign)

    def invoke(self, **event: Any) -> Any:
        """Calls the function as the scheduler does, and waits for its answer."""
        answer = self.client("lambda").invoke(
            FunctionName=self.outputs["snapshots_function_name"],
            Qualifier="live",
            Payload=json.dumps(event).encode(),
        )
        return json.loads(answer["Payload"].read())

    def names(self) -> set[str]:
        """The snapshots of the database."""
        found = self.client("rds").describe_db_snapshots(
            DBInstanceIdentifier=self.outputs["database_name"]
        )
        return {each["DBSnapshotIdentifier"] for each in found["DBSnapshots"]}
