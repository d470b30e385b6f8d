"""The endpoint of a database: TLS and tokens of IAM before a PostgreSQL on a Unix socket.

No PostgreSQL that comes as a wheel can verify a token: it is too long for RADIUS, and LDAP is not
compiled in. The endpoint also outlives the server behind it, in a crash and in a failover.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import ssl
import struct
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from taplocal.web.certificates import Authority
from taplocal.web.tokens import Token

#: (address as "host:port", user, token): whether IAM lets the token's signer connect as the user.
#: Address, user and age have been checked before; signature and policies have not.
Verify = Callable[[str, str, str], bool | Awaitable[bool]]

ADMIN = "rdsadmin"  # the superuser, as on RDS; nobody comes as such from outside
SSL_REQUEST, CANCEL, GSS_REQUEST = 80_877_103, 80_877_102, 80_877_104
LONGEST_STARTUP, LONGEST_PASSWORD = 10_000, 65_535  # PostgreSQL's own
LOGIN_SECONDS = 60  # PostgreSQL's authentication_timeout
CLOSE_SECONDS = 5  # for TLS's goodbye
CHUNK = 65_536
Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class RefusedError(Exception):
    """Why a client does not get in: SQLSTATE and text."""


class _Inside(asyncio.StreamReaderProtocol):
    """What comes through TLS, which ends both ways at once."""

    def eof_received(self) -> bool:
        super().eof_received()
        return False


class Relay:
    """Listens at a port and passes on to the PostgreSQL whose socket is `upstream`."""

    def __init__(
        self,
        names: tuple[str, ...],
        authority: Authority,
        verify: Verify,
        by_token: Callable[[str], Awaitable[bool]],
    ):
        self.names, self.authority = names, authority
        self.verify, self.by_token = verify, by_token
        self.upstream, self.force_ssl, self.port = Path(), True, 0
        self._secrets: tuple[float, ssl.SSLContext | None] = 0.0, None
        self._server: asyncio.Server | None = None
        self._clients: set[asyncio.Task[None]] = set()

    @property
    def connections(self) -> int:
        """How many clients there are."""
        return len(self._clients)

    async def open(self, address: str, port: int) -> None:
        """Listens at a port, or at any if it is 0; raises OSError if it is taken."""
        self._server = await asyncio.start_server(self._serve, address, port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def close(self) -> None:
        """Ends all connections and listens no more."""
        if self._server:
            self._server.close()
            self._server = None
        clients = list(self._clients)
        for each in clients:
            each.cancel()
        await asyncio.gather(*clients, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task: Any = asyncio.current_task()
        self._clients.add(task)
        client = reader, writer
        try:
            async with asyncio.timeout(LOGIN_SECONDS):
                message, client = await self._secured(reader, writer)
                server = await self._logged_in(message, client)
            try:
                await _first_of([_pump(client[0], server[1]), _pump(server[0], client[1])])
            finally:
                server[1].close()
        except (OSError, EOFError, TimeoutError, ValueError):
            pass  # it went away, spoke something else, or PostgreSQL is down: closed, as by RDS
        except asyncio.CancelledError:
            writer.transport.abort()
        finally:
            client[1].close()
            # What it was told last goes out first; a handshake that was cut short tells no end.
            with contextlib.suppress(OSError, TimeoutError, asyncio.CancelledError):
                async with asyncio.timeout(CLOSE_SECONDS):
                    await client[1].wait_closed()
            self._clients.discard(task)

    async def _secured(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> tuple[bytes, Streams]:
        """The startup message, and the streams to go on with: TLS if the client asks for it."""
        message = await _startup(reader)
        if message[4:8] == struct.pack("!I", GSS_REQUEST):
            writer.write(b"N")
            message = await _startup(reader)
        if message[4:8] != struct.pack("!I", SSL_REQUEST):
            return message, (reader, writer)
        writer.write(b"S")
        # A new reader: what came before TLS is not taken for what came through it.
        loop, inside = asyncio.get_running_loop(), asyncio.StreamReader()
        protocol = _Inside(inside)
        transport = await loop.start_tls(
            writer.transport,
            protocol,
            self._context(),
            server_side=True,
            ssl_shutdown_timeout=CLOSE_SECONDS,
        )
        if transport is None:
            raise EOFError
        protocol.connection_made(transport)
        secure = asyncio.StreamWriter(transport, protocol, inside, loop)
        return await _startup(inside), (inside, secure)

    def _context(self) -> ssl.SSLContext:
        """With the certificate, which is looked at again each hour: it is renewed in time."""
        made, context = self._secrets
        if not context or time.monotonic() > made + 3600:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(self.authority.issue(*self.names))
            self._secrets = time.monotonic(), context
        return context

    async def _logged_in(self, message: bytes, client: Streams) -> Streams:
        """PostgreSQL's streams, after the client has been let through to it."""
        (code,) = struct.unpack("!I", message[4:8])
        try:
            token = code != CANCEL and await self._judged(message, client)
            server = await asyncio.open_unix_connection(str(self.upstream))
            server[1].write(message)
            if code != CANCEL:
                await self._answered(server[0], client[1], bool(token))
        except RefusedError as refused:
            state, text = refused.args
            fields = {"S": "FATAL", "V": "FATAL", "C": state, "M": text}
            body = b"".join(f"{k}{v}\0".encode() for k, v in fields.items()) + b"\0"
            client[1].write(b"E" + struct.pack("!I", len(body) + 4) + body)
            raise EOFError from None
        return server

    async def _judged(self, message: bytes, client: Streams) -> bool:
        """Whether the client has shown a good token, which PostgreSQL then need not ask for."""
        texts = message[8:].split(b"\0")
        if texts[-2:] != [b"", b""] or len(texts) % 2 or b"" in texts[:-2:2]:
            raise ValueError("not PostgreSQL's startup message")
        values = {k.decode(): v.decode() for k, v in zip(texts[:-2:2], texts[1:-2:2], strict=True)}
        user, secure = values.get("user", ""), client[1].get_extra_info("ssl_object") is not None
        shown = (
            f'host "{client[1].get_extra_info("peername")[0]}", user "{user}", '
            f'database "{values.get("database", user)}", '
            f"{'SSL encryption' if secure else 'no encryption'}"
        )
        if user == ADMIN:
            raise RefusedError("28000", f"pg_hba.conf rejects connection for {shown}")
        by_token = await self.by_token(user)
        if not secure and (self.force_ssl or by_token):
            raise RefusedError("28000", f"no pg_hba.conf entry for {shown}")
        if by_token and not await self._good(user, await _password(*client)):
            raise RefusedError("28P01", f'PAM authentication failed for user "{user}"')
        return by_token

    async def _good(self, user: str, text: str) -> bool:
        try:
            token = Token.parse(text)
        except ValueError:
            return False
        addresses = [f"{name}:{self.port}" for name in self.names]
        if not token.good_for(addresses, user, time.time()):
            return False
        verified = self.verify(token.address, user, text)
        return await verified if inspect.isawaitable(verified) else verified

    @staticmethod
    async def _answered(
        reader: asyncio.StreamReader, writer: asyncio.StreamWriter, token: bool
    ) -> None:
        """Passes on PostgreSQL's first answer, unless it lets in one who needs a token by now."""
        kind = b"v"  # it may first say which protocol it speaks
        while kind == b"v":
            head = await reader.readexactly(5)
            kind, (size,) = head[:1], struct.unpack("!I", head[1:])
            body = await reader.readexactly(size - 4)
            if kind == b"R" and body == bytes(4) and not token:
                raise RefusedError("28000", "rds_iam has just been granted: come with a token")
            writer.write(head + body)


async def _startup(reader: asyncio.StreamReader) -> bytes:
    """A message of a client's beginning, whole."""
    head = await reader.readexactly(4)
    (size,) = struct.unpack("!I", head)
    if not 8 <= size <= LONGEST_STARTUP:
        raise ValueError("not PostgreSQL's startup message")
    return head + await reader.readexactly(size - 4)


async def _password(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> str:
    """What the client answers when it is asked for a password in clear."""
    writer.write(b"R" + struct.pack("!II", 8, 3))
    kind, size = struct.unpack("!cI", await reader.readexactly(5))
    if kind != b"p" or not 5 <= size <= LONGEST_PASSWORD:
        raise ValueError("not a password")
    return (await reader.readexactly(size - 4)).rstrip(b"\0").decode()


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(CHUNK):
        writer.write(data)
        await writer.drain()


async def _first_of(pumps: list[Awaitable[None]]) -> None:
    """Waits for the first that ends, and ends the others."""
    tasks = [asyncio.ensure_future(each) for each in pumps]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for each in tasks:
            each.cancel()
        with contextlib.suppress(OSError):
            await asyncio.gather(*tasks, return_exceptions=True)
