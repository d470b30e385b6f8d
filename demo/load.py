"""Requests at a stated rate, whether or not the earlier ones have been answered (an open loop)."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

from taplocal.access import Response
from taplocal.errors import TapLocalError

AT_ONCE = 64  # requests that may wait for their answers: seconds' worth of any rate here


@contextmanager
def arriving(
    request: Callable[[], Response], per_second: float, seen: Callable[[Response], str]
) -> Iterator[Counter[str]]:
    """Sends requests until the end of the block; yields how often each outcome was `seen`.

    A request that got no answer at all counts as its error. The block's end waits for all answers.
    """
    outcomes: Counter[str] = Counter()
    stop, lock = threading.Event(), threading.Lock()

    def one() -> None:
        try:
            outcome = seen(request())
        except TapLocalError as error:
            outcome = str(error)
        with lock:
            outcomes[outcome] += 1

    def send() -> None:
        due = time.monotonic()
        while not stop.wait(max(0.0, due - time.monotonic())):
            pool.submit(one)
            due += 1 / per_second

    with ThreadPoolExecutor(AT_ONCE) as pool:
        clock = threading.Thread(target=send)
        clock.start()
        try:
            yield outcomes
        finally:
            stop.set()
            clock.join()
