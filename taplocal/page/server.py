"""Serves the page, in the emulator's process and on a port of its own.

Files of users are served from the emulator's port, so that a page among them is of another origin.
Only a browser that was given the token comes in: it gets a cookie for the token, and every request
of another site, or under another name of this machine (DNS rebinding), is refused.
"""

from __future__ import annotations

import asyncio
import hmac
import json
import socket
import sys
import threading
import traceback
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlencode

from taplocal.errors import TapLocalError
from taplocal.page import PORT, token
from taplocal.state import write_private

Scope = Mapping[str, Any]
Receive = Callable[[], Awaitable[Any]]
Send = Callable[[Mapping[str, Any]], Awaitable[None]]
#: A view gets the query and the body, and returns what becomes JSON, or a text as it is.
View = Callable[[dict[str, str], bytes], Any]

PREFERRED_PORT = 4567
POLL_SECONDS = 1.0
BODY_LIMIT = 64 * 2**20  # bytes of a file that is dropped on the page
STREAMS = 16  # pages that are open at once; each costs one look a second
FOLDER = Path(__file__).parent
FILES = {
    "/": ("page.html", "text/html; charset=utf-8"),
    "/page.js": ("page.js", "text/javascript; charset=utf-8"),
    "/page.css": ("page.css", "text/css; charset=utf-8"),
    "/uplot.js": ("uplot/uPlot.iife.min.js", "text/javascript; charset=utf-8"),
    "/uplot.css": ("uplot/uPlot.min.css", "text/css; charset=utf-8"),
}
HEADERS = {
    "cache-control": "no-store",
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
        "connect-src 'self'; form-action 'none'; base-uri 'none'; frame-ancestors 'none'"
    ),
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
}


class RefusalError(Exception):
    """A request that gets no more than a status and a reason."""

    def __init__(self, status: int, why: str):
        super().__init__(why)
        self.status = status


class Page:
    """The ASGI application; `views` are called in threads, for they wait for the emulator."""

    def __init__(self, port: int, secret: str, views: Callable[[], Mapping[str, View]]):
        self.secret, self.cookie, self.views = secret, f"taplocal-{port}", views
        self.hosts = tuple(f"{name}:{port}" for name in ("127.0.0.1", "localhost", "[::1]"))
        self.streams = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers a request; what fails becomes an error in JSON, and a trace in the log."""
        if scope["type"] == "lifespan":
            return
        if scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1008})
            return
        try:
            await self.answer(scope, receive, send)
        except RefusalError as error:
            await respond(send, error.status, {"error": str(error)})
        except TapLocalError as error:
            await respond(send, 409, {"error": str(error)})
        except Exception as error:  # noqa: BLE001 - the page shows it, and goes on
            traceback.print_exc(file=sys.stderr)
            await respond(send, 500, {"error": f"{type(error).__name__}: {error}"})

    async def answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Lets a request in, and finds what it is for."""
        headers = {
            name.decode("latin-1"): text.decode("latin-1") for name, text in scope["headers"]
        }
        asked = parse_qs(scope["query_string"].decode("latin-1"), keep_blank_values=True)
        query = {name: values[-1] for name, values in asked.items()}
        method, path = scope["method"], scope["path"]
        self.admit(headers, len(scope["headers"]) - len(headers))
        if (method, path) == ("GET", "/") and "token" in query:
            await self.sign_in(query, send)
        elif not self.knows(headers):
            raise RefusalError(401, "run `python -m taplocal open`: its URL opens this page")
        elif method == "GET" and path in FILES:
            name, kind = FILES[path]
            await respond(send, 200, (FOLDER / name).read_bytes(), kind)
        elif (method, path) == ("GET", "/live"):
            await self.stream(query, receive, send)
        elif view := (await asyncio.to_thread(self.views)).get(f"{method} {path}"):
            body = await whole(receive)
            found = await asyncio.to_thread(view, query, body)
            kind = "image/svg+xml" if isinstance(found, str) else "application/json"
            await respond(send, 200, found.encode() if isinstance(found, str) else found, kind)
        else:
            raise RefusalError(404, f"there is no {method} {path}")

    def admit(self, headers: Mapping[str, str], repeated: int) -> None:
        """Refuses what no page of this port, and no program of this machine's user, sends."""
        host = headers.get("host", "")
        if host not in self.hosts:
            raise RefusalError(403, f"{host!r} is no name of this page: use 127.0.0.1")
        origin, site = headers.get("origin"), headers.get("sec-fetch-site", "none")
        of_another = origin not in (None, f"http://{host}") or site not in ("none", "same-origin")
        if repeated or of_another:
            raise RefusalError(403, "a page of another site sent this")

    def knows(self, headers: Mapping[str, str]) -> bool:
        """Whether the browser has the cookie for the token.

        Any program on this machine may have given it others, of any form: ports share them.
        """
        pairs = (each.strip().partition("=") for each in headers.get("cookie", "").split(";"))
        given = {name: value for name, _, value in pairs}.get(self.cookie, "")
        return hmac.compare_digest(given.encode(), self.cookie_value.encode())

    @property
    def cookie_value(self) -> str:
        """Another secret than the token, which stands in a terminal and in a history."""
        return token(f"{self.secret} cookie")

    async def sign_in(self, query: Mapping[str, str], send: Send) -> None:
        """Gives the cookie for the token, and leads to the URL without it."""
        if not hmac.compare_digest(query["token"].encode(), token(self.secret).encode()):
            raise RefusalError(401, "another token: run `python -m taplocal open` again")
        rest = urlencode({name: text for name, text in query.items() if name != "token"})
        cookie = f"{self.cookie}={self.cookie_value}; Path=/; HttpOnly; SameSite=Strict"
        await respond(send, 303, b"", location=f"/?{rest}", **{"set-cookie": cookie})

    async def stream(self, query: dict[str, str], receive: Receive, send: Send) -> None:
        """Sends what is new each second, as server-sent events, until the page is closed."""
        if self.streams >= STREAMS:
            raise RefusalError(429, f"{STREAMS} pages are open: close one")
        self.streams += 1
        closed = asyncio.create_task(disconnected(receive))
        try:
            look = (await asyncio.to_thread(self.views))["GET /live"]
            await send(start(200, "text/event-stream; charset=utf-8", {}))
            while not closed.done():
                try:
                    found = await asyncio.to_thread(look, query, b"")
                except TapLocalError as error:
                    found = {"error": str(error)}
                query["since"] = str(found.get("time", query.get("since", "")))
                text = f"data: {json.dumps(found)}\n\n".encode()
                await send({"type": "http.response.body", "body": text, "more_body": True})
                await asyncio.wait([closed], timeout=POLL_SECONDS)
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        finally:
            self.streams -= 1
            closed.cancel()


async def disconnected(receive: Receive) -> None:
    """Returns when the browser has closed the connection."""
    while (await receive())["type"] != "http.disconnect":
        pass


async def whole(receive: Receive) -> bytes:
    """The body; RefusalError if it is longer than a file may be here."""
    parts, size = [], 0
    while True:
        message = await receive()
        parts.append(message.get("body", b""))
        size += len(parts[-1])
        if size > BODY_LIMIT:
            raise RefusalError(413, f"more than {BODY_LIMIT // 2**20} MiB: use `taplocal upload`")
        if not message.get("more_body"):
            return b"".join(parts)


def start(status: int, kind: str, more: Mapping[str, str]) -> dict[str, Any]:
    """The start of a response, with the headers that each one has."""
    headers = {"content-type": kind, **HEADERS, **more}
    encoded = [(name.encode(), text.encode("latin-1")) for name, text in headers.items()]
    return {"type": "http.response.start", "status": status, "headers": encoded}


async def respond(
    send: Send, status: int, content: Any, kind: str = "application/json", **more: str
) -> None:
    """Sends bytes as they are, anything else as JSON."""
    body = content if isinstance(content, bytes) else json.dumps(content, default=str).encode()
    await send(start(status, kind, {"content-length": str(len(body)), **more}))
    await send({"type": "http.response.body", "body": body})


def listening(folder: Path) -> socket.socket:
    """A socket at the port of last time, so that open pages find it again, or at another one."""
    path = folder / PORT
    text = path.read_text() if path.exists() else ""
    last = [int(text)] if text.isdecimal() else []
    for port in [*last, PREFERRED_PORT, 0]:
        found = socket.socket()
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            found.bind(("127.0.0.1", port))
            found.listen()  # until one does, several may have a port
            break
        except OSError:
            found.close()
    write_private(path, str(found.getsockname()[1]))
    return found


def serve(folder: Path, secret: str) -> None:
    """Serves the page of a data folder in a thread, until the process ends."""
    from hypercorn.asyncio import serve as hypercorn
    from hypercorn.config import Config

    def views() -> Mapping[str, View]:  # the SDK is imported when the page is first opened
        from taplocal.page.views import views_of

        return views_of(folder)

    bound = listening(folder)
    page, config = Page(bound.getsockname()[1], secret, views), Config()
    config.bind, config.loglevel = [f"fd://{bound.detach()}"], "WARNING"

    async def forever() -> None:
        await asyncio.Event().wait()

    def run() -> None:
        asyncio.run(hypercorn(page, config, shutdown_trigger=forever))  # type: ignore[arg-type]

    threading.Thread(target=run, name="page", daemon=True).start()
