"""Load balancers as they are registered; target groups are in the module targets."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Certificate:
    """A certificate of a listener: its ARN, for the access log, and its files (PEM)."""

    arn: str
    chain: Path
    key: Path


@dataclass(frozen=True)
class Forward:
    """Requests go to a target group."""

    target_group_arn: str


@dataclass(frozen=True)
class Redirect:
    """Answers with another URL; `#{protocol}` and so on are the request's own.

    A port of another listener of the same balancer is told as the local port of that listener.
    """

    protocol: str = "#{protocol}"
    host: str = "#{host}"
    port: str = "#{port}"
    path: str = "/#{path}"
    query: str = "#{query}"
    status: int = 301


@dataclass(frozen=True)
class FixedResponse:
    """Answers with a text."""

    status: int
    content_type: str = "text/plain"
    body: str = ""


@dataclass(frozen=True)
class Listener:
    """A listener: the port it is registered with and the one on 127.0.0.1 where it answers."""

    arn: str
    port: int
    protocol: str  # HTTP or HTTPS
    bind_port: int
    action: Forward | Redirect | FixedResponse
    certificate: Certificate | None = None  # HTTPS needs one
    tls_policy: str = ""  # as "ELBSecurityPolicy-TLS13-1-2-2021-06"


@dataclass(frozen=True)
class LoadBalancer:
    """A load balancer as registered; `suffix` is the end of its ARN, app/...."""

    arn: str
    suffix: str
    listeners: tuple[Listener, ...] = ()
    idle_timeout: float = 60  # real seconds
    client_keep_alive: float = 3600  # real seconds
    drop_invalid_header_fields: bool = False
    desync_mitigation_mode: str = "defensive"  # or "monitor", "strictest"
    log: bool = False  # whether take_access_log has its lines
