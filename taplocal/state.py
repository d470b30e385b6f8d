"""What is deployed: a JSON file for each environment, and a journal of the steps since.

Each step appends a line to the journal; the end of a run writes the whole file and deletes the
journal. Writing the whole file at each step would dominate the time of a large deployment.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Any

from taplocal.errors import TapLocalError

LOCK_SECONDS = 1.0


@dataclass
class Deployed:
    """One resource as it was deployed.

    `pending` is the operation that was started but not finished (create, update or delete); an
    interrupted run leaves it behind, and the next run repeats the operation. `owner` is the value
    of the tag by which the resource is known as the one of this record. `changed` is the time of
    its creation or last update, in seconds since 1970. A run leaves what it is to
    `retain` where it is.
    """

    type: str
    name: str
    id: str
    inputs: dict[str, Any]
    outputs: dict[str, Any] = field(default_factory=dict)
    protect: bool = False
    retain: bool = False
    pending: str = ""
    owner: str = ""
    changed: float = 0.0


class State:
    """The resources of one environment in the order of their creation, and the stack's outputs."""

    def __init__(self, path: Path):
        self.path = path
        self.marker, self.region = "", ""
        self.program = ""  # the file that was run last
        self.settings: dict[str, str] = {}  # the configuration of the last complete run
        self.complete = False  # whether the last run reached its end
        self.resources: dict[str, Deployed] = {}
        self.outputs: dict[str, Any] = {}
        self.journal = path.with_suffix(".journal")
        self._lock = threading.Lock()
        self._read()

    def _read(self) -> None:
        try:
            data = json.loads(self.path.read_text())
            self.marker, self.region = data["marker"], data["region"]
            self.outputs, self.complete = data["outputs"], data.get("complete", True)
            self.program, self.settings = data.get("program", ""), data.get("settings", {})
            self.resources = {urn: Deployed(**each) for urn, each in data["resources"].items()}
            self._replay()
        except (FileNotFoundError, NotADirectoryError):
            return  # nothing is deployed; or another process ends a run, or deletes
        except (ValueError, KeyError, TypeError, AttributeError, IsADirectoryError) as error:
            raise TapLocalError(
                f"{self.path} is not a state file of this version ({error}): "
                "run `python -m taplocal down`, then `up` again"
            ) from None

    @property
    def api_url(self) -> str | None:
        """Base URL of the API on the emulator, whatever its own domain name is."""
        apis = (x for x in self.resources.values() if x.type == "aws:apigatewayv2/api:Api")
        return next((x.outputs["apiEndpoint"] for x in apis if x.outputs), None)

    @property
    def web_url(self) -> str | None:
        """URL of the load balancer on this machine, whatever its domain name is."""
        deployed = {each.type: each for each in self.resources.values() if each.outputs}
        balancer = deployed.get("aws:lb/loadBalancer:LoadBalancer")
        if balancer is None:
            return None
        host, _, port = balancer.outputs["dnsName"].partition(":")
        listeners = (x for x in self.resources.values() if x.type == "aws:lb/listener:Listener")
        if any(each.inputs["protocol"] == "HTTPS" for each in listeners):
            return f"https://{host}:{int(port) + 1}"
        return f"http://{host}:{port}"

    def put(self, urn: str, resource: Deployed) -> None:
        """Records a resource; a new one goes to the end of the order."""
        self.change({urn: resource})

    def remove(self, urn: str) -> None:
        """Removes a deleted resource."""
        self.change({urn: None})

    def change(self, changes: Mapping[str, Deployed | None]) -> None:
        """Records several resources at once: after a crash there are all of them, or none."""
        with self._lock:
            self._append({urn: asdict(each) if each else None for urn, each in changes.items()})
            self._apply(changes)

    def _apply(self, changes: Mapping[str, Deployed | None]) -> None:
        self.complete = False
        for urn, resource in changes.items():
            if resource is None:
                self.resources.pop(urn, None)
            else:
                self.resources[urn] = resource

    def reset(self, marker: str, region: str) -> None:
        """Empties the state, for the emulator with this marker."""
        self.marker, self.region, self.resources, self.outputs = marker, region, {}, {}
        self.complete = False
        self._write()

    def finish(self, outputs: dict[str, Any]) -> None:
        """Records the outputs of a complete run."""
        self.outputs, self.complete = outputs, True
        self._write()

    def _append(self, changes: dict[str, dict[str, Any] | None]) -> None:
        flags = os.O_RDWR | os.O_CREAT | os.O_APPEND
        line = f"{json.dumps(changes)}\n".encode()
        with os.fdopen(os.open(self.journal, flags, 0o600), "a+b", buffering=0) as file:
            size = file.tell()
            file.seek(max(0, size - 1))
            if file.read() not in (b"", b"\n"):  # half a line of a run that was killed
                file.seek(0)
                size = file.read().rfind(b"\n") + 1
                file.truncate(size)
            try:
                while line:
                    line = line[file.write(line) :]
            except OSError as error:  # the disk is full: the next line must not follow half a one
                file.truncate(size)
                raise OSError(error.errno, error.strerror, str(self.journal)) from None

    def _replay(self) -> None:
        """Replays the journal of an interrupted run, or of one that another process is at.

        An incomplete last line does not count: a crash left it, or it is being written.
        """
        *lines, _ = self.journal.read_text().split("\n")
        for changes in map(json.loads, lines):
            self._apply({urn: each and Deployed(**each) for urn, each in changes.items()})

    def _write(self) -> None:
        data = {
            "marker": self.marker,
            "region": self.region,
            "complete": self.complete,
            "program": self.program,
            "settings": self.settings,
            "outputs": self.outputs,
            "resources": {urn: asdict(each) for urn, each in self.resources.items()},
        }
        write_private(self.path, json.dumps(data, indent=1))
        self.journal.unlink(missing_ok=True)


def forget(path: Path) -> None:
    """Deletes a state, valid or not."""
    shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    path.with_suffix(".journal").unlink(missing_ok=True)


def write_private(path: Path, text: str) -> None:
    """Replaces a file atomically: a crash leaves the old one or the new one. Mode 0600."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".new")
    with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
        file.write(text)
    temporary.replace(path)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Locks the folder for one command; raises TapLocalError if another one has the lock."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("a+") as file:
        if not _lock(file):
            file.seek(0)
            holder = file.read().strip() or "unknown"
            raise TapLocalError(
                f"another taplocal command (process {holder}) uses {folder}: wait for it to end"
            )
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield


def _lock(file: IO[str]) -> bool:
    """Locks a file; waits a moment, as long as the emulator may hold the lock for a snapshot."""
    deadline = time.monotonic() + LOCK_SECONDS
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                return False
            time.sleep(0.02)
        else:
            return True
