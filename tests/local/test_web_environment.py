"""The web environment runs: load balancer, instances, database; broken in all ways, under load."""

from __future__ import annotations

import contextlib
import gzip
import json
import os
import random
import socket
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psycopg
import pytest
from botocore.exceptions import ClientError

from demo.web import PACKAGE, WebEnvironment, refused, wait_until
from taplocal import session, snapshots, web
from taplocal.errors import TapLocalError
from taplocal.session import Session
from taplocal.web import instances, pg_installed
from taplocal.web.processes import RECORD
from tests.local.conftest import ROOT, taplocal

KILLS = int(os.environ.get("WEB_KILLS", "4"))
CLIENTS = 4


@pytest.fixture(scope="module")
def environment(deployed: Session) -> Iterator[WebEnvironment]:
    """The environment, which has one instance again afterwards."""
    found = WebEnvironment(deployed)
    yield found
    found.resize(1)


@pytest.fixture
def running(environment: WebEnvironment) -> WebEnvironment:
    """The environment with two instances, of which no policy takes one away."""
    assert len(environment.resize(2)) == 2
    return environment


def test_what_is_registered_is_what_runs(running: WebEnvironment) -> None:
    elb = running.client("elbv2")
    (group,) = elb.describe_target_groups(TargetGroupArns=[running.targets])["TargetGroups"]
    checked = [group[f"{key}Count"] for key in ("HealthyThreshold", "UnhealthyThreshold")]
    assert [group["HealthCheckIntervalSeconds"], *checked] == [10, 2, 3]
    attributes = elb.describe_target_group_attributes(TargetGroupArn=running.targets)["Attributes"]
    assert {"Key": "deregistration_delay.timeout_seconds", "Value": "60"} in attributes
    described = running.described()
    assert described["TargetGroupARNs"] == [running.targets]
    assert {each["InstanceId"] for each in described["Instances"]} == set(running.healthy())
    told = running.scaling.describe_scaling_activities(AutoScalingGroupName=running.group)
    assert {each["StatusCode"] for each in told["Activities"]} <= {"Successful", "InProgress"}
    database = running.instance()
    assert (database["DBInstanceStatus"], database["MultiAZ"]) == ("available", False)
    assert database["MasterUserSecret"]["SecretArn"] == running.outputs["database_secret_arn"]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can change the user")
def test_as_root_instances_and_databases_are_different_users(running: WebEnvironment) -> None:
    """So that an instance can neither read the database's files nor end its processes."""
    may_run = instances.user_of(web.home(running.folder) / "instances")
    for part, user in {"gunicorn": may_run or 0, "/postgres -D": pg_installed.NOBODY}.items():
        assert {Path(f"/proc/{x}").stat().st_uid for x in running.groups(part)} == {user}
    assert len({0, instances.USER, pg_installed.NOBODY}) == 3


def test_a_request_is_answered_measured_and_logged(
    running: WebEnvironment, deployed: Session
) -> None:
    with running.visitors() as visitors:
        wait_until(lambda: len(visitors.acknowledged) > 20)
    assert not visitors.failures
    assert visitors.acknowledged <= running.visits()
    s3 = deployed.cloud.client("s3")
    balancer = running.client("elbv2").describe_load_balancers()["LoadBalancers"][0]
    attributes = running.client("elbv2").describe_load_balancer_attributes(
        LoadBalancerArn=balancer["LoadBalancerArn"]
    )["Attributes"]
    bucket = next(x["Value"] for x in attributes if x["Key"] == "access_logs.s3.bucket")
    account = balancer["LoadBalancerArn"].split(":")[4]
    prefix = f"balancer/AWSLogs/{account}/elasticloadbalancing/{deployed.cloud.region}/"

    def lines() -> list[str]:
        found = s3.list_objects_v2(Bucket=bucket, Prefix=prefix).get("Contents", [])
        bodies = (s3.get_object(Bucket=bucket, Key=each["Key"])["Body"].read() for each in found)
        return [line for body in bodies for line in gzip.decompress(body).decode().splitlines()]

    assert wait_until(
        lambda: sum("PUT http" in line for line in lines()) >= len(visitors.acknowledged)
    )
    assert len({line.split()[4] for line in lines() if "PUT http" in line}) >= 2  # both targets

    def metrics() -> set[str]:
        listed = deployed.cloud.client("cloudwatch").list_metrics(Namespace="AWS/ApplicationELB")
        return {x["MetricName"] for x in listed["Metrics"]}

    expected = {"RequestCount", "TargetResponseTime", "HealthyHostCount"}
    assert wait_until(lambda: expected <= metrics()), metrics()  # they come after the access log


def test_the_database_refuses_who_should_not_come(running: WebEnvironment) -> None:
    assert running.visits() is not None
    wrong = (
        {"sslmode": "disable"},
        {"host": "other.example.com"},
        {"password": "guessed"},
        {"user": "app", "password": "guessed"},
        {"user": "nobody"},
    )
    for options in wrong:
        assert refused(lambda options=options: running.visits(**options)) == "refused", options  # type: ignore[misc]


def test_an_instance_has_its_own_rights_alone(running: WebEnvironment, deployed: Session) -> None:
    """Its role reads its own secret and connects as the application, and no more."""
    role = deployed.cloud.client("iam").get_role(RoleName=running.group)["Role"]["Arn"]
    keys = deployed.cloud.client("sts").assume_role(RoleArn=role, RoleSessionName="tests")[
        "Credentials"
    ]
    import boto3

    own = boto3.Session(
        keys["AccessKeyId"], keys["SecretAccessKey"], keys["SessionToken"], deployed.cloud.region
    )
    url = deployed.cloud.emulator.url
    secrets = own.client("secretsmanager", endpoint_url=url)
    assert secrets.get_secret_value(SecretId=running.outputs["database_secret_arn"])
    foreign = deployed.cloud.client("secretsmanager").create_secret(
        Name="foreign", SecretString="x"
    )["ARN"]
    attempts: tuple[Callable[[], Any], ...] = (
        lambda: secrets.get_secret_value(SecretId=foreign),
        lambda: own.client("dynamodb", endpoint_url=url).list_tables(),
        lambda: own.client("ec2", endpoint_url=url).describe_instances(),
    )
    for attempt in attempts:
        with pytest.raises(Exception, match=r"AccessDenied|UnauthorizedOperation|not authorized"):
            attempt()
    endpoint = running.instance()["Endpoint"]
    for user, expected in (("app", "app"), ("master", "refused")):
        token = own.client("rds").generate_db_auth_token(
            endpoint["Address"], endpoint["Port"], user
        )

        def who(user: str = user, token: str = token) -> str:
            with running.connect(user=user, password=token) as connection:
                return str(connection.execute("SELECT current_user").fetchall()[0][0])

        assert (who() if expected == "app" else refused(who)) == expected
    deployed.cloud.client("secretsmanager").delete_secret(
        SecretId=foreign, ForceDeleteWithoutRecovery=True
    )


def test_versions_roll_under_load_and_a_bad_one_goes_back(running: WebEnvironment) -> None:
    mixed = running.described()["MixedInstancesPolicy"]["LaunchTemplate"]
    first, before = mixed["LaunchTemplateSpecification"]["Version"], set(running.healthy())
    good = running.new_version(lambda script: script.replace("visits.", "visits!"))
    bad = running.new_version(lambda script: script.replace(PACKAGE, "python4"))
    with running.visitors() as visitors:
        assert running.refresh(good)["Status"] == "Successful"
        assert "visits!" in running.page()
        assert before.isdisjoint(running.healthy())
        ended = running.refresh(bad)
        assert ended["Status"] == "RollbackSuccessful"
        assert "No match for argument: python4" in ended["StatusReason"]
        assert running.refresh(first)["Status"] == "Successful"
        assert "visits." in running.page()
    assert not visitors.failures
    assert len(visitors.acknowledged) > 20
    assert visitors.acknowledged <= running.visits()


def test_an_instance_is_replaced_when_somebody_says_so(running: WebEnvironment) -> None:
    sick, ended = running.healthy()
    with running.visitors() as visitors:
        running.scaling.set_instance_health(InstanceId=sick, HealthStatus="Unhealthy")
        running.scaling.terminate_instance_in_auto_scaling_group(
            InstanceId=ended, ShouldDecrementDesiredCapacity=False
        )
        assert wait_until(
            lambda: len(running.healthy()) == 2 and not {sick, ended} & set(running.healthy())
        )
    assert set(visitors.failures) <= {"503"}  # while both were away at once
    assert visitors.acknowledged <= running.visits()


def test_a_parameter_has_a_value_that_its_version_knows(running: WebEnvironment) -> None:
    """RDS for PostgreSQL 18 has stages of a connection in `log_connections`, and no 1."""
    for version, values in (("17", ["1"]), ("18", ["all", "receipt,authorization"])):
        named = {"DBParameterGroupName": f"tests-{version}"}
        made = {**named, "DBParameterGroupFamily": f"postgres{version}", "Description": "tests"}
        running.rds.create_db_parameter_group(**made)
        parameter = {"ParameterName": "log_connections", "ApplyMethod": "immediate"}

        def change(value: str, named: Any = named, parameter: Any = parameter) -> None:
            changed = [{**parameter, "ParameterValue": value}]
            running.rds.modify_db_parameter_group(**named, Parameters=changed)

        for value in values:
            change(value)
        if version == "18":
            with pytest.raises(ClientError, match="Invalid parameter value: 1 for: log_connec"):
                change("1")
        running.rds.delete_db_parameter_group(**named)


def test_a_snapshot_brings_deleted_rows_back(running: WebEnvironment) -> None:
    with running.visitors() as visitors:
        wait_until(lambda: len(visitors.acknowledged) > 5)
    name = f"tests-{random.randrange(10**9)}"  # noqa: S311
    running.snapshot(name)
    before = running.visits()
    with running.connect() as connection:
        connection.execute("DELETE FROM visits")
    assert running.visits() == set()
    running.rds.restore_db_instance_from_db_snapshot(
        DBInstanceIdentifier=name, DBSnapshotIdentifier=name
    )
    assert running.available(name)
    assert running.visits(name) == before >= visitors.acknowledged
    own = running.instance()["DbiResourceId"], running.instance()["Endpoint"]["Port"]
    listed = {each.name: each for each in snapshots.listed(ROOT, running.folder)}
    assert (listed[name].kind, listed[name].of) == (snapshots.DATABASE, running.database)
    assert snapshots.restore(ROOT, name, running.folder) == listed[name]
    assert running.visits() == before
    assert (running.instance()["DbiResourceId"], running.instance()["Endpoint"]["Port"]) == own
    with running.visitors() as visitors:
        wait_until(lambda: len(visitors.acknowledged) > 5)
    assert visitors.acknowledged <= running.visits()
    running.rds.delete_db_instance(DBInstanceIdentifier=name, SkipFinalSnapshot=True)
    running.rds.delete_db_snapshot(DBSnapshotIdentifier=name)
    assert one_is_left(running)
    assert wait_until(lambda: not (web.home(running.folder) / "snapshots" / name).exists())


def one_is_left(running: WebEnvironment) -> bool:
    """Waits until the files of the stack's own database are the only ones."""
    databases = web.home(running.folder) / "databases"
    own = running.instance()["DbiResourceId"]
    return bool(wait_until(lambda: [each.name for each in databases.iterdir()] == [own]))


def test_a_database_made_anew_under_its_name_leaves_nothing(running: WebEnvironment) -> None:
    name, master = f"tests-{random.randrange(10**9)}", {"MasterUsername": "master"}  # noqa: S311
    master["MasterUserPassword"] = "0123456789"
    for _ in range(3):
        running.rds.create_db_instance(
            DBInstanceIdentifier=name, DBInstanceClass="db.t4g.micro", Engine="postgres", **master
        )
        assert running.available(name)
        running.rds.delete_db_instance(DBInstanceIdentifier=name, SkipFinalSnapshot=True)
    assert one_is_left(running)
    record = json.loads((web.home(running.folder) / RECORD).read_text())
    assert sum("/postgres -D" in command for command in record.values()) == 1


def test_a_snapshot_of_everything_has_the_database(running: WebEnvironment) -> None:
    with running.visitors() as visitors:
        wait_until(lambda: len(visitors.acknowledged) > 5)
    before, name = running.visits(), f"all-{random.randrange(10**9)}"  # noqa: S311
    snapshots.take(ROOT, name, running.folder)
    assert wait_until(lambda: len(running.healthy()) == 2)
    assert running.visits() == before >= visitors.acknowledged
    with running.connect() as connection:
        connection.execute("DELETE FROM visits")
    snapshots.restore(ROOT, name, running.folder)
    assert wait_until(lambda: len(running.healthy()) == 2)
    assert running.visits() == before


def test_a_password_rotates_and_the_database_restarts_under_load(running: WebEnvironment) -> None:
    old = running.secret()["password"]
    with running.visitors() as visitors:
        arn = running.outputs["database_secret_arn"]
        running.client("secretsmanager").rotate_secret(SecretId=arn)
        assert wait_until(lambda: running.secret()["password"] != old)
        with pytest.raises(psycopg.OperationalError):
            running.visits(password=old)
        assert running.available()  # no other one is restarted
        running.rds.reboot_db_instance(DBInstanceIdentifier=running.database)
        assert running.available()
    assert visitors.acknowledged <= running.visits()


def test_a_standby_takes_over_under_load(running: WebEnvironment) -> None:
    running.standby(True)
    assert running.instance()["MultiAZ"]
    with running.visitors() as visitors:
        wait_until(lambda: len(visitors.acknowledged) > 10)
        running.rds.reboot_db_instance(DBInstanceIdentifier=running.database, ForceFailover=True)
        assert running.available()
        before = len(visitors.acknowledged)
        assert wait_until(lambda: len(visitors.acknowledged) > before + 10)
    running.standby(False)
    assert visitors.acknowledged <= running.visits()
    log = (running.folder / web.LOG).read_text()
    assert "the standby has taken over" in log


def test_capacity_follows_the_load_and_nobody_notices(running: WebEnvironment) -> None:
    running.resize(1)
    before = running.decisions()
    with running.visitors(clients=8, pause=0) as visitors:  # far more than 3,000 a minute
        assert wait_until(lambda: len(running.healthy()) == 2)
    assert wait_until(lambda: len(running.healthy()) == 1)  # after 15 minutes of quiet, in seconds
    assert not visitors.failures
    (in_, in_why), (out, out_why) = running.decisions()[: -len(before) or None]
    assert (out, in_) == (2, 1)
    assert "was above its target for 3 minutes" in out_why
    assert "all metrics were low for 15 minutes" in in_why
    assert len(running.resize(2)) == 2


def test_a_spot_instance_is_interrupted_and_nobody_notices(running: WebEnvironment) -> None:
    before = running.healthy()
    with running.visitors() as visitors:
        wait_until(lambda: len(visitors.acknowledged) > 5)
        shown = taplocal("interrupt", "--data", str(running.folder), "--json")
        taken = json.loads(shown.stdout)["instance"]
        assert taken in before
        assert wait_until(lambda: len(running.healthy()) == 2 and taken not in running.healthy())
        wrong = taplocal("interrupt", taken, "--data", str(running.folder))
        assert f"{taken} is not" in wrong.stderr and "there are: i-" in wrong.stderr
    assert not visitors.failures
    assert visitors.acknowledged <= running.visits()
    told = running.scaling.describe_scaling_activities(AutoScalingGroupName=running.group)
    causes = [x["Cause"] for x in told["Activities"] if taken in x["Description"]]
    assert any("rebalance notice" in each for each in causes)


def test_a_scheduled_action_changes_the_capacity(running: WebEnvironment) -> None:
    named = {"AutoScalingGroupName": running.group, "ScheduledActionName": "tests"}
    running.scaling.put_scheduled_update_group_action(
        **named,
        StartTime=datetime.now(UTC) + timedelta(seconds=6),  # which AWS has in whole seconds
        MinSize=1,
        DesiredCapacity=1,
    )
    running.scaling.put_scheduled_update_group_action(
        AutoScalingGroupName=running.group,
        ScheduledActionName="tests-daily",
        Recurrence="0 8 * * *",
        TimeZone="Europe/Berlin",
        MinSize=1,
    )

    def actions() -> dict[str, Any]:
        found = running.scaling.describe_scheduled_actions(AutoScalingGroupName=running.group)
        return {x["ScheduledActionName"]: x for x in found["ScheduledUpdateGroupActions"]}

    assert actions()["tests-daily"]["StartTime"].hour in (6, 7)
    assert wait_until(lambda: "tests" not in actions())
    assert wait_until(lambda: len(running.healthy()) == 1)
    running.scaling.delete_scheduled_action(**{**named, "ScheduledActionName": "tests-daily"})
    assert not actions()


def test_up_says_that_another_program_has_the_port(running: WebEnvironment) -> None:
    """Else visitors would be somebody else's."""
    address = urlsplit(running.url)
    os.kill(session.opened(ROOT, "dev", running.folder).cloud.emulator.pid, 9)
    quiet: Any = {"folder": running.folder, "say": lambda _: None, "report": lambda _: None}

    def taken() -> socket.socket | None:
        with contextlib.suppress(OSError):
            return socket.create_server((address.hostname, address.port))
        return None

    with (
        wait_until(taken),
        pytest.raises(TapLocalError, match=f"{address.netloc}: .*free the port"),
    ):
        session.up(ROOT, "dev", **quiet)
    session.up(ROOT, "dev", **quiet)
    assert "visits" in running.page()


@pytest.mark.parametrize("number", range(KILLS))
def test_killed_at_any_moment_it_ends_well(running: WebEnvironment, number: int) -> None:
    """`kill -9` of a part under load, then `up`: it serves, and no acknowledged visit is lost."""
    chosen = random.Random(number)  # noqa: S311
    part = ("supervisor", "gunicorn", "postgres", "emulator")[number % 4]
    with running.visitors(CLIENTS) as visitors:
        time.sleep(chosen.random())
        if part == "supervisor":
            os.kill(int((running.folder / web.FOLDER / "lock").read_text()), 9)
        elif part == "emulator":
            os.kill(session.opened(ROOT, "dev", running.folder).cloud.emulator.pid, 9)
        else:
            running.kill(part)
        time.sleep(chosen.random())
        session.up(ROOT, "dev", folder=running.folder, say=lambda _: None, report=lambda _: None)
    assert wait_until(lambda: len(running.healthy()) == 2) and running.available()
    assert visitors.acknowledged <= running.visits()
    assert "visits" in running.page()
