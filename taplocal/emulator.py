"""MiniStack, the embedded AWS: a process of its own on loopback, or one that runs already."""

from __future__ import annotations

import ipaddress
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
import uuid
from dataclasses import asdict, dataclass
from pathlib import Path
from urllib.parse import urlsplit

from taplocal.errors import TapLocalError
from taplocal.state import write_private

ACCOUNT = "000000000000"  # the emulator takes a 12-digit access key for the account's root
PREFERRED_PORT = 4566
START_SECONDS = 30
PROGRAM = Path(__file__).with_name("ministack_server.py")
STOP_SECONDS = 10


@dataclass(frozen=True)
class Emulator:
    """A running emulator; `pid` is 0 for one that somebody else started.

    `marker` is stored inside it, so that a restart, which empties it, is noticed.
    """

    url: str
    marker: str
    pid: int = 0

    @property
    def owned(self) -> bool:
        """Whether this folder's process is the emulator, to be stopped by `down`."""
        return self.pid > 0

    def healthy(self) -> bool:
        """Whether it answers."""
        try:
            with urllib.request.urlopen(f"{self.url}/_ministack/health", timeout=2) as response:
                return bool(response.status == 200)
        except OSError:
            return False

    def running(self) -> bool:
        """Whether it answers and, if it is ours, still is the process that we started."""
        return self.healthy() and (not self.owned or is_emulator(self.pid))


def is_emulator(pid: int) -> bool:
    """Whether a process is an emulator of ours; after a reboot the number may be anybody's."""
    try:
        return b"ministack" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except FileNotFoundError:
        if Path("/proc/self").exists():
            return False
    shown = subprocess.run(
        ["/bin/ps", "-o", "command=", "-p", str(pid)], capture_output=True, text=True, check=False
    )
    return "ministack" in shown.stdout


def recorded(folder: Path) -> Emulator | None:
    """The emulator that this folder used last, running or not."""
    path = folder / "emulator.json"
    try:
        return Emulator(**json.loads(path.read_text()))
    except FileNotFoundError:
        return None
    except (ValueError, TypeError) as error:
        raise TapLocalError(
            f"{path} cannot be read ({error}): delete {folder} and run `up` again"
        ) from None


def loopback_url(url: str) -> str:
    """The URL without a trailing slash, if it names this machine; anything else is refused."""
    parts = urlsplit(url)
    host = parts.hostname or ""
    try:
        loopback = host == "localhost" or ipaddress.ip_address(host).is_loopback
        port = parts.port
    except ValueError:
        loopback, port = False, None
    if parts.scheme != "http" or not loopback or not port or parts.path.strip("/"):
        raise TapLocalError(
            f"the emulator must be a loopback address such as http://127.0.0.1:4566, not {url!r}: "
            "the local cloud never talks to another machine"
        )
    return url.rstrip("/")


def attach(folder: Path, url: str) -> Emulator:
    """An emulator that somebody else runs at this URL."""
    url, last = loopback_url(url), recorded(folder)
    if last and last.running() and last.url != url:
        raise TapLocalError(
            f"this folder is deployed to {last.url}: "
            f"run `python -m taplocal down` before using {url}"
        )
    emulator = last if last and last.url == url else Emulator(url, uuid.uuid4().hex)
    if not emulator.healthy():
        raise TapLocalError(
            f"no MiniStack answers at {url}: start it, or leave --emulator out to have one started"
        )
    record(folder, emulator)
    return emulator


def ensure(folder: Path, region: str) -> Emulator:
    """This folder's emulator, started if it does not run."""
    last = recorded(folder)
    if last and last.running():
        return last
    if last and not last.owned:
        raise TapLocalError(
            f"the emulator at {last.url} is gone: start it again, "
            "or run `python -m taplocal down` first"
        )
    if last:
        _kill(last.pid)
    return _start(folder, region)


def _start(folder: Path, region: str) -> Emulator:
    log = folder / "emulator.log"
    scratch = folder / "tmp"
    scratch.mkdir(parents=True, exist_ok=True)
    for _ in range(3):  # somebody may take the port between the look and the start
        port = _free_port()
        with log.open("ab") as output:
            process = subprocess.Popen(
                [sys.executable, "-P", str(PROGRAM)],
                cwd=folder,
                env=_environment(folder, port, region),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C stops the command, not the cloud
            )
        emulator = Emulator(f"http://127.0.0.1:{port}", uuid.uuid4().hex, process.pid)
        record(folder, emulator)
        deadline = time.monotonic() + START_SECONDS
        while process.poll() is None and time.monotonic() < deadline:
            if emulator.healthy():
                return emulator
            time.sleep(0.05)
        _kill(process.pid)
    raise TapLocalError(f"the emulator did not start; its log is {log}")


def _environment(folder: Path, port: int, region: str) -> dict[str, str]:
    """A short list of ours: functions inherit it, so nothing of the user's may be in it."""
    return {
        "PATH": os.pathsep.join(
            [str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)]
        ),
        "HOME": str(folder),
        "TMPDIR": str(folder / "tmp"),
        "LANG": "C.UTF-8",
        "PYTHONDONTWRITEBYTECODE": "1",
        "GATEWAY_PORT": str(port),
        "BIND_HOST": "127.0.0.1",
        "MINISTACK_HOST": "127.0.0.1",
        "MINISTACK_ACCOUNT_ID": ACCOUNT,
        "MINISTACK_REGION": region,
        "AUTH": "true",
        "IOT_MTLS_ENABLED": "0",
        "SFTP_ENABLED": "0",
        "AWS_EC2_METADATA_DISABLED": "true",
    }


def _free_port() -> int:
    for port in (PREFERRED_PORT, 0):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return int(probe.getsockname()[1])
    raise TapLocalError("there is no free loopback port")


def stop(folder: Path) -> None:
    """Stops the emulator if it is ours, and removes what it left in the folder."""
    last = recorded(folder)
    if last and last.owned:
        _kill(last.pid)
    (folder / "emulator.json").unlink(missing_ok=True)
    (folder / "emulator.log").unlink(missing_ok=True)
    shutil.rmtree(folder / "tmp", ignore_errors=True)


def _kill(pid: int) -> None:
    """Ends an emulator and its function workers, which are in its process group, at once.

    Its state is its memory, so there is nothing that a slow farewell would save.
    """
    if not is_emulator(pid):
        return
    os.killpg(pid, signal.SIGKILL)
    deadline = time.monotonic() + STOP_SECONDS
    while is_emulator(pid) and time.monotonic() < deadline:
        time.sleep(0.02)


def record(folder: Path, emulator: Emulator) -> None:
    """Remembers the emulator that this folder uses."""
    write_private(folder / "emulator.json", json.dumps(asdict(emulator)))
