"""The stack deployed on the local cloud, once for all tests of this folder."""

from __future__ import annotations

from taplocal.cloud import isolate

isolate()  # before any SDK client is made

import os  # noqa: E402
import re  # noqa: E402
import subprocess  # noqa: E402
import sys  # noqa: E402
import uuid  # noqa: E402
from collections.abc import Callable, Iterator  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import Any  # noqa: E402

import pytest  # noqa: E402

import tap_stack  # noqa: E402
from taplocal import access, session  # noqa: E402
from taplocal.access import Response  # noqa: E402
from taplocal.session import Session  # noqa: E402
from tests.contract import check_response, operations  # noqa: E402
from tests.local.small import Small, made  # noqa: E402

ROOT = Path(__file__).parents[2]
HANG_SECONDS = 240  # a guard against hanging, not a measure of speed


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The data folder of the tests' local cloud."""
    return tmp_path_factory.mktemp("taplocal")


@pytest.fixture(scope="session")
def deployed(data: Path) -> Iterator[Session]:
    """The dev environment, deployed for real."""
    try:
        yield session.up(ROOT, "dev", folder=data, say=lambda text: None, report=lambda step: None)[
            0
        ]
    finally:
        session.down(ROOT, None, folder=data, report=lambda step: None)


@pytest.fixture(scope="module")
def unthrottled(deployed: Session) -> Iterator[None]:
    """Raises the limits of the API to those of AWS, for what is not about them."""
    client = deployed.cloud.client("apigatewayv2")
    stage = {"ApiId": deployed.outputs["api_url"].rpartition("/")[2], "StageName": "$default"}
    found, kinds = client.get_stage(**stage), ("DefaultRouteSettings", "RouteSettings")
    client.update_stage(**stage, **{kind: {} for kind in kinds})
    try:
        yield
    finally:
        client.update_stage(**stage, **{kind: found[kind] for kind in kinds})


Call = Callable[..., Response]


@pytest.fixture(scope="module")  # as a module may have a stack of its own
def ann(deployed: Session) -> Call:
    """Calls the API as a person, with method, path, body and headers."""
    return caller(deployed, access.person_token(deployed, "ann@example.com"))


@pytest.fixture(scope="module")
def bob(deployed: Session) -> Call:
    """Calls the API as another person."""
    return caller(deployed, access.person_token(deployed, "bob@example.com"))


@pytest.fixture(scope="module")
def robot(deployed: Session) -> Call:
    """Calls the API as a machine."""
    return caller(deployed, access.machine_token(deployed))


def caller(deployed: Session, token: str) -> Call:
    def call(method: str, path: str, body: str | None = None, **headers: str) -> Response:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        response = access.call(deployed, method, path, token, body, named)
        route = f"{method} {re.sub('^/items/[^/?]+$', '/items/{id}', path.partition('?')[0])}"
        if route in operations():
            check_response(route, response.status, response.headers, response.body)
        return response

    return call


def assert_problem(response: Response, status: int) -> None:
    """Fails if a response is not a problem with this status."""
    assert response.status == status, response.body
    assert response.headers["content-type"] == "application/problem+json"
    problem = response.json()
    name = problem["type"].removeprefix("/openapi.yaml#")
    assert tap_stack.PROBLEM_TYPES[name] == (status, problem["title"])
    assert problem["status"] == status
    assert problem["request_id"]


@pytest.fixture
def small(deployed: Session) -> Iterator[Small]:
    """What a test makes for itself on the emulator."""
    with made(deployed) as found:
        yield found


@pytest.fixture
def fresh() -> str:
    """An id that no other test uses."""
    return f"t-{uuid.uuid4().hex}"


def taplocal(
    *arguments: str, env: dict[str, str] | None = None, **options: Any
) -> subprocess.CompletedProcess[str]:
    """Runs the command line in a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "taplocal", *arguments],
        cwd=ROOT,
        env={**os.environ, **(env or {})},
        capture_output=True,
        text=True,
        timeout=HANG_SECONDS,
        check=False,
        **options,
    )
