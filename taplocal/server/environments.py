"""Execution environments: how many a version has, and how many start at a time.

Lambda starts an execution environment for each concurrent invocation. So does MiniStack, each a
process: on a few cores a burst starts more of them than can run. Here a few start at a time, a
version has a maximum, and invocations wait in a queue.
"""

from __future__ import annotations

import os
import threading
import time
from typing import Any

from ministack.core import lambda_runtime
from ministack.services import lambda_svc

CONCURRENT_STARTS = os.cpu_count() or 1
MAX_ENVIRONMENTS = 8 * CONCURRENT_STARTS  # of a version; more would share the same cores
MAX_WAIT_SECONDS = 20.0  # for a function that invokes itself, and so waits for itself


class Environments:
    """Limits the environments of a version and their concurrent starts; invocations wait."""

    def __init__(self) -> None:
        self._acquire, self._release = lambda_svc.acquire_worker, lambda_svc.release_worker
        self._spawn, self._starting = lambda_runtime.Worker._spawn, set[Any]()
        self._lock = threading.Lock()
        self._conditions: dict[Any, threading.Condition] = {}
        self._local = threading.local()

    def replace(self) -> None:
        """Replaces MiniStack's functions."""
        lambda_svc.acquire_worker, lambda_svc.release_worker = self.acquire, self.release
        lambda_runtime.Worker._spawn = lambda worker: self.spawn(worker)

    def acquire(self, name: str, config: Any, code: bytes, qualifier: str = "$LATEST") -> Any:
        """Waits for a free environment, or starts a new one within the limits."""
        key, began = lambda_runtime._worker_key(name, config, qualifier), time.monotonic()
        with self._lock:
            condition = self._conditions.setdefault(key, threading.Condition(self._lock))
            condition.wait_for(lambda: self._available(key), timeout=MAX_WAIT_SECONDS)
            worker, how = self._acquire(name, config, code, qualifier=qualifier)
            if how == "spawn":
                self._starting.add(worker)
        self._local.seconds = time.monotonic() - began
        return worker, how

    def _available(self, key: Any) -> bool:
        workers = lambda_runtime._workers.get(key, ())
        another = len(self._starting) < CONCURRENT_STARTS and len(workers) < MAX_ENVIRONMENTS
        return another or any(not each.in_use for each in list(workers))

    def release(self, worker: Any, *arguments: Any, **more: Any) -> None:
        """Frees an environment for the next waiting invocation."""
        self._release(worker, *arguments, **more)
        self._starting.discard(worker)  # one whose start failed at once
        self._notify()

    def spawn(self, worker: Any) -> None:
        """Starts an environment and records the time that it took."""
        began = time.monotonic()
        try:
            self._spawn(worker)
        finally:
            self._local.seconds = getattr(self._local, "seconds", 0.0) + time.monotonic() - began
            self._starting.discard(worker)
            self._notify()

    def _notify(self) -> None:
        with self._lock:
            for condition in self._conditions.values():
                condition.notify()

    def take_wait_seconds(self) -> float:
        """Seconds that the last invocation on this thread waited for an environment; resets."""
        seconds = getattr(self._local, "seconds", 0.0)
        self._local.seconds = 0.0
        return float(seconds)


def install() -> Environments:
    """The environments of this process, which replace MiniStack's."""
    environments = Environments()
    environments.replace()
    return environments
