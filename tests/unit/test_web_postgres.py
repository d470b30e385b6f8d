"""Databases of the web environment: a real PostgreSQL with RDS's rules, without the emulator."""

from __future__ import annotations

import asyncio
import dataclasses
import os
import signal
import socket
import ssl
import struct
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import boto3
import psycopg
import pytest
from cryptography import x509

from taplocal.web import certificates, pg_installed
from taplocal.web import relay as relay_module
from taplocal.web.certificates import Authority
from taplocal.web.pg_installed import DatabaseError, psql
from taplocal.web.relay import SSL_REQUEST, Relay
from taplocal.web.tokens import Token
from tests.local.postgres import Postgres

HANG_SECONDS = 30
HOST = "db.local.eu-west-1.rds.amazonaws.com"
PASSWORDS = ("first-secret", "second-secret")
GROUP = (
    ("rds.force_ssl", "1", "immediate"),
    ("log_min_duration_statement", "0", "immediate"),
    ("work_mem", "5MB", "immediate"),
    ("max_connections", "5000", "pending-reboot"),
    ("rds.log_retention_period", "10", "immediate"),
    ("effective_cache_size", "{DBInstanceClassMemory/16384}", "immediate"),
)


@contextmanager
def made(**changes: Any) -> Iterator[Postgres]:
    with tempfile.TemporaryDirectory() as folder:  # pytest's own only its user may enter
        created = Postgres(Path(folder), HOST, **changes)
        try:
            yield created
        finally:
            created.close()


@pytest.fixture(scope="module")
def db() -> Iterator[Postgres]:
    """One database with an application's role and a table with a thousand visits."""
    with made(parameters=GROUP) as created:
        created.execute("CREATE ROLE app LOGIN")
        created.execute("GRANT rds_iam TO app")
        created.execute("CREATE TABLE visits (id uuid PRIMARY KEY DEFAULT gen_random_uuid())")
        created.execute("INSERT INTO visits SELECT FROM generate_series(1, 1000)")
        created.execute("GRANT SELECT, INSERT ON visits TO app")
        yield created


def token(db: Postgres, user: str = "app", key: str = "local", **changes: Any) -> str:
    where = {"host": HOST, "port": db.port, **changes}
    rds = boto3.client(
        "rds", region_name="eu-west-1", aws_access_key_id="AK", aws_secret_access_key=key
    )
    return str(rds.generate_db_auth_token(where["host"], where["port"], user))


def visits(db: Postgres) -> set[str]:
    return {str(row[0]) for row in db.execute("SELECT id FROM visits")}


def until(look: Callable[[], Any]) -> None:
    deadline = time.monotonic() + 60
    while not look():
        assert time.monotonic() < deadline, "it never came"
        time.sleep(0.02)


def more(acknowledged: set[str]) -> None:
    """Waits until a hundred more visits are acknowledged."""
    count = len(acknowledged)
    until(lambda: len(acknowledged) >= count + 100)


@contextmanager
def writing(db: Postgres, threads: int = 2) -> Iterator[set[str]]:
    """Visits that were acknowledged, by clients that connect again whenever they are cut off."""
    acknowledged, ended = set[str](), threading.Event()

    def client() -> None:
        while not ended.is_set():
            try:
                with psycopg.connect(**db.connection_arguments(), autocommit=True) as connection:
                    while not ended.is_set():
                        visit = str(uuid.uuid4())
                        connection.execute("INSERT INTO visits VALUES (%s)", [visit])
                        acknowledged.add(visit)
            except psycopg.OperationalError:
                time.sleep(0.01)

    clients = [threading.Thread(target=client) for _ in range(threads)]
    for each in clients:
        each.start()
    try:
        yield acknowledged
        more(acknowledged)  # it goes on afterwards
    finally:
        ended.set()
        for each in clients:
            each.join()


def refusal(db: Postgres, **changes: Any) -> str:
    with pytest.raises(psycopg.OperationalError) as caught:
        db.execute("SELECT 1", **changes)
    return str(caught.value)


def test_it_is_what_the_program_registers(db: Postgres) -> None:
    assert db.execute("SHOW server_version")[0][0].startswith("17.")
    (role,) = db.execute("SELECT rolsuper, rolcreatedb, rolcreaterole FROM pg_roles WHERE rolname = 'master'")  # fmt: skip
    assert role == (False, True, True)
    assert db.execute("SELECT pg_get_userbyid(datdba) FROM pg_database WHERE datname = 'app'") == [("master",)]  # fmt: skip
    assert db.database.status == "available"
    with pytest.raises(psycopg.errors.FeatureNotSupported):
        db.execute("ALTER SYSTEM SET fsync = off")
    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        db.execute("SELECT * FROM pg_authid")


def test_durable(db: Postgres) -> None:
    assert db.execute("SHOW fsync") + db.execute("SHOW synchronous_commit") == [("on",), ("on",)]


def test_tls_is_verified_and_forced(db: Postgres, tmp_path: Path) -> None:
    assert "no encryption" in refusal(db, sslmode="disable")
    assert "does not match host name" in refusal(db, host="other.example")
    other = Authority(tmp_path)
    assert "certificate verify failed" in refusal(db, sslrootcert=str(other.ca))
    assert db.execute("SELECT 1", host="localhost", hostaddr="") == [(1,)]


def test_force_ssl_is_a_parameter_that_applies_at_once(db: Postgres) -> None:
    off = dataclasses.replace(db.spec, parameters=(("rds.force_ssl", "0", "immediate"),))
    db.run(db.database.modify(off))
    assert db.execute("SELECT 1", sslmode="disable") == [(1,)]
    assert "no encryption" in refusal(db, sslmode="disable", user="app", password=token(db))
    db.run(db.database.modify(db.spec))
    assert "no encryption" in refusal(db, sslmode="disable")


def test_members_of_rds_iam_come_with_a_token_and_nothing_else(db: Postgres) -> None:
    arguments = {"user": "app", "password": token(db)}
    assert db.execute("SELECT current_user", **arguments) == [("app",)]
    assert db.users["app"] > 0
    for wrong in (
        "",
        "local",
        token(db, key="another"),
        token(db, user="master"),
        token(db, port=5432),
        token(db, host="other.example"),
        token(db).replace("Expires=900", "Expires=90"),
        token(db) + "&Action=connect",
    ):
        assert "authentication failed" in refusal(db, user="app", password=wrong or "x")
    as_app = db.as_owner("ALTER ROLE app PASSWORD 'known'")
    assert as_app == []
    assert "PAM authentication failed" in refusal(db, user="app", password="known")
    assert "password authentication failed" in refusal(db, password=token(db, user="master"))


def test_an_old_token_and_one_of_the_future_are_refused(db: Postgres) -> None:
    parsed = Token.parse(token(db))
    for seconds, good in ((899, True), (901, False), (-600, False)):
        assert parsed.good_for([f"{HOST}:{db.port}"], "app", parsed.signed_at + seconds) is good
    with pytest.raises(ValueError, match="not a token"):
        Token.parse(token(db).replace("rds-db", "s3"))


def test_nobody_comes_as_the_owner(db: Postgres) -> None:
    for password in ("x", token(db, user="rdsadmin")):
        assert "rejects connection" in refusal(db, user="rdsadmin", password=password)


def test_text_before_tls_is_not_taken_for_text_through_it(db: Postgres) -> None:
    context = ssl.create_default_context(cafile=str(db.ca))
    with socket.create_connection(("127.0.0.1", db.port)) as plain:
        plain.sendall(bytes.fromhex("00000008 04d2162f"))
        assert plain.recv(1) == b"S"
        with context.wrap_socket(plain, server_hostname=HOST) as secure:
            secure.sendall(bytes.fromhex("0000000a 00030000 0000"))  # no user
            assert secure.recv(1) in (b"", b"E")
    for junk in (
        b"GET / HTTP/1.1\r\n\r\n",
        b"\0\0\0\x07",
        b"\0\0\0\x09\0\x03\0\0x",
        b"\x16\x03\x01",
    ):
        with socket.create_connection(("127.0.0.1", db.port)) as plain:
            plain.sendall(junk)
            plain.shutdown(socket.SHUT_WR)
            assert plain.recv(1) == b""


def test_a_query_can_be_cancelled(db: Postgres) -> None:
    ended = threading.Event()
    with psycopg.connect(**db.connection_arguments(), autocommit=True) as connection:

        def cancel() -> None:
            while not ended.wait(0.3):  # again, if the query had not begun
                connection.cancel_safe()

        cancelling = threading.Thread(target=cancel)
        cancelling.start()
        with pytest.raises(psycopg.errors.QueryCanceled):
            connection.execute("SELECT pg_sleep(60)")
        ended.set()
        cancelling.join()


def test_much_goes_through_in_both_directions(db: Postgres) -> None:
    text = "x" * 20_000_000
    with psycopg.connect(**db.connection_arguments()) as connection:
        found = connection.execute("SELECT %s || 'y', pg_sleep(0)", [text]).fetchone()
    assert found and found[0] == text + "y"


def test_parameters_apply_when_they_are_declared_to(db: Postgres) -> None:
    assert db.execute("SHOW work_mem") == [("5MB",)]
    assert db.execute("SHOW max_connections") == [("100",)]  # a laptop's
    assert sum("rds.log_retention_period means nothing" in each for each in db.events) == 1
    changed = (
        ("log_connections", "all", "immediate"),  # of 18, and 17 has it on
        ("work_mem", "6MB", "immediate"),
        ("maintenance_work_mem", "20MB", "pending-reboot"),
    )
    db.run(db.database.modify(dataclasses.replace(db.spec, parameters=changed)))
    until(lambda: db.execute("SHOW work_mem") == [("6MB",)])
    assert db.execute("SHOW log_connections") in ([("on",)], [("all",)])
    assert db.execute("SHOW maintenance_work_mem") != [("20MB",)]
    db.run(db.database.reboot())
    assert db.execute("SHOW maintenance_work_mem") == [("20MB",)]
    db.run(db.database.modify(db.spec))


def test_the_new_password_works_the_old_does_not_and_sessions_live_on(db: Postgres) -> None:
    old = db.password
    with psycopg.connect(**db.connection_arguments()) as session:
        for _ in range(2):  # again, after a crash before the secret had it
            db.run(db.database.set_password(PASSWORDS[0]))
        assert session.execute("SELECT 1").fetchone() == (1,)
    assert "password authentication failed" in refusal(db)
    db.password = PASSWORDS[0]
    assert db.execute("SELECT 1") == [(1,)]
    # The crash came before the secret's new version: at the next start the secret's is right.
    db.password = old
    db.stop()
    db.start()
    assert db.execute("SELECT 1") == [(1,)]


def test_no_file_and_no_log_has_a_password(db: Postgres) -> None:
    db.run(db.database.set_password(PASSWORDS[1]))
    with pytest.raises(psycopg.Error):
        db.run(db.database.primary.ask("ALTER ROLE nobody PASSWORD 'shown'"))
    files = [each for each in db.database.spec.folder.rglob("*") if each.is_file()]
    assert len(files) > 900
    for each in files:
        content = each.read_bytes()
        assert not any(x.encode() in content for x in (*PASSWORDS, db.password, "local/")), each
    log = db.database.log.read_text()
    assert "SCRAM" not in log and "shown" not in log
    db.run(db.database.set_password(db.password))


def test_its_files_are_the_owners(db: Postgres) -> None:
    folder = db.database.spec.folder
    assert (folder / "pg").stat().st_mode & 0o77 == 0
    if os.geteuid() == 0:
        assert (folder / "pg").stat().st_uid == pg_installed.NOBODY
    for each in (folder / "database.json", *(db.ca.parent.iterdir())):
        assert each.stat().st_mode & 0o77 == 0, each


def test_a_crash_under_load_loses_nothing_and_it_comes_back(db: Postgres) -> None:
    port = db.port
    with writing(db) as acknowledged:
        more(acknowledged)
        db.run(db.database.crash())
    assert acknowledged <= visits(db)
    assert db.port == port


def test_the_postmaster_alone_is_killed(db: Postgres) -> None:
    process = db.database.primary.process
    assert process
    with writing(db) as acknowledged:
        more(acknowledged)
        os.kill(process.pid, signal.SIGKILL)
        until(lambda: db.database.primary.process is not process)
    assert acknowledged <= visits(db)


def test_a_snapshot_brings_deleted_rows_back(db: Postgres) -> None:
    with writing(db) as acknowledged:
        more(acknowledged)
        before = set(acknowledged)
        snapshot = db.run(db.database.snapshot("rds-before"))
    db.stop()
    db.start()
    assert (snapshot.source, snapshot.user, snapshot.database) == (
        db.spec.identifier,
        "master",
        "app",
    )
    assert snapshot.engine_version.startswith("17.") and snapshot.size > 20_000_000
    assert db.database.snapshots.list() == [snapshot]
    with pytest.raises(DatabaseError, match="already"):
        db.run(db.database.snapshot("rds-before"))
    db.execute("DELETE FROM visits")
    port, db.password = db.port, "after-restore"
    db.run(db.database.restore("rds-before", db.password))
    assert before <= visits(db)
    assert db.port == port
    assert not db.database._other.data.exists(), "what was there before takes no room"
    with pytest.raises(DatabaseError, match="there are: rds-before"):
        db.run(db.database.restore("another", "x"))
    for wrong in ("../x", "", "a/b"):
        with pytest.raises(DatabaseError):
            db.run(db.database.snapshot(wrong))


def test_a_snapshot_makes_another_database(db: Postgres) -> None:
    known, snapshots = visits(db), db.database.snapshots
    db.run(db.database.snapshot("copy"))
    folder = db.spec.folder.with_name("second")
    spec = dataclasses.replace(db.spec, identifier="second", folder=folder, port=db.port)
    db.spec, first, first_spec = spec, db.database, db.spec
    db.database = db.run(db._made(Authority(db.ca.parent), snapshots))
    try:
        db.run(db.database.restore("copy", "of-the-second"))
        assert f"port {first.port} is taken" in "".join(db.events)
        assert db.port not in (0, first.port)
        assert {str(x[0]) for x in db.execute("SELECT id FROM visits", password="of-the-second")} == known  # fmt: skip
        db.run(db.database.delete())
        assert not folder.exists()
    finally:
        db.spec, db.database = first_spec, first
    db.run(snapshots.delete("copy"))
    assert "copy" not in {each.identifier for each in snapshots.list()}
    assert not snapshots.path("copy").exists()


def test_data_of_an_earlier_life_go_on(db: Postgres) -> None:
    """The supervisor and all it knows are gone; servers are still there, and another's number."""
    known, port = visits(db), db.port
    earlier = db.database
    db.run(earlier._unwatched())
    db.run(earlier._relay.close())
    db.database = db.run(db._made(Authority(db.ca.parent), earlier.snapshots))
    db.start()
    assert (visits(db), db.port) == (known, port)
    db.run(db.database._unwatched())
    db.run(db.database.primary.kill())
    pid_file = db.database.primary.data / "postmaster.pid"
    another = db.run(
        db.processes.start(
            ["sleep", "60"],
            cwd=pid_file.parent,
            env={"PATH": os.defpath},
            log=db.database.log,
            user=pg_installed.USER,
        )
    )
    lines = pid_file.read_text().split("\n")
    pid_file.write_text("\n".join([str(another.pid), *lines[1:]]))
    db.run(db.database._relay.close())
    db.database = db.run(db._made(Authority(db.ca.parent), earlier.snapshots))
    db.start()
    assert visits(db) == known


def test_another_major_version_is_refused(db: Postgres) -> None:
    with pytest.raises(DatabaseError, match="cannot go from PostgreSQL 17 to 18"):
        db.run(db.database.modify(dataclasses.replace(db.spec, engine_version="18")))
    with pytest.raises(DatabaseError, match=r"no PostgreSQL 99 .* 17\."):
        pg_installed.binaries("99")
    version = db.database.primary.data / "PG_VERSION"
    db.stop()
    version.write_text("16\n")
    with pytest.raises(DatabaseError, match="is of PostgreSQL 16"):
        db.start()
    version.write_text("17\n")
    db.start()


def test_a_parameter_that_it_does_not_know_is_named(db: Postgres) -> None:
    bad = dataclasses.replace(db.spec, parameters=(("work_mem", "much", "pending-reboot"),))
    db.run(db.database.modify(bad))
    with pytest.raises(DatabaseError, match='invalid value for parameter "work_mem": "much"'):
        db.run(db.database.reboot())
    assert db.database.status == "failed"
    db.run(db.database.modify(db.spec))
    db.stop()
    db.start()
    assert db.database.status == "available"


def test_psql_for_people(db: Postgres, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as people:
        people.setenv("PGSERVICE", "another")
        people.setenv("LESS", "of people")
        argv, env = psql(HOST, db.port, "master", "app", db.ca, db.password, "-Atc", "SELECT 1 + 1")
    assert db.password not in " ".join(argv)
    assert env["LESS"] == "of people"
    found = db.run(_output(argv, env))
    assert found == "2\n"


async def _output(argv: list[str], env: dict[str, str]) -> str:
    made = await asyncio.create_subprocess_exec(*argv, env=env, stdout=asyncio.subprocess.PIPE)
    return (await made.communicate())[0].decode()


def test_below_a_deep_folder(tmp_path: Path) -> None:
    with tempfile.TemporaryDirectory(suffix="x" * 100) as folder:
        db = Postgres(Path(folder), HOST)
        sockets = db.database.primary.socket.parent
        try:
            assert db.execute("SELECT 1") == [(1,)]
            db.run(db.database.delete())
            assert not sockets.exists()
            sockets.symlink_to(tmp_path)  # somebody else was there first
            with pytest.raises(DatabaseError, match="is not PostgreSQL's: delete it"):
                db.run(db.run(db._made(Authority(db.ca.parent), db.database.snapshots)).start("x"))
        finally:
            sockets.unlink(missing_ok=True)
            db.close()


def test_a_failover_loses_nothing() -> None:
    with made(multi_az=True) as db:
        db.execute("CREATE TABLE visits (id uuid PRIMARY KEY)")
        until(lambda: db.database.standby)
        port = db.port
        with writing(db) as acknowledged:
            for move in (db.database.failover, db.database.crash):
                first = db.database.primary.name
                more(acknowledged)
                db.run(move())  # it fails, and the standby takes over, without being asked to
                until(lambda: db.database.primary.name != first)  # noqa: B023
                until(lambda: db.database.standby)
            # A standby that dies or hangs keeps nobody from writing for long.
            for by in (signal.SIGKILL, signal.SIGSTOP):
                standby = db.database._other.process
                assert standby
                children = db.run(pg_installed.output("pgrep", "-P", str(standby.pid))).split()
                for each in (standby.pid, *map(int, children)):
                    os.kill(each, by)
                more(acknowledged)
                until(lambda: db.database.standby and db.database._other.process is not standby)  # noqa: B023
        assert acknowledged <= visits(db)
        assert (db.port, db.database.status) == (port, "available")
        db.run(db.database.modify(dataclasses.replace(db.spec, multi_az=False)))
        with pytest.raises(DatabaseError, match="not registered"):
            db.run(db.database.failover())
        assert acknowledged <= visits(db)


def test_certificates_are_renewed_before_they_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    path = Authority(tmp_path).issue("a.example", "127.0.0.1")
    text = path.read_text()
    assert Authority(tmp_path).issue("a.example", "127.0.0.1").read_text() == text
    assert Authority(tmp_path).issue("a.example").read_text() != text  # other names
    (tmp_path / "authority.pem").unlink()
    again = Authority(tmp_path).issue("a.example").read_bytes()
    found = x509.load_pem_x509_certificate(again)
    found.verify_directly_issued_by(
        x509.load_pem_x509_certificate((tmp_path / "ca.pem").read_bytes())
    )
    monkeypatch.setattr(certificates, "DAYS", 271)  # of which more than two thirds are over
    assert Authority(tmp_path).issue("a.example").read_bytes() != again


def test_a_relay_closes_while_a_client_is_in_its_handshake(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(relay_module, "CLOSE_SECONDS", 0.2)  # the client never says goodbye

    async def closed() -> int:
        relay = Relay(("a.example",), Authority(tmp_path), lambda *_: True, never_by_token)
        await relay.open("127.0.0.1", 0)
        reader, writer = await asyncio.open_connection("127.0.0.1", relay.port)
        writer.write(struct.pack("!II", 8, SSL_REQUEST))
        assert await reader.readexactly(1) == b"S"
        await asyncio.sleep(0.1)  # the handshake waits for the client, which says nothing
        await asyncio.wait_for(relay.close(), HANG_SECONDS)
        writer.close()
        return relay.connections

    async def never_by_token(user: str) -> bool:
        return False

    assert asyncio.run(closed()) == 0
