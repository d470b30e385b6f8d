"""A PostgreSQL of the tests' own, Debian's or any on the PATH, that takes nobody without TLS."""

from __future__ import annotations

import datetime
import os
import secrets
import shutil
import socket
import subprocess
from pathlib import Path
from typing import Any

import psycopg
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

SECONDS = 60  # a guard against hanging
NOBODY = 65_534  # PostgreSQL refuses to run as root


def binaries() -> Path | None:
    """Where PostgreSQL's programs are, if they are."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    on_path = shutil.which("initdb")
    return Path(on_path or found[-1]).parent if on_path or found else None


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Postgres:
    """One server below a folder; `ca` is the certificate that clients must trust."""

    def __init__(self, folder: Path):
        found = binaries()
        assert found
        self.bin, self.folder, self.port = found, folder, free_port()
        self.data, self.ca = folder / "data", folder / "ca.pem"
        self.password = secrets.token_hex(8)
        self.user: Any = {"user": NOBODY, "group": NOBODY} if os.geteuid() == 0 else {}
        self._certificates()
        (folder / "password").write_text(self.password)
        self._give_away()
        self._run(
            "initdb",
            "-D",
            str(self.data),
            "-U",
            "master",
            "-A",
            "scram-sha-256",
            f"--pwfile={folder / 'password'}",
            "-E",
            "UTF8",
        )
        settings = {
            "listen_addresses": "127.0.0.1",
            "port": self.port,
            "unix_socket_directories": "",
            "ssl": "on",
            "ssl_cert_file": folder / "server.pem",
            "ssl_key_file": folder / "server.key",
            "max_connections": 60,
            "fsync": "off",
        }
        lines = "".join(f"{key} = '{value}'\n" for key, value in settings.items())
        with (self.data / "postgresql.conf").open("a") as file:
            file.write(lines)
        # As with rds.force_ssl: whoever comes without TLS is refused.
        (self.data / "pg_hba.conf").write_text("hostssl all all 127.0.0.1/32 scram-sha-256\n")
        self.start()

    def start(self) -> None:
        """Starts it and waits until it answers."""
        log = str(self.folder / "log")
        self._run("pg_ctl", "-D", str(self.data), "-l", log, "-w", "-t", str(SECONDS), "start")

    def stop(self, mode: str = "immediate") -> None:
        """Stops it; `immediate` is a crash."""
        self._run("pg_ctl", "-D", str(self.data), "-m", mode, "-w", "stop")

    def execute(self, statement: str) -> list[Any]:
        """Runs a statement as the master, whose password is `password`."""
        with psycopg.connect(
            **self.connection_arguments(), sslmode="verify-full", autocommit=True
        ) as connection:
            cursor = connection.execute(statement)
            return cursor.fetchall() if cursor.description else []

    def connection_arguments(self) -> dict[str, Any]:
        """What a client needs to know."""
        return {
            "host": "localhost",
            "port": self.port,
            "dbname": "postgres",
            "user": "master",
            "password": self.password,
            "sslrootcert": str(self.ca),
        }

    def _run(self, program: str, *arguments: str) -> None:
        command = [str(self.bin / program), *arguments]
        subprocess.run(
            command,
            cwd=self.folder,
            check=True,
            timeout=SECONDS,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            **self.user,
        )

    def _certificates(self) -> None:
        authority, key = certificate("tests' authority", None, None)
        self.ca.write_bytes(authority.public_bytes(serialization.Encoding.PEM))
        server, server_key = certificate("localhost", authority, key)
        (self.folder / "server.pem").write_bytes(server.public_bytes(serialization.Encoding.PEM))
        (self.folder / "server.key").write_bytes(
            server_key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.NoEncryption(),
            )
        )
        (self.folder / "server.key").chmod(0o600)

    def _give_away(self) -> None:
        if self.user:
            for each in (self.folder, *self.folder.iterdir()):
                os.chown(each, NOBODY, NOBODY)


def certificate(
    name: str, issuer: x509.Certificate | None, issuer_key: Any, serial: int | None = None
) -> tuple[x509.Certificate, Any]:
    """A certificate for a host, or without an issuer an authority's own, and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.datetime.now(datetime.UTC)
    names = x509.SubjectAlternativeName([x509.DNSName(name)])
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


__all__ = ["Postgres", "binaries", "certificate", "free_port"]
