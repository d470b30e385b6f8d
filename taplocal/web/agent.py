"""What the CloudWatch agent does on an instance: ships log files, and measures memory and disk.

Its configuration is the one that the user data gives it. As on AWS it acts with the instance's
role. Of the configuration: logs_collected.files.collect_list, mem_used_percent, disk used_percent,
append_dimensions and aggregation_dimensions.
"""

from __future__ import annotations

import asyncio
import io
import json
import os
import time
import urllib.request
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

from taplocal.web.exchange import opener

PERIOD = 1.0  # seconds: the agent's minute, compressed by 60
READ_LIMIT = 262_144  # bytes of a file at a time; one call takes four times as much
EVENTS_LIMIT = 10_000  # CloudWatch's, of a call
#: JSON protocols: service -> the prefix of its operations, the version of its JSON.
TARGETS = {
    "logs": ("Logs_20140328", "1.1"),
    "monitoring": ("GraniteServiceVersion20100801", "1.0"),
}
Keys = Callable[[], Awaitable[Mapping[str, Any]]]
Measure = Callable[[], Mapping[str, float]]


class File:
    """A log file that is shipped; `owner` is the only one whose file is read.

    Who made the link or the configuration may not read what the supervisor may.
    """

    def __init__(self, path: Path, group: str, stream: str, owner: int):
        self.path, self.group, self.stream, self.owner = path, group, stream, owner
        self.position, self.known = 0, False

    def read(self) -> tuple[list[str], int]:
        """New whole lines, and the position after them."""
        try:
            file = os.open(self.path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        except FileNotFoundError:
            return [], 0
        try:
            about = os.fstat(file)
            if about.st_uid != self.owner:
                raise PermissionError(f"{self.path} is of another user")
            if about.st_size < self.position:  # truncated
                self.position = 0
            content = os.pread(file, READ_LIMIT, self.position)
        finally:
            os.close(file)
        if len(content) < READ_LIMIT or b"\n" in content:
            content = content[: content.rfind(b"\n") + 1]
        lines = io.BytesIO(content).readlines()[:EVENTS_LIMIT]
        texts = [each.decode(errors="replace").rstrip("\r\n") for each in lines]
        return [each for each in texts if each.strip()], self.position + sum(map(len, lines))


class Agent:
    """The agent of one instance; `names` are what placeholders such as instance_id stand for."""

    def __init__(
        self,
        config: Mapping[str, Any],
        *,
        endpoint: str,
        region: str,
        names: Mapping[str, str],
        owner: int,
        keys: Keys,
        measure: Measure,
        say: Callable[[str], None],
    ):
        self.endpoint, self.region, self.keys = endpoint, region, keys
        self.measure, self.say = measure, say
        files = config.get("logs", {}).get("logs_collected", {}).get("files", {})
        self.files = [
            File(
                Path(each["file_path"]),
                filled(each["log_group_name"], names),
                filled(each.get("log_stream_name", "{instance_id}"), names),
                owner,
            )
            for each in files.get("collect_list", [])
        ]
        metrics = config.get("metrics", {})
        self.namespace = metrics.get("namespace", "CWAgent")
        collected = metrics.get("metrics_collected", {})
        self.metrics = [
            f"{kind}_{str(each).removeprefix(f'{kind}_')}"
            for kind in collected
            for each in collected[kind].get("measurement", [])
        ]
        aws = {f"${{aws:{key}}}": value for key, value in names.items()}
        dimensions = metrics.get("append_dimensions", {})
        self.dimensions = {key: aws.get(value, value) for key, value in dimensions.items()}
        self.aggregations = metrics.get("aggregation_dimensions", [])

    async def run(self) -> None:
        """Ships and measures until it is cancelled; what fails is said once, and tried again."""
        said = ""
        while True:
            await asyncio.sleep(PERIOD)
            try:
                await self.ship()
                await self.report()
            except Exception as error:  # noqa: BLE001 - the agent goes on, as AWS's does
                if str(error) != said:
                    self.say(f"amazon-cloudwatch-agent: {error}")
                said = str(error)

    async def ship(self) -> None:
        """Sends the new lines of all files."""
        for file in self.files:
            lines, position = file.read()
            if not lines:
                file.position = position
                continue
            where = {"logGroupName": file.group, "logStreamName": file.stream}
            if not file.known:
                await self.call("logs", "CreateLogStream", where)
                file.known = True
            now = int(time.time() * 1000)
            events = [{"timestamp": now, "message": each} for each in lines]
            await self.call("logs", "PutLogEvents", {**where, "logEvents": events})
            file.position = position

    async def report(self) -> None:
        """Sends what is measured, for the dimensions of each instance and for each aggregation."""
        values = self.measure()
        sets = [self.dimensions]
        for keys in self.aggregations:
            chosen = {key: self.dimensions[key] for key in keys if key in self.dimensions}
            sets += [chosen] if chosen not in sets else []
        data = [
            {
                "MetricName": name,
                "Value": values[name],
                "Unit": "Percent",
                "Dimensions": [{"Name": key, "Value": value} for key, value in chosen.items()],
            }
            for name in self.metrics
            if name in values
            for chosen in sets
        ]
        if data:
            await self.call(
                "monitoring", "PutMetricData", {"Namespace": self.namespace, "MetricData": data}
            )

    async def call(self, service: str, operation: str, payload: Mapping[str, Any]) -> None:
        """Makes a call with the instance's role; a stream that exists is no failure."""
        from botocore.auth import SigV4Auth
        from botocore.awsrequest import AWSRequest
        from botocore.credentials import Credentials

        prefix, version = TARGETS[service]
        keys = await self.keys()
        request = AWSRequest(
            "POST",
            f"{self.endpoint}/",
            headers={
                "Content-Type": f"application/x-amz-json-{version}",
                "X-Amz-Target": f"{prefix}.{operation}",
            },
            data=json.dumps(payload).encode(),
        )
        signer = Credentials(keys["AccessKeyId"], keys["SecretAccessKey"], keys["SessionToken"])
        SigV4Auth(signer, service, self.region).add_auth(request)
        await asyncio.to_thread(send, request.url, request.data, dict(request.headers.items()))


def send(url: str, body: bytes, headers: dict[str, str]) -> None:
    """Sends a request; RuntimeError with what the service says, except that a stream exists."""
    try:
        opener.open(urllib.request.Request(url, body, headers, method="POST"), timeout=10).close()
    except urllib.error.HTTPError as error:
        text = error.read(READ_LIMIT).decode(errors="replace")
        if "ResourceAlreadyExistsException" not in text:
            raise RuntimeError(f"{headers['X-Amz-Target']}: {error.code} {text[:500]}") from None


def filled(text: str, names: Mapping[str, str]) -> str:
    """A text with its placeholders, such as {instance_id}."""
    for key, value in {"instance_id": "InstanceId", "hostname": "InstanceId"}.items():
        text = text.replace(f"{{{key}}}", names.get(value, ""))
    return text
