"""docs/extending.md: what exists becomes part of a stack, with its data, and is replaced by nothing."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from taplocal import emulator as emulators
from taplocal import session
from taplocal.cloud import Cloud
from taplocal.errors import TapLocalError
from taplocal.session import Session
from taplocal.state import Deployed, State
from tests.local.conftest import ROOT
from tests.stack.conftest import graph_of

SECTION = (ROOT / "docs" / "extending.md").read_text().partition("## Taking over what exists")[2]
(FILE,) = re.findall(r"```json\n(.+?)```", SECTION, re.DOTALL)
RESOURCES: list[dict[str, Any]] = json.loads(FILE)["resources"]
SETTINGS = {
    "project": "acme",
    "table_name": "orders",
    "files_bucket_name": "acme-documents",
    "systems": "api,files",
}
PERSON = "ann@example.com"


def test_the_file_is_one_that_pulumi_takes() -> None:
    """The rules of parseImportFile: names are unique, parents are there, who is no component has an id."""
    names = [each["name"] for each in RESOURCES]
    assert len(set(names)) == len(names)
    for number, each in enumerate(RESOURCES):
        assert each.keys() <= {"type", "name", "component", "parent", "id"}
        assert ("id" in each) != each.get("component", False)
        assert each.get("parent", "tap") in names[: number or 1]


def test_what_is_imported_has_the_urn_that_the_program_gives_it() -> None:
    registered = {each.urn: each for each in graph_of("dev").resources}
    places = {
        (each.type, each.name, parent.name if (parent := registered.get(each.parent)) else None)
        for each in registered.values()
    }
    for each in RESOURCES:
        assert (each["type"], each["name"], each.get("parent")) in places


def test_the_commands_name_what_the_file_has() -> None:
    ids = {each.get("id") for each in RESOURCES if each["type"] != "aws:cognito/userPool:UserPool"}
    assert ids == {None, "orders", "acme-documents"}
    configured = dict(re.findall(r"pulumi config set (\w+) (\S+)", SECTION))
    assert configured == {key: x for key, x in SETTINGS.items() if key != "systems"}


@pytest.fixture
def up(deployed: Session, tmp_path: Path) -> Iterator[Callable[..., dict[str, str]]]:
    """Deploys into a stack that has these resources already: logical name -> what was done."""
    quiet: dict[str, Any] = {"say": lambda _: None, "report": lambda _: None}
    folder = tmp_path / "data"

    def up(existing: dict[str, Deployed]) -> dict[str, str]:
        folder.mkdir()
        emulator = emulators.attach(folder, emulators.found(str(deployed.folder)))
        Cloud(emulator, "us-east-1").mark()
        state = State(session.state_path(folder, "dev"))
        state.reset(emulator.marker, "us-east-1")
        types = {each["name"]: each["type"] for each in RESOURCES}
        for each in RESOURCES:
            if each["name"] in existing:
                urn = f"{types[each['parent']]}${each['type']}::{each['name']}"
                state.put(f"urn:pulumi:dev::tap-stack::{urn}", existing[each["name"]])
        state.finish({})
        _, summary = session.up(
            ROOT, "dev", folder=folder, emulator=str(deployed.folder), config=SETTINGS, **quiet
        )
        return {step.name: step.action for step in summary.steps if step.type in types.values()}

    yield up
    session.down(ROOT, "dev", folder=folder, report=lambda _: None)


def table(cloud: Any, range_key: str) -> Deployed:
    """A table with an item, as somebody made it."""
    made = cloud.client("dynamodb").create_table(
        TableName="orders",
        KeySchema=[
            {"AttributeName": "owner", "KeyType": "HASH"},
            {"AttributeName": range_key, "KeyType": "RANGE"},
        ],
        AttributeDefinitions=[
            {"AttributeName": each, "AttributeType": "S"} for each in ("owner", range_key)
        ],
        BillingMode="PAY_PER_REQUEST",
    )["TableDescription"]
    item = {"owner": {"S": "ann"}, range_key: {"S": "1"}}
    cloud.client("dynamodb").put_item(TableName="orders", Item=item)
    inputs = {
        "name": "orders",
        "billingMode": "PAY_PER_REQUEST",
        "hashKey": "owner",
        "rangeKey": range_key,
        "attributes": [{"name": each, "type": "S"} for each in ("owner", range_key)],
    }
    outputs = {"arn": made["TableArn"], "streamArn": ""}
    return imported("aws:dynamodb/table:Table", "api-items", "orders", inputs, outputs)


def imported(kind: str, name: str, identity: str, inputs: Any, outputs: Any) -> Deployed:
    """What `pulumi import` leaves in the state: the inputs as AWS has them, protected."""
    return Deployed(kind, name, identity, inputs, outputs, protect=True)


def test_a_table_a_bucket_and_a_user_pool_are_taken_over_with_their_data(
    deployed: Session, up: Callable[..., dict[str, str]]
) -> None:
    client = deployed.cloud.client
    s3, cognito = client("s3"), client("cognito-idp")
    s3.create_bucket(Bucket="acme-documents")
    s3.put_object(Bucket="acme-documents", Key="old.txt", Body=b"old")
    bucket = imported(
        "aws:s3/bucket:Bucket",
        "files-uploads-bucket",
        "acme-documents",
        {"bucket": "acme-documents"},
        {"arn": "arn:aws:s3:::acme-documents"},
    )
    by_email = {"usernameAttributes": ["email"], "usernameConfiguration": {"caseSensitive": False}}
    made = cognito.create_user_pool(
        PoolName="acme-users-dev",
        UsernameAttributes=["email"],
        UsernameConfiguration={"CaseSensitive": False},
    )["UserPool"]
    cognito.admin_create_user(UserPoolId=made["Id"], Username=PERSON)
    pool = imported(
        "aws:cognito/userPool:UserPool",
        "identity-pool",
        made["Id"],
        {"name": "acme-users-dev", **by_email},
        {"arn": made["Arn"], "endpoint": f"cognito-idp.us-east-1.amazonaws.com/{made['Id']}"},
    )
    existing = {
        "api-items": table(deployed.cloud, "id"),
        "files-uploads-bucket": bucket,
        "identity-pool": pool,
    }
    done = up(existing)
    assert {done[name] for name in existing} == {"updated"}

    dynamodb = client("dynamodb")
    assert dynamodb.scan(TableName="orders")["Count"] == 1
    found = dynamodb.describe_table(TableName="orders")["Table"]
    assert len(found["GlobalSecondaryIndexes"]) == 2
    assert found["SSEDescription"]["SSEType"] == "KMS"
    assert s3.get_object(Bucket="acme-documents", Key="old.txt")["Body"].read() == b"old"
    assert s3.get_bucket_versioning(Bucket="acme-documents")["Status"] == "Enabled"
    assert cognito.list_users(UserPoolId=made["Id"])["Users"]
    policy = cognito.describe_user_pool(UserPoolId=made["Id"])["UserPool"]["Policies"]
    assert policy["PasswordPolicy"]["MinimumLength"] == 14


def test_a_table_with_another_key_is_not_replaced(
    deployed: Session, up: Callable[..., dict[str, str]]
) -> None:
    existing = {"api-items": table(deployed.cloud, "date")}
    with pytest.raises(
        TapLocalError, match=r"api-items \(orders\) .* these inputs change: rangeKey"
    ):
        up(existing)
    assert deployed.cloud.client("dynamodb").scan(TableName="orders")["Count"] == 1
