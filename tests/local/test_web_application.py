"""The web application as its instances run it: gunicorn, a real PostgreSQL with TLS, a real secret."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest

import tap_stack
from taplocal import access
from taplocal.access import Response
from taplocal.errors import TapLocalError
from taplocal.session import Session
from taplocal.web import free_port
from tests.local.postgres import Postgres, certificate

LONGEST = tap_stack.DATABASE_SECONDS + tap_stack.CONNECT_TIMEOUT_SECONDS + 4


@pytest.fixture(scope="module")
def postgres(deployed: Session) -> Iterator[Postgres]:
    """A server that runs for the tests of this file."""
    with tempfile.TemporaryDirectory() as folder:  # pytest's own only its user may enter
        created = Postgres(Path(folder))
        created.secret_key = deployed.cloud.emulator.secret_key
        yield created
        created.close()


class Application:
    """Gunicorn with the options of the instances, on the bundle that they get."""

    def __init__(self, deployed: Session, postgres: Postgres, folder: Path, **changes: str):
        self.port, self.secrets = free_port(), deployed.cloud.client("secretsmanager")
        self.postgres, self.password = postgres, postgres.password
        self.name = f"web-{uuid.uuid4().hex[:8]}"
        self.arn = self.secrets.create_secret(Name=self.name, SecretString=self.secret())["ARN"]
        source = tap_stack.bundle(tap_stack.web, tap_stack.run_command, tap_stack.INSTANCE_MODULES)
        (folder / "index.py").write_text(source)
        self.environment = {
            "PATH": os.environ["PATH"],
            **deployed.cloud.emulator.environment(deployed.cloud.region),
            "SECRET_ARN": self.arn,
            "DATABASE_HOST": "localhost",
            "DATABASE_PORT": str(postgres.port),
            "DATABASE_NAME": tap_stack.DATABASE_NAME,
            "DATABASE_CA": str(postgres.ca),
            "DATABASE_TOKEN": str(folder / "token"),
            **changes,
        }
        if not changes:
            self.run(folder, "migrate")
        token = self.run(folder, "token")
        Path(self.environment["DATABASE_TOKEN"]).write_text(token)
        script = tap_stack.text_beside("scripts/web.sh")
        (line,) = re.findall(r"bin/gunicorn (.+?) \\?\s*index:web", script, re.DOTALL)
        options = line.replace("\\\n", " ").replace("0.0.0.0:@web_port@", f"127.0.0.1:{self.port}")
        self.process = subprocess.Popen(
            [sys.executable, "-m", "gunicorn", *options.split(), "index:web"],
            cwd=folder,
            env=self.environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        self.until(lambda: self.get("/healthz").status == 200)

    def run(self, folder: Path, command: str) -> str:
        """What a command prints that an instance runs as root."""
        argv = [sys.executable, "index.py", command]
        environment = self.environment
        ran = subprocess.run(argv, cwd=folder, env=environment, check=True, timeout=60, stdout=-1)
        return ran.stdout.decode()

    def secret(self) -> str:
        """The master's user and password, as RDS has them in the secret."""
        return json.dumps({"username": "master", "password": self.postgres.password})

    def get(self, path: str, method: str = "GET") -> Response:
        """One request."""
        return access.request(method, f"http://127.0.0.1:{self.port}{path}")

    @staticmethod
    def until(look: Callable[[], bool]) -> None:
        """Waits until something is so."""
        deadline = time.monotonic() + 60
        while True:
            try:
                if look():
                    return
            except TapLocalError:
                pass  # it does not listen yet
            assert time.monotonic() < deadline, "it never came"
            time.sleep(0.1)

    def stop(self) -> None:
        """Ends it."""
        self.process.terminate()
        self.process.wait(60)


@pytest.fixture(scope="module")
def web(
    deployed: Session, postgres: Postgres, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Application]:
    """The application, running."""
    created = Application(deployed, postgres, tmp_path_factory.mktemp("web"))
    yield created
    created.stop()


@contextmanager
def load(web: Application, clients: int = 6) -> Iterator[dict[str, Any]]:
    """Visits by several clients, each tried again once after a moment if it fails."""
    results: dict[str, Any] = {"statuses": Counter(), "longest": 0.0, "visits": set(), "lost": []}
    stop, lock = threading.Event(), threading.Lock()

    def client() -> None:
        while not stop.is_set():
            visit, started = str(uuid.uuid4()), time.monotonic()
            status = web.get(f"/visits/{visit}", "PUT").status
            seconds = time.monotonic() - started
            if status != 200:
                time.sleep(1)
                again = web.get(f"/visits/{visit}", "PUT").status
                results["lost"] += [again] if again != 200 else []
            with lock:
                results["statuses"][status] += 1
                results["longest"] = max(results["longest"], seconds)
                results["visits"].add(visit)

    threads = [threading.Thread(target=client) for _ in range(clients)]
    for each in threads:
        each.start()
    try:
        yield results
    finally:
        stop.set()
        for each in threads:
            each.join()


def recorded(postgres: Postgres, visits: set[str]) -> set[str]:
    return {str(row[0]) for row in postgres.execute("SELECT id FROM visits")} & visits


def test_it_serves_its_pages(web: Application) -> None:
    assert web.get("/readyz").json() == {"status": "ready"}
    before = web.get("/visits").json()["visits"]
    visit = uuid.uuid4()
    for _ in range(2):  # the second changes nothing
        assert web.get(f"/visits/{visit}", "PUT").status == 200
    assert web.get("/visits").json()["visits"] == before + 1
    page = web.get("/")
    assert f"{before + 1} visits" in page.body
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    assert web.get("/visits/%27;DROP%20TABLE%20visits", "PUT").status in (400, 404)
    assert web.get("/nothing").status == 404
    assert web.get("/visits", "POST").status == 405


def test_nobody_comes_without_tls(postgres: Postgres) -> None:
    with pytest.raises(psycopg.OperationalError, match="no encryption"):
        psycopg.connect(**postgres.connection_arguments(), sslmode="disable")


@pytest.mark.parametrize("wrong", ["ca", "host"])
def test_it_believes_no_other_server(
    deployed: Session, postgres: Postgres, tmp_path: Path, wrong: str
) -> None:
    other = tmp_path / "other.pem"
    from cryptography.hazmat.primitives.serialization import Encoding

    other.write_bytes(certificate("other", None, None)[0].public_bytes(Encoding.PEM))
    changes = {"ca": {"DATABASE_CA": str(other)}, "host": {"DATABASE_HOST": "127.0.0.1"}}[wrong]
    web = Application(deployed, postgres, tmp_path, **changes)
    try:
        response = web.get("/readyz")
        assert (response.status, response.headers["retry-after"]) == (503, "1")
        assert "certificate" not in response.body  # the log has it, the caller does not
    finally:
        web.stop()


def test_a_crash_of_the_database_under_load_loses_nothing(
    web: Application, postgres: Postgres
) -> None:
    with load(web) as results:
        time.sleep(1)
        postgres.run(postgres.database.crash())
        time.sleep(3)
    assert results["lost"] == []
    assert results["statuses"][200] > 50
    assert set(results["statuses"]) <= {200, 503}
    assert results["longest"] < LONGEST
    assert recorded(postgres, results["visits"]) == results["visits"]


def test_it_comes_as_a_role_of_its_own_that_may_do_no_more_than_it_does(
    web: Application, postgres: Postgres
) -> None:
    with load(web) as results:
        time.sleep(0.5)
        # The master's password is rotated, and no secret has the new one: nobody notices.
        postgres.password = uuid.uuid4().hex
        postgres.run(postgres.database.set_password(postgres.password))
        others = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'app'"
        assert len(postgres.execute(others)) > 0
        time.sleep(1)
    assert set(results["statuses"]) == {200}
    assert results["longest"] < LONGEST
    assert recorded(postgres, results["visits"]) == results["visits"]
    assert set(postgres.users) == {"app"}
    for forbidden in ("DELETE FROM visits", "CREATE TABLE more ()", "SELECT * FROM pg_authid"):
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            postgres.as_owner(f"SET ROLE app; {forbidden}")


def test_a_token_of_another_key_is_refused(deployed: Session, postgres: Postgres, tmp_path: Path) -> None:  # fmt: skip
    web = Application(deployed, postgres, tmp_path, AWS_SECRET_ACCESS_KEY="another")
    try:
        assert web.get("/readyz").status == 503
    finally:
        web.stop()


@pytest.mark.parametrize("hangs", [False, True])
def test_health_never_fails_while_many_clients_wait_for_a_database_that_is_down(
    web: Application, postgres: Postgres, hangs: bool
) -> None:
    with load(web, clients=60) as results:
        time.sleep(1)
        postgres.freeze() if hangs else postgres.stop()
        started, longest = time.monotonic(), 0.0
        while time.monotonic() < started + 15:
            asked = time.monotonic()
            assert web.get("/healthz").status == 200
            longest = max(longest, time.monotonic() - asked)
            time.sleep(0.2)
        postgres.freeze(signal.SIGCONT) if hangs else postgres.start()
        web.until(lambda: web.get("/readyz").status == 200)
        web.until(lambda: web.get("/readyz").status == 200)
    assert longest < 5  # the load balancer's patience
    assert set(results["statuses"]) <= {200, 503}


def test_without_a_database_it_lives_and_says_so_in_time(
    web: Application, postgres: Postgres
) -> None:
    postgres.stop()
    try:
        started = time.monotonic()
        response = web.get("/readyz")
        assert (response.status, response.headers["retry-after"]) == (503, "1")
        assert time.monotonic() - started < LONGEST
        assert web.get("/healthz").status == 200  # or all instances would be replaced
    finally:
        postgres.start()
    web.until(lambda: web.get("/readyz").status == 200)
