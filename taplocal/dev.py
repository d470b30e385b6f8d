"""`taplocal dev`: deploys each change of the program when it is saved, and prints the logs.

Each change is deployed by a process of its own (watch.py), as `up` would: the next one has
neither old modules nor old memory. They are forked from a server that has imported Pulumi and the
providers, so that each starts in milliseconds.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from taplocal import session
from taplocal.console import Console
from taplocal.errors import TapLocalError
from taplocal.logs import Logs
from taplocal.project import Project
from taplocal.session import Session
from taplocal.sources import Sources

LOGS_SECONDS = 0.2  # between two looks at the logs
END_SECONDS = 10
#: Lines of the platform, of a release's own requests, of health checks.
NOISE = re.compile(r'^"(START|END|REPORT) RequestId|"caller": "release-probe"|ELB-HealthChecker')

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


def run(target: Target, console: Console) -> None:
    """Runs until Ctrl-C."""
    seen: dict[str, Signature] = {}
    announced = False
    logs = Logs(round(time.time() * 1000))
    context: Any = multiprocessing.get_context("spawn")
    while True:
        ours, theirs = context.Pipe(duplex=False)
        process = context.Process(target=_generation, args=(target, seen, theirs, announced))
        process.start()
        theirs.close()
        try:
            found = _opened(target) if seen else None
            while not ours.poll(LOGS_SECONDS):
                for event in logs.new(*found) if found else ():
                    if not NOISE.search(json.dumps(event["message"])):
                        console.event(event)
            seen, modules = ours.recv()
        except EOFError:
            raise TapLocalError("the process that deploys has ended: run `dev` again") from None
        except KeyboardInterrupt:
            console.say("\nwhat is deployed stays: `up` or `dev` goes on with it")
            return
        finally:
            process.join(END_SECONDS)
        if context.get_start_method() == "spawn":
            context = multiprocessing.get_context("forkserver")
            os.environ[SERVICES] = " ".join(modules)
            context.set_forkserver_preload(["taplocal.preload"])
        else:
            announced = True


def _generation(*arguments: Any) -> None:
    from taplocal import watch  # with Pulumi, which this process does not need

    watch.generation(*arguments)


def _opened(target: Target) -> tuple[Session, Sources] | None:
    """The environment and its program's lines; None while one of them is broken."""
    try:
        opened = session.opened(target.program, target.env, target.folder)
        return opened, Sources(target.project().main)
    except (TapLocalError, SyntaxError):
        return None
