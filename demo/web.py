"""The web environment's part of the demonstration: it runs, is broken, and mends under load."""

from __future__ import annotations

import base64
import json
import os
import signal
import time
from collections.abc import Callable, Mapping
from typing import Any

import psycopg

from demo.report import Report
from demo.visitors import Visitors
from taplocal import web
from taplocal.session import Session, web_group
from taplocal.web.processes import RECORD

WAIT_SECONDS = 60.0  # a guard against hanging
ENDS = ("Successful", "Failed", "Cancelled", "RollbackSuccessful", "RollbackFailed")
DECISION = "Setting the desired capacity to "  # an activity of a policy; then the number
CROWD = (2, 0.02)  # clients for each instance, and their pause: more than the policy's target
FEW = (2, 0.1)  # clients in all: 40 requests a second, of which one instance is to have 50
PACKAGE = "python3.11-pip"  # that each instance installs; there is no python4
GREETING = "visits."  # in the page; another version says it with another mark


def wait_until(look: Callable[[], Any]) -> Any:
    """The first result that is true; the last one if none comes."""
    deadline = time.monotonic() + WAIT_SECONDS
    while not (found := look()) and time.monotonic() < deadline:
        time.sleep(0.1)
    return found


class WebEnvironment:
    """What one can ask and do, by AWS's API and at the load balancer."""

    def __init__(self, session: Session):
        self.client, self.outputs = session.cloud.client, session.outputs
        self.scaling, self.rds = self.client("autoscaling"), self.client("rds")
        self.folder = session.folder
        self.url = session.state.web_url or ""
        self.authority = web.home(self.folder) / "authority" / "ca.pem"
        self.group = web_group(session.state).id
        (self.targets,) = self.described()["TargetGroupARNs"]
        self.database = self.outputs["database_name"]

    def visitors(self, clients: int = 3, pause: float = 0.05) -> Visitors:
        """A steady load."""
        return Visitors(self.url, self.authority, clients, pause)

    def page(self) -> str:
        """The page at /."""
        connection = self.visitors().connect()
        connection.request("GET", "/")
        text = connection.getresponse().read().decode()
        connection.close()
        return text

    def described(self) -> Any:
        """The group."""
        found = self.scaling.describe_auto_scaling_groups(AutoScalingGroupNames=[self.group])
        return found["AutoScalingGroups"][0]

    def healthy(self) -> list[str]:
        """The ids of the healthy targets."""
        found = self.client("elbv2").describe_target_health(TargetGroupArn=self.targets)
        states = found["TargetHealthDescriptions"]
        return sorted(x["Target"]["Id"] for x in states if x["TargetHealth"]["State"] == "healthy")

    def resize(self, count: int) -> list[str]:
        """Sets capacity and minimum, below which no policy goes; the targets when all serve."""
        self.scaling.update_auto_scaling_group(
            AutoScalingGroupName=self.group, MinSize=count, DesiredCapacity=count
        )
        wait_until(lambda: len(self.healthy()) == count == len(self.described()["Instances"]))
        return self.healthy()

    def decisions(self) -> list[tuple[int, str]]:
        """The capacities that policies have set, the newest first, and why."""
        told = self.scaling.describe_scaling_activities(AutoScalingGroupName=self.group)
        found = (each for each in told["Activities"] if each["Description"].startswith(DECISION))
        return [(int(x["Description"].removeprefix(DECISION)), x["Cause"]) for x in found]

    def new_version(self, change: Callable[[str], str]) -> str:
        """A version of the launch template whose script is changed."""
        ec2, policy = self.client("ec2"), self.described()["MixedInstancesPolicy"]
        template = policy["LaunchTemplate"]["LaunchTemplateSpecification"]
        (current,) = ec2.describe_launch_template_versions(
            LaunchTemplateId=template["LaunchTemplateId"], Versions=[template["Version"]]
        )["LaunchTemplateVersions"]
        data = current["LaunchTemplateData"]
        data["MetadataOptions"].pop("State", None)
        head, _, config = base64.b64decode(data["UserData"]).decode().partition("\n")
        cloud = json.loads(config)
        cloud["write_files"][0]["content"] = change(cloud["write_files"][0]["content"])
        text = f"{head}\n{json.dumps(cloud)}\n".encode()
        made = ec2.create_launch_template_version(
            LaunchTemplateId=template["LaunchTemplateId"],
            LaunchTemplateData={**data, "UserData": base64.b64encode(text).decode()},
        )
        return str(made["LaunchTemplateVersion"]["VersionNumber"])

    def refresh(self, version: str) -> Mapping[str, Any]:
        """Rolls the group to a version of its template; how that ended."""
        policy = self.described()["MixedInstancesPolicy"]
        specification = policy["LaunchTemplate"]["LaunchTemplateSpecification"]
        specification["Version"] = version
        specification.pop("LaunchTemplateName", None)
        preferences = {"MinHealthyPercentage": 100, "MaxHealthyPercentage": 200}
        begun = self.scaling.start_instance_refresh(
            AutoScalingGroupName=self.group,
            DesiredConfiguration={"MixedInstancesPolicy": policy},
            Preferences={**preferences, "AutoRollback": True},
        )

        def end() -> Any:
            (found,) = self.scaling.describe_instance_refreshes(
                AutoScalingGroupName=self.group, InstanceRefreshIds=[begun["InstanceRefreshId"]]
            )["InstanceRefreshes"]
            return found if found["Status"] in ENDS else None

        return dict(wait_until(end) or {"Status": "it did not end"})

    def groups(self, part: str) -> list[int]:
        """The process groups whose command has this text."""
        record = json.loads((web.home(self.folder) / RECORD).read_text())
        return [int(group) for group, command in record.items() if part in command]

    def kill(self, part: str) -> Callable[[], bool]:
        """Kills the oldest of these groups; whether another has come for it."""
        before = self.groups(part)
        os.killpg(before[0], signal.SIGKILL)

        def again() -> bool:
            now = self.groups(part)
            return before[0] not in now and not set(now) <= set(before)

        return again

    def secret(self) -> dict[str, str]:
        """The master's user and password."""
        arn = self.outputs["database_secret_arn"]
        text = self.client("secretsmanager").get_secret_value(SecretId=arn)["SecretString"]
        found: dict[str, str] = json.loads(text)
        return found

    def instance(self, name: str = "") -> Any:
        """The description of a database."""
        found = self.rds.describe_db_instances(DBInstanceIdentifier=name or self.database)
        return found["DBInstances"][0]

    def available(self, name: str = "") -> bool:
        """Waits for a database."""
        return bool(wait_until(lambda: self.instance(name)["DBInstanceStatus"] == "available"))

    def standby(self, wanted: bool) -> None:
        """Gives the database a standby, or takes it away, and waits for it."""
        self.rds.modify_db_instance(
            DBInstanceIdentifier=self.database, MultiAZ=wanted, ApplyImmediately=True
        )
        self.available()

    def snapshot(self, name: str) -> None:
        """Takes a snapshot and waits for it."""
        self.rds.create_db_snapshot(DBInstanceIdentifier=self.database, DBSnapshotIdentifier=name)
        self.rds.get_waiter("db_snapshot_available").wait(
            DBSnapshotIdentifier=name, WaiterConfig={"Delay": 0.1, "MaxAttempts": 600}
        )

    def connect(self, name: str = "", **options: Any) -> psycopg.Connection[Any]:
        """A connection as the master, over verified TLS unless told otherwise."""
        endpoint = self.instance(name)["Endpoint"]
        secret = self.secret()
        given: dict[str, Any] = {
            "host": endpoint["Address"],
            "hostaddr": "127.0.0.1",
            "port": endpoint["Port"],
            "dbname": "app",
            "user": secret["username"],
            "password": secret["password"],
            "sslmode": "verify-full",
            "sslrootcert": str(self.authority),
            "connect_timeout": 5,
            **options,
        }
        return psycopg.connect(**given, autocommit=True)

    def visits(self, name: str = "", **options: Any) -> set[str]:
        """The visits that a database has."""
        with self.connect(name, **options) as connection:
            return {str(row[0]) for row in connection.execute("SELECT id FROM visits")}


class Web:
    """The steps on one deployed environment."""

    def __init__(self, session: Session, report: Report, run_id: str):
        self.report, self.check, self.run_id = report, report.check, run_id
        self.client, self.outputs = session.cloud.client, session.outputs
        self.web = WebEnvironment(session)
        self.minimum = int(web_group(session.state).inputs["minSize"])
        self.known = self.web.decisions()  # those of policies that were told, or are old

    def run(self) -> None:
        """All steps in order."""
        self.web.resize(self.minimum)  # an earlier demonstration may have been interrupted
        clients, pause = CROWD
        with self.web.visitors(clients * self.minimum, pause) as crowd:
            for meanwhile in (self.network, self.closed, self.snapshots):
                meanwhile()
            self.grows()
        self.serves(crowd)
        self.rolls()
        self.mends()
        self.recovers()
        self.shrinks()

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
        database = self.web.instance()
        self.check("the database is encrypted", True, database["StorageEncrypted"])
        self.check("the database is public", False, database["PubliclyAccessible"])

    def closed(self) -> None:
        """Nobody comes in without TLS, the right authority, the right rights."""
        self.report.step("The database lets in only who should")
        self.check("without TLS", "refused", refused(lambda: self.web.visits(sslmode="disable")))
        trusted = os.path.realpath("/etc/ssl/certs/ca-certificates.crt")
        wrong = {"sslrootcert": trusted if os.path.exists(trusted) else "system"}
        self.check("by another authority", "refused", refused(lambda: self.web.visits(**wrong)))
        other = refused(lambda: self.web.visits(host="other.example.com"))
        self.check("under another name", "refused", other)
        wrong = {"user": "app", "password": "guessed"}
        self.check(
            "as the application, by a password",
            "refused",
            refused(lambda: self.web.visits(**wrong)),
        )

    def answered(self, visitors: Visitors) -> None:
        """Each request was."""
        self.check(f"failed of {visitors.answers} requests", {}, dict(visitors.failures))

    def kept(self, *visitors: Visitors) -> None:
        """What visitors wrote, as far as they were told so, is in the database."""
        acknowledged = set[str]().union(*(each.acknowledged for each in visitors))
        lost = acknowledged - self.web.visits()
        self.check(f"lost of {len(acknowledged)} acknowledged visits", 0, len(lost))

    def grows(self) -> None:
        """More visitors than its instances are for, for three minutes: a policy launches more."""
        self.report.step(f"Its load balancer answers at {self.web.url}: out to more instances")
        self.decided("more instances", lambda desired: desired > self.minimum)

    def serves(self, crowd: Visitors) -> None:
        """Each visitor was answered; from here on there is one instance more than the minimum."""
        self.answered(crowd)
        self.kept(crowd)
        count = self.minimum + 1
        self.check("healthy targets, each a process", count, len(self.web.resize(count)))

    def decided(self, what: str, right: Callable[[int], bool]) -> None:
        """Waits until a policy has decided something, and says why."""
        new = wait_until(lambda: [x for x in self.web.decisions() if x not in self.known])
        self.known += new
        desired, why = new[0] if new else (-1, "No policy has decided anything.")
        self.check(f"a policy: {what}", True, right(desired))
        self.report.say(f"{why} A minute of AWS takes a second here.")

    def rolls(self) -> None:
        """A new version replaces all instances, a bad one none; nobody notices."""
        self.report.step("Versions of the instances roll under load")
        before = self.web.described()["MixedInstancesPolicy"]["LaunchTemplate"]
        first, ids = before["LaunchTemplateSpecification"]["Version"], set(self.web.healthy())
        good = self.web.new_version(lambda script: script.replace(GREETING, "visits!"))
        bad = self.web.new_version(lambda script: script.replace(PACKAGE, "python4"))
        with self.web.visitors(*FEW) as visitors:
            self.check("a good version", "Successful", self.web.refresh(good)["Status"])
            self.check("... is in the page", True, "visits!" in self.web.page())
            kept = ids & set(self.web.healthy())
            self.check("... on instances that are all new", 0, len(kept))
            ended = self.web.refresh(bad)
            self.check("a version that does not start", "RollbackSuccessful", ended["Status"])
            self.check("... never served", True, "visits!" in self.web.page())
            self.check("back again", "Successful", self.web.refresh(first)["Status"])
        self.answered(visitors)

    def mends(self) -> None:
        """What is killed comes back, and no acknowledged visit is lost."""
        self.report.step("kill -9, under load")
        clients, _ = FEW
        count = len(self.web.resize(self.minimum + 1))  # those of the last version have ended
        with self.web.visitors(*FEW) as visitors:
            again = self.web.kill("gunicorn")
            back = wait_until(lambda: again() and len(self.web.healthy()) == count)
            self.check("an instance, and all are healthy again", True, bool(back))
            failed = visitors.failures.total()
            self.check("failed at most those in flight", True, failed <= clients)
            again = self.web.kill("/postgres -D")
            back = wait_until(lambda: again() and self.web.available())
            self.check("the database, and it is available", True, bool(back))
            wait_until(lambda: "visits" in self.web.page())
        self.kept(visitors)

    def recovers(self) -> None:
        """A snapshot brings deleted rows back; the master's password rotates under load."""
        self.report.step("A snapshot is restored, a password rotates, a standby takes over")
        rds, name = self.client("rds"), f"{self.run_id}-restored"
        before = self.web.visits()
        self.web.snapshot(self.run_id)
        with self.web.connect() as connection:
            connection.execute("DELETE FROM visits")
        rds.restore_db_instance_from_db_snapshot(
            DBInstanceIdentifier=name, DBSnapshotIdentifier=self.run_id
        )
        self.web.available(name)
        self.check("visits in the restored database", len(before), len(self.web.visits(name)))
        rds.delete_db_instance(DBInstanceIdentifier=name, SkipFinalSnapshot=True)
        rds.delete_db_snapshot(DBSnapshotIdentifier=self.run_id)
        had_standby, old = self.web.instance()["MultiAZ"], self.web.secret()["password"]
        self.web.standby(True)
        with self.web.visitors(*FEW) as visitors:
            self.client("secretsmanager").rotate_secret(
                SecretId=self.outputs["database_secret_arn"]
            )
            rotated = wait_until(lambda: self.web.secret()["password"] != old)
            self.check("the secret has another password", True, bool(rotated))
            self.check("the old one", "refused", refused(lambda: self.web.visits(password=old)))
            rds.reboot_db_instance(DBInstanceIdentifier=self.web.database, ForceFailover=True)
            self.check("available after a failover to a standby", True, self.web.available())
        self.web.standby(had_standby)
        self.kept(visitors)

    def shrinks(self) -> None:
        """Few visitors for long enough: a policy ends what is not needed."""
        self.report.step("In again, as the visitors were few for 15 minutes")
        self.web.scaling.update_auto_scaling_group(
            AutoScalingGroupName=self.web.group, MinSize=self.minimum
        )
        wait_until(lambda: len(self.web.described()["Instances"]) == self.minimum)
        self.decided("fewer instances", lambda desired: desired == self.minimum)
        self.check("healthy targets", self.minimum, len(self.web.healthy()))

    def snapshots(self) -> None:
        """The snapshot function: a dry run, a run, and a manual snapshot that it must not delete."""
        self.report.step("The daily snapshot, by the real function")
        manual = f"{self.run_id}-by-hand"
        self.web.snapshot(manual)
        before = self.names()
        self.check("a dry run creates none", True, self.invoke(dry_run=True)["dry_run"])
        self.check("... and deletes none", before, self.names())
        taken = self.invoke()["snapshot"]
        self.check("a run creates one", True, taken in self.names())
        self.check("the manual snapshot stays", True, manual in self.names())
        self.client("rds").delete_db_snapshot(DBSnapshotIdentifier=manual)

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


def refused(attempt: Callable[[], Any]) -> str:
    """ "refused" if the database refuses, else what the attempt returned."""
    try:
        return f"let in: {attempt()}"[:60]
    except psycopg.OperationalError:
        return "refused"
