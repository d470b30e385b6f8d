"""What a process of `taplocal dev` does: it waits for a change, deploys it, and ends.

It deploys functions whose code has changed at once, by their bundles alone: the program does not
run for that. After a quiet moment it runs the whole program, exactly as `up` does: that decides.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import importlib.util
import io
import multiprocessing
import os
import re
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection, wait
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from botocore.exceptions import BotoCoreError, ClientError
from pulumi import RunError

from taplocal import ready, session
from taplocal import state as states
from taplocal.console import Console
from taplocal.dev import FUNCTION, Signature, Target
from taplocal.engine import Deployment
from taplocal.errors import TapLocalError
from taplocal.program import Registration, working_directory
from taplocal.session import Session
from taplocal.sources import Sources
from taplocal.state import Deployed, State, locked
from taplocal.steps import Step, Summary

LOOK_SECONDS = 0.02  # between two looks at the files; a change is taken when a look finds no other
LOCK_SECONDS = 60.0  # for another command, or a snapshot: nobody would try again
QUIET_SECONDS = 0.3  # without a save, after which the whole program runs
NAMED = 4  # resources in a line; more are counted
#: What reading a program raises that is broken, or just being replaced by an editor.
UNREADABLE = TapLocalError, OSError, SyntaxError, ValueError
ROOT = Path(__file__).resolve().parents[1]  # which has tap_stack.py
PACKAGE = str(Path(__file__).resolve().parent)
CALL = re.compile(r"^(\w+)\(\)\s*\Z", re.MULTILINE)  # of `init`, a bundle's last line


def signature(path: str) -> Signature:
    """What tells whether a file was written or replaced."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino


class Reads:
    """The files below the program's folders that this process has read, each as it was then."""

    def __init__(self, target: Target):
        self.files: dict[str, Signature] = {}
        self._roots = tuple(f"{each}{os.sep}" for each in (target.program, ROOT))
        self._others = tuple(map(str, (sys.prefix, target.folder, PACKAGE)))
        sys.addaudithook(self._audit)

    def _audit(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event != "open" or not isinstance(arguments[0], str | os.PathLike):
            return
        path = os.path.abspath(os.fspath(arguments[0]))
        if path.endswith(".pyc"):
            path = importlib.util.source_from_cache(path)
        reads = not arguments[2] & (os.O_WRONLY | os.O_RDWR)
        if reads and path.startswith(self._roots) and not path.startswith(self._others):
            self.files.setdefault(path, signature(path))


class Functions:
    """Deploys functions by their bundles: by the names that the last run recorded."""

    def __init__(self, target: Target):
        self.target, self.project = target, target.project()
        self.opened = session.opened(target.program, target.env, target.folder)
        with working_directory(self.project.folder):
            self._bundle = importlib.import_module("tap_stack").bundle
        self._sources = Sources(self.project.main)
        self.opened.cloud.client("lambda")
        self._changed(self.opened.state)  # remembers what does not change

    def deploy(self) -> list[str]:
        """Releases what has changed, and returns the names of these functions.

        Raises SyntaxError and BundleError, which is a RunError, before anything is deployed.
        """
        with locked(self.target.folder):
            state = State(self.opened.state.path)
            changed = self._changed(state)
            if not changed or not state.complete:
                return []
            deployment = Deployment(
                lambda: (self.opened.cloud, state), self.project.region, lambda _: None
            )
            with ThreadPoolExecutor(len(changed)) as pool:
                list(pool.map(lambda urn: self._release(deployment, urn, changed[urn]), changed))
            state.finish(state.outputs)
        return [state.resources[urn].name.removesuffix("-function") for urn in changed]

    def _changed(self, state: State) -> dict[str, str]:
        """URN of a function -> its new index.py."""
        found = {}
        for urn, each in state.resources.items():
            if each.type != FUNCTION or not _rollout(state, each):
                continue
            name = each.inputs.get("handler", "").removeprefix("index.")
            path, _ = self._sources.line(name) or (None, 0)
            if path and "index.py" in each.inputs["code"]:
                before = each.inputs["code"]["index.py"]
                calls = CALL.findall(before)
                code = self._bundle(*(_named(name, path) for name in (name, *calls)))
                if code != before:
                    found[urn] = code
        return found

    def _release(self, deployment: Deployment, urn: str, code: str) -> None:
        function = deployment.state.resources[urn]
        inputs = {**function.inputs, "code": {**function.inputs["code"], "index.py": code}}
        _, outputs = deployment.register(_registration(urn, function, inputs))
        rollout_urn = _rollout(deployment.state, function)
        rollout = deployment.state.resources[rollout_urn]
        inputs = {**rollout.inputs, "version": outputs["version"]}
        deployment.register(_registration(rollout_urn, rollout, inputs))


def _rollout(state: State, function: Deployed) -> str:
    """The URN of the rollout that moves a function's alias; empty if it has none."""
    of_function = {"function": function.outputs.get("arn")}
    for urn, each in state.resources.items():
        if of_function.items() <= each.inputs.items() and "version" in each.inputs:
            return urn
    return ""


def _named(name: str, path: Path) -> Any:
    """What bundle() needs of a function: its name and its file."""
    return SimpleNamespace(__name__=name, __code__=SimpleNamespace(co_filename=str(path)))


def _registration(urn: str, deployed: Deployed, inputs: dict[str, Any]) -> Registration:
    return Registration(urn, deployed.type, deployed.name, inputs, protect=deployed.protect)


class Watch:
    """Waits for changes of files, and deploys functions, until the whole program is to run."""

    def __init__(self, target: Target, seen: dict[str, Signature], console: Console):
        self._target, self._console = target, console
        self.files = seen  # as they are handled
        self.saved: set[str] = set()  # the files that have changed
        self.began = 0.0  # when the newest of them was written (epoch, s)
        self.live = False  # whether functions are already deployed
        self._functions: Functions | None = None
        self._prepare()

    def _prepare(self) -> None:
        """Reads the program as it is; none of its functions is known while it is broken."""
        with contextlib.suppress(Exception):  # the program's next run says what is wrong
            self._functions = self._functions or Functions(self._target)

    def run(self) -> None:
        """Returns when the whole program is to run."""
        started_by = multiprocessing.parent_process()
        due = float("inf")
        while time.monotonic() < due:
            if started_by and wait([started_by.sentinel], LOOK_SECONDS):
                raise SystemExit  # `dev` was killed
            if changed := self._changed():
                due = self._save(changed)

    def _changed(self) -> list[str]:
        """The files that have changed, once they no longer do and none is just being replaced."""
        before, replaced_by = self.files, time.monotonic() + QUIET_SECONDS
        while True:
            now = signatures(self.files)
            changed = [path for path in now if now[path] != self.files[path]]
            gone = any(now[path] is None for path in changed) and time.monotonic() < replaced_by
            if not changed or (now == before and not gone):
                self.files = now
                return changed
            before = now
            time.sleep(LOOK_SECONDS)

    def _save(self, changed: list[str]) -> float:
        """Deploys the functions that have changed; returns when the whole program is to run."""
        now = time.time()
        written = [found[0] / 1e9 for path in changed if (found := self.files[path])]
        self.began = min(now, max([now - 1, *written]))  # a file may have any time
        self.saved.update(changed)
        names: list[str] = []
        self._prepare()
        if self._functions and any(path.endswith(".py") for path in changed):
            try:
                with silent():
                    names = self._functions.deploy()
            except (SyntaxError, RunError) as error:
                message = str(getattr(error, "msg", error))
                self._console.refused(message, place(error, message, self._target))
                return float("inf")
            except Exception:  # noqa: BLE001 - the whole program meets it again, and says it
                return 0.0
        if not names:
            return 0.0
        self._console.live(self.saved, f"{', '.join(names)} live", time.time() - self.began)
        self.live = True
        return time.monotonic() + QUIET_SECONDS


def signatures(paths: Iterable[str]) -> dict[str, Signature]:
    """What the files are now."""
    return {path: signature(path) for path in paths}


@contextlib.contextmanager
def silent() -> Iterator[None]:
    """Drops what rollouts say on standard error: an error has it, too."""
    with contextlib.redirect_stderr(io.StringIO()):
        yield


def place(error: BaseException, message: str, target: Target) -> tuple[str, int] | None:
    """The file and the line that an error is about: of the program, or of a setting."""
    if isinstance(error, TapLocalError) and error.at:
        return error.at
    if isinstance(error, SyntaxError) and error.filename:
        return error.filename, error.lineno or 1
    words = set(re.findall(r"[\w-]+", message))
    for name in (f"Pulumi.{target.env}.yaml", "Pulumi.yaml"):
        path = target.program / name
        for number, line in enumerate(path.read_text().splitlines() if path.exists() else (), 1):
            key = re.match(r"\s+(?:[\w-]+:)?(\w+):(\s|$)", line)
            if key and key[1] in words:
                return str(path), number
    try:
        found = Sources(target.project().main).line(message.partition(" ")[0])
    except UNREADABLE:
        return None
    return (str(found[0]), found[1]) if found else None


def deploy(target: Target, console: Console) -> bool:
    """Deploys the whole program, as `up` does; whether it could be."""
    try:
        with console.working("deploying"):
            opened, summary = _up(target, console.say, console.step)
    except (TapLocalError, ClientError, BotoCoreError) as error:
        console.refused(str(error), place(error, str(error), target))
        return False
    console.summary(target.env, summary, opened, explain=False)
    return True


def redeploy(target: Target, watch: Watch, console: Console) -> bool:
    """Deploys the whole program for a change, and prints what it did as one line."""
    for name, module in list(sys.modules.items()):
        if getattr(module, "__file__", None) in watch.files:  # imported for its bundles
            del sys.modules[name]
    try:
        with console.working("deploying"), silent():
            _, summary = _up(target, console.say, console.progress)
    except (TapLocalError, ClientError, BotoCoreError) as error:
        console.refused(str(error), place(error, str(error), target))
        return False
    done = [each for each in summary.steps if each.action != "unchanged"]
    if done or not watch.live:
        console.live(watch.saved, summed_up(done), time.time() - watch.began)
    return True


def _up(
    target: Target, say: Callable[[str], None], report: Callable[[Step], None]
) -> tuple[Session, Summary]:
    where = target.program, target.env
    return session.up(*where, folder=target.folder, config=target.config, say=say, report=report)


def summed_up(steps: list[Step]) -> str:
    """What steps did, in a line."""
    if not steps:
        return "nothing to change"
    if len(steps) > NAMED:
        return ", ".join(f"{n} {action}" for action, n in Counter(x.action for x in steps).items())
    return ", ".join(
        f"{x.name} {x.action}" + (f" ({', '.join(x.why)})" if x.why else "") for x in steps
    )


def generation(target: Target, seen: dict[str, Signature], answer: Connection, first: bool) -> None:
    """The life of one process; answers with the files that the next one watches.

    Without any it deploys at once. The `first` one that watches says so. Also answers with the
    modules of providers that the program has used.
    """
    states.LOCK_SECONDS = LOCK_SECONDS
    gc.disable()  # the process ends with the next run of the program
    sys.dont_write_bytecode = True  # it is told from newer code by the second, and by size
    reads, console = Reads(target), Console()
    try:
        if seen:
            watch = Watch(target, seen, console)
            if first:
                console.say(f"watching {len(seen)} files; Ctrl-C ends")
            watch.run()
            seen = watch.files
            reads.files.clear()
            deployed = redeploy(target, watch, console)
        else:
            deployed = deploy(target, console)
    except KeyboardInterrupt:
        return
    # After an error the program may have read less than it needs.
    answer.send((reads.files if deployed else {**seen, **reads.files}, ready.services()))
