"""What a run changes: in place or by replacement, nothing twice, and complete after any crash."""

from __future__ import annotations

import textwrap
import threading
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from taplocal import session
from taplocal.cloud import Cloud
from taplocal.engine import Deployment
from taplocal.errors import TapLocalError
from taplocal.session import Session
from taplocal.state import State
from taplocal.steps import BEGUN, Step, Summary

PROGRAM = """
import json
import pulumi, pulumi_aws as aws

config = pulumi.Config()
trust = json.dumps({"Version": "2012-10-17", "Statement": []})
root = {"Effect": "Allow", "Action": "kms:*", "Resource": "*", "Principal": {"AWS": "*"}}
key = aws.kms.Key("key", description="mini key", policy=json.dumps({"Version": "2012-10-17", "Statement": [root]}))
aws.kms.Alias("alias", name="alias/mini", target_key_id=key.key_id)
topic = aws.sns.Topic("topic", name="mini", kms_master_key_id=key.arn, tags={"size": config.get("size") or "s"})
queue = aws.sqs.Queue("queue", name=config.get("queue") or "mini", message_retention_seconds=600)
pool = aws.cognito.UserPool("pool", name="mini")
client = aws.cognito.UserPoolClient("client", name="mini", user_pool_id=pool.id)
api = aws.apigatewayv2.Api("api", name="mini", protocol_type="HTTP")
stage = aws.apigatewayv2.Stage("stage", api_id=api.id, name="$default", auto_deploy=True)
if config.get("table") != "none":
    table = aws.dynamodb.Table(
        "table", name=config.get("table") or "mini", billing_mode="PAY_PER_REQUEST", hash_key="id",
        attributes=[{"name": "id", "type": "S"}],
        opts=pulumi.ResourceOptions(protect=config.get("protect") == "yes"),
    )
if config.get("log") != "no":
    retained = pulumi.ResourceOptions(retain_on_delete=config.get("retain") == "yes")
    aws.cloudwatch.LogGroup("log", name="/mini", retention_in_days=7, opts=retained)
pulumi.export("queue_url", queue.url)
"""
RESOURCES = 10


class Mini:
    """A small program on the emulator of the other tests, with a state of its own."""

    def __init__(self, folder: Path, deployed: Session):
        self.folder, self.deployed = folder, deployed
        self.told: list[Step] = []
        self.other = str(deployed.state.path.parents[1])
        keys = ("size", "queue", "protect", "log", "table", "retain")
        declared = "".join(f"  {key}:\n    type: string\n    default: ''\n" for key in keys)
        (folder / "Pulumi.yaml").write_text(
            f"name: mini\nruntime: python\nmain: mini.py\nconfig:\n{declared}"
        )
        (folder / "Pulumi.dev.yaml").write_text("config: {}\n")
        self.write(PROGRAM)

    def write(self, program: str) -> None:
        (self.folder / "mini.py").write_text(textwrap.dedent(program))

    def changed(self) -> dict[str, float]:
        """The time of each resource's last change."""
        state = State(session.state_path(session.folder_of(self.folder), "dev"))
        return {each.name: each.changed for each in state.resources.values()}

    def up(self, *options: str, **config: str) -> Summary:
        return session.up(
            self.folder,
            "dev",
            emulator=self.other,
            config=config,
            ignore_protect="--ignore-protect" in options,
            say=lambda text: None,
            report=self.told.append,
        )[1]

    def down(self) -> list[str]:
        return session.down(self.folder, "dev", report=lambda step: None)

    def steps(self, *options: str, **config: str) -> list[tuple[str, str, tuple[str, ...]]]:
        """What a run did, without the unchanged resources."""
        done = self.up(*options, **config).steps
        steps = [step for step in done if step.action != "unchanged"]
        return [(step.action, step.name, step.why) for step in steps]

    def exist(self) -> Counter[str]:
        """The program's resources on the emulator, orphans included."""
        client = self.deployed.cloud.client
        kms, cognito = client("kms"), client("cognito-idp")
        keys = [
            kms.describe_key(KeyId=key["KeyId"])["KeyMetadata"] for key in kms.list_keys()["Keys"]
        ]
        pools = [
            each["Id"]
            for each in cognito.list_user_pools(MaxResults=60)["UserPools"]
            if each["Name"] == "mini"
        ]
        found = {
            "key": [
                key
                for key in keys
                if key["Description"] == "mini key" and key["KeyState"] == "Enabled"
            ],
            "alias": [
                each for each in kms.list_aliases()["Aliases"] if each["AliasName"] == "alias/mini"
            ],
            "topic": [
                each
                for each in client("sns").list_topics()["Topics"]
                if each["TopicArn"].endswith(":mini")
            ],
            "queue": client("sqs").list_queues(QueueNamePrefix="mini").get("QueueUrls", []),
            "pool": pools,
            "client": [
                each
                for pool in pools
                for each in cognito.list_user_pool_clients(UserPoolId=pool, MaxResults=60)[
                    "UserPoolClients"
                ]
            ],
            "api": [
                each
                for each in client("apigatewayv2").get_apis()["Items"]
                if each["Name"] == "mini"
            ],
            "table": [
                each for each in client("dynamodb").list_tables()["TableNames"] if each == "mini"
            ],
            "log": client("logs").describe_log_groups(logGroupNamePrefix="/mini")["logGroups"],
        }
        return Counter({name: len(each) for name, each in found.items() if each})


ALL = Counter(
    dict.fromkeys(("key", "alias", "topic", "queue", "pool", "client", "api", "table", "log"), 1)
)


@pytest.fixture
def mini(tmp_path: Path, deployed: Session) -> Any:
    program = Mini(tmp_path, deployed)
    yield program
    program.down()
    assert program.exist() == Counter()


def test_each_step_is_told_when_it_begins_and_when_it_is_done(mini: Mini) -> None:
    mini.up()
    mini.told.clear()
    mini.up(size="m", log="no")
    actions: dict[str, list[str]] = {}
    for step in mini.told:
        actions.setdefault(step.name, []).append(step.action)
    assert len(actions) == RESOURCES
    ends = {"topic": "updated", "log": "deleted"}
    for name, told in actions.items():
        assert told == [BEGUN, ends.get(name, "unchanged")]


def test_a_second_run_changes_nothing(mini: Mini) -> None:
    assert mini.up().counts() == {"created": RESOURCES}
    assert mini.up().counts() == {"unchanged": RESOURCES}
    assert mini.exist() == ALL


def test_a_change_is_made_in_place_and_only_there(mini: Mini) -> None:
    mini.up()
    before = mini.changed()
    assert mini.steps(size="l") == [("updated", "topic", ("tags",))]
    after = mini.changed()
    assert {name for name in after if after[name] > before[name] > 0} == {"topic"}
    topic = mini.deployed.cloud.arn("sns", "mini")
    tags = mini.deployed.cloud.client("sns").list_tags_for_resource(ResourceArn=topic)["Tags"]
    assert {"Key": "size", "Value": "l"} in tags


def test_a_new_name_replaces(mini: Mini) -> None:
    mini.up()
    assert mini.steps(queue="mini-2") == [("replaced", "queue", ("name",))]
    (url,) = mini.deployed.cloud.client("sqs").list_queues(QueueNamePrefix="mini")["QueueUrls"]
    assert url.endswith("/mini-2")
    assert State(session.state_path(session.folder_of(mini.folder), "dev")).outputs == {
        "queue_url": url
    }


def test_what_the_program_drops_is_deleted(mini: Mini) -> None:
    mini.up()
    assert mini.steps(log="no") == [("deleted", "log", ())]
    assert mini.exist() == ALL - Counter(log=1)


def test_what_is_protected_is_not_deleted_by_a_run(mini: Mini) -> None:
    mini.up(protect="yes")
    mini.write(PROGRAM.replace('or "mini", billing_mode', 'or "other", billing_mode'))
    with pytest.raises(TapLocalError, match=r"table \(mini\) is protected and would be replaced"):
        mini.up(protect="yes")
    assert mini.exist() == ALL
    mini.write(PROGRAM)
    assert mini.steps(protect="yes") == []


def test_settings_that_would_lose_what_is_protected_change_nothing(mini: Mini) -> None:
    mini.up(protect="yes")
    before = mini.changed()
    lost = {"protect": "yes", "size": "l", "table": "other"}
    with pytest.raises(
        TapLocalError, match=r"Settings that changed: mini:size, mini:table\.\n  - aws:"
    ):
        mini.up(**lost)
    assert mini.changed() == before
    replaced = ("replaced", "table", ("name",))
    assert replaced in mini.steps("--ignore-protect", **lost)
    with pytest.raises(TapLocalError, match=r"table \(other\) is protected and would be deleted"):
        mini.up(protect="yes", size="l", table="none")
    gone = {**lost, "table": "none"}
    assert mini.steps("--ignore-protect", **gone) == [("deleted", "table", ())]
    mini.up()


def test_what_is_to_be_retained_is_left_and_its_name_stays_taken(mini: Mini) -> None:
    mini.up(retain="yes")
    assert mini.steps(log="no") == [("kept", "log", ())]
    assert mini.exist() == ALL
    with pytest.raises(TapLocalError, match="its name is taken by a resource that this stack did"):
        mini.up()
    mini.deployed.cloud.client("logs").delete_log_group(logGroupName="/mini")


def test_a_program_that_fails_says_where_and_keeps_what_was_done(mini: Mini) -> None:
    mini.up()
    mini.write(PROGRAM + "\nundefined_name\n")
    with pytest.raises(TapLocalError, match=r"NameError.*\(mini.py:\d+\)"):
        mini.up()
    mini.write(PROGRAM)
    assert mini.up().counts() == {"unchanged": RESOURCES}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('aws.s3.BucketAcl("x", bucket="b")', "x is a aws:s3/bucketAcl:BucketAcl, which the local cloud does not support"),
        ('aws.sqs.Queue("x", name="x", delay_seconds=5)', "x: the local cloud does not support the input delaySeconds"),
        ('aws.get_regions()', "data source aws:index/getRegions:getRegions is not supported"),
        ('aws.kms.Alias("alias", name="alias/b", target_key_id=key.key_id)', "two resources have the type aws:kms/alias:Alias"),
        ('aws.iam.RolePolicy("x", name="x", role="none", policy=trust)', "aws:iam/rolePolicy:RolePolicy x: .*NoSuchEntity"),
    ],
)  # fmt: skip
def test_what_cannot_be_deployed_is_named(mini: Mini, line: str, message: str) -> None:
    mini.write(PROGRAM + f"\n{line}\n")
    with pytest.raises(TapLocalError, match=message):
        mini.up()


class Killed(Exception):  # noqa: N818 - no error: the end of the process
    """Stands for the end of the process."""


def crashing_at(step: int) -> Callable[..., None]:
    """State.change that ends the process at its n-th call, before or after writing by turns."""
    change, calls = State.change, iter(range(10_000))

    def crash(state: State, changes: Any) -> None:
        call = next(calls)
        if call >= step and step % 2:
            raise Killed
        change(state, changes)
        if call >= step:
            raise Killed

    return crash


def killed(mini: Mini, monkeypatch: pytest.MonkeyPatch, step: int, **config: str) -> None:
    """A run that ends at one of its state writes."""
    with monkeypatch.context() as patched:
        patched.setattr(State, "change", crashing_at(step))
        with pytest.raises((Killed, TapLocalError)):
            mini.up(**config)


@pytest.mark.parametrize("step", range(2 * RESOURCES))
def test_a_run_killed_at_any_step_is_finished_by_the_next(
    mini: Mini, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    killed(mini, monkeypatch, step)
    mini.up()
    assert mini.exist() == ALL
    assert mini.up().counts() == {"unchanged": RESOURCES}


@pytest.mark.parametrize("step", range(4))
def test_a_change_killed_at_any_step_is_finished_by_the_next(
    mini: Mini, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    mini.up()
    change = {"size": "xl", "queue": "mini-3", "log": "no"}
    killed(mini, monkeypatch, step, **change)
    mini.up(**change)
    assert mini.exist() == ALL - Counter(log=1)
    assert mini.up(**change).counts() == {"unchanged": RESOURCES - 1}


@pytest.mark.parametrize("step", range(2))
def test_a_change_killed_and_given_up_is_taken_back(
    mini: Mini, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    mini.up(size="s")
    killed(mini, monkeypatch, step, size="xl")  # before the topic has the tag, and with it
    mini.up(size="s")
    arn = mini.deployed.cloud.arn("sns", "mini")
    tags = mini.deployed.cloud.client("sns").list_tags_for_resource(ResourceArn=arn)["Tags"]
    assert {"Key": "size", "Value": "s"} in tags
    assert mini.up(size="s").counts() == {"unchanged": RESOURCES}


@pytest.mark.parametrize("step", [0, 5, 12])
def test_down_cleans_up_after_a_killed_run(
    mini: Mini, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    killed(mini, monkeypatch, step)
    mini.down()
    assert mini.exist() == Counter()


def test_steps_are_reported_as_they_happen(mini: Mini) -> None:
    summary = mini.up()
    done = [step for step in mini.told if step.action != BEGUN]
    assert done == summary.steps
    assert [step.type.split(":")[-1] for step in done].index("Key") < [
        step.name for step in done
    ].index("alias")


def test_many_threads_connect_once(tmp_path: Path, deployed: Session) -> None:
    calls, threads = [], 8
    together = threading.Barrier(threads)

    def connect() -> tuple[Cloud, State]:
        calls.append(1)
        return deployed.cloud, State(tmp_path / "dev.json")

    deployment = Deployment(connect, "us-east-1", report=lambda step: None)

    def use() -> State:
        together.wait()
        return deployment.state

    with ThreadPoolExecutor(threads) as pool:
        states = {id(each.result()) for each in [pool.submit(use) for _ in range(threads)]}
    assert (len(states), len(calls)) == (1, 1)


def test_an_emulator_that_does_not_start_is_tried_once() -> None:
    calls = []

    def connect() -> tuple[Cloud, State]:
        calls.append(1)
        raise TapLocalError("the emulator did not start")

    deployment = Deployment(connect, "us-east-1", report=lambda step: None)
    for _ in range(3):
        with pytest.raises(TapLocalError, match="did not start"):
            deployment.cloud.client("sqs")
    assert len(calls) == 1


def test_a_program_without_resources_removes_those_of_the_last_run(mini: Mini) -> None:
    mini.up()
    mini.write("import pulumi\n")
    assert mini.up().counts() == {"deleted": RESOURCES}
    mini.write(PROGRAM)


def test_an_unknown_resource_type_starts_no_emulator(tmp_path: Path, mini: Mini) -> None:
    mini.write('import pulumi_aws as aws\naws.s3.BucketAcl("x", bucket="b")\n')
    with pytest.raises(TapLocalError, match="does not support"):
        mini.up()
    assert not session.folder_of(tmp_path).exists()
