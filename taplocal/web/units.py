"""Units of systemd, as an instance's user data writes them: what is run, how, and when again.

Of a service: Type (simple, exec, notify, oneshot), ExecStartPre, ExecStart, Environment,
EnvironmentFile, WorkingDirectory, RuntimeDirectory, StandardOutput and StandardError (append:,
file:, truncate:, else the journal), Restart, RestartSec, StartLimitIntervalSec, StartLimitBurst,
KillSignal. What protects a unit (ProtectSystem, IPAddressDeny...) needs systemd and is not shown,
nor are User and Group: an instance has one user.
"""

from __future__ import annotations

import asyncio
import collections
import os
import re
import shlex
import signal
import stat
from collections.abc import Mapping
from pathlib import Path

from taplocal.web.processes import Process, Processes

UNITS = {"": 1.0, "s": 1.0, "sec": 1.0, "ms": 0.001, "m": 60.0, "min": 60.0, "h": 3600.0}
SPAN = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([a-z]*)")
VARIABLE = re.compile(r"\$\{(\w+)\}|\$\$")
READ_LIMIT = 65_536  # bytes
TYPES = ("simple", "exec", "notify", "oneshot")


class UnitError(Exception):
    """A unit that cannot run here; the message says why."""


def parsed(text: str) -> dict[str, list[str]]:
    """The settings of a unit of all its sections; a line that ends with \\ goes on."""
    settings = collections.defaultdict[str, list[str]](list)
    lines = [x for x in text.splitlines() if not x.lstrip().startswith(("#", ";"))]
    for line in re.sub(r"\\\n", " ", "\n".join(lines)).splitlines():
        key, sign, value = line.partition("=")
        if sign and not key.startswith("["):
            kept = [] if not value.strip() else [*settings[key.strip()], value.strip()]
            settings[key.strip()] = kept
    return settings


def seconds(text: str) -> float:
    """A span of time such as 5, 100ms or 1min 30s."""
    found = SPAN.findall(text)
    if not found or SPAN.sub("", text).strip() or any(unit not in UNITS for _, unit in found):
        raise UnitError(f"{text!r} is no time: write it as 5, 100ms or 1min")
    return sum(float(number) * UNITS[unit] for number, unit in found)


def owned(path: Path, owner: int) -> str:
    """The last 64 KB of a file of this owner; empty without one.

    A link of the instance's must not have the supervisor read what the instance may not.
    """
    try:
        file = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return ""
    try:
        about = os.fstat(file)
        if about.st_uid != owner or not stat.S_ISREG(about.st_mode):
            return ""
        start = max(0, about.st_size - READ_LIMIT)
        return os.pread(file, READ_LIMIT, start).decode(errors="replace")
    finally:
        os.close(file)


class Unit:
    """A service of an instance, which it starts again as the unit, `text`, says."""

    def __init__(
        self,
        name: str,
        text: str,
        processes: Processes,
        *,
        root: Path,
        environment: Mapping[str, str],
        user: int | None,
    ):
        self.name, self.settings = name, parsed(text)
        self._processes, self._root, self._user = processes, root, user
        self._inherited = environment
        self.process: Process | None = None
        self.state = "inactive"
        self._run: asyncio.Task[None] | None = None
        kind = self._last("Type", "simple")
        if kind not in TYPES:
            raise UnitError(f"{self.name}: Type={kind} cannot run here; only {', '.join(TYPES)}")
        if not self.settings["ExecStart"]:
            raise UnitError(f"{self.name}: has no ExecStart")
        self._oneshot = kind == "oneshot"
        self._pause = seconds(self._last("RestartSec", "100ms"))

    async def start(self) -> None:
        """Starts it, unless it runs; a oneshot unit has ended then. UnitError if it failed."""
        if self.state in ("active", "activating"):
            return
        self.state = "activating"
        for each in self.settings["ExecStartPre"]:
            await self._done(each)
        if self._oneshot:
            for each in self.settings["ExecStart"]:
                await self._done(each)
            self.state = "active" if self._last("RemainAfterExit", "no") == "yes" else "inactive"
            return
        self.process = await self._started(self.settings["ExecStart"][-1])
        self.state = "active"
        self._run = asyncio.create_task(self._keep())

    async def stop(self, within: float = 90) -> None:
        """Stops it: KillSignal, then after so many seconds KILL."""
        if self._run:
            self._run.cancel()
        self.state = "inactive"
        if self.process:
            by = signal.Signals[self._last("KillSignal", "SIGTERM")]
            await self.process.stop(by, within)

    async def _done(self, command: str) -> None:
        process = self.process = await self._started(command)
        if status := await process.wait():
            self.state = "failed"
            raise UnitError(f"{self.name}: {command} ended with status {status}")

    async def _keep(self) -> None:
        """Starts it again as Restart says, until it was started too often."""
        again, loop = self._last("Restart", "no"), asyncio.get_running_loop()
        interval = seconds(self._last("StartLimitIntervalSec", "10"))
        starts = collections.deque([loop.time()], maxlen=int(self._last("StartLimitBurst", "5")))
        while self.process:
            status = await self.process.wait()
            clean = status in (0, -signal.SIGTERM, -signal.SIGINT, -signal.SIGHUP)
            self.state = "inactive" if clean else "failed"
            if again not in ("always", "on-success" if clean else "on-failure"):
                return
            self.state = "activating"
            await asyncio.sleep(self._pause)
            if interval and len(starts) == starts.maxlen and loop.time() - starts[0] < interval:
                self.state = "failed"
                return
            starts.append(loop.time())
            self.process = await self._started(self.settings["ExecStart"][-1])
            self.state = "active"

    async def _started(self, command: str) -> Process:
        environment = self.environment()
        argv = words(command, environment)
        for name in " ".join(self.settings["RuntimeDirectory"]).split():
            (self._root / "run" / name).mkdir(parents=True, exist_ok=True)
        log = self._output("StandardOutput") or self._root / "journal.log"
        errors = self._output("StandardError") or log
        if errors != log:
            argv = ["/bin/sh", "-c", 'exec "$@" 2>> "$0"', str(errors), *argv]
        folder = self._last("WorkingDirectory", str(self._root)).removeprefix("-")
        return await self._processes.start(
            argv, cwd=Path(folder), env=environment, log=log, user=self._user
        )

    def environment(self) -> dict[str, str]:
        """The variables of its processes."""
        variables = dict(self._inherited)
        for line in self.settings["Environment"]:
            variables.update(_pair(each) for each in shlex.split(line))
        for each in self.settings["EnvironmentFile"]:
            path = Path(each.removeprefix("-"))
            if not path.exists() and not each.startswith("-"):
                raise UnitError(f"{self.name}: there is no EnvironmentFile {path}")
            owner = os.geteuid() if self._user is None else self._user
            for line in owned(path, owner).splitlines():
                if line.strip() and not line.lstrip().startswith(("#", ";")):
                    name, value = _pair(line)
                    variables[name] = " ".join(shlex.split(value))
        return variables

    def _output(self, key: str) -> Path | None:
        kind, _, path = self._last(key, "journal").partition(":")
        return Path(path) if kind in ("append", "file", "truncate") else None

    def _last(self, key: str, default: str) -> str:
        values = self.settings[key]
        return values[-1] if values else default


def words(command: str, variables: Mapping[str, str]) -> list[str]:
    """The arguments of a command line of systemd: ${A} in a word, $A as words of its own."""
    made: list[str] = []
    for word in shlex.split(command.lstrip("-@:+!")):
        alone = re.fullmatch(r"\$(\w+)", word)
        if alone:
            made += variables.get(alone[1], "").split()
        else:
            word = VARIABLE.sub(lambda x: "$" if x[0] == "$$" else variables.get(x[1], ""), word)
            made.append(word.replace("%%", "%"))
    return made


def _pair(text: str) -> tuple[str, str]:
    name, _, value = text.partition("=")
    return name.strip(), value.strip()
