"""The instance metadata service (IMDSv2) of all instances, on one port of loopback.

On AWS its address reaches an instance's own service only. Here every user and process of the
machine reaches the port, so each instance has a path with a random part, known to that instance
alone: it is in the environment of its processes, which nobody but their user (and root) can read,
and in no argument and no file. Without it there is nothing to ask: 404. What only the supervisor
can do for an instance, such as start a unit, is asked for on the same path.
"""

from __future__ import annotations

import asyncio
import json
import re
import secrets
import time
from collections.abc import Awaitable, Callable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

#: The keys of a role for an instance, as STS gives them: AccessKeyId, SecretAccessKey,
#: SessionToken, Expiration (a datetime).
Credentials = Callable[[str, str], Awaitable[Mapping[str, Any]]]
#: What an instance asks its supervisor: command and arguments -> exit status and output.
Command = Callable[[Sequence[str]], Awaitable[tuple[int, str]]]
Answer = tuple[int, str]

HEAD_LIMIT = 16_384  # bytes
BODY_LIMIT = 65_536
SECONDS = 10  # for a request to arrive
TOKEN_HEADER, TTL_HEADER = "x-aws-ec2-metadata-token", "x-aws-ec2-metadata-token-ttl-seconds"
LONGEST_TTL = 21_600  # seconds, AWS's
RENEWED = timedelta(minutes=15)  # before keys expire, others are there; SDKs want ten minutes
ROLE_PATH = "meta-data/iam/security-credentials/"
REQUEST_LINE = re.compile(r"([A-Z]+) (/[!-~]*) HTTP/1\.[01]")
NUMBER = re.compile(r"[0-9]{1,5}")
REASONS = {200: "OK", 400: "Bad Request", 401: "Unauthorized", 403: "Forbidden"}
REASONS |= {404: "Not Found", 405: "Method Not Allowed", 500: "Internal Server Error"}


@dataclass
class Served:
    """An instance, its session tokens (until when each is good) and its role's keys."""

    instance_id: str
    role: str
    values: MutableMapping[str, str]
    command: Command
    tokens: dict[str, float] = field(default_factory=dict)
    keys: Mapping[str, Any] = field(default_factory=dict)

    def new_token(self, ttl: str) -> Answer:
        """A session token for so many seconds."""
        if not NUMBER.fullmatch(ttl) or not 0 < int(ttl) <= LONGEST_TTL:
            return 400, f"{TTL_HEADER} must be 1 to {LONGEST_TTL}, not {ttl!r}"
        now, token = time.monotonic(), secrets.token_urlsafe(32)
        self.tokens = {each: end for each, end in self.tokens.items() if end > now}
        self.tokens[token] = now + int(ttl)
        return 200, token

    def knows(self, token: str) -> bool:
        """Whether a token is one of the instance's and still good."""
        return self.tokens.get(token, 0) > time.monotonic()

    def value(self, path: str) -> Answer:
        """What is at a path below `latest/`, or the names below it."""
        if path in self.values:
            return 200, self.values[path]
        start = f"{path.rstrip('/')}/"
        below = [each.removeprefix(start) for each in self.values if each.startswith(start)]
        names = {f"{name}{slash and '/'}" for name, slash, _ in (x.partition("/") for x in below)}
        return (200, "\n".join(sorted(names))) if names else (404, "")


class Metadata:
    """Serves what instances register; `credentials` is asked with the role and the instance's id.

    As on AWS: every read needs a session token, which only a PUT gives, and a request that came
    through a proxy (X-Forwarded-For) is refused. That a token crosses one hop only is not shown.
    """

    def __init__(self, credentials: Credentials):
        self.credentials = credentials
        self._served: dict[str, Served] = {}  # by the random part of the path
        self._server: asyncio.Server | None = None
        self.port = 0

    async def start(self) -> None:
        """Listens on a free port of 127.0.0.1."""
        self._server = await asyncio.start_server(self._connected, "127.0.0.1", 0, limit=HEAD_LIMIT)
        self.port = self._server.sockets[0].getsockname()[1]

    def add(
        self, instance_id: str, role: str, values: MutableMapping[str, str], command: Command
    ) -> str:
        """Serves an instance and returns the URL that is its AWS_EC2_METADATA_SERVICE_ENDPOINT.

        `values` are by their path below latest/, such as meta-data/ami-id, and may change.
        """
        path = secrets.token_urlsafe(24)
        self._served[path] = Served(instance_id, role, values, command)
        return f"http://127.0.0.1:{self.port}/{path}/"

    def remove(self, instance_id: str) -> None:
        """Serves an instance no more."""
        self._served = {k: v for k, v in self._served.items() if v.instance_id != instance_id}

    async def close(self) -> None:
        """Ends it."""
        if self._server:
            self._server.close()

    async def keys(self, instance_id: str) -> Mapping[str, Any]:
        """The keys of an instance's role, others shortly before they expire."""
        (served,) = [each for each in self._served.values() if each.instance_id == instance_id]
        return await self._keys(served)

    async def _keys(self, served: Served) -> Mapping[str, Any]:
        if not served.keys or served.keys["Expiration"] - datetime.now(UTC) < RENEWED:
            served.keys = await self.credentials(served.role, served.instance_id)
        return served.keys

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answers one request; a connection has no second one."""
        try:
            async with asyncio.timeout(SECONDS):
                request = await self._read(reader)
            status, text = await self._answer(*request) if request else (400, "")
            body = text.encode()
            head = f"HTTP/1.1 {status} {REASONS[status]}\r\nContent-Length: {len(body)}\r\n"
            head += "Content-Type: text/plain\r\nConnection: close\r\n\r\n"
            writer.write(head.encode() + body)
            await writer.drain()
        except (OSError, EOFError, TimeoutError, ValueError):
            pass  # whoever asked is gone, or asked for nothing
        finally:
            writer.close()

    async def _read(
        self, reader: asyncio.StreamReader
    ) -> tuple[str, str, dict[str, str], bytes] | None:
        """Method, path, headers and body of a request; None if it is none."""
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        except asyncio.LimitOverrunError:
            return None
        first, *lines = head.split("\r\n")[:-2]
        line = REQUEST_LINE.fullmatch(first)
        headers = {}
        for each in lines:
            name, _, value = each.partition(":")
            headers[name.lower()] = value.strip()
        length = headers.get("content-length", "0")
        if not line or not NUMBER.fullmatch(length) or int(length) > BODY_LIMIT:
            return None
        return line[1], line[2], headers, await reader.readexactly(int(length))

    async def _answer(
        self, method: str, path: str, headers: Mapping[str, str], body: bytes
    ) -> Answer:
        secret, _, rest = path.removeprefix("/").partition("/")
        if not (served := self._served.get(secret)):
            return 404, ""
        if "x-forwarded-for" in headers:
            return 403, ""
        if (method, rest) == ("PUT", "latest/api/token"):
            return served.new_token(headers.get(TTL_HEADER, ""))
        if (method, rest) == ("POST", "command"):
            return 200, json.dumps(await served.command(json.loads(body)))
        if method != "GET":
            return 405, ""
        if not served.knows(headers.get(TOKEN_HEADER, "")):
            return 401, ""
        found = rest.removeprefix("latest/")
        if found.rstrip("/") == ROLE_PATH.rstrip("/"):
            return 200, served.role
        return await self._role(served) if found == ROLE_PATH + served.role else served.value(found)

    async def _role(self, served: Served) -> Answer:
        try:
            keys = await self._keys(served)
        except Exception as error:  # noqa: BLE001 - the instance is told, as by AWS, and asks again
            why = {"Code": "AssumeRoleUnauthorizedAccess", "Message": str(error)}
            return 200, json.dumps({**why, "LastUpdated": written(datetime.now(UTC))})
        shown = {
            "Code": "Success",
            "LastUpdated": written(datetime.now(UTC)),
            "Type": "AWS-HMAC",
            "AccessKeyId": keys["AccessKeyId"],
            "SecretAccessKey": keys["SecretAccessKey"],
            "Token": keys["SessionToken"],
            "Expiration": written(keys["Expiration"]),
        }
        return 200, json.dumps(shown)


def written(moment: datetime) -> str:
    """A time as the metadata have it."""
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
