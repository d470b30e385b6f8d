"""A database of the web environment for tests, without the rest of it."""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import os
import secrets
import signal
import subprocess
import threading
from collections import Counter
from collections.abc import Coroutine
from pathlib import Path
from typing import Any, TypeVar

import psycopg
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

import tap_stack
from taplocal.web.certificates import Authority
from taplocal.web.postgres import Database, Snapshots, Spec
from taplocal.web.processes import Processes
from taplocal.web.tokens import Token

SECRET_KEY = "local"  # of the roles in tests
T = TypeVar("T")


class Postgres:
    """A database below a folder, whose loop runs in a thread; `ca` is what clients must trust.

    `host` is its name in the certificate.
    """

    def __init__(
        self,
        folder: Path,
        host: str = "localhost",
        address: str = "127.0.0.1",
        port: int = 0,
        **changes: Any,
    ):
        folder.chmod(0o711)
        self.host, self.address, self.password = host, address, secrets.token_hex(8)
        self.secret_key, self.users, self.events = SECRET_KEY, Counter[str](), list[str]()
        authority = Authority(folder / "authority")
        self.ca = authority.ca
        self.spec = Spec(
            identifier=folder.name,
            folder=folder / "database",
            host=host,
            address=address,
            port=port,
            database=tap_stack.DATABASE_NAME,
            **changes,
        )
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self.thread.start()
        self.processes = Processes(folder)
        self.database = self.run(self._made(authority, Snapshots(folder / "snapshots")))
        self.start()

    async def _made(self, authority: Authority, snapshots: Snapshots) -> Database:
        return Database(
            self.spec,
            processes=self.processes,
            authority=authority,
            snapshots=snapshots,
            verify=self._verify,
            event=self.events.append,
        )

    def _verify(self, address: str, user: str, token: str) -> bool:
        self.users[user] += 1
        return Token.parse(token).signed_with(self.secret_key)

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """What a coroutine returns."""
        return asyncio.run_coroutine_threadsafe(work, self.loop).result()

    @property
    def port(self) -> int:
        return self.database.port

    def start(self) -> None:
        """Starts it and waits until it answers."""
        self.run(self.database.start(self.password))

    def stop(self) -> None:
        """Stops it: from now on it refuses."""
        self.run(self.database.stop())

    def close(self) -> None:
        """Ends it for good."""
        self.stop()
        self.run(self.processes.close())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join()
        self.loop.close()

    def freeze(self, by: int = signal.SIGSTOP) -> None:
        """Stops all its processes where they are; connections stay open, and nothing answers."""
        process = self.database.primary.process
        assert process
        listed = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, check=True)
        for each in (process.pid, *map(int, listed.stdout.split())):
            with contextlib.suppress(ProcessLookupError):  # a connection that has ended meanwhile
                os.kill(each, by)

    def execute(self, statement: str, **changes: Any) -> list[Any]:
        """Runs a statement as the master, whose password is `password`."""
        arguments = {**self.connection_arguments(), "sslmode": "verify-full", **changes}
        with psycopg.connect(**arguments, autocommit=True) as connection:
            cursor = connection.execute(statement)
            return cursor.fetchall() if cursor.description else []

    def as_owner(self, statement: str) -> list[Any]:
        """Runs a statement as the superuser, whom only the owner of the data can be."""
        at = self.database.primary
        return self.execute(
            statement, host=str(at.socket.parent), hostaddr="", port=at.port, user="rdsadmin"
        )

    def connection_arguments(self) -> dict[str, Any]:
        """What a client needs to know."""
        return {
            "host": self.host,
            "hostaddr": self.address,
            "port": self.port,
            "dbname": tap_stack.DATABASE_NAME,
            "user": "master",
            "password": self.password,
            "sslrootcert": str(self.ca),
        }


def pem(key: Any) -> bytes:
    """A private key as a file has it."""
    kind = serialization.PrivateFormat.PKCS8
    return bytes(key.private_bytes(serialization.Encoding.PEM, kind, serialization.NoEncryption()))


def certificate(
    name: str,
    issuer: x509.Certificate | None,
    issuer_key: Any,
    *more: str,
    serial: int | None = None,
) -> tuple[x509.Certificate, Any]:
    """A certificate for a host, or without an issuer an authority's own, and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.datetime.now(datetime.UTC)
    names = x509.SubjectAlternativeName([x509.DNSName(each) for each in (name, *more)])
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer.subject if issuer else subject)
        .public_key(key.public_key())
        .serial_number(serial or x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=2))
        .add_extension(x509.BasicConstraints(ca=issuer is None, path_length=None), critical=True)
    )
    if issuer:
        builder = builder.add_extension(names, critical=False)
    return builder.sign(issuer_key or key, hashes.SHA256()), key


__all__ = ["SECRET_KEY", "Postgres", "certificate", "pem"]
