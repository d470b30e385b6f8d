"""Children of the web environment's supervisor: ended with it, whoever is killed."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from taplocal.web.processes import RECORD, Processes

SECONDS = 30  # a guard against hanging
SLEEP = "sleep 300 & echo $! >> pids; sleep 300 & echo $! >> pids; echo $$ >> pids; wait"
#: Starts two groups of three processes each and prints the watcher's pid; that of another one, too,
#: once it is told of the groups.
OWNER = f"""
import asyncio, pathlib, sys
from taplocal.web.processes import Processes
async def main():
    folder = pathlib.Path(sys.argv[1])
    processes = Processes(folder)
    for _ in range(2):
        argv = ["bash", "-c", {SLEEP!r}]
        await processes.start(argv, cwd=folder, env={{"PATH": "/usr/bin:/bin"}}, log=folder / "log")
    first = processes._watcher
    print(first.pid, flush=True)
    async with asyncio.timeout(300):
        while processes._watcher is first:
            await asyncio.sleep(0.01)
    print(processes._watcher.pid, flush=True)
    await asyncio.sleep(300)
asyncio.run(main())
"""


def alive(pid: int) -> bool:
    """Whether a process runs; one that has ended and waits for its parent does not."""
    shown = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True)
    return shown.stdout.strip()[:1] not in ("", "Z")


def until(holds: Callable[[], object]) -> None:
    deadline = time.monotonic() + SECONDS
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def pids(folder: Path, count: int) -> list[int]:
    """The processes that have announced themselves, when there are so many."""
    path = folder / "pids"
    until(lambda: path.exists() and path.read_text().count("\n") == count)
    return list(map(int, path.read_text().split()))


@pytest.fixture
def owner(tmp_path: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", OWNER, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )


def watcher_of(owner: subprocess.Popen[str]) -> int:
    assert owner.stdout
    return int(owner.stdout.readline())


def test_a_killed_owner_leaves_no_process(owner: subprocess.Popen[str], tmp_path: Path) -> None:
    watcher = watcher_of(owner)
    made = pids(tmp_path, 6)
    assert all(map(alive, [*made, watcher]))
    owner.kill()
    until(lambda: not any(map(alive, [*made, watcher])))


def test_a_killed_watcher_is_made_again(owner: subprocess.Popen[str], tmp_path: Path) -> None:
    watcher = watcher_of(owner)
    made = pids(tmp_path, 6)
    os.kill(watcher, signal.SIGKILL)
    assert all(map(alive, [*made, watcher_of(owner)]))
    owner.kill()
    until(lambda: not any(map(alive, made)))


def test_the_next_owner_ends_what_owner_and_watcher_left(
    owner: subprocess.Popen[str], tmp_path: Path
) -> None:
    watcher = watcher_of(owner)
    made = pids(tmp_path, 6)
    owner.send_signal(signal.SIGSTOP)  # or it would make another watcher
    os.kill(watcher, signal.SIGKILL)
    owner.kill()
    until(lambda: not alive(owner.pid))
    assert all(map(alive, made))
    record = json.loads((tmp_path / RECORD).read_text())
    foreign = subprocess.Popen(["sleep", "300"], start_new_session=True)
    (tmp_path / RECORD).write_text(json.dumps({**record, foreign.pid: "gunicorn"}))
    Processes(tmp_path)
    until(lambda: not any(map(alive, made)))
    assert alive(foreign.pid)  # its number was another process's before
    foreign.kill()


def children() -> set[int]:
    """The processes of this process, without the one that looks for them."""
    with subprocess.Popen(
        ["pgrep", "-P", str(os.getpid())], stdout=subprocess.PIPE, text=True
    ) as looking:
        assert looking.stdout
        return set(map(int, looking.stdout.read().split())) - {looking.pid}


def run_children(folder: Path, test: Callable[[Processes], object]) -> None:
    async def main() -> None:
        processes = Processes(folder)
        try:
            await asyncio.wait_for(test(processes), SECONDS)  # type: ignore[arg-type]
        finally:
            await processes.close()

    asyncio.run(main())


def test_stop_ends_the_whole_group_also_what_ignores_the_signal(tmp_path: Path) -> None:
    async def test(processes: Processes) -> None:
        ignoring = f"trap '' TERM; {SLEEP}"
        start = {"cwd": tmp_path, "env": {"PATH": os.defpath}, "log": tmp_path / "log"}
        deaf = await processes.start(["bash", "-c", ignoring], **start)  # type: ignore[arg-type]
        made = await asyncio.to_thread(pids, tmp_path, 3)
        assert deaf.alive()
        assert await deaf.stop(seconds=0.2) == -signal.SIGKILL
        assert not deaf.alive()
        await asyncio.to_thread(until, lambda: not any(map(alive, made)))
        assert json.loads((tmp_path / RECORD).read_text()) == {}

    run_children(tmp_path, test)


def test_what_a_process_leaves_ends_with_it(tmp_path: Path) -> None:
    async def test(processes: Processes) -> None:
        leaving = SLEEP.removesuffix("wait") + "exit 3"
        child = await processes.start(
            ["bash", "-c", leaving], cwd=tmp_path, env={"PATH": os.defpath}, log=tmp_path / "log"
        )
        assert await child.wait() == 3
        assert await child.stop() == 3
        made = await asyncio.to_thread(pids, tmp_path, 3)
        await asyncio.to_thread(until, lambda: not any(map(alive, made)))

    run_children(tmp_path, test)


def test_environment_output_and_a_missing_program(tmp_path: Path) -> None:
    async def test(processes: Processes) -> None:
        log = tmp_path / "log"
        start = {"cwd": tmp_path, "env": {"PATH": os.defpath, "X": "given"}, "log": log}
        shown = await processes.start(["sh", "-c", "cat; pwd; env; echo bad >&2"], **start)  # type: ignore[arg-type]
        assert await shown.wait() == 0
        lines = log.read_text().splitlines()
        assert lines[0] == str(tmp_path.resolve())
        assert "X=given" in lines and "bad" in lines
        assert "HOME" not in log.read_text()
        assert log.stat().st_mode & 0o777 == 0o600
        missing = await processes.start(["/no/such"], **start)  # type: ignore[arg-type]
        assert await missing.wait() == 127
        assert "/no/such" in log.read_text()

    run_children(tmp_path, test)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can change the user")
def test_as_root_a_child_is_another_user(tmp_path: Path) -> None:
    async def test(processes: Processes) -> None:
        log = tmp_path / "own" / "log"
        log.parent.mkdir()
        os.chown(log.parent, 65_534, 65_534)
        for each in (tmp_path, *tmp_path.parents):
            if each == Path(tempfile.gettempdir()):
                break
            each.chmod(0o711)
        child = await processes.start(
            ["id"], cwd=Path("/"), env={"PATH": os.defpath}, log=log, user=65_534
        )
        assert await child.wait() == 0
        assert "uid=65534" in log.read_text() and "root" not in log.read_text()
        assert log.stat().st_uid == 65_534

    run_children(tmp_path, test)


def test_many_children_at_once_have_one_watcher(tmp_path: Path) -> None:
    async def test(processes: Processes) -> None:
        start = {"cwd": tmp_path, "env": {"PATH": os.defpath}, "log": tmp_path / "log"}
        before = children()
        made = await asyncio.gather(
            *(processes.start(["sleep", "300"], **start) for _ in range(20))  # type: ignore[arg-type]
        )
        assert len(children() - before - {each.pid for each in made}) == 1
        await asyncio.gather(*(each.stop() for each in made))
        with contextlib.suppress(ProcessLookupError):
            os.killpg(made[0].pid, 0)
            raise AssertionError

    run_children(tmp_path, test)
