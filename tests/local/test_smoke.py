"""`make smoke`, of the clients and from outside, against the local cloud; on AWS it has not run yet."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

import pytest

from ops.walk import Response, Walk
from taplocal import access
from taplocal.session import Session
from tests.local.conftest import HANG_SECONDS, ROOT
from tests.local.small import eventually


def smoke(deployed: Session, outputs: dict[str, Any]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "ops.smoke"],
        input=json.dumps(outputs), cwd=ROOT, capture_output=True, text=True, check=False,
        env={**os.environ, **deployed.cloud.emulator.environment(deployed.cloud.region)},
        timeout=HANG_SECONDS,
    )  # fmt: skip


def items(deployed: Session) -> list[dict[str, Any]]:
    found = deployed.cloud.client("dynamodb").scan(TableName=deployed.outputs["table_name"])
    return [each for each in found["Items"] if each["id"]["S"].startswith("smoke#")]


def test_both_clients_agree_and_nothing_is_left_behind(deployed: Session) -> None:
    done = smoke(deployed, deployed.outputs)
    assert (done.returncode, done.stderr) == (0, ""), done.stdout + done.stderr
    lines = done.stdout.splitlines()
    assert lines[-1] == "all passed"
    assert len(lines) > 15 and all(line.startswith("ok ") for line in lines[:-1])
    assert items(deployed) == []


def test_a_check_that_fails_is_named_and_is_the_exit_code(deployed: Session) -> None:
    done = smoke(deployed, {**deployed.outputs, "function_name": "other-api-dev"})
    assert done.returncode == 1
    *lines, last = done.stdout.splitlines()
    failed = [line for line in lines if line.startswith("FAILED")]
    assert last == f"{len(failed)} failed" == "2 failed"
    assert "ssm get_parameter" in failed[0] and "check_connections" in failed[1]
    assert all("ParameterNotFound" in line for line in failed)


@pytest.mark.parametrize("name", ["acme-api-api-dev", "my-api-shop-api-dev"])
def test_the_name_of_a_project_may_have_that_of_the_function(deployed: Session, name: str) -> None:
    done = smoke(deployed, {**deployed.outputs, "function_name": name})
    assert done.stderr == ""
    assert f"/{name.removesuffix('-api-dev')}/dev/paging-key" in done.stdout


@pytest.mark.parametrize(("pointer", "checks"), [("/content_type", 0), ("/name", 1)])
def test_a_stack_that_takes_no_texts_has_no_file_walked(
    monkeypatch: pytest.MonkeyPatch, pointer: str, checks: int
) -> None:
    problem = json.dumps({"errors": [{"pointer": pointer}]}).encode()
    walked = Walk("http://127.0.0.1:1", "token")
    monkeypatch.setattr(walked, "call", lambda *_: Response(422, {}, problem))
    assert [each.passed for each in walked.file()] == [False] * checks


def test_other_input_than_outputs_is_an_error_without_a_trace(deployed: Session) -> None:
    done = smoke(deployed, {})
    assert (done.returncode, done.stdout) == (2, "")
    assert "pulumi stack output --json" in done.stderr and "Traceback" not in done.stderr


def walk(url: str, token: str = "", *options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "ops.walk", "--url", url, *options],
        cwd=ROOT, capture_output=True, text=True, check=False, timeout=HANG_SECONDS,
        env={**os.environ, "TOKEN": token},
    )  # fmt: skip


def test_a_walk_makes_and_deletes_an_item_and_a_file(deployed: Session) -> None:
    token = access.person_token(deployed, "walker@example.com")
    done = walk(deployed.outputs["api_url"], token)
    *lines, last = done.stdout.splitlines()
    assert (last, done.stderr) == ("all passed", ""), done.stdout
    assert len(lines) > 30 and all(line.startswith("ok ") for line in lines)
    assert any(line.startswith("ok     its content is what was sent") for line in lines)
    assert access.call(deployed, "GET", "/items", token).json()["items"] == []
    eventually(lambda: access.call(deployed, "GET", "/files", token).json()["files"] == [])


def test_a_walk_without_a_token_or_only_to_read_makes_nothing(deployed: Session) -> None:
    token = access.person_token(deployed, "reader@example.com")
    for options in ((), ("--read-only",)):
        done = walk(deployed.outputs["api_url"], token if options else "", *options, "--json")
        found = json.loads(done.stdout)
        assert (done.returncode, found["failed"]) == (0, 0), done.stdout
        assert not [
            x for x in found["checks"] if x["name"].startswith("POST") and " 401" not in x["name"]
        ]
    assert access.call(deployed, "GET", "/items", token).json()["items"] == []


def test_a_walk_of_what_does_not_work_names_it(deployed: Session) -> None:
    done = walk(deployed.outputs["api_url"], "not.a.token")
    assert done.returncode == 1
    assert "FAILED GET /items is 200" in done.stdout and "Traceback" not in done.stderr
    nobody = walk("http://127.0.0.1:9")
    assert nobody.returncode == 1 and "refused" in nobody.stdout


@pytest.mark.parametrize("url", ["http://api.example.com", "ftp://x", "api.example.com", ""])
def test_a_walk_sends_no_token_in_the_clear(url: str) -> None:
    done = walk(url, "secret")
    assert (done.returncode, done.stdout) == (2, "")
    assert (
        "https" in done.stderr
        and "secret are" not in done.stderr
        and "Traceback" not in done.stderr
    )
