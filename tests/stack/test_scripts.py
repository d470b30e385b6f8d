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
    script = re.sub(r"(?<![\w.-])/(opt|etc|var/log)/", rf"{folder}/\1/", script)
    for path in (
        "opt/aws/amazon-cloudwatch-agent/etc",
        "opt/aws/amazon-cloudwatch-agent/bin",
        "etc/systemd/system",
        "etc/logrotate.d",
        "etc/sysctl.d",
        "etc/sysconfig",
    ):
        (folder / path).mkdir(parents=True, exist_ok=True)
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
    )
    assert completed.returncode == 0, completed.stderr
    web = tmp_path / "opt/web"
    source = tap_stack.bundle(tap_stack.web, tap_stack.migrate, tap_stack.INSTANCE_MODULES).rstrip()
    assert (web / "index.py").read_text().rstrip() == source
    assert (web / "requirements.txt").read_text().strip() == tap_stack.WEB_PACKAGES.strip()
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


def nat(tmp_path: Path, **changes: str) -> subprocess.CompletedProcess[str]:
    about = """case "$*" in
*api/token*) echo token;; *instance-id*) echo i-1;; *macs/) echo 0a:0b/;;
*interface-id*) echo network-nat-interface-0-id;; esac"""
    links = """case "$*" in
*link*) echo '3: ens6: <UP> mtu 9001 link/ether 0a:0b brd ff';;
*show\\ default*) echo 'default via 10.0.0.1 dev ens5';; *address*) echo '3: ens6 inet 10.0.0.9/20';; esac"""
    stubs = {
        "dnf": "",
        "aws": "",
        "curl": about,
        "ip": links,
        "sysctl": "",
        "systemctl": "",
        "sleep": "",
    }
    script = user_data(graph_of("dev"), "network-nat-0")
    return run(script, tmp_path, **{**stubs, **changes})


def test_the_nat_script_takes_its_interface_and_translates_the_network_only(tmp_path: Path) -> None:
    completed = nat(tmp_path)
    assert completed.returncode == 0, completed.stderr
    rules = (tmp_path / "etc/sysconfig/nftables.conf").read_text()
    assert 'oifname "ens6" ip saddr 10.0.0.0/16 masquerade' in rules
    calls = (tmp_path / "calls").read_text()
    assert "--network-interface-id network-nat-interface-0-id --instance-id i-1" in calls
    assert "ip route replace default via 10.0.0.1 dev ens6 metric 1" in calls
    assert "systemctl enable --now nftables" in calls


def test_the_nat_script_fails_if_it_never_gets_its_interface(tmp_path: Path) -> None:
    assert nat(tmp_path, aws="exit 1").returncode != 0
    assert not (tmp_path / "etc/sysconfig/nftables.conf").exists()
