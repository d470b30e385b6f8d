"""Each setting changed and back on the local cloud: what is there is what there was before."""

from __future__ import annotations

import json
import os
import re
import threading
import time
from base64 import b64decode
from collections.abc import Iterator, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import ClientError

from demo.web import wait_until
from tap_stack import TapStackArgs
from taplocal import session
from taplocal.errors import TapLocalError
from taplocal.steps import Summary
from tests.local.conftest import ROOT

#: Settings that are changed in one run, each to another value than that of dev.
CHANGES: Mapping[str, Mapping[str, Any]] = {
    "values": {
        "alarm_emails": ["ops@acme.io"],
        "availability_objective": 99.5,
        "latency_ms": 900,
        "latency_objective": 98.5,
        "page_emails": ["pager@acme.io"],
        "api_client": "sdk",
        "api_concurrency": 80,
        "backup_days": 9,
        "budget_usd": 77,
        "canary_inconclusive": "roll_back",
        "canary_minutes": 2,
        "cors_origins": ["https://app.acme.io"],
        "callback_urls": ["https://app.acme.io/cb"],
        "logout_urls": ["https://app.acme.io/out"],
        "concurrency_quota": 2_000,
        "cost_center": "research",
        "database_class": "db.t4g.small",
        "database_gb": 30,
        "detailed_metrics": True,
        "files_concurrency": 3,
        "files_analytics": True,
        "files_events": True,
        "files_malware_protection": True,
        "files_table_capacity": 50,
        "files_table_scaling": 2,
        "idempotency_hours": 12,
        "log_retention_days": 30,
        "machine_clients": {"robot": ["items/read"]},
        "memory_mb": 256,
        "mfa": "OFF",
        "noncurrent_days": 3,
        "owner": "blue",
        "provisioned_concurrency_min": 1,
        "provisioned_concurrency_max": 2,
        "snapshot_days": 3,
        "snapshot_keep": 3,
        "synthetics": True,
        "tags": {"Team": "blue"},
        "throttle_burst": 77,
        "throttle_rate": 33,
        "timeout_seconds": 11,
        "upload_max_mb": 50,
        "upload_types": ["image/png"],
        "versions_kept": 3,
    },
    "names": {
        "table_name": "other-items",
        "files_table_name": "other-files",
        "files_bucket_name": "other-files-bucket",
        "project": "other",
    },
    "network": {
        "zones": 3,
        "nat": "per_az",
        "disjoint_cidrs": ["10.8.0.0/16"],
        "interface_endpoints": ["logs"],
        "bastion_cidrs": ["198.51.100.0/24"],
        "bastion_hours": "8-18",
        "instances_max": 3,
        "instance_types": ["t4g.small"],
        "spot_percent": 0,
        "waf": True,
    },
    "domains": {
        "plain_http": False,
        "domain_name": "app.acme.io",
        "alternative_names": ["www.acme.io"],
        "hosted_zone_id": "Z0123456789ABCDEFGHIJ",
        "permissions_boundary": "arn:aws:iam::aws:policy/AdministratorAccess",
        "api_domain_name": "api.acme.io",
        "api_default_endpoint": True,
        "email_from": "shop@acme.io",
        "email_identity_arn": "arn:aws:ses:us-east-1:000000000000:identity/acme.io",
        "threat_protection": True,
        "canary_percent": 50,
    },
    "certificates": {
        "plain_http": False,
        "certificate_arn": "arn:aws:acm:us-east-1:000000000000:certificate/12345678-1234-1234-1234-123456789012",
        "api_domain_name": "api.acme.io",
        "api_certificate_arn": "arn:aws:acm:us-east-1:000000000000:certificate/12345678-1234-1234-1234-123456789013",
        "instances_min": 2,
        "database_multi_az": True,
        "database_version": "18",
    },
    "systems": {"systems": ["files"]},
    "protected": {"deletion_protection": True},
}
#: Not changed and back: another environment is another stack, an image stays once it was chosen,
#: RDS keeps a database in its network, and EC2 a CIDR block in its zone.
ONE_WAY = {"environment_suffix", "image_id", "vpc_cidr", "zone_names"}
#: Inputs that count up: a version that was made is not unmade.
COUNTED = {"version", "functionVersion"}


def test_all_settings_are_here() -> None:
    named = {key for change in CHANGES.values() for key in change}
    assert named | ONE_WAY == {each.name for each in fields(TapStackArgs)}


def lasting(inputs: Any) -> Any:
    """The inputs without those that count up."""
    if isinstance(inputs, list):
        return [lasting(each) for each in inputs]
    if not isinstance(inputs, dict):
        return inputs
    script = {"userData": b64decode(inputs["userData"]).decode()} if "userData" in inputs else {}
    return {key: lasting(x) for key, x in {**inputs, **script}.items() if key not in COUNTED}


def texts(value: Any) -> Iterator[str]:
    """All texts in a value."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for each in value.values() if isinstance(value, dict) else value:
            yield from texts(each)


def parting(*values: Any) -> list[str]:
    """Where two values begin to differ."""
    shown = [json.dumps(each) for each in values]
    at = len(os.path.commonprefix(shown))  # noqa: RUF071 - of any texts
    return [each[max(at - 60, 0) : at + 60] for each in shown]


class Local:
    """A local cloud of its own."""

    def __init__(self, folder: Path):
        self.folder = folder

    def up(self, change: Mapping[str, Any], ignore_protect: bool = True) -> Summary:
        """Deploys dev with some settings changed, whatever happens to data."""
        config = {key: x if isinstance(x, str) else json.dumps(x) for key, x in change.items()}
        return session.up(
            ROOT,
            "dev",
            folder=self.folder,
            config=config,
            ignore_protect=ignore_protect,
            say=lambda _: None,
            report=lambda _: None,
        )[1]

    def shown(self) -> dict[str, Any]:
        """All that is deployed, in which the ids of one life stand as the names of what has them."""
        resources = session.opened(ROOT, "dev", self.folder).state.resources
        assert not [each.name for each in resources.values() if each.pending]
        text = json.dumps({urn: [lasting(x.inputs), x.protect] for urn, x in resources.items()})
        ids = {  # of a value that several have, whatever was made first, the same one's name
            value: f"<{each.name} {number}>"
            for _, each in sorted(resources.items())
            for number, value in enumerate([each.id, *texts(each.outputs)])
            if len(value) > 5 and value not in each.inputs.values()
        }
        for value in sorted(ids, key=len, reverse=True):
            text = text.replace(value, ids[value])
        shown: dict[str, Any] = json.loads(text)
        return shown


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Local]:
    """The stack as dev has it."""
    own = Local(tmp_path_factory.mktemp("settings"))
    try:
        own.up({})
        yield own
    finally:
        session.down(ROOT, None, folder=own.folder, report=lambda _: None)


@pytest.mark.parametrize("name", CHANGES)
def test_changed_and_back(local: Local, name: str) -> None:
    before = local.shown()
    assert local.up(CHANGES[name]).counts().keys() - {"unchanged"}
    assert local.up(CHANGES[name]).counts().keys() == {"unchanged"}
    assert local.shown() != before
    local.up({})
    after = local.shown()
    changed = [urn for urn in {**before, **after} if before.get(urn) != after.get(urn)]
    assert {urn: parting(before.get(urn), after.get(urn)) for urn in changed} == {}


def test_zones_are_chosen_once(local: Local) -> None:
    """Pulumi makes the subnets of other zones before it deletes those that have their CIDR blocks."""
    before = local.shown()
    with pytest.raises(TapLocalError, match=r"InvalidSubnet.Conflict"):
        local.up({"zone_names": ["us-east-1b", "us-east-1c"]})
    local.up({})
    assert local.shown() == before


def test_a_network_is_refused_what_ec2_refuses(local: Local) -> None:
    ec2 = session.opened(ROOT, "dev", local.folder).cloud.client("ec2")
    vpc = ec2.create_vpc(CidrBlock="10.9.0.0/16")["Vpc"]["VpcId"]
    subnet = ec2.create_subnet(VpcId=vpc, CidrBlock="10.9.0.0/20")["Subnet"]["SubnetId"]
    made = {"AllocationId": ec2.allocate_address()["AllocationId"], "SubnetId": subnet}
    gateway = ec2.create_nat_gateway(**made)["NatGateway"]["NatGatewayId"]
    table = ec2.create_route_table(VpcId=vpc)["RouteTable"]["RouteTableId"]
    way = {"RouteTableId": table, "DestinationCidrBlock": "0.0.0.0/0", "NatGatewayId": gateway}
    ec2.create_route(**way)
    with pytest.raises(ClientError, match=r"Resource.AlreadyAssociated"):
        ec2.create_nat_gateway(**made)
    with pytest.raises(ClientError, match="RouteAlreadyExists"):
        ec2.create_route(**way)
    with pytest.raises(ClientError, match=r"InvalidSubnet.Conflict"):
        ec2.create_subnet(VpcId=vpc, CidrBlock="10.9.8.0/24")
    small = ec2.create_subnet(VpcId=vpc, CidrBlock="10.9.64.0/28")["Subnet"]["SubnetId"]
    elb = session.opened(ROOT, "dev", local.folder).cloud.client("elbv2")
    with pytest.raises(ClientError, match="InvalidSubnet"):
        elb.create_load_balancer(Name="small", Subnets=[small])
    ec2.delete_subnet(SubnetId=small)
    ec2.delete_nat_gateway(NatGatewayId=gateway)
    again = ec2.create_nat_gateway(**made)["NatGateway"]["NatGatewayId"]
    ec2.delete_nat_gateway(NatGatewayId=again)
    ec2.delete_route_table(RouteTableId=table)
    ec2.delete_subnet(SubnetId=subnet)
    ec2.delete_vpc(VpcId=vpc)
    ec2.release_address(AllocationId=made["AllocationId"])


def group_of(local: Local) -> Any:
    """The group of the web tier."""
    scaling = session.opened(ROOT, "dev", local.folder).cloud.client("autoscaling")
    names = ["tap-stack-web-dev"]
    (group,) = scaling.describe_auto_scaling_groups(AutoScalingGroupNames=names)[
        "AutoScalingGroups"
    ]
    return group


def test_other_types_and_another_share_of_spot_keep_the_version(local: Local) -> None:
    """Each is a refresh of the instances, to the version that the group has."""
    local.up({"owner": "blue"})  # another version of the template
    policy = group_of(local)["MixedInstancesPolicy"]
    version = policy["LaunchTemplate"]["LaunchTemplateSpecification"]["Version"]
    assert int(version) > 1
    before = {each["InstanceId"] for each in group_of(local)["Instances"]}
    local.up({"owner": "blue", "instance_types": ["t4g.small"], "spot_percent": 0})
    policy = group_of(local)["MixedInstancesPolicy"]
    template = policy["LaunchTemplate"]
    assert template["LaunchTemplateSpecification"]["Version"] == version
    assert [each["InstanceType"] for each in template["Overrides"]] == ["t4g.small"]
    assert policy["InstancesDistribution"]["OnDemandPercentageAboveBaseCapacity"] == 100
    assert before.isdisjoint(each["InstanceId"] for each in group_of(local)["Instances"])
    local.up({})


def test_a_mend_is_rolled_out_while_an_alarm_of_the_fault_is_in_alarm(local: Local) -> None:
    """A refresh with that alarm is refused."""
    cloud = session.opened(ROOT, "dev", local.folder).cloud
    watch, named, mended = cloud.client("cloudwatch"), "tap-stack-web-5xx-dev", threading.Event()
    (alarm,) = watch.describe_alarms(AlarmNames=[named])["MetricAlarms"]
    bad = {"MetricName": alarm["MetricName"], "Dimensions": alarm["Dimensions"], "Value": 99}

    def fail() -> None:
        while not mended.wait(0.1):  # for ten seconds: this process may stand still
            data = [{**bad, "Timestamp": time.time() + each} for each in range(10)]
            watch.put_metric_data(Namespace=alarm["Namespace"], MetricData=data)

    failing = threading.Thread(target=fail)
    failing.start()
    try:
        firing = {"AlarmNames": [named], "StateValue": "ALARM"}
        assert wait_until(lambda: watch.describe_alarms(**firing)["MetricAlarms"])
        with pytest.raises(ClientError, match=f"must not be in ALARM: {named}"):
            cloud.client("autoscaling").start_instance_refresh(
                AutoScalingGroupName="tap-stack-web-dev",
                Preferences={"AlarmSpecification": {"Alarms": [named]}},
            )
        local.up({"owner": "green"})
        assert watch.describe_alarms(**firing)["MetricAlarms"]
    finally:
        mended.set()
        failing.join()
    local.up({})


@pytest.mark.parametrize(
    ("setting", "lost"),
    [
        ("table_name", ["api-items ... replaced, as these inputs change: name"]),
        ("files_table_name", ["files-table ... replaced, as these inputs change: name"]),
        (
            "files_bucket_name",
            ["files-uploads-bucket ... replaced, as these inputs change: bucket"],
        ),
        (
            "project",
            [
                "identity-pool ... replaced, as these inputs change: name",
                "monitoring-dashboard ... replaced, as these inputs change: dashboardName",
                *(
                    f"{each}-bucket ... replaced, as these inputs change: bucket"
                    for each in ("files-logs", "files-uploads", "storage-assets", "storage-logs")
                ),
                *(
                    f"{each} ... replaced, as these inputs change: name"
                    for each in ("api-items", "files-table")
                ),
                "database-instance ... replaced, as these inputs change: dbSubnetGroupName, identifier",
            ],
        ),
        (
            "systems",
            [
                f"{each} ... deleted"
                for each in (
                    "identity-pool",
                    "api-items",
                    "database-instance",
                    "storage-assets-bucket",
                    "storage-logs-bucket",
                )
            ],
        ),
    ],
)
def test_what_would_lose_data_changes_nothing(local: Local, setting: str, lost: list[str]) -> None:
    change = {**CHANGES["names"], **CHANGES["systems"]}[setting]
    before = local.shown()
    with pytest.raises(TapLocalError, match="nothing was changed") as error:
        local.up({setting: change, "throttle_rate": 44}, ignore_protect=False)
    first, *lines, way_on = str(error.value).split("\n")
    assert f"Settings that changed: tap-stack:{setting}, tap-stack:throttle_rate." in first
    found = [re.sub(r".* (\S+) \(.*\) is protected and would be", r"\1 ...", x) for x in lines]
    assert sorted(found) == sorted(lost)
    assert "docs/operations.md" in way_on
    assert "--ignore-protect" in way_on
    assert local.shown() == before
