"""openapi.yaml against the running API: schemathesis sends what it allows and what it forbids."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from taplocal import access
from taplocal.session import Session
from tests.contract import operations
from tests.local.conftest import HANG_SECONDS, ROOT


@contextmanager
def unthrottled(deployed: Session) -> Iterator[None]:
    """Raises the limits of the stage: they are not of the contract's operations."""
    client = deployed.cloud.client("apigatewayv2")
    stage = {"ApiId": deployed.outputs["api_url"].rpartition("/")[2], "StageName": "$default"}
    found = client.get_stage(**stage)
    kinds = ("DefaultRouteSettings", "RouteSettings")
    client.update_stage(**stage, **{kind: {} for kind in kinds})
    try:
        yield
    finally:
        client.update_stage(**stage, **{kind: found[kind] for kind in kinds})


def test_the_running_api_is_as_its_contract_says(deployed: Session) -> None:
    command = [sys.executable, "-m", "schemathesis.cli"]
    command += ["--config-file", "tests/local/schemathesis.toml", "run", "openapi.yaml"]
    command += ["--url", deployed.outputs["api_url"], "--no-color"]
    command += ["--header", f"Authorization: Bearer {access.machine_token(deployed)}"]
    with unthrottled(deployed):
        completed = subprocess.run(
            command, cwd=ROOT, capture_output=True, text=True, timeout=5 * HANG_SECONDS, check=False
        )
    said = completed.stdout[-20_000:] + completed.stderr
    assert completed.returncode == 0, said
    assert f"Tested: {len(operations())}\n" in said, said
