"""The web environment on this machine: load balancers, instances and databases that run."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path

FOLDER = "web"  # below the data folder
LOG = "web.log"  # in the data folder: what the supervisor says
STOP_SECONDS = 10.0
SCALE = 60  # a minute of AWS takes a second: an instance starts in one, and fleets follow metrics
NOTICE_SECONDS = 120 / SCALE  # from the notice to a Spot instance until EC2 takes it
PATH = "/_ministack/taplocal/web"  # where supervisor and emulator exchange what is, and is wanted
DATA = ("databases", "snapshots")
ROOTS = Path("/var/lib/taplocal")


def home(folder: Path) -> Path:
    """Where databases and instances of a data folder have their files.

    Below it; of root's, where nobody else may pass, in /var/lib/taplocal: they run as other users.
    """
    own = folder.resolve() / FOLDER
    if os.geteuid() != 0 or all(x.stat().st_mode & 1 for x in own.parents):
        return own
    return ROOTS / hashlib.sha256(bytes(own)).hexdigest()[:16]


def make_home(folder: Path) -> Path:
    """Makes it; as root with a way through for those that run there, and for no more."""
    path = home(folder)
    for each in [path, *(path / name for name in ("databases", "instances", "snapshots"))]:
        each.mkdir(parents=True, exist_ok=True)
        each.chmod(0o711 if os.geteuid() == 0 else 0o700)
    if path.is_relative_to(ROOTS):
        ROOTS.chmod(0o711)
    return path


def has_data(home_: Path) -> bool:
    """Whether there are databases or snapshots of them."""
    return any(path for part in DATA for path in (home_ / part).glob("*"))


def copy(source: Path, target: Path) -> None:
    """Copies the data of stopped databases, with their owners; what is there is replaced.

    OSError if that fails.
    """
    target.mkdir(parents=True, exist_ok=True)
    for part in ("authority", *DATA):
        if (source / part).exists():
            shutil.rmtree(target / part, ignore_errors=True)
            command: list[str | Path] = ["cp", "-Rp", source / part, target]
            copied = subprocess.run(command, stderr=subprocess.PIPE, text=True)
            if copied.returncode:
                raise OSError(copied.stderr.partition("\n")[0] or f"cp ended: {copied.returncode}")


def free_port() -> int:
    """A free port of 127.0.0.1."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def lock(folder: Path) -> int:
    """Waits until no other supervisor runs in a data folder; the descriptor that says so."""
    (folder / FOLDER).mkdir(exist_ok=True)
    alone = os.open(folder / FOLDER / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    fcntl.flock(alone, fcntl.LOCK_EX)
    os.ftruncate(alone, 0)
    os.write(alone, str(os.getpid()).encode())
    return alone


def wait(folder: Path) -> None:
    """Waits until the supervisor of an emulator that has ended has stopped all; kills a stuck one.

    It stops by itself when its emulator ends: connections, then instances, then databases.
    """
    path, deadline = folder / FOLDER / "lock", time.monotonic() + STOP_SECONDS
    if not path.exists():
        return
    with path.open("r+") as held:
        while True:
            try:
                fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except BlockingIOError:
                if time.monotonic() > deadline and (pid := path.read_text()):
                    os.kill(int(pid), signal.SIGKILL)
            time.sleep(0.02)
