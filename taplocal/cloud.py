"""The emulator as the handlers see it: SDK clients, account, region, ARNs, data sources."""

from __future__ import annotations

import functools
import os
import threading
from typing import Any

import boto3
from botocore.config import Config

from taplocal.emulator import ACCOUNT, Emulator
from taplocal.errors import UnsupportedError

used: set[str] = set()  # the services of which this process has made clients
MARKER = "/taplocal/marker"  # the SSM parameter that a restarted emulator has lost


def isolate() -> None:
    """Removes the user's AWS settings from this process; call it before any SDK client exists."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        del os.environ[name]
    os.environ.update(
        AWS_CONFIG_FILE=os.devnull,
        AWS_SHARED_CREDENTIALS_FILE=os.devnull,
        AWS_EC2_METADATA_DISABLED="true",
    )


_creating = threading.Lock()  # clients of one session are to be created one at a time


@functools.cache
def _session() -> Any:
    """The session of all clouds of this process: what it reads of a service, it reads once."""
    return boto3.Session()


class Cloud:
    """The boto3 clients of one emulator, created on first use; safe for threads."""

    def __init__(self, emulator: Emulator, region: str):
        self.emulator, self.region, self.account = emulator, region, ACCOUNT
        self._clients: dict[str, Any] = {}

    def client(self, service: str) -> Any:
        """The boto3 client of a service, as the account's root."""
        used.add(service)
        with _creating:
            if service not in self._clients:
                self._clients[service] = self._client(service)
            return self._clients[service]

    def _client(self, service: str) -> Any:
        config = Config(
            retries={"mode": "standard", "total_max_attempts": 2},
            connect_timeout=5,
            read_timeout=60,
            max_pool_connections=32,
            proxies={},
        )
        return _session().client(
            service,
            endpoint_url=self.emulator.url,
            config=config,
            aws_access_key_id=self.emulator.access_key,
            aws_secret_access_key=self.emulator.secret_key,
            region_name=self.region,
        )

    def arn(self, service: str, resource: str) -> str:
        """The ARN of a resource in this account and region."""
        return f"arn:aws:{service}:{self.region}:{self.account}:{resource}"

    def own(self, path: str, told: Any, seconds: float = 30) -> Any:
        """The answer of one of the emulator's own paths of the web environment."""
        from taplocal.web import PATH, exchange

        emulator = self.emulator
        keys = emulator.access_key, emulator.secret_key
        return exchange.post(emulator.url, *keys, f"{PATH}/{path}", told, seconds)

    def marked(self) -> bool:
        """Whether the emulator still has the marker, and so the resources."""
        from botocore.exceptions import ClientError

        try:
            found = self.client("ssm").get_parameter(Name=self._marker_name())
        except ClientError as error:
            if error.response["Error"]["Code"] == "ParameterNotFound":
                return False
            raise
        return bool(found["Parameter"]["Value"] == self.emulator.marker)

    def mark(self) -> None:
        """Stores the marker in the emulator."""
        self.client("ssm").put_parameter(
            Name=self._marker_name(), Value=self.emulator.marker, Type="String", Overwrite=True
        )

    def _marker_name(self) -> str:
        return f"{MARKER}/{self.emulator.marker}"


def data_source(token: str, region: str) -> dict[str, Any]:
    """The result of a data source; raises UnsupportedError for an unknown one."""
    results: dict[str, dict[str, Any]] = {
        "aws:index/getCallerIdentity:getCallerIdentity": {
            "accountId": ACCOUNT,
            "arn": f"arn:aws:iam::{ACCOUNT}:root",
            "userId": ACCOUNT,
            "id": ACCOUNT,
        },
        "aws:index/getRegion:getRegion": {
            "region": region,
            "name": region,
            "id": region,
        },
        "aws:ec2/getAmi:getAmi": {"id": "ami-0123456789abcdef0"},  # any image: no instance runs
        "aws:index/getAvailabilityZones:getAvailabilityZones": {
            "names": [f"{region}{letter}" for letter in "abc"],
            "id": region,
        },
        "aws:index/getPartition:getPartition": {
            "partition": "aws",
            "dnsSuffix": "amazonaws.com",
            "reverseDnsPrefix": "com.amazonaws",
            "id": "aws",
        },
    }
    if token not in results:
        raise UnsupportedError(f"the data source {token} is not supported by the local cloud")
    return results[token]
