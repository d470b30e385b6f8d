"""The process from which commands are forked: as the client, with the client, for nobody else."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from taplocal import ready
from tests.environments import ROOT

HANG_SECONDS = 60  # a guard against hanging, not a measure of speed
WAITS = """
import os, time
with open("pid.new", "w") as file:
    file.write(str(os.getpid()))
os.rename("pid.new", "pid")
time.sleep(600)
"""
SAYS = """
import os, pulumi
others = [os.environ.get(name, "-") for name in ("AWS_PROFILE", "OF_WHO_STARTED_IT")]
raise pulumi.RunError(" ".join([os.environ["WORD"], *others, os.getcwd()]))
"""


def eventually(condition: Callable[[], Any]) -> Any:
    deadline = time.monotonic() + HANG_SECONDS
    while not (found := condition()):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return found


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """The environment of clients whose process is this module's, which runs."""
    tmp_path_factory.getbasetemp()  # else pytest would make it in the folder below
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setenv("TMPDIR", folder)
        patch.setattr(tempfile, "tempdir", folder)
        patch.setenv("PYTHONPATH", str(ROOT))
        for name in "TAPLOCAL_READY", "PYTHONUNBUFFERED":
            patch.delenv(name, raising=False)
        clients = dict(os.environ)
        patch.setenv("OF_WHO_STARTED_IT", "x")
        ready.start()
        eventually(ready._address().exists)
        yield clients
        ready.end()
        eventually(lambda: ready.run("taplocal") is None)


@pytest.fixture
def program(tmp_path: Path) -> Path:
    """A folder for a program."""
    (tmp_path / "Pulumi.yaml").write_text("name: shop\nruntime: python\nmain: program.py\n")
    (tmp_path / "Pulumi.dev.yaml").write_text("config: {}\n")
    return tmp_path


def client(program: Path, environment: dict[str, str], *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "taplocal", *arguments],
        cwd=program, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def parent(process: int) -> str:
    """The command line of a process's parent."""
    listed = subprocess.run(
        ["ps", "-o", "ppid=", "-p", str(process)], capture_output=True, text=True, check=True
    ).stdout.strip()
    return subprocess.run(
        ["ps", "-o", "command=", "-p", listed], capture_output=True, text=True, check=True
    ).stdout


def gone(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return True
    return False


def test_a_command_has_the_clients_folder_environment_and_outputs(
    scratch: dict[str, str], program: Path
) -> None:
    (program / "program.py").write_text(SAYS)
    environment = {**scratch, "WORD": "hello", "AWS_PROFILE": "mine"}
    out, errors = client(program, environment, "up", "--json").communicate(timeout=HANG_SECONDS)
    said = f"hello - - {program.resolve()}"  # the user's AWS settings are removed there, too
    assert (json.loads(out), errors) == ({"error": said}, f"error: {said}\n")


def test_a_command_has_the_clients_exit_status(scratch: dict[str, str], program: Path) -> None:
    for arguments, status in (("status",), 0), (("outputs",), 1), (("status", "--nonsense"), 2):
        asked = client(program, scratch, *arguments)
        asked.communicate(timeout=HANG_SECONDS)
        assert asked.returncode == status


def test_a_folder_that_was_deleted_is_an_error(scratch: dict[str, str], program: Path) -> None:
    away = f"rmdir {program / 'gone'}; exec {sys.executable} -m taplocal status"
    (program / "gone").mkdir()
    asked = subprocess.run(
        ["sh", "-c", away], cwd=program / "gone", env=scratch, capture_output=True, text=True, timeout=HANG_SECONDS,
    )  # fmt: skip
    assert (asked.returncode, asked.stderr) == (1, "error: No such file or directory\n")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
@pytest.mark.parametrize("options", [(), ("--json",)])
@pytest.mark.parametrize("at_once", [True, False])  # alone, as if of another installation; there
def test_output_that_cannot_be_written_is_an_error(
    scratch: dict[str, str], program: Path, options: tuple[str, ...], at_once: bool
) -> None:
    environment = {**scratch, "PYTHONUNBUFFERED": "1"} if at_once else scratch
    with open("/dev/full", "w") as full:
        asked = subprocess.run(
            [sys.executable, "-m", "taplocal", "status", *options],
            cwd=program, env=environment, stdout=full, stderr=subprocess.PIPE, text=True, timeout=HANG_SECONDS,
        )  # fmt: skip
    assert (asked.returncode, asked.stderr) == (1, "error: No space left on device\n")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL, signal.SIGTERM])
def test_a_command_is_interrupted_and_killed_with_its_client(
    scratch: dict[str, str], program: Path, number: signal.Signals
) -> None:
    (program / "program.py").write_text(WAITS)
    asked = client(program, scratch, "up")
    process = int(eventually(lambda: (program / "pid").exists() and (program / "pid").read_text()))
    assert "taplocal/ready.py" in parent(process)
    asked.send_signal(number)
    _, errors = asked.communicate(timeout=HANG_SECONDS)
    eventually(lambda: gone(process))
    interrupted = number == signal.SIGINT
    assert asked.returncode == (130 if interrupted else -number)
    assert ("interrupted while deploying" in errors) is interrupted


class Slow:
    """A connection whose client is interrupted while it sends what it wants."""

    def __init__(self) -> None:
        self.sent: list[bytes] = []

    def sendall(self, content: bytes) -> None:
        if content != ready.INTERRUPT:
            os.kill(os.getpid(), signal.SIGINT)
        self.sent.append(content)


def test_nothing_gets_into_what_is_sent_when_it_is_interrupted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    slow, before = Slow(), signal.getsignal(signal.SIGINT)
    monkeypatch.setattr(sys, "argv", ["taplocal", "status"])
    monkeypatch.setattr(ready, "_connected", lambda: contextlib.nullcontext(slow))
    monkeypatch.setattr(socket, "send_fds", lambda *_: 1)
    try:
        with pytest.raises(KeyboardInterrupt):
            ready.run("taplocal")
    finally:
        signal.signal(signal.SIGINT, before)
    assert slow.sent == []


def test_what_others_could_have_put_there_is_not_asked(
    scratch: dict[str, str], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["taplocal", "status", "--help"])
    folder = ready._address().parent
    assert ready.run("taplocal") == 0
    for mode in 0o755, 0o777:
        folder.chmod(mode)
        assert ready.run("taplocal") is None
    folder.chmod(0o700)
    monkeypatch.setattr(os, "getuid", lambda: 12345)
    assert ready.run("taplocal") is None


def test_commands_with_a_terminal_and_those_who_do_not_want_it_run_alone(
    scratch: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["taplocal", "psql"])
    assert ready.run("taplocal") is None
    monkeypatch.setattr(sys, "argv", ["taplocal", "status"])
    monkeypatch.setenv("TAPLOCAL_READY", "0")
    assert ready.run("taplocal") is None


def test_it_ends_when_nobody_needs_it_and_leaves_nothing(tmp_path: Path) -> None:
    serve = "from taplocal import ready as it; it.IDLE_SECONDS = it.LOOK_SECONDS = 0.1; it._serve([], [])"
    variables = {**os.environ, "TMPDIR": str(tmp_path), "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", serve], env=variables, timeout=HANG_SECONDS)
    assert done.returncode == 0
    (folder,) = tmp_path.iterdir()
    assert not list(folder.iterdir())


def test_it_does_not_listen_in_a_folder_of_others(tmp_path: Path) -> None:
    folder = tmp_path / f"taplocal-{os.getuid()}"
    folder.mkdir()
    folder.chmod(0o755)
    serve = "from taplocal import ready; ready._serve([], [])"
    variables = {**os.environ, "TMPDIR": str(tmp_path), "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-c", serve], env=variables, timeout=HANG_SECONDS, check=True)
    assert not list(folder.iterdir())


def test_another_installation_is_another_process(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Code that has changed, another package, other options of Python."""
    monkeypatch.setattr(ready, "PACKAGE", tmp_path / "taplocal")
    packages = tmp_path / "site-packages"
    for each in (tmp_path / "taplocal", tmp_path / "ops", packages):
        each.mkdir()
        (each / "a.py").touch()
    monkeypatch.syspath_prepend(packages)
    seen = [ready._address()]

    def differs() -> None:
        assert ready._address() not in seen
        seen.append(ready._address())

    for changed in (tmp_path / "taplocal/a.py", tmp_path / "ops/a.py", packages):
        os.utime(changed, (1, 1))
        differs()
    (tmp_path / "taplocal/b.py").touch()
    differs()
    monkeypatch.setenv("PYTHONSAFEPATH", "1")
    differs()
    assert ready._address() == seen[-1]
