"""Requests at a fixed rate, whatever the response times (an open workload model)."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

from taplocal.access import Response
from taplocal.errors import TapLocalError

MAX_CONCURRENT = 64  # requests in flight


@contextmanager
def arriving(
    request: Callable[[], Response], per_second: float, outcome_of: Callable[[Response], str]
) -> Iterator[Counter[str]]:
    """Sends requests until the end of the block; yields how often each outcome occurred.

    The outcome of a request without a response is its error. The block's end waits for all responses.
    A machine that stood still makes no burst, which the API would throttle: what was due in the
    meantime, or while MAX_CONCURRENT are in flight, is not sent later.
    """
    outcomes: Counter[str] = Counter()
    stop, lock = threading.Event(), threading.Lock()
    free = threading.Semaphore(MAX_CONCURRENT)

    def one() -> None:
        try:
            outcome = outcome_of(request())
        except TapLocalError as error:
            outcome = str(error)
        finally:
            free.release()
        with lock:
            outcomes[outcome] += 1

    def send() -> None:
        due = time.monotonic()
        while not stop.wait(max(0.0, due - time.monotonic())):
            if free.acquire(blocking=False):
                pool.submit(one)
            due = max(due, time.monotonic()) + 1 / per_second

    with ThreadPoolExecutor(MAX_CONCURRENT) as pool:
        clock = threading.Thread(target=send)
        clock.start()
        try:
            yield outcomes
        finally:
            stop.set()
            clock.join()
