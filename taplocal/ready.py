"""A process that has imported what commands need, and forks itself for each of them.

Python, Pulumi and the SDK take 0.3 s to import for any command, and more than a second for `up`.
An `up` starts the process in the background; it ends after IDLE_SECONDS without a command, when a
file of the installation changes, and with `down`. TAPLOCAL_READY=0 does without.

A command has the client's folder, environment, standard input and outputs. It is interrupted when
the client is, and killed with it.
"""

from __future__ import annotations

import contextlib
import fcntl
import gc
import importlib
import io
import json
import os
import re
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Iterable
from hashlib import sha256
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn

#: Those that end soon and need no terminal of their own.
COMMANDS = "up status outputs token call upload".split()
IDLE_SECONDS, LOOK_SECONDS = 600.0, 5.0
INTERRUPT, END = b"i", b"e"
PACKAGE = Path(__file__).resolve().parent
SERVICE = re.compile(r"pulumi_\w+(\.\w+)?")  # a module of a provider


def services() -> list[str]:
    """The modules of providers that this process has used: they are empty before."""
    return [
        name
        for name, x in list(sys.modules.items())
        if SERVICE.fullmatch(name) and type(x) is ModuleType
    ]


def load(names: Iterable[str]) -> None:
    """Imports such modules as their use would."""
    for name in names:
        getattr(importlib.import_module(name), "__all__", None)


def _address() -> Path:
    """The socket of this installation as it is now, in a folder of this user's."""
    files = [*PACKAGE.rglob("*.py"), *PACKAGE.parent.glob("ops/*.py")]
    files += [Path(each) for each in sys.path if each.endswith("site-packages")]
    options = sorted(x for x in os.environ.items() if x[0].startswith(("PYTHON", "LANG", "LC_")))
    facts = sys.executable, options, sorted((str(x), x.stat().st_mtime_ns) for x in files)
    return private_folder() / sha256(repr(facts).encode()).hexdigest()[:16]


def private_folder() -> Path:
    """Where the local clouds of this user find each other; `is_private` tells whether they may."""
    return Path(tempfile.gettempdir(), f"taplocal-{os.getuid()}")


def is_private(folder: Path) -> bool:
    """Whether nobody else can have put anything there; OSError if there is no such folder."""
    found = folder.lstat()
    return found.st_uid == os.getuid() and found.st_mode == stat.S_IFDIR | 0o700


@contextlib.contextmanager
def _connected() -> Any:
    """A connection to the process, or None if there is none."""
    address = _address()
    with socket.socket(socket.AF_UNIX) as connection:
        try:
            wanted = os.environ.get("TAPLOCAL_READY") != "0" and is_private(address.parent)
            connection.connect(str(address)) if wanted else None
        except OSError:
            wanted = False
        yield connection if wanted else None


def run(name: str) -> int | None:
    """Runs the command of this process there; its exit status, or None if it has to run here."""
    if not sys.argv[1:] or sys.argv[1] not in COMMANDS:
        return None
    umask = os.umask(0o077)
    os.umask(umask)
    try:
        folder = os.getcwd()
    except OSError:  # it was deleted
        return None
    told = {"name": name, "umask": umask, "folder": folder, "environment": dict(os.environ)}
    with _connected() as connection:
        if not connection:
            return None
        try:
            socket.send_fds(connection, [INTERRUPT], [0, 1, 2])
        except OSError:  # one of them is closed
            return None
        connection.sendall(
            json.dumps({**told, "argv": sys.argv, "path": sys.path}).encode() + b"\n"
        )
        # Not before: what interrupts would be in the middle of the JSON.
        signal.signal(signal.SIGINT, lambda *_: connection.sendall(INTERRUPT))
        with contextlib.suppress(ConnectionResetError):
            if status := connection.recv(1):
                return int(status[0])
        sys.exit("error: the process of the command was killed")


def start() -> None:
    """Starts the process, with the providers and the services of AWS that this one has used."""
    from taplocal import cloud

    with _connected() as connection:
        if connection or os.environ.get("TAPLOCAL_READY") == "0":
            return
    subprocess.Popen(
        [sys.executable, "-P", __file__, json.dumps([services(), sorted(cloud.used)])],
        cwd=PACKAGE.parent,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


def end() -> None:
    """Ends the process."""
    with _connected() as connection:
        if connection:
            connection.sendall(END)


def _serve(modules: list[str], clients: list[str]) -> None:
    """The life of the process, unless there is another."""
    address = _address()
    address.parent.mkdir(mode=0o700, exist_ok=True)
    if not is_private(address.parent):
        return
    lock = address.with_suffix(".lock")
    with lock.open("w") as alone, socket.socket(socket.AF_UNIX) as listener:
        fcntl.flock(alone, fcntl.LOCK_EX | fcntl.LOCK_NB)
        _prepare(modules, clients)
        gc.collect()
        gc.freeze()  # else a collection in a command copies all its pages
        address.unlink(missing_ok=True)
        listener.bind(str(address))
        listener.listen()
        listener.settimeout(LOOK_SECONDS)
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, lambda *_: sys.exit())
        try:
            _accept(listener, address)
        finally:
            address.unlink()
            lock.unlink()


def _accept(listener: socket.socket, address: Path) -> None:
    """Forks for each connection, until none comes or this is no more the installation."""
    until = time.monotonic() + IDLE_SECONDS
    while time.monotonic() < until and _address() == address:
        with contextlib.suppress(TimeoutError):
            connection, _ = listener.accept()
            until = time.monotonic() + IDLE_SECONDS
            with connection:
                if not os.fork():
                    _command(connection)


def _prepare(modules: list[str], clients: list[str]) -> None:
    """Does what most commands would do first."""
    from taplocal import cloud, commands, emulator, watch  # noqa: F401 - for `up`

    load(modules)
    cloud.isolate()
    nowhere = cloud.Cloud(emulator.Emulator("http://127.0.0.1", "", 0, "none", "none"), "us-east-1")
    for service in ("ssm", "cognito-idp", *clients):
        nowhere.client(service)
    commands.command()


def _command(connection: socket.socket) -> NoReturn:
    """The life of a forked process: it runs the client's command."""
    status = 1
    try:
        first, files, *_ = socket.recv_fds(connection, 1, 3)
        if first == END:
            os.kill(os.getppid(), signal.SIGTERM)
        elif first:
            told = connection.makefile("rb")
            name = _become(json.loads(told.readline()), files)
            threading.Thread(target=_follow, args=(told,), daemon=True).start()
            from taplocal import cloud, commands

            cloud.isolate()
            commands.main(name)
            status = 0
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:  # noqa: BLE001 - as Python shows it at the end of a process
        traceback.print_exc()
    finally:
        with contextlib.suppress(OSError):  # the command itself has said it
            sys.stdout.flush()
            sys.stderr.flush()
        with contextlib.suppress(OSError):
            connection.sendall(bytes([status]))
        os._exit(status)


def _become(told: dict[str, Any], files: list[int]) -> str:
    """Makes this process as the client's; the name of its program."""
    for number, file in enumerate(files):
        os.dup2(file, number)
        os.close(file)
    for number, stream in enumerate(("stdin", "stdout", "stderr")):
        was = getattr(sys, stream)
        at_once = number == 2 or os.isatty(number) or "PYTHONUNBUFFERED" in told["environment"]
        made = open(  # noqa: SIM115 - as long as the process
            number, was.mode, 1 if at_once else -1, was.encoding, was.errors
        )
        setattr(sys, stream, made)
    os.chdir(told["folder"])
    os.umask(told["umask"])
    os.environ.clear()
    os.environ.update(told["environment"])
    time.tzset()
    sys.argv[:], sys.path[:] = told["argv"], told["path"]
    for each in (signal.SIGCHLD, signal.SIGTERM):
        signal.signal(each, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    return str(told["name"])


def _follow(told: io.BufferedReader) -> None:
    """Is interrupted, and killed, when the client is."""
    while told.read(1):
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)  # wakes it
    os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    sys.path.insert(0, str(PACKAGE.parent))  # a script is in no package
    _serve(*json.loads(sys.argv[1]))
