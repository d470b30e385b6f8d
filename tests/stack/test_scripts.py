"""The scripts of instances: free of errors and secrets, run with stubs for what changes a machine."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

import tap_stack
from tests.stack.conftest import (
    ROOT,
    cloud_config,
    graph_of,
    user_data,
)

INSTANCES = ("web-fleet", "bastion-fleet", "network-nat-0")


@pytest.mark.parametrize("name", INSTANCES)
def test_user_data_is_a_script_without_errors_and_without_secrets(name: str) -> None:
    script = user_data(graph_of("dev"), name)
    assert script.startswith("#!/bin/bash\n")
    assert "set -euo pipefail" in script
    assert not re.search(r"@[a-z_]+@", script)  # every name is rendered in
    assert not re.search(r"AKIA|aws_secret|BEGIN [A-Z ]*PRIVATE KEY", script)
    assert complaints(["bash", "-n"], script) == ""


@pytest.mark.skipif(not shutil.which("shellcheck"), reason="there is no shellcheck here")
@pytest.mark.parametrize("name", INSTANCES)
def test_shellcheck_finds_nothing_in_user_data(name: str) -> None:
    assert complaints(["shellcheck", "-"], user_data(graph_of("dev"), name)) == ""


def test_an_image_of_ones_own_has_what_the_scripts_would_install() -> None:
    text = (ROOT / "docs/deploy.md").read_text().partition("## An image of your own")[2]
    scripts = "".join(path.read_text() for path in sorted((ROOT / "scripts").glob("*.sh")))
    for what in (
        r"dnf install -y(?: -q)?((?: [a-z0-9.-]+)+)",
        r"(\S+ -m venv \S+)",
        r"(\S+/pip install) ",
        r"(https://\S+\.pem)",
    ):
        found = [
            {x for each in re.findall(what, of) for x in each.split()} for of in (text, scripts)
        ]
        assert found[0] == found[1] != set(), what


def complaints(checker: list[str], script: str) -> str:
    """What a checker of scripts says."""
    checked = subprocess.run(checker, input=script, text=True, capture_output=True, check=False)
    return checked.stdout + checked.stderr


@pytest.mark.skipif(not shutil.which("cloud-init"), reason="there is no cloud-init here")
@pytest.mark.parametrize("name", INSTANCES)
def test_user_data_is_valid_to_cloud_init(name: str, tmp_path: Path) -> None:
    (tmp_path / "config").write_text(cloud_config(graph_of("dev"), name))
    command = ["cloud-init", "schema", "--config-file", str(tmp_path / "config")]
    checked = subprocess.run(command, text=True, capture_output=True, check=False)
    assert checked.returncode == 0, checked.stdout + checked.stderr


def run(script: str, folder: Path, **stubs: str) -> subprocess.CompletedProcess[str]:
    """Runs a script below a folder, with stubs in place of programs that change the machine."""
    for name, body in stubs.items():
        (folder / "bin").mkdir(exist_ok=True)
        stub = folder / "bin" / name.replace("_", "-").replace("python3-11", "python3.11")
        stub.write_text(f'#!/bin/bash\necho {name} "$@" >> {folder}/calls\n{body}\n')
        stub.chmod(0o755)
    script = re.sub(r"(?<![\w.-])/(opt|etc|var/log|var/lib)/", rf"{folder}/\1/", script)
    for path in (
        "opt/aws/amazon-cloudwatch-agent/etc",
        "opt/aws/amazon-cloudwatch-agent/bin",
        "etc/systemd/system",
        "etc/logrotate.d",
        "var/lib/cloud/data",
    ):
        (folder / path).mkdir(parents=True, exist_ok=True)
    (folder / "var/lib/cloud/data/instance-id").write_text("i-1\n")
    agent = folder / "opt/aws/amazon-cloudwatch-agent/bin/amazon-cloudwatch-agent-ctl"
    agent.write_text(f"#!/bin/bash\necho agent >> {folder}/calls\n")
    agent.chmod(0o755)
    environment = {"PATH": f"{folder}/bin:/usr/bin:/bin:/usr/sbin:/sbin"}
    return subprocess.run(
        ["bash"],
        input=script,
        text=True,
        capture_output=True,
        env=environment,
        cwd=folder,
        check=False,
        timeout=60,
    )


def test_the_web_script_installs_the_application_and_starts_it(tmp_path: Path) -> None:
    made = "mkdir -p $3/bin; printf '#!/bin/bash\\n[ $1 != -c ]\\n' > $3/bin/python; printf '#!/bin/bash\\ntouch $0.ran\\n' > $3/bin/pip; chmod +x $3/bin/*"
    fetched = 'while [ "$1" != -o ]; do shift; done; echo certificates > "$2"'
    completed = run(
        user_data(graph_of("dev"), "web-fleet"),
        tmp_path,
        dnf="",
        useradd="",
        systemctl="",
        id="exit 1",
        python3_11=made,
        curl=fetched,
        aws="",
    )
    assert completed.returncode == 0, completed.stderr
    web = tmp_path / "opt/web"
    source = tap_stack.bundle(
        tap_stack.web, tap_stack.run_command, tap_stack.INSTANCE_MODULES
    ).rstrip()
    assert (web / "index.py").read_text().rstrip() == source
    assert (web / "requirements.txt").read_text().strip() == tap_stack.text_beside(
        "requirements-web.txt"
    ).strip()
    assert (web / "rds.pem").read_text() == "certificates\n"
    assert (web / "venv/bin/pip.ran").exists()
    unit = (tmp_path / "etc/systemd/system/web.service").read_text()
    assert "DATABASE_HOST=database.example\n" in (web / "environment").read_text()
    assert "index:web" in unit
    agent = json.loads((tmp_path / "opt/aws/amazon-cloudwatch-agent/etc/agent.json").read_text())
    (shipped,) = agent["logs"]["logs_collected"]["files"]["collect_list"]
    assert shipped["log_group_name"] == "/tap-stack-web-dev"
    calls = (tmp_path / "calls").read_text()
    assert "systemctl enable --now web" in calls
    assert "agent" in calls
