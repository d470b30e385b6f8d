"""HTTP/1.1 as an Application Load Balancer reads it: heads, framing, what it refuses.

Requests are classified as AWS's http-desync-guardian does, whose reasons the access log has. One
difference: a request that cannot be told apart from the next one with certainty (obs-fold, a bare
LF, what is Severe) is refused in the mode "monitor" too.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

# "HTTP header limits" of AWS's guide "How Elastic Load Balancing works".
MOST_LINE, MOST_HEAD, MOST_RESPONSE_HEAD = 16 << 10, 64 << 10, 32 << 10
MOST_FORWARDED = 30  # addresses in X-Forwarded-For; more are answered with 463
MOST_TRACED = 7 << 10  # bytes of headers; beyond them X-Amzn-Trace-Id is written anew
MOST_CHUNK_LINE = 4 << 10  # a chunk's size with its extensions; no number of AWS's

ACCEPTABLE, AMBIGUOUS, SEVERE = 1, 2, 3
TIERS = ("-", "Acceptable", "Ambiguous", "Severe")
#: The worst class that each mode lets pass ("Desync mitigation mode" in AWS's user guide).
PASSES = {"monitor": AMBIGUOUS, "defensive": AMBIGUOUS, "strictest": 0}

_TOKEN = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+"
_REQUEST_LINE = re.compile(rb"(" + _TOKEN + rb") ([^\r\n\0]+) (HTTP/\d\.\d)")
_COMPLIANT = re.compile(  # all but the first line
    rb"(?:" + _TOKEN + rb":[\t -~\x80-\xff]*\r\n)*\r\n"
)
_LENIENT = re.compile(rb"(?:[^\s:\0][^:\r\n\0]*)?:[^\r\n\0]*")
_STATUS_LINE = re.compile(rb"HTTP/1\.([01]) ([1-9]\d\d)(?: [\t -~\x80-\xff]*)?")
_ABSOLUTE = re.compile(rb"https?://([^/?#]+)(/?[^#]*)", re.IGNORECASE)
_SIZE = re.compile(rb"([0-9A-Fa-f]{1,15})[ \t]*(?:;[\t -~\x80-\xff]*)?\r\n")
_HEADER = re.compile(_TOKEN + rb":[\t -~\x80-\xff]*")
_TRAILER = re.compile(_HEADER.pattern + rb"\r\n")
_LENGTH = re.compile(rb"[0-9]{1,18}")
_VALID_NAME = re.compile(rb"[-A-Za-z0-9]+")  # of drop_invalid_header_fields
_HOST = re.compile(rb"[-A-Za-z0-9._~%!$&'()*+,;=:\[\]]*")
_END_OF_HEAD = re.compile(rb"\n\r?\n")

#: Headers of one connection only, and those that the load balancer writes itself.
_OWN = frozenset(
    b"connection keep-alive proxy-connection te upgrade transfer-encoding content-length expect "
    b"host x-forwarded-for x-forwarded-proto x-forwarded-port x-amzn-trace-id".split()
)
_OWN_IN_RESPONSE = frozenset(
    b"connection keep-alive proxy-connection transfer-encoding content-length upgrade".split()
)
_FRAMING = frozenset((b"content-length", b"transfer-encoding"))
_CONNECTION = frozenset((b"", b"keep-alive", b"close", b"upgrade"))  # options that are no headers
_CODINGS = frozenset(b"chunked compress deflate gzip identity".split())


Data = bytes | memoryview


class Refusal(Exception):  # noqa: N818 - not an error of ours
    """A request that is answered by the load balancer itself; `reason` is AWS's classification."""

    def __init__(self, status: int, reason: str = "", tier: int = SEVERE):
        super().__init__(status, reason)
        self.status, self.reason, self.tier = status, reason, tier


@dataclass(slots=True)
class Request:
    """The head of a request; `lines` are the headers that go to the target as they are."""

    method: bytes
    target: bytes
    version: bytes
    lines: list[bytes]
    own: dict[bytes, bytes]  # values of headers that the load balancer reads, by lower name
    length: int | None = None
    chunked: bool = False
    tier: int = 0
    reason: str = "-"
    dropped: bool = False  # headers were, by drop_invalid_header_fields

    @property
    def keep_alive(self) -> bool:
        wanted = self.own.get(b"connection", b"").lower()
        return b"keep-alive" in wanted if self.version == b"HTTP/1.0" else b"close" not in wanted

    @property
    def websocket(self) -> bool:
        """Whether it asks for the one upgrade that an Application Load Balancer lets pass."""
        return (
            self.own.get(b"upgrade", b"").lower() == b"websocket"
            and b"upgrade" in self.own.get(b"connection", b"").lower()
            and self.version != b"HTTP/1.0"
        )

    def header(self, name: bytes) -> bytes:
        """The value of a header that goes to the target, or nothing."""
        for line in self.lines:
            found, _, value = line.partition(b":")
            if found.lower() == name:
                return value.strip(b" \t")
        return b""

    def worse(self, tier: int, reason: str) -> None:
        if tier > self.tier:
            self.tier, self.reason = tier, reason


#: Stands for the request of which nothing could be read.
MALFORMED = Request(b"-", b"-", b"-", [], {})


@lru_cache(maxsize=1024)
def _name(name: bytes) -> tuple[bytes, bool, bool]:
    """Its lower case, whether AWS calls it valid, whether it is too like a framing header."""
    lower = name.lower()
    letters = re.sub(rb"[^a-z0-9]", b"", lower)
    suspicious = letters in (b"contentlength", b"transferencoding") and lower not in _FRAMING
    return lower, bool(_VALID_NAME.fullmatch(name)), suspicious


def end_of_head(buffer: bytearray, since: int) -> int:
    """Where the first head ends, or 0; `since` is what earlier calls have seen.

    Raises Refusal for a head that is longer than AWS allows or has bare line feeds.
    """
    at = buffer.find(b"\r\n\r\n", since)
    bare = _END_OF_HEAD.search(buffer, since, at + 2 if at >= 0 else len(buffer))
    if bare and (at < 0 or bare.start() < at):
        raise Refusal(400, "NonCrLfLineTermination")
    size = at + 4 if at >= 0 else len(buffer)
    if size > MOST_LINE and buffer.find(b"\n", 0, MOST_LINE) < 0:
        raise Refusal(414, "-", 0)
    if size > MOST_HEAD:
        raise Refusal(400, "-", 0)
    return at + 4 if at >= 0 else 0


def parse_request(head: bytes, drop_invalid: bool = False) -> Request:
    """A head that end_of_head has found; raises Refusal for what no mode lets pass."""
    first, _, rest = head.partition(b"\r\n")
    found = _REQUEST_LINE.fullmatch(first)
    if not found:
        raise Refusal(400, _reason_of(first))
    request = Request(found[1], found[2], found[3], [], {})
    _check_line(request)
    lines = rest.split(b"\r\n")[:-2]
    if not _COMPLIANT.fullmatch(rest):
        if not all(map(_LENIENT.fullmatch, lines)):
            raise Refusal(400, "BadHeader")
        request.worse(ACCEPTABLE, "NonCompliantHeader")
    _read_headers(request, lines, drop_invalid)
    _frame(request)
    _find_host(request)
    return request


def _reason_of(line: bytes) -> str:
    """Why a request line is none."""
    method, _, rest = line.partition(b" ")
    if not re.fullmatch(_TOKEN, method):
        return "BadMethod"
    return "BadUri" if re.search(rb"[\r\n\0]", rest) else "BadVersion"


def _check_line(request: Request) -> None:
    version = request.version
    if version not in (b"HTTP/1.1", b"HTTP/1.0"):
        if not version.startswith(b"HTTP/1."):
            raise Refusal(505, "BadVersion")
        request.worse(ACCEPTABLE, "NonCompliantVersion")
    if not re.fullmatch(rb"[!-~\x80-\xff]+", request.target):
        controls = re.search(rb"[^ -~\x80-\xff]", request.target)
        if controls:
            request.worse(AMBIGUOUS, "AmbiguousUri")
        else:
            request.worse(ACCEPTABLE, "SpaceInUri")
    if request.method == b"TRACE":
        raise Refusal(405, "-", 0)
    if request.method == b"CONNECT":
        raise Refusal(400, "-", 0)


def _read_headers(request: Request, lines: list[bytes], drop_invalid: bool) -> None:
    for line in lines:
        name, _, value = line.partition(b":")
        lower, valid, suspicious = _name(name)
        if lower in _OWN:
            _own(request, lower, value.strip(b" \t"))
        elif suspicious:  # and not for the target, whatever the mode
            request.worse(AMBIGUOUS, "SuspiciousHeader")
        elif not lower.strip(b" \t"):
            request.worse(AMBIGUOUS, "EmptyHeader")
        elif drop_invalid and not valid:
            request.dropped = True
        else:
            request.lines.append(line)
        if len(line) > MOST_LINE:
            raise Refusal(400, "-", 0)
    named = {each.strip().lower() for each in request.own.get(b"connection", b"").split(b",")}
    if named := named - _CONNECTION:
        request.lines = [
            each for each in request.lines if each.partition(b":")[0].lower() not in named
        ]


def _own(request: Request, name: bytes, value: bytes) -> None:
    own = request.own
    if name not in own:
        own[name] = value
    elif name == b"content-length":
        same = own[name] == value
        request.worse(
            AMBIGUOUS if same else SEVERE,
            "DuplicateContentLength" if same else "MultipleContentLength",
        )
    elif name == b"host":
        raise Refusal(400, "BadHeader")
    else:
        own[name] += b", " + value


def _frame(request: Request) -> None:
    """How long the body is, by RFC 9112 6.3, and AWS's class of it."""
    length, codings = request.own.get(b"content-length"), request.own.get(b"transfer-encoding")
    if length is not None:
        if not _LENGTH.fullmatch(length):
            request.worse(SEVERE, "BadContentLength")
        else:
            request.length = int(length)
    if codings is not None:
        _transfer(request, codings.lower())
    if length is not None and codings is not None:
        request.worse(AMBIGUOUS, "BothTeClPresent")
    if request.method in (b"GET", b"HEAD") and request.own.keys() & _FRAMING:
        _frame_without_meaning(request)
    if request.tier == SEVERE:
        raise Refusal(400, request.reason)


def _frame_without_meaning(request: Request) -> None:
    """The class of a GET or HEAD that tells how long its body is."""
    if b"transfer-encoding" in request.own:
        request.worse(AMBIGUOUS, "UndefinedTransferEncodingSemantics")
    elif request.length:
        request.worse(AMBIGUOUS, "UndefinedContentLengthSemantics")
    else:
        request.worse(ACCEPTABLE, "GetHeadZeroContentLength")


def _transfer(request: Request, value: bytes) -> None:
    codings = [each.strip(b" \t") for each in value.split(b",")]
    if codings.count(b"chunked") > 1:
        raise Refusal(400, "MultipleTransferEncodingChunked")
    if not _CODINGS.issuperset(codings):
        raise Refusal(400, "BadTransferEncoding")
    if codings not in ([b"chunked"], [b"identity"]):
        raise Refusal(501, "-", 0)  # "supported values are chunked and identity"
    if request.version == b"HTTP/1.0":
        request.worse(AMBIGUOUS, "UndefinedTransferEncodingSemantics")
    if codings == [b"chunked"]:
        request.chunked, request.length = True, None


def _find_host(request: Request) -> None:
    """The host of an absolute URL goes before that of the header (RFC 9112, 3.2.2)."""
    if absolute := _ABSOLUTE.fullmatch(request.target):
        request.own[b"host"] = absolute[1].rpartition(b"@")[2]
        path = absolute[2]
        request.target = path if path.startswith(b"/") else b"/" + path
    elif not request.target.startswith(b"/") and request.target != b"*":
        raise Refusal(400, "BadUri")
    host = request.own.get(b"host")
    if host is None and request.version != b"HTTP/1.0":
        raise Refusal(400, "-", 0)
    if host and not _HOST.fullmatch(host):
        raise Refusal(400, "BadHeader")


def without_port(host: str) -> str:
    """The host of a Host header."""
    return re.sub(r":\d*$", "", host)


def trace(value: bytes, head_length: int) -> bytes:
    """X-Amzn-Trace-Id for the target ("Request tracing" in AWS's user guide).

    A Root that came stays, with our Self before it; with more than 7 KB of headers, or without a
    Root, there is a new Root.
    """
    made = b"1-%08x-%b" % (int(time.time()), os.urandom(12).hex().encode())
    fields = [each.strip() for each in value.split(b";")] if head_length <= MOST_TRACED else []
    kept = [each for each in fields if each and not each.startswith(b"Self=")]
    ours = b"Self=" if any(each.startswith(b"Root=") for each in kept) else b"Root="
    return b";".join([ours + made, *kept])


@dataclass(slots=True)
class Response:
    """The head of a target's response; `lines` are the headers that go to the client."""

    status: int
    line: bytes  # status and reason, as the target wrote them
    lines: list[bytes]
    length: int | None = None
    chunked: bool = False
    keep_alive: bool = True
    upgrade: bytes = b""

    def body(self, method: bytes) -> Body:
        """Its body, by RFC 9112 6.3."""
        if method == b"HEAD" or self.status in (204, 304):
            return Sized(0)
        if self.chunked:
            return Chunked()
        return Endless() if self.length is None else Sized(self.length)


def parse_response(head: bytes) -> Response:
    """A head without its last empty line; raises ValueError for one that is not valid."""
    first, *lines = head.split(b"\r\n")
    found = _STATUS_LINE.fullmatch(first)
    if not found:
        raise ValueError("the status line is malformed")
    response = Response(int(found[2]), first[9:], [], keep_alive=found[1] == b"1")
    for line in lines:
        if not _HEADER.fullmatch(line):
            raise ValueError("a header is malformed")
        name, _, value = line.partition(b":")
        lower = name.lower()
        if lower in _OWN_IN_RESPONSE:
            _read_own(response, lower, value.strip(b" \t").lower())
        else:
            response.lines.append(line)
    if response.chunked:
        response.length = None
    return response


def _read_own(response: Response, name: bytes, value: bytes) -> None:
    if name == b"connection":
        response.keep_alive = b"close" not in value and (
            response.keep_alive or b"keep-alive" in value
        )
    elif name == b"transfer-encoding":
        if value != b"chunked" or response.chunked:
            raise ValueError("the transfer encoding is unknown")
        response.chunked = True
    elif name == b"upgrade":
        response.upgrade = value
    elif name == b"content-length":
        length = int(value) if _LENGTH.fullmatch(value) else -1
        if length < 0 or response.length not in (None, length):
            raise ValueError("the content length is wrong")
        response.length = length


class Sized:
    """A body with a Content-Length, or none."""

    __slots__ = ("done", "left", "trailers")

    def __init__(self, length: int):
        self.left, self.done = length, not length
        self.trailers: list[bytes] = []

    def feed(self, data: Data) -> tuple[Data, Data]:
        """What of the data belongs to the body, and what comes after it."""
        if len(data) <= self.left:
            self.left -= len(data)
            self.done = not self.left
            return data, b""
        mine, self.left, self.done = data[: self.left], 0, True
        return mine, data[len(mine) :]


class Endless:
    """A body that ends with the connection."""

    __slots__ = ("done", "trailers")

    def __init__(self) -> None:
        self.done = False
        self.trailers: list[bytes] = []

    def feed(self, data: Data) -> tuple[Data, Data]:
        return data, b""


class Chunked:
    """A body in chunks; strict, as every leniency here has been an attack (RFC 9112, 7.1).

    Raises ValueError for what is none. Holds a line at most, of data nothing.
    """

    __slots__ = ("_expects", "_left", "_line", "_size", "done", "trailers")

    def __init__(self) -> None:
        self._left, self._line, self._size = 0, b"", 0
        self._expects: Callable[[Chunked, bytes], None] = Chunked._size_line
        self.done = False
        self.trailers: list[bytes] = []

    def feed(self, data: Data) -> tuple[Data, Data]:
        data, pieces, at = bytes(data), [], 0
        while at < len(data) and not self.done:
            if self._left:
                piece = data[at : at + self._left]
                pieces.append(piece)
                at += len(piece)
                self._left -= len(piece)
                continue
            end = data.find(b"\n", at) + 1 or len(data)
            self._line += data[at:end]
            at = end
            if len(self._line) > MOST_CHUNK_LINE:
                raise ValueError("a line between chunks is too long")
            if self._line.endswith(b"\n"):
                line, self._line = self._line, b""
                self._expects(self, line)
        return b"".join(pieces), data[at:]

    def _size_line(self, line: bytes) -> None:
        found = _SIZE.fullmatch(line)
        if not found:
            raise ValueError("a chunk has no size")
        self._left = int(found[1], 16)
        self._expects = Chunked._end_of_chunk if self._left else Chunked._trailer

    def _end_of_chunk(self, line: bytes) -> None:
        if line != b"\r\n":
            raise ValueError("a chunk is longer than its size")
        self._expects = Chunked._size_line

    def _trailer(self, line: bytes) -> None:
        if line == b"\r\n":
            self.done = True
            return
        self._size += len(line)
        if not _TRAILER.fullmatch(line) or self._size > MOST_HEAD:
            raise ValueError("a trailer is malformed or too long")
        if line.partition(b":")[0].lower() not in _OWN:
            self.trailers.append(line)


Body = Sized | Endless | Chunked


def framed(body: Body, data: Data) -> bytes:
    """The data as chunks, with the end and the trailers if the body is done."""
    chunk = b"".join((b"%x\r\n" % len(data), data, b"\r\n")) if data else b""
    return chunk + b"0\r\n%b\r\n" % b"".join(body.trailers) if body.done else chunk


#: As the load balancer spells them, which are nginx's words.
REASONS = {
    301: "Moved Permanently", 302: "Found", 400: "Bad Request", 405: "Not Allowed",
    408: "Request Time-out", 414: "Request-URI Too Large", 463: "", 500: "Internal Server Error",
    501: "Not Implemented", 502: "Bad Gateway", 503: "Service Temporarily Unavailable",
    504: "Gateway Time-out", 505: "HTTP Version Not Supported",
}  # fmt: skip


def page(status: int) -> bytes:
    """The HTML of the load balancer's own answers."""
    title = f"{status} {REASONS[status]}".strip()
    return (
        f"<html>\r\n<head><title>{title}</title></head>\r\n<body>\r\n"
        f"<center><h1>{title}</h1></center>\r\n</body>\r\n</html>\r\n"
    ).encode()
