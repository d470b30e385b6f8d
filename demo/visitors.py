"""People who visit the web environment: a steady load that keeps account of each answer."""

from __future__ import annotations

import http.client
import ssl
import threading
import time
import uuid
from collections import Counter
from pathlib import Path
from types import TracebackType
from urllib.parse import urlsplit

TIMEOUT_SECONDS = 30


class Visitors:
    """Clients that record visits and read a page, one request after the other, until they leave.

    `acknowledged` has the ids that were answered with 200: none of them may ever be lost. What
    failed is in `failures`, by status or by the name of the error. `authority` is trusted for TLS.
    """

    def __init__(self, url: str, authority: Path, clients: int = 4, pause: float = 0.02):
        self.url, self.authority, self.pause = urlsplit(url), authority, pause
        self.acknowledged: set[str] = set()
        self.failures, self.answers = Counter[str](), 0
        self._lock, self._left = threading.Lock(), threading.Event()
        self._threads = [threading.Thread(target=self._visit, daemon=True) for _ in range(clients)]

    def __enter__(self) -> Visitors:
        for each in self._threads:
            each.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._left.set()
        for each in self._threads:
            each.join()

    def connect(self) -> http.client.HTTPConnection:
        """A connection to the load balancer."""
        host, port = self.url.hostname or "", self.url.port
        if self.url.scheme == "http":
            return http.client.HTTPConnection(host, port, timeout=TIMEOUT_SECONDS)
        context = ssl.create_default_context(cafile=str(self.authority))
        return http.client.HTTPSConnection(host, port, timeout=TIMEOUT_SECONDS, context=context)

    def _visit(self) -> None:
        connection = self.connect()
        while not self._left.is_set():
            visit = str(uuid.uuid4())
            for method, path in (("PUT", f"/visits/{visit}"), ("GET", "/")):
                try:
                    connection.request(method, path)
                    response = connection.getresponse()
                    response.read()
                    status = str(response.status)
                except (OSError, http.client.HTTPException) as failed:
                    connection.close()  # the next request opens another one
                    status = type(failed).__name__
                self._count(status, visit if method == "PUT" else "")
            time.sleep(self.pause)
        connection.close()

    def _count(self, status: str, visit: str) -> None:
        with self._lock:
            self.answers += 1
            if status != "200":
                self.failures[status] += 1
            elif visit:
                self.acknowledged.add(visit)
