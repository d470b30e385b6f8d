"""MiniStack, the embedded AWS: a process of its own on loopback, or one that is already running."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from urllib.parse import urlsplit

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from taplocal import keeper, ready, web
from taplocal.errors import TapLocalError
from taplocal.state import write_private
from taplocal.web.exchange import opener

ACCOUNT = "000000000000"
PREFERRED_PORT = 4566
#: In the data folder.
RECORD, LOG, TRACES, DEBUG = "emulator.json", "emulator.log", "traces.jsonl", "debug.json"
START_SECONDS = 30
PORT_ATTEMPTS = 60
PROGRAM = Path(__file__).with_name("ministack_server.py")
STOP_SECONDS = 10
HEALTH_SECONDS = 10  # of one that is there but busy; where nobody listens it is known at once
#: In the environment: AWS's timing, with metrics that arrive so many seconds late.
METRICS_DELAY = "TAPLOCAL_METRICS_DELAY"


def time_scale() -> int:
    """How many seconds of a release take one here: 1,000, or 100 with AWS's timing."""
    return 100 if os.environ.get(METRICS_DELAY) else 1_000


@dataclass(frozen=True)
class Emulator:
    """A running emulator; `pid` is 0 if someone else started it.

    `marker` is stored in it, so that a restart, which empties it, is detected. The keys are of its
    account's root, random for each folder.
    """

    url: str
    marker: str
    pid: int = 0
    access_key: str = ""
    secret_key: str = field(default="", repr=False)

    def environment(self, region: str) -> dict[str, str]:
        """The variables by which the AWS CLI and SDKs find it."""
        return {
            "AWS_ACCESS_KEY_ID": self.access_key,
            "AWS_SECRET_ACCESS_KEY": self.secret_key,
            "AWS_ENDPOINT_URL": self.url,
            "AWS_REGION": region,
            "AWS_DEFAULT_REGION": region,
        }

    @property
    def owned(self) -> bool:
        """Whether this folder started the emulator, and `down` stops it."""
        return self.pid > 0

    def healthy(self) -> bool:
        """Whether it responds to the health check."""
        try:
            health = f"{self.url}/_ministack/health"
            with opener.open(health, timeout=HEALTH_SECONDS) as response:
                return "services" in json.load(response)
        except (OSError, ValueError, TypeError, http.client.HTTPException):
            return False  # nothing listens there, or no MiniStack

    def takes_its_keys(self) -> bool:
        """Whether these keys are its root's: another folder's may have taken the port."""
        config = Config(
            retries={"total_max_attempts": 1}, connect_timeout=2, read_timeout=10, proxies={}
        )
        sts = boto3.client(
            "sts",
            endpoint_url=self.url,
            region_name="us-east-1",
            aws_access_key_id=self.access_key,
            aws_secret_access_key=self.secret_key,
            config=config,
        )
        try:
            return bool(sts.get_caller_identity())
        except (BotoCoreError, ClientError):
            return False

    def running(self) -> bool:
        """Whether it is healthy and, if owned, still the process that was started."""
        return self.healthy() and (not self.owned or is_emulator(self.pid))


def is_emulator(pid: int) -> bool:
    """Whether a process is an emulator; after a reboot the pid may belong to another program."""
    try:
        return b"ministack" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except FileNotFoundError:
        if Path("/proc/self").exists():
            return False
    listed = subprocess.run(
        ["/bin/ps", "-o", "command=", "-p", str(pid)], capture_output=True, text=True, check=False
    )
    return "ministack" in listed.stdout


def recorded(folder: Path) -> Emulator | None:
    """The emulator that this folder used last, running or not; None if there was none."""
    path = folder / RECORD
    try:
        emulator = Emulator(**json.loads(path.read_text()))
        shown = emulator.url, emulator.marker, emulator.pid
        if not all(map(isinstance, shown, (str, str, int))):
            raise TypeError("its values have other types")
        return emulator
    except FileNotFoundError:
        return None
    except (ValueError, TypeError) as error:
        raise TapLocalError(
            f"{path} is not valid ({error}): delete {folder} and run `up` again"
        ) from None


def found(where: str) -> Emulator:
    """The emulator of another data folder; TapLocalError for anything else."""
    if not Path(where).is_dir():
        raise TapLocalError(
            "--emulator takes the data folder of another local cloud, `up --emulator FOLDER`, "
            f"such as ../other/.taplocal, not {json.dumps(where)}: a MiniStack without the "
            "additions lets anybody in and lacks what the stack needs; without --emulator one is "
            "started"
        )
    if other := recorded(Path(where)):
        return replace(other, pid=0)
    raise TapLocalError(
        f"there is no emulator in {where}: give the data folder of a local cloud that is up, "
        "such as ../other/.taplocal"
    )


def attach(folder: Path, other: Emulator) -> Emulator:
    """An emulator that someone else runs; an error if it does not respond."""
    url, last = other.url, recorded(folder)
    if last and last.running() and last.url != url:
        raise TapLocalError(
            f"this folder is deployed to {last.url}: "
            f"run `python -m taplocal down` before using {url}"
        )
    emulator = replace(other, marker=last.marker if last and last.url == url else uuid.uuid4().hex)
    if not emulator.healthy():
        raise TapLocalError(
            f"no emulator responds at {url}: run `up` in its own folder, or omit --emulator"
        )
    record(folder, emulator)
    return emulator


def ensure(folder: Path, region: str) -> Emulator:
    """This folder's emulator, started if it is not running."""
    last = recorded(folder)
    if last and last.running():
        return last
    if last and not last.owned:
        raise TapLocalError(
            f"the emulator at {last.url} does not respond: start it again, "
            "or run `python -m taplocal down` first"
        )
    if last:
        kill(folder, last.pid)
    started = start(folder, region, last)
    if urlsplit(started.url).port == PREFERRED_PORT:
        _claim(folder)
    return started


def new_keys() -> tuple[str, str]:
    """A random access key, as IAM writes them, and its secret."""
    letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZ234567"
    return "AKIA" + "".join(secrets.choice(letters) for _ in range(16)), secrets.token_urlsafe(30)


def start(folder: Path, region: str, last: Emulator | None) -> Emulator:
    """Starts an emulator: where the last one was if it left its state, whose outputs name its URL.

    Also if this process is interrupted or cannot write, no emulator is left without a record.
    """
    access_key, secret_key = (last.access_key, last.secret_key) if last else new_keys()
    log = folder / LOG
    keys = {"access_key": access_key, "secret_key": secret_key}
    scratch = folder / "tmp"
    shutil.rmtree(scratch, ignore_errors=True)  # functions' code that a killed one left
    scratch.mkdir(parents=True, exist_ok=True)
    marker = last.marker if last and keeper.kept(folder) else ""
    ports = [urlsplit(last.url).port or 0] if last and marker else _ports_of_new(folder)
    for _ in range(3):  # another process may take the port after the check
        port = _free_port(ports)
        # Not in arguments and environment, which other users and functions can read.
        with tempfile.TemporaryFile() as given, open(log, "ab", opener=private) as output:
            given.write(json.dumps(keys).encode())
            given.seek(0)
            process = subprocess.Popen(
                [sys.executable, "-P", str(PROGRAM)],
                cwd=folder,
                env=_environment(folder, port, region),
                stdin=given,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C stops the command, not the emulator
            )
        emulator = Emulator(
            f"http://127.0.0.1:{port}", marker or uuid.uuid4().hex, process.pid, **keys
        )
        try:
            record(folder, emulator)
            deadline = time.monotonic() + START_SECONDS
            while process.poll() is None and time.monotonic() < deadline:
                if emulator.healthy() and emulator.takes_its_keys():
                    return emulator
                time.sleep(0.05)
        except BaseException:
            process.kill()
            raise
        kill(folder, process.pid)
        *_, last_line = ["", *log.read_text(errors="replace").splitlines()]
        if last_line.startswith("error: "):
            raise TapLocalError(last_line.removeprefix("error: "))
    raise TapLocalError(f"the emulator did not start; its log is {log}")


def private(path: str, flags: int) -> int:
    """Opens a file that nobody else may read."""
    return os.open(path, flags, 0o600)


def _environment(folder: Path, port: int, region: str) -> dict[str, str]:
    """The emulator's environment variables; none of the user's, because functions inherit them."""
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
        METRICS_DELAY: os.environ.get(METRICS_DELAY, ""),
        **keeper.environment(folder),
    }


def _ports_of_new(folder: Path) -> list[int]:
    """Where a new emulator may be: at the preferred port, unless that of another folder, which was
    killed, comes back to it."""
    claim = ready.private_folder() / str(PREFERRED_PORT)
    with contextlib.suppress(OSError, TapLocalError):
        owner = Path(claim.read_text()) if ready.is_private(claim.parent) else folder
        last = recorded(owner)
        there = last and last.owned and urlsplit(last.url).port == PREFERRED_PORT
        if there and keeper.kept(owner) and owner != folder.absolute():
            return [0]
    return [PREFERRED_PORT, 0]


def _claim(folder: Path) -> None:
    """Notes for the other clouds of this user that the preferred port is this folder's."""
    claim = ready.private_folder() / str(PREFERRED_PORT)
    with contextlib.suppress(OSError):  # of another user, who then has none of these
        claim.parent.mkdir(mode=0o700, exist_ok=True)
        if ready.is_private(claim.parent):
            write_private(claim, str(folder.absolute()))


def _free_port(ports: Sequence[int]) -> int:
    """The first of the ports that is free; that of a killed emulator may take a moment."""
    for attempt in range(PORT_ATTEMPTS * len(ports)):
        port = ports[attempt % len(ports)]
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                time.sleep(0.05)
                continue
            return int(probe.getsockname()[1])
    raise TapLocalError(
        f"the port {port} of this local cloud is in use: stop the program that uses it, or run "
        "`python -m taplocal down`, which deletes what is deployed"
    )


def stop(folder: Path) -> None:
    """Stops the emulator if this folder owns it, and removes its files."""
    last = recorded(folder)
    if last and last.owned:
        kill(folder, last.pid)
    (folder / RECORD).unlink(missing_ok=True)
    for name in (LOG, TRACES, DEBUG, web.LOG):
        (folder / name).unlink(missing_ok=True)
    for data in (folder / "tmp", folder / keeper.STATE, web.home(folder), folder / web.FOLDER):
        shutil.rmtree(data, ignore_errors=True)


def kill(folder: Path, pid: int) -> None:
    """Kills an emulator and the workers of its functions, which are in its process group.

    Returns when the web environment has stopped, too.
    """
    if is_emulator(pid):
        os.killpg(pid, signal.SIGKILL)
        deadline = time.monotonic() + STOP_SECONDS
        while is_emulator(pid) and time.monotonic() < deadline:
            time.sleep(0.02)
    web.wait(folder)


def record(folder: Path, emulator: Emulator) -> None:
    """Records the emulator that this folder uses."""
    write_private(folder / RECORD, json.dumps(asdict(emulator)))
