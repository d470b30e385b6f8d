"""The supervisor's decisions: what it makes of what is wanted, and in which order."""

from __future__ import annotations

import asyncio
import http.server
import json
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
from ministack.core.responses import request_scope
from ministack.services import ec2

from taplocal.server import web as records
from taplocal.web import pg_installed
from taplocal.web.pg_installed import DatabaseError, nearest
from taplocal.web.postgres import Database, Spec
from taplocal.web.registered import FixedResponse, Forward, Redirect
from taplocal.web.supervisor import Emulator, Server, Supervisor, action_of, complete

HANG_SECONDS = 30
SPEC = Spec(identifier="db", folder=Path("/none"), host="db.local")


class Recorder:
    """Takes note of a database's operations instead of doing them."""

    def __init__(self) -> None:
        self.spec, self.status, self.port, self.done = SPEC, "available", 5432, list[Any]()

    def __getattr__(self, name: str) -> Any:
        async def operation(*given: Any, **named: Any) -> None:
            self.done.append((name, *given, *named))
            if "bad" in given:
                raise DatabaseError("it is bad")
            if name == "modify":
                self.spec = given[0]

        return operation


def wanted(**changes: Any) -> dict[str, Any]:
    return {"tasks": [], "wish": "available", "password": "p", "snapshot": "", **changes}


def followed(server: Server, told: Mapping[str, Any], spec: Spec = SPEC) -> list[Any]:
    """What the database had to do until nothing was due."""

    async def follow() -> None:
        before = object()
        while server.work is not before:  # a look that begins nothing
            before = server.work
            server.look(dict(told), spec)
            if server.work:
                await server.work

    database = cast(Recorder, server.database)
    database.done.clear()
    asyncio.run(follow())
    return list(database.done)


@pytest.fixture
def server() -> Server:
    found = Server(cast(Database, Recorder()))
    assert followed(found, wanted()) == [("start", "p")]
    return found


def task(kind: str, **more: Any) -> dict[str, Any]:
    return {"id": kind, "kind": kind, **more}


def test_a_database_does_one_thing_after_the_other(server: Server) -> None:
    tasks = [
        task("modify"),
        task("snapshot", snapshot="arn:snapshot:daily"),
        task("restore", snapshot="arn:snapshot:daily"),
        task("failover"),
        task("rotate", password="q"),
    ]
    spec = replace(SPEC, multi_az=True)
    assert followed(server, wanted(tasks=tasks, password="q"), spec) == [
        ("modify", spec),
        ("in_step",),
        ("snapshot", "daily"),
        ("restore", "daily", "p"),
        ("reboot", "failover"),
        ("set_password", "q"),
    ]
    assert server.report()["done"] == dict.fromkeys((each["id"] for each in tasks), "")
    assert followed(server, wanted(wish="stopped", password="q"), spec) == [("stop",)]
    assert server.report()["done"] == {}  # the records have them
    assert followed(server, wanted(password="q"), spec) == [("start", "q")]


def test_a_task_that_fails_is_told_and_the_next_one_is_done(server: Server) -> None:
    tasks = [task("restore", snapshot="arn:snapshot:bad"), task("reboot")]
    assert followed(server, wanted(tasks=tasks)) == [("restore", "bad", "p"), ("reboot",)]
    assert server.report()["done"] == {"restore": "it is bad", "reboot": ""}
    assert server.report()["status"] == "available"


def test_a_new_database_may_begin_with_a_snapshot() -> None:
    new = Server(cast(Database, Recorder()))
    assert followed(new, wanted(snapshot="arn:snapshot:daily")) == [("restore", "daily", "p")]
    broken = Server(cast(Database, Recorder()))
    assert followed(broken, wanted(password="bad")) == [("start", "bad")]
    assert broken.report()["status"] == "failed"


def test_what_runs_the_environment_starts_with_its_network() -> None:
    with request_scope("000000000000", "eu-north-1"):
        ec2._vpcs["vpc-default"] = {"IsDefault": True}
        assert not records.networks()
        ec2._vpcs["vpc-own"] = {"IsDefault": False}
        assert records.networks()
        ec2._vpcs.clear()


def test_a_template_is_told_once_and_again_when_it_changes() -> None:
    data = {"UserData": "x" * 14_000, "Role": "web"}

    def exchange(known: Any, **templates: Any) -> tuple[Any, Any]:
        groups = {"web": {"Templates": dict(templates)}}
        new = records.unknown(groups.values(), known)
        told = json.loads(json.dumps({"eu-west-1": {"groups": groups, "templates": new}}))
        known = complete(told, known)
        assert told["eu-west-1"]["groups"]["web"]["Templates"] == templates
        return known, new

    known, told = exchange({}, **{"1": data})
    assert list(told.values()) == [data]
    known, told = exchange(known, **{"1": data})
    assert told == {}
    other = {**data, "Role": "other"}
    known, told = exchange(known, **{"1": other, "2": data})
    assert list(told.values()) == [other]
    known, told = exchange(known, **{"1": other})
    assert list(known.values()) == [other]  # what no group has is forgotten


def test_a_listener_does_what_is_registered() -> None:
    assert action_of({"Type": "forward", "TargetGroupArn": "arn"}) == Forward("arn")
    fixed = {"StatusCode": "404", "ContentType": "text/plain", "MessageBody": "no"}
    answer = action_of({"Type": "fixed-response", "FixedResponseConfig": fixed})
    assert answer == FixedResponse(404, "text/plain", "no")
    config = {"Protocol": "HTTPS", "Port": "443", "StatusCode": "HTTP_301"}
    redirect = action_of({"Type": "redirect", "RedirectConfig": config})
    assert redirect == Redirect("HTTPS", port="443", status=301)


@contextmanager
def emulator(answer: bytes) -> Iterator[str]:
    """An emulator that gives one answer to each exchange; its URL."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *_: Any) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@contextmanager
def supervised(folder: Path, answer: bytes) -> Iterator[subprocess.Popen[str]]:
    """The supervisor's process, whose emulator answers so; its lifeline stays open."""
    with emulator(answer) as url:
        process = subprocess.Popen(
            [sys.executable, "-P", str(records.PROGRAM)],
            cwd=folder,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        assert process.stdin
        process.stdin.write(json.dumps({"url": url, "access_key": "a", "secret_key": "s"}) + "\n")
        process.stdin.flush()
        try:
            yield process
        finally:
            process.kill()
            process.communicate()


def test_an_exception_ends_the_process_and_is_in_its_log(tmp_path: Path) -> None:
    with supervised(tmp_path, b'{"eu-west-1": {"nothing": 1}}') as process:
        assert process.wait(HANG_SECONDS) == 1
        assert process.stdout
        assert "KeyError: 'groups'" in process.stdout.read()


def test_it_ends_with_the_emulator(tmp_path: Path) -> None:
    with supervised(tmp_path, b"{}") as process:
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(2)
        assert "the emulator has ended" in process.communicate(timeout=HANG_SECONDS)[0]
        assert process.returncode == 0


def test_a_machine_without_postgresql_says_so_when_a_database_starts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(pg_installed, "_places", list)
    for cached in (pg_installed.binaries, nearest):
        monkeypatch.setattr(pg_installed, cached.__name__, cached.__wrapped__)
    found = pg_installed.nearest("18.1")
    with pytest.raises(
        DatabaseError, match="There is no PostgreSQL 17 on this machine, only: none"
    ):
        pg_installed.binaries(found)


def test_an_instance_starts_although_its_target_group_was_deleted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    supervisor = Supervisor(Emulator("http://127.0.0.1:1", "a", "s"))
    group = {"TargetGroupARNs": ["arn:deleted"]}
    of_region = {"databases": {"instances": {}}, "groups": {"web": group}, "target_groups": []}
    supervisor.last = {"eu-west-1": of_region}
    data = {"UserData": "", "Role": "web"}
    made = supervisor._instance("eu-west-1", "web", "i-1", data, "eu-west-1a")
    assert made.launched.target_port == 8080
