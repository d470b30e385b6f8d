"""The command line as people and programs use it, with wrong input too."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from taplocal import emulator, keeper, session
from taplocal.console import hints
from taplocal.differences import DIFFERENCES, MEANINGS
from taplocal.session import Session
from tests.local.conftest import HANG_SECONDS, ROOT, taplocal


def as_json(*arguments: str) -> Any:
    """The value that a command printed; it printed nothing else."""
    completed = taplocal(*arguments, "--json")
    assert completed.returncode == 0, completed.stderr
    return json.loads(completed.stdout)


@pytest.fixture
def own(tmp_path: Path) -> Iterator[list[str]]:
    """Options for a local cloud of this test's own, taken down at its end."""
    yield ["--data", str(tmp_path / "cloud")]
    session.down(ROOT, None, folder=tmp_path / "cloud", report=lambda step: None)


def test_every_command_prints_json_for_programs(deployed: Session, data: Path) -> None:
    options = ["--data", str(data)]
    outputs = as_json("outputs", *options)
    assert outputs == deployed.outputs
    assert as_json("outputs", "table_name", *options) == "tap-stack-items-dev"
    status = as_json("status", *options)
    assert (status["deployed"], status["running"], status["unfinished"]) == (True, True, [])
    assert status["api_url"] == outputs["api_url"]
    variables = as_json("env", *options)
    shell = f"{taplocal('env', *options).stdout}\necho $AWS_ENDPOINT_URL ${{AWS_PROFILE-none}}"
    evaluated = subprocess.run(["bash", "-c", shell], capture_output=True, text=True, check=True)
    assert evaluated.stdout.split() == [variables["AWS_ENDPOINT_URL"], "none"]
    assert as_json("token", *options)["access_token"].count(".") == 2
    named = ("token", "--client", "default", *options)
    assert as_json(*named)["access_token"].count(".") == 2
    both = taplocal(*named, "--user", "dan@example.com")
    assert "error: --user names a person and --client a machine" in both.stderr
    created = as_json(
        "call", "POST", "/items", '{"name": "tea"}', "--user", "dan@example.com", *options
    )
    assert (created["status"], created["body"]["name"]) == (201, "tea")
    assert created["headers"]["location"] == f"/items/{created['body']['id']}"
    same = as_json(
        "call", "GET", created["headers"]["location"], "--user", "dan@example.com", *options
    )
    assert same["body"] == created["body"]
    messages = [event["message"] for event in as_json("logs", *options)]
    assert any(isinstance(each, dict) and each.get("ItemsCreated") for each in messages)
    again = as_json("up", *options)
    assert (again["counts"].keys(), again["steps"]) == ({"unchanged"}, [])
    assert {"key", "meaning", "aws", "here", "touches", "silent"} == again["differences"][0].keys()


def test_call_fails_for_a_rejected_request_when_asked(deployed: Session, data: Path) -> None:
    asked = ("call", "GET", "/items/nothing", "--json", "--data", str(data))
    completed = taplocal(*asked, "--fail")
    assert (completed.returncode, json.loads(completed.stdout)["status"]) == (1, 404)
    assert taplocal(*asked).returncode == 0
    assert taplocal(*asked[:2], "/health", *asked[3:], "--fail").returncode == 0


def test_a_report_without_analytics_says_which_setting_is_off(
    deployed: Session, data: Path
) -> None:
    completed = taplocal("report", "--data", str(data))
    why = "the stack has no output files_workgroup_name: `up -c files_analytics=true` makes it"
    assert (completed.returncode, completed.stderr) == (1, f"error: {why}\n")


def test_a_misspelt_output_proposes_the_nearest(deployed: Session, data: Path) -> None:
    completed = taplocal("outputs", "api_ulr", "--data", str(data))
    assert completed.stderr == 'error: there is no output "api_ulr": did you mean api_url?\n'


def test_the_first_commands_of_the_readme_show_each_others_result(
    deployed: Session, data: Path
) -> None:
    guide = (ROOT / "docs" / "local-cloud.md").read_text()
    shown = re.findall(
        r"^    \.venv/bin/python -m taplocal (call .* /items.*)$", guide, re.MULTILINE
    )
    for create, show in (shown, hint_commands(deployed)):
        made = as_json(*shlex.split(create), "--data", str(data))["body"]
        listed = as_json(*shlex.split(show), "--data", str(data))["body"]["items"]
        assert made["id"] in [each["id"] for each in listed]


def hint_commands(deployed: Session) -> list[str]:
    """The first two commands that `up` proposes."""
    return re.findall(r"taplocal (call .*)", hints(deployed, "dev"))


def test_a_stack_trace_names_the_lines_of_the_program(deployed: Session, data: Path) -> None:
    user = ("--user", "fay@example.com", "--data", str(data))
    path = as_json("call", "POST", "/items", "{}", *user)["headers"]["location"]
    table = {"TableName": deployed.outputs["table_name"]}
    dynamodb = deployed.cloud.client("dynamodb")
    (item,) = (
        each for each in dynamodb.scan(**table)["Items"] if each["id"]["S"].endswith(path[7:])
    )
    dynamodb.put_item(**table, Item={name: item[name] for name in ("id", "owner")})
    assert as_json("call", "GET", path, *user)["status"] == 500
    dynamodb.delete_item(**table, Key={name: item[name] for name in ("id", "owner")})
    messages = [event["message"] for event in as_json("logs", "--data", str(data))]
    (failed,) = (each for each in messages if isinstance(each, dict) and "stack" in each)
    stack = failed["stack"]
    assert len(stack) > 2
    program = (ROOT / "tap_stack.py").read_text().splitlines()
    named = re.fullmatch(r"tap_stack\.py:(\d+) in api", stack[0])
    assert named and program[int(named[1]) - 1].strip() == "response = dispatch(request)"
    printed = taplocal("logs", "--data", str(data)).stdout
    assert "".join(f"    {each}\n" for each in stack) in printed
    followed = as_json("trace", failed["request_id"], "--data", str(data))["lines"]
    assert [x["message"]["stack"] for x in followed if "stack" in x["message"]] == [stack]


def test_the_printed_url_works_with_plain_curl(deployed: Session, data: Path) -> None:
    token = taplocal("token", "--data", str(data)).stdout.strip()
    url = taplocal("outputs", "api_url", "--data", str(data)).stdout.strip()
    script = (
        f'curl -s -o /dev/null -w "%{{http_code}}" -H "Authorization: Bearer {token}" "{url}/items"'
    )
    completed = subprocess.run(
        ["bash", "-c", script], capture_output=True, text=True, timeout=30, check=True
    )
    assert completed.stdout == "200"


def test_plain_output_has_no_colours_and_says_what_is_not_as_on_aws(
    deployed: Session, data: Path
) -> None:
    counted = taplocal("up", "--data", str(data)).stdout
    assert re.search("\n[0-9]+ things are not as on AWS: `up --explain` lists them\n", counted)
    completed = taplocal("up", "--explain", "--data", str(data))
    assert "\x1b" not in completed.stdout
    headings = [line for line in completed.stdout.splitlines() if line.rstrip(":") in MEANINGS]
    assert headings == [f"{each}:" for each in MEANINGS]
    listed = completed.stdout.count("\n- ")
    assert f"\n{listed} things" in counted
    assert listed < len(DIFFERENCES)  # WAF, for one, is not in dev
    assert "unchanged" in completed.stdout
    wide = [line for line in completed.stdout.splitlines() if len(line) > 80]
    assert not [line for line in wide if len(line.split()) > 2], wide  # a value stays whole


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["up", "--env", "qa"],
            "there is no Pulumi.qa.yaml .*: use one of dev, prod, staging, or one of them with a name",
        ),
        (["up", "-c", "throttle_rate=0"], "throttle_rate must be 1 to 10000"),
        (["up", "-c", "throttle_rate"], "--config takes KEY=VALUE"),
        (
            ["up", "--emulator", "http://127.0.0.1:9"],
            "takes the data folder of another .*lets anybody",
        ),
        (["up", "--emulator", "docs"], "there is no emulator in docs: give the data folder"),
        (["outputs"], "dev is not deployed"),
        (["token"], "dev is not deployed"),
        (["call", "GET", "/items"], "dev is not deployed"),
        (["call", "PSOT", "/items"], 'there is no method "PSOT": did you mean POST?'),
        (["logs"], "dev is not deployed"),
    ],
)
def test_an_error_is_one_clear_message(own: list[str], arguments: list[str], message: str) -> None:
    completed = taplocal(*arguments, *own, "--json")
    assert completed.returncode == 1
    assert "Traceback" not in completed.stderr
    assert completed.stderr == f"error: {json.loads(completed.stdout)['error']}\n"
    assert re.search(message, completed.stderr), completed.stderr


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("throttle_rate=0", "throttle_rate must be 1 to 10000"),
        ("memory_mbb=512", r"\bmemory_mbb\b[^\n]*\bmemory_mb\b"),
    ],
)
def test_a_wrong_setting_starts_no_emulator_and_writes_nothing(
    own: list[str], tmp_path: Path, setting: str, message: str
) -> None:
    completed = taplocal("up", "-c", setting, *own)
    assert completed.returncode == 1
    assert re.search(message, completed.stderr), completed.stderr
    assert completed.stdout == ""
    assert not (tmp_path / "cloud").exists()


def test_down_without_anything_is_fine(own: list[str]) -> None:
    assert as_json("down", *own) == {"removed": []}


@pytest.mark.skipif(
    not Path("/proc").exists(), reason="reads the environment of processes in /proc"
)
def test_credentials_of_the_user_reach_neither_us_nor_the_functions(
    own: list[str], tmp_path: Path
) -> None:
    (tmp_path / ".aws").mkdir()
    (tmp_path / ".aws" / "config").write_text(
        "[default]\nregion = moon-1\nendpoint_url = http://10.9.9.9\n"
    )
    own_environment = {
        "AWS_ACCESS_KEY_ID": "AKIAIOSFODNN7EXAMPLE",
        "AWS_SECRET_ACCESS_KEY": "theirs",
        "AWS_SESSION_TOKEN": "theirs",
        "AWS_PROFILE": "production",
        "AWS_ENDPOINT_URL": "http://10.9.9.9",
        "AWS_REGION": "moon-1",
        "HOME": str(tmp_path),
        "MY_SECRET": "theirs",
    }
    completed = taplocal("up", "--json", *own, env=own_environment)
    assert completed.returncode == 0, completed.stderr
    response = taplocal("call", "POST", "/items", "{}", "--json", *own, env=own_environment)
    assert json.loads(response.stdout)["status"] == 201
    pid = json.loads((tmp_path / "cloud" / "emulator.json").read_text())["pid"]
    keeper.wait(tmp_path / "cloud", lambda: True)
    children = subprocess.run(
        ["pgrep", "-g", str(pid)], capture_output=True, text=True, check=True
    ).stdout.split()
    environments = []
    for each in children:
        # The process of a snapshot has ended meanwhile.
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            environments.append(Path(f"/proc/{each}/environ").read_bytes())
    assert len(environments) >= 2  # the emulator and the workers of functions
    for environment in environments:
        assert b"theirs" not in environment
        assert b"moon-1" not in environment


def test_a_killed_emulator_is_noticed_and_started_with_its_data(
    own: list[str], tmp_path: Path
) -> None:
    as_json("up", *own)
    pid = json.loads((tmp_path / "cloud" / "emulator.json").read_text())["pid"]
    os.killpg(pid, signal.SIGKILL)
    stopped = taplocal("outputs", *own)
    assert (stopped.returncode, "is not running" in stopped.stderr) == (1, True)
    assert as_json("status", *own)["condition"] == "dead"
    assert as_json("up", *own)["counts"].keys() == {"unchanged"}
    assert as_json("call", "GET", "/items", *own)["status"] == 200
    assert as_json("snapshot", "one", *own)["snapshot"] == str(tmp_path / "cloud/snapshots/one")
    (listed,) = as_json("snapshots", *own)
    assert (listed["name"], listed["kind"], listed["of"]) == ("one", "everything", "dev")
    assert as_json("down", "--keep-data", *own) == {"stopped": ["dev"]}
    assert as_json("restore", "one", *own) == {"restored": ["dev"]}
    assert as_json("status", *own)["condition"] == "complete"
    mixed = taplocal("down", "--keep-data", "--env", "dev", *own)
    assert "error: --keep-data stops the emulator of all environments" in mixed.stderr


def test_ctrl_c_in_the_middle_leaves_nothing_that_the_next_run_cannot_finish(
    own: list[str],
) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "taplocal", "up", *own],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout
    for line in process.stdout:
        if line.startswith("+ created"):
            break
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=HANG_SECONDS)
    assert process.returncode == 130, errors
    assert "interrupted" in errors
    assert "Traceback" not in errors
    finished = as_json("up", *own)
    assert finished["counts"]["created"] > 0
    assert as_json("up", *own)["counts"].keys() == {"unchanged"}
    assert as_json("call", "GET", "/items", *own)["status"] == 200


def test_a_second_up_is_rejected_and_the_first_goes_on(own: list[str]) -> None:
    first = subprocess.Popen(
        [sys.executable, "-m", "taplocal", "up", "--json", *own],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    )
    lock = Path(own[1]) / "lock"
    deadline = time.monotonic() + HANG_SECONDS
    while not (lock.exists() and lock.read_text()) and time.monotonic() < deadline:
        time.sleep(0.01)
    first.send_signal(signal.SIGSTOP)  # so that it is at work while the second one runs
    second = taplocal("up", *own)
    first.send_signal(signal.SIGCONT)
    assert second.returncode == 1
    assert f"another taplocal command (process {first.pid}) uses {own[1]}" in second.stderr
    output, _ = first.communicate(timeout=HANG_SECONDS)
    assert json.loads(output)["counts"]["created"] > 50


def test_a_busy_port_is_passed_by() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        assert emulator._free_port((taken.getsockname()[1], 0)) != taken.getsockname()[1]


def test_a_broken_state_file_says_what_to_do(own: list[str], tmp_path: Path) -> None:
    folder = tmp_path / "cloud" / "env"
    folder.mkdir(parents=True)
    (folder / "dev.json").write_text('{"version": 0}')
    completed = taplocal("status", *own)
    assert completed.returncode == 1
    assert "is not a state file of this version" in completed.stderr
    (folder / "dev.json").unlink()


def test_two_environments_live_side_by_side(own: list[str]) -> None:
    as_json("up", *own)
    staging = as_json("up", "--env", "staging", *own)
    assert staging["outputs"]["table_name"] == "tap-stack-items-staging"
    assert as_json("call", "GET", "/items", "--env", "staging", *own)["status"] == 200
    assert as_json("down", "--env", "staging", *own)["removed"] == ["staging"]
    assert as_json("call", "GET", "/items", *own)["status"] == 200
    assert as_json("status", *own)["environments"] == ["dev"]


def test_prod_is_deployed_too(own: list[str]) -> None:
    prod = as_json("up", "--env", "prod", *own)
    assert prod["outputs"]["function_name"] == "tap-stack-api-prod"
    response = as_json(
        "call", "POST", "/items", "{}", "--env", "prod", "--user", "ann@example.com", *own
    )
    assert response["status"] == 201
    assert as_json("up", "--env", "prod", *own)["counts"].keys() == {"unchanged"}


def test_one_component_works_alone(own: list[str]) -> None:
    alone = as_json("up", "--program", "examples/api_only", *own)
    assert alone["outputs"].keys() == {
        "api_url",
        "user_pool_id",
        "people_client_id",
        "machine_client_ids",
    }
    response = as_json(
        "call", "POST", "/items", '{"id": "a"}', "--program", "examples/api_only", *own
    )
    assert response["status"] == 201
    assert as_json("up", "--program", "examples/api_only", *own)["counts"].keys() == {"unchanged"}


def test_a_handler_of_its_own_answers_around_that_of_the_stack(own: list[str]) -> None:
    program = ["--program", "examples/own_handler", *own]
    as_json("up", *program)
    response = as_json("call", "GET", "/items/nowhere", *program)
    assert (response["status"], response["body"]["detail"]) == (404, "There is no such item.")
    assert response["headers"]["strict-transport-security"] == "max-age=63072000"
