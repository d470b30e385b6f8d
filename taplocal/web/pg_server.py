"""One PostgreSQL server on its data: started, stopped and killed, asked and configured.

A database has two, `a` and `b`. They listen on sockets alone, in a folder of their user's.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import tempfile
import time
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

import psycopg

from taplocal.state import write_private
from taplocal.web.pg_installed import ENVIRONMENT, USER, DatabaseError, binaries, output
from taplocal.web.processes import Process, Processes
from taplocal.web.relay import ADMIN

SECONDS = 60  # a guard against hanging; recovery after a crash takes its time
PAUSE = 0.02
PORTS = {"a": 5432, "b": 5433}  # only part of a socket's name
LONGEST_FOLDER = 80  # bytes; with the socket's name less than macOS's 104
LOG_BYTES = 10_000_000
OWN_NAME = "postgres\n"  # as /proc has it
STANDBY = "standby"  # its name
#: What the server's own statements do not leave in the log: passwords' verifiers among others.
QUIET = "-c log_min_error_statement=panic -c log_min_duration_statement=-1 -c log_statement=none"


class Server:
    """One PostgreSQL on its data. `a` or `b` of a database's folder."""

    def __init__(self, folder: Path, name: str, version: str, processes: Processes):
        self.folder, self.name, self.version = folder, name, version
        self.processes, self.port = processes, PORTS[name]
        self.data, self.log = folder / "pg" / name, folder / "pg" / "postgresql.log"
        self.socket = sockets(folder) / f".s.PGSQL.{self.port}"
        self.process: Process | None = None

    @property
    def alive(self) -> bool:
        return self.process is not None and self.process.alive()

    async def session(self) -> psycopg.AsyncConnection[Any]:
        """A connection as the superuser."""
        return await psycopg.AsyncConnection.connect(
            host=str(self.socket.parent),
            hostaddr="",
            port=self.port,
            user=ADMIN,
            dbname="postgres",
            options=QUIET,
            connect_timeout=SECONDS,
            autocommit=True,
        )

    async def ask(self, statement: str, *values: Any) -> list[Any]:
        """The rows of a statement."""
        async with await self.session() as connection:
            cursor = await connection.execute(statement, values or None)
            return await cursor.fetchall() if cursor.description else []

    async def command(self, program: str, *arguments: str | Path) -> None:
        """Runs one of PostgreSQL's programs, or another, as the owner of the data."""
        found, log = binaries(self.version) / program, self.folder / "pg" / "commands.log"
        log.unlink(missing_ok=True)
        made = await self.processes.start(
            [str(found if found.exists() else program), *map(str, arguments)],
            cwd=Path("/"),
            env=ENVIRONMENT,
            log=log,
            user=USER,
        )
        if await made.wait():
            raise DatabaseError(f"{program} failed: {log.read_text(errors='replace').strip()}")

    def configure(self, settings: Mapping[str, str]) -> None:
        """Writes its configuration, which it reads at its start and when told to."""
        own = {
            "hba_file": str(self.folder / "pg_hba.conf"),
            "listen_addresses": "",
            "unix_socket_directories": str(self.socket.parent),
            "unix_socket_permissions": "0700",
            "port": str(self.port),
            "logging_collector": "off",
            "allow_alter_system": "off",
            "primary_conninfo": f"host={self.socket.parent} user={ADMIN} "
            f"port={sum(PORTS.values()) - self.port} application_name={STANDBY}",
        }
        lines = [f"{name} = {_quoted(value)}\n" for name, value in {**settings, **own}.items()]
        path = self.folder / f"{self.name}.conf"
        write_private(path, "".join(lines))
        path.chmod(0o644)  # its owner's folder is closed to others

    async def start(self) -> None:
        """Starts it and waits until it answers, also after a crash."""
        if self.log.exists() and self.log.stat().st_size > LOG_BYTES:
            self.log.replace(self.log.with_suffix(".log.1"))
        deadline = time.monotonic() + SECONDS
        while True:
            await self._clear()
            begin = self.log.stat().st_size if self.log.exists() else 0
            self.process = await self.processes.start(
                [
                    str(binaries(self.version) / "postgres"),
                    *("-D", str(self.data), "-c", f"config_file={self.folder / self.name}.conf"),
                ],
                cwd=self.data,
                env=ENVIRONMENT,
                log=self.log,
                user=USER,
            )
            if await self._answers(deadline):
                return
            await self.kill()
            with self.log.open(errors="replace") as file:
                file.seek(begin)
                said = [line.rpartition("]:")[2].strip() for line in file][-4:]
            # Servers of an earlier life may be there for a moment longer.
            again = any("in use" in line or "already exists" in line for line in said)
            if not again or time.monotonic() > deadline:
                reason = " ".join(said) or "it does not answer"
                raise DatabaseError(f"PostgreSQL does not start: {reason}. See {self.log}.")
            await asyncio.sleep(5 * PAUSE)

    async def _answers(self, deadline: float) -> bool:
        while self.alive and time.monotonic() < deadline:
            with contextlib.suppress(psycopg.OperationalError):
                await self.ask("SELECT 1")
                return True
            await asyncio.sleep(PAUSE)
        return False

    async def _clear(self) -> None:
        """Ends what an earlier life has left, where that can be told; else it is waited for."""
        for each in Path("/proc").glob("[0-9]*/cwd"):
            with contextlib.suppress(OSError):
                if each.readlink() == self.data and each.with_name("comm").read_text() == OWN_NAME:
                    os.kill(int(each.parent.name), signal.SIGKILL)
        file = self.data / "postmaster.pid"
        with contextlib.suppress(FileNotFoundError, ValueError):
            number = int(file.read_text().split("\n")[0])
            shown = await output("ps", "-o", "command=", "-p", str(number))
            if shown and str(self.data) not in shown:
                file.unlink()  # the number is another process's by now

    async def stop(self) -> None:
        """Ends it in order: sessions are cut off, data are written."""
        if self.alive and self.process:
            await self.process.stop(signal.SIGINT, SECONDS)

    async def kill(self) -> None:
        """Ends all its processes at once, as a loss of power does."""
        if self.alive and self.process:
            first = self.process.pid
            os.kill(first, signal.SIGSTOP)  # or it would start more
            for each in [*map(int, (await output("pgrep", "-P", str(first))).split()), first]:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(each, signal.SIGKILL)
            await self.process.wait()

    def reload(self) -> None:
        """Makes it read its configuration again."""
        if self.alive and self.process:
            os.kill(self.process.pid, signal.SIGHUP)

    async def copy_to(self, target: Path) -> None:
        """A consistent copy of what it has at the end of the call."""
        await self.command(
            "pg_basebackup",
            *("-h", self.socket.parent, "-p", str(self.port), "-U", ADMIN),
            *("-D", target, "-c", "fast", "-X", "stream"),
        )


def sockets(folder: Path) -> Path:
    """Where a database's sockets are: their paths cannot be long."""
    short = len(os.fsencode(folder)) <= LONGEST_FOLDER
    digest = sha256(os.fsencode(folder)).hexdigest()[:16]
    return folder / "pg" if short else Path(tempfile.gettempdir(), f"taplocal-{digest}")


def _quoted(value: str) -> str:
    """A value as PostgreSQL's configuration has it."""
    if "\n" in value:
        raise DatabaseError(f"A parameter has one line, not {value!r}.")
    doubled = value.replace("\\", "\\\\").replace("'", "''")
    return f"'{doubled}'"
