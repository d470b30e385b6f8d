"""The bootstrap program on the local cloud, and a stack whose roles have the boundary it makes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from taplocal import access, session
from taplocal.session import Session
from tests.local.conftest import ROOT
from tests.local.small import Small, code, eventually, statement
from tests.local.test_policies import as_role

ENV = "dev-bound"


@pytest.fixture(scope="module")
def account(
    deployed: Session, data: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Session]:
    """What the bootstrap program makes, for one environment."""
    folder = tmp_path_factory.mktemp("account")
    config = {"repository": "acme/tap-stack", "environments": ENV}
    made = up(ROOT / "bootstrap", "prod-bootstrap", folder, data, config)
    yield made
    session.down(ROOT / "bootstrap", None, folder=folder, report=lambda step: None)


def up(program: Path, env: str, folder: Path, data: Path, config: dict[str, str]) -> Session:
    config = {"aws:region": "us-east-1", **config}  # whatever a user has set
    quiet: dict[str, Any] = {"say": lambda text: None, "report": lambda step: None}
    return session.up(program, env, folder=folder, emulator=str(data), config=config, **quiet)[0]


@pytest.fixture(scope="module")
def bounded(
    account: Session, data: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Session]:
    """A stack whose roles have the boundary."""
    folder = tmp_path_factory.mktemp("bounded")
    boundary = account.outputs["environments"][ENV]["boundary"]
    config = {"permissions_boundary": boundary, "systems": "api,files"}
    yield up(ROOT, ENV, folder, data, config)
    session.down(ROOT, None, folder=folder, report=lambda step: None)


def test_a_stack_within_its_boundary_works(bounded: Session) -> None:
    token = access.person_token(bounded, "ann@example.com")
    made = access.call(bounded, "POST", "/items", token, json.dumps({"name": "tea"}))
    assert made.status == 201
    form, sent = access.upload(bounded, token, "a.txt", b"some text", "text/plain")
    assert sent.status < 300
    path = f"/files/{form.json()['id']}"
    eventually(lambda: access.call(bounded, "GET", path, token).status == 200)


def test_a_role_can_do_no_more_than_its_boundary_whatever_it_is_granted(
    small: Small, account: Session, bounded: Session
) -> None:
    role, bucket = (
        f"tap-stack-files-{ENV}",
        account.outputs["state_url"].split("/")[2].split("?")[0],
    )
    calls: dict[str, Any] = {
        "s3": lambda client: client.list_objects_v2(Bucket=bucket),
        "iam": lambda client: client.list_roles(),
        "dynamodb": lambda client: client.scan(TableName="tap-stack-items-dev"),
    }
    small.grant(f"role/{role}", statement("s3:*", "iam:*", "dynamodb:*", on="*"))
    for service, call in calls.items():
        client = as_role(bounded, role, service)
        assert "AccessDenied" in code(lambda: call(client)), service  # noqa: B023 - called at once


def test_the_bootstrap_program_is_unchanged_when_it_runs_again(
    account: Session, data: Path
) -> None:
    config = {"aws:region": "us-east-1", "repository": "acme/tap-stack", "environments": ENV}
    again = session.up(
        ROOT / "bootstrap", "prod-bootstrap", folder=account.folder, config=config,
        say=lambda text: None, report=lambda step: None,
    )[1]  # fmt: skip
    assert again.counts().keys() == {"unchanged"}
