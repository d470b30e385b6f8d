"""A VPC of network namespaces: what the registered graph says of subnets, routes and groups holds.

A router between bridges, one a subnet, does what a VPC does and no more: it drops what has a source
or destination that is not the port's (unless that check is off), begins no connection that no rule
of a security group allows, and translates public addresses one to one, without state.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import ipaddress
import itertools
import json
import re
import selectors
import socket
import subprocess
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from tests.lab.image import INTERNET, OPERATOR, TLS
from tests.stack.conftest import Graph

T = TypeVar("T")
Target = tuple[str, int]
ERROR = socket.SOL_SOCKET, socket.SO_ERROR
BOOT = Path(__file__).with_name("boot.sh")
AUTHORITIES = "etc/ssl/certs/ca-certificates.crt"
METADATA = "169.254.169.254"
GATEWAYS = {f"network-nat-{number}-id": f"203.0.113.{250 + number}" for number in range(3)}
#: Of what comes from a machine and goes to it: hook, name of the port, own address.
WAYS = (
    ("from", "prerouting priority -200", "iifname", "saddr"),
    ("to", "postrouting priority 200", "oifname", "daddr"),
)
SECONDS = 120  # a guard against hanging
SILENCE = 3  # how long nothing answers before it is taken for dropped
CLONE_NEWNET = 0x40000000


def sh(*command: str | Path, **options: Any) -> str:
    """The output of a command, which must succeed."""
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=SECONDS, check=False, **options
    )
    assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
    return str(done.stdout)


def inside(space: str, work: Callable[[], T]) -> T:
    """What a function returns in a network namespace; its sockets stay there."""
    results: list[T] = []
    errors: list[BaseException] = []

    def enter() -> None:
        try:
            with Path(f"/run/netns/{space}").open() as file:
                if ctypes.CDLL(None, use_errno=True).setns(file.fileno(), CLONE_NEWNET):
                    raise OSError(ctypes.get_errno(), f"setns {space}")
            results.append(work())
        except BaseException as error:  # noqa: BLE001 - the caller raises it
            errors.append(error)

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    if errors:
        raise errors[0]
    return results[0]


def reached(space: str, targets: Iterable[Target], source: str = "0.0.0.0") -> set[Target]:  # noqa: S104 - any
    """Those of some addresses and ports that TCP connections from a namespace get to."""

    def attempt() -> set[Target]:
        found, waiting = set(), selectors.DefaultSelector()
        with contextlib.ExitStack() as probes:
            for each in targets:
                probe = probes.enter_context(socket.socket())
                probe.setblocking(False)
                probe.bind((source, 0))
                if probe.connect_ex(each) == errno.EINPROGRESS:
                    waiting.register(probe, selectors.EVENT_WRITE, each)
            deadline = time.monotonic() + SILENCE
            while waiting.get_map() and (left := deadline - time.monotonic()) > 0:
                for key, _ in waiting.select(left):
                    error = waiting.unregister(key.fileobj).fileobj.getsockopt(*ERROR)  # type: ignore[union-attr]
                    if error in (0, errno.ECONNREFUSED):  # it got there
                        found.add(key.data)
        return found

    return inside(space, attempt)


@dataclass
class Machine:
    """A network interface, its namespace, and what runs there."""

    vpc: Vpc
    name: str
    subnet: str  # logical name: public-0
    group: str  # name in SECURITY_GROUPS
    address: str
    port: str
    fleet: str = ""  # logical name of the fleet whose launch template runs
    public: str = ""  # address, or none
    checked: bool = True  # source and destination
    process: subprocess.Popen[bytes] | None = None
    id: str = field(default_factory=lambda: f"i-{uuid.uuid4().hex[:17]}")

    @property
    def space(self) -> str:
        return f"{self.vpc.id}-{self.name}"

    @property
    def tag(self) -> str:
        """The value of its `Name` tag."""
        template = self.vpc.graph.one("LaunchTemplate", f"{self.fleet}-template").inputs
        return str(template["tagSpecifications"][0]["tags"]["Name"])

    @property
    def mac(self) -> str:
        return "0a:" + ":".join(f"{int(each):02x}" for each in ["5", *self.address.split(".")])

    @property
    def cgroup(self) -> Path:
        (mounted, *_) = re.findall(r"^\S+ (\S+) cgroup2 ", Path("/proc/mounts").read_text(), re.M)
        return Path(mounted) / self.space

    def plug(self, device: str) -> None:
        """Makes the namespace and its interface."""
        vpc = self.vpc.space
        sh("ip", "netns", "add", self.space)
        sh("ip", "-n", vpc, "link", "add", self.port, "type", "veth", "peer", device, "address", self.mac, "netns", self.space)  # fmt: skip
        sh("ip", "-n", vpc, "link", "set", self.port, "master", self.subnet, "up")
        sh("ip", "-n", self.space, "link", "set", "lo", "up")

    def plain(self) -> Machine:
        """Configures the interface of a machine that runs no system."""
        self.plug("eth0")
        network = self.vpc.subnets[self.subnet]
        sh("ip", "-n", self.space, "address", "add", f"{self.address}/{network.prefixlen}", "dev", "eth0")  # fmt: skip
        sh("ip", "-n", self.space, "link", "set", "eth0", "up")
        sh("ip", "-n", self.space, "route", "add", "default", "via", str(network[1]))
        return self

    def put(self, path: str, text: str) -> Machine:
        """Writes a file of its disk before it boots."""
        file = self.vpc.folder / self.name / "upper" / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
        return self

    def small(self, megabytes: int) -> Machine:
        """Gives it a disk of so many megabytes."""
        folder = self.vpc.folder / self.name
        folder.mkdir()
        sh("mount", "-t", "tmpfs", "-o", f"size={megabytes}M", "tmpfs", folder)
        return self

    def boot(self) -> Machine:
        """Starts the system; again, if it has been stopped, from the same disk."""
        self.plug("ens5")
        folder = self.vpc.folder / self.name
        trusted = folder / "upper" / AUTHORITIES
        if not trusted.exists():
            trusted.parent.mkdir(parents=True, exist_ok=True)
            trusted.write_bytes((self.vpc.image / AUTHORITIES).read_bytes() + self.vpc.authority)
        self.cgroup.mkdir(exist_ok=True)
        command = ["bash", "-c", 'echo $$ > "$0/cgroup.procs" && exec "$@"', str(self.cgroup)]
        command += ["ip", "netns", "exec", self.space, "unshare", "-m", "-p", "-f", "-u", "-i"]
        command += ["-C", "--kill-child", "bash", str(BOOT), str(self.vpc.image), str(folder)]
        with (self.vpc.folder / f"{self.name}.log").open("ab") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL)  # fmt: skip
        until(lambda: Path(f"/proc/{self.pid}/comm").read_text() == "systemd\n")
        return self

    @property
    def pid(self) -> str:
        """Of its PID 1."""
        assert self.process
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        return children.read_text().split()[0]

    def _empty(self) -> bool:
        """Removes its control groups when their last process has ended."""
        with contextlib.suppress(OSError):
            for each in sorted(self.cgroup.rglob("*/"), reverse=True):
                each.rmdir()
            self.cgroup.rmdir()
        return not self.cgroup.exists()

    def stop(self) -> None:
        """Cuts the power and the cable."""
        if self.process:
            (self.cgroup / "cgroup.kill").write_text("1")
            self.process.wait()
            self.process = None
            until(self._empty)
        with contextlib.suppress(AssertionError):
            sh("ip", "-n", self.vpc.space, "link", "del", self.port)
        with contextlib.suppress(AssertionError):
            sh("ip", "netns", "del", self.space)

    def reboot(self) -> None:
        """As `reboot` does it on EC2: same disk, same interface, same instance."""
        self.stop()
        self.boot()

    def run(self, *command: str, check: bool = True) -> str:
        """The output of a command in the running system."""
        done = subprocess.run(
            ["nsenter", "-t", self.pid, "-m", "-p", "-n", "-u", "-i", "-C", "-r", "-w", *command],
            capture_output=True, text=True, timeout=SECONDS, check=False,
            env={"PATH": "/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"},
        )  # fmt: skip
        assert done.returncode == 0 or not check, f"{command}: {done.stdout}{done.stderr}"
        return done.stdout

    def cloud_init(self) -> list[str]:
        """What cloud-init's stages complain of when they have ended."""
        until(lambda: self.run("systemctl", "is-system-running", check=False).strip() != "", self)
        self.run("cloud-init", "status", "--wait", check=False)
        result = json.loads(self.run("cat", "/run/cloud-init/result.json"))
        return [str(each) for each in result["v1"]["errors"]]

    def journal(self) -> str:
        """The last lines of what its units said."""
        return self.run("journalctl", "-n", "60", "--no-pager", check=False)

    def connects(self, target: str, port: int) -> bool:
        """Whether a TCP connection from here gets there."""
        return bool(reached(self.space, [(target, port)]))

    def get(self, url: str, timeout: float = 5) -> tuple[int, str]:
        """Status and body of a plain HTTP request from here; 0 if there was no response."""
        host, _, path = url.removeprefix("http://").partition("/")
        name, _, port = host.partition(":")

        def attempt() -> tuple[int, str]:
            try:
                with socket.create_connection((name, int(port)), timeout) as connection:
                    connection.sendall(f"GET /{path} HTTP/1.0\r\nHost: {host}\r\n\r\n".encode())
                    answer = b"".join(iter(lambda: connection.recv(65_536), b"")).decode()
            except OSError:
                return 0, ""
            head, _, body = answer.partition("\r\n\r\n")
            return (int(head.split()[1]), body) if head else (0, "")

        return inside(self.space, attempt)


def until(look: Callable[[], Any], machine: Machine | None = None, seconds: float = SECONDS) -> Any:
    """What a function returns once that is true."""
    deadline = time.monotonic() + seconds
    while True:
        with contextlib.suppress(AssertionError, IndexError, FileNotFoundError):
            if found := look():
                return found
        assert time.monotonic() < deadline, machine.journal() if machine else "it never came"
        time.sleep(0.2)


class Vpc:
    """The network of a graph; a context manager that leaves nothing behind."""

    def __init__(self, graph: Graph, image: Path, folder: Path):
        self.graph, self.image, self.folder = graph, image, folder
        self.id = f"lab{uuid.uuid4().hex[:6]}"
        self.space, self.internet = f"{self.id}-vpc", f"{self.id}-internet"
        self.subnets = {
            each.name.removeprefix("network-"): ipaddress.IPv4Network(each.inputs["cidrBlock"])
            for each in graph.of("Subnet")
        }
        self.machines: list[Machine] = []
        self.elastic: dict[str, Machine | None] = {
            f"{each.name}-allocation": None for each in graph.of("Eip")
        }
        #: Subnet -> the address of the NAT gateway that its route names.
        self.gateways = {
            each.name.replace("network-out", "private"): GATEWAYS[each.inputs["natGatewayId"]]
            for each in graph.of("aws:ec2/route:Route")
            if "natGatewayId" in each.inputs
        }
        #: Logical name of a route table -> the machine that its default route names.
        self.defaults: dict[str, Machine | None] = {}
        self.numbers = itertools.count(10)
        self.lock = threading.RLock()
        self.authority = b""  # that its machines trust besides
        self.dhcp: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Vpc:
        try:
            self._lay()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        with ThreadPoolExecutor() as pool:
            list(pool.map(Machine.stop, self.machines))
        for each in self.machines:
            if (self.folder / each.name).is_mount():
                sh("umount", self.folder / each.name)
        if self.dhcp:
            self.dhcp.kill()
            self.dhcp.wait()
        for space in (self.space, self.internet):
            subprocess.run(["ip", "netns", "del", space], capture_output=True, check=False)

    def _lay(self) -> None:
        for space in (self.space, self.internet):
            sh("ip", "netns", "add", space)
            sh("ip", "-n", space, "link", "set", "lo", "up")
        ip = ["ip", "-n", self.space]
        sh(*ip, "link", "add", "igw", "type", "veth", "peer", "out", "netns", self.internet)
        sh(*ip, "address", "add", "192.0.2.1/30", "dev", "igw")
        sh(*ip, "address", "add", f"{METADATA}/32", "dev", "lo")
        sh(*ip, "link", "set", "igw", "up")
        sh("ip", "-n", self.internet, "address", "add", "192.0.2.2/30", "dev", "out")
        for address in (INTERNET, TLS, OPERATOR):
            sh("ip", "-n", self.internet, "address", "add", f"{address}/32", "dev", "lo")
        sh("ip", "-n", self.internet, "link", "set", "out", "up")
        sh("ip", "-n", self.internet, "route", "add", "203.0.113.0/24", "via", "192.0.2.1")
        sh("ip", "netns", "exec", self.space, "sysctl", "-q", "-w", "net.ipv4.ip_forward=1", "net.ipv4.conf.all.send_redirects=0")  # fmt: skip
        for number, (name, network) in enumerate(self.subnets.items()):
            sh(*ip, "link", "add", name, "type", "bridge")
            sh(*ip, "address", "add", f"{network[1]}/{network.prefixlen}", "dev", name)
            sh(*ip, "link", "set", name, "up")
            table, rule = str(100 + number), [*ip, "rule", "add", "iif", name, "lookup"]
            sh(*rule, "main", "suppress_prefixlength", "0", "priority", str(1_000 + number))
            sh(*rule, table, "priority", str(2_000 + number))
            self.route(name, None)
        hosts = self.folder / "dhcp"
        hosts.mkdir()
        ranges = [f"--dhcp-range={n[0]},static,{n.netmask}" for n in self.subnets.values()]
        self.dhcp = subprocess.Popen(
            ["ip", "netns", "exec", self.space, "dnsmasq", "--port=0", "--keep-in-foreground",
             "--no-ping", "--dhcp-authoritative", "--log-facility=-", f"--dhcp-hostsdir={hosts}",
             f"--dhcp-leasefile={self.folder / 'leases'}", "--conf-file=/dev/null", "--user=root", *ranges],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip

    def route(self, subnet: str, target: Machine | None) -> None:
        """Sets the default route of a subnet: through a machine, or as it is registered."""
        table = ["table", str(100 + list(self.subnets).index(subnet))]
        ip = ["ip", "-n", self.space, "route", "replace"]
        if subnet.startswith("public") or subnet in self.gateways:
            sh(*ip, "default", "via", "192.0.2.2", *table)
        elif target:
            sh(*ip, "default", "via", target.address, "dev", target.subnet, *table)
        else:
            sh(*ip, "blackhole", "default", *table)

    def route_table(self, table: str, target: Machine) -> None:
        """Sets the default route of all subnets of a route table, by its logical name."""
        self.defaults[table] = target
        for each in self.graph.of("RouteTableAssociation"):
            if each.inputs["routeTableId"] == f"{table}-id":
                self.route(each.name.removeprefix("network-").removesuffix("-routes"), target)

    def machine(self, name: str, subnet: str, group: str, fleet: str = "", address: str = "") -> Machine:  # fmt: skip
        """A new machine, with a public address if its launch template says so."""
        number = next(self.numbers)
        public = ""
        if fleet:
            template = self.graph.one("LaunchTemplate", f"{fleet}-template").inputs
            (interface,) = template["networkInterfaces"]
            assert interface["securityGroups"] == [f"network-{group}-group-id"]
            public = f"203.0.113.{number}" if interface["associatePublicIpAddress"] == "true" else ""  # fmt: skip
        address = address or str(self.subnets[subnet][number])
        made = Machine(self, name, subnet, group, address, f"p{number}", fleet, public)
        (self.folder / "dhcp" / name).write_text(f"{made.mac},{address}\n")
        self.machines.append(made)
        self.apply()
        return made

    def by_address(self, address: str) -> Machine:
        """The running machine that has an address."""
        return next(each for each in self.machines if each.address == address)

    def apply(self) -> None:
        """Loads the rules; they keep no state, so nothing is lost."""
        with self.lock:
            sh("ip", "netns", "exec", self.space, "nft", "-f", "-", input="\n".join(self._rules()))

    def _rules(self) -> Iterator[str]:
        yield "flush ruleset\ntable bridge ports {"
        for chain, hook, name, peer in WAYS:
            yield f"  chain {chain} {{ type filter hook {hook}"
            yield "    ether type arp accept; udp dport { 67, 68 } accept"
            yield f"    ip {'daddr' if peer == 'saddr' else 'saddr'} {METADATA} accept"
            for each in self.machines:
                if each.checked:
                    yield f"    {name} {each.port} ip {peer} != {each.address} drop"
                yield f"    {name} {each.port} ip protocol != tcp drop"  # no rule has another
                yield f"    {name} {each.port} tcp flags & (syn | ack) == syn jump {each.port}-{chain}"
            yield "  }"
        for each in self.machines:
            yield from self._groups(each)
        yield "}\ntable ip gateway {"
        yield from self._gateway()
        yield "}"

    def _groups(self, machine: Machine) -> Iterator[str]:
        """What a machine's security group lets it begin, and lets others begin with it."""
        for chain, kind, peer in (("from", "Egress", "daddr"), ("to", "Ingress", "saddr")):
            yield f"  chain {machine.port}-{chain} {{"
            for cidr, port in self._allowed(machine.group, kind):
                yield f"    ip {peer} {cidr} tcp dport {port} accept"
            yield "    drop\n  }"

    def _gateway(self) -> Iterator[str]:
        """The internet gateway: public addresses one to one. NAT gateways, which keep state."""
        known = [each for each in self.machines if each.public]
        gateways = f"{{ {', '.join(GATEWAYS.values())} }}"
        yield "  chain in { type filter hook prerouting priority raw"
        for each in known:
            yield f"    iifname igw ip daddr {each.public} ip daddr set {each.address} accept"
        yield f"    iifname igw ip daddr != {gateways} drop\n  }}"
        yield "  chain out { type filter hook postrouting priority 300"
        for each in known:
            yield f"    oifname igw ip saddr {each.address} ip saddr set {each.public} accept"
        yield f"    oifname igw ip saddr != {gateways} drop\n  }}"
        for name, address in self.gateways.items():
            yield f"  chain {name} {{ type nat hook postrouting priority srcnat"
            yield f"    oifname igw ip saddr {self.subnets[name]} snat to {address}\n  }}"

    def _allowed(self, group: str, kind: str) -> Iterator[tuple[str, int]]:
        """CIDR blocks and ports of a group's rules."""
        for each in self.graph.of(f"SecurityGroup{kind}Rule"):
            rule = each.inputs
            if rule["securityGroupId"] == f"network-{group}-group-id":
                peer = rule.get("referencedSecurityGroupId", "")
                members = [
                    m.address for m in self.machines if peer == f"network-{m.group}-group-id"
                ]
                for cidr in [rule["cidrIpv4"]] if "cidrIpv4" in rule else members:
                    yield cidr, rule["fromPort"]
