"""Data outlives the emulator's process; what is lost is said; a status is the emulator's own."""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import ClientError

from taplocal import emulator, keeper, session, snapshots, web
from taplocal.emulator import Emulator
from taplocal.errors import TapLocalError
from taplocal.server import names
from taplocal.session import Session
from taplocal.state import State, locked
from tests.local.conftest import HANG_SECONDS, ROOT, taplocal
from tests.unit.test_state import room_for

PROGRAM = """
import json
import pulumi, pulumi_aws as aws

allowed = {"Effect": "Allow", "Action": "sts:AssumeRole", "Principal": {"Service": "lambda.amazonaws.com"}}
trust = json.dumps({"Version": "2012-10-17", "Statement": [allowed]})
size = pulumi.Config().get("size") or "s"
aws.dynamodb.Table("table", name="things", billing_mode="PAY_PER_REQUEST", hash_key="id",
    attributes=[{"name": "id", "type": "S"}], tags={"size": size})
bucket = aws.s3.Bucket("bucket", bucket="the-files")
aws.s3.BucketVersioning("versions", bucket=bucket.bucket, versioning_configuration={"status": "Enabled"})
pool = aws.cognito.UserPool("pool", name="people")
aws.cloudwatch.LogGroup("log", name="/things")
aws.cloudwatch.LogGroup("slow-log", name="/aws/lambda/slow")
aws.sqs.Queue("queue", name=f"queue-{size}")
role = aws.iam.Role("role", name="things", assume_role_policy=trust)
slow = "import time\\ndef handler(event, context):\\n    time.sleep(event['seconds'])\\n    print('done', event['id'])"
aws.lambda_.Function("slow", name="slow", role=role.arn, runtime="python3.13", handler="m.handler",
    timeout=30, code=pulumi.AssetArchive({"m.py": pulumi.StringAsset(slow)}))
pulumi.export("pool", pool.id)
"""
RESOURCES = 9


class Own:
    """A small program on an emulator of its own."""

    def __init__(self, folder: Path):
        self.folder, self.data, self.said = folder, session.folder_of(folder), list[str]()
        (folder / "Pulumi.yaml").write_text(
            "name: own\nruntime: python\nmain: main.py\nconfig:\n  size:\n    type: string\n"
            "    default: s\n"
        )
        (folder / "Pulumi.dev.yaml").write_text("config: {}\n")
        (folder / "main.py").write_text(PROGRAM)
        self.session = self.up()[0]

    def up(self, **config: str) -> tuple[Session, dict[str, int]]:
        self.said.clear()
        self.session, summary = session.up(
            self.folder, "dev", config=config, say=self.said.append, report=lambda step: None
        )
        return self.session, dict(summary.counts())

    def client(self, service: str) -> Any:
        return self.session.cloud.client(service)

    def put(self, name: str) -> None:
        """An item, two versions of a file, a user, a line of the log, of this name."""
        self.client("dynamodb").put_item(TableName="things", Item={"id": {"S": name}})
        for body in (b"1", b"22"):
            self.client("s3").put_object(Bucket="the-files", Key=f"{name}/ü\n.txt", Body=body)
        self.client("cognito-idp").admin_create_user(
            UserPoolId=self.session.outputs["pool"], Username=name
        )
        logs = self.client("logs")
        logs.create_log_stream(logGroupName="/things", logStreamName=name)
        events = [{"timestamp": int(time.time() * 1000), "message": name}]
        logs.put_log_events(logGroupName="/things", logStreamName=name, logEvents=events)

    def has(self) -> dict[str, list[str]]:
        items = self.client("dynamodb").scan(TableName="things")["Items"]
        versions = self.client("s3").list_object_versions(Bucket="the-files").get("Versions", [])
        users = self.client("cognito-idp").list_users(UserPoolId=self.session.outputs["pool"])
        lines = self.client("logs").filter_log_events(logGroupName="/things")["events"]
        return {
            "items": sorted(each["id"]["S"] for each in items),
            "files": sorted(f"{x['Key'].partition('/')[0]} {x['Size']}" for x in versions),
            "users": sorted(each["Username"] for each in users["Users"]),
            "log": sorted(each["message"] for each in lines),
        }

    def saved(self) -> None:
        keeper.wait(self.data, lambda: True)

    def kill(self) -> None:
        pid = self.session.cloud.emulator.pid
        os.kill(pid, signal.SIGKILL)
        while emulator.is_emulator(pid):
            time.sleep(0.01)

    @property
    def condition(self) -> str:
        return session.condition(self.data, "dev")[0]


@pytest.fixture
def own(tmp_path: Path) -> Iterator[Own]:
    program = Own(tmp_path)
    yield program
    session.down(tmp_path, None, report=lambda step: None)


ALL = {"items": ["ann"], "files": ["ann 1", "ann 2"], "users": ["ann"], "log": ["ann"]}


def test_data_outlives_a_killed_emulator(own: Own) -> None:
    own.put("ann")
    own.client("lambda").invoke(
        FunctionName="slow", InvocationType="Event", Payload=json.dumps({"seconds": 3, "id": "x1"})
    )
    own.saved()
    own.kill()
    assert own.condition == "dead"
    assert own.up()[1] == {"unchanged": RESOURCES}
    assert own.has() == ALL
    assert own.condition == "complete"
    assert "it goes on with all that it had" in own.said[0]
    deadline, log = time.monotonic() + HANG_SECONDS, ""
    while "done x1" not in log and time.monotonic() < deadline:  # the event that was at work
        time.sleep(0.1)
        events = own.client("logs").filter_log_events(logGroupName="/aws/lambda/slow")["events"]
        log = "".join(each["message"] for each in events)
    assert "done x1" in log


def test_what_is_lost_is_said_before_anything_is_done(own: Own) -> None:
    own.put("ann")
    own.saved()
    with locked(own.data):  # nothing is saved meanwhile
        own.client("dynamodb").put_item(TableName="things", Item={"id": {"S": "late"}})
        own.kill()
    lost, saved = keeper.unsaved(own.data), keeper.kept(own.data)
    assert lost
    assert saved
    assert saved < lost
    assert own.up()[1] == {"unchanged": RESOURCES}
    assert f"what was written since {keeper._clock(lost)} is gone" in own.said[0]
    assert own.has() == ALL
    own.saved()
    own.kill()
    own.up()
    assert "it goes on with all that it had" in own.said[0]


def test_an_emulator_that_ends_in_the_middle_of_a_change_goes_back_before_it(
    own: Own, monkeypatch: pytest.MonkeyPatch
) -> None:
    own.put("ann")
    own.saved()
    change = State.change

    def ending(state: State, changes: Any) -> None:
        change(state, changes)
        made = [each for each in changes.values() if each and not each.pending]
        if any(each.inputs.get("name") == "queue-l" for each in made):
            own.kill()

    with monkeypatch.context() as patched:
        patched.setattr(State, "change", ending)
        with pytest.raises(TapLocalError):
            own.up(size="l")
    own.up(size="l")
    assert "what was written since" in own.said[0]
    assert own.up(size="l")[1] == {"unchanged": RESOURCES}
    urls = own.client("sqs").list_queues()["QueueUrls"]
    assert [url.rpartition("/")[2] for url in urls] == ["queue-l"]
    assert own.has() == ALL


@pytest.mark.skipif(not hasattr(resource, "prlimit"), reason="no other process's limits here")
def test_what_a_full_disk_did_not_take_is_saved_when_there_is_room(own: Own) -> None:
    own.put("ann")
    own.saved()
    pid, before = own.session.cloud.emulator.pid, resource.RLIM_INFINITY
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (0, before))  # as on a full disk
    table = own.client("dynamodb")
    with pytest.raises(ClientError):
        table.put_item(TableName="things", Item={"id": {"S": "refused"}})
    time.sleep(1)  # some attempts
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (before, before))
    table.put_item(TableName="things", Item={"id": {"S": "bob"}})
    own.saved()
    own.kill()
    own.up()
    assert "it goes on with all that it had" in own.said[0]
    assert {"ann", "bob"} <= set(own.has()["items"])


def test_stop_snapshot_and_restore(own: Own, tmp_path: Path) -> None:
    own.put("ann")
    taken = snapshots.take(tmp_path, "one", own.data)
    modes = [each.stat().st_mode & 0o777 for each in (taken, taken / emulator.RECORD)]
    assert modes == [0o700, 0o600], "with the key of the emulator, and the data"
    own.put("bob")
    session.stop(tmp_path, own.data)
    assert own.condition == "dead"
    own.up()
    assert own.has()["items"] == ["ann", "bob"]
    own.up(size="l")
    snapshots.restore(tmp_path, "one", own.data)
    own.session = session.opened(tmp_path, "dev", own.data)
    assert own.has() == ALL
    assert own.up()[1] == {"unchanged": RESOURCES}
    with pytest.raises(TapLocalError, match="there is a snapshot one"):
        snapshots.take(tmp_path, "one", own.data)
    with pytest.raises(
        TapLocalError, match=r"there is no snapshot two; there are: one \(everything\)"
    ):
        snapshots.restore(tmp_path, "two", own.data)
    with pytest.raises(TapLocalError, match="a snapshot has a name of letters"):
        snapshots.take(tmp_path, "../one", own.data)


def test_a_snapshot_that_does_not_fit_is_none(own: Own, tmp_path: Path) -> None:
    own.put("ann")
    own.saved()
    with room_for(100), pytest.raises(TapLocalError, match=r"one is not taken: .* too large"):
        snapshots.take(tmp_path, "one", own.data)
    assert not [*(own.data / "snapshots").iterdir()]
    half = own.data / "snapshots" / ".one.new"  # of a command that is at work, or was killed
    shutil.copytree(own.data / keeper.STATE, half / keeper.STATE, symlinks=True)
    assert snapshots.listed(tmp_path, own.data) == []
    snapshots.take(tmp_path, "one", own.data)
    (listed,) = snapshots.listed(tmp_path, own.data)
    assert listed.name == "one"
    assert not half.exists()
    with room_for(100), pytest.raises(TapLocalError, match=r"one is not restored: .* too large"):
        snapshots.restore(tmp_path, "one", own.data)
    assert not keeper.kept(own.data)
    snapshots.restore(tmp_path, "one", own.data)
    own.session = session.opened(tmp_path, "dev", own.data)
    assert own.has() == ALL


def test_what_a_snapshot_stops_runs_again_when_it_fails(
    own: Own, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (web.home(own.data) / "databases" / "db-1").mkdir(parents=True)
    cp = tmp_path / "bin" / "cp"
    cp.parent.mkdir()
    cp.write_text("#!/bin/sh\necho 'cp: No space left on device' >&2\nexit 1\n")
    cp.chmod(0o755)
    own.put("ann")
    with monkeypatch.context() as patched:
        patched.setenv("PATH", f"{cp.parent}:{os.environ['PATH']}")
        with pytest.raises(TapLocalError, match="one is not taken: cp: No space left on device"):
            snapshots.take(tmp_path, "one", own.data)
    assert own.condition == "complete"
    own.session = session.opened(tmp_path, "dev", own.data)
    assert own.has() == ALL


def test_a_copy_is_of_one_snapshot_whatever_follows_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state, copytree = tmp_path / keeper.STATE, shutil.copytree
    (state / "1").mkdir(parents=True)
    (state / "1" / "time.txt").write_text("1")
    (state / "current").symlink_to("1")

    def overtaken(*arguments: Any, **more: Any) -> Any:
        if not (state / "2").exists():  # as the emulator's process does it
            copytree(state / "1", state / "2")
            (state / "current.new").symlink_to("2")
            (state / "current.new").rename(state / "current")
            copied = copytree(*arguments, **more)
            shutil.rmtree(state / "1")
            return copied
        return copytree(*arguments, **more)

    monkeypatch.setattr(shutil, "copytree", overtaken)
    keeper.copy(tmp_path, tmp_path / "copy")
    assert (tmp_path / "copy" / "current" / "time.txt").read_text() == "1"
    assert sorted(each.name for each in (tmp_path / "copy").iterdir()) == ["2", "current"]


def test_the_port_of_a_local_cloud_is_its_own(own: Own, tmp_path: Path) -> None:
    session.stop(tmp_path, own.data)
    time.sleep(0.2)  # the kernel closes the sockets of a killed process
    port = int(own.session.cloud.emulator.url.rpartition(":")[2])
    with socket.socket() as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        taken.bind(("127.0.0.1", port))
        taken.listen()
        with pytest.raises(TapLocalError, match=f"the port {port} of this local cloud is in use"):
            own.up()
    assert own.up()[1] == {"unchanged": RESOURCES}


def test_a_status_is_the_emulators_own(own: Own, monkeypatch: pytest.MonkeyPatch) -> None:
    assert own.condition == "complete"
    change = State.change

    def broken(state: State, changes: Any) -> None:
        change(state, changes)
        raise BrokenPipeError

    with monkeypatch.context() as patched:
        patched.setattr(State, "change", broken)
        with pytest.raises((BrokenPipeError, TapLocalError)):
            own.up(size="l")
    assert own.condition == "partial"
    own.up()
    assert own.condition == "complete"
    cloud = own.session.cloud
    cloud.client("ssm").delete_parameter(Name=cloud._marker_name())  # as a reset does
    assert own.condition == "stale"
    with pytest.raises(TapLocalError, match="the emulator has lost dev"):
        session.opened(own.folder, "dev")


@pytest.mark.parametrize(
    "text",
    [
        "[]",
        "null",
        '"x"',
        "\x00",
        '{"marker": "a", "region": "b", "outputs": {}, "resources": []}',
        '{"marker": "a", "region": "b", "outputs": {}, "resources": {"x": 1}}',
    ],
)
@pytest.mark.parametrize("name", ["env/dev.json", "emulator.json"])
def test_a_state_that_is_no_state_is_one_line(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / "env").mkdir()
    (tmp_path / name).write_text(text)
    with pytest.raises(TapLocalError, match=r"is not (valid|a state file of this version) .*: "):
        session.condition(tmp_path, "dev")


def test_a_folder_that_cannot_be_written_is_one_line(own: Own) -> None:
    data = own.folder / "file" / "x"
    data.parent.write_text("")
    with pytest.raises(TapLocalError, match=r"^Not a directory: .*: give a folder .* with --data$"):
        session.up(own.folder, "dev", folder=data, say=print, report=print)
    completed = taplocal("status", "--data", str(data))
    assert completed.returncode == 1
    assert completed.stderr.startswith("error: Not a directory")
    assert completed.stderr.count("\n") == 1


def test_what_is_no_ministack_is_one_line(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        answers = iter((b"hello\r\n\r\n", b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nhi"))

        def answer() -> None:
            for each in answers:
                connection = server.accept()[0]
                connection.recv(4096)
                connection.sendall(each)
                connection.close()

        threading.Thread(target=answer, daemon=True).start()
        url = f"http://127.0.0.1:{server.getsockname()[1]}"
        for _ in range(2):
            with pytest.raises(TapLocalError, match="no emulator responds at"):
                emulator.attach(tmp_path, Emulator(url, "marker"))


def test_an_emulator_that_takes_its_time_is_there() -> None:
    body = b'{"services": {}}'

    def answer(connection: socket.socket) -> None:
        with connection:
            connection.recv(4096)
            time.sleep(3)  # as on a busy machine
            connection.sendall(
                b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body)
            )

    with socket.create_server(("127.0.0.1", 0)) as server:
        threading.Thread(target=lambda: answer(server.accept()[0]), daemon=True).start()
        assert Emulator(f"http://127.0.0.1:{server.getsockname()[1]}", "marker").healthy()


def test_an_up_whose_reader_left_is_partial(own: Own) -> None:
    """As `up | head -1` in the shell."""
    more = "\n".join(f'aws.sqs.Queue("more-{n}", name="more-{n}")' for n in range(50))
    (own.folder / "main.py").write_text(PROGRAM + more)
    completed = subprocess.run(  # noqa: S602 - the pipe is what is tested
        f"{sys.executable} -m taplocal up --program {own.folder} | head -1",
        shell=True,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=HANG_SECONDS,
        check=False,
    )
    assert "Traceback" not in completed.stderr
    status = taplocal("status", "--program", str(own.folder), "--json")
    found = json.loads(status.stdout)
    assert (found["condition"], bool(found["unfinished"])) == ("partial", True)


def test_an_emulator_of_another_version_is_one_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after an upgrade of MiniStack that changed a private function."""
    table = names.TABLE.read_text().replace("files ", "files x", 1)
    line = next(x for x in table.splitlines() if "lambda_svc._execute_function" in x)
    (tmp_path / "names.txt").write_text(table.replace(line, f"{line}x"))
    program = tmp_path / "ministack_other.py"
    program.write_text(
        f"import runpy, sys\nfrom pathlib import Path\nsys.path.insert(0, {str(ROOT)!r})\n"
        "from taplocal.server import names\nnames.TABLE = Path('names.txt')\n"
        f"runpy.run_path({str(emulator.PROGRAM)!r}, run_name='__main__')\n"
    )
    monkeypatch.setattr(emulator, "PROGRAM", program)
    with pytest.raises(TapLocalError, match="_execute_function than"):
        emulator.start(tmp_path, "us-east-1", None)
