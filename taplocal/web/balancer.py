"""The load balancer of the web environment: Application Load Balancers on loopback.

What they are made of: what is registered (registered, targets), requests and answers (proxy,
http1), what they tell (journal).
"""

from __future__ import annotations

import asyncio
import resource
import ssl
from collections.abc import Iterable
from dataclasses import replace

from taplocal.errors import TapLocalError
from taplocal.web.journal import Journal, Metric
from taplocal.web.proxy import Client
from taplocal.web.registered import Forward, Listener, LoadBalancer
from taplocal.web.targets import Group, Health, TargetGroup

TICK = 0.1  # seconds between two looks at what has timed out
HANDSHAKE_SECONDS = 10
MOST_FILES = 65_536


class BalancerError(TapLocalError):
    """A listener that cannot listen; the message names its port and how to mend it."""


class Balancer:
    """All load balancers of this machine, in one event loop.

    It serves as many clients as half of the files that this process may open.
    """

    def __init__(self, most_clients: int | None = None):
        most_files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        if most_files == resource.RLIM_INFINITY:
            most_files = MOST_FILES
        self.most_clients = most_clients or max(16, min(most_files, MOST_FILES) // 2 - 64)
        self.groups: dict[str, Group] = {}
        self.errors: dict[str, str] = {}  # why a load balancer does not listen; empty if it does
        self.clients: set[Client] = set()
        self.tasks: set[asyncio.Task[None]] = set()  # connections to targets that are under way
        self._running: dict[str, _Running] = {}  # load balancers, by ARN
        self._sweeper: asyncio.Task[None] | None = None

    async def apply(self, balancers: Iterable[LoadBalancer], groups: Iterable[TargetGroup]) -> None:
        """Makes what runs equal to what is registered; cheap when nothing changed.

        Listeners that stay keep their connections, whatever else of them changed. A listener that
        is gone stops accepting and its connections end with the request that they have. A target
        that is gone gets no new request; those that it has may end, for the deregistration delay.

        Raises BalancerError when a port cannot be had; all the rest is applied by then.
        """
        self._sweeper = self._sweeper or asyncio.create_task(self._sweep())
        wanted = {each.arn: each for each in balancers}
        self._apply_groups({each.arn: each for each in groups}, wanted.values())
        for arn in self._running.keys() - wanted.keys():
            self._running.pop(arn).stop()
        for arn, each in wanted.items():
            self._running.setdefault(arn, _Running(self, each)).retire(each)
        self.errors = {arn: "; ".join(await self._running[arn].open()) for arn in wanted}
        if errors := [*filter(None, self.errors.values())]:
            raise BalancerError("\n".join(errors))

    def _apply_groups(
        self, groups: dict[str, TargetGroup], balancers: Iterable[LoadBalancer]
    ) -> None:
        now = asyncio.get_running_loop().time()
        actions = [listener.action for each in balancers for listener in each.listeners]
        used = {each.target_group_arn for each in actions if isinstance(each, Forward)}
        for arn in [*self.groups]:
            if arn not in groups:
                gone = self.groups[arn]
                gone.apply(replace(gone.group, targets=()), False, now)
                if not gone.draining:
                    del self.groups[arn]
        for arn, each in groups.items():
            self.groups.setdefault(arn, Group(each)).apply(each, arn in used, now)

    def health(self) -> dict[str, dict[str, Health]]:
        """The state of each target by target group and target id, those that drain included."""
        return {arn: group.health() for arn, group in self.groups.items()}

    def take_metrics(self) -> list[Metric]:
        """The metrics since the last call; HealthyHostCount and so on are those of now."""
        return [metric for each in self._running.values() for metric in each.take_metrics()]

    def take_access_log(self) -> dict[str, list[str]]:
        """The access log since the last call, by load balancer; bounded, the oldest go first."""
        taken = {arn: [*each.journal.lines] for arn, each in self._running.items()}
        for each in self._running.values():
            each.journal.lines.clear()
        return {arn: lines for arn, lines in taken.items() if lines}

    async def close(self) -> None:
        """Stops listening, closes all connections and ends all health checks."""
        for running in self._running.values():
            running.stop()
        for task in [*self.tasks, *([self._sweeper] if self._sweeper else [])]:
            task.cancel()
        for client in [*self.clients]:
            client.transport.abort()
        for group in self.groups.values():
            group.stop()
        while self.clients or any(each.busy() for each in self.groups.values()):
            await asyncio.sleep(0)
        self._running.clear()
        self.groups.clear()
        self._sweeper = None

    async def _sweep(self) -> None:
        """Ends what has timed out: one look at everything is cheaper than a timer for each."""
        clock = asyncio.get_running_loop().time
        while True:
            await asyncio.sleep(TICK)
            now = clock()
            for client in [*self.clients]:
                if now > client.deadline:
                    client.time_out()
            idle = max((each.config.idle_timeout for each in self._running.values()), default=60)
            for group in self.groups.values():
                group.sweep(now, now - idle)


class _Running:
    """A load balancer that runs: its settings, its listeners and its journal."""

    def __init__(self, owner: Balancer, config: LoadBalancer):
        self.owner, self.config, self.journal = owner, config, Journal(config.suffix)
        self.listening: dict[tuple[int, bool], Listening] = {}  # by bind port and TLS

    def retire(self, config: LoadBalancer) -> None:
        """Has new settings; closes the listeners that are not among them, for others to open."""
        self.config = config
        for key in self.listening.keys() - {_key(each) for each in config.listeners}:
            self.listening.pop(key).stop()

    async def open(self) -> list[str]:
        """Opens the listeners that are new; gives the errors."""
        config, errors = self.config, []
        for listener in config.listeners:
            key = _key(listener)
            try:
                if found := self.listening.get(key):
                    found.update(listener)
                else:
                    self.listening[key] = await Listening(self, listener).start()
            except BalancerError as error:
                errors.append(str(error))
            except OSError as error:  # files of the certificate, too
                errors.append(
                    f"the listener on port {listener.port} of {config.suffix} cannot listen on "
                    f"127.0.0.1:{listener.bind_port}: {error.strerror or error}; free the port, "
                    "or give another one"
                )
        return errors

    def local_port(self, port: str) -> str:
        """Where a registered port is on this machine."""
        found = (each for each in self.config.listeners if str(each.port) == port)
        return str(next((each.bind_port for each in found), port))

    def take_metrics(self) -> list[Metric]:
        actions = {each.action for each in self.config.listeners}
        arns = {each.target_group_arn for each in actions if isinstance(each, Forward)}
        groups = [self.owner.groups[arn] for arn in sorted(arns) if arn in self.owner.groups]
        clients = sum(each.on.running is self for each in self.owner.clients)
        open_ = sum(len(member.open) for group in groups for member in group.members.values())
        return self.journal.take(groups, clients + open_)

    def stop(self) -> None:
        for each in self.listening.values():
            each.stop()
        self.listening.clear()


def _key(listener: Listener) -> tuple[int, bool]:
    return listener.bind_port, listener.protocol == "HTTPS"


class Listening:
    """A listener that listens."""

    def __init__(self, running: _Running, listener: Listener):
        self.running, self.listener, self.closed = running, listener, False
        self.tls = _tls(listener) if listener.protocol == "HTTPS" else None
        self.server: asyncio.Server | None = None

    async def start(self) -> Listening:
        self.server = await asyncio.get_running_loop().create_server(
            lambda: Client(self), "127.0.0.1", self.listener.bind_port, backlog=1024,
            ssl=self.tls, ssl_handshake_timeout=HANDSHAKE_SECONDS if self.tls else None,
        )  # fmt: skip
        return self

    def update(self, listener: Listener) -> None:
        """New handshakes have the new certificate and policy."""
        before, self.listener = self.listener, listener
        if self.tls and (before.certificate, before.tls_policy) != (
            listener.certificate, listener.tls_policy,
        ):  # fmt: skip
            _tls(listener, self.tls)

    def stop(self) -> None:
        self.closed = True
        if self.server:
            self.server.close()
        for each in self.running.owner.clients:
            if each.on is self and not each.exchange:
                each.transport.close()


def _tls(listener: Listener, context: ssl.SSLContext | None = None) -> ssl.SSLContext:
    """The TLS of a listener, as far as OpenSSL 3 has AWS's policy: none has TLS 1.0 or 1.1."""
    certificate, policy = listener.certificate, listener.tls_policy
    if not certificate:
        raise BalancerError(f"the listener on port {listener.port} is HTTPS: give it a certificate")
    context = context or ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    newest, oldest = ssl.TLSVersion.TLSv1_3, ssl.TLSVersion.TLSv1_2
    context.minimum_version = newest if "TLS13-1-3" in policy else oldest
    context.maximum_version = newest if "TLS13" in policy or not policy else oldest
    context.set_ciphers("ECDHE+AESGCM" if "-Res-" in policy else "ECDHE+AES:!SHA1")
    context.set_alpn_protocols(["http/1.1"])
    context.load_cert_chain(certificate.chain, certificate.key)
    context.sni_callback = _remember_name
    return context


def _remember_name(connection: ssl.SSLObject, name: str | None, _context: ssl.SSLContext) -> None:
    connection.tap_name = name  # type: ignore[attr-defined]
