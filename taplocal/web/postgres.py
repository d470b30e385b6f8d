"""The databases of the web environment: each a real PostgreSQL that does what RDS is told to do.

A database's folder has its state (database.json: the port, which server is the primary)
and in `pg` the data of two servers, `a` and `b`, with sockets and logs. Who can enter `pg` is the
owner; everybody else comes through the relay.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import re
import shutil
import stat
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psycopg
from psycopg import sql

from taplocal.state import write_private
from taplocal.web.certificates import Authority
from taplocal.web.instances import usage
from taplocal.web.pg_installed import ADDRESS, NOBODY, USER, DatabaseError, enterable, major, output
from taplocal.web.pg_server import PAUSE, PORTS, SECONDS, STANDBY, Server, sockets
from taplocal.web.processes import Processes
from taplocal.web.relay import ADMIN, Relay, Verify

CONNECTIONS = 100  # at most, on a laptop
STANDBY_SECONDS = 1
IDENTIFIER = re.compile(r"[a-zA-Z][a-zA-Z0-9:-]{0,254}")
#: Whoever enters the folder of the sockets is the owner, or the relay, which has verified tokens.
HBA = f"""\
local all,replication {ADMIN} trust
local all +rds_superuser scram-sha-256
local all +rds_iam trust
local all all scram-sha-256
"""
#: The master's powers are those of a role, as on RDS; it may grant rds_iam and is not a member.
ROLES = """
DO $$ BEGIN
    IF to_regrole('rds_superuser') IS NULL THEN
        CREATE ROLE rds_iam;
        CREATE ROLE rds_superuser CREATEDB CREATEROLE;
        GRANT rds_iam TO rds_superuser WITH ADMIN TRUE, INHERIT FALSE, SET FALSE;
        GRANT pg_monitor, pg_signal_backend, pg_checkpoint TO rds_superuser WITH ADMIN TRUE;
    END IF;
END $$
"""
IS_IAM_USER = """
SELECT pg_has_role(oid, 'rds_iam', 'MEMBER') AND NOT pg_has_role(oid, 'rds_superuser', 'MEMBER')
FROM pg_roles WHERE rolname = %s
"""


log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Spec:
    """A database as RDS has it registered."""

    identifier: str
    folder: Path  #: of its own, below .taplocal/web/databases; made if it is not there
    host: str  #: the endpoint's name: <identifier>.local.<region>.rds.amazonaws.com
    port: int = 0  #: wanted; 0, or one that is taken: a free one, kept from then on
    engine_version: str = "17"  #: the major counts
    user: str = "master"
    database: str = ""  #: made if it is not there
    multi_az: bool = False
    #: of the parameter group: (name, value, "immediate" or "pending-reboot")
    parameters: tuple[tuple[str, str, str], ...] = ()
    address: str = ADDRESS  #: where it listens


@dataclass(frozen=True)
class Snapshot:
    """A copy of a database at an instant."""

    identifier: str
    source: str  #: the database's identifier
    created: float  #: seconds since 1970
    engine_version: str
    user: str
    database: str
    size: int  #: bytes


class Snapshots:
    """The snapshots below a folder: .taplocal/web/snapshots."""

    def __init__(self, folder: Path):
        self.folder = folder

    def list(self) -> list[Snapshot]:
        """All that are complete, the oldest first."""
        found = [Snapshot(**json.loads(x.read_text())) for x in self.folder.glob("*/snapshot.json")]
        return sorted(found, key=lambda each: each.created)

    def get(self, identifier: str) -> Snapshot:
        """One by its identifier."""
        for each in self.list():
            if each.identifier == identifier:
                return each
        known = ", ".join(each.identifier for each in self.list()) or "none"
        raise DatabaseError(f"There is no snapshot {identifier!r}; there are: {known}.")

    def path(self, identifier: str) -> Path:
        """Its folder."""
        if not IDENTIFIER.fullmatch(identifier):
            raise DatabaseError(f"A snapshot has letters, digits and hyphens, not {identifier!r}.")
        return self.folder / identifier

    async def delete(self, identifier: str) -> None:
        """Deletes one for good."""
        self.get(identifier)
        path = self.path(identifier)
        (path / "snapshot.json").unlink()  # from here on it is none
        await remove(path)


class Database:
    """One database. Each coroutine waits for the one before it; what fails is a DatabaseError."""

    def __init__(
        self,
        spec: Spec,
        *,
        processes: Processes,
        authority: Authority,
        snapshots: Snapshots,
        verify: Verify,
        event: Callable[[str], None] = print,
    ):
        """`event` gets a line for people whenever RDS would send an event."""
        self.spec, self.snapshots, self._event = spec, snapshots, event
        #: As in DescribeDBInstances.
        self.status = "creating"
        self.log = spec.folder / "pg" / "postgresql.log"
        version = major(spec.engine_version)
        self._servers = {x: Server(spec.folder, x, version, processes) for x in PORTS}
        self._state_file = spec.folder / "database.json"
        #: What outlives this process: port, primary, master and database.
        self._state: dict[str, Any] = (
            json.loads(self._state_file.read_text()) if self._state_file.exists() else {}
        )
        self._applied = dict[str, str]()
        self._waits = False  # commits wait for the standby
        self._synchronous = False  # each acknowledged commit is on the standby, too
        self._lock, self._tasks = asyncio.Lock(), set[asyncio.Task[None]]()
        self._asking, self._session = asyncio.Lock(), list[psycopg.AsyncConnection[Any]]()
        names = dict.fromkeys((spec.host, "localhost"))  # for programs that know no PGHOSTADDR
        self._relay = Relay(tuple(names), authority, verify, self._by_token)

    @property
    def port(self) -> int:
        """Where it listens; the same until it is deleted, unless another program takes it."""
        return self._relay.port

    @property
    def connections(self) -> int:
        """AWS/RDS's DatabaseConnections."""
        return self._relay.connections

    @property
    def cpu_seconds(self) -> float:
        """The CPU time that its processes have used; begins again with another primary."""
        process = self.primary.process
        return usage().get(process.pid, (0.0, 0))[0] if process else 0.0

    @property
    def free_storage(self) -> int:
        """AWS/RDS's FreeStorageSpace in bytes: that of this machine's disk."""
        return shutil.disk_usage(self.spec.folder).free

    @property
    def standby(self) -> bool:
        """Whether a failover would lose nothing."""
        return self._synchronous

    @property
    def primary(self) -> Server:
        return self._servers[self._state.get("primary", "a")]

    @property
    def _other(self) -> Server:
        return self._servers["ab".replace(self.primary.name, "")]

    async def start(self, password: str) -> None:
        """Runs it: makes it if there are no data, else goes on with those of an earlier life.

        The master has the password afterwards, whatever it was before.
        """
        new = not self._state
        async with self._doing("creating" if new else "starting"):
            if self.primary.alive:
                return await self._set_password(password)
            if new:
                self._make_folders()
                await remove(self.primary.data)  # half made
                await self.primary.command(
                    "initdb",
                    *("-D", self.primary.data, "-U", ADMIN, "-A", "trust", "-E", "UTF8"),
                    *("--locale=C", "--locale-provider=builtin", "--builtin-locale=C.UTF-8"),
                )
            await self._open(password)
        return None

    async def stop(self) -> None:
        """Stops it; `start` goes on."""
        async with self._doing("stopping", "stopped"):
            await self._end()

    async def reboot(self, failover: bool = False) -> None:
        """Restarts it with all parameters, or lets the standby take over."""
        if failover:
            return await self.failover()
        async with self._doing("rebooting"):
            await self._unwatched()
            await self.primary.stop()
            await self._run()
        return None

    async def failover(self) -> None:
        """Kills the primary and lets the standby take over; a new standby is made afterwards."""
        async with self._doing("failing-over"):
            if not self._synchronous:
                why = "is being made" if self.spec.multi_az else "is not registered (MultiAZ)"
                raise DatabaseError(f"{self.spec.identifier} cannot fail over: its standby {why}.")
            await self._unwatched()
            await self.primary.kill()
            await self._recover()

    async def crash(self) -> None:
        """Kills it; it comes back by itself."""
        await self.primary.kill()

    async def modify(self, spec: Spec) -> None:
        """Changes parameters, and whether there is a standby."""
        async with self._doing("modifying"):
            if major(spec.engine_version) != major(self.spec.engine_version):
                raise DatabaseError(
                    f"{spec.identifier} cannot go from PostgreSQL {self.spec.engine_version} to "
                    f"{spec.engine_version} here: delete the database, it is made anew."
                )
            await self._unwatched()
            self.spec = spec
            for name, value, method in self._parameters():
                if method == "immediate":
                    self._applied[name] = value
            known = {name for name, _, _ in self._parameters()}
            self._applied = {k: v for k, v in self._applied.items() if k in known}
            self._configure()
            if not spec.multi_az:
                await self._without_standby()
            self._watched()

    async def in_step(self) -> None:
        """Waits until the standby, if there is to be one, has all that is committed."""
        deadline = time.monotonic() + SECONDS
        while self.spec.multi_az and not self._synchronous:
            if time.monotonic() > deadline:
                raise DatabaseError(f"{self.spec.identifier} has no standby that is in step.")
            await asyncio.sleep(PAUSE)

    async def set_password(self, password: str) -> None:
        """Changes the master's password: before the secret has it. It can be repeated."""
        async with self._doing("resetting-master-credentials"):
            await self._set_password(password)

    async def snapshot(self, identifier: str) -> Snapshot:
        """A copy of this instant, while it goes on."""
        path = self.snapshots.path(identifier)
        if (path / "snapshot.json").exists():
            raise DatabaseError(f"There is a snapshot {identifier!r} already: delete it first.")
        async with self._doing("backing-up"):
            await remove(path)  # an attempt that was broken off
            _own(path, path / "pg")
            await self.primary.copy_to(path / "pg" / "data")
            state = self._state
            made = Snapshot(
                identifier=identifier,
                source=self.spec.identifier,
                created=time.time(),
                engine_version=(await self.primary.ask("SHOW server_version"))[0][0],
                user=state["user"],
                database=state["database"],
                size=sum(x.stat().st_size for x in path.rglob("*") if x.is_file()),
            )
            write_private(path / "snapshot.json", json.dumps(asdict(made)))
        self._event(f"{self.spec.identifier}: snapshot {identifier} is made")
        return made

    async def restore(self, identifier: str, password: str) -> None:
        """Makes it from a snapshot: in place, or new, instead of `start`."""
        snapshot = self.snapshots.get(identifier)
        source = self.snapshots.path(identifier) / "pg" / "data"
        async with self._doing("creating"):
            if major(snapshot.engine_version) != (wanted := major(self.spec.engine_version)):
                raise DatabaseError(
                    f"Snapshot {identifier} is of PostgreSQL {snapshot.engine_version}, "
                    f"{self.spec.identifier} of {wanted}: restore it to one of its own version."
                )
            self._make_folders()
            target, copied = self._other, self.spec.folder / "pg" / "copied"
            await remove(copied)
            await target.command("cp", "-Rp", source, copied)
            await target.command("initdb", "--sync-only", "-D", copied)
            await self._end()
            await remove(target.data)
            copied.rename(target.data)
            self._save(primary=target.name, user=snapshot.user, database=snapshot.database)
            await self._open(password)
            if not self.spec.multi_az:
                await remove(self._other.data)
        self._event(f"{self.spec.identifier}: restored from snapshot {identifier}")

    async def delete(self, final_snapshot: str = "") -> None:
        """Deletes it and its data; a final snapshot first, if it has a name."""
        if final_snapshot:
            await self.snapshot(final_snapshot)
        async with self._doing("deleting", "deleted"):
            await self._end()
            await discard(self.spec.folder)

    # What they have in common.

    @asynccontextmanager
    async def _doing(self, status: str, then: str = "available") -> AsyncIterator[None]:
        async with self._lock:
            before, self.status = self.status, status
            try:
                yield
                self.status = then
            except (OSError, psycopg.Error) as error:
                raise DatabaseError(f"{self.spec.identifier}, {status}: {error}") from error
            finally:
                if self.status == status:
                    self.status = before if self.primary.alive else "failed"

    def _save(self, **changes: Any) -> None:
        self._state |= changes
        write_private(self._state_file, json.dumps(self._state))
        for each in (self._state_file, self._state_file.parent):  # a failover outlasts a power cut
            descriptor = os.open(each, os.O_RDONLY)
            os.fsync(descriptor)
            os.close(descriptor)

    def _make_folders(self) -> None:
        _own(self.spec.folder, self.spec.folder / "pg", self.primary.socket.parent)
        hba = self.spec.folder / "pg_hba.conf"
        write_private(hba, HBA)
        hba.chmod(0o644)

    async def _open(self, password: str) -> None:
        """Starts servers and relay on data that are there."""
        found = (self.primary.data / "PG_VERSION").read_text().strip()
        if found != major(self.spec.engine_version):
            raise DatabaseError(
                f"{self.primary.data} is of PostgreSQL {found}, {self.spec.identifier} of "
                f"{self.spec.engine_version}: set that version, or delete the database."
            )
        self._make_folders()
        await self._run()
        self._save(**{"user": self.spec.user, "database": self.spec.database, **self._state})
        await self._roles(password)
        try:
            await self._relay.open(self.spec.address, self._state.get("port", self.spec.port))
        except OSError as error:
            await self._relay.open(self.spec.address, 0)
            self._event(
                f"{self.spec.identifier}: port {self._state.get('port', self.spec.port)} is "
                f"taken ({error.strerror}): it listens at {self.port} instead"
            )
        self._save(port=self.port)

    async def _run(self) -> None:
        """Starts the primary with all parameters, and has a standby made if there is to be one."""
        self._applied = {name: value for name, value, _ in self._parameters()}
        for each in sorted({*self.spec.parameters} - {*self._parameters()}):
            self._event(f"{self.spec.identifier}: parameter {each[0]} means nothing here")
        self._waits = self._synchronous = False
        self._configure()
        await self.primary.start()
        self._relay.upstream = self.primary.socket
        self._watched()

    async def _end(self) -> None:
        await self._unwatched()
        await self._relay.close()
        self._waits = self._synchronous = False
        for each in (self.primary, self._other):
            await each.stop()

    def _parameters(self) -> list[tuple[str, str, str]]:
        """Those of the group that mean something here."""
        return [
            each for each in self.spec.parameters
            if "{" not in each[1] and (each[0] == "rds.force_ssl" or not each[0].startswith("rds."))
        ]  # fmt: skip

    def _configure(self) -> None:
        """Writes the parameters that apply, and has them read."""
        given = {k: v for k, v in self._applied.items() if not k.startswith("rds.")}
        if major(self.spec.engine_version) == "17" and (stages := given.get("log_connections")):
            given["log_connections"] = "0" if stages == "0" else "1"  # 18 has a list of stages
        wanted = given.get("max_connections", "")
        settings = {
            "shared_buffers": "32MB",
            "log_line_prefix": "%t:%r:%u@%d:[%p]:",
            "wal_retrieve_retry_interval": "100ms",  # a standby takes over sooner
            "wal_sender_timeout": "3s",  # a standby that hangs is noticed
            "wal_receiver_timeout": "3s",
            **given,
            "max_connections": str(min(int(wanted or CONNECTIONS), CONNECTIONS)),
            "synchronous_standby_names": STANDBY if self._waits else "",
        }
        self._relay.force_ssl = self._applied.get("rds.force_ssl", "1") == "1"
        for each in self._servers.values():
            each.configure(settings)
            each.reload()

    async def _roles(self, password: str) -> None:
        """Makes roles and database where they are not there."""
        state = self._state
        user, database = state["user"], state["database"]
        async with await self.primary.session() as made:
            await made.execute(ROLES)
            name = sql.Identifier(user)
            found = await made.execute("SELECT 1 FROM pg_roles WHERE rolname = %s", [user])
            if not await found.fetchall():
                await made.execute(sql.SQL("CREATE ROLE {} CREATEDB CREATEROLE LOGIN").format(name))
                await made.execute(sql.SQL("GRANT rds_superuser TO {}").format(name))
            found = await made.execute("SELECT 1 FROM pg_database WHERE datname = %s", [database])
            if database and not await found.fetchall():
                of = sql.Identifier(database)
                await made.execute(sql.SQL("CREATE DATABASE {} OWNER {}").format(of, name))
        await self._set_password(password)

    async def _set_password(self, password: str) -> None:
        user = self._state["user"]
        async with await self.primary.session() as made:
            clear, method = password.encode(), b"scram-sha-256"
            verifier = made.pgconn.encrypt_password(clear, user.encode(), method).decode()
            change = sql.SQL("ALTER ROLE {} PASSWORD {}")
            await made.execute(change.format(sql.Identifier(user), sql.Literal(verifier)))

    async def _by_token(self, user: str) -> bool:
        """Whether this user comes with a token, and with no password."""
        async with self._asking:
            for _ in range(2):  # the connection may be of a server that is gone
                try:
                    connection = (
                        self._session.pop() if self._session else await self.primary.session()
                    )
                    found = await (await connection.execute(IS_IAM_USER, [user])).fetchone()
                    self._session.append(connection)
                    return bool(found and found[0])
                except psycopg.Error as error:
                    down = error
        raise ConnectionError("PostgreSQL is down") from down

    # Crashes and the standby.

    def _watched(self) -> None:
        """Looks after the servers in the background."""
        self._tasks = {asyncio.create_task(self._watch(self.primary))}
        if self.spec.multi_az:
            self._tasks.add(asyncio.create_task(self._keep_standby()))

    async def _unwatched(self) -> None:
        """Looks after them no more: what follows stops servers."""
        tasks, self._tasks = self._tasks - {asyncio.current_task()}, set()
        for each in tasks:
            each.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _watch(self, server: Server) -> None:
        """Waits for the primary's end, and has it come back."""
        if server.process:
            await server.process.wait()
        self._event(f"{self.spec.identifier}: the database crashed, it is recovering")
        try:
            async with self._doing("rebooting"):
                await self._unwatched()
                await self._recover()
        except DatabaseError as error:
            self._event(f"{self.spec.identifier}: {error}")

    async def _recover(self) -> None:
        """The primary is dead: the standby takes over, or it comes back where it was."""
        new = self._other
        if self._synchronous and new.alive:
            self._waits = self._synchronous = False
            try:
                await new.ask("SELECT pg_promote(true, %s)", SECONDS)
                self._configure()
                self._save(primary=new.name)
            except psycopg.Error:
                await new.kill()  # it has acknowledged nothing yet, the old one has all
            else:
                self._relay.upstream = new.socket
                self._event(f"{self.spec.identifier}: the standby has taken over")
                return self._watched()
        return await self._run()

    async def _keep_standby(self) -> None:
        """Makes a standby, has commits wait for it, and makes another one when it fails."""
        while True:
            try:
                if not (self._synchronous and await self._streams()):
                    await self._without_standby()
                    await self._make_standby()
            except (DatabaseError, psycopg.Error, OSError) as error:
                if self.primary.alive:  # or `_watch` does what is to be done
                    self._event(f"{self.spec.identifier}: there is no standby: {error}")
            await asyncio.sleep(STANDBY_SECONDS)

    async def _without_standby(self) -> None:
        """Commits wait for no standby any more."""
        self._waits = self._synchronous = False
        self._configure()
        await self._other.kill()

    async def _make_standby(self) -> None:
        standby = self._other
        await remove(standby.data)
        await self.primary.copy_to(standby.data)
        await standby.command("touch", standby.data / "standby.signal")
        await standby.start()
        while not await self._streams():
            await asyncio.sleep(PAUSE)
        self._waits = True
        self._configure()
        while await self.primary.ask("SHOW synchronous_standby_names") != [(STANDBY,)]:
            await asyncio.sleep(PAUSE)
        await self.primary.ask("CHECKPOINT")  # by the process that makes commits wait
        self._synchronous = True
        self._event(f"{self.spec.identifier}: a standby is in step")

    async def _streams(self) -> bool:
        """Whether the standby gets what the primary writes."""
        query = "SELECT 1 FROM pg_stat_replication WHERE application_name = %s AND state = %s"
        return bool(await self.primary.ask(query, STANDBY, "streaming"))


async def remove(path: Path) -> None:
    """Deletes a folder, which can take seconds, if it is there."""
    await output("rm", "-rf", str(path))


async def discard(folder: Path) -> bool:
    """Deletes what a stopped database or a snapshot has; whether nothing of it is left."""
    await remove(sockets(folder))
    await remove(folder)
    return not folder.exists()


def _own(folder: Path, *inner: Path) -> None:
    """Makes a folder, and others for PostgreSQL, into which nobody else can look."""
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(0o711 if USER else 0o700)
    owner = NOBODY if USER else os.geteuid()
    for each in {*inner}:
        with contextlib.suppress(FileExistsError):
            each.mkdir(mode=0o700)
            os.chown(each, owner, -1)
        found = each.lstat()
        if (found.st_uid, found.st_mode) != (owner, stat.S_IFDIR | 0o700):
            raise DatabaseError(f"{each} is not PostgreSQL's: delete it.")
    if USER:
        enterable(folder)
