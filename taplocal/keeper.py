"""Keeps the emulator's state on disk, so that it outlives the process however that ends.

MiniStack saves its state at a clean stop only. Here each change is saved as soon as it is quiet for
a moment, or after a few seconds of load: a forked process, which has the memory of one moment,
writes all services beside the last snapshot, then takes its place. Requests wait only for the fork.
Objects of S3 are written through by MiniStack itself. With the emulator's state goes what taplocal
deployed (`env/`), so that the two fit; nothing is saved while a command changes both.

Each change since the last snapshot began is announced in a file `unsaved-<number>`, with its time:
what a killed emulator lost is known by it, and told by the next `up`.

    state/current          a link to the last snapshot, which is named by its number
    state/<number>/        *.json of the services, events.json, env/, time.txt
    state/unsaved-<number> the time of the first change after that snapshot
    state/s3/, lambda-blobs/, cognito-*  what MiniStack itself writes through
"""

from __future__ import annotations

import fcntl
import functools
import gc
import json
import logging
import os
import re
import shutil
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

from taplocal.errors import TapLocalError

log = logging.getLogger(__name__)
STATE = "state"
CURRENT = "current"
QUIET_SECONDS = 0.25  # without a change, before a snapshot
LOADED_SECONDS = 5.0  # between two snapshots under load
RETRY_SECONDS = 5.0  # after a snapshot that failed
SAVE_SECONDS = 60  # the longest a snapshot may take
WAIT_SECONDS = 2.0 * SAVE_SECONDS  # for what is saved, before that is an error
TELEMETRY_SECONDS = 60.0  # until what agents send is saved, if nothing else changes
TELEMETRY = ("PutMetricData", "PutLogEvents")  # of an instance, each second
FORM = b"application/x-www-form-urlencoded"
ACTION = re.compile(rb"Action=(?!Get\w+Token&)(\w+)")  # those of STS make keys
READS = ("Get", "List", "Describe", "Query", "Scan", "BatchGet", "Filter", "Lookup", "Head")


def environment(folder: Path) -> dict[str, str]:
    """The variables by which MiniStack keeps its state in a data folder."""
    state = folder / STATE
    return {
        "PERSIST_STATE": "1",
        "STATE_DIR": str(state),
        "S3_PERSIST": "1",
        "S3_DATA_DIR": str(state / "s3"),
    }


class Keeper:
    """Takes the snapshots, in the process of the emulator; its working directory is the folder."""

    def __init__(self, folder: Path, events: Callable[[], list[dict[str, Any]]]):
        self.folder, self.state, self.events = folder, folder / STATE, events
        self.state.mkdir(exist_ok=True)
        self.number = self._last() + 1
        self.announced = 0  # the snapshot before which there is a change
        self.since: float | None = None
        self.telemetry: float | None = None  # since when some is not saved
        self.last = time.monotonic()
        self._lock = threading.Lock()

    def install(self, restored: Callable[[list[dict[str, Any]]], None]) -> None:
        """Patches MiniStack; `restored` gets the events that were waiting in the last snapshot."""
        from ministack import app
        from ministack.core import persistence
        from ministack.services import lambda_svc

        current = self.state / CURRENT
        persistence.STATE_DIR = str(current)
        load, inner = app._load_persisted_state, app.app

        def loaded() -> None:
            load()
            if (current / "events.json").exists():
                restored(json.loads((current / "events.json").read_text()))

        async def kept(scope: Any, receive: Any, send: Any) -> None:
            first = [await receive()] if _is_form(scope) else []

            async def received() -> Any:
                return first.pop() if first else await receive()

            note = self._note(scope, first[0].get("body", b"") if first else b"")
            note()
            try:
                await inner(scope, received, send)
            finally:
                note()  # a snapshot since may not have it

        # Its log lines come after the answer.
        lambda_svc._execute_function = self.after(lambda_svc._execute_function)
        app._load_persisted_state = loaded
        app.app = kept
        app.save_all = lambda _services: self.save()
        threading.Thread(target=self._work, daemon=True).start()

    def changed(self) -> None:
        """Announces a change, once for each snapshot; OSError if the disk is full."""
        self.last = time.monotonic()
        if self.announced != self.number:
            with self._lock:
                if self.announced != self.number:
                    self.since = self.since or time.time()  # to be saved, whatever comes now
                    (self.state / f"unsaved-{self.number}").write_text(str(self.since))
                    self.announced = self.number

    def _note(self, scope: Any, body: bytes = b"") -> Callable[[], None]:
        """What takes note of a request: of one that only reads, nothing."""
        if scope["type"] != "http" or _reads(scope, body):
            return lambda: None
        return self._later if _operation(scope, body) in TELEMETRY else self.changed

    def _later(self) -> None:
        self.telemetry = self.telemetry or time.monotonic()

    def after(self, call: Callable[..., Any]) -> Callable[..., Any]:
        """The function, which announces a change at its end."""

        @functools.wraps(call)
        def called(*arguments: Any, **more: Any) -> Any:
            try:
                return call(*arguments, **more)
            finally:
                self.changed()

        return called

    def _work(self) -> None:
        while True:
            time.sleep(QUIET_SECONDS / 2)
            since = self.since
            quiet = time.monotonic() - self.last >= QUIET_SECONDS
            due = bool(since) and (quiet or time.time() - (since or 0) >= LOADED_SECONDS)
            told = self.telemetry
            due = due or (told is not None and time.monotonic() - told >= TELEMETRY_SECONDS)
            if due and not self.save():
                time.sleep(RETRY_SECONDS)

    def save(self) -> bool:
        """Takes a snapshot; does nothing while a command is at work. False if it failed."""
        try:
            return self._saved()
        except OSError:  # the disk is full, or there cannot be another process
            log.exception("nothing was saved")
            return False

    def _saved(self) -> bool:
        lock = os.open(self.folder / "lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(lock)
            return True
        with self._lock:
            number, self.number = self.number, self.number + 1
            self.since = self.telemetry = None
        status = 1
        try:
            try:
                if not (process := os.fork()):
                    self._child(number)
            finally:
                os.close(lock)  # the child holds it until it has read what is deployed
            _, status = os.waitpid(process, 0)
        finally:
            if status:
                if self._last() != number:
                    shutil.rmtree(self.state / f"{number}", ignore_errors=True)
                self.changed()
        return status == 0

    def _last(self) -> int:
        """The number of the last snapshot; 0 if there is none."""
        link = self.state / CURRENT
        return int(link.readlink().name) if link.is_symlink() else 0

    def _child(self, number: int) -> None:
        """The forked process: only this thread goes on, with the memory of this moment."""
        status = 1
        try:
            gc.disable()
            signal.alarm(SAVE_SECONDS)  # a lock that another thread held is held for ever
            self._write(number)
            status = 0
        except BaseException:  # noqa: BLE001 - whatever it is: it must not go on as the emulator
            traceback.print_exc(file=sys.stderr)
        finally:
            os._exit(status)

    def _write(self, number: int) -> None:
        from ministack import app
        from ministack.core import persistence
        from ministack.services import lambda_svc

        target = self.state / f"{number}"
        shutil.rmtree(target, ignore_errors=True)
        (target / "env").mkdir(parents=True)
        for path in (self.folder / "env").glob("*.*"):
            shutil.copyfile(path, target / "env" / path.name)
        os.closerange(3, os.sysconf("SC_OPEN_MAX"))  # the folder's lock and the emulator's port
        persistence.STATE_DIR = str(target)
        # Until the switch below the last snapshot needs its code; what no version has stays.
        lambda_svc._prune_orphan_code_blobs = lambda _blobs: None
        for name, get_state in app._build_persistence_save_dict().items():
            if (state := get_state()) is None:
                continue
            persistence.save_state(name, state)
            if not (target / f"{name}.json").exists():
                raise RuntimeError(f"the state of {name} was not written")
        (target / "events.json").write_text(json.dumps(self.events()))
        (target / "time.txt").write_text(str(time.time()))
        for path in [*target.rglob("*.*"), target]:
            _sync(path)
        self._switch(target, number)

    def _switch(self, target: Path, number: int) -> None:
        """Has a new snapshot take the place of the last one."""
        link = self.state / f"{CURRENT}.new"
        link.unlink(missing_ok=True)
        link.symlink_to(target.name)
        link.rename(self.state / CURRENT)
        _sync(self.state)
        for path in self.state.glob("unsaved-*"):
            if int(path.name.partition("-")[2]) <= number:
                path.unlink()
        for path in self.state.glob("[0-9]*"):
            if int(path.name) < number:
                shutil.rmtree(path)


def _reads(scope: Any, body: bytes) -> bool:
    """Whether a request only reads; a call of an API writes a log at least."""
    if scope["method"] in ("GET", "HEAD", "OPTIONS"):
        return not scope["path"].startswith("/_aws/execute-api/")
    return _operation(scope, body).startswith(READS)


def _operation(scope: Any, body: bytes) -> str:
    """The operation of a request in one of the JSON protocols, or of a form; else empty."""
    target = dict(scope["headers"]).get(b"x-amz-target", b"").decode("latin-1")
    action = ACTION.match(body) if _is_form(scope) else None
    return action[1].decode() if action else str(target).rpartition(".")[2]


def _is_form(scope: Any) -> bool:
    """Whether a request's body is a form, as in AWS's Query protocol."""
    return bool(dict(scope.get("headers", ())).get(b"content-type", b"").startswith(FORM))


def _sync(path: Path) -> None:
    file = os.open(path, os.O_RDONLY)
    os.fsync(file)
    os.close(file)


def kept(folder: Path) -> float | None:
    """The time of a data folder's last snapshot, in seconds since 1970; None if there is none."""
    path = folder / STATE / CURRENT / "time.txt"
    return float(path.read_text()) if path.exists() else None


def unsaved(folder: Path) -> float | None:
    """The time of the first change after the last snapshot; None if that has them all."""
    times = [_time(path) for path in (folder / STATE).glob("unsaved-*")]
    return min((each for each in times if each), default=None)


def _time(path: Path) -> float | None:
    try:
        return float(path.read_text())
    except (FileNotFoundError, ValueError):  # saved meanwhile; or killed before it was written
        return path.stat().st_mtime if path.exists() else None


def wait(folder: Path, running: Callable[[], bool]) -> None:
    """Waits until all changes until now are saved; TapLocalError if they cannot be."""
    began = time.time()
    while running() and (since := unsaved(folder)) and since <= began:
        if time.time() - began > WAIT_SECONDS:
            raise TapLocalError(
                f"nothing was saved for {WAIT_SECONDS:.0f} seconds: the emulator's log in {folder} "
                "says why, mostly a full disk: make room there. It tries again, and loses nothing "
                "while it runs"
            )
        time.sleep(0.05)


def tell(folder: Path, say: Callable[[str], None]) -> None:
    """Says what an emulator that has ended lost, and goes back to what it had saved."""
    saved, lost = kept(folder), unsaved(folder)
    if not saved:
        say("the emulator ended before anything was saved: everything is created again")
    elif lost:
        say(
            f"the emulator was killed: what was written since {_clock(lost)} is gone, except files "
            f"in buckets; it goes on from {_clock(saved)}"
        )
    else:
        say(f"the emulator had ended: it goes on with all that it had, saved at {_clock(saved)}")
    if lost or not saved:
        go_back(folder)


def _clock(seconds: float) -> str:
    return datetime.fromtimestamp(seconds).astimezone().isoformat(" ", "milliseconds")


def go_back(folder: Path) -> None:
    """Has what is deployed be what the last snapshot has, before an emulator starts from that."""
    snapshot, deployed = folder / STATE / CURRENT, folder / "env"
    shutil.rmtree(deployed, ignore_errors=True)
    if snapshot.exists():
        shutil.copytree(snapshot / "env", deployed)
    for path in (folder / STATE).glob("unsaved-*"):
        path.unlink()


def copy(folder: Path, target: Path) -> None:
    """Copies the last snapshot, with what MiniStack wrote through; again if another follows.

    That was begun before the caller had the folder's lock: it is one at most.
    """
    state, link = folder / STATE, folder / STATE / CURRENT

    def others(path: str, names: list[str]) -> set[str]:
        """Other snapshots, which are removed or not yet whole, and what is of this moment only."""
        snapshots = {x for x in names if Path(path) == state and x.isdigit() and x != last.name}
        return snapshots | {x for x in names if x.startswith("unsaved-") or x.endswith(".new")}

    while True:
        last = link.readlink()
        try:
            shutil.copytree(state, target, symlinks=True, ignore=others)
            if link.readlink() == last:
                return
        except shutil.Error:
            if link.readlink() == last:
                raise
        shutil.rmtree(target)
