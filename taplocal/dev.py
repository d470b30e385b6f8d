"""`taplocal dev`: deploys each change of the program when it is saved, and prints the logs.

Each change is deployed by a process of its own (watch.py), as `up` would: the next one has
neither old modules nor old memory. They are forked from a server that has imported Pulumi and the
providers, so that each starts in milliseconds.
"""

from __future__ import annotations

import itertools
import json
import multiprocessing
import os
import re
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from taplocal import session
from taplocal.console import Console
from taplocal.emulator import DEBUG
from taplocal.errors import TapLocalError
from taplocal.logs import Logs
from taplocal.project import Project
from taplocal.sources import Sources
from taplocal.state import write_private

LOGS_SECONDS = 0.2  # between two looks at the logs
END_SECONDS = 10
#: Lines of the platform, of a release's own requests, of health checks.
NOISE = re.compile(r'^"(START|END|REPORT) RequestId|"caller": "release-probe"|ELB-HealthChecker')

FUNCTION = "aws:lambda/function:Function"
DEBUG_PORT = 5678  # the first function's, the usual one
SERVICES = "TAPLOCAL_PRELOAD"  # in the environment: modules of providers for the server

#: Time (epoch, ns), size and inode of a file; None if it is missing.
Signature = tuple[int, int, int] | None


@dataclass(frozen=True)
class Target:
    """What `dev` deploys, and where: the arguments of `up`."""

    program: Path
    env: str
    folder: Path
    config: Mapping[str, str] = field(default_factory=dict)

    def project(self) -> Project:
        """The project as its files are now."""
        return Project.load(self.program, self.env, self.config)


def run(target: Target, console: Console, debug: bool = False) -> None:
    """Runs until Ctrl-C; `debug` has each function's first request wait for a debugger."""
    logs = Logs(round(time.time() * 1000))
    try:
        seen, modules = _generation("spawn", target, {})
        os.environ[SERVICES] = " ".join(modules)
        multiprocessing.set_forkserver_preload(["taplocal.preload"])
        if debug:
            _debug(target, seen, console)
        for first in itertools.chain([True], itertools.repeat(False)):
            seen, _ = _generation("forkserver", target, seen, first, logs)
    except KeyboardInterrupt:
        console.say("\nwhat is deployed stays: `up` or `dev` goes on with it")
    finally:
        (target.folder / DEBUG).unlink(missing_ok=True)


def _generation(
    method: str,
    target: Target,
    seen: dict[str, Signature],
    first: bool = False,
    logs: Logs | None = None,
) -> tuple[dict[str, Signature], list[str]]:
    """Starts a process and prints the logs until it has deployed; its answer."""
    context: Any = multiprocessing.get_context(method)
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_watch, args=(target, seen, theirs, first), daemon=True)
    process.start()
    theirs.close()
    show = _shown(target, logs) if logs else None
    try:
        while not ours.poll(LOGS_SECONDS):
            show() if show else None
        return ours.recv()  # type: ignore[no-any-return]
    except EOFError:
        raise TapLocalError("the process that deploys has ended: run `dev` again") from None
    finally:
        process.join(END_SECONDS)


def _watch(*arguments: Any) -> None:
    from taplocal import watch  # with Pulumi, which this process does not need

    watch.generation(*arguments)


def _debug(target: Target, seen: Iterable[str], console: Console) -> None:
    """Tells the emulator to start functions with a debugger."""
    state = session.opened(target.program, target.env, target.folder).state
    names = sorted(x.id for x in state.resources.values() if x.type == FUNCTION)
    ports = {name: DEBUG_PORT + number for number, name in enumerate(names)}
    files = sorted(path for path in seen if path.endswith(".py"))
    told = {"dev": os.getpid(), "ports": ports, "files": files}
    write_private(target.folder / DEBUG, json.dumps(told))
    for name, port in ports.items():
        console.say(f"{name}: its first request waits for a debugger at 127.0.0.1:{port}")


def _shown(target: Target, logs: Logs) -> Callable[[], None]:
    """Prints what is new in the logs; nothing while the environment or its program is broken."""
    try:
        opened = session.opened(target.program, target.env, target.folder)
        sources = Sources(target.project().main)
    except (TapLocalError, OSError, SyntaxError, ValueError):
        return lambda: None
    console = Console()

    def show() -> None:
        for event in logs.new(opened, sources):
            if not NOISE.search(json.dumps(event["message"])):
                console.event(event)

    return show
