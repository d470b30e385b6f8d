"""A name that somebody else's resource has is refused, stays refused, and nothing is lost by it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from taplocal.engine import Deployment
from taplocal.errors import TapLocalError
from taplocal.program import Registration
from taplocal.resources import HANDLERS
from taplocal.resources.base import OWNER, Handler, Named, Recorded
from taplocal.resources.ec2 import Rule
from taplocal.session import Session
from taplocal.state import State
from tests.local.small import NOTHING

TAKEN = "its name is taken"
ALLOWED = {
    "Effect": "Allow",
    "Action": "sts:AssumeRole",
    "Principal": {"Service": "lambda.amazonaws.com"},
}
TRUST = json.dumps({"Version": "2012-10-17", "Statement": [ALLOWED]})
ROOT = {"Effect": "Allow", "Action": "kms:*", "Resource": "*", "Principal": {"AWS": "*"}}
KEY_POLICY = json.dumps({"Version": "2012-10-17", "Statement": [ROOT]})
TEMPLATE = {
    "imageId": "ami-1",
    "instanceType": "t4g.nano",
    "iamInstanceProfile": {"name": "p"},
    "metadataOptions": {"httpTokens": "required"},
    "userData": "",
}
GROUP = {
    "minSize": 0,
    "maxSize": 1,
    "vpcZoneIdentifiers": ["subnet-1"],
    "mixedInstancesPolicy": {
        "launchTemplate": {
            "launchTemplateSpecification": {"launchTemplateId": "lt-1", "version": "1"}
        }
    },
    "healthCheckType": "EC2",
    "healthCheckGracePeriod": 60,
}
TABLE = {
    "billingMode": "PAY_PER_REQUEST",
    "hashKey": "id",
    "attributes": [{"name": "id", "type": "S"}],
}
ALARM = {
    "namespace": "n",
    "metricName": "m",
    "statistic": "Sum",
    "comparisonOperator": "GreaterThanThreshold",
    "threshold": 1,
    "period": 60,
    "evaluationPeriods": 1,
}
BUDGET = {"budgetType": "COST", "limitAmount": "1", "limitUnit": "USD", "timeUnit": "MONTHLY"}
DATABASE = {
    "engine": "postgres",
    "instanceClass": "db.t4g.micro",
    "allocatedStorage": 20,
    "username": "u",
    "port": 5432,
}
BALANCER = {
    "loadBalancerType": "application",
    "subnets": ["subnet-1", "subnet-2"],
    "securityGroups": [],
    "idleTimeout": 60,
    "dropInvalidHeaderFields": True,
    "desyncMitigationMode": "defensive",
}
TARGETS = {"port": 80, "protocol": "HTTP", "targetType": "instance", "healthCheck": {"path": "/"}}
SCHEDULE = {"scheduleExpression": "rate(1 day)", "flexibleTimeWindow": {"mode": "OFF"}}
FIREWALL = {
    "scope": "REGIONAL",
    "defaultAction": {"allow": {}},
    "rules": [],
    "visibilityConfig": {
        "cloudwatchMetricsEnabled": True,
        "metricName": "m",
        "sampledRequestsEnabled": True,
    },
}

#: Type -> its inputs with a name; `own` has what each of the two stacks has of its own.
NAMED: dict[str, Callable[[str, Any], dict[str, Any]]] = {
    "aws:autoscaling/group:Group": lambda name, own: {"name": name, **GROUP},
    "aws:budgets/budget:Budget": lambda name, own: {"name": name, **BUDGET},
    "aws:cloudwatch/compositeAlarm:CompositeAlarm": lambda name, own: {
        "alarmName": name,
        "alarmRule": "FALSE",
    },
    "aws:cloudwatch/dashboard:Dashboard": lambda name, own: {
        "dashboardName": name,
        "dashboardBody": json.dumps(own),
    },
    "aws:athena/workgroup:Workgroup": lambda name, own: {
        "name": name,
        "configuration": {"enforceWorkgroupConfiguration": True, "resultConfiguration": {}},
    },
    "aws:cloudwatch/eventRule:EventRule": lambda name, own: {
        "name": name,
        "eventPattern": '{"source": ["x"]}',
    },
    "aws:cloudwatch/logGroup:LogGroup": lambda name, own: {"name": name},
    "aws:cloudwatch/metricAlarm:MetricAlarm": lambda name, own: {"name": name, **ALARM},
    "aws:cognito/userPoolDomain:UserPoolDomain": lambda name, own: {
        "domain": name,
        "userPoolId": own["pool"],
    },
    "aws:dynamodb/table:Table": lambda name, own: {"name": name, **TABLE},
    "aws:glue/catalogDatabase:CatalogDatabase": lambda name, own: {"name": name},
    "aws:iam/instanceProfile:InstanceProfile": lambda name, own: {
        "name": name,
        "role": own["role"],
    },
    "aws:iam/openIdConnectProvider:OpenIdConnectProvider": lambda name, own: {
        "url": f"https://{name}.example",
        "clientIdLists": ["sts.amazonaws.com"],
    },
    "aws:iam/policy:Policy": lambda name, own: {
        "name": name,
        "policy": json.dumps({"Version": "2012-10-17", "Statement": [NOTHING]}),
    },
    "aws:iam/role:Role": lambda name, own: {"name": name, "assumeRolePolicy": TRUST},
    "aws:kms/alias:Alias": lambda name, own: {"name": f"alias/{name}", "targetKeyId": own["key"]},
    "aws:lambda/function:Function": lambda name, own: {
        "name": name,
        "role": own["role_arn"],
        "runtime": "python3.13",
        "handler": "m.h",
        "code": {"m.py": "h = print"},
    },
    "aws:pipes/pipe:Pipe": lambda name, own: {
        "name": name,
        "roleArn": own["role_arn"],
        "source": "arn:aws:dynamodb:us-east-1:000000000000:table/t/stream/2026-11-28T00:00:00.000",
        "target": "arn:aws:events:us-east-1:000000000000:event-bus/default",
        "sourceParameters": {"dynamodbStreamParameters": {"startingPosition": "LATEST"}},
    },
    "aws:rds/instance:Instance": lambda name, own: {"identifier": name, **DATABASE},
    "aws:rds/parameterGroup:ParameterGroup": lambda name, own: {
        "name": name,
        "family": "postgres17",
        "description": "d",
    },
    "aws:rds/subnetGroup:SubnetGroup": lambda name, own: {
        "name": name,
        "description": "d",
        "subnetIds": own["subnets"],
    },
    "aws:s3/bucket:Bucket": lambda name, own: {"bucket": name},
    "aws:scheduler/schedule:Schedule": lambda name, own: {
        "name": name,
        **SCHEDULE,
        "target": {"arn": "arn:aws:sqs:us-east-1:000000000000:q", "roleArn": own["role_arn"]},
    },
    "aws:scheduler/scheduleGroup:ScheduleGroup": lambda name, own: {"name": name},
    "aws:sns/topic:Topic": lambda name, own: {"name": name},
    "aws:sqs/queue:Queue": lambda name, own: {"name": name},
    "aws:ssm/parameter:Parameter": lambda name, own: {
        "name": f"/{name}",
        "type": "String",
        "value": "v",
    },
    # The id is AWS's own, but no two may have the same name.
    "aws:ec2/launchTemplate:LaunchTemplate": lambda name, own: {"name": name, **TEMPLATE},
    "aws:lb/loadBalancer:LoadBalancer": lambda name, own: {"name": name, **BALANCER},
    "aws:lb/targetGroup:TargetGroup": lambda name, own: {
        "name": name,
        "vpcId": own["vpc"],
        **TARGETS,
    },
    "aws:wafv2/webAcl:WebAcl": lambda name, own: {"name": name, **FIREWALL},
}
#: Two of a name may exist, and each stack knows its own.
SHARED: dict[str, Callable[[str, Any], dict[str, Any]]] = {
    "aws:acm/certificate:Certificate": lambda name, own: {
        "domainName": "x.example.com",
        "validationMethod": "DNS",
    },
    "aws:apigatewayv2/api:Api": lambda name, own: {"name": name, "protocolType": "HTTP"},
    "aws:cognito/userPool:UserPool": lambda name, own: {"name": name},
    "aws:ec2/vpc:Vpc": lambda name, own: {"cidrBlock": "10.9.0.0/16", "tags": {"Name": name}},
    "aws:kms/key:Key": lambda name, own: {"description": name, "policy": KEY_POLICY},
}


class Killed(Exception):  # noqa: N818 - no error: the end of the process
    """Stands for the end of the process."""


class Stack:
    """A stack of one resource; others are on the same emulator."""

    def __init__(self, path: Path, deployed: Session, kind: str, name: str, own: dict[str, Any]):
        self.path, self.cloud, self.kind, self.name, self.own = (
            path,
            deployed.cloud,
            kind,
            name,
            own,
        )
        self.state.reset(self.cloud.emulator.marker, self.cloud.region)

    @property
    def state(self) -> State:
        return State(self.path)

    def up(self, name: str = "") -> None:
        state, urn = self.state, f"urn:pulumi:dev::names::{self.kind}::x"
        deployment = Deployment(lambda: (self.cloud, state), "us-east-1", lambda step: None)
        inputs = {**NAMED, **SHARED}[self.kind](name or self.name, self.own)
        deployment.register(Registration(urn, self.kind, "x", inputs))
        deployment.end({})

    def down(self) -> None:
        state = self.state
        Deployment(lambda: (self.cloud, state), "us-east-1", lambda step: None).down()

    def killed(self, monkeypatch: pytest.MonkeyPatch, step: str, done: bool) -> None:
        """A run that ends at a step of the resource's handler, before or after it."""
        handler, call = HANDLERS[self.kind], getattr(HANDLERS[self.kind], step)

        def crash(*arguments: Any) -> None:
            if done:
                call(*arguments)
            raise Killed

        with monkeypatch.context() as patched:
            patched.setattr(handler, step, crash)
            with pytest.raises(Killed):
                self.up() if step == "create" else self.down()

    def made(self) -> str | None:
        """The id of the resource that this stack made, as the emulator has it."""
        handler = HANDLERS[self.kind]
        for each in self.state.resources.values():
            if not each.pending:
                return handler.find(self.cloud, handler.owned(each.inputs, each.owner))
        return None


@pytest.fixture(scope="module")
def owns(deployed: Session) -> Iterator[list[dict[str, Any]]]:
    """What the two stacks have of their own."""
    client, made = deployed.cloud.client, []
    ec2, iam = client("ec2"), client("iam")
    vpc = ec2.create_vpc(CidrBlock="10.8.0.0/16")["Vpc"]["VpcId"]
    subnets = [
        ec2.create_subnet(VpcId=vpc, CidrBlock=f"10.8.{n}.0/24", AvailabilityZone=f"us-east-1{z}")
        for n, z in enumerate("ab")
    ]
    for name in ("a", "b"):
        role = iam.create_role(RoleName=f"names-{name}", AssumeRolePolicyDocument=TRUST)["Role"]
        made.append(
            {
                "role": role["RoleName"],
                "role_arn": role["Arn"],
                "key": client("kms").create_key()["KeyMetadata"]["KeyId"],
                "pool": client("cognito-idp").create_user_pool(PoolName=name)["UserPool"]["Id"],
                "vpc": vpc,
                "subnets": [each["Subnet"]["SubnetId"] for each in subnets],
            }
        )
    yield made
    for own in made:
        iam.delete_role(RoleName=own["role"])
        client("kms").schedule_key_deletion(KeyId=own["key"])
        client("cognito-idp").delete_user_pool(UserPoolId=own["pool"])


@pytest.fixture
def two(
    tmp_path: Path, deployed: Session, request: Any, fresh: str, owns: list[dict[str, Any]]
) -> Iterator[list[Stack]]:
    """Two stacks with a resource of one name."""
    kind, name = request.param, fresh[:30]
    stacks = [
        Stack(tmp_path / f"{number}.json", deployed, kind, name, own)
        for number, own in enumerate(owns)
    ]
    yield stacks
    for each in stacks:
        each.down()


def test_every_settable_name_is_tried() -> None:
    named = {kind for kind, each in HANDLERS.items() if isinstance(each, Named)}
    tagged = {kind for kind, each in HANDLERS.items() if known_by_tag(each)}
    assert named <= NAMED.keys()
    # A VPC stands for all that EC2 makes; a listener is part of a load balancer; GuardDuty has one
    # plan of a bucket at most (test_malware.py).
    apart = {
        "aws:lb/listener:Listener",
        "aws:guardduty/malwareProtectionPlan:MalwareProtectionPlan",
    }
    rest = {kind for kind in tagged if not kind.startswith("aws:ec2/")}
    assert rest - apart <= NAMED.keys() | SHARED.keys()


def known_by_tag(handler: Handler) -> bool:
    own_find = type(handler).find is not Handler.find and "tags" in handler.uses.split()
    return own_find and not isinstance(handler, Recorded | Rule)


@pytest.mark.parametrize("two", NAMED, indirect=True)
def test_the_name_of_another_stack_is_refused_and_stays_refused(two: list[Stack]) -> None:
    first, second = two
    first.up()
    kept = first.made()
    assert kept
    for _ in range(2):
        with pytest.raises(TapLocalError, match=TAKEN):
            second.up()
        assert first.made() == kept
    second.down()
    assert first.made() == kept
    own_name = f"o{second.name[1:]}"
    second.up(own_name)
    own = second.made()
    with pytest.raises(TapLocalError, match=TAKEN):
        second.up()  # a rename: its own resource is not deleted for it
    second.up(own_name)
    assert own
    assert second.made() == own
    assert first.made() == kept


@pytest.mark.parametrize("two", [*NAMED, *SHARED], indirect=True)
def test_a_creation_killed_before_it_began_owns_nothing(
    two: list[Stack], monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = two
    second.killed(monkeypatch, "create", done=False)
    first.up()
    kept = first.made()
    if first.kind in NAMED:
        with pytest.raises(TapLocalError, match=TAKEN):
            second.up()
    else:
        second.up()
        assert second.made() not in (None, kept)
    second.down()
    assert kept
    assert first.made() == kept


@pytest.mark.parametrize("two", [*NAMED, *SHARED], indirect=True)
def test_a_creation_killed_after_it_is_found_again(
    two: list[Stack], monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = two
    second.killed(monkeypatch, "create", done=True)
    if first.kind in NAMED:
        with pytest.raises(TapLocalError, match=TAKEN):
            first.up()
    else:
        first.up()
    second.up()
    assert second.made()
    second.down()
    first.up()
    assert first.made()


@pytest.mark.parametrize("two", NAMED, indirect=True)
def test_a_deletion_killed_after_it_does_not_take_the_next_owner(
    two: list[Stack], monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = two
    second.up()
    second.killed(monkeypatch, "remove", done=True)
    first.up()
    kept = first.made()
    second.down()
    assert kept
    assert first.made() == kept


def test_a_resource_of_the_stack_has_its_tag(deployed: Session) -> None:
    for each in deployed.state.resources.values():
        handler = HANDLERS[each.type]
        if isinstance(handler, Named) or known_by_tag(handler):
            owned = handler.owned(each.inputs, each.owner)
            assert handler.find(deployed.cloud, owned) == each.id, each.name
    assert OWNER not in str(deployed.state.outputs)
