"""Runs the program without a cloud: records what it registers, invents what AWS would compute."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from taplocal.program import Registration
from taplocal.state import Deployed

ACCOUNT, REGION = "111122223333", "eu-west-1"
LOCATION = {
    "accountId": ACCOUNT,
    "region": REGION,
    "partition": "aws",
    "id": "ami-0123456789abcdef0",
    "names": [f"{REGION}{letter}" for letter in "abc"],
}


class Recorder:
    """A backend that records each registration and invents its outputs; none in a preview."""

    def __init__(self, preview: bool = False) -> None:
        self.preview = preview
        self.resources: list[Registration] = []
        self.deployed: dict[str, Deployed] = {}  # by URN, with what was invented

    def register(self, resource: Registration) -> tuple[str, dict[str, Any]]:
        self.resources.append(resource)
        if self.preview or not resource.custom:
            return "", {}
        resource_id, outputs = self._invented(resource)
        kind, name = resource.type, resource.name
        self.deployed[resource.urn] = Deployed(kind, name, resource_id, resource.inputs, outputs)
        return resource_id, outputs

    def _invented(self, resource: Registration) -> tuple[str, dict[str, Any]]:
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
            "clientSecret": f"{name}-secret",
            "certificateArn": f"arn:aws:test:{REGION}:{ACCOUNT}:{kind}/{name}",
            "dnsName": "balancer.example",
            "zoneId": "ZBALANCER",
            "domainNameConfiguration": {
                "hostedZoneId": "ZAPI",
                "targetDomainName": "d-1.execute-api.example",
            },
            "domainValidationOptions": [  # a set: in no order
                {
                    "domainName": each,
                    "resourceRecordName": f"_proof.{each}",
                    "resourceRecordType": "CNAME",
                    "resourceRecordValue": "_value",
                }
                for each in (
                    *resource.inputs.get("subjectAlternativeNames", ()),
                    resource.inputs.get("domainName"),
                )
            ],
            "latestVersion": 1,
            "masterUserSecrets": [
                {"secretArn": f"arn:aws:secretsmanager:{REGION}:{ACCOUNT}:secret:db"}
            ],
            "resourceId": f"{name}-resource",
            "streamArn": f"arn:aws:test:{REGION}:{ACCOUNT}:{kind}/{name}/stream/1",
            "url": f"https://sqs.{REGION}.amazonaws.com/{ACCOUNT}/{name}",
            "version": "1",
            "verdict": f"{name}: has the traffic",
        }

    def invoke(self, _token: str, _arguments: Mapping[str, Any]) -> dict[str, Any]:
        return LOCATION
