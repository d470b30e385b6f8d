"""The program's registered graph, without any cloud: each environment once, recorded."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from taplocal.program import Registration, run
from taplocal.project import Project

ROOT = Path(__file__).parents[2]
ENVIRONMENTS = ("dev", "staging", "prod")
ACCOUNT, REGION = "111122223333", "eu-west-1"
LOCATION = {
    "accountId": ACCOUNT,
    "region": REGION,
    "partition": "aws",
    "names": [f"{REGION}{letter}" for letter in "abc"],
}


class Recorder:
    """A backend that keeps every registration and makes up what AWS would compute; nothing in a preview."""

    def __init__(self, preview: bool = False) -> None:
        self.preview = preview
        self.resources: list[Registration] = []

    def register(self, resource: Registration) -> tuple[str, dict[str, Any]]:
        self.resources.append(resource)
        if self.preview or not resource.custom:
            return "", {}
        name, kind = resource.name, resource.type.split(":")[-1]
        return f"{name}-id", {
            "arn": f"arn:aws:test:{REGION}:{ACCOUNT}:{kind}/{name}",
            "apiEndpoint": "https://api.example",
            "endpoint": f"cognito-idp.{REGION}.amazonaws.com/pool",
            "executionArn": f"arn:aws:execute-api:{REGION}:{ACCOUNT}:api",
            "invokeArn": f"arn:aws:apigateway:{REGION}:lambda:path/functions/{name}/invocations",
            "keyId": f"{name}-key-id",
            "address": "database.example",
            "allocationId": f"{name}-allocation",
            "arnSuffix": f"app/{name}/1",
            "certificateArn": f"arn:aws:test:{REGION}:{ACCOUNT}:{kind}/{name}",
            "dnsName": "balancer.example",
            "domainValidationOptions": [
                {
                    "resourceRecordName": "_proof",
                    "resourceRecordType": "CNAME",
                    "resourceRecordValue": "_value",
                }
            ],
            "latestVersion": 1,
            "masterUserSecrets": [
                {"secretArn": f"arn:aws:secretsmanager:{REGION}:{ACCOUNT}:secret:db"}
            ],
            "url": f"https://sqs.{REGION}.amazonaws.com/{ACCOUNT}/{name}",
            "version": "1",
        }

    def invoke(self, token: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
        return LOCATION


@dataclass(frozen=True)
class Graph:
    """What one run of the program registered."""

    resources: list[Registration]
    outputs: dict[str, Any] = field(default_factory=dict)

    def of(self, kind: str) -> list[Registration]:
        """The resources of a type, by the last part of its token or all of it."""
        return [each for each in self.custom() if kind in (each.type, each.type.split(":")[-1])]

    def one(self, kind: str, name: str = "") -> Registration:
        """The only resource of a type, or the only one with this logical name."""
        (found,) = [each for each in self.of(kind) if name in ("", each.name)]
        return found

    def custom(self) -> list[Registration]:
        """The resources that exist in AWS."""
        return [each for each in self.resources if each.custom]


@functools.cache
def graph_of(env: str, preview: bool = False, **config: str) -> Graph:
    """The graph of an environment under some settings."""
    recorder = Recorder(preview)
    outputs = run(Project.load(ROOT, env, {"aws:region": REGION, **config}), recorder, preview)
    return Graph(recorder.resources, outputs)


@pytest.fixture(params=ENVIRONMENTS)
def env(request: pytest.FixtureRequest) -> str:
    """Each environment in turn."""
    return str(request.param)


@pytest.fixture
def graph(env: str) -> Graph:
    """The graph of each environment in turn."""
    return graph_of(env)


def statements(policy: str) -> list[dict[str, Any]]:
    """The statements of a policy document."""
    return list(json.loads(policy)["Statement"])
