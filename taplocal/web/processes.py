"""Child processes that end with this one, however it ends: `kill -9` of anything leaves no orphan.

Each child leads a process group of its own. A watcher, a shell in a session of its own, knows the
groups from a pipe and kills them when the pipe's last writer is gone. A child announces itself
there before it becomes its program, so it has no moment without the watcher; a watcher that was
killed is made again, on the same pipe. Groups are in a file, too: if watcher and owner are killed
together, the next owner ends what they left. No call of Linux alone is used.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

RECORD = "processes.json"
SHELL = "/bin/sh"
#: Reads `+ GROUP` and `- GROUP`; kills all that are left at the end of its input.
WATCH = """
groups=' '
while read -r sign group; do
    case "$sign$groups" in
    +*" $group "*) ;;
    +*) groups="$groups$group " ;;
    -*" $group "*) groups="${groups%% "$group" *} ${groups#* "$group" }" ;;
    esac
done
for group in $groups; do kill -9 "-$group" 2> /dev/null; done
"""
#: Its standard input is the watcher's pipe. It opens the log as its own user: where that user could
#: have put a link, root must not write.
ANNOUNCED = """
umask 077
exec >> "$0" 2>&1
umask 022
echo "+ $$" >&0
exec "$@" < /dev/null
"""


class Process:
    """A child and its group; it is one until its first process has ended, then all are killed."""

    def __init__(self, child: asyncio.subprocess.Process, ended: asyncio.Task[int]):
        self.pid, self._child, self._ended = child.pid, child, ended

    def alive(self) -> bool:
        """Whether its first process runs."""
        return not self._ended.done() and self._child.returncode is None

    async def wait(self) -> int:
        """Its exit status, negative for a signal, when nothing of the group is left."""
        return await asyncio.shield(self._ended)

    def send(self, by: int) -> None:
        """Sends a signal to all processes of the group, if it is alive."""
        if self.alive():
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.pid, by)

    async def stop(self, by: int = signal.SIGTERM, seconds: float = 10) -> int:
        """Ends the group: with a signal, after so many seconds with KILL. Returns as `wait`."""
        self.send(by)
        try:
            return await asyncio.wait_for(self.wait(), seconds)
        except TimeoutError:
            self.send(signal.SIGKILL)
            return await self.wait()


class Processes:
    """All children of this process, of one event loop; `folder` has the record of their groups.

    A group that an owner before left is ended at once. The watcher is a shell of about 1 MB.
    """

    def __init__(self, folder: Path):
        self._record, self._commands = folder / RECORD, dict[int, str]()
        end_remains(self._record)
        self._reader, self._writer = os.pipe()
        self._watcher: asyncio.subprocess.Process | None = None
        self._watching: asyncio.Task[None] | None = None
        self._first = asyncio.Lock()
        self._ends = set[asyncio.Task[int]]()

    async def start(
        self,
        argv: Sequence[str],
        *,
        cwd: Path,
        env: Mapping[str, str],
        log: Path,
        user: int | None = None,
    ) -> Process:
        """Starts a program; what it prints is added to `log`, a file of mode 0600.

        `user` is the number of user and group that it runs as, for root only; it must be able to
        write the log. A program that does not exist ends with status 127 and a line in the log.
        """
        async with self._first:
            if not self._watching:
                self._watcher = await self._new_watcher()
                self._watching = asyncio.create_task(self._watch(self._watcher))
        identity = {} if user is None else {"user": user, "group": user, "extra_groups": []}
        child = await asyncio.create_subprocess_exec(
            *(SHELL, "-c", ANNOUNCED, str(log), *argv),
            cwd=cwd,
            env=env,
            stdin=self._writer,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            **identity,  # type: ignore[arg-type]
        )
        self._tell("+", child.pid, " ".join(argv))  # again: the watcher may have been killed
        ended = asyncio.create_task(self._end(child))
        self._ends.add(ended)
        ended.add_done_callback(self._ends.discard)
        return Process(child, ended)

    async def close(self) -> None:
        """Kills all children, and the watcher ends; stop first what must end in order."""
        if self._watching:
            self._watching.cancel()
        for group in self._commands:
            kill_group(group)
        await asyncio.gather(*self._ends)
        os.close(self._writer)
        os.close(self._reader)
        if self._watcher:
            await self._watcher.wait()

    async def _end(self, child: asyncio.subprocess.Process) -> int:
        status = await child.wait()
        kill_group(child.pid)  # what it left
        self._tell("-", child.pid, "")
        return status

    def _tell(self, sign: str, group: int, command: str) -> None:
        os.write(self._writer, f"{sign} {group}\n".encode())
        if sign == "+":
            self._commands[group] = command
        else:
            self._commands.pop(group)
        new = self._record.with_suffix(".new")
        with open(new, "w", opener=lambda path, flags: os.open(path, flags, 0o600)) as file:
            json.dump(self._commands, file)
        new.rename(self._record)

    async def _new_watcher(self) -> asyncio.subprocess.Process:
        return await asyncio.create_subprocess_exec(
            *(SHELL, "-c", WATCH),
            stdin=self._reader,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env={"PATH": os.defpath},
            start_new_session=True,
        )

    async def _watch(self, watcher: asyncio.subprocess.Process) -> None:
        while True:
            await watcher.wait()
            self._watcher = watcher = await self._new_watcher()
            for group in self._commands:
                os.write(self._writer, f"+ {group}\n".encode())


def kill_group(group: int) -> None:
    """Kills what is left of a process group."""
    with contextlib.suppress(ProcessLookupError, PermissionError):  # macOS: of zombies alone
        os.killpg(group, signal.SIGKILL)


def end_remains(record: Path) -> None:
    """Kills the groups of a record, those of them whose processes still have its command."""
    if not record.exists():
        return
    commands: dict[str, str] = json.loads(record.read_text())
    listed = subprocess.run(
        ["/bin/ps", "-A", "-ww", "-o", "pgid=,command="], capture_output=True, text=True, check=True
    )
    for line in listed.stdout.splitlines():
        group, _, shown = line.strip().partition(" ")
        if group in commands and commands[group] in shown:
            kill_group(int(group))
    record.unlink()
