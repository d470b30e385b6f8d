"""What becomes of a burst of uploads: `python -m benchmarks.bursts [FILES PER_SECOND]`.

A simulation in virtual time, as AWS itself cannot be asked for 50,000 files each evening. It has the
settings of each environment and the function's own backing off (`may_repeat`); the rest is what AWS
documents:

- DynamoDB lends what a table or an index did not use in the last five minutes, then throttles.
- Auto scaling: two minutes above its target, then units for what the last minute consumed.
- Lambda's asynchronous queue: an event that finds no concurrency comes again after 1 s, 2 s, 4 s...
  five minutes (half of that at least, by chance), and this is no attempt; one whose invocation
  fails, after one minute, then two. Three attempts, within six hours; then it is a dead letter.

A file takes 6 units of the table and one of each index: docs/decisions/0007.
"""

from __future__ import annotations

import heapq
import itertools
import random
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

from rich.console import Console
from rich.table import Table as Shown

import tap_stack
from cost.prices import GB_SECOND
from tap_stack import FILE_INDEXES, FILES_TIMEOUT_SECONDS, TapStackArgs

BURST_SECONDS, SCALING_TARGET, MINUTE = 300, 0.7, 60
READ_SECONDS, WRITE_SECONDS = 0.115, 0.010  # of a file in S3; of a transaction: 8 files a second
TABLE_UNITS, INDEX_UNITS = 6, 1  # of a file
RETRY_SECONDS = (60, 120)  # until a failed event's second and third attempt
THROTTLED_SECONDS = (1, 300)  # first and longest pause of an event without concurrency
EVENT_AGE_SECONDS = 6 * 3600
ACCOUNT, NEW_ACCOUNT = 1_000, 10  # concurrency where none is reserved
MEMORY_GB = 0.5

#: Whether an invocation tries again after so many attempts; if so, it has paused.
Policy = Callable[[int], bool]


class Clock:
    """Stands for the module `time` in the function."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds

    @contextmanager
    def ruling(self, seed: int) -> Iterator[None]:
        """The function's clock and chance are this one's meanwhile."""
        chance = random.Random(seed)  # noqa: S311 - a simulation, no secret
        with (
            mock.patch.object(tap_stack, "time", self),
            mock.patch.object(tap_stack, "jitter", chance.random),
            mock.patch.dict(tap_stack._clock),
        ):
            yield


def five_tries(attempt: int) -> bool:
    """How it was before."""
    if attempt == 4:
        return False
    tap_stack.jittered_pause(0.05 * 2**attempt)
    return True


class Place:
    """The write units of a table or an index: what it has now, and how it grows."""

    def __init__(self, units: int, most: int, per_file: int):
        self.units, self.most, self.per_file = float(units), most, per_file
        self.left, self.at = self.units * BURST_SECONDS, 0.0
        self.consumed, self.high = 0.0, 0  # in this minute; minutes above the target

    def has_units(self, now: float) -> bool:
        """Whether a write is let through: until nothing is left, as in taplocal/server/capacity.py."""
        earned = self.units * (now - self.at)
        self.left, self.at = min(self.left + earned, self.units * BURST_SECONDS), now
        return self.left > 0

    def take(self) -> None:
        self.left -= self.per_file
        self.consumed += self.per_file

    def end_minute(self) -> None:
        """What auto scaling does: it knows the minute that is over."""
        rate, self.consumed = self.consumed / MINUTE, 0.0
        self.high = self.high + 1 if rate > SCALING_TARGET * self.units else 0
        if self.high >= 2:
            self.units = min(max(self.units, rate / SCALING_TARGET), self.most)


@dataclass
class Event:
    """An upload's event, and what became of it so far."""

    arrived: float
    attempt: int = 1
    throttled: int = 0  # times that it found no concurrency
    tries: int = 0  # at its transaction, in this invocation
    started: float = 0.0
    end: float = 0.0  # until when this invocation may wait


@dataclass
class Outcome:
    """What became of all files of a burst."""

    recorded: int = 0
    dead: int = 0
    seconds: float = 0.0  # until the last one is recorded
    failed: int = 0  # invocations
    busy: float = 0.0  # seconds, of all invocations
    needed: float = 0.0  # of which without waiting


@dataclass
class Simulation:
    """A burst that arrives at a stack."""

    places: list[Place]
    concurrency: int
    policy: Policy
    clock: Clock = field(default_factory=Clock)
    outcome: Outcome = field(default_factory=Outcome)
    running: int = 0

    def run(self, files: int, per_second: float) -> Outcome:
        """Until each file is recorded or a dead letter."""
        self.order, self.open = itertools.count(), files
        self.agenda: list[tuple[float, int, Callable[[Any], None], Any]] = []
        for number in range(files):
            event = Event(number / per_second)
            self.at(event.arrived, self.deliver, event)
        self.at(MINUTE, self.scale, None)
        while self.open:
            self.clock.now, _, step, event = heapq.heappop(self.agenda)
            step(event)
        return self.outcome

    def at(self, when: float, step: Callable[[Any], None], event: Any) -> None:
        heapq.heappush(self.agenda, (when, next(self.order), step, event))

    def scale(self, _: None) -> None:
        for place in self.places:
            place.end_minute()
        self.at(self.clock.now + MINUTE, self.scale, None)

    def deliver(self, event: Event) -> None:
        """Lambda takes the event from its queue."""
        now = self.clock.now
        if now - event.arrived > EVENT_AGE_SECONDS:
            self.lose()
        elif self.running == self.concurrency:
            first, longest = THROTTLED_SECONDS
            wait = (
                min(first * 2 ** min(event.throttled, 20), longest) * (1 + tap_stack.jitter()) / 2
            )
            event.throttled += 1
            self.at(now + wait, self.deliver, event)
        else:
            self.running += 1
            event.started, event.tries, event.throttled = now, 0, 0
            event.end = now + FILES_TIMEOUT_SECONDS - tap_stack.RESERVE_SECONDS
            self.at(now + READ_SECONDS, self.write, event)

    def write(self, event: Event) -> None:
        """The function tries its transaction."""
        let_through = all(place.has_units(self.clock.now) for place in self.places)
        if let_through:
            for place in self.places:
                place.take()
        self.at(self.clock.now + WRITE_SECONDS, self.end if let_through else self.back_off, event)

    def end(self, event: Event) -> None:
        """It is recorded."""
        self.leave(event)
        self.outcome.recorded += 1
        self.outcome.needed += READ_SECONDS + WRITE_SECONDS
        self.outcome.seconds = self.clock.now
        self.open -= 1

    def back_off(self, event: Event) -> None:
        """The function's own decision, by its own clock."""
        tap_stack._clock["end"] = event.end
        now, again = self.clock.now, self.policy(event.tries)
        due, self.clock.now = self.clock.now, now
        event.tries += 1
        if again:
            self.at(due, self.write, event)
            return
        self.leave(event)
        self.outcome.failed += 1
        if event.attempt > len(RETRY_SECONDS):
            self.lose()
            return
        self.at(now + RETRY_SECONDS[event.attempt - 1], self.deliver, event)
        event.attempt += 1

    def leave(self, event: Event) -> None:
        self.running -= 1
        self.outcome.busy += self.clock.now - event.started

    def lose(self) -> None:
        self.outcome.dead += 1
        self.open -= 1


def simulate(
    args: TapStackArgs,
    files: int,
    per_second: float,
    unreserved: int = ACCOUNT,
    policy: Policy | None = None,
    seed: int = 1,
) -> Outcome:
    """What becomes of a burst in an environment; `unreserved` is what others leave of the account's."""
    units, times = args.files_table_capacity, args.files_table_scaling
    half = -(-units // 2)
    places = [Place(units, units * times, TABLE_UNITS)]
    places += [Place(half, half * times, INDEX_UNITS) for _ in FILE_INDEXES]
    burst = Simulation(places, args.files_concurrency or unreserved, policy or tap_stack.may_repeat)
    with burst.clock.ruling(seed):
        return burst.run(files, per_second)


def main(files: list[int], per_second: float) -> None:
    shown = Shown(title=f"A burst of uploads, {per_second:g} a second (simulated)")
    for heading in (
        "",
        "files",
        "at once",
        "dead letters",
        "failed invocations",
        "all recorded after",
        "GB-s of waiting",
        "dollars",
    ):
        shown.add_column(heading, justify="right" if heading else "left")
    for name, args, unreserved, policy in candidates():
        for count in files:
            done = simulate(args, count, per_second, unreserved, policy)
            waited = (done.busy - done.needed) * MEMORY_GB
            shown.add_row(
                name,
                f"{count:,}",
                f"{args.files_concurrency or unreserved:,}",
                f"{done.dead:,}",
                f"{done.failed:,}",
                time.strftime("%H:%M:%S", time.gmtime(done.seconds)),
                f"{waited:,.0f}",
                f"{waited * GB_SECOND:.2f}",
            )
    Console(width=120).print(shown)


def candidates() -> Iterator[tuple[str, TapStackArgs, int, Policy | None]]:
    """Name, settings, what is not reserved, and the policy of each row."""
    unreserved = TapStackArgs(environment_suffix="dev", files_concurrency=0)
    yield "dev, before", unreserved, ACCOUNT, five_tries
    yield "dev, none reserved", unreserved, ACCOUNT, None
    yield "dev, new account", unreserved, NEW_ACCOUNT, None
    yield "dev", TapStackArgs(environment_suffix="dev"), ACCOUNT, None
    for tier in ("staging", "prod"):
        args = TapStackArgs(environment_suffix=tier)
        yield f"{tier}, before", args, ACCOUNT, five_tries
        yield tier, args, ACCOUNT, None


if __name__ == "__main__":
    counts, rate = (
        ([int(sys.argv[1])], float(sys.argv[2])) if sys.argv[1:] else ([10_000, 50_000], 500)
    )
    main(counts, rate)
