"""Deployed as the role of a workflow, whose policies the emulator enforces, from the bootstrap on.

What a request of the local cloud asks beside AWS is granted to the role besides: REFUSED of
test_deploy_permissions.py. What AWS asks and nothing here does is in UNASKED there.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import boto3
import pytest
from botocore.config import Config

from bootstrap import permissions
from taplocal import session
from taplocal.cloud import Cloud
from taplocal.errors import TapLocalError
from taplocal.session import Session
from tests.local import test_bootstrap
from tests.local.conftest import ROOT
from tests.local.small import code, document, statement
from tests.local.test_deploy_permissions import CHANGED, REFUSED, SETTINGS

DEV, PROD = "dev-mine", "prod-mine"
GITHUB = "token.actions.githubusercontent.com"
ONE_SYSTEM = {"systems": "api"}


class Account:
    """What the bootstrap program has made, on the emulator of the other tests."""

    def __init__(self, made: Session, data: Path):
        self.made, self.data, self.iam = made, data, made.cloud.client("iam")
        self.outputs = made.outputs["environments"]
        for env in (DEV, PROD):
            local = [statement(action, on=resource) for action, resource in REFUSED]
            self.iam.put_role_policy(
                RoleName=self.name(env), PolicyName="local", PolicyDocument=document(*local)
            )

    def name(self, env: str, role: str = "deploy") -> str:
        """The name of a role."""
        return str(self.outputs[env][role]).rpartition("/")[2]

    def assume(self, env: str, role: str, claim: str, repository: str = "acme/tap-stack") -> Any:
        """What a workflow gets for a token of GitHub with this claim: a session with its keys."""
        claims = {
            "iss": f"https://{GITHUB}",
            "aud": "sts.amazonaws.com",
            "sub": f"repo:{repository}:{claim}",
        }
        parts = [json.dumps(each).encode() for each in ({"alg": "RS256"}, claims, {})]
        token = ".".join(base64.urlsafe_b64encode(each).decode().rstrip("=") for each in parts)
        cloud = self.made.cloud
        sts = Cloud(cloud.emulator, cloud.region).client("sts")
        # The guard lets in what is signed alone, which AWS does not ask for here.
        chooser = "choose-signer.sts.AssumeRoleWithWebIdentity"
        sts.meta.events.register_first(chooser, lambda **_: "v4")
        keys = sts.assume_role_with_web_identity(
            RoleArn=self.outputs[env][role], RoleSessionName="workflow", WebIdentityToken=token
        )["Credentials"]
        return boto3.Session(
            keys["AccessKeyId"], keys["SecretAccessKey"], keys["SessionToken"], cloud.region
        )

    def client(self, env: str, service: str) -> Any:
        """A client of a role of deployment."""
        return self.assume(env, "deploy", f"environment:{env}").client(
            service, endpoint_url=self.made.cloud.emulator.url,
            config=Config(retries={"total_max_attempts": 1}),
        )  # fmt: skip

    @contextmanager
    def deploying(self, env: str) -> Iterator[None]:
        """Makes all requests of the engine, of its handlers and rollouts, those of a role."""
        keys = self.assume(env, "deploy", f"environment:{env}")

        def client(cloud: Cloud, service: str) -> Any:
            return keys.client(service, endpoint_url=cloud.emulator.url)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Cloud, "_client", client)
            yield

    def up(self, env: str, folder: Path, config: Mapping[str, str], named: str = "") -> Any:
        """Deploys as the role, by default its own environment."""
        boundary = {"permissions_boundary": self.outputs[env]["boundary"]}
        given = {"aws:region": "us-east-1", **boundary, **config}
        with self.deploying(env):
            return session.up(
                ROOT, named or env, folder=folder, emulator=str(self.data), config=given,
                say=lambda text: None, report=lambda step: None,
            )[1]  # fmt: skip

    def down(self, env: str, folder: Path) -> None:
        """Deletes as the role."""
        with self.deploying(env):
            session.down(ROOT, env, folder=folder, report=lambda step: None)

    @contextmanager
    def without(self, env: str, action: str) -> Iterator[None]:
        """Takes an action away from the role of deployment, for a moment."""
        granting = {}
        attached = self.iam.list_attached_role_policies(RoleName=self.name(env))
        for arn in (each["PolicyArn"] for each in attached["AttachedPolicies"]):
            version = self.iam.get_policy(PolicyArn=arn)["Policy"]["DefaultVersionId"]
            found = self.iam.get_policy_version(PolicyArn=arn, VersionId=version)
            text = json.dumps(found["PolicyVersion"]["Document"])
            if action in text:
                granting[arn] = text
                self.write(arn, text.replace(f'"{action}"', '"xray:PutTraceSegments"'))
        assert granting, f"{action} is not granted"
        try:
            yield
        finally:
            for arn, text in granting.items():
                self.iam.delete_policy_version(PolicyArn=arn, VersionId=self.write(arn, text))

    def write(self, arn: str, text: str) -> str:
        """Makes a policy have this text; the version that had been before."""
        before = self.iam.get_policy(PolicyArn=arn)["Policy"]["DefaultVersionId"]
        self.iam.create_policy_version(PolicyArn=arn, PolicyDocument=text, SetAsDefault=True)
        return str(before)


@pytest.fixture(scope="module")
def account(
    deployed: Session, data: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Account]:
    folder = tmp_path_factory.mktemp("deployers")
    config = {"repository": "acme/tap-stack", "environments": f"{DEV},{PROD}"}
    program, env = ROOT / "bootstrap", "prod-bootstrap"
    made = Account(test_bootstrap.up(program, env, folder, data, config), data)
    yield made
    for each in (DEV, PROD):
        made.iam.delete_role_policy(RoleName=made.name(each), PolicyName="local")
    session.down(program, None, folder=folder, report=lambda step: None)


@pytest.fixture
def folder(account: Account, tmp_path: Path) -> Iterator[Path]:
    """The folder of a stack, which the account's root deletes in the end."""
    yield tmp_path
    session.down(ROOT, None, folder=tmp_path, report=lambda step: None)


def test_a_role_creates_changes_and_deletes_its_environment(account: Account, folder: Path) -> None:
    config = {key: x for key, x in SETTINGS.items() if key != "permissions_boundary"}
    assert account.up(DEV, folder, config).counts().keys() == {"created"}
    assert account.up(DEV, folder, {**config, **CHANGED}).counts()["updated"] > 100
    account.down(DEV, folder)
    assert session.deployed_environments(folder) == []


@pytest.mark.parametrize(
    ("system", "action"),
    [
        ("api", "dynamodb:CreateTable"),
        ("api", "iam:PassRole"),
        ("api", "kms:CreateAlias"),
        ("api", "lambda:CreateAlias"),
        ("web", "ec2:AttachInternetGateway"),
        ("web", "rds:CreateDBInstance"),
    ],
)
def test_without_an_action_it_is_refused_and_with_it_goes_on(
    account: Account, folder: Path, system: str, action: str
) -> None:
    with (
        account.without(DEV, action),
        pytest.raises(TapLocalError, match=f"is not authorized to perform: {action} "),
    ):
        account.up(DEV, folder, {"systems": system})
    counts = account.up(DEV, folder, {"systems": system}).counts()
    assert counts["unchanged"] > 0 < counts["created"]


def test_it_makes_no_role_without_the_boundary(account: Account, folder: Path) -> None:
    with pytest.raises(TapLocalError, match="is not authorized to perform: iam:CreateRole "):
        account.up(DEV, folder, {**ONE_SYSTEM, "permissions_boundary": ""})


def test_it_reaches_no_other_environment(account: Account, deployed: Session, folder: Path) -> None:
    with pytest.raises(TapLocalError, match="is not authorized to perform: "):
        account.up(DEV, folder, ONE_SYSTEM, named="dev-hers")
    (vpc,) = (x for x in deployed.state.resources.values() if x.type == "aws:ec2/vpc:Vpc")
    calls: list[tuple[str, str, dict[str, Any]]] = [
        ("cognito-idp", "delete_user_pool", {"UserPoolId": deployed.outputs["user_pool_id"]}),
        ("dynamodb", "delete_table", {"TableName": "tap-stack-items-dev"}),
        ("ec2", "delete_vpc", {"VpcId": vpc.id}),
        ("kms", "schedule_key_deletion", {"KeyId": deployed.outputs["key_arn"]}),
        ("lambda", "delete_function", {"FunctionName": "tap-stack-api-dev"}),
    ]
    for service, operation, arguments in calls:
        client = account.client(DEV, service)
        denied = code(lambda: getattr(client, operation)(**arguments))  # noqa: B023 - called at once
        assert "AccessDenied" in denied or denied == "UnauthorizedOperation", (operation, denied)


def test_what_has_an_id_for_a_name_is_tagged_as_its_environments(account: Account) -> None:
    ec2, kms = account.client(DEV, "ec2"), account.client(DEV, "kms")
    for env, may in {DEV: True, PROD: False}.items():
        tags = {"Project": "tap-stack", "Environment": env}
        pairs = [{"Key": key, "Value": value} for key, value in tags.items()]
        tagged = [{"ResourceType": "vpc", "Tags": pairs}]
        of_key = [{"TagKey": key, "TagValue": value} for key, value in tags.items()]
        made: list[Any] = []
        calls = (
            lambda: made.append(ec2.create_vpc(CidrBlock="10.8.0.0/16", TagSpecifications=tagged)),  # noqa: B023 - called at once
            lambda: made.append(kms.create_key(Tags=of_key)),  # noqa: B023 - as above
        )
        assert [bool(code(each)) for each in calls] == [not may] * 2
        if made:
            ec2.delete_vpc(VpcId=made[0]["Vpc"]["VpcId"])
            kms.schedule_key_deletion(KeyId=made[1]["KeyMetadata"]["KeyId"])
    assert code(lambda: ec2.create_vpc(CidrBlock="10.8.0.0/16")) == "UnauthorizedOperation"
    assert "AccessDenied" in code(kms.create_key)


@pytest.mark.parametrize(
    ("role", "claim", "repository"),
    [
        ("deploy", "pull_request", "acme/tap-stack"),
        ("deploy", f"environment:{PROD}", "acme/tap-stack"),
        ("deploy", f"environment:{DEV}", "eve/tap-stack"),
        ("drift", "ref:refs/heads/feature", "acme/tap-stack"),
        ("plan", "ref:refs/heads/main", "acme/tap-stack"),
    ],
)
def test_a_token_of_another_workflow_gets_no_keys(
    account: Account, role: str, claim: str, repository: str
) -> None:
    assert code(lambda: account.assume(DEV, role, claim, repository)) == "AccessDenied"


def test_in_prod_it_deploys_and_deletes_no_data(account: Account, folder: Path) -> None:
    made = account.up(
        PROD, folder, {"systems": "api,files", "callback_urls": "https://app.tap.dev"}
    )
    assert made.counts().keys() == {"created"}
    prod = session.opened(ROOT, PROD, folder)
    bucket, outputs = prod.outputs["files_bucket_name"], prod.outputs
    of_bucket = {"Bucket": bucket, "Key": "a.txt"}
    version = prod.cloud.client("s3").put_object(**of_bucket, Body=b"text")["VersionId"]
    with pytest.raises(
        TapLocalError, match=r"not authorized to perform: .* explicit deny"
    ) as error:
        account.down(PROD, folder)
    assert any(each in str(error.value) for each in permissions.STATEFUL)
    attempts: dict[str, tuple[str, str, dict[str, Any]]] = {
        "cognito-idp:DeleteUserPool": (
            "cognito-idp", "delete_user_pool", {"UserPoolId": outputs["user_pool_id"]}
        ),
        "dynamodb:DeleteTable": (
            "dynamodb", "delete_table", {"TableName": f"tap-stack-items-{PROD}"}
        ),
        "kms:ScheduleKeyDeletion": (
            "kms", "schedule_key_deletion", {"KeyId": outputs["key_arn"]}
        ),
        "rds:DeleteDBInstance": (
            "rds", "delete_db_instance", {"DBInstanceIdentifier": f"tap-stack-database-{PROD}"}
        ),
        "rds:DeleteDBSnapshot": (
            "rds", "delete_db_snapshot",
            {"DBSnapshotIdentifier": f"tap-stack-database-{PROD}-final-1"},
        ),
        "s3:DeleteBucket": ("s3", "delete_bucket", {"Bucket": bucket}),
        "s3:DeleteObject": ("s3", "delete_object", of_bucket),
        "s3:DeleteObjectVersion": ("s3", "delete_object", {**of_bucket, "VersionId": version}),
    }  # fmt: skip
    assert attempts.keys() == set(permissions.STATEFUL)
    for action, (service, operation, arguments) in attempts.items():
        client = account.client(PROD, service)
        denied = code(lambda: getattr(client, operation)(**arguments))  # noqa: B023 - called at once
        assert "AccessDenied" in denied, (action, denied)
    assert prod.cloud.client("s3").get_object(**of_bucket, VersionId=version)


def test_it_writes_the_state_of_its_environment_alone(account: Account) -> None:
    bucket = account.made.outputs["state_url"].split("/")[2].split("?")[0]
    s3 = account.client(DEV, "s3")

    def put(path: str) -> str:
        return code(lambda: s3.put_object(Bucket=bucket, Key=f".pulumi/{path}", Body=b"{}"))

    assert put(f"stacks/tap-stack/{DEV}.json") == ""
    assert put(f"locks/organization/tap-stack/{DEV}/1.json") == ""
    assert put(f"stacks/tap-stack/{PROD}.json") == "AccessDenied"
    assert put("meta.yaml") == "AccessDenied"  # it is that of all environments
    policy = document(statement("s3:*", on="*"))
    assert code(lambda: s3.put_bucket_policy(Bucket=bucket, Policy=policy)) == "AccessDenied"
