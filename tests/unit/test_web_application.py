"""The application of web instances with a database that a test plays: what a caller gets."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from botocore.exceptions import ClientError

import tap_stack

UNAVAILABLE = ("503 Service Unavailable", {"error": "The database is unavailable."}, "1")
INTERNAL = ("500 Internal Server Error", {"error": "Internal error."}, None)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (psycopg.OperationalError("no route"), UNAVAILABLE),
        (ClientError({"Error": {}}, "GetSecretValue"), UNAVAILABLE),
        (ZeroDivisionError("of our own"), INTERNAL),
    ],
)
def test_only_an_outage_of_the_database_is_503(
    monkeypatch: pytest.MonkeyPatch, error: Exception, expected: Any
) -> None:
    def serve(_method: str, _path: str) -> Any:
        raise error

    told: list[Any] = []
    monkeypatch.setattr(tap_stack, "serve", serve)
    (content,) = tap_stack.web({"REQUEST_METHOD": "GET"}, lambda *x: told.append(x))
    ((status, headers),) = told
    assert (status, json.loads(content), dict(headers).get("Retry-After")) == expected


class Database:
    """What `psycopg.connect` reaches: counts visits, or is down for so many statements."""

    def __init__(self) -> None:
        self.visits = set[str]()
        self.statements: list[str] = []
        self.connected: list[dict[str, Any]] = []
        self.connections: list[Connection] = []
        self.failures = 0

    def connect(self, **how: Any) -> Connection:
        self.connected.append(how)
        self.connections.append(Connection(self))
        return self.connections[-1]


class Connection:
    """A connection and its cursor."""

    def __init__(self, database: Database):
        self.database, self.closed, self.rows = database, False, list[tuple[Any]]()

    def execute(self, statement: str, values: Any = ()) -> Connection:
        assert not self.closed, "a connection is used that was lost"
        self.database.statements.append(statement)
        if self.database.failures:
            self.database.failures -= 1
            raise psycopg.OperationalError("terminating connection")
        self.database.visits.update(values)
        self.rows = [(len(self.database.visits),)] if statement.startswith("SELECT") else []
        return self

    @property
    def description(self) -> Any:
        return self.rows or None

    def fetchall(self) -> list[tuple[Any]]:
        if not self.rows:
            raise psycopg.ProgrammingError("the last operation didn't produce records")
        return self.rows

    def close(self) -> None:
        self.closed = True

    def transaction(self) -> Connection:
        self.database.statements.append("BEGIN")
        return self

    def __enter__(self) -> Connection:
        return self

    def __exit__(self, *_: object) -> None:
        self.database.statements.append("END")


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """How long requests would have waited, without jitter; the clock moves by them alone."""
    made: list[float] = []
    monkeypatch.setattr(tap_stack, "jittered_pause", made.append)
    monkeypatch.setattr(time, "monotonic", lambda: sum(made))
    return made


@pytest.fixture
def database(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, pauses: list[float]
) -> Iterator[Database]:
    made, token = Database(), tmp_path / "token"
    token.write_text("the-token\n")
    monkeypatch.setattr(psycopg, "connect", made.connect)
    for name, value in {"HOST": "db", "PORT": "5432", "NAME": "app", "CA": "/ca.pem"}.items():
        monkeypatch.setenv(f"DATABASE_{name}", value)
    monkeypatch.setenv("DATABASE_TOKEN", str(token))
    monkeypatch.setattr(tap_stack, "_idle", [])
    yield made
    tap_stack._outage.clear()
    free = [tap_stack._free.acquire(blocking=False) for _ in range(tap_stack.CONNECTIONS)]
    for _ in free:
        tap_stack._free.release()
    assert all(free), "a connection was not given back"


def ask(method: str, path: str) -> tuple[str, dict[str, str], str]:
    """Status, headers and body of a request to the application."""
    told: list[Any] = []
    environ = {"REQUEST_METHOD": method, "PATH_INFO": path}
    (content,) = tap_stack.web(environ, lambda *x: told.append(x))
    ((status, headers),) = told
    return status, dict(headers), content.decode()


VISIT = "/visits/01a226fb-6eb5-711a-b4df-cb355c5670a7"


def test_a_visit_is_counted_once_however_often_it_is_repeated(database: Database) -> None:
    assert ask("GET", "/visits")[2] == '{"visits": 0}'
    for _ in range(2):
        status, headers, body = ask("PUT", VISIT)
        assert (status, body) == ("200 OK", json.dumps({"id": VISIT.removeprefix("/visits/")}))
        assert headers["Content-Type"] == "application/json"
    assert ask("GET", "/visits")[2] == '{"visits": 1}'
    status, headers, page = ask("GET", "/")
    assert "<p>1 visits." in page and headers["Content-Type"] == "text/html; charset=utf-8"
    assert headers["Content-Length"] == str(len(page))
    assert (headers["Cache-Control"], headers["X-Content-Type-Options"]) == ("no-store", "nosniff")
    status, length, nothing = ask("HEAD", "/")
    assert (status, length["Content-Length"], nothing) == ("200 OK", str(len(page)), "")
    assert len(database.connected) == 1, "one after the other, they share a connection"


@pytest.mark.parametrize(
    ("method", "path", "expected"),
    [
        ("GET", "/healthz", "200 OK"),
        ("HEAD", "/healthz", "200 OK"),
        ("GET", "/readyz", "200 OK"),
        ("POST", "/healthz", "405 Method Not Allowed"),
        ("PUT", "/readyz", "405 Method Not Allowed"),
        ("PUT", "/visits", "405 Method Not Allowed"),
        ("DELETE", "/", "405 Method Not Allowed"),
        ("GET", VISIT, "405 Method Not Allowed"),
        ("PUT", VISIT + "0", "404 Not Found"),
        ("PUT", VISIT.upper(), "404 Not Found"),
        ("GET", "/nothing", "404 Not Found"),
    ],
)
def test_what_a_request_gets(database: Database, method: str, path: str, expected: str) -> None:
    assert ask(method, path)[0] == expected
    assert database.statements == (["SELECT 1"] if path == "/readyz" and method == "GET" else [])


def test_a_connection_is_over_verified_tls_with_the_newest_token(database: Database) -> None:
    ask("GET", "/readyz")
    (how,) = database.connected
    assert how == {
        "host": "db",
        "port": 5432,
        "dbname": "app",
        "user": "app",
        "password": "the-token",
        "sslmode": "verify-full",
        "sslrootcert": "/ca.pem",
        "connect_timeout": 3,
        "tcp_user_timeout": 5_000,
        "options": "-c statement_timeout=5000",
        "autocommit": True,
    }


def test_a_lost_connection_is_replaced_with_all_idle_ones(
    database: Database, pauses: list[float]
) -> None:
    old = [Connection(database) for _ in range(3)]
    tap_stack._idle.extend(old)
    database.failures = 1
    assert ask("GET", "/visits")[0] == "200 OK"
    assert all(each.closed for each in old)
    assert tap_stack._idle == database.connections and len(database.connections) == 1
    assert pauses == [0.05] and not tap_stack._outage.is_set()


def test_a_request_goes_on_through_a_failover_and_then_gives_up(
    database: Database, pauses: list[float]
) -> None:
    database.failures = 5
    assert ask("GET", "/visits")[0] == "200 OK"
    assert pauses == [0.05, 0.1, 0.2, 0.4, 0.8]
    pauses.clear()
    database.failures = 1_000
    status, headers, _ = ask("GET", "/visits")
    assert (status, headers["Retry-After"]) == ("503 Service Unavailable", "1")
    assert pauses == [0.05, 0.1, 0.2, 0.4, 0.8, *[1.0] * 6]  # of 8 s
    assert tap_stack._outage.is_set()
    assert ask("GET", "/healthz")[0] == "200 OK", "the instance is not replaced for it"
    database.failures = 0
    assert ask("GET", "/visits")[0] == "200 OK" and not tap_stack._outage.is_set()


def test_in_an_outage_only_as_many_wait_as_there_are_connections(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits: list[float] = []

    class Busy:
        def acquire(self, timeout: float) -> bool:
            waits.append(timeout)
            return False

    monkeypatch.setattr(tap_stack, "_free", Busy())
    assert ask("GET", "/visits")[0] == "503 Service Unavailable"
    tap_stack._outage.set()
    assert ask("GET", "/visits")[0] == "503 Service Unavailable"
    monkeypatch.undo()
    assert (waits, database.statements) == ([1, 0], [])


def test_an_instance_without_a_token_is_unavailable(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATABASE_TOKEN", "/nothing/here")
    assert ask("GET", "/visits")[0] == "503 Service Unavailable"
    assert database.connected == []


class Services:
    """Secrets Manager and RDS."""

    def get_secret_value(self, SecretId: str) -> dict[str, str]:
        assert SecretId == "arn:master"
        return {"SecretString": json.dumps({"username": "master", "password": "m"})}

    def generate_db_auth_token(self, *of: Any) -> str:
        return f"token of {of}"


@pytest.mark.parametrize("argument", ["migrate", "token", "", "migrate now"])
def test_root_makes_the_table_as_master_and_prints_tokens(
    database: Database,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    argument: str,
) -> None:
    monkeypatch.setattr(tap_stack, "sdk_client", lambda _: Services())
    monkeypatch.setenv("SECRET_ARN", "arn:master")
    monkeypatch.setattr(sys, "argv", ["web.py", *argument.split()])
    tap_stack.run_command()
    printed = capsys.readouterr().out
    if argument == "migrate":
        (how,) = database.connected
        assert (how["user"], how["password"]) == ("master", "m")
        assert database.statements == ["BEGIN", *tap_stack.MIGRATIONS, "END", "END"]
        assert database.statements[1].startswith("SELECT pg_advisory_xact_lock")
    else:
        assert (database.connected, database.statements) == ([], [])
    assert printed == ("token of ('db', 5432, 'app')\n" if argument == "token" else "")
