"""Framing of HTTP/1.1: what the load balancer refuses, in which mode, and with which status."""

from __future__ import annotations

import pytest

from taplocal.web import http1
from tests.unit.test_web_balancer import World, hello, run, world

POST = b"POST / HTTP/1.1\r\nHost: a\r\n"
GET = b"GET / HTTP/1.1\r\nHost: a\r\n"
CHUNKED = POST + b"Transfer-Encoding: chunked\r\n\r\n"
BODY = b"0\r\n\r\n"
SMUGGLED = b"GET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n"

# What was sent; the status in the modes strictest and defensive; AWS's reason.
CASES: list[tuple[bytes, int, int, str]] = [
    (POST + b"Content-Length: 6\r\nTransfer-Encoding: chunked\r\n\r\n" + BODY, 400, 200, "BothTeClPresent"),
    (POST + b"Transfer-Encoding: chunked\r\nContent-Length: 6\r\n\r\n" + BODY, 400, 200, "BothTeClPresent"),
    (POST + b"Content-Length: 0\r\nContent-Length: 0\r\n\r\n", 400, 200, "DuplicateContentLength"),
    (POST + b"Content-Length: 0\r\nContent-Length: 5\r\n\r\nhello", 400, 400, "MultipleContentLength"),
    (POST + b"Content-Length: 5, 5\r\n\r\nhello", 400, 400, "BadContentLength"),
    (POST + b"Content-Length: 5 5\r\n\r\nhello", 400, 400, "BadContentLength"),
    (POST + b"Content-Length: +5\r\n\r\nhello", 400, 400, "BadContentLength"),
    (POST + b"Content-Length: -5\r\n\r\nhello", 400, 400, "BadContentLength"),
    (POST + b"Content-Length: 0x5\r\n\r\nhello", 400, 400, "BadContentLength"),
    (POST + b"Content-Length: 5_0\r\n\r\nhello", 400, 400, "BadContentLength"),
    (POST + b"Content-Length: \xb2\r\n\r\nhello", 400, 400, "BadContentLength"),
    (POST + b"Content-Length: \r\n\r\nhello", 400, 400, "BadContentLength"),
    (POST + b"Content-Length: 18446744073709551616\r\n\r\n", 400, 400, "BadContentLength"),
    (POST + b"Content-Length: 5\x0b\r\n\r\nhello", 400, 400, "BadContentLength"),
    (POST + b"Content-Length : 5\r\n\r\nhello", 400, 200, "SuspiciousHeader"),
    (POST + b"Content_Length: 5\r\n\r\nhello", 400, 200, "SuspiciousHeader"),
    (POST + b"Content-Length\t: 5\r\n\r\nhello", 400, 200, "SuspiciousHeader"),
    (POST + b"Content--Length: 5\r\n\r\nhello", 400, 200, "SuspiciousHeader"),
    (POST + b"Transfer-Encoding : chunked\r\n\r\n" + BODY, 400, 200, "SuspiciousHeader"),
    (POST + b"Transfer_Encoding: chunked\r\n\r\n" + BODY, 400, 200, "SuspiciousHeader"),
    (POST + b"\x01Transfer-Encoding: chunked\r\n\r\n" + BODY, 400, 200, "SuspiciousHeader"),
    (POST + b"Transfer-Encoding\x0b: chunked\r\n\r\n" + BODY, 400, 200, "SuspiciousHeader"),
    (POST + b" Transfer-Encoding: chunked\r\n\r\n" + BODY, 400, 400, "BadHeader"),
    (POST + b"Transfer-Encoding: xchunked\r\n\r\n" + BODY, 400, 400, "BadTransferEncoding"),
    (POST + b"Transfer-Encoding: chunked\x0b\r\n\r\n" + BODY, 400, 400, "BadTransferEncoding"),
    (POST + b"Transfer-Encoding: \x01chunked\r\n\r\n" + BODY, 400, 400, "BadTransferEncoding"),
    (POST + b"Transfer-Encoding: chunked\xa0\r\n\r\n" + BODY, 400, 400, "BadTransferEncoding"),
    (POST + b"Transfer-Encoding: chunked;q=1\r\n\r\n" + BODY, 400, 400, "BadTransferEncoding"),
    (POST + b"Transfer-Encoding: \"chunked\"\r\n\r\n" + BODY, 400, 400, "BadTransferEncoding"),
    (POST + b"Transfer-Encoding: chunked,\r\n\r\n" + BODY, 400, 400, "BadTransferEncoding"),
    (POST + b"Transfer-Encoding: chunked, chunked\r\n\r\n" + BODY, 400, 400, "MultipleTransferEncodingChunked"),
    (POST + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n" + BODY, 400, 400,
     "MultipleTransferEncodingChunked"),
    (POST + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n" + BODY, 501, 501, "-"),
    (POST + b"Transfer-Encoding: gzip, chunked\r\n\r\n" + BODY, 501, 501, "-"),
    (b"POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n" + BODY, 400, 200, "UndefinedTransferEncodingSemantics"),
    (GET + b"Transfer-Encoding: chunked\r\n\r\n" + BODY, 400, 200, "UndefinedTransferEncodingSemantics"),
    (GET + b"Content-Length: 5\r\n\r\nhello", 400, 200, "UndefinedContentLengthSemantics"),
    (GET + b"Content-Length: 0\r\n\r\n", 400, 200, "GetHeadZeroContentLength"),
    (GET + b"X: a\r\n folded\r\n\r\n", 400, 400, "BadHeader"),
    (GET + b"X: a\r\n\tContent-Length: 5\r\n\r\n", 400, 400, "BadHeader"),
    (GET + b"X: a\nY: b\r\n\r\n", 400, 400, "BadHeader"),
    (GET + b"X: a\rY: b\r\n\r\n", 400, 400, "BadHeader"),
    (GET + b"X: a\0b\r\n\r\n", 400, 400, "BadHeader"),
    (GET + b"X\0: a\r\n\r\n", 400, 400, "BadHeader"),
    (GET + b"no colon\r\n\r\n", 400, 400, "BadHeader"),
    (GET + b": no name\r\n\r\n", 400, 200, "EmptyHeader"),
    (GET + b"X Y: a\r\n\r\n", 400, 200, "NonCompliantHeader"),
    (GET + b"X: a\x01\r\n\r\n", 400, 200, "NonCompliantHeader"),
    (GET + b"X: a\x7f\r\n\r\n", 400, 200, "NonCompliantHeader"),
    (GET + b"Host: b\r\n\r\n", 400, 400, "BadHeader"),
    (b"GET / HTTP/1.1\r\nHost: a/b\r\n\r\n", 400, 400, "BadHeader"),
    (b"GET / HTTP/1.1\r\nHost: a b\r\n\r\n", 400, 400, "BadHeader"),
    (b"GET / HTTP/1.1\r\nX: a\r\n\r\n", 400, 400, "-"),
    (b"GET / HTTP/1.1\nHost: a\n\n", 400, 400, "NonCrLfLineTermination"),
    (b"GET / HTTP/1.1\r\nHost: a\r\n\n", 400, 400, "NonCrLfLineTermination"),
    (b"GET / HTTP/1.1\r\nHost: a\n\r\n", 400, 400, "NonCrLfLineTermination"),
    (b"GET / HTTP/1.1\r\nHost: a\n\nX: b\r\n\r\n", 400, 400, "NonCrLfLineTermination"),
    (b"GET /a b HTTP/1.1\r\nHost: a\r\n\r\n", 400, 200, "SpaceInUri"),
    (b"GET /a\tb HTTP/1.1\r\nHost: a\r\n\r\n", 400, 200, "AmbiguousUri"),
    (b"GET /a\0b HTTP/1.1\r\nHost: a\r\n\r\n", 400, 400, "BadUri"),
    (b"GET /a\rb HTTP/1.1\r\nHost: a\r\n\r\n", 400, 400, "BadUri"),
    (b"GET a HTTP/1.1\r\nHost: a\r\n\r\n", 400, 400, "BadUri"),
    (b"GET /\r\nHost: a\r\n\r\n", 400, 400, "BadVersion"),
    (b"GET / HTTP/1.2\r\nHost: a\r\n\r\n", 400, 200, "NonCompliantVersion"),
    (b"GET / HTTP/1.11\r\nHost: a\r\n\r\n", 400, 400, "BadVersion"),
    (b"GET / http/1.1\r\nHost: a\r\n\r\n", 400, 400, "BadVersion"),
    (b"GET / HTTP/2.0\r\nHost: a\r\n\r\n", 505, 505, "BadVersion"),
    (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505, 505, "BadVersion"),
    (b"GE\x01T / HTTP/1.1\r\nHost: a\r\n\r\n", 400, 400, "BadMethod"),
    (b" GET / HTTP/1.1\r\nHost: a\r\n\r\n", 400, 400, "BadMethod"),
    (b"G{T / HTTP/1.1\r\nHost: a\r\n\r\n", 400, 400, "BadMethod"),
    (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", 400, 400, "BadMethod"),
    (b"TRACE / HTTP/1.1\r\nHost: a\r\n\r\n", 405, 405, "-"),
    (b"CONNECT a:443 HTTP/1.1\r\nHost: a\r\n\r\n", 400, 400, "-"),
    (GET + b"X-Forwarded-For: " + b", ".join([b"10.0.0.1"] * 31) + b"\r\n\r\n", 463, 463, "-"),
    (GET + b"X-Forwarded-For: " + b", ".join([b"10.0.0.1"] * 30) + b"\r\n\r\n", 200, 200, "-"),
    (b"GET /" + b"a" * (16 << 10) + b" HTTP/1.1\r\nHost: a\r\n\r\n", 414, 414, "-"),
    (b"GET /" + b"a" * (20 << 10), 414, 414, "-"),
    (b"GET /" + b"a" * (15 << 10) + b" HTTP/1.1\r\nHost: a\r\n\r\n", 200, 200, "-"),
    (GET + b"X: " + b"a" * (16 << 10) + b"\r\n\r\n", 400, 400, "-"),
    (GET + b"X: " + b"a" * (15 << 10) + b"\r\n\r\n", 200, 200, "-"),
    (GET + (b"X: " + b"a" * 1000 + b"\r\n") * 66 + b"\r\n", 400, 400, "-"),
    (GET + (b"X: " + b"a" * 1000 + b"\r\n") * 66, 400, 400, "-"),
    (GET + (b"X: " + b"a" * 1000 + b"\r\n") * 60 + b"\r\n", 200, 200, "-"),
    (CHUNKED + b"5\r\nhello\r\n" + BODY, 200, 200, "-"),
    (CHUNKED + b"5;a=b\r\nhello\r\n0\r\nX: a\r\n\r\n", 200, 200, "-"),
    (CHUNKED + b"g\r\n" + BODY, 400, 400, "BadTransferEncoding"),
    (CHUNKED + b"-5\r\nhello\r\n" + BODY, 400, 400, "BadTransferEncoding"),
    (CHUNKED + b"0x5\r\nhello\r\n" + BODY, 400, 400, "BadTransferEncoding"),
    (CHUNKED + b"5\nhello\r\n" + BODY, 400, 400, "BadTransferEncoding"),
    (CHUNKED + b"5\r\nhello\n" + BODY, 400, 400, "BadTransferEncoding"),
    (CHUNKED + b"5\r\nhelloo\r\n" + BODY, 400, 400, "BadTransferEncoding"),
    (CHUNKED + b"\r\n" + BODY, 400, 400, "BadTransferEncoding"),
    (CHUNKED + b"5;a=\nb\r\nhello\r\n" + BODY, 400, 400, "BadTransferEncoding"),
    (CHUNKED + b"ffffffffffffffff5\r\nhello\r\n" + BODY, 400, 400, "BadTransferEncoding"),
    (CHUNKED + b"5;" + b"a" * 5000 + b"\r\nhello\r\n" + BODY, 400, 400, "BadTransferEncoding"),
    (CHUNKED + b"0\r\nno colon\r\n\r\n", 400, 400, "BadTransferEncoding"),
    (CHUNKED + b"0\r\nX: a\nY: b\r\n\r\n", 400, 400, "BadTransferEncoding"),
]  # fmt: skip


@pytest.mark.parametrize("mode", ["strictest", "defensive", "monitor"])
def test_requests_are_refused_or_pass_by_the_mode(mode: str) -> None:
    """A refusal closes; what passes reaches one target once, and nothing hides in its body."""

    @run
    async def each() -> None:
        async with world(hello, desync_mitigation_mode=mode) as w:
            for sent, strict, lenient, reason in CASES:
                expected = strict if mode == "strictest" else lenient
                w.apps[0].heads.clear()
                final = SMUGGLED.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")
                answer = await w.ask(sent + final)
                status = int(answer.split()[1])
                assert status == expected, (mode, sent[:100], answer[:100])
                (line, *more) = w.log()
                if expected == 200:
                    assert 1 <= len(w.apps[0].heads) <= 2, sent[:100]
                    assert b"/smuggled" not in w.apps[0].heads[0], sent[:100]
                else:
                    # A body is not awaited: its head is at the target before it turns out bad.
                    assert len(w.apps[0].heads) <= sent.startswith(CHUNKED), sent[:100]
                    assert answer.count(b"HTTP/1.1 ") == 1 and b"Server: awselb/2.0" in answer
                    assert not more
                assert f'"{reason}" TID_' in line, (sent[:100], line)

    each()


def received(w: World) -> bytes:
    return b"".join(w.apps[0].heads)


@run
async def test_in_defensive_mode_what_is_ambiguous_is_the_last_on_both_connections() -> None:
    async with world(hello) as w:
        assert (await w.ask(GET + b"Content-Length: 5\r\n\r\nhello" + SMUGGLED)).count(
            b"HTTP/1.1 200"
        ) == 1
        assert b"smuggled" not in received(w)
        await w.until(
            lambda: not any(m.open for m in w.balancer.groups[w.group.arn].members.values())
        )


@pytest.mark.parametrize(
    ("sent", "path"), [("http://b.example/x?y=1", "/x?y=1"), ("HTTPS://u@b.example?y=1", "/?y=1")]
)
def test_the_host_of_an_absolute_url_goes_before_the_header(sent: str, path: str) -> None:
    @run
    async def ask() -> None:
        async with world(hello) as w:
            asked = f"GET {sent} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"
            assert (await w.ask(asked.encode())).startswith(b"HTTP/1.1 200")
            line, *headers = received(w).decode().split("\r\n")
            assert line == f"GET {path} HTTP/1.1"
            assert "Host: b.example" in headers and "Host: a" not in headers

    ask()


@run
async def test_of_two_framings_the_target_sees_one() -> None:
    async with world(hello) as w:
        await w.ask(POST + b"Content-Length: 6\r\nTransfer-Encoding: chunked\r\n\r\n" + BODY)
        assert b"Transfer-Encoding: chunked" in received(w) and b"Content-Length" not in received(w)


@pytest.mark.parametrize("step", [1, 2, 3, 7, 1000])
def test_chunks_are_read_in_pieces_of_any_size(step: int) -> None:
    sent = b"5\r\nhello\r\n6;x=y\r\n world\r\n0\r\nX-Sum: 1\r\nHost: b\r\n\r\nGET next"
    body, got, rest = http1.Chunked(), b"", b""
    for at in range(0, len(sent), step):
        payload, more = (
            body.feed(sent[at : at + step]) if not body.done else (b"", sent[at : at + step])
        )
        got, rest = got + bytes(payload), rest + bytes(more)
    assert (got, rest, body.done) == (b"hello world", b"GET next", True)
    assert body.trailers == [b"X-Sum: 1\r\n"]  # what frames or routes does not come in a trailer


@pytest.mark.parametrize(
    "head",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6", b"HTTP/1.1 200 OK\r\nContent-Length: x",
        b"HTTP/1.1 200 OK\r\nX : a", b"HTTP/1.1 200 OK\r\nX: a\nY: b", b"HTTP/1.1 200 OK\r\n folded",
        b"HTTP/2 200 OK", b"HTTP/1.1 20 OK", b"HTTP/1.1 2000", b"hello", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip",
        b"HTTP/1.1 200 OK\r\nX: a\0", b"HTTP/1.1  200 OK", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked, chunked",
    ],
)  # fmt: skip
def test_a_malformed_response_is_none(head: bytes) -> None:
    with pytest.raises(ValueError):
        http1.parse_response(head)


def test_the_time_to_read_a_head_grows_with_its_length_only() -> None:
    """Counted in regular expression steps by proxy: what is read twice would be quadratic here."""
    buffer, seen = bytearray(), 0
    for _ in range(60_000):  # byte by byte
        buffer += b"a"
        if len(buffer) % 100 == 0:
            buffer += b"\r\n"
        assert not http1.end_of_head(buffer, seen)
        seen = max(0, len(buffer) - 3)
