"""The load balancer of the web environment, over real sockets."""

from __future__ import annotations

import asyncio
import re
import socket
import ssl
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from functools import wraps
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from taplocal.web import free_port, http1
from taplocal.web.balancer import Balancer, BalancerError
from taplocal.web.registered import (
    Certificate,
    FixedResponse,
    Forward,
    Listener,
    LoadBalancer,
    Redirect,
)
from taplocal.web.targets import HealthCheck, Member, Target, TargetGroup

ARN = "arn:aws:elasticloadbalancing:eu-west-1:000000000000"
GROUP = TargetGroup(f"{ARN}:targetgroup/web/1", "web", HealthCheck("/healthz", 0.02, 1, 2, 2))
LISTENER = Listener(f"{ARN}:listener/app/web/1/1", 80, "HTTP", 0, Forward(GROUP.arn))
BALANCER = LoadBalancer(f"{ARN}:loadbalancer/app/web/1", "app/web/1", (LISTENER,), log=True)
GUARD = 60  # seconds: only against hanging

Handler = Callable[["App", bytes, asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


def run(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    @wraps(test)
    def guarded(*args: Any, **named: Any) -> None:
        async def within() -> None:
            async with asyncio.timeout(GUARD):
                await test(*args, **named)

        asyncio.run(within())

    return guarded


@dataclass
class App:
    """A target: answers health checks, and all else by its handler."""

    handler: Handler
    status: int = 200
    heads: list[bytes] = field(default_factory=list)
    connections: int = 0
    checks: int = 0
    checked: Callable[[], None] = lambda: None  # called at each check
    server: asyncio.Server | None = None
    writers: set[asyncio.StreamWriter] = field(default_factory=set)
    port: int = 0

    async def start(self, port: int = 0) -> App:
        self.server = await asyncio.start_server(self.serve, "127.0.0.1", port)
        self.port = self.server.sockets[0].getsockname()[1]
        return self

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        counted = False
        self.writers.add(writer)
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                if b"ELB-HealthChecker" in head:
                    self.checks += 1
                    self.checked()
                    writer.write(b"HTTP/1.1 %d Told\r\nContent-Length: 0\r\n\r\n" % self.status)
                    continue
                self.connections += not counted
                counted = True
                self.heads.append(head)
                await self.handler(self, head, reader, writer)
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            self.writers.discard(writer)
            writer.close()

    def stop(self) -> None:
        """As if its process were killed."""
        assert self.server
        self.server.close()
        for writer in self.writers:
            writer.transport.abort()

    @property
    def target(self) -> Target:
        return Target(f"i-{self.port}", "127.0.0.1", self.port)


async def body_of(head: bytes, reader: asyncio.StreamReader) -> bytes:
    """The body as a target reads it, by the framing that it was given."""
    if header(head, b"transfer-encoding"):
        return await reader.readuntil(b"\r\n\r\n")  # the bodies here have no empty line
    return await reader.readexactly(int(header(head, b"content-length") or 0))


async def hello(
    app: App, head: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
) -> None:
    await body_of(head, reader)
    writer.write(b"HTTP/1.1 200 OK\r\nServer: app\r\nContent-Length: 5\r\n\r\nhello")


async def echo(
    app: App, head: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
) -> None:
    body = await body_of(head, reader)
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))


def says(answer: bytes, close: bool = False) -> Handler:
    async def handler(_app: App, _head: bytes, _reader: Any, writer: asyncio.StreamWriter) -> None:
        writer.write(answer)
        if close:
            await writer.drain()
            writer.close()

    return handler


def header(head: bytes, name: bytes) -> bytes:
    found = re.search(rb"(?im)^" + name + rb":[ \t]*([^\r]*)\r$", head)
    return found[1] if found else b""


@dataclass
class World:
    """A balancer, its targets and a port to it."""

    balancer: Balancer
    apps: list[App]
    config: LoadBalancer
    group: TargetGroup

    async def apply(self, *apps: App, **changes: Any) -> None:
        """Registers these targets and settings of the load balancer."""
        self.apps = [*{app.port: app for app in (*self.apps, *apps)}.values()]
        self.group = replace(self.group, targets=tuple(app.target for app in apps))
        self.config = replace(self.config, **changes)
        await self.balancer.apply([self.config], [self.group])

    @property
    def port(self) -> int:
        (running,) = self.balancer._running.values()
        (listening, *_) = running.listening.values()
        assert listening.server
        return int(listening.server.sockets[0].getsockname()[1])

    async def until(self, condition: Callable[[], bool]) -> None:
        while not condition():
            await asyncio.sleep(0.005)

    async def healthy(self, count: int) -> None:
        await self.until(lambda: [state for state, *_ in self.states()].count("healthy") == count)

    def states(self) -> list[Any]:
        return [*self.balancer.health()[GROUP.arn].values()]

    async def ask(self, *pieces: bytes) -> bytes:
        """Sends on a connection of its own, and reads until that is closed."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        for piece in pieces:
            writer.write(piece)
            await writer.drain()
        try:
            return await reader.read()
        finally:
            writer.close()

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port, limit=1 << 20)
        try:
            yield reader, writer
        finally:
            writer.transport.abort()

    def members(self) -> list[Member]:
        group = self.balancer.groups[GROUP.arn]
        return [*group.members.values(), *group.draining]

    async def get(self, path: str = "/", **headers: str) -> tuple[int, bytes]:
        more = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        answer = await self.ask(
            f"GET {path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n{more}\r\n".encode()
        )
        head, _, body = answer.partition(b"\r\n\r\n")
        return int(head.split()[1]), body

    def metrics(self) -> dict[tuple[str, bool], float]:
        """The sum of each metric, by name and whether it is of the target group."""
        return {
            (each.name, ("TargetGroup", "targetgroup/web/1") in each.dimensions): sum(
                value * times for value, times in each.values.items()
            )
            for each in self.balancer.take_metrics()
            if each.dimensions[0] == ("LoadBalancer", "app/web/1")
        }

    def log(self) -> list[str]:
        return self.balancer.take_access_log().get(BALANCER.arn, [])


@asynccontextmanager
async def world(
    *handlers: Handler, group: TargetGroup = GROUP, **config: Any
) -> AsyncIterator[World]:
    made = World(Balancer(), [], replace(BALANCER, **config), group)
    apps = [await App(handler).start() for handler in handlers]
    await made.apply(*apps)
    await made.healthy(len(apps))
    try:
        yield made
    finally:
        await made.balancer.close()
        for app in made.apps:
            app.stop()


@run
async def test_a_request_reaches_a_target_with_the_headers_of_the_load_balancer() -> None:
    async with world(hello) as w:
        answer = await w.ask(
            b"GET /a?b=c HTTP/1.1\r\nHost: WWW.Example.com\r\nX-Forwarded-For: 10.0.0.1\r\n"
            b"X-Forwarded-Proto: gopher\r\nX-Custom: kept\r\nConnection: close, x-gone\r\nX-Gone: 1\r\n\r\n"
        )
        assert answer.startswith(b"HTTP/1.1 200 OK\r\n") and answer.endswith(b"\r\n\r\nhello")
        assert header(answer, b"server") == b"app"
        assert header(answer, b"connection") == b"close"
        (head,) = w.apps[0].heads
        assert head.startswith(b"GET /a?b=c HTTP/1.1\r\n")
        assert header(head, b"host") == b"www.example.com"
        assert header(head, b"x-forwarded-for") == b"10.0.0.1, 127.0.0.1"
        assert header(head, b"x-forwarded-proto") == b"http"
        assert header(head, b"x-custom") == b"kept"
        assert not header(head, b"x-gone") and not header(head, b"connection")
        assert re.fullmatch(rb"Root=1-[0-9a-f]{8}-[0-9a-f]{24}", header(head, b"x-amzn-trace-id"))


async def response(reader: asyncio.StreamReader) -> tuple[bytes, bytes]:
    head = await reader.readuntil(b"\r\n\r\n")
    return head, await body_of(head, reader)


REQUEST = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
LAST = b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"


@run
async def test_connections_are_kept_on_both_sides() -> None:
    async with world(hello) as w, w.connection() as (reader, writer):
        for _ in range(3):
            writer.write(REQUEST)
            head, body = await response(reader)
            assert (header(head, b"connection"), body) == (b"keep-alive", b"hello")
        assert w.apps[0].connections == 1


@run
async def test_pipelined_requests_are_answered_in_order_one_at_a_time() -> None:
    async with world(echo) as w:
        one = b"\r\nPOST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\n\r\n"
        answer = await w.ask(b"".join(one + b"%d" % n for n in range(5)) + LAST)
        assert re.findall(rb"\r\n\r\n(\d)HTTP", answer) == [b"0", b"1", b"2", b"3", b"4"]
        assert w.apps[0].connections == 1


@run
async def test_a_client_that_floods_is_not_read_until_its_answers_go_out() -> None:
    async with world(stuck) as w, w.connection() as (_, writer):
        writer.write(REQUEST)
        await w.until(lambda: bool(w.apps[0].heads))
        writer.write(REQUEST * 100_000)
        (client,) = w.balancer.clients
        await w.until(lambda: not client.transport.is_reading())
        assert len(client.buffer) < 1 << 20


@run
async def test_a_client_with_http_1_0_gets_what_it_can_read() -> None:
    chunked = says(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n")
    async with world(chunked) as w:
        answer = await w.ask(b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n")
        assert answer.endswith(b"\r\n\r\nhello") and header(answer, b"connection") == b"close"
        assert not header(answer, b"transfer-encoding")
        head = w.apps[0].heads[0]
        assert (
            head.startswith(b"GET / HTTP/1.1") and header(head, b"host") == b"127.0.0.1:%d" % w.port
        )


HELLO = b"Content-Length: 5\r\n\r\nhello"
BODIES = {
    "chunked": (
        b"Transfer-Encoding: chunked\r\n\r\n3\r\nhel\r\n2;x=y\r\nlo\r\n0\r\nX-Sum: 1\r\n\r\n",
        False,
    ),
    "until the connection closes": (b"\r\nhello", True),
    "sized": (HELLO, False),
}


@pytest.mark.parametrize("name", BODIES)
@run
async def test_a_response_of_any_framing_reaches_the_client_whole(name: str) -> None:
    rest, close = BODIES[name]
    interim = b"HTTP/1.1 103 Early Hints\r\nLink: a\r\n\r\n"
    async with (
        world(says(interim + b"HTTP/1.1 200 OK\r\n" + rest, close)) as w,
        w.connection() as (reader, writer),
    ):
        for _ in range(2):  # on one connection
            writer.write(REQUEST)
            head = await reader.readuntil(b"\r\n\r\n")
            if header(head, b"content-length"):
                assert await reader.readexactly(5) == b"hello"
                continue
            body = b""
            while size := int(await reader.readuntil(b"\r\n"), 16):
                body += await reader.readexactly(size)
                assert await reader.readexactly(2) == b"\r\n"
            assert body == b"hello"
            if name == "chunked":
                assert await reader.readuntil(b"\r\n") == b"X-Sum: 1\r\n"
            assert await reader.readuntil(b"\r\n") == b"\r\n"


@run
async def test_a_head_in_pieces_is_put_together() -> None:
    async def slowly(_app: App, _head: bytes, _reader: Any, writer: asyncio.StreamWriter) -> None:
        for piece in (b"HTTP/1.1 103 A\r\n\r", b"\nHTTP/1.1 2", b"00 OK\r\nX-A: 1\r\n", HELLO):
            writer.write(piece)
            await asyncio.sleep(0.05)  # else they come as one

    async with world(slowly) as w, w.connection() as (reader, writer):
        for _ in range(2):  # on one connection
            writer.write(REQUEST)
            head, body = await response(reader)
            assert (header(head, b"x-a"), body) == (b"1", b"hello")


@pytest.mark.parametrize(
    ("method", "answer"),
    [
        (b"HEAD", b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n"),
        (b"GET", b"HTTP/1.1 204 No Content\r\n\r\n"),
        (b"GET", b"HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\n"),
    ],
)
@run
async def test_a_response_without_a_body_does_not_swallow_the_next(
    method: bytes, answer: bytes
) -> None:
    async with world(says(answer)) as w:
        first = await w.ask(REQUEST.replace(b"GET", method) + LAST.replace(b"GET", method))
        assert first.count(b"HTTP/1.1 ") == 2 and w.apps[0].connections == 1


@run
async def test_a_client_that_expects_100_is_told_to_continue_at_once() -> None:
    async with world(echo) as w, w.connection() as (reader, writer):
        writer.write(
            b"POST / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n"
        )
        assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        writer.write(b"hello")
        assert (await response(reader))[1] == b"hello"
        assert not header(w.apps[0].heads[0], b"expect")


@run
async def test_a_body_in_chunks_reaches_the_target_with_its_trailers() -> None:
    async with world(echo) as w, w.connection() as (reader, writer):
        sent = b"5\r\nhello\r\n0\r\nX-Sum: 1\r\n\r\n"
        for piece in (
            b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n",
            sent[:4],
            sent[4:],
        ):
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(0)
        assert b"X-Sum: 1" in (await response(reader))[1]


async def stuck(
    app: App, head: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
) -> None:
    await asyncio.Event().wait()


async def torrent(
    app: App, head: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % (1 << 30))
    for _ in range(1 << 12):
        writer.write(bytes(1 << 18))
        await writer.drain()


@run
async def test_a_client_that_does_not_read_stops_the_target_and_one_that_reads_gets_all() -> None:
    async with world(torrent) as w, w.connection() as (reader, writer):
        writer.write(REQUEST)
        (member,) = w.members()
        await w.until(lambda: any(not each.transport.is_reading() for each in member.open))
        (client,) = w.balancer.clients
        assert client.transport.get_write_buffer_size() < 1 << 20
        await reader.readuntil(b"\r\n\r\n")
        left, most = 1 << 30, 0
        while left:
            left -= len(await reader.read(1 << 20))
            most = max(most, client.transport.get_write_buffer_size())
        assert most < 1 << 20  # of the gigabyte


@run
async def test_a_target_that_does_not_read_stops_the_client() -> None:
    async with world(stuck) as w, w.connection() as (_, writer):
        writer.write(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % (1 << 30))
        await w.until(lambda: bool(w.balancer.clients))
        (client,) = w.balancer.clients
        await w.until(lambda: client.target is not None)
        writer.write(bytes(64 << 20))
        await w.until(lambda: not client.transport.is_reading())
        assert client.target and client.target.transport.get_write_buffer_size() < 1 << 20


async def early(
    app: App, head: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
) -> None:
    writer.write(b"HTTP/1.1 413 Too Large\r\nContent-Length: 0\r\n\r\n")


@run
async def test_an_answer_before_the_end_of_the_body_reaches_a_client_that_still_sends() -> None:
    async with world(early) as w, w.connection() as (reader, writer):
        writer.write(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1000000\r\n\r\n" + bytes(1000))
        head = await reader.readuntil(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 413") and header(head, b"connection") == b"close"
        for _ in range(20):  # and is not reset
            writer.write(bytes(1000))
            await writer.drain()
            await asyncio.sleep(0.001)
        assert await reader.read() == b""


GONE = says(b"", close=True)
HALF = says(b"HTTP/1.1 200 OK\r\nContent-Le", close=True)
WRONG = says(b"HTTP/1.1 200 OK\r\nX : a\r\nContent-Length: 0\r\n\r\n")
LONG = says(b"HTTP/1.1 200 OK\r\nX: " + b"a" * (33 << 10) + b"\r\n\r\n")
SWITCH = says(b"HTTP/1.1 101 Switching\r\nUpgrade: websocket\r\n\r\n")


@pytest.mark.parametrize("handler", [GONE, HALF, WRONG, LONG, SWITCH])
@run
async def test_a_target_that_fails_is_502_and_is_not_asked_twice(handler: Handler) -> None:
    async with world(handler, handler) as w:
        status, body = await w.get()
        assert (status, body) == (502, page("502 Bad Gateway"))
        assert len(w.apps[0].heads) + len(w.apps[1].heads) == 1
        assert w.metrics()["HTTPCode_ELB_502_Count", False] == 1
        (line,) = w.log()
        assert " -1 -1 -1 502 - " in line


def page(title: str) -> bytes:
    return (
        f"<html>\r\n<head><title>{title}</title></head>\r\n<body>\r\n<center><h1>{title}</h1></center>\r\n"
        "</body>\r\n</html>\r\n"
    ).encode()


@run
async def test_a_response_that_breaks_off_is_not_whole_for_the_client_either() -> None:
    async with world(says(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhello", close=True)) as w:
        with pytest.raises((ConnectionResetError, AssertionError)):
            assert (await w.ask(LAST)).endswith(b"hello....")


@run
async def test_without_targets_it_is_503() -> None:
    async with world() as w:
        assert await w.get() == (503, page("503 Service Temporarily Unavailable"))
        await w.balancer.apply([w.config], [])  # nor a target group
        assert (await w.get())[0] == 503
        metrics = w.metrics()
        assert (
            metrics["HTTPCode_ELB_503_Count", False]
            == metrics["HTTPCode_ELB_5XX_Count", False]
            == 2
        )
        assert ("RequestCount", False) not in metrics


@run
async def test_a_target_that_does_not_answer_is_504_after_the_idle_timeout() -> None:
    async with world(stuck, idle_timeout=0.2) as w:
        assert await w.get() == (504, page("504 Gateway Time-out"))
        await w.until(lambda: not any(each.outstanding for each in w.members()))


@pytest.mark.parametrize(
    "sent", [b"GET / HT", b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhe"]
)
@run
async def test_a_client_that_does_not_send_on_is_408_after_the_idle_timeout(sent: bytes) -> None:
    async with world(stuck, idle_timeout=0.2) as w:
        assert (await w.ask(sent)).startswith(b"HTTP/1.1 408 ")
        assert (await w.ask(b"")) == b""  # an idle connection is closed without a word


@run
async def test_a_head_byte_by_byte_does_not_outlive_the_idle_timeout() -> None:
    async with world(hello, idle_timeout=0.3) as w, w.connection() as (reader, writer):
        answer = asyncio.create_task(reader.read())
        while not answer.done():
            writer.write(b"a")
            await asyncio.sleep(0.01)
        assert answer.result().startswith(b"HTTP/1.1 408 ")


@pytest.mark.parametrize(
    ("sent", "status"),
    [(REQUEST, 460), (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhe", 400)],
)
@run
async def test_a_client_that_goes_away_is_logged_and_its_target_is_free(
    sent: bytes, status: int
) -> None:
    async with world(stuck) as w:
        async with w.connection() as (_, writer):
            writer.write(sent)
            await w.until(lambda: bool(w.apps[0].heads))
        await w.until(lambda: not any(each.outstanding or each.open for each in w.members()))
        (line,) = w.log()
        assert f" {status} - " in line
        assert w.metrics()["HTTPCode_ELB_4XX_Count", False] == 1


@run
async def test_a_target_that_cannot_be_connected_is_passed_over() -> None:
    slow = replace(GROUP, health_check=replace(GROUP.health_check, interval=60))
    async with world(hello, hello, group=slow) as w:
        w.apps[0].stop()
        assert [(await w.get())[0] for _ in range(10)] == [200] * 10
        assert w.metrics()["TargetConnectionErrorCount", True] == 5
        w.apps[1].stop()
        assert (await w.get())[0] == 502


@run
async def test_an_idle_connection_that_the_target_closed_is_not_used() -> None:
    """Nor in the moment before the event loop is told."""
    async with world(hello) as w:
        await w.get()
        (upstream,) = w.members()[0].idle
        assert upstream.alive()
        at = upstream.transport.get_extra_info("sockname")
        sockets = [each.get_extra_info("socket") for each in w.apps[0].writers]  # and of checks
        (ours,) = (each for each in sockets if each.getpeername() == at)
        ours.shutdown(socket.SHUT_RDWR)
        assert not upstream.alive()
        assert (await w.get())[0] == 200


@run
async def test_a_redirect_names_the_local_port_of_the_other_listener() -> None:
    secure = replace(LISTENER, arn="secure", port=443, bind_port=free_port())
    for action, location in {
        Redirect("HTTPS", port="443"): f"https://example.com:{secure.bind_port}/a/b?c=d",
        Redirect(
            host="www.#{host}", path="/new/#{path}", query="", status=302
        ): "http://www.example.com:{port}/new/a/b",
    }.items():
        async with world(hello, listeners=(replace(LISTENER, action=action), secure)) as w:
            answer = await w.ask(
                b"GET /a/b?c=d HTTP/1.1\r\nHost: Example.com:8080\r\nConnection: close\r\n\r\n"
            )
            assert answer.startswith(b"HTTP/1.1 %d " % action.status)
            assert header(answer, b"location").decode().lower() == location.format(port=w.port)
            assert header(answer, b"server") == b"awselb/2.0"
            assert w.metrics()["HTTP_Redirect_Count", False] == 1
            assert not w.apps[0].heads


@run
async def test_a_fixed_response_reads_the_body_and_keeps_the_connection() -> None:
    listener = replace(LISTENER, action=FixedResponse(418, "text/plain", "tea"))
    async with world(listeners=(listener,)) as w:
        post = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello"
        answer = await w.ask(post + LAST)
        assert answer.count(b"HTTP/1.1 418 ") == 2 and answer.endswith(b"tea")
        assert header(answer, b"content-type") == b"text/plain"


@run
async def test_a_target_is_initial_until_it_passes_one_check_and_then_counts_to_the_thresholds() -> (
    None
):
    async with world() as w:
        seen: list[str] = []  # its state at each check
        app = await App(hello, status=500).start()
        app.checked = lambda: seen.append(w.states()[0].state)
        await w.apply(app)
        assert w.states() == [
            ("initial", "Elb.RegistrationInProgress", "Target registration is in progress")
        ]
        await w.until(lambda: app.checks == 1)
        await w.until(lambda: w.states()[0].reason == "Elb.InitialHealthChecking")
        assert (await w.get())[0] == 503  # it gets no request yet
        mismatch = (
            "unhealthy",
            "Target.ResponseCodeMismatch",
            "Health checks failed with these codes: [500]",
        )
        await w.until(lambda: w.states() == [mismatch])
        await w.until(lambda: app.checks > 2)
        assert seen[:3] == ["initial", "initial", "unhealthy"]
        app.status, before = 200, app.checks
        await w.until(lambda: app.checks > before + 2)
        assert seen[before : before + 3] == ["unhealthy", "unhealthy", "healthy"]
        assert app.server
        app.server.close()
        await w.until(
            lambda: (
                w.states() == [("unhealthy", "Target.FailedHealthChecks", "Health checks failed")]
            )
        )
        assert (await w.get())[0] == 502


@run
async def test_a_target_that_is_silent_times_out() -> None:
    async with world(
        hello, group=replace(GROUP, health_check=HealthCheck("/", 0.02, 0.1, 2, 2))
    ) as w:

        async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.read()
            writer.close()

        app = w.apps[0]
        app.stop()
        app.server = await asyncio.start_server(silent, "127.0.0.1", app.port)
        await w.until(lambda: w.states() == [("unhealthy", "Target.Timeout", "Request timed out")])


@pytest.mark.parametrize(
    ("matcher", "yes", "no"),
    [
        ("200", [200], [201, 199]),
        ("200-299", [200, 299], [199, 300]),
        ("200,301", [200, 301], [201, 300]),
        ("200-201,404", [201, 404], [202]),
    ],
)
def test_a_matcher_takes_values_and_ranges(matcher: str, yes: list[int], no: list[int]) -> None:
    check = HealthCheck(matcher=matcher)
    assert all(map(check.matches, yes)) and not any(map(check.matches, no))


@run
async def test_with_one_healthy_target_the_others_get_nothing_and_with_none_all_do() -> None:
    async with world(hello, hello) as w:
        w.apps[0].status = 500
        await w.healthy(1)
        assert [(await w.get())[0] for _ in range(6)] == [200] * 6
        assert not w.apps[0].heads
        w.apps[1].status = 500
        await w.healthy(0)
        assert w.metrics()["UnHealthyHostCount", True] == 2
        assert [(await w.get())[0] for _ in range(6)] == [200] * 6
        assert len(w.apps[0].heads) == 3


@run
async def test_a_target_group_without_a_listener_is_unused_and_not_checked() -> None:
    async with world(hello) as w:
        await w.apply(*w.apps, listeners=(replace(LISTENER, action=FixedResponse(200)),))
        (state,) = w.states()
        assert state[:2] == ("unused", "Target.NotInUse")
        assert all(each.checks is None for each in w.members())
        await w.apply(*w.apps, listeners=(LISTENER,))
        await w.healthy(1)


@run
async def test_requests_go_round_or_to_the_least_busy() -> None:
    async with world(hello, hello, hello) as w:
        for _ in range(9):
            await w.get()
        assert [len(app.heads) for app in w.apps] == [3, 3, 3]
    least = replace(GROUP, algorithm="least_outstanding_requests")
    async with world(hello, hello, group=least) as w:
        w.apps[0].handler = stuck
        async with w.connection() as (_, writer), w.connection() as (__, other):
            writer.write(REQUEST)
            other.write(REQUEST)
            await w.until(lambda: len(w.apps[0].heads) == 1 and len(w.apps[1].heads) == 1)
            for _ in range(6):
                assert (await w.get())[0] == 200
            assert len(w.apps[0].heads) == 1


class Load:
    """Clients that ask one request after the other until they are told to stop."""

    def __init__(self, w: World, clients: int = 8):
        self.w, self.statuses, self.stopping = w, Counter[int](), False
        self.tasks = [asyncio.create_task(self.client()) for _ in range(clients)]

    async def client(self) -> None:
        while not self.stopping:
            async with self.w.connection() as (reader, writer):
                for _ in range(20):
                    writer.write(REQUEST)
                    head, body = await response(reader)
                    assert body == b"hello"
                    self.statuses[int(head.split()[1])] += 1
                    if self.stopping or header(head, b"connection") == b"close":
                        break

    async def more(self, count: int) -> None:
        """Waits for so many answers."""
        until = self.statuses.total() + count
        while self.statuses.total() < until:
            for task in self.tasks:
                if task.done():
                    task.result()
            await asyncio.sleep(0.001)

    async def stop(self) -> None:
        self.stopping = True
        await asyncio.gather(*self.tasks)


async def slow(
    app: App, head: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
) -> None:
    await asyncio.sleep(0.01)
    await hello(app, head, reader, writer)


@run
async def test_targets_drain_under_load_without_a_lost_request() -> None:
    async with world(slow, slow) as w:
        load = Load(w)
        for _ in range(5):
            await load.more(20)
            old, kept = w.apps[-2], w.apps[-1]
            new = await App(slow).start()
            await w.apply(kept, new)
            states = w.balancer.health()[GROUP.arn]
            assert states.get(old.target.id, (None, None))[:2] in [
                ("draining", "Target.DeregistrationInProgress"), (None, None)]  # fmt: skip
            while old.target.id in w.balancer.health()[GROUP.arn]:
                await asyncio.sleep(0.001)
            served = len(old.heads)
            old.stop()
            await w.healthy(2)
            await load.more(20)
            assert len(old.heads) == served
        await load.stop()
        assert load.statuses == {200: load.statuses.total()}
        metrics = w.metrics()
        assert (
            metrics["RequestCount", True]
            == metrics["HTTPCode_Target_2XX_Count", True]
            == load.statuses.total()
        )
        assert sum(len(app.heads) for app in w.apps) == load.statuses.total()


@run
async def test_settings_change_under_load_without_a_lost_request() -> None:
    async with world(hello, hello) as w:
        load, apps = Load(w), w.apps
        for round_ in range(10):
            await load.more(20)
            second = replace(LISTENER, arn="second", bind_port=free_port())
            await w.apply(
                *apps, idle_timeout=30 + round_, listeners=(LISTENER, second)[: 1 + round_ % 2]
            )
            check = replace(w.group.health_check, path=f"/{round_}")
            w.group = replace(w.group, health_check=check, algorithm="least_outstanding_requests")
            await w.apply(*apps)
        await load.stop()
        assert load.statuses == {200: load.statuses.total()}


@run
async def test_a_listener_that_is_gone_ends_its_connections_after_their_request() -> None:
    async with world(slow) as w, w.connection() as (reader, writer), w.connection() as (idle, _):
        port = w.port
        writer.write(REQUEST)
        await w.until(lambda: bool(w.apps[0].heads) and len(w.balancer.clients) == 2)
        await w.apply(*w.apps, listeners=())
        assert header((await response(reader))[0], b"connection") == b"close"
        assert await reader.read() == await idle.read() == b""
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection("127.0.0.1", port)


@run
async def test_what_outlasts_the_deregistration_delay_is_502() -> None:
    async with (
        world(stuck, group=replace(GROUP, deregistration_delay=0.2)) as w,
        w.connection() as (reader, writer),
    ):
        writer.write(REQUEST)
        await w.until(lambda: bool(w.apps[0].heads))
        await w.apply()
        assert w.states()[0].state == "draining"
        assert (await reader.readuntil(b"\r\n")).startswith(b"HTTP/1.1 502 ")
        await w.until(lambda: not w.states())


@run
async def test_a_request_that_is_under_way_may_end_within_the_delay() -> None:
    released = asyncio.Event()

    async def waits(
        app: App, head: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        await released.wait()
        await hello(app, head, reader, writer)

    async with world(waits) as w, w.connection() as (reader, writer):
        writer.write(REQUEST)
        await w.until(lambda: bool(w.apps[0].heads))
        await w.apply()
        w.balancer.groups[GROUP.arn].sweep(asyncio.get_running_loop().time(), 0)
        assert w.states()[0].state == "draining"
        released.set()
        assert (await response(reader))[1] == b"hello"
        await w.until(lambda: not w.states())


@run
async def test_a_target_that_comes_back_is_checked_anew() -> None:
    async with world(stuck) as w, w.connection() as (_, writer):
        writer.write(REQUEST)
        await w.until(lambda: bool(w.apps[0].heads))
        (app,) = w.apps
        await w.apply()
        await w.apply(app)
        assert w.states()[0].state == "initial"
        await w.healthy(1)
        app.handler = hello
        assert (await w.get())[0] == 200
        assert len(w.members()) == 2  # the one that drains has its request still


async def websocket(
    app: App, head: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
) -> None:
    writer.write(
        b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\nfirst"
    )
    while data := await reader.read(1 << 16):
        writer.write(data.upper())
        await writer.drain()


UPGRADE = b"GET /ws HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"


@run
async def test_websockets_pass_both_ways_and_are_logged_when_they_close() -> None:
    async with world(websocket) as w:
        async with w.connection() as (reader, writer):
            writer.write(UPGRADE + b"hi")
            head = await reader.readuntil(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 101 ") and header(head, b"upgrade") == b"websocket"
            assert await reader.readexactly(7) == b"firstHI"
            for _ in range(3):
                writer.write(b"x" * 100_000)
                assert await reader.readexactly(100_000) == b"X" * 100_000
            assert not w.log() and w.members()[0].outstanding == 1
        await w.until(lambda: not w.members()[0].outstanding)
        (line,) = w.log()
        assert re.match(r"ws \S+ app/web/1 .* 101 101 300\d\d\d 300\d\d\d ", line)


@run
async def test_no_other_upgrade_passes() -> None:
    async with world(hello) as w:
        assert (await w.get("/", Upgrade="h2c", Connection="upgrade"))[0] == 200
        assert not header(w.apps[0].heads[0], b"upgrade")


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    key, name = (
        ec.generate_private_key(ec.SECP256R1()),
        x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")]),
    )
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
        .serial_number(1).not_valid_before(now - timedelta(days=1)).not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .sign(key, hashes.SHA256())
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("tls")
    chain, secret = folder / "chain.pem", folder / "key.pem"
    chain.write_bytes(made.public_bytes(serialization.Encoding.PEM))
    secret.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    return Certificate("arn:aws:acm:eu-west-1:0:certificate/1", chain, secret)


@run
async def test_tls_ends_at_the_load_balancer(certificate: Certificate) -> None:
    policy = "ELBSecurityPolicy-TLS13-1-2-Res-2021-06"
    secure = Listener("tls", 443, "HTTPS", 0, Forward(GROUP.arn), certificate, policy)
    async with world(echo, listeners=(secure,)) as w:
        context = ssl.create_default_context(cafile=str(certificate.chain))
        for version in (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3):
            context.maximum_version = version
            reader, writer = await asyncio.open_connection(
                "127.0.0.1", w.port, ssl=context, server_hostname="localhost"
            )
            body = b"x" * 1_000_000
            for _ in range(2):
                writer.write(
                    b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % len(body) + body
                )
                assert (await response(reader))[1] == body
            writer.close()
        assert header(w.apps[0].heads[0], b"x-forwarded-proto") == b"https"
        await w.until(lambda: not w.balancer.clients)
        lines = w.log()
        assert all(
            line.startswith("https ") and f'"localhost" "{certificate.arn}"' in line
            for line in lines
        )
        assert [re.findall(r" (TLSv1\.\d) ", line) for line in lines] == [["TLSv1.2"]] * 2 + [
            ["TLSv1.3"]
        ] * 2
        await w.apply(
            *w.apps, listeners=(replace(secure, tls_policy="ELBSecurityPolicy-TLS13-1-3-2021-06"),)
        )
        context.maximum_version = ssl.TLSVersion.TLSv1_2
        with pytest.raises((ssl.SSLError, ConnectionResetError)):
            await asyncio.open_connection(
                "127.0.0.1", w.port, ssl=context, server_hostname="localhost"
            )


@run
async def test_a_port_in_use_is_an_error_that_names_it_and_the_rest_is_applied() -> None:
    async with world(hello) as w:
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = taken.getsockname()[1]
            with pytest.raises(
                BalancerError,
                match=rf"port 8443 of app/web/1 cannot listen on 127.0.0.1:{port}: .*",
            ):
                await w.apply(
                    *w.apps, listeners=(replace(LISTENER, port=8443, bind_port=port), LISTENER)
                )
        assert (await w.get())[0] == 200
        with pytest.raises(BalancerError, match="give it a certificate"):
            await w.apply(*w.apps, listeners=(replace(LISTENER, protocol="HTTPS"),))


@run
async def test_two_load_balancers_may_swap_their_ports() -> None:
    async with world(hello) as w:
        first, second = (
            replace(LISTENER, bind_port=free_port(), action=FixedResponse(code))
            for code in (201, 202)
        )
        other = replace(BALANCER, arn="other", suffix="app/other/1")
        for listeners in ((first, second), (second, first), (first, second)):
            one, two = (
                replace(each, listeners=(mine,))
                for each, mine in zip((BALANCER, other), listeners, strict=True)
            )
            await w.balancer.apply([one, two], [])
            answer = await asyncio.open_connection("127.0.0.1", second.bind_port)
            answer[1].write(LAST)
            assert (await answer[0].read()).startswith(b"HTTP/1.1 202 ")
            answer[1].close()


@run
async def test_beyond_its_connections_it_rejects() -> None:
    async with world(hello) as w:
        w.balancer.most_clients = 2
        async with w.connection(), w.connection():
            await w.until(lambda: len(w.balancer.clients) == 2)
            with suppress(ConnectionResetError):
                assert await w.ask(LAST) == b""
        await w.until(lambda: not w.balancer.clients)
        assert (await w.get())[0] == 200
        assert w.metrics()["RejectedConnectionCount", False] == 1


@run
async def test_invalid_names_of_headers_are_dropped_if_it_is_told_to() -> None:
    for drop in (True, False):
        async with world(hello, drop_invalid_header_fields=drop) as w:
            await w.get("/", **{"x_user": "1", "X-User": "2"})
            assert (header(w.apps[0].heads[0], b"x_user") == b"") is drop
            assert header(w.apps[0].heads[0], b"x-user") == b"2"
            assert w.metrics().get(("DroppedInvalidHeaderRequestCount", False), 0) == drop


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ("", r"Root=1-\w{8}-\w{24}"),
        ("Root=1-2-3", r"Self=1-\w{8}-\w{24};Root=1-2-3"),
        ("Self=1-0-0;Root=1-2-3;CalledFrom=app", r"Self=1-\w{8}-\w{24};Root=1-2-3;CalledFrom=app"),
        ("CalledFrom=app", r"Root=1-\w{8}-\w{24};CalledFrom=app"),
    ],
)
def test_the_trace_id_is_made_or_followed(given: str, told: str) -> None:
    assert re.fullmatch(told, http1.trace(given.encode(), 100).decode())
    assert re.fullmatch(r"Root=1-\w{8}-\w{24}", http1.trace(given.encode(), 8 << 10).decode())


@run
async def test_metrics_are_what_was_done() -> None:
    async def handler(
        app: App, head: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        writer.write(b"HTTP/1.1 %b Told\r\nContent-Length: 0\r\n\r\n" % head.split()[1][1:])

    async with world(handler, handler) as w:
        asked = {200: 5, 301: 2, 404: 3, 500: 1}
        sizes = 0
        for status, count in asked.items():
            for _ in range(count):
                request = b"GET /%d HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n" % status
                sizes += len(request) + len(await w.ask(request))
        sizes += len(b"BAD\r\n\r\n") + len(await w.ask(b"BAD\r\n\r\n"))
        await w.until(lambda: not w.balancer.clients)
        found = w.metrics()
        for of_group in (False, True):
            assert found["RequestCount", of_group] == 11
            for status, count in asked.items():
                assert found[f"HTTPCode_Target_{status // 100}XX_Count", of_group] == count
            assert found["TargetResponseTime", of_group] >= 0
        assert found["RequestCountPerTarget", True] == 5.5
        assert (found["HealthyHostCount", True], found["UnHealthyHostCount", True]) == (2, 0)
        assert found["NewConnectionCount", False] == 12 + sum(app.connections for app in w.apps)
        assert found["ActiveConnectionCount", False] == 2
        assert (
            found["HTTPCode_ELB_4XX_Count", False]
            == found["DesyncMitigationMode_NonCompliant_Request_Count", False]
            == 1
        )
        assert found["ProcessedBytes", False] == sizes
        assert (
            w.metrics()["RequestCountPerTarget", True] == 0
            and ("RequestCount", False) not in w.metrics()
        )


# Of "Create the table for ALB access logs" in Amazon Athena's user guide.
ATHENA = re.compile(
    r"([^ ]*) ([^ ]*) ([^ ]*) ([^ ]*):([0-9]*) ([^ ]*)[:-]([0-9]*) ([-.0-9]*) ([-.0-9]*) ([-.0-9]*) (|[-0-9]*) "
    r'(-|[-0-9]*) ([-0-9]*) ([-0-9]*) "([^ ]*) (.*) (- |[^ ]*)" "([^"]*)" ([A-Z0-9-_]+) ([A-Za-z0-9.-]*) ([^ ]*) '
    r'"([^"]*)" "([^"]*)" "([^"]*)" ([-.0-9]*) ([^ ]*) "([^"]*)" "([^"]*)" "([^ ]*)" "([^\s]+?)" "([^\s]+)" '
    r'"([^ ]*)" "([^ ]*)" ?([^ ]*)?( .*)?'
)
FIELDS = """type time elb client_ip client_port target_ip target_port request_processing_time target_processing_time
    response_processing_time elb_status_code target_status_code received_bytes sent_bytes request_verb request_url
    request_proto user_agent ssl_cipher ssl_protocol target_group_arn trace_id domain_name chosen_cert_arn
    matched_rule_priority request_creation_time actions_executed redirect_url lambda_error_reason target_port_list
    target_status_code_list classification classification_reason conn_trace_id""".split()


def fields(line: str) -> dict[str, str]:
    found = ATHENA.fullmatch(line)
    assert found, line
    return dict(zip(FIELDS, found.groups(), strict=False))


@run
async def test_the_access_log_is_read_by_athena() -> None:
    async with world(hello) as w:
        await w.get("/a%20b?c=d", **{"User-Agent": 'a"b\\ c'})
        await w.ask(b"G\x01T /\r\n\r\n")
        good, bad = map(fields, w.log())
        host, port = "127.0.0.1", str(w.apps[0].port)
        assert good.items() >= {
            "type": "http", "elb": "app/web/1", "client_ip": host, "target_ip": host, "target_port": port,
            "elb_status_code": "200", "target_status_code": "200", "request_verb": "GET",
            "request_url": f"http://a:{w.port}/a%20b?c=d", "request_proto": "HTTP/1.1", "user_agent": r"a\x22b\x5C c",
            "ssl_cipher": "-", "ssl_protocol": "-", "target_group_arn": GROUP.arn, "matched_rule_priority": "0",
            "actions_executed": "forward", "redirect_url": "-", "lambda_error_reason": "-", "domain_name": "-",
            "target_port_list": f"{host}:{port}", "target_status_code_list": "200", "classification": "-",
            "classification_reason": "-",
        }.items()  # fmt: skip
        assert good["trace_id"].encode() == header(w.apps[0].heads[0], b"x-amzn-trace-id")
        assert all(
            0 <= float(good[f"{part}_processing_time"]) < GUARD
            for part in ("request", "target", "response")
        )
        assert re.fullmatch(r"TID_[0-9a-f]{32}", good["conn_trace_id"])
        created, told = (
            datetime.fromisoformat(good[key]) for key in ("request_creation_time", "time")
        )
        assert created <= told
        assert bad.items() >= {
            "elb_status_code": "400", "target_ip": "", "request_processing_time": "-1", "request_verb": "-",
            "matched_rule_priority": "-", "actions_executed": "-", "classification": "Severe",
            "classification_reason": "BadMethod",
        }.items()  # fmt: skip
        await w.apply(*w.apps, log=False)
        await w.get()
        assert not w.log()


@run
async def test_the_access_log_counts_the_bytes_of_a_request_and_of_its_answer() -> None:
    async with world(echo) as w:
        head = b"POST / HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: 9\r\n\r\n"
        async with w.connection() as (reader, writer):
            for piece in (head, b"abcd", b"efghi"):
                writer.write(piece)
                await asyncio.sleep(0.05)  # else they come as one
            answer = await reader.read()
        (line,) = map(fields, w.log())
        assert (line["received_bytes"], line["sent_bytes"]) == (
            f"{len(head) + 9}",
            f"{len(answer)}",
        )
