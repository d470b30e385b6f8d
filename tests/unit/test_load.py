"""The load of the demonstration and of the tests of releases."""

from __future__ import annotations

import threading
import time

from demo.load import MAX_CONCURRENT, arriving
from taplocal.access import Response


def test_what_was_due_while_nothing_answered_is_not_sent_at_once() -> None:
    stuck, full = threading.Event(), threading.Barrier(MAX_CONCURRENT + 1)

    def request() -> Response:
        if not stuck.is_set():
            full.wait(60)
        stuck.wait()
        return Response(200, {}, "")

    with arriving(request, 1_000, lambda answer: str(answer.status)) as outcomes:
        full.wait(60)
        time.sleep(0.5)  # 500 more are due
        assert not outcomes
        stuck.set()
    assert MAX_CONCURRENT <= outcomes["200"] < 400
