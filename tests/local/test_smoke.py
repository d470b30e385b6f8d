"""`make smoke` against the local cloud; on AWS it has not run yet."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

from taplocal.session import Session
from tests.local.conftest import HANG_SECONDS, ROOT


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


def test_other_input_than_outputs_is_an_error_without_a_trace(deployed: Session) -> None:
    done = smoke(deployed, {})
    assert (done.returncode, done.stdout) == (2, "")
    assert "pulumi stack output --json" in done.stderr and "Traceback" not in done.stderr
