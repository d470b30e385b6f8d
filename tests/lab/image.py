"""What stands in for the AMI: Debian with AL2023's cloud-init, systemd and networkd, and stubs for the rest."""

from __future__ import annotations

import fcntl
import hashlib
import inspect
import os
import shutil
import subprocess
import sys
from pathlib import Path

from tests.stack.conftest import REGION

ROOT = Path(__file__).parents[2]
UV = Path(sys.executable).with_name("uv")
KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"
#: AL2023 has systemd 252 too, and cloud-init 22.2 where Debian 12 has 22.4.
SUITE = "bookworm"  # with its updates, from where mmdebstrap gets them by default
PACKAGES = """systemd-sysv dbus udev cloud-init iproute2 python3-venv curl ca-certificates procps kmod
    openssh-server rsyslog logrotate""".split()
AWS_CLI = "awscli==1.46.3"  # the AMI has the command line; this one checks the names of arguments
INTERNET = "198.51.100.10"  # where the lab's internet answers as AWS's API, without TLS
TLS = "198.51.100.11"
OPERATOR = "198.51.100.70"  # of a person who may log in
OPERATORS = "198.51.100.64/26"
HOSTS = ("truststore.pki.rds.amazonaws.com", f"ec2.{REGION}.amazonaws.com")
DATABASE = "10.0.128.10"
BUILD_SECONDS = 600  # a guard against hanging
NEEDS = ("mmdebstrap", "dnsmasq", "nft", "ip", "ssh", "unshare", "nsenter")

FILES = {
    "etc/cloud/cloud.cfg.d/99_lab.cfg": """\
datasource_list: [Ec2]
network: {config: disabled}  # amazon-ec2-net-utils owns it
locale: false
ssh_genkeytypes: [ed25519]
system_info: {default_user: {name: ec2-user}}
""",
    "etc/cloud/ds-identify.cfg": "policy: enabled\ndatasource: Ec2\n",
    # Of amazon-ec2-net-utils: DHCP on every interface, at metric 512 and above.
    "etc/systemd/network/80-ec2.network": """\
[Match]
Name=ens*
[Network]
DHCP=ipv4
LinkLocalAddressing=no
[DHCPv4]
RouteMetric=512
UseHostname=no
""",
    "etc/systemd/system.conf.d/lab.conf": f"""\
[Manager]
DefaultEnvironment=AWS_ENDPOINT_URL=http://{INTERNET}:443 AWS_RETRY_MODE=standard
""",
    "etc/machine-id": "",
    "etc/resolv.conf": "nameserver 127.0.0.1\n",  # refuses at once; a dead one costs 20 s
    "etc/hosts": f"""\
127.0.0.1 localhost
{TLS} {" ".join(HOSTS)}
{DATABASE} database.example
""",
    "usr/local/bin/aws": """\
#!/bin/sh
PYTHONPATH=/opt/awscli exec python3 -m awscli "$@"
""",
    # The packages that user data may name; AL2023 has each of them (its own package lists).
    "usr/local/bin/dnf": """\
#!/bin/bash
for each; do case $each in install|-y|-q) ;;
    "$(cat /etc/dnf-lacks 2> /dev/null)") echo "No match for argument: $each" >&2; exit 1;;
    python3.11|python3.11-pip|amazon-cloudwatch-agent|rsyslog) ;;
    *) echo "No match for argument: $each" >&2; exit 1;; esac; done
[ ! -e /etc/dnf-fills ] || dd if=/dev/zero of=/var/cache/full bs=1M 2> /dev/null || true
""",
    # Of the agent: its options; a test has its configuration.
    "opt/aws/amazon-cloudwatch-agent/bin/amazon-cloudwatch-agent-ctl": """\
#!/bin/bash
[[ "$*" = "-a fetch-config -m ec2 -s -c file:"* ]] && python3 -m json.tool "${7#file:}" \\
    /opt/aws/amazon-cloudwatch-agent/etc/amazon-cloudwatch-agent.json
""",
    "opt/aws/amazon-cloudwatch-agent/etc/.keep": "",
    # Of ec2-instance-connect: sshd asks for the keys that the metadata have for a minute.
    "etc/ssh/sshd_config.d/60-instance-connect.conf": """\
AuthorizedKeysCommand /opt/aws/bin/eic_run_authorized_keys %u %f
AuthorizedKeysCommandUser nobody
SyslogFacility AUTHPRIV
""",
    "opt/aws/bin/eic_run_authorized_keys": """\
#!/bin/sh
metadata=http://169.254.169.254/latest
token=$(curl -s -X PUT -H 'X-aws-ec2-metadata-token-ttl-seconds: 5' $metadata/api/token)
exec curl -sf -H "X-aws-ec2-metadata-token: $token" \\
    "$metadata/meta-data/managed-ssh-keys/active-keys/$1"
""",
    # As AL2023's, of what concerns logins.
    "etc/rsyslog.conf": """\
module(load="imuxsock")
authpriv.* /var/log/secure
""",
    "opt/web/venv/bin/gunicorn": """\
#!/opt/web/venv/bin/python
from gunicorn.app.wsgiapp import run
run()
""",
}


def why_not() -> str:
    """Why the lab cannot run here; empty if it can. CONTRIBUTING.md lists the reason."""
    spaces = [
        "unshare",
        "--mount",
        "--pid",
        "--fork",
        "--net",
        "--uts",
        "--ipc",
        "--cgroup",
        "true",
    ]
    missing = [each for each in NEEDS if not shutil.which(each)]
    if os.geteuid() or missing or not Path(KEYRING).exists():
        return "the lab needs root and Debian's packages: .ci/run"
    done = subprocess.run(spaces, capture_output=True, check=False)
    return "" if done.returncode == 0 else "the lab needs root and Debian's packages: .ci/run"


def build() -> Path:
    """The root file system, built once for each version of its packages; its files are rewritten."""
    made_of = [SUITE, AWS_CLI, *PACKAGES, inspect.getsource(_make)]
    parts = "".join(made_of).encode() + (ROOT / "requirements-dev.txt").read_bytes()
    key = hashlib.sha256(parts).hexdigest()[:12]
    root = Path(sys.prefix) / f"lab-{key}"
    with root.with_name("lab.lock").open("w") as alone:
        fcntl.flock(alone, fcntl.LOCK_EX)  # tests of several files begin at once
        if not root.exists():
            for old in Path(sys.prefix).glob("lab-*"):
                shutil.rmtree(old)
            _make(new := root.with_name(f"lab-new-{key}"))
            new.rename(root)
        _write(root)
    return root


def _write(root: Path) -> None:
    """Writes what FILES has, where it is another text."""
    for name, text in FILES.items():
        path = root / name
        if path.is_file() and not path.is_symlink() and path.read_text() == text:
            continue  # machines may be running on it
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        path.write_text(text)
        path.chmod(0o755 if text.startswith("#!") else 0o644)


def _make(new: Path) -> None:
    include = f"--include={','.join(PACKAGES)}"
    # As one layer of an overlay, which needs no cache of apt.
    _run("mmdebstrap", "--quiet", "--variant=minbase", include, f"--keyring={KEYRING}", SUITE, new)  # fmt: skip
    _install(new / "opt/awscli", AWS_CLI)
    web = ["gunicorn", "psycopg[binary]", "boto3", "-c", str(ROOT / "requirements-dev.txt")]
    _install(new / "opt/web/venv/lib/python3.11/site-packages", *web)
    (new / "var/log/journal").mkdir(exist_ok=True)
    _run("chroot", new, "systemctl", "--quiet", "enable", "systemd-networkd")
    _run("chroot", new, "systemctl", "--quiet", "disable", "rsyslog", "logrotate.timer", "apt-daily.timer", "apt-daily-upgrade.timer")  # fmt: skip
    _run("chroot", new, "systemctl", "--quiet", "mask", "console-getty")


def _install(target: Path, *what: str) -> None:
    options = ["--quiet", "--python-version", "3.11", "--only-binary", ":all:", "--target"]
    _run(UV, "pip", "install", *options, str(target), *what)


def _run(*command: str | Path) -> None:
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=BUILD_SECONDS, check=False
    )
    assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
