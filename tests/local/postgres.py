"""A PostgreSQL of the tests' own, Debian's or any on the PATH, that takes nobody without TLS.

As on RDS, members of `rds_iam` come with a token of IAM: `Tokens` verifies its signature.
"""

from __future__ import annotations

import contextlib
import datetime
import os
import secrets
import shutil
import signal
import socket
import subprocess
import threading
from collections import Counter
from hashlib import sha256
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

import psycopg
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

import tap_stack

SECONDS = 60  # a guard against hanging
SECRET_KEY = "local"  # of the roles in tests
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
    """One server below a folder; `ca` is the certificate that clients must trust.

    `host` is its name in the certificate.
    """

    def __init__(
        self,
        folder: Path,
        host: str = "localhost",
        address: str = "127.0.0.1",
        port: int = 0,
    ):
        found = binaries()
        assert found
        self.bin, self.folder, self.port = found, folder, port or free_port()
        self.host, self.address = host, address
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
            "listen_addresses": address,
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
        self.tokens = Tokens(self.host, self.port)
        # As with rds.force_ssl: whoever comes without TLS is refused.
        (self.data / "pg_hba.conf").write_text(
            f'hostssl all +rds_iam all ldap ldapserver=127.0.0.1 ldapport={self.tokens.port} ldapprefix="user="\n'
            "hostssl all all all scram-sha-256\n"
        )
        self.start()
        self.execute(f"CREATE DATABASE {tap_stack.DATABASE_NAME}", dbname="postgres")
        self.execute("CREATE ROLE rds_iam")

    def start(self) -> None:
        """Starts it and waits until it answers."""
        log = str(self.folder / "log")
        self._run("pg_ctl", "-D", str(self.data), "-l", log, "-w", "-t", str(SECONDS), "start")

    def close(self) -> None:
        """Ends it for good."""
        self.stop()
        self.tokens.close()

    def stop(self, mode: str = "immediate") -> None:
        """Stops it; `immediate` is a crash."""
        self._run("pg_ctl", "-D", str(self.data), "-m", mode, "-w", "stop")

    def freeze(self, by: int = signal.SIGSTOP) -> None:
        """Stops all its processes where they are; connections stay open, and nothing answers."""
        first = int((self.data / "postmaster.pid").read_text().split()[0])
        listed = subprocess.run(["pgrep", "-P", str(first)], capture_output=True, check=True)
        for each in (first, *map(int, listed.stdout.split())):
            with contextlib.suppress(ProcessLookupError):  # a connection that has ended meanwhile
                os.kill(each, by)

    def kill(self) -> None:
        """Ends it as a loss of power does: all processes at once."""
        self.freeze(signal.SIGKILL)
        (self.data / "postmaster.pid").unlink()  # or it would not start while its zombies are there

    def execute(self, statement: str, **changes: Any) -> list[Any]:
        """Runs a statement as the master, whose password is `password`."""
        arguments = {**self.connection_arguments(), "sslmode": "verify-full", **changes}
        with psycopg.connect(**arguments, autocommit=True) as connection:
            cursor = connection.execute(statement)
            return cursor.fetchall() if cursor.description else []

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
        server, server_key = certificate(self.host, authority, key)
        (self.folder / "server.pem").write_bytes(server.public_bytes(serialization.Encoding.PEM))
        (self.folder / "server.key").write_bytes(pem(server_key))
        (self.folder / "server.key").chmod(0o600)

    def _give_away(self) -> None:
        if self.user:
            for each in (self.folder, *self.folder.iterdir()):
                os.chown(each, NOBODY, NOBODY)


class Tokens:
    """Verifies tokens of IAM for PostgreSQL, which asks by a simple bind of LDAP (RFC 4511)."""

    secret_key = SECRET_KEY

    def __init__(self, host: str, port: int):
        self.address, self.users = f"{host}:{port}", Counter[str]()
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.port = self.socket.getsockname()[1]
        threading.Thread(target=self._serve, daemon=True).start()

    def close(self) -> None:
        """Verifies no more."""
        self.socket.close()

    def _serve(self) -> None:
        while True:
            try:
                asker, _ = self.socket.accept()
            except OSError:
                return
            with asker:
                if not (message := asker.recv(65_536)):
                    continue  # who asked has been killed
                number, name, token = bind_request(message)
                user = name.removeprefix("user=")
                self.users[user] += 1
                result = 0 if self._valid(user, token) else 49  # invalidCredentials
                asker.sendall(bytes([0x30, 12, 2, 1, number, 0x61, 7, 10, 1, result, 4, 0, 4, 0]))

    def _valid(self, user: str, token: str) -> bool:
        """Whether a token lets this user in here, signed with the key of the tests' roles."""
        address, _, query = token.partition("/?")
        signed, _, signature = query.partition("&X-Amz-Signature=")
        values = dict(parse_qsl(signed))
        scope = values["X-Amz-Credential"].partition("/")[2]
        request = f"GET\n/\n{'&'.join(sorted(signed.split('&')))}\nhost:{address}\n\nhost\n{sha256(b'').hexdigest()}"
        text = f"AWS4-HMAC-SHA256\n{values['X-Amz-Date']}\n{scope}\n{sha256(request.encode()).hexdigest()}"
        return (
            (address, values["Action"], values["DBUser"]) == (self.address, "connect", user)
            and scope.split("/")[2] == "rds-db"
            and signature == tap_stack.sign(text, self.secret_key, scope)
        )


def bind_request(message: bytes) -> tuple[int, str, str]:
    """Number, name and password of a simple bind."""

    def value(data: bytes) -> tuple[bytes, bytes]:
        """The first value of a BER encoding, and what follows it."""
        size, start = data[1], 2
        if size & 0x80:
            start += size & 0x7F
            size = int.from_bytes(data[2:start])
        return data[start : start + size], data[start + size :]

    envelope, _ = value(message)
    number, rest = value(envelope)
    bind, _ = value(rest)
    _, rest = value(bind)  # the version
    name, rest = value(rest)
    return int.from_bytes(number), name.decode(), value(rest)[0].decode()


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


__all__ = ["SECRET_KEY", "Postgres", "binaries", "certificate", "free_port", "pem"]
