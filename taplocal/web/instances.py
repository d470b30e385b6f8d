"""Instances as processes: a folder, and what the launch template's user data starts in it.

User data runs as it is, but for the table of `Instance.substitutions`: the machine's folders become
folders below the instance's own, its ports the instance's. It is cloud-config (write_files, runcmd)
or a script, gzipped or not. Commands that Amazon Linux has and a laptop lacks are in `bin` of that
folder. What cannot be done here fails the command, and so the user data, with the reason in the
console log, as on AWS; what a group does then is its own affair.

It is no sandbox: a path that is put together at run time is the machine's, and reaches what the
user of the instance may. As root that user is 65533, who may nothing; see `user_of`.

An instance takes 0.5 s of CPU to launch, and about 120 MB with gunicorn and two workers.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import functools
import gzip
import itertools
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml

from taplocal.web.agent import Agent
from taplocal.web.metadata import Metadata, written
from taplocal.web.processes import Processes
from taplocal.web.units import Unit, UnitError, owned

USER = 65_533  # no account, and not PostgreSQL's, whose files instances may not read
BOOT_SECONDS = 120  # for all of the user data
LISTEN_SECONDS = 2  # how long `systemctl start` waits for a socket, so that what follows finds it
STOP_SECONDS = 5
CONSOLE_LIMIT = 65_536  # bytes, EC2's
POSTGRES_PORT = 5432
LOOKS = ("is-active", "status")  # verbs of systemctl that change nothing
SHIM = Path(__file__).with_name("shim.py")
AGENT = "opt/aws/amazon-cloudwatch-agent"
FOLDERS = f"""bin etc/logrotate.d etc/systemd/system home mnt opt root run srv tmp usr/lib/systemd
    usr/local/bin usr/local/sbin var/lib/cloud/data var/log {AGENT}/bin {AGENT}/etc""".split()
PLACES = "opt|etc|var|srv|root|home|tmp|mnt|run|boot|usr/local|usr/lib/systemd"
#: What is no beginning of a path: a word, a variable or a glob goes on there.
INSIDE = r"[\w.~})\]*/\\]"
PATH = rf"(?:(?<!{INSIDE})|(?<=file://))/(?={PLACES})(?!(?:{PLACES})[\w.-])"
#: Paths that no rule replaces: in an option (-I/etc), after .. or a second slash.
LEFT = re.compile(
    rf"(?:(?<=\s-[A-Za-z])|(?<=/\.\.)|(?<=[\s'\"=]/)|(?<=[*\\]))/(?:{PLACES})(?![\w.-])\S*"
)
#: GiB of the sizes of general instances; those of `c` have half, of `r` and `x` twice as much.
SIZES = {"nano": 0.5, "micro": 1, "small": 2, "medium": 4, "large": 8, "xlarge": 16}
#: Commands that would leave the instance: for root, other sessions, machines, this one itself.
REFUSED = """at crontab docker hostnamectl iptables mount nft podman reboot runuser shutdown ssh su
    sudo sysctl systemd-run umount wget""".split()
#: The commands of `bin`, for /bin/sh; @python@ is the interpreter that runs this.
COMMANDS = {
    "dnf": f"""
for each; do case $each in
    -*|install|update|upgrade|clean|all|makecache|python3.11|python3.11-pip|bash|coreutils) ;;
    amazon-cloudwatch-agent) ln -sf "$INSTANCE_ROOT/bin/agent-ctl" \\
        "$INSTANCE_ROOT/{AGENT}/bin/amazon-cloudwatch-agent-ctl" ;;
    *) command -v "$each" > /dev/null || {{
        echo "No match for argument: $each. Here are python3.11, python3.11-pip,"\\
            "amazon-cloudwatch-agent and what this machine has" >&2
        exit 1
    }} ;;
esac; done""",
    "agent-ctl": 'exec @python@ -IS @shim@ agent "$@"',
    # Units are read when they are started.
    "systemctl": '[ "$*" = daemon-reload ] || exec @python@ -IS @shim@ systemctl "$@"',
    "aws": 'exec @python@ -I @shim@ aws "$@"',
    "systemd-notify": "",
    "chown": "",
    "chgrp": "",
    "useradd": 'for last; do :; done; echo "$last" >> "$INSTANCE_ROOT/etc/passwd"',
    "groupadd": "",
    "usermod": "",
    "id": """
for last; do :; done
case ${last--} in
    -*) exec /usr/bin/id "$@" ;;
    *) grep -qx -- "$last" "$INSTANCE_ROOT/etc/passwd" ||
            { echo "id: '$last': no such user" >&2; exit 1; }
        /usr/bin/id ;;
esac""",
    "setsid": 'while case ${1-} in -*) ;; *) false ;; esac; do shift; done; exec "$@"',
    # BSD's has no -a.
    "xargs": """
[ "${1-}" = -a ] || exec /usr/bin/xargs "$@"
file=$2; shift 2
exec /usr/bin/xargs "$@" < "$file" """,
    "curl": """
[ -x /usr/bin/curl ] || { echo "curl: install curl, which instances use" >&2; exit 127; }
count=$#
while [ $count -gt 0 ]; do
    case $1 in
        https://truststore.pki.rds.amazonaws.com/*) set -- "$@" "file://@authority@" ;;
        http://169.254.169.254/*)
            set -- "$@" "$AWS_EC2_METADATA_SERVICE_ENDPOINT${1#http://169.254.169.254/}" ;;
        http://127.0.0.1:*|http://localhost:*|"$AWS_ENDPOINT_URL"*) set -- "$@" "$1" ;;
        *://*) echo "curl: $1: the local cloud never connects to another machine" >&2; exit 6 ;;
        *) set -- "$@" "$1" ;;
    esac
    shift; count=$((count - 1))
done
exec /usr/bin/curl --noproxy '*' "$@" """,
    # A virtual environment by hand, in 10 ms: its packages are those that run this.
    "python3.11": """
[ "${1-}:${2-}" = -m:venv ] || exec @python@ "$@"
for last; do :; done
mkdir -p "$last/bin" "$last/lib/@version@/site-packages"
ln -sf @base@ "$last/bin/python"
ln -sf python "$last/bin/python3"
ln -sf python "$last/bin/python3.11"
printf 'home = %s\\n' "$(dirname @base@)" > "$last/pyvenv.cfg"
echo @packages@ > "$last/lib/@version@/site-packages/taplocal.pth"
for each in gunicorn pip; do
    printf '#!/bin/sh\\nexec "%s/bin/python" -m %s "$@"\\n' "$last" $each > "$last/bin/$each"
    chmod +x "$last/bin/$each"
done
cat > "$last/bin/pip" <<'PIP'
#!/bin/sh
echo "pip: nothing is installed here: packages are those that run the local cloud" >&2
exit 1
PIP""",
    **dict.fromkeys(
        REFUSED, 'echo "${0##*/}: an instance of the local cloud cannot do that" >&2; exit 1'
    ),
}


class InstanceError(Exception):
    """An instance whose user data failed; the message has the last lines of its log."""


@dataclass(frozen=True, kw_only=True)
class Launch:
    """What an instance is made of: the launch template's data, and where the others are."""

    instance_id: str
    user_data: str  # in base64, as the launch template has it
    region: str
    zone: str
    role: str  # the name of the instance profile's role
    group: str = ""  # the Auto Scaling group
    instance_type: str = "t4g.small"
    image_id: str = ""
    target_port: int = 8080  # where the target group expects the application
    port: int  # where it listens instead, on 127.0.0.1
    database_port: int | None = None  # where the database listens instead of on 5432
    endpoint: str  # the emulator's URL
    authority: Path  # certificates that stand in for those of RDS
    account: str = "000000000000"
    tags: Mapping[str, str] = field(default_factory=dict)

    @property
    def memory(self) -> float:
        """The memory of its type in bytes."""
        family, _, size = self.instance_type.partition(".")
        count = re.match(r"\d*", size)
        gib = SIZES.get(size) or 16 * int((count and count[0]) or 1)
        return gib * {"c": 0.5, "r": 2, "x": 2}.get(family[:1], 1) * 2**30


class Instance:
    """One instance; its folder, `folder`/<instance id>, has all that it writes."""

    def __init__(self, launch: Launch, folder: Path, processes: Processes, metadata: Metadata):
        self.launched, self.root = launch, folder.resolve() / launch.instance_id
        self.processes, self.metadata = processes, metadata
        self.user: int | None = None
        self.units: dict[str, Unit] = {}
        self.agent: asyncio.Task[None] | None = None
        self.state, self._console, self._endpoint = "pending", "", ""
        self.values = {
            "meta-data/ami-id": launch.image_id,
            "meta-data/instance-id": launch.instance_id,
            "meta-data/instance-life-cycle": "on-demand",
            "meta-data/instance-type": launch.instance_type,
            "meta-data/local-ipv4": "127.0.0.1",
            "meta-data/placement/availability-zone": launch.zone,
            "meta-data/placement/region": launch.region,
            f"meta-data/iam/security-credentials/{launch.role}": "",  # its keys are asked for
            "dynamic/instance-identity/document": json.dumps(
                {
                    "accountId": launch.account,
                    "availabilityZone": launch.zone,
                    "imageId": launch.image_id,
                    "instanceId": launch.instance_id,
                    "instanceType": launch.instance_type,
                    "privateIp": "127.0.0.1",
                    "region": launch.region,
                }
            ),
        }

    @property
    def port(self) -> int:
        """Where the application answers on 127.0.0.1."""
        return self.launched.port

    async def launch(self) -> None:
        """Runs the user data; InstanceError with the last lines of its log if that fails."""
        launch = self.launched
        for each in FOLDERS:
            (self.root / each).mkdir(parents=True, exist_ok=True)
        self._endpoint = self.metadata.add(
            launch.instance_id, launch.role, self.values, self._command
        )
        try:
            self._commands()
            commands = self._files(cloud_config(launch.user_data))
            self.user = user_of(self.root.parent)
            hand_over(self.root, self.user)
            if os.geteuid() == 0 and self.user is None:
                self._say(f"runs as root: user {USER} may not run {sys.executable}")
            async with asyncio.timeout(BOOT_SECONDS):
                for argv in commands:
                    await self._run(argv)
        except TimeoutError:
            self._fail(f"the user data took longer than {BOOT_SECONDS} s")
        except (InstanceError, OSError, ValueError) as error:
            self._fail(str(error))
        self.state = "running"

    def _fail(self, why: str) -> None:
        self.state = "failed"
        self._say(f"the user data failed: {why}")
        last = "\n".join(self.console_output().splitlines()[-20:])
        raise InstanceError(f"{self.launched.instance_id} did not start:\n{last}") from None

    def _say(self, line: str) -> None:
        self._console += f"{line}\n"

    def _commands(self) -> None:
        version = f"python{sys.version_info.major}.{sys.version_info.minor}"
        base = Path(getattr(sys, "_base_executable", sys.executable))
        packages = next(x for x in map(Path, sys.path) if (x / "gunicorn").is_dir())
        values = {
            "python": shlex.quote(sys.executable),
            "shim": shlex.quote(str(SHIM)),
            "base": shlex.quote(str(base)),
            "packages": shlex.quote(str(packages)),
            "version": version,
            "authority": str(self.launched.authority),
        }
        for name, script in COMMANDS.items():
            for key, value in values.items():
                script = script.replace(f"@{key}@", value)
            path = self.root / "bin" / name
            path.write_text(f"#!/bin/sh\n{script.strip()}\n")
            path.chmod(0o755)
        (self.root / "etc/passwd").touch()
        (self.root / "bin/yum").symlink_to("dnf")
        (self.root / "var/lib/cloud/data/instance-id").write_text(self.launched.instance_id)

    def _files(self, config: Mapping[str, Any]) -> list[list[str]]:
        """Writes the files of cloud-config; returns its commands."""
        for each in config.get("write_files", []):
            path = Path(self.replaced(str(each["path"])))
            if self.root not in path.parents or ".." in path.parts:
                raise InstanceError(f"write_files: {each['path']} cannot be written here")
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("a" if each.get("append") else "w") as file:
                file.write(self.replaced(content_of(each)))
            path.chmod(int(str(each.get("permissions", "0644")), 8))
        commands = config.get("runcmd", [])
        return [
            ["/bin/sh", "-c", self.replaced(each)]
            if isinstance(each, str)
            else [self.replaced(str(word)) for word in each]
            for each in commands
        ]

    async def _run(self, argv: list[str]) -> None:
        process = await self.processes.start(
            argv,
            cwd=self.root,
            env=self.environment(),
            log=self.root / "console.log",
            user=self.user,
        )
        try:
            status = await process.wait()
        except asyncio.CancelledError:
            await process.stop(seconds=0)
            raise
        if status:
            raise InstanceError(f"{' '.join(argv)[:200]} ended with status {status}")

    def replaced(self, text: str) -> str:
        """A text of the user data as it is here; InstanceError for a path that stays outside."""
        rules = self._rules()
        pattern = "|".join(f"({each})" for each, _ in rules)
        text = re.sub(pattern, lambda found: rules[(found.lastindex or 1) - 1][1], text)
        if left := LEFT.search(text):
            line = text.count("\n", 0, left.start()) + 1
            raise InstanceError(
                f"line {line} of the user data names {left[0]} in a way that cannot be replaced: "
                "it would be a path of this machine; write it as a word of its own"
            )
        return text

    def _rules(self) -> list[tuple[str, str]]:
        launch, names = self.launched, "|".join(map(re.escape, COMMANDS))
        command = rf"(?<!{INSIDE})/(?:usr/)?s?bin/(?={names})(?!(?:{names})[\w.-])"
        rules = [
            (PATH, f"{self.root}/"),
            (command, f"{self.root}/bin/"),
            (r"(?<![\w.])0\.0\.0\.0(?![\w./])|\[::\](?=:\d)", "127.0.0.1"),
            (rf"(?<![\w.]){launch.target_port}(?![\w.])", str(launch.port)),
        ]
        if launch.database_port:
            rules.append((rf"(?<![\w.]){POSTGRES_PORT}(?![\w.])", str(launch.database_port)))
        return rules

    def substitutions(self) -> list[tuple[str, str]]:
        """How its user data differs from the launch template's: what is replaced, and by what."""
        launch, root = self.launched, self.root
        shown = [
            (", ".join(f"/{each}" for each in PLACES.split("|")), f"{root}/..."),
            ("/usr/bin/COMMAND for the commands of bin", f"{root}/bin/COMMAND"),
            ("0.0.0.0", "127.0.0.1"),  # noqa: S104 - what is replaced
            (f"port {launch.target_port}", f"{launch.port}"),
        ]
        database = [(f"port {POSTGRES_PORT}", f"{launch.database_port}")]
        return shown + (database if launch.database_port else [])

    def environment(self) -> dict[str, str]:
        """The variables that all its processes have besides those of the user data."""
        return {
            "PATH": f"{self.root}/bin:{self.root}/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin",
            "HOME": f"{self.root}/root",
            "TMPDIR": f"{self.root}/tmp",  # noqa: S108 - of its own
            "LANG": "C.UTF-8",
            "INSTANCE_ROOT": str(self.root),
            "INSTANCE_REGION": self.launched.region,
            "PGHOSTADDR": "127.0.0.1",
            "AWS_ENDPOINT_URL": self.launched.endpoint,
            "AWS_EC2_METADATA_SERVICE_ENDPOINT": self._endpoint,
        }

    def alive(self) -> bool:
        """Whether it starts or runs: it neither failed nor was terminated."""
        return self.state in ("pending", "running")

    async def terminate(self, seconds: float = STOP_SECONDS) -> None:
        """Stops all its processes (TERM, after so many seconds KILL) and removes its folder."""
        self.state = "terminated"
        await asyncio.gather(*(each.stop(seconds) for each in self.units.values()))
        if self.agent:
            self.agent.cancel()
        self.metadata.remove(self.launched.instance_id)
        self._console = self.console_output()
        shutil.rmtree(self.root, ignore_errors=True)

    def console_output(self) -> str:
        """The last 64 KB of what the user data said, as GetConsoleOutput."""
        text = owned(self.root / "console.log", self._owner)
        return (text + self._console)[-CONSOLE_LIMIT:]

    @property
    def _owner(self) -> int:
        return os.geteuid() if self.user is None else self.user

    def set_lifecycle_state(self, state: str) -> None:
        """Says in the metadata which state the group wants: InService, Terminated..."""
        self.values["meta-data/autoscaling/target-lifecycle-state"] = state

    def interrupt(self, at: datetime) -> None:
        """Announces the interruption of a Spot instance in the metadata, and recommends to leave.

        Seconds are AWS's finest, so the time there may be almost one earlier.
        """
        notice = {"noticeTime": written(datetime.now(UTC))}
        self.values |= {
            "meta-data/events/recommendations/rebalance": json.dumps(notice),
            "meta-data/spot/instance-action": json.dumps(
                {"action": "terminate", "time": written(at)}
            ),
            "meta-data/spot/termination-time": written(at),
        }

    def cpu_seconds(self) -> float:
        """The CPU time that its units have used; begins again when one is started again."""
        return sum(usage().get(each, (0.0, 0))[0] for each in self._groups())

    def memory(self) -> int:
        """The bytes of memory that its units' processes use, shared pages once for each."""
        return sum(usage().get(each, (0.0, 0))[1] for each in self._groups())

    def _groups(self) -> list[int]:
        return [x.process.pid for x in self.units.values() if x.process and x.process.alive()]

    def _measure(self) -> dict[str, float]:
        disk = shutil.disk_usage(self.root)
        return {
            "mem_used_percent": 100 * self.memory() / self.launched.memory,
            "disk_used_percent": 100 * disk.used / disk.total,
        }

    async def _command(self, arguments: Sequence[str]) -> tuple[int, str]:
        """What the instance asks its supervisor: systemctl, or the agent's program."""
        program, *rest = arguments
        try:
            if program == "systemctl":
                return await self._systemctl(rest)
            return self._start_agent(rest)
        except (UnitError, OSError, ValueError) as error:
            return 1, str(error)

    async def _systemctl(self, arguments: Sequence[str]) -> tuple[int, str]:
        options = [each for each in arguments if each.startswith("-")]
        verb, *names = [each for each in arguments if not each.startswith("-")] or [""]
        if verb in ("daemon-reload", "reset-failed"):
            return 0, ""
        if verb == "poweroff":
            self.state = "stopped"
            await asyncio.gather(*(each.stop(STOP_SECONDS) for each in self.units.values()))
            return 0, ""
        done = [await self._verb(verb, self._unit(name, verb in LOOKS), options) for name in names]
        text = "\n".join(text for _, text in done if text)
        return max((status for status, _ in done), default=1), text

    async def _verb(self, verb: str, unit: Unit, options: Sequence[str]) -> tuple[int, str]:
        now = "--now" in options
        if verb in ("stop", "restart", "try-restart") or (verb == "disable" and now):
            await unit.stop()
        if verb in ("start", "restart", "reload-or-restart") or (verb == "enable" and now):
            await unit.start()
            await self._listens(unit)
        if verb in LOOKS:
            shown = unit.state if verb == "is-active" else f"{unit.name}\n   Active: {unit.state}"
            return (0 if unit.state == "active" else 3), shown
        known = "start stop restart try-restart reload-or-restart enable disable is-enabled".split()
        return (0, "") if verb in known else (1, f"systemctl {verb} cannot be done here")

    def _unit(self, name: str, only_looks: bool) -> Unit:
        """A unit as its file is now, but one that runs, or that is only looked at, as it is."""
        name = name if "." in name else f"{name}.service"
        unit = self.units.get(name)
        if unit and (only_looks or unit.state in ("active", "activating")):
            return unit
        for folder in ("etc/systemd/system", "usr/lib/systemd/system"):
            if "/" not in name and (text := owned(self.root / folder / name, self._owner)):
                break
        else:
            raise UnitError(f"Unit {name} not found.")
        made = Unit(
            name,
            text,
            self.processes,
            root=self.root,
            environment=self.environment(),
            user=self.user,
        )
        self.units[name] = made
        return made

    async def _listens(self, unit: Unit) -> None:
        """Waits a moment until the application listens, if it does."""
        until = time.monotonic() + LISTEN_SECONDS
        while unit.process and unit.process.alive() and time.monotonic() < until:
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", self.launched.port)
                writer.close()
                return
            except OSError:
                await asyncio.sleep(0.02)

    def _start_agent(self, arguments: Sequence[str]) -> tuple[int, str]:
        given = dict(itertools.pairwise(arguments))
        if given.get("-a") != "fetch-config" or not given.get("-c", "").startswith("file:"):
            return 1, "only -a fetch-config -m ec2 -s -c file:PATH can be done here"
        launch = self.launched
        config = json.loads(owned(Path(given["-c"].removeprefix("file:")), self._owner))
        names = {
            "InstanceId": launch.instance_id,
            "AutoScalingGroupName": launch.group,
            "InstanceType": launch.instance_type,
            "ImageId": launch.image_id,
        }
        made = Agent(
            config,
            endpoint=launch.endpoint,
            region=launch.region,
            names=names,
            owner=self._owner,
            keys=functools.partial(self.metadata.keys, launch.instance_id),
            measure=self._measure,
            say=self._say,
        )
        if self.agent:
            self.agent.cancel()
        self.agent = asyncio.create_task(made.run())
        return 0, "Configuration validation succeeded"


def cloud_config(user_data: str) -> Mapping[str, Any]:
    """User data as cloud-config; InstanceError if it is none and no script."""
    try:
        content = base64.b64decode(user_data, validate=True)
        content = gzip.decompress(content) if content[:2] == b"\x1f\x8b" else content
        text = content.decode()
    except (binascii.Error, UnicodeDecodeError, EOFError, OSError, zlib.error) as error:
        raise InstanceError(f"the user data is no text in base64: {error}") from None
    if text.startswith("#!"):
        path = "/var/lib/cloud/instance/user-data"
        file = {"path": path, "permissions": "0700", "content": text}
        return {"write_files": [file], "runcmd": [[path]]}
    if not text.startswith("#cloud-config"):
        raise InstanceError("the user data begins with neither #cloud-config nor #!")
    try:
        config = yaml.load(text, getattr(yaml, "CSafeLoader", yaml.SafeLoader))  # noqa: S506
    except yaml.YAMLError as error:
        raise InstanceError(f"the user data is no cloud-config: {error}") from None
    if other := set(config) - {"write_files", "runcmd"}:
        raise InstanceError(
            f"cloud-config: only write_files and runcmd can be done here, not {', '.join(other)}"
        )
    return dict(config)


def content_of(file: Mapping[str, Any]) -> str:
    """The content of a file of cloud-config."""
    content, encoding = file.get("content", ""), str(file.get("encoding", "text/plain"))
    if "b64" in encoding or "base64" in encoding:
        content = base64.b64decode(content)
    if encoding.startswith("gz"):
        content = gzip.decompress(content)
    return content.decode() if isinstance(content, bytes) else str(content)


@functools.cache
def user_of(folder: Path) -> int | None:
    """The user of instances below a folder: as root USER, if that may run this Python there.

    The folder and its parent, which are the local cloud's own, get a mode by which it can pass.
    """
    if os.geteuid() != 0:
        return None
    for each in (folder, folder.parent):
        each.chmod(0o711)
    try:
        subprocess.run(
            [sys.executable, "-I", "-c", f"import gunicorn, ssl; open({str(SHIM)!r})"],
            cwd=folder,
            user=USER,
            group=USER,
            extra_groups=[],
            capture_output=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return None  # such as of a Python below /root
    return USER


def hand_over(folder: Path, user: int | None) -> None:
    """Gives a folder and what is in it to the instance's user alone."""
    folder.chmod(0o700)
    if user is not None:
        for each in (folder, *folder.rglob("*")):
            os.chown(each, user, user, follow_symlinks=False)


_usage: tuple[float, dict[int, tuple[float, int]]] = 0.0, {}


def usage() -> dict[int, tuple[float, int]]:
    """CPU seconds and bytes of memory of each process group, at most half a second old.

    Children that are groups of their own count for their parent too, as PostgreSQL's are.
    """
    global _usage
    now = time.monotonic()
    if now - _usage[0] > 0.5:
        found = by_proc() if Path("/proc/self/stat").exists() else by_ps()
        groups: dict[int, tuple[float, int]] = {}
        for ids, cpu, memory in found:
            for each in ids:
                before = groups.get(each, (0.0, 0))
                groups[each] = before[0] + cpu, before[1] + memory
        _usage = now, groups
    return _usage[1]


def by_proc() -> list[tuple[set[int], float, int]]:
    """Parent and group, CPU seconds, bytes of each process, from Linux, in its ticks of 10 ms."""
    ticks, page, made = os.sysconf("SC_CLK_TCK"), os.sysconf("SC_PAGE_SIZE"), []
    for each in os.scandir("/proc"):
        if each.name.isdigit():
            try:
                text = Path(each.path, "stat").read_text()
            except OSError:
                continue  # it has ended
            values = text.rpartition(")")[2].split()
            made.append(
                (
                    set(map(int, values[1:3])),
                    sum(map(int, values[11:15])) / ticks,
                    int(values[21]) * page,
                )
            )
    return made


def by_ps() -> list[tuple[set[int], float, int]]:
    """The same where there is no /proc; macOS's `ps` has hundredths of a second."""
    listed = subprocess.run(
        ["/bin/ps", "-A", "-o", "ppid=,pgid=,time=,rss="],
        capture_output=True,
        text=True,
        check=True,
    )
    made = []
    for line in listed.stdout.splitlines():
        parent, group, clock, memory = line.split()
        cpu = 0.0
        for part in clock.replace("-", ":").split(":"):
            cpu = cpu * 60 + float(part)
        made.append(({int(parent), int(group)}, cpu, int(memory) * 1024))
    return made
