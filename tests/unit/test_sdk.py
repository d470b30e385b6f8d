"""The API's tests once more, with the SDK in place of the signed client: the setting `api_client`."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from botocore.exceptions import ClientError, ReadTimeoutError

import tap_stack
from tests.fakes import FakeDynamoDB, FakeS3, FakeSSM
from tests.unit.conftest import ENVIRONMENT, KEY, NEVER, Api
from tests.unit.test_items import *  # noqa: F403 - its tests, with the fixture below
from tests.unit.test_paging import *  # noqa: F403
from tests.unit.test_serverless_api import *  # noqa: F403


class AsSdk:
    """A fake whose errors are those of the SDK."""

    def __init__(self, fake: Any):
        self.fake = fake

    def __getattr__(self, operation: str) -> Callable[..., Any]:
        def call(**arguments: Any) -> Any:
            try:
                response = getattr(self.fake, operation)(**arguments)
            except tap_stack.ServiceError as error:
                if error.response["Error"]["Code"] == "ConnectionError":
                    raise ReadTimeoutError(endpoint_url="https://aws") from error
                status = 500 if error.response["Error"]["Code"].startswith("Internal") else 400
                metadata = {**error.response["ResponseMetadata"], "HTTPStatusCode": status}
                response = {**error.response, "ResponseMetadata": metadata}
                raise ClientError(response, operation) from error
            return {**(response or {}), "ResponseMetadata": {"HTTPStatusCode": 200}}

        return call


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    """The time of an invocation, long enough."""
    clock = {"end": time.monotonic() + 60_000}
    monkeypatch.setattr(tap_stack, "_clock", clock)
    return clock


@pytest.fixture
def api(monkeypatch: pytest.MonkeyPatch) -> Iterator[Api]:
    """The API on an empty table, which it reaches by the SDK."""
    for name, value in {**ENVIRONMENT, "API_CLIENT": "sdk"}.items():
        monkeypatch.setenv(name, value)
    table, ssm = FakeDynamoDB(), FakeSSM(paging=KEY)
    fakes = {"dynamodb": AsSdk(table), "ssm": AsSdk(ssm), "s3": FakeS3()}
    monkeypatch.setattr(tap_stack, "_clients", fakes)
    monkeypatch.setattr(
        tap_stack, "_paging", dict(tap_stack._paging, keys=[], read=NEVER, tried=NEVER)
    )
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    yield Api(table, ssm)
