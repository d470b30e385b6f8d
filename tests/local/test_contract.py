"""openapi.yaml against the running API: schemathesis sends what it allows and what it forbids."""

from __future__ import annotations

import subprocess
import sys

import pytest

from taplocal import access
from taplocal.session import Session
from tests.contract import operations
from tests.local.conftest import HANG_SECONDS, ROOT


@pytest.mark.usefixtures("unthrottled")
def test_the_running_api_is_as_its_contract_says(deployed: Session) -> None:
    command = [sys.executable, "-m", "schemathesis.cli"]
    command += ["--config-file", "tests/local/schemathesis.toml", "run", "openapi.yaml"]
    command += ["--url", deployed.outputs["api_url"], "--no-color"]
    command += ["--header", f"Authorization: Bearer {access.machine_token(deployed)}"]
    completed = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=5 * HANG_SECONDS, check=False
    )
    said = completed.stdout[-20_000:] + completed.stderr
    assert completed.returncode == 0, said
    assert f"Tested: {len(operations())}\n" in said, said
