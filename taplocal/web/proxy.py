"""Requests of clients to targets and back, as an Application Load Balancer passes them.

Its rules are those of AWS's user guide; "the guide" below is its page on HTTP errors. What was
decided where the guide is silent:
- A connection that is refused is tried at the other targets; a request of which a target may have
  seen a byte is never sent again: 502, as the guide says of a target that closes the connection.
  A connection from the pool is looked at before it is used, so that one closed meanwhile is not.
- The head of a request must arrive within the idle timeout as a whole, not byte by byte.
- A client that closes its side while it waits is gone (460), as for most proxies.
- What is upgraded is WebSocket only.
"""

from __future__ import annotations

import asyncio
import os
import select
from email.utils import formatdate
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from taplocal.web import http1
from taplocal.web.http1 import Data, Refusal, Request, Response
from taplocal.web.journal import Connection, Exchange
from taplocal.web.registered import FixedResponse, Forward, Redirect
from taplocal.web.targets import CONNECT_SECONDS, Member

if TYPE_CHECKING:
    from taplocal.web.balancer import Listening

LINGER = 2  # seconds in which a client that still sends may read its answer
PIECE = 16 << 10  # bytes of a buffer that are looked at for a body
MOST_JOINED = 64 << 10  # bytes: from here on two writes are cheaper than a copy


@lru_cache(maxsize=1)
def _date(_second: int) -> bytes:
    return formatdate(usegmt=True).encode()


class Client(asyncio.Protocol):
    """The connection of a client: requests in, answers out, one at a time."""

    def __init__(self, on: Listening):
        self.on, self.running, self.owner = on, on.running, on.running.owner
        self.loop = asyncio.get_running_loop()
        self.transport: Any = None
        self.buffer, self.seen = bytearray(), 0  # what is not read yet; where to look for its end
        self.exchange: Exchange | None = None
        self.target: Upstream | None = None
        self.paused = self.lingering = self.busy = False
        self.opened = self.deadline = 0.0

    # The connection itself.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport
        journal = self.running.journal
        if len(self.owner.clients) >= self.owner.most_clients or self.on.closed:
            journal.count("RejectedConnectionCount")
            self.transport.abort()
            return
        journal.count("NewConnectionCount")
        self.owner.clients.add(self)
        self.opened = self.loop.time()
        self.connection = self._describe()
        self.touch()

    def _describe(self) -> Connection:
        listener, tls = self.on.listener, self.transport.get_extra_info("ssl_object")
        host, port = self.transport.get_extra_info("peername")[:2]
        own_port = self.transport.get_extra_info("sockname")[1]
        self.address = host.encode()
        plain = Connection(
            f"{host}:{port}", "https" if tls else "http", own_port,
            f"TID_{os.urandom(16).hex()}",
        )  # fmt: skip
        if not tls or not listener.certificate:
            return plain
        return plain._replace(
            cipher=tls.cipher()[0], protocol=tls.version(),
            domain=getattr(tls, "tap_name", None) or "-",
            certificate="session-reused" if tls.session_reused else listener.certificate.arn,
        )  # fmt: skip

    def touch(self) -> None:
        """Something moved: the idle timeout begins again."""
        self.deadline = self.loop.time() + self.running.config.idle_timeout

    def data_received(self, data: bytes) -> None:
        exchange = self.exchange
        if self.lingering:
            return
        if exchange is None:
            if not self.buffer:
                self.touch()
            self.buffer += data
            self.pump()
        elif exchange.tunnel and self.target:
            self.touch()
            exchange.length += len(data)
            self.target.write(data)
        else:
            if not exchange.body.done:
                self.touch()
            self.buffer += self._receive_body(exchange, data)
            if len(self.buffer) > http1.MOST_HEAD:
                self.transport.pause_reading()

    def eof_received(self) -> None:
        """The client is gone; connection_lost follows."""

    def connection_lost(self, _error: Exception | None) -> None:
        self.owner.clients.discard(self)
        if exchange := self.exchange:
            # 460 and 400 are of the guide: "closed the connection", "before ... the full body".
            exchange.status = exchange.status or (460 if exchange.body.done else 400)
            self.finish(exchange, keep=False)

    def pause_writing(self) -> None:
        self.paused = True
        if self.target:
            self.target.transport.pause_reading()

    def resume_writing(self) -> None:
        self.paused = False
        self.touch()
        if self.target:
            self.target.transport.resume_reading()
        self.pump()

    def time_out(self) -> None:
        """The idle timeout has passed; statuses are of the guide."""
        exchange = self.exchange
        if exchange is None:
            if not self.buffer or self.lingering:
                self.transport.abort()
                return
            exchange = self.exchange = Exchange(len(self.buffer), self.loop.time())
            self.reply(exchange, 408, keep=False)
        elif exchange.status:
            self.transport.abort()
        else:
            stalled = not exchange.body.done and self.target and not self.target.paused
            self.fail(exchange, 408 if stalled else 504)

    # Requests.

    def pump(self) -> None:
        """Begins the next request in the buffer, if there is one and it may begin."""
        if self.busy:
            return
        self.busy = True
        while self.buffer and not (self.exchange or self.paused or self.lingering):
            while self.buffer.startswith(b"\r\n"):  # RFC 9112, 2.2
                del self.buffer[:2]
            try:
                end = http1.end_of_head(self.buffer, self.seen)
            except Refusal as refusal:
                self.exchange = Exchange(len(self.buffer), self.loop.time())
                self._refuse(self.exchange, refusal)
                break
            if not end:
                self.seen = max(0, len(self.buffer) - 3)
                break
            head = bytes(self.buffer[:end])
            del self.buffer[:end]
            self.seen = 0
            self._begin(head)
        self.busy = False

    def _begin(self, head: bytes) -> None:
        exchange = self.exchange = Exchange(len(head), self.loop.time())
        config = self.running.config
        try:
            request = http1.parse_request(head, config.drop_invalid_header_fields)
            exchange.request, exchange.tier, exchange.reason = request, request.tier, request.reason
            if request.tier > http1.PASSES[config.desync_mitigation_mode]:
                raise Refusal(400, request.reason, request.tier)
            addresses = request.own.get(b"x-forwarded-for", b"").count(b",") + 1
            if addresses > http1.MOST_FORWARDED:
                raise Refusal(463, request.reason, request.tier)
        except Refusal as refusal:
            self._refuse(exchange, refusal)
            return
        exchange.body = http1.Chunked() if request.chunked else http1.Sized(request.length or 0)
        if not exchange.body.done and b"100-continue" in request.own.get(b"expect", b"").lower():
            # "They respond to the client immediately ... without testing the content length".
            self.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        exchange.trace = http1.trace(request.own.get(b"x-amzn-trace-id", b""), len(head))
        match self.on.listener.action:
            case Forward(arn):
                exchange.action, exchange.group = "forward", arn
                self._forward(exchange)
            case Redirect() as redirect:
                exchange.action = "redirect"
                exchange.location = self._location(redirect, request)
                self._own(exchange, redirect.status)
            case FixedResponse(status, content_type, body):
                exchange.action = "fixed-response"
                self._own(exchange, status, body.encode(), content_type)

    def _refuse(self, exchange: Exchange, refusal: Refusal) -> None:
        exchange.tier, exchange.reason = refusal.tier, refusal.reason
        self.reply(exchange, refusal.status, keep=False)

    def _receive_body(self, exchange: Exchange, data: bytes) -> Data:
        """More of a request's body: for the target, but what belongs to the next request."""
        try:
            payload, rest = exchange.body.feed(data)
        except ValueError:
            if exchange.status:
                self.transport.abort()
                return b""
            exchange.tier, exchange.reason = http1.SEVERE, "BadTransferEncoding"
            self.fail(exchange, 400)
            return b""
        exchange.length += len(data) - len(rest)
        if self.target:
            chunked = exchange.request.chunked
            self.target.write(http1.framed(exchange.body, payload) if chunked else payload)
        return rest

    def _receive_buffered(self, exchange: Exchange) -> None:
        """The body that came with the head; by pieces, or pipelined ones would be copied often."""
        while self.buffer and self.exchange is exchange and not exchange.body.done:
            piece = bytes(self.buffer[:PIECE])
            del self.buffer[:PIECE]
            self.buffer[:0] = self._receive_body(exchange, piece)

    def _own(self, exchange: Exchange, *answer: Any) -> None:
        """An answer of a rule; a body that has come with the request is read first."""
        self._receive_buffered(exchange)
        if self.exchange is exchange:
            self.reply(exchange, *answer)

    def _location(self, redirect: Redirect, request: Request) -> bytes:
        path, _, query = request.target.decode("latin-1").partition("?")
        host = request.own.get(b"host", b"127.0.0.1").decode("latin-1")
        values = {
            "protocol": self.connection.scheme, "host": http1.without_port(host),
            "port": str(self.connection.port), "path": path[1:], "query": query,
        }  # fmt: skip

        def filled(text: str) -> str:
            for key, value in values.items():
                text = text.replace(f"#{{{key}}}", value)
            return text

        port = self.running.local_port(redirect.port)
        base = f"{redirect.protocol.lower()}://{redirect.host}:{port}{redirect.path}"
        query = filled(redirect.query)
        return (filled(base) + (f"?{query}" if query else "")).encode("latin-1", "replace")

    # Targets.

    def _forward(self, exchange: Exchange) -> None:
        group = self.owner.groups.get(exchange.group)
        member = group.choose(exchange.tried) if group else None
        if not member:
            self.fail(exchange, 502 if exchange.tried else 503)
            return
        exchange.member, exchange.target = member, f"{member.target.host}:{member.target.port}"
        member.outstanding += 1
        while member.idle:
            upstream = member.idle.pop()
            if upstream.alive():
                self.send(exchange, upstream)
                return
            upstream.abort()
        self.transport.pause_reading()
        task = self.loop.create_task(self._connect(exchange, member))
        self.owner.tasks.add(task)
        task.add_done_callback(self.owner.tasks.discard)

    async def _connect(self, exchange: Exchange, member: Member) -> None:
        target, status, journal = member.target, 502, self.running.journal
        try:
            async with asyncio.timeout(CONNECT_SECONDS):
                made = self.loop.create_connection(
                    lambda: Upstream(member), target.host, target.port
                )
                _, upstream = await made
        except TimeoutError:
            status = 504
        except OSError:
            pass
        else:
            journal.count("NewConnectionCount")
            if self.exchange is exchange:
                self.send(exchange, upstream)
            else:
                upstream.rest()
            return
        journal.count("TargetConnectionErrorCount", group=exchange.group)
        if self.exchange is exchange:
            exchange.release()
            exchange.tried.append(member)
            if status == 504:
                self.fail(exchange, status)
            else:
                self._forward(exchange)

    def send(self, exchange: Exchange, upstream: Upstream) -> None:
        """The head to a target, and of the body what is here."""
        request = exchange.request
        self.target = upstream
        own = request.own
        forwarded = own.get(b"x-forwarded-for")
        lines = [
            b"%b %b HTTP/1.1" % (request.method, request.target),
            b"Host: " + own.get(b"host", b"127.0.0.1:%d" % self.connection.port).lower(),
            *request.lines,
            b"X-Forwarded-For: %b"
            % (b"%b, %b" % (forwarded, self.address) if forwarded else self.address),
            b"X-Forwarded-Proto: " + self.connection.scheme.encode(),
            b"X-Forwarded-Port: %d" % self.connection.port,
            b"X-Amzn-Trace-Id: " + exchange.trace,
        ]
        if request.websocket:
            lines += [b"Connection: upgrade", b"Upgrade: websocket"]
        if request.chunked:
            lines.append(b"Transfer-Encoding: chunked")
        elif request.length is not None:
            lines.append(b"Content-Length: %d" % request.length)
        upstream.begin(self, exchange, b"\r\n".join(lines) + b"\r\n\r\n")
        exchange.sent_at = self.loop.time()
        self._receive_buffered(exchange)
        if not upstream.paused:
            self.transport.resume_reading()

    # Answers.

    def keeps(self, exchange: Exchange) -> bool:
        """Whether the connection stays open after an exchange."""
        request, config = exchange.request, self.running.config
        return bool(
            request.keep_alive and not self.on.closed
            and (request.tier < http1.AMBIGUOUS or config.desync_mitigation_mode == "monitor")
            and self.loop.time() - self.opened < config.client_keep_alive
        )  # fmt: skip

    def fail(self, exchange: Exchange, status: int) -> None:
        """An answer of the load balancer's own because of the target or the client."""
        self.reply(exchange, status, keep=self.keeps(exchange))

    def reply(
        self, exchange: Exchange, status: int, body: bytes | None = None,
        content_type: str = "text/html", *, keep: bool | None = None,
    ) -> None:  # fmt: skip
        """An answer of the load balancer's own; without a body it is AWS's page for the status."""
        keep = (self.keeps(exchange) if keep is None else keep) and exchange.body.done
        body = http1.page(status) if body is None else body
        lines = [
            b"HTTP/1.1 %d %b" % (status, http1.REASONS.get(status, "").encode()),
            b"Server: awselb/2.0",
            b"Date: " + _date(int(self.loop.time())),
            b"Content-Type: " + content_type.encode(),
            b"Content-Length: %d" % len(body),
            b"Connection: " + (b"keep-alive" if keep else b"close"),
        ]
        if exchange.location != b"-":
            lines.append(b"Location: " + exchange.location)
        if exchange.request.method == b"HEAD":
            body = b""
        exchange.status = status
        self.write(exchange, b"\r\n".join(lines) + b"\r\n\r\n" + body)
        self.finish(exchange, keep)

    def write(self, exchange: Exchange, data: Data) -> None:
        exchange.sent += len(data)
        if not self.transport.is_closing():
            self.transport.write(data)

    def finish(self, exchange: Exchange, keep: bool) -> None:
        """The exchange is over: its target is free, the next request may come."""
        self.exchange, target, self.target = None, self.target, None
        if target:
            target.end(exchange)
        exchange.release()
        self.running.journal.record(exchange, self.connection, self.running.config.log)
        self.touch()
        if self.transport.is_closing():
            return
        if keep:
            self.transport.resume_reading()
            self.pump()
        else:
            self._close(exchange.body.done and exchange.request is not http1.MALFORMED)

    def _close(self, read: bool) -> None:
        """Closes; a client that still sends is read for a while, or it would miss its answer."""
        self.lingering = True
        self.deadline = self.loop.time() + LINGER
        if read:
            self.transport.close()
            return
        self.transport.resume_reading()
        if self.transport.can_write_eof():
            self.transport.write_eof()


class Upstream(asyncio.Protocol):
    """A connection to a target."""

    def __init__(self, member: Member):
        self.member = member
        self.loop = asyncio.get_running_loop()
        self.transport: Any = None
        self.client: Client | None = None  # that it works for
        self.exchange: Exchange | None = None
        self.buffer = bytearray()  # of a head
        self.paused = self.reusable = False
        self.used = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport
        self.poll = select.poll()
        self.poll.register(transport.get_extra_info("socket"), select.POLLIN)
        self.member.open.add(self)

    def alive(self) -> bool:
        """Whether the target has neither closed it nor sent what nobody asked for."""
        if self.transport.is_closing():
            return False
        return not self.poll.poll(0)

    def begin(self, client: Client, exchange: Exchange, head: bytes) -> None:
        self.client, self.exchange = client, exchange
        if client.paused:
            self.transport.pause_reading()
        self.transport.write(head)

    def write(self, data: Data) -> None:
        if data and not self.transport.is_closing():
            self.transport.write(data)

    def pause_writing(self) -> None:
        self.paused = True
        if self.client:
            self.client.transport.pause_reading()

    def resume_writing(self) -> None:
        self.paused = False
        if self.client:
            self.client.touch()
            self.client.transport.resume_reading()

    def data_received(self, data: bytes) -> None:
        client, exchange = self.client, self.exchange
        if not client or not exchange:
            self.abort()  # nobody has asked
            return
        client.touch()
        if exchange.tunnel:
            client.write(exchange, data)
        elif exchange.response:
            self._body(client, exchange, b"", data)
        else:
            self._head(client, exchange, data)

    def _head(self, client: Client, exchange: Exchange, data: bytes) -> None:
        """Looks for the head of the response; interim ones are not for the client."""
        if self.buffer:
            self.buffer += data
            data = bytes(self.buffer)
            self.buffer.clear()
        try:
            at = 0
            while (end := data.find(b"\r\n\r\n", at, at + http1.MOST_RESPONSE_HEAD)) >= 0:
                response = http1.parse_response(data[at:end])
                at = end + 4
                if response.status >= 200 or response.status == 101:
                    self._respond(client, exchange, response, memoryview(data)[at:])
                    return
            if len(data) - at > http1.MOST_RESPONSE_HEAD:
                raise ValueError("the head is too long")
            self.buffer += memoryview(data)[at:]
        except ValueError:
            client.fail(exchange, 502)

    def _respond(self, client: Client, exchange: Exchange, response: Response, rest: Data) -> None:
        request = exchange.request
        exchange.answered, self.reusable = self.loop.time(), response.keep_alive
        lines = [b"HTTP/1.1 " + response.line, *response.lines]
        if response.status == 101:
            if not request.websocket or response.upgrade != b"websocket":
                client.fail(exchange, 502)
                return
            exchange.tunnel = True
            lines += [b"Connection: upgrade", b"Upgrade: websocket"]
        else:
            exchange.answer = answer = response.body(request.method)
            modern = request.version != b"HTTP/1.0"
            unsized = not isinstance(answer, http1.Sized)
            exchange.rechunk = unsized and modern
            keep = client.keeps(exchange) and (modern or not unsized) and exchange.body.done
            lines.append(b"Connection: keep-alive" if keep else b"Connection: close")
            if exchange.rechunk:
                lines.append(b"Transfer-Encoding: chunked")
            elif response.length is not None:
                lines.append(b"Content-Length: %d" % response.length)
        exchange.response, exchange.status = response, response.status
        head = b"\r\n".join(lines) + b"\r\n\r\n"
        if exchange.tunnel:
            client.write(exchange, head + bytes(rest))
            client.transport.resume_reading()
            self.write(bytes(client.buffer))
            exchange.length += len(client.buffer)
            client.buffer.clear()
        else:
            self._body(client, exchange, head, rest)

    def _body(self, client: Client, exchange: Exchange, head: bytes, data: Data) -> None:
        """More of the response, after its head if that is given."""
        answer = exchange.answer
        try:
            payload, rest = answer.feed(data)
        except ValueError:
            client.transport.abort()  # the client sees that the response is not whole
            return
        payload = http1.framed(answer, payload) if exchange.rechunk else payload
        if len(payload) < MOST_JOINED:
            payload, head = b"".join((head, payload)), b""
        for each in (head, payload):
            if each:
                client.write(exchange, each)
        if answer.done:
            self._done(client, exchange, whole=not rest)

    def _done(self, client: Client, exchange: Exchange, whole: bool) -> None:
        """The response has ended; the connection is used again if both sides agree where."""
        keep = client.keeps(exchange)
        unsized = not isinstance(exchange.answer, http1.Sized)
        again = whole and self.reusable and exchange.body.done and not self.paused
        if again and (keep or exchange.request.tier < http1.AMBIGUOUS):
            self.client = self.exchange = client.target = None
            self.transport.resume_reading()
            self.rest()
        keep = keep and exchange.body.done and not (unsized and not exchange.rechunk)
        client.finish(exchange, keep)

    def rest(self) -> None:
        """Nobody uses it: the next request may."""
        self.used = self.loop.time()
        if self.member.drained_by is None and not self.transport.is_closing():
            self.member.idle.append(self)
        else:
            self.transport.close()

    def end(self, exchange: Exchange) -> None:
        """The client is done with it, before the response has ended or because of it."""
        self.client = self.exchange = None
        if exchange.tunnel:
            self.transport.close()
        else:
            self.abort()

    def connection_lost(self, _error: Exception | None) -> None:
        self.member.open.discard(self)
        if self in self.member.idle:
            self.member.idle.remove(self)
        client, exchange = self.client, self.exchange
        if not client or not exchange:
            return
        if exchange.tunnel:
            client.finish(exchange, keep=False)
        elif not exchange.response:
            client.fail(exchange, 502)
        elif isinstance(exchange.answer, http1.Endless):
            exchange.answer.done = True
            self._body(client, exchange, b"", b"")
        else:
            client.transport.abort()  # the client sees that the response is not whole

    def close(self) -> None:
        """Ends it, what is written first."""
        if self in self.member.idle:
            self.member.idle.remove(self)
        self.transport.close()

    def abort(self) -> None:
        """Ends it at once."""
        self.transport.abort()
