"""Any changes, interrupted anywhere, end as the program says: its graph is the oracle."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from taplocal.cloud import Cloud
from taplocal.engine import Deployment
from taplocal.errors import TapLocalError
from taplocal.program import Registration
from taplocal.resources import HANDLERS
from taplocal.session import Session
from taplocal.state import Deployed, State

Outputs = dict[str, tuple[str, dict[str, Any]]]
#: A part of the program: its name, type, setting that chooses among the inputs, and the inputs.
Part = tuple[str, str, str, Callable[[str, Outputs], dict[str, Any]]]


def parts(env: str) -> list[Part]:
    """A program with names, generated ids, and what depends on both, by env and settings."""
    return [
        ("queue", "aws:sqs/queue:Queue", "queue", lambda s, _: {"name": f"{env}-q{s}"}),
        (
            "topic",
            "aws:sns/topic:Topic",
            "tag",
            lambda s, _: {"name": f"{env}-topic", "tags": {"size": s}},
        ),
        (
            "subscription",
            "aws:sns/topicSubscription:TopicSubscription",
            "",
            lambda _, made: {
                "topic": made["topic"][0],
                "protocol": "sqs",
                "endpoint": made["queue"][1]["arn"],
            },
        ),
        (
            "table",
            "aws:dynamodb/table:Table",
            "table",
            lambda s, _: {
                "name": f"{env}-table",
                "billingMode": "PAY_PER_REQUEST",
                "hashKey": f"id{s}",
                "attributes": [{"name": f"id{s}", "type": "S"}],
            },
        ),
        ("pool", "aws:cognito/userPool:UserPool", "pool", lambda s, _: {"name": f"{env}-p{s}"}),
        (
            "client",
            "aws:cognito/userPoolClient:UserPoolClient",
            "tag",
            lambda s, made: {
                "name": f"{env}-client",
                "userPoolId": made["pool"][0],
                "accessTokenValidity": int(s) + 1,
            },
        ),
        (
            "vpc",
            "aws:ec2/vpc:Vpc",
            "vpc",
            lambda s, _: {"cidrBlock": f"10.{s}.0.0/16", "tags": {"Name": env}},
        ),
        (
            "subnet",
            "aws:ec2/subnet:Subnet",
            "vpc",
            lambda s, made: {
                "vpcId": made["vpc"][0],
                "cidrBlock": f"10.{s}.1.0/24",
                "availabilityZone": "us-east-1a",
                "tags": {"Name": env},
            },
        ),
        (
            "routes",
            "aws:ec2/routeTable:RouteTable",
            "",
            lambda _, made: {"vpcId": made["vpc"][0], "tags": {"Name": env}},
        ),
        (
            "association",
            "aws:ec2/routeTableAssociation:RouteTableAssociation",
            "",
            lambda _, made: {"subnetId": made["subnet"][0], "routeTableId": made["routes"][0]},
        ),
        (
            "log",
            "aws:cloudwatch/logGroup:LogGroup",
            "log",
            lambda s, _: {"name": f"/{env}/log", "retentionInDays": 7} if s == "0" else {},
        ),
    ]


NAMES = ("queue", "tag", "table", "pool", "vpc", "log")
INITIAL = dict.fromkeys(NAMES, "0")


class Killed(Exception):  # noqa: N818 - no error: the end of the process
    """Stands for the end of the process."""


class Program:
    """The program in one environment, run by the engine without Pulumi."""

    def __init__(self, path: Path, cloud: Cloud, env: str):
        self.path, self.cloud, self.env = path, cloud, env
        State(path).reset(cloud.emulator.marker, cloud.region)

    def up(self, chosen: dict[str, str], kill: int | None = None) -> dict[str, int]:
        """A run; with `kill` its process ends at the write `kill // 2` of the state, before or after."""
        state, left = State(self.path), iter(range((kill or 0) // 2, -1, -1))
        deployment = Deployment(lambda: (self.cloud, state), "us-east-1", lambda step: None)
        change = state.change

        def dying(changes: Any) -> None:
            if next(left) == 0:
                if kill and kill % 2:
                    change(changes)
                raise Killed
            change(changes)

        with mock.patch.object(state, "change", dying if kill is not None else change):
            made: Outputs = {}
            for name, kind, setting, inputs in parts(self.env):
                if built := inputs(chosen.get(setting, ""), made):
                    urn = f"urn:pulumi:{self.env}::changes::{kind}::{name}"
                    made[name] = deployment.register(Registration(urn, kind, name, built))
            deployment.end({})
        return dict(deployment.summary.counts())

    def killed(self, chosen: dict[str, str], kill: int) -> None:
        """A run that may be killed, if it writes so often."""
        try:
            self.up(chosen, kill)
        except Killed:
            return

    def check(self, chosen: dict[str, str]) -> None:
        """Fails unless what exists is what the program says with these settings, and no more."""
        state, made, expected = State(self.path), dict[str, Deployed](), dict[str, str]()
        assert state.complete
        for each in state.resources.values():
            made[each.name] = each
        outputs = {name: (each.id, each.outputs) for name, each in made.items()}
        for name, kind, setting, inputs in parts(self.env):
            if built := inputs(chosen.get(setting, ""), outputs):
                assert (made[name].inputs, made[name].pending) == (built, ""), name
                expected[name] = made[name].id
                owned = HANDLERS[kind].owned(built, made[name].owner)
                if "tags" in HANDLERS[kind].uses.split():
                    assert HANDLERS[kind].find(self.cloud, owned) == made[name].id, name
        assert made.keys() == expected.keys()
        tags = self.cloud.client("sns").list_tags_for_resource(ResourceArn=made["topic"].id)["Tags"]
        client = self.cloud.client("cognito-idp").describe_user_pool_client(
            UserPoolId=made["pool"].id, ClientId=made["client"].id
        )["UserPoolClient"]
        assert {"Key": "size", "Value": chosen["tag"]} in tags
        assert client["AccessTokenValidity"] == int(chosen["tag"]) + 1
        assert self.exist() == expected

    def exist(self) -> dict[str, str]:
        """The ids of all that this environment has on the emulator, whoever remembers it."""
        client, env = self.cloud.client, self.env
        tag = {"Key": "Name", "Value": env}
        topic = self.cloud.arn("sns", f"{env}-topic")
        pools = client("cognito-idp").list_user_pools(MaxResults=60)["UserPools"]
        own_pools = [each["Id"] for each in pools if each["Name"].startswith(f"{env}-p")]
        subscriptions = client("sns").list_subscriptions()["Subscriptions"]
        tags = client("ec2").describe_tags(
            Filters=[{"Name": "key", "Values": ["Name"]}, {"Name": "value", "Values": [env]}]
        )["Tags"]
        logs = client("logs").describe_log_groups(logGroupNamePrefix=f"/{env}/")["logGroups"]
        vpcs = {x["VpcId"] for x in client("ec2").describe_vpcs()["Vpcs"]}
        tables = [
            x for x in client("ec2").describe_route_tables()["RouteTables"] if tag in x["Tags"]
        ]
        subnets = {x["SubnetId"] for x in client("ec2").describe_subnets()["Subnets"]}
        found = [
            *(("queue", x) for x in client("sqs").list_queues(QueueNamePrefix=f"{env}-q").get("QueueUrls", [])),
            *(("topic", x["TopicArn"]) for x in client("sns").list_topics()["Topics"] if x["TopicArn"] == topic),
            *(("subscription", x["SubscriptionArn"]) for x in subscriptions if x["TopicArn"] == topic),
            *(("table", x) for x in client("dynamodb").list_tables()["TableNames"] if x == f"{env}-table"),
            *(("pool", x) for x in own_pools),
            *(
                ("client", x["ClientId"])
                for pool in own_pools
                for x in client("cognito-idp").list_user_pool_clients(UserPoolId=pool, MaxResults=60)["UserPoolClients"]
            ),
            *(("vpc", x["ResourceId"]) for x in tags if x["ResourceId"] in vpcs),
            *(("subnet", x["ResourceId"]) for x in tags if x["ResourceId"] in subnets),
            *(("routes", x["RouteTableId"]) for x in tables),
            *(("association", y["RouteTableAssociationId"]) for x in tables for y in x["Associations"]),
            *(("log", x["logGroupName"]) for x in logs),
        ]  # fmt: skip
        assert len(found) == len({name for name, _ in found}), found  # nothing twice
        return dict(found)

    def down(self) -> None:
        state = State(self.path)
        Deployment(lambda: (self.cloud, state), "us-east-1", lambda step: None).down()
        assert self.exist() == {}


@pytest.fixture
def program(tmp_path: Path, deployed: Session, fresh: str) -> Iterator[Callable[[], Program]]:
    """Makes programs, each in an environment of its own."""
    made: list[Program] = []

    def make() -> Program:
        number = len(made)
        made.append(Program(tmp_path / f"{number}.json", deployed.cloud, f"{fresh[:12]}{number}"))
        return made[-1]

    yield make


chosen_settings = st.fixed_dictionaries({name: st.sampled_from("01") for name in NAMES})
runs = st.lists(st.tuples(chosen_settings, st.integers(0, 44)), min_size=1, max_size=2)
few = settings(
    max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@few
@example(interrupted=[({**INITIAL, "queue": "1"}, 10)], last=INITIAL)  # while it subscribes
@example(interrupted=[(INITIAL, 38)], last={**INITIAL, "vpc": "1"})  # while it associates
@given(interrupted=runs, last=chosen_settings)
def test_killed_changes_end_as_the_last_settings_say(
    program: Callable[[], Program], interrupted: Any, last: dict[str, str]
) -> None:
    own = program()
    for chosen, kill in interrupted:
        own.killed(chosen, kill)
    own.up(last)
    own.check(last)
    assert own.up(last).keys() == {"unchanged"}
    own.down()


def test_nothing_is_left_of_what_was_part_of_something_that_is_gone(
    program: Callable[[], Program],
) -> None:
    own = program()
    own.killed(INITIAL, 10)  # while it subscribes
    own.cloud.client("sns").delete_topic(TopicArn=own.cloud.arn("sns", f"{own.env}-topic"))
    own.down()


@pytest.mark.parametrize("name", NAMES)
def test_each_setting_changed_and_back(program: Callable[[], Program], name: str) -> None:
    own, changed = program(), {**INITIAL, name: "1"}
    own.up(INITIAL)
    for chosen in (changed, INITIAL):
        own.up(chosen)
        own.check(chosen)
    for kill in range(8):  # killed, and then the old setting again
        own.killed(changed, kill)
        own.up(INITIAL)
        own.check(INITIAL)
    own.down()


def test_three_environments_at_once(program: Callable[[], Program]) -> None:
    programs = [program() for _ in range(3)]

    def change(each: Program) -> None:
        for number, chosen in enumerate((INITIAL, dict.fromkeys(NAMES, "1"), INITIAL)):
            each.killed(chosen, 5 * number + 3)
            each.up(chosen)
            each.check(chosen)
        each.down()

    with ThreadPoolExecutor(3) as pool:
        for future in [pool.submit(change, each) for each in programs]:
            future.result()


@given(st.data())
@settings(deadline=None, max_examples=60)
def test_a_journal_cut_anywhere_is_the_state_of_a_moment(data: Any) -> None:
    """No line by half, and what is written behind a cut line is not lost with it."""
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        state, moments = State(Path(folder) / "dev.json"), list[Any]()
        state.reset("marker", "us-east-1")
        for number in range(4):
            moments.append(dict(state.resources))
            new = Deployed("type", f"ü{number}", "", {"x": number}, pending="create")
            state.change({f"urn{number}": new, f"urn{number - 1}#": None})
        moments.append(dict(state.resources))
        content = state.journal.read_bytes()
        cut = data.draw(st.integers(0, len(content)))
        state.journal.write_bytes(content[:cut])
        again = State(state.path)
        assert again.resources == moments[content[:cut].count(b"\n")]
        again.put("later", Deployed("type", "later", "id", {}))
        assert State(state.path).resources == again.resources
        assert not State(state.path).complete


def test_a_journal_that_is_damaged_in_its_middle_is_one_line(tmp_path: Path) -> None:
    state = State(tmp_path / "dev.json")
    state.reset("marker", "us-east-1")
    for name in "ab":
        state.put(name, Deployed("type", name, "id", {}))
    lines = state.journal.read_text().splitlines()
    state.journal.write_text("\n".join([lines[0][:20], lines[1], ""]))
    with pytest.raises(TapLocalError, match="is not a state file of this version"):
        State(state.path)
