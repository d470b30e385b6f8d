"""HTTP/1.1 (RFC 9112) with a deadline for the whole of a response: `Connection`, `within`.

A library of its own: it knows no cloud, and needs Python's standard library only. `http.client` has
no such deadline, and takes 12 ms of a cold start with the parser of e-mail that it uses.
"""

from __future__ import annotations

import re
import select
import socket
import ssl
import threading
import time
from collections.abc import Callable
from typing import Any


def within(seconds: float, call: Callable[..., Any], /, *arguments: Any, **named: Any) -> Any:
    """What a call returns that knows no deadline itself, or TimeoutError after so many seconds.

    It runs in a thread, which is left behind then: for what reads, or may be done twice.
    """
    outcome: list[tuple[Any, BaseException | None]] = []

    def run() -> None:
        try:
            outcome.append((call(*arguments, **named), None))
        except BaseException as error:  # noqa: BLE001 - raised below
            outcome.append((None, error))

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(max(seconds, 0))
    if not outcome:
        raise TimeoutError(f"{call.__name__} takes longer than the {seconds:.1f} s that were left")
    result, error = outcome[0]
    if error:
        raise error
    return result


class Connection:
    """A kept connection for one request after the other; after an error, another connection.

    `tls_context` is what it trusts: the authorities that are expected, or all if these do not know
    the other side. `seconds_left` is how long the caller can wait for anything.
    """

    HOST = re.compile(r"(?:\[(.+)\]|([^:/]+))(?::(\d+))?")
    HEAD_LIMIT = 65_536
    STATUS_LINE = re.compile(r"HTTP/1\.(\d) (\d{3})(?: .*)?")
    LENGTH = re.compile(r"[0-9]{1,12}")
    CHUNK_SIZE = re.compile(r"([0-9A-Fa-f]{1,9})[ \t]*(?:;.*)?")

    def __init__(
        self,
        scheme: str,
        host: str,
        tls_context: Callable[[bool], ssl.SSLContext],
        seconds_left: Callable[[], float],
    ):
        match = self.HOST.fullmatch(host)
        if not match or scheme not in ("http", "https"):
            example = "expected one such as http://localhost:4566, without a path"
            raise ValueError(f"{scheme}://{host} is no endpoint: {example}")
        self.tls = scheme == "https"
        self.name, self.port = match[1] or match[2], match[3] or (443 if self.tls else 80)
        self.tls_context, self.seconds_left = tls_context, seconds_left
        self.all_authorities = False
        if self.tls:
            tls_context(self.all_authorities)  # which takes time: not at the first request
        self.socket: Any = None
        self.received = bytearray()
        self.until = 0.0

    def exchange(
        self, request: bytes, connect_seconds: float, seconds: float
    ) -> tuple[int, dict[str, str], bytes]:
        """Status, headers and content of the response to a request; OSError if there is none.

        It may take so many seconds to connect, if that is needed, and then from request to end.
        """
        try:
            if self.socket and select.select([self.socket], [], [], 0)[0]:
                self._close()  # the other side has, while it was idle
            if not self.socket:
                self._wait_until(connect_seconds)
                self._open()
            self._wait_until(seconds)
            self._send(request)
            return self._response()
        except BaseException:
            self._close()
            raise

    def _wait_until(self, seconds: float) -> None:
        self.until = time.monotonic() + min(seconds, self.seconds_left())

    def _timed(self) -> Any:
        """The socket, whose next wait ends at the deadline; TimeoutError if that is over."""
        if (left := self.until - time.monotonic()) <= 0:
            raise TimeoutError("timed out")
        self.socket.settimeout(left)
        return self.socket

    def _open(self) -> None:
        # The system's resolver has no deadline.
        left = self.until - time.monotonic()
        found = within(left, socket.getaddrinfo, self.name, self.port, 0, socket.SOCK_STREAM)
        for position, (family, kind, protocol, _, address) in enumerate(found, 1):
            self.socket = socket.socket(family, kind, protocol)
            try:
                self._timed().connect(address)
                break
            except OSError:
                self._close()
                if position == len(found):
                    raise
        self._timed().setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if self.tls:
            self._secure()

    def _secure(self) -> None:
        context = self.tls_context(self.all_authorities)
        try:
            self.socket = context.wrap_socket(self._timed(), server_hostname=self.name)
        except ssl.SSLCertVerificationError:
            if self.all_authorities:
                raise
            self.all_authorities = True  # as of a proxy or an emulator
            self._open()

    def _close(self) -> None:
        if self.socket:
            self.socket.close()
        self.socket = None
        self.received.clear()

    def _send(self, request: bytes) -> None:
        left = memoryview(request)
        while left:
            left = left[self._timed().send(left) :]

    def _response(self) -> tuple[int, dict[str, str], bytes]:
        status = 100
        while status < 200:  # an interim response comes before the final one
            version, status, headers = self._head()
        content, kept = self._content(version, status, headers)
        if not kept or self.received or "close" in headers.get("connection", "").lower():
            self._close()
        return status, headers, content

    def _head(self) -> tuple[str, int, dict[str, str]]:
        first, *lines = self._before(b"\r\n\r\n").split("\r\n")
        match = self.STATUS_LINE.fullmatch(first)
        if not match:
            raise malformed(first)
        headers: dict[str, str] = {}
        for line in lines:
            name, colon, value = line.partition(":")
            if not colon or name.split() != [name]:
                raise malformed(line)
            name, value = name.lower(), value.strip()
            headers[name] = f"{headers[name]}, {value}" if name in headers else value
        return match[1], int(match[2]), headers

    def _content(self, version: str, status: int, headers: dict[str, str]) -> tuple[bytes, bool]:
        """The content, and whether another response may follow it."""
        coding, length = headers.get("transfer-encoding"), headers.get("content-length")
        if status in (204, 304):
            return b"", version == "1"
        if coding is not None:
            if coding.lower() != "chunked":
                raise malformed(coding)
            return self._chunks(), version == "1" and length is None
        if length is None:
            while self._receive():
                pass
            return bytes(self.received), False
        if not self.LENGTH.fullmatch(length):
            raise malformed(length)
        return self._take(int(length)), version == "1"

    def _chunks(self) -> bytes:
        content, size = bytearray(), 1
        while size:
            line = self._before(b"\r\n")
            if not (match := self.CHUNK_SIZE.fullmatch(line)):
                raise malformed(line)
            if size := int(match[1], 16):
                content += self._take(size)
                if end := self._before(b"\r\n"):
                    raise malformed(end)
        while self._before(b"\r\n"):
            pass  # trailers
        return bytes(content)

    def _before(self, delimiter: bytes) -> str:
        """What comes before a delimiter, which is dropped."""
        while (size := self.received.find(delimiter)) < 0:
            if len(self.received) > self.HEAD_LIMIT:
                raise malformed("its head is too long")
            self._receive_more()
        return self._take(size + len(delimiter))[:size].decode("latin-1")

    def _take(self, size: int) -> bytes:
        while len(self.received) < size:
            self._receive_more()
        taken = bytes(self.received[:size])
        del self.received[:size]
        return taken

    def _receive_more(self) -> None:
        if not self._receive():
            raise ConnectionResetError("the response ends too early")

    def _receive(self) -> bool:
        """Waits for the next bytes; False if the other side has closed."""
        data = self._timed().recv(65_536)
        self.received += data
        return bool(data)


def malformed(what: str) -> ConnectionError:
    """The error for what is no HTTP."""
    return ConnectionError(f"the response is malformed: {what[:100]!r}")
