"""Two targets and our load balancer as programs of their own: run by benchmarks.balancer.

`upstream.py SMALL LARGE` prints its port; it answers with so many bytes, in one poll loop, so that
what is measured is the load balancer. `upstream.py balance PORT...` balances to them.
"""

from __future__ import annotations

import asyncio
import select
import socket
import sys

from taplocal.web.balancer import Balancer
from taplocal.web.registered import Forward, Listener, LoadBalancer
from taplocal.web.targets import HealthCheck, Target, TargetGroup


def answer(length: int) -> bytes:
    head = (
        b"HTTP/1.1 200 OK\r\nServer: app\r\nContent-Type: text/plain\r\nContent-Length: %d\r\n\r\n"
    )
    return head % length + b"x" * length


def serve(small: int, large: int) -> None:
    """Answers for ever."""
    answers = {False: answer(small), True: answer(large)}
    listener = socket.create_server(("127.0.0.1", 0), backlog=1024)
    print(listener.getsockname()[1], flush=True)
    poll, clients = select.epoll(), {}
    poll.register(listener)
    while True:
        for descriptor, _ in poll.poll():
            if descriptor == listener.fileno():
                client, _ = listener.accept()
                client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                clients[client.fileno()] = client
                poll.register(client, select.EPOLLIN)
            elif not respond(clients[descriptor], answers):
                poll.unregister(descriptor)
                clients.pop(descriptor).close()


def respond(client: socket.socket, answers: dict[bool, bytes]) -> bool:
    """Answers one request; no if the client is gone."""
    try:
        request = client.recv(65_536)
        client.sendall(answers[b"/large" in request[:16]] if request else b"")
    except ConnectionError:
        return False
    return bool(request)


async def balance(ports: list[int]) -> None:
    """Our load balancer, until it is killed."""
    balancer, arn = Balancer(), "arn:aws:elasticloadbalancing:eu-west-1:0:targetgroup/web/1"
    targets = tuple(Target(f"i-{port}", "127.0.0.1", port) for port in ports)
    check = HealthCheck("/healthz", 1, 1, 2, 2)
    group = TargetGroup(arn, "web", check, targets, "least_outstanding_requests")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    listener = Listener("listener", 80, "HTTP", port, Forward(arn))
    strict = {"desync_mitigation_mode": "strictest", "drop_invalid_header_fields": True}
    config = LoadBalancer("balancer", "app/web/1", (listener,), log=True, **strict)  # type: ignore[arg-type]
    await balancer.apply([config], [group])
    while any(each.state != "healthy" for each in balancer.health()[arn].values()):
        await asyncio.sleep(0.01)
    print(port, flush=True)
    while True:
        await asyncio.sleep(1)
        balancer.take_metrics()
        balancer.take_access_log()


if __name__ == "__main__":
    if sys.argv[1] == "balance":
        asyncio.run(balance([*map(int, sys.argv[2:])]))
    else:
        serve(int(sys.argv[1]), int(sys.argv[2]))
