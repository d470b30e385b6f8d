"""`taplocal dev`: what is saved is live, and what is wrong is deployed nowhere."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from taplocal import access, session
from taplocal.errors import TapLocalError
from taplocal.program import run
from taplocal.project import Project
from taplocal.recorder import Recorder
from taplocal.session import Session
from tests.local.conftest import ROOT, taplocal

PROGRAM = (
    "tap_stack.py content_types.py content_types.txt http_connection.py openapi.yaml "
    "requirements-web.txt Pulumi.yaml Pulumi.dev.yaml"
).split()
TITLE = '"not-found": (404, "Not Found")'  # of a response that needs no token
HANG_SECONDS = 60  # a guard against hanging, not a measure of speed
#: At once, or with the whole program if that was running when the file was saved; with what the
#: test before wrote back, if that run is still to come.
LIVE = r"^saved .*tap_stack\.py.*: api-items"
WORKERS = "ministack-lambda-tap-stack-api-"


def text(name: str) -> str:
    return (ROOT / name).read_text()


def titled(title: str) -> str:
    """The program with another title for a 404."""
    assert text("tap_stack.py").count(TITLE) == 1
    return text("tap_stack.py").replace(TITLE, f'"not-found": (404, "{title}")')


class Dev:
    """A `taplocal dev` on a copy of the program."""

    def __init__(self, folder: Path, *options: str):
        self.folder, self.log = folder, folder / "dev.log"
        for name in PROGRAM:
            shutil.copy(ROOT / name, folder)
        shutil.copytree(ROOT / "scripts", folder / "scripts")
        with self.log.open("w") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "taplocal", "dev", "--program", str(folder), "-c", 'systems=["api"]', *options],
                cwd=ROOT,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )  # fmt: skip
        self.wait("watching")

    def read(self) -> str:
        return self.log.read_text()

    def wait(self, pattern: str, after: int = 0) -> re.Match[str]:
        """Waits for a line since a place in the log."""
        deadline = time.monotonic() + HANG_SECONDS
        while not (found := re.compile(pattern, re.MULTILINE).search(self.read(), after)):
            assert self.process.poll() is None, self.read()
            assert time.monotonic() < deadline, self.read()[after:]
            time.sleep(0.02)
        return found

    def save(self, content: str, name: str = "tap_stack.py") -> int:
        """Saves a file; the place in the log before that."""
        before = len(self.read())
        (self.folder / name).write_text(content)
        return before

    def end(self) -> int:
        """The status that Ctrl-C ends it with."""
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGINT)
        return self.process.wait(HANG_SECONDS)

    def opened(self) -> Session:
        return session.opened(self.folder, "dev")

    def title(self) -> str:
        """The title that the API responds with now."""
        opened = self.opened()
        response = access.call(opened, "GET", "/items/none", access.machine_token(opened))
        assert response.status == 404, response
        return str(response.json()["title"])


@pytest.fixture(scope="module")
def dev(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Dev]:
    """One for all tests, each of which goes back to the original program."""
    folder = tmp_path_factory.mktemp("program")
    try:
        yield (found := Dev(folder))
        assert found.end() == 0
        assert "Traceback" not in found.read()
    finally:
        os.killpg(found.process.pid, signal.SIGKILL) if found.process.poll() is None else None
        taplocal("down", "--program", str(folder))


@pytest.fixture(autouse=True)
def original(dev: Dev) -> Iterator[None]:
    """The original program, before and after a test."""
    yield
    before = len(dev.read())
    for name in PROGRAM:
        (dev.folder / name).write_text(text(name))
    dev.wait(r"^saved .* in \d+ ms", before)
    eventually(lambda: up(dev).keys() == {"unchanged"}, dev)


def eventually(what: Callable[[], bool], dev: Dev) -> None:
    """Waits until something is true."""
    deadline = time.monotonic() + HANG_SECONDS
    while not what():
        assert time.monotonic() < deadline, dev.read()
        time.sleep(0.05)


def up(dev: Dev) -> dict[str, int]:
    """What `up` has to do: nothing, if all is as the program says. It waits for a run of `dev`."""
    deadline, config = time.monotonic() + HANG_SECONDS, {"systems": '["api"]'}
    while True:
        try:
            _, summary = session.up(
                dev.folder, "dev", config=config, say=print, report=lambda _: None
            )
            return summary.counts()
        except TapLocalError as error:
            assert "another taplocal command" in str(error)
            assert time.monotonic() < deadline


def test_a_function_is_live_before_the_program_runs(dev: Dev) -> None:
    versions = dev.opened().cloud.client("lambda").get_paginator("list_versions_by_function")
    found = versions.paginate(FunctionName="tap-stack-api-dev").build_full_result()["Versions"]
    before = dev.save(titled("Never Heard Of"))
    dev.wait(r"^saved tap_stack\.py: api-items live in \d+ ms$", before)
    assert dev.title() == "Never Heard Of"
    now = versions.paginate(FunctionName="tap-stack-api-dev").build_full_result()["Versions"]
    assert len(now) == len(found) + 1, "one version, which the run of the program finds there"


def test_a_setting_and_a_resource_are_live(dev: Dev) -> None:
    before = dev.save(
        text("Pulumi.dev.yaml") + "  tap-stack:log_retention_days: 30\n", "Pulumi.dev.yaml"
    )
    dev.wait(r"^saved .*Pulumi\.dev\.yaml.*: .*updated.* in \d+ ms$", before)
    logs = dev.opened().cloud.client("logs")
    name = "/aws/lambda/tap-stack-api-dev"
    (group,) = logs.describe_log_groups(logGroupNamePrefix=name)["logGroups"]
    assert group["retentionInDays"] == 30


def test_nothing_is_deployed_while_the_file_does_not_parse(dev: Dev) -> None:
    number = len(titled("Unseen").splitlines()) + 1
    before = dev.save(titled("Unseen") + "x = (\n")
    dev.wait(rf"^not deployed: tap_stack\.py:{number}\b", before)
    dev.wait(rf"^> +{number} x = \(\n", before)
    assert dev.title() == "Not Found"
    before = dev.save(titled("Seen"))
    dev.wait(LIVE, before)
    assert dev.title() == "Seen"


def test_an_undefined_name_is_found_with_its_line(dev: Dev) -> None:
    assert "undefined" not in text("tap_stack.py")
    changed = titled("Unseen").replace(
        'return f"{type(error).__name__}: {error}"', "return undefined(error)", 1
    )
    number = changed.splitlines().index("def format_error(error: BaseException) -> str:") + 1
    before = dev.save(changed)
    dev.wait(rf"^not deployed: tap_stack\.py:{number}\b", before)
    dev.wait("^format_error uses undefined, which tap_stack.py does not define", before)
    assert dev.title() == "Not Found"


def test_a_wrong_setting_is_shown_with_its_line(dev: Dev) -> None:
    number = len(text("Pulumi.dev.yaml").splitlines()) + 1
    before = dev.save(
        text("Pulumi.dev.yaml") + "  tap-stack:log_retention_days: 31\n", "Pulumi.dev.yaml"
    )
    dev.wait(rf"^not deployed: Pulumi\.dev\.yaml:{number}\b", before)
    assert dev.title() == "Not Found"


def test_an_error_of_aws_is_shown_with_the_line_of_the_resource(dev: Dev) -> None:
    lines = text("tap_stack.py").splitlines()
    (at,) = (n for n, line in enumerate(lines) if "message_retention_seconds=14 * 24" in line)
    number = max(n for n in range(at) if "aws.sqs.Queue(" in lines[n]) + 1
    lines[at] = lines[at].replace("14", "99")
    before = dev.save("\n".join(lines) + "\n")
    dev.wait(rf"^not deployed: tap_stack\.py:{number}\b", before)
    dev.wait("InvalidAttributeValue", before)
    assert dev.title() == "Not Found"


def test_a_version_that_fails_takes_no_request(dev: Dev) -> None:
    before = dev.save(
        titled("Unseen").replace("    response = dispatch(request)", "    raise KeyError(1)", 1)
    )
    dev.wait(r"^not deployed", before)
    dev.wait("failed its smoke test", before)
    assert dev.title() == "Not Found"


def test_the_last_of_quick_saves_is_deployed_however_an_editor_writes(dev: Dev) -> None:
    path, other = dev.folder / "tap_stack.py", dev.folder / "tap_stack.py.tmp"
    for number in range(12):
        if number % 3 == 0:  # in place
            path.write_text(titled(f"Save {number}"))
        elif number % 3 == 1:  # as many editors: another file takes the name
            other.write_text(titled(f"Save {number}"))
            other.replace(path)
        else:  # as git: the file is gone for a moment
            path.unlink()
            time.sleep(0.03)
            path.write_text(titled(f"Save {number}"))
        time.sleep(0.05 * (number % 5))
    eventually(lambda: dev.title() == "Save 11", dev)


def test_after_a_switch_of_branches_all_is_as_a_fresh_run_says(dev: Dev) -> None:
    branch = titled("Other Branch").replace(
        "message_retention_seconds=14 * 24 * 3600", "message_retention_seconds=13 * 24 * 3600"
    )
    before = dev.save(branch)
    dev.save(text("openapi.yaml").replace("title: ", "title: The "), "openapi.yaml")
    dev.save(text("Pulumi.dev.yaml") + "  tap-stack:log_retention_days: 30\n", "Pulumi.dev.yaml")
    dev.wait(r"^saved .* in \d+ ms", before)
    recorder = Recorder()
    run(Project.load(dev.folder, "dev", {"systems": '["api"]'}), recorder)
    code = {x.urn: x.inputs.get("code") for x in recorder.resources if x.custom}
    clear = ("messageRetentionSeconds", "retentionInDays")

    def same() -> bool:
        found = dev.opened().state.resources
        settled = {str(x.inputs[key]) for x in found.values() for key in clear if key in x.inputs}
        return (
            code == {urn: x.inputs.get("code") for urn, x in found.items()}
            and settled == {"30", str(13 * 24 * 3600)}
            and dev.opened().state.complete
        )

    eventually(same, dev)
    assert up(dev).keys() == {"unchanged"}
    assert dev.title() == "Other Branch"


def test_many_saves_leave_no_processes_behind(dev: Dev) -> None:
    for number in range(8):
        before = dev.save(titled(f"Title {number}"))
        dev.wait(LIVE, before)
        assert dev.title() == f"Title {number}"

    def left() -> int:
        shown = subprocess.run(
            ["/bin/ps", "-Aww", "-o", "command="], capture_output=True, text=True
        )
        return sum(str(dev.folder) in x and WORKERS in x for x in shown.stdout.splitlines())

    eventually(lambda: 1 <= left() <= 3, dev)  # the live version's, and those that requests are in


def test_requests_are_shown_with_the_line_of_an_error(dev: Dev) -> None:
    before = len(dev.read())
    dev.title()
    dev.wait(r'tap-stack-api-dev .*"status": 404', before)
    assert "release-probe" not in dev.read()[before:]
    assert "REPORT RequestId" not in dev.read()


def test_it_ends_with_the_process_that_started_it(tmp_path: Path) -> None:
    dev = Dev(tmp_path)
    try:
        mine = subprocess.run(
            ["/bin/ps", "-o", "pid=", "--ppid", str(dev.process.pid)],
            capture_output=True,
            text=True,
        )
        assert mine.stdout.split()
        dev.process.kill()
        dev.process.wait()
        group = ["/bin/ps", "-o", "pid=", "-g", str(dev.process.pid)]
        eventually(lambda: not subprocess.run(group, capture_output=True).stdout.split(), dev)
    finally:
        taplocal("down", "--program", str(tmp_path))


class Debugger:
    """An editor's side of the Debug Adapter Protocol."""

    def __init__(self, port: int):
        deadline = time.monotonic() + HANG_SECONDS
        while True:
            try:
                self.socket = socket.create_connection(("127.0.0.1", port), HANG_SECONDS)
                break
            except ConnectionRefusedError:
                assert time.monotonic() < deadline
                time.sleep(0.05)
        self.file, self.number = self.socket.makefile("rb"), 0

    def send(self, command: str, **arguments: Any) -> None:
        self.number += 1
        message = {
            "seq": self.number,
            "type": "request",
            "command": command,
            "arguments": arguments,
        }
        body = json.dumps(message).encode()
        self.socket.sendall(b"Content-Length: %d\r\n\r\n" % len(body) + body)

    def wait(self, kind: str, name: str) -> Any:
        """The body of the next event, or response, of this name."""
        while True:
            length = int(self.file.readline().split(b":")[1])
            assert self.file.readline() == b"\r\n"
            message = json.loads(self.file.read(length))
            if message["type"] == kind and name in (message.get("event"), message.get("command")):
                assert message.get("success", True), message
                return message.get("body")

    def stopped(self, program: Path, line: int) -> tuple[int, Any]:
        """Attaches with a breakpoint; the thread that stops, and its innermost frame."""
        self.send("initialize", adapterID="test", pathFormat="path")
        self.wait("response", "initialize")
        self.send("attach", justMyCode=True)
        self.wait("event", "initialized")
        self.send("setBreakpoints", source={"path": str(program)}, breakpoints=[{"line": line}])
        assert self.wait("response", "setBreakpoints")["breakpoints"][0]["verified"]
        self.send("configurationDone")
        thread = self.wait("event", "stopped")["threadId"]
        self.send("stackTrace", threadId=thread)
        return thread, self.wait("response", "stackTrace")["stackFrames"][0]


def test_a_breakpoint_of_the_program_stops_a_request(tmp_path: Path) -> None:
    program = tmp_path / "tap_stack.py"
    dev = Dev(tmp_path, "--debug")
    try:
        port = int(dev.wait(r"^tap-stack-api-dev: .* 127\.0\.0\.1:(\d+)$")[1])
        with ThreadPoolExecutor() as pool:
            title = pool.submit(dev.title)
            lines = program.read_text().splitlines()
            line = next(
                n for n, x in enumerate(lines, 1) if x.strip() == "response = dispatch(request)"
            )
            debugger = Debugger(port)
            thread, frame = debugger.stopped(program, line)
            assert (frame["name"], frame["line"]) == ("api", line)
            assert frame["source"]["path"] == str(program)
            time.sleep(12)  # longer than the function and the API may take
            assert not title.done()
            debugger.send("continue", threadId=thread)
            assert title.result(HANG_SECONDS) == "Not Found"
        told = tmp_path / ".taplocal" / "debug.json"
        left = told.read_text()
        assert dev.end() == 0
        assert not told.exists()
        told.write_text(left)  # as one that is killed leaves it
        assert dev.title() == "Not Found", "by a process that waits for nobody"
    finally:
        os.killpg(dev.process.pid, signal.SIGKILL) if dev.process.poll() is None else None
        taplocal("down", "--program", str(tmp_path))
