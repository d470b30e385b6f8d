"""Instances of the web environment as processes, from the program's own user data."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import functools
import gzip
import http.client
import http.server
import itertools
import json
import os
import re
import signal
import subprocess
import threading
import time
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import pytest

import tap_stack
from taplocal.web import free_port
from taplocal.web.instances import Instance as RealInstance
from taplocal.web.instances import InstanceError, Launch, by_proc
from taplocal.web.metadata import Metadata
from taplocal.web.processes import Process, Processes
from taplocal.web.units import Unit, UnitError, _pair, parsed, seconds, words

SECONDS = 60  # a guard against hanging
REGION = "eu-west-1"
SECRET_KEY = "only-by-imds"
TTL = "x-aws-ec2-metadata-token-ttl-seconds"
numbers = itertools.count(1)


@dataclass
class Aws:
    """A service of AWS that takes every call and records it."""

    url: str = ""
    calls: list[tuple[str, Any]] = field(default_factory=list)
    refused: set[str] = field(default_factory=set)

    def of(self, action: str) -> list[Any]:
        return [arguments for made, arguments in self.calls if made == action]


@pytest.fixture
def aws() -> Iterator[Aws]:
    made = Aws()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            target = self.headers.get("x-amz-target", "")
            credential = re.search("Credential=([^/]+)", self.headers["authorization"])
            assert credential and credential[1] == "ASIAINSTANCE"
            assert self.headers["x-amz-security-token"] == "session"
            if target:
                action, arguments = target.rpartition(".")[2], json.loads(body)
                answer = b"{}"
            else:
                arguments = {key: x for key, (x,) in parse_qs(body.decode()).items()}
                action = arguments["Action"]
                answer = f"<{action}Response><{action}Result/></{action}Response>".encode()
            made.calls.append((action, arguments))
            self.send_response(403 if action in made.refused else 200)
            self.send_header("content-length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *_: Any) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        made.url = f"http://127.0.0.1:{server.server_port}"
        yield made
        server.shutdown()


async def credentials(role: str, instance_id: str) -> Mapping[str, Any]:
    assert role == "tap-dev-web" and instance_id.startswith("i-")
    expiration = datetime.now(UTC) + timedelta(hours=1)
    return {
        "AccessKeyId": "ASIAINSTANCE",
        "SecretAccessKey": SECRET_KEY,
        "SessionToken": "session",
        "Expiration": expiration,
    }


def web_script() -> str:
    """The program's script, as its launch template has it."""
    script = tap_stack.web_script("/tap-dev-web", REGION, "arn:secret", "db.example")
    values = {"region": REGION, "group": "tap-dev-web", "hook": tap_stack.READY_HOOK}
    return tap_stack.rendered("start.sh", script=script, **values)


def without_database(script: str) -> str:
    """The script where no database is: it neither migrates nor asks whether one is ready."""
    for old, new in (("index.py migrate'", "index.py'"), (":8080/readyz", ":8080/healthz")):
        assert script.count(old) == 1
        script = script.replace(old, new)
    return script


@dataclass
class Site:
    """What instances are started with, in a folder of its own."""

    folder: Path
    aws: Aws
    processes: Processes
    metadata: Metadata
    instances: list[RealInstance] = field(default_factory=list)

    def instance(self, user_data: str, **changes: Any) -> RealInstance:
        """An instance with a script as user data, or with text that is in base64 already."""
        encoded = user_data
        if user_data.startswith("#!"):
            encoded = tap_stack.encode_user_data(user_data)
        authority = self.folder / "authority.pem"
        authority.write_text("the authority")
        launch = Launch(
            instance_id=f"i-{next(numbers):017x}",
            user_data=encoded,
            region=REGION,
            zone=f"{REGION}a",
            role="tap-dev-web",
            group="tap-dev-web",
            port=free_port(),
            database_port=5433,
            endpoint=self.aws.url,
            authority=authority,
        )
        made = RealInstance(
            replace(launch, **changes), self.folder / "instances", self.processes, self.metadata
        )
        self.instances.append(made)
        return made

    async def failure(self, script: str) -> str:
        """What the console log of an instance says whose user data fails."""
        instance = self.instance(script)
        with pytest.raises(InstanceError) as raised:
            await instance.launch()
        assert not instance.alive()
        assert str(raised.value).splitlines()[-1] in instance.console_output()
        return instance.console_output()


@contextlib.asynccontextmanager
async def made_site(folder: Path, aws: Aws) -> AsyncIterator[Site]:
    (folder / "instances").mkdir()
    site = Site(folder, aws, Processes(folder), Metadata(credentials))
    await site.metadata.start()
    try:
        yield site
    finally:
        await asyncio.gather(*(each.terminate(seconds=0.5) for each in site.instances))
        await site.processes.close()
        await site.metadata.close()


Run = Callable[[Callable[[Site], Awaitable[None]]], None]


@pytest.fixture
def run(tmp_path: Path, aws: Aws) -> Run:
    """Runs a test in an event loop, with a site."""

    def ran(test: Callable[[Site], Awaitable[None]]) -> None:
        async def main() -> None:
            async with made_site(tmp_path, aws) as site:
                await asyncio.wait_for(test(site), SECONDS)

        asyncio.run(main())

    return ran


async def get(url: str, method: str = "GET", **headers: str) -> tuple[int, str]:
    """Status and text of a URL; names of headers have _ for -."""
    named = {key.replace("_", "-"): value for key, value in headers.items()}

    def answer() -> tuple[int, str]:
        request = urllib.request.Request(url, headers=named, method=method)
        try:
            with urllib.request.urlopen(request, timeout=SECONDS) as response:
                return response.status, response.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()

    return await asyncio.to_thread(answer)


async def until(holds: Callable[[], object]) -> None:
    deadline = time.monotonic() + SECONDS
    while not holds():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.02)


def test_the_program_s_user_data_makes_instances_that_answer(run: Run, aws: Aws) -> None:
    async def test(site: Site) -> None:
        script = without_database(web_script())
        made = [site.instance(script) for _ in range(2)]
        await asyncio.gather(*(each.launch() for each in made))
        for each in made:
            assert each.alive()
            url = f"http://127.0.0.1:{each.launched.port}"
            assert await get(f"{url}/healthz") == (200, '{"status": "ok"}')
            logs = [*each.root.glob("var/log/*.log"), each.root / "journal.log"]
            assert "GET /healthz" in "".join(x.read_text() for x in logs if x.exists())
            assert each.cpu_seconds() > 0
            assert 20 * 2**20 < each.memory() < 2**30
            variables = (each.root / "opt/web/environment").read_text()
            assert "DATABASE_PORT=5433" in variables and "DATABASE_HOST=db.example" in variables
            assert (each.root / "opt/web/rds.pem").read_text() == "the authority"
        assert {x["InstanceId"]: x["LifecycleActionResult"] for x in aws.of("CompleteLifecycleAction")} == {
            each.launched.instance_id: "CONTINUE" for each in made
        }  # fmt: skip
        first, second = made
        await shipped(aws)
        await first.terminate()
        assert not first.root.exists()
        with pytest.raises(OSError):
            await get(f"http://127.0.0.1:{first.launched.port}/healthz")
        assert second.alive()
        no_secret_is_left(site.folder, second)

    run(test)


async def shipped(aws: Aws) -> None:
    """The agents have sent log and metrics, as their configuration says."""
    await until(lambda: len({x["logStreamName"] for x in aws.of("PutLogEvents")}) == 2)
    (events,) = aws.of("PutLogEvents")[:1]
    assert events["logGroupName"] == "/tap-dev-web"
    await until(lambda: len(aws.of("PutMetricData")) >= 2)
    (data,) = aws.of("PutMetricData")[:1]
    assert data["Namespace"] == "CWAgent"
    sent = {x["MetricName"]: (x["Value"], x["Dimensions"]) for x in data["MetricData"]}
    assert set(sent) == {"mem_used_percent", "disk_used_percent"}
    for value, dimensions in sent.values():
        assert 0 < value < 100
        assert dimensions == [{"Name": "AutoScalingGroupName", "Value": "tap-dev-web"}]


def no_secret_is_left(folder: Path, instance: RealInstance) -> None:
    """Neither keys nor the instance's path at the metadata service are in a file or an argument."""
    path = instance.environment()["AWS_EC2_METADATA_SERVICE_ENDPOINT"].split("/")[3]
    assert len(path) >= 32
    for each in folder.rglob("*"):
        if each.is_file() and not each.is_symlink():
            assert SECRET_KEY.encode() not in each.read_bytes()
            assert path.encode() not in each.read_bytes()
    shown = subprocess.run(["ps", "-Aww", "-o", "args="], capture_output=True, text=True).stdout
    assert "gunicorn" in shown and path not in shown
    assert SECRET_KEY not in str(instance.environment())


def test_user_data_that_fails_abandons_the_instance_and_says_why(run: Run, aws: Aws) -> None:
    async def test(site: Site) -> None:
        broken = web_script().replace("python3.11-pip\n", "python3.11-pip nginx-of-nobody\n")
        console = await site.failure(broken)
        assert "No match for argument: nginx-of-nobody" in console
        assert [x["LifecycleActionResult"] for x in aws.of("CompleteLifecycleAction")] == [
            "ABANDON"
        ]

    run(test)


FAILURES = {
    "#!/bin/bash\nset -e\nsudo -n true\n": "sudo: an instance of the local cloud cannot do that",
    "#!/bin/bash\nset -e\nwget http://x/\n": "wget: an instance",
    "#!/bin/bash\nset -e\ncurl -sSf https://example.com/x\n": "never connects to another machine",
    "#!/bin/bash\nset -e\nsystemctl start nothing\n": "Unit nothing.service not found.",
    "#!/bin/bash\nset -e\nsystemctl isolate x\n": "Unit x.service not found.",
    "#!/bin/bash\nset -e\nid nobody-here\n": "no such user",
    "#!/bin/bash\nset -e\naws s3 cp a b\n": "aws: s3 cp a b: only operations run here",
    "#!/bin/bash\nexit 7\n": "ended with status 7",
    "#!/bin/bash\ncc -I/usr/local/include x.c\n": "line 2 of the user data names /usr/local/include",
    "#!/bin/bash\ntar -C/opt -x\n": "names /opt in a way that cannot be replaced",
    "#!/bin/bash\ncat /usr/../etc/passwd\n": "names /etc/passwd",
    "#!/bin/bash\ncat //etc/passwd\n": "names /etc/passwd",
}


def test_what_cannot_be_done_here_fails_with_its_reason(run: Run) -> None:
    async def test(site: Site) -> None:
        shown = await asyncio.gather(*map(site.failure, FAILURES))
        for console, expected in zip(shown, FAILURES.values(), strict=True):
            assert expected in console

    run(test)


def encoded(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


NO_USER_DATA = {
    "?": "no text in base64",
    encoded("MIME-Version: 1.0\n"): "neither #cloud-config nor #!",
    encoded("#cloud-config\npackages: [nginx]\n"): "not packages",
    encoded("#cloud-config\n{"): "no cloud-config",
    encoded("#cloud-config\nwrite_files: [{path: /usr/bin/x, content: a}]\n"): "write_files: /usr/bin/x",
    encoded("#cloud-config\nwrite_files: [{path: /opt/../../x, content: a}]\n"): "write_files",
}  # fmt: skip


def test_other_user_data_is_refused_with_its_reason(run: Run) -> None:
    async def test(site: Site) -> None:
        for data, expected in NO_USER_DATA.items():
            assert expected in await site.failure(data)

    run(test)


def test_a_script_of_anybody_runs_gzipped_too(run: Run) -> None:
    script = """#!/bin/bash
set -e
mkdir -p /opt/app /etc/app
echo "a=${A:-/opt/app} b=$PWD/etc" > /etc/app/settings
[ -f /etc/app/settings ] && cat /etc/app/settings
curl -s -H "x: y" http://169.254.169.254/latest/meta-data/ || true
token=$(curl -s -X PUT -H 'X-aws-ec2-metadata-token-ttl-seconds: 60' http://169.254.169.254/latest/api/token)
curl -s -H "X-aws-ec2-metadata-token: $token" http://169.254.169.254/latest/meta-data/placement/region
aws autoscaling set-instance-health --instance-id i-1 --health-status Unhealthy --no-should-respect-grace-period
useradd --system app
id app > /dev/null
/usr/bin/systemctl daemon-reload
"""

    async def test(site: Site) -> None:
        packed = base64.b64encode(gzip.compress(script.encode())).decode()
        instance = site.instance(packed)
        await instance.launch()
        console = instance.console_output()
        assert f"a={instance.root}/opt/app b={instance.root}/etc" in console
        assert REGION in console
        (call,) = site.aws.of("SetInstanceHealth")
        assert call["ShouldRespectGracePeriod"] == "false"
        assert (call["InstanceId"], call["HealthStatus"]) == ("i-1", "Unhealthy")

    run(test)
    assert not Path("/etc/app").exists() and not Path("/opt/app").exists()


@pytest.fixture
def silent(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing waits for the unit to listen: it never does."""
    monkeypatch.setattr("taplocal.web.instances.LISTEN_SECONDS", 0)


UNIT = """#!/bin/bash
set -e
cat > /opt/app.sh <<'APP'
#!/bin/bash
echo "started $NAME $FILE ${1} $PGHOSTADDR"
sleep 300
APP
echo "FILE='of the file'" > /etc/app.env
cat > /etc/systemd/system/app.service <<'UNIT'
[Service]
User=web
Environment=NAME=app "OTHER=two words"
EnvironmentFile=/etc/app.env
EnvironmentFile=-/etc/missing.env
WorkingDirectory=/opt
# A comment.
ExecStart=/bin/bash /opt/app.sh \\
    "${OTHER}"
StandardOutput=append:/var/log/app:1.log
Restart=always
RestartSec=50ms
StartLimitIntervalSec=@interval@
UNIT
systemctl daemon-reload
systemctl enable --now app
systemctl is-active app
"""


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="there is no /proc")
def test_a_process_is_found_by_its_parent_and_its_group() -> None:
    with subprocess.Popen(["sleep", "60"], process_group=0) as child:
        try:
            assert {os.getpid(), child.pid} in [of for of, *_ in by_proc()]
        finally:
            child.kill()


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="there is no /proc")
def test_the_time_that_a_process_computes_is_counted() -> None:
    with subprocess.Popen(["bash", "-c", "while :; do :; done"], process_group=0) as child:

        def used() -> bool:
            return any(child.pid in of and cpu >= 0.1 for of, cpu, _ in by_proc())

        try:
            asyncio.run(until(used))
        finally:
            child.kill()


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="there is no /proc")
def test_a_process_is_in_no_session(tmp_path: Path) -> None:
    script = "set -m; (echo $BASHPID; sleep 60 & wait)"
    with subprocess.Popen(
        ["bash", "-c", script], stdout=subprocess.PIPE, text=True, start_new_session=True
    ) as leader:
        assert leader.stdout
        middle = int(leader.stdout.readline())
        asyncio.run(until(lambda: {middle} in [of for of, *_ in by_proc()]))  # of its sleep
        for group in (middle, leader.pid):
            os.killpg(group, signal.SIGKILL)


def test_the_console_has_all_that_was_said(run: Run, silent: None) -> None:
    async def test(site: Site) -> None:
        instance = site.instance("")
        instance._say("one")
        instance._say("two")
        assert instance.console_output() == "one\ntwo\n"

    run(test)


def unit_script(interval: str) -> str:
    return UNIT.replace("@interval@", interval)


def started(log: Path, times: int) -> bool:
    """Whether the unit was started so many times."""
    return log.read_text().count("started") == times


def changed(unit: Unit, process: Process) -> bool:
    """Whether a unit has another process: it may print before its supervisor goes on."""
    return unit.process is not process


def test_a_unit_is_started_again_whenever_it_ends(run: Run, silent: None) -> None:
    async def test(site: Site) -> None:
        instance = site.instance(unit_script("0"), port=free_port())
        await instance.launch()
        log, unit = instance.root / "var/log/app:1.log", instance.units["app.service"]
        assert "active" in instance.console_output()
        await until(lambda: log.read_text() == "started app of the file two words 127.0.0.1\n")
        for times in range(2, 9):  # systemd gives up after five in ten seconds, unless told not to
            process = unit.process
            assert process
            os.killpg(process.pid, signal.SIGKILL)
            await until(functools.partial(started, log, times))
            await until(functools.partial(changed, unit, process))
        assert instance.alive()
        status, shown = await instance._command(["systemctl", "is-active", "app"])
        assert (status, shown) == (0, "active")
        before = unit.process.pid if unit.process else 0
        await instance._command(["systemctl", "restart", "app"])
        restarted = instance.units["app.service"].process
        assert restarted and restarted.pid != before
        await instance._command(["systemctl", "stop", "app"])
        assert await instance._command(["systemctl", "is-active", "app"]) == (3, "inactive")

    run(test)


def test_a_unit_that_is_started_too_often_has_failed(run: Run, silent: None) -> None:
    async def test(site: Site) -> None:
        script = unit_script("10").replace("sleep 300", "exit 1").replace("is-active app", "status app || :")  # fmt: skip
        instance = site.instance(script)
        await instance.launch()
        unit = instance.units["app.service"]
        await until(lambda: unit.state == "failed" and unit._run and unit._run.done())
        assert (instance.root / "var/log/app:1.log").read_text().count("started") == 5

    run(test)


@pytest.mark.parametrize(
    ("restart", "status", "starts"),
    [("on-success", 0, 5), ("on-success", 1, 1), ("on-failure", 1, 5), ("on-failure", 0, 1)],
)
def test_a_unit_is_started_again_after_the_end_that_it_names(
    run: Run, silent: None, restart: str, status: int, starts: int
) -> None:
    async def test(site: Site) -> None:
        script = unit_script("10").replace("sleep 300", f"exit {status}")
        script = script.replace("Restart=always", f"Restart={restart}")
        instance = site.instance(script.replace("is-active app", "status app || :"))
        await instance.launch()
        unit = instance.units["app.service"]
        await until(lambda: unit._run and unit._run.done())
        assert (instance.root / "var/log/app:1.log").read_text().count("started") == starts
        ended = "inactive" if (starts, status) == (1, 0) else "failed"
        assert await instance._systemctl(["is-active", "app"]) == (3, ended)

    run(test)


@pytest.mark.parametrize(("more", "state"), [("", "inactive"), ("RemainAfterExit=yes\n", "active")])
def test_a_oneshot_unit_has_ended_when_it_was_started(
    run: Run, silent: None, more: str, state: str
) -> None:
    async def test(site: Site) -> None:
        script = unit_script("10").replace("[Service]\n", f"[Service]\nType=oneshot\n{more}")
        script = script.replace("Restart=always\n", "").replace("sleep 300\n", "")
        instance = site.instance(script.replace("is-active app", "is-active app || :"))
        await instance.launch()
        assert instance.units["app.service"].state == state
        assert (instance.root / "var/log/app:1.log").read_text().count("started") == 1

    run(test)


def test_settings_of_units() -> None:
    text = "[Service]\nExecStart=a \\\n  b\nExecStart=\nExecStart=c\n;x\nEnvironment=A=1\nEnvironment=B=2"
    assert dict(parsed(text)) == {"ExecStart": ["c"], "Environment": ["A=1", "B=2"]}
    assert [seconds(x) for x in ("5", "100ms", "1min 30s")] == [5, 0.1, 90]
    with pytest.raises(UnitError, match="'soon' is no time"):
        seconds("soon")
    assert _pair("OPTIONS = -D a=b ") == ("OPTIONS", "-D a=b")
    variables = {"A": "1 2", "B": "b"}
    assert words("-/x $A ${A} x${B}$B '$B' 100%% $$", variables) == [
        *("/x", "1", "2", "1 2", "xb$B", "b", "100%", "$")
    ]


def test_the_metadata_service_gives_nothing_away(run: Run) -> None:
    async def test(site: Site) -> None:
        one, two = site.instance("#!/bin/sh\n:\n"), site.instance("#!/bin/sh\n:\n")
        await asyncio.gather(one.launch(), two.launch())
        url, other = (x.environment()["AWS_EC2_METADATA_SERVICE_ENDPOINT"] for x in (one, two))
        keys = f"{url}latest/meta-data/iam/security-credentials/tap-dev-web"
        token_url = f"{url}latest/api/token"
        assert (await get(keys))[0] == 401
        assert (await get(token_url))[0] == 401
        assert (await get(token_url, "PUT"))[0] == 400
        for wrong in ("0", "21601", "-1", "x", "1e3"):
            assert (await get(token_url, "PUT", **{TTL: wrong}))[0] == 400
        assert (await get(token_url, "PUT", **{TTL: "60", "X-Forwarded-For": "1.2.3.4"}))[0] == 403
        token = (await get(token_url, "PUT", **{TTL: "60"}))[1]
        header = {"x-aws-ec2-metadata-token": token}
        assert json.loads((await get(keys, **header))[1])["SecretAccessKey"] == SECRET_KEY
        assert (await get(keys, **header, X_Forwarded_For="1.2.3.4"))[0] == 403
        assert (await get(keys.replace(url, other), **header))[0] == 401  # another's token
        assert (await get(keys, "POST", **header))[0] == 405
        await tokens_end(token_url, keys)
        await one.terminate()
        assert (await get(keys, **header))[0] == 404

    run(test)


async def tokens_end(token_url: str, keys: str) -> None:
    """A token is good for its time, and no longer."""
    token = (await get(token_url, "PUT", **{TTL: "1"}))[1]
    await asyncio.sleep(1.1)
    assert (await get(keys, **{"x-aws-ec2-metadata-token": token}))[0] == 401


def test_metadata_of_an_instance_are_at_its_own_path_and_change(run: Run) -> None:
    async def test(site: Site) -> None:
        one = site.instance("#!/bin/sh\n:\n")
        await one.launch()
        url = one.environment()["AWS_EC2_METADATA_SERVICE_ENDPOINT"]
        token = (await get(f"{url}latest/api/token", "PUT", **{TTL: "60"}))[1]
        header = {"x-aws-ec2-metadata-token": token}
        base = f"http://127.0.0.1:{site.metadata.port}/"
        for path in ("", "latest/api/token", f"{one.launched.instance_id}/latest/api/token"):
            assert (await get(base + path, "PUT", **{TTL: "60"}))[0] == 404
        assert (await get(f"{url}latest/meta-data/spot/instance-action", **header))[0] == 404
        one.interrupt(datetime(2026, 1, 1, tzinfo=UTC))
        one.set_lifecycle_state("Terminated")
        notice = await get(f"{url}latest/meta-data/spot/instance-action", **header)
        assert json.loads(notice[1]) == {"action": "terminate", "time": "2026-01-01T00:00:00Z"}
        advice = await get(f"{url}latest/meta-data/events/recommendations/rebalance", **header)
        assert "noticeTime" in json.loads(advice[1])
        state = await get(f"{url}latest/meta-data/autoscaling/target-lifecycle-state", **header)
        assert state == (200, "Terminated")
        names = (await get(f"{url}latest/meta-data/", **header))[1].split("\n")
        assert {"iam/", "instance-id", "placement/"} <= set(names)

    run(test)


def test_malformed_requests_of_metadata_are_answered_or_dropped(run: Run) -> None:
    async def test(site: Site) -> None:
        for bad in (
            b"\r\n\r\n",
            b"GET\r\n\r\n",
            b"GET / HTTP/2.0\r\n\r\n",
            b"GET / HTTP/1.1\r\ncontent-length: -1\r\n\r\n",
            b"GET / HTTP/1.1\r\ncontent-length: 99999\r\n\r\n",
            b"GET / HTTP/1.1\r\nx: " + b"y" * 100_000,
        ):
            reader, writer = await asyncio.open_connection("127.0.0.1", site.metadata.port)
            with contextlib.suppress(ConnectionError):
                writer.write(bad)
                await writer.drain()
            answer = b""
            with contextlib.suppress(ConnectionError):
                answer = await reader.read()
            assert answer.startswith(b"HTTP/1.1 400 ") or (answer == b"" and len(bad) > 99_999)
            writer.close()
        assert (await get(f"http://127.0.0.1:{site.metadata.port}/x"))[0] == 404

    run(test)


def test_boto3_finds_the_keys_by_imds_alone(run: Run) -> None:
    script = """#!/bin/bash
set -e
dnf install -y python3.11
python3.11 -m venv /opt/venv
export AWS_DEFAULT_REGION=eu-west-1
/opt/venv/bin/python -c 'import sys, gunicorn, psycopg, boto3
assert sys.prefix.endswith("/opt/venv"), sys.prefix
found = boto3.Session().get_credentials()
print(found.method, found.access_key)'
"""

    async def test(site: Site) -> None:
        instance = site.instance(script)
        await instance.launch()
        assert "iam-role ASIAINSTANCE" in instance.console_output()

    run(test)


def test_a_link_or_pipe_for_the_console_log_shows_nothing_of_the_machine(
    run: Run, tmp_path: Path
) -> None:
    secret = tmp_path / "secret"
    secret.write_text("the owner says\n")

    async def test(site: Site) -> None:
        instance = site.instance("#!/bin/sh\necho the instance says\n")
        await instance.launch()
        assert "the instance says" in instance.console_output()
        log = instance.root / "console.log"
        log.unlink()
        log.symlink_to(secret)
        assert "the owner says" not in instance.console_output()
        log.unlink()
        os.mkfifo(log)  # which has no end
        assert "the instance says" not in instance.console_output()

    run(test)


def test_terminate_ends_all_that_it_started_and_another_goes_on(run: Run, silent: None) -> None:
    async def test(site: Site) -> None:
        deaf = unit_script("0").replace("sleep 300", "trap '' TERM; while :; do sleep 1; done")
        one, two = site.instance(deaf), site.instance(deaf)
        await asyncio.gather(one.launch(), two.launch())
        groups = [x.units["app.service"].process for x in (one, two)]
        await one.terminate(seconds=0.2)
        assert [bool(x and x.alive()) for x in groups] == [False, True]
        assert "active" in one.console_output()  # EC2 keeps it for a while
        assert not one.root.exists()

    run(test)


def test_substitutions_are_a_table_to_print(run: Run) -> None:
    async def test(site: Site) -> None:
        instance = site.instance("#!/bin/sh\n:\n")
        table = dict(instance.substitutions())
        assert table["port 8080"] == str(instance.launched.port)
        assert table["port 5432"] == "5433"
        text = 'x=/etc/a:/opt/b file:///var/c "/home" https://h/etc/d a/opt ${B}/opt /etcd /opt.d 8080 a8080 0.0.0.0:8080 0.0.0.0/0'
        root, port = instance.root, instance.launched.port
        assert instance.replaced(text) == (
            f'x={root}/etc/a:{root}/opt/b file://{root}/var/c "{root}/home" https://h/etc/d '
            f"a/opt ${{B}}/opt /etcd /opt.d {port} a8080 127.0.0.1:{port} 0.0.0.0/0"
        )

    run(test)


def test_metadata_survives_a_client_that_leaves(run: Run) -> None:
    async def test(site: Site) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", site.metadata.port)
        connection.request("GET", "/x")
        connection.close()
        assert (await get(f"http://127.0.0.1:{site.metadata.port}/x"))[0] == 404

    run(test)
