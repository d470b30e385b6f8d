"""Our load balancer beside Caddy on the same work: `python -m benchmarks.balancer`.

Two targets answer in a poll loop of their own; the load is here, in another. The candidates take
turns, in fresh processes, and both write an access log. Read the CPU of a request first: load and
targets share the cores with the load balancer, of which Caddy may use all and ours one.
"""

from __future__ import annotations

import json
import select
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import psutil
from rich.console import Console
from rich.table import Table

APP = Path(__file__).parent / "apps" / "upstream.py"
SMALL, LARGE = 100, 1_000_000
WORK = (("small", 8), ("small", 64), ("large", 8), ("large", 32))  # path, connections
ROUNDS, SECONDS = 5, 2.0


@contextmanager
def started(*argv: str) -> Iterator[tuple[psutil.Process, int]]:
    """One of our programs, and the port that it prints."""
    with subprocess.Popen([sys.executable, APP, *argv], stdout=subprocess.PIPE, text=True) as child:
        try:
            assert child.stdout
            yield psutil.Process(child.pid), int(child.stdout.readline())
        finally:
            child.kill()


@contextmanager
def caddy(ports: list[int]) -> Iterator[tuple[psutil.Process, int]]:
    """Caddy with the settings of ours: least connections, active health checks, keep-alive."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    proxy = {
        "handler": "reverse_proxy",
        "upstreams": [{"dial": f"127.0.0.1:{each}"} for each in ports],
        "load_balancing": {"selection_policy": {"policy": "least_conn"}},
        "health_checks": {"active": {"uri": "/healthz", "interval": "1s"}},
        "transport": {"protocol": "http", "keep_alive": {"max_idle_conns_per_host": 256}},
    }
    route = {"handle": [proxy]}
    server = {
        "listen": [f"127.0.0.1:{port}"],
        "routes": [route],
        "automatic_https": {"disable": True},
    }
    config = {"admin": {"disabled": True}, "apps": {"http": {"servers": {"web": server}}}}
    with TemporaryDirectory() as folder:
        log = {"writer": {"output": "file", "filename": f"{folder}/access.log", "roll": False}}
        config["logging"] = {"logs": {"default": log}}
        path = Path(folder, "caddy.json")
        path.write_text(json.dumps(config))
        argv = [Path(sys.executable).with_name("caddy"), "run", "--config", path]
        with subprocess.Popen(argv, stderr=subprocess.DEVNULL, env={"HOME": folder}) as child:
            try:
                while not answers(port):
                    time.sleep(0.05)
                yield psutil.Process(child.pid), port
            finally:
                child.kill()


def answers(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), 1).close()
    except OSError:
        return False
    return True


def load(port: int, path: str, connections: int, seconds: float) -> list[float]:
    """The times of requests, one at a time on each connection; all must be answered in full."""
    request = f"GET /{path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nUser-Agent: load\r\nAccept: */*\r\n\r\n".encode()
    body = LARGE if path == "large" else SMALL
    poll, clients = select.epoll(), {}
    for _ in range(connections):
        client = socket.create_connection(("127.0.0.1", port))
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        poll.register(client, select.EPOLLIN)
        clients[client.fileno()] = [client, 0, 0.0]
    took, until = [], time.perf_counter() + seconds
    for state in clients.values():
        state[2] = time.perf_counter()
        state[0].sendall(request)
    room = bytearray(1 << 20)
    while clients:
        for descriptor, _ in poll.poll():
            state = clients[descriptor]
            got = state[0].recv_into(room)
            assert got, "a connection was closed"
            if not state[1]:
                assert room.startswith(b"HTTP/1.1 200 "), room[:100]
                state[1] = room.find(b"\r\n\r\n") + 4 + body
            state[1] -= got
            if state[1]:
                continue
            now = time.perf_counter()
            took.append(now - state[2])
            if now > until:
                poll.unregister(descriptor)
                clients.pop(descriptor)[0].close()
                continue
            state[2] = now
            state[0].sendall(request)
    return took


def measure(process: psutil.Process, port: int, path: str, connections: int) -> dict[str, float]:
    load(port, path, connections, 0.5)
    before, began = sum(process.cpu_times()[:2]), time.perf_counter()
    took = sorted(load(port, path, connections, SECONDS))
    seconds = time.perf_counter() - began
    cpu = sum(process.cpu_times()[:2]) - before
    return {
        "requests/s": len(took) / seconds,
        "p50 ms": took[len(took) // 2] * 1e3,
        "p99 ms": took[len(took) * 99 // 100] * 1e3,
        "CPU us": cpu / len(took) * 1e6,
        "MB": process.memory_info().rss / 1e6,
    }


def main() -> None:
    """Prints a table."""
    found: dict[tuple[str, int, str], list[dict[str, float]]] = {}
    with (
        started(str(SMALL), str(LARGE)) as (_, first),
        started(str(SMALL), str(LARGE)) as (_, second),
    ):
        candidates = {
            "ours": lambda: started("balance", str(first), str(second)),
            "Caddy": lambda: caddy([first, second]),
        }
        for _ in range(ROUNDS):
            for path, connections in WORK:
                for name, make in candidates.items():
                    with make() as (process, port):
                        row = measure(process, port, path, connections)
                        found.setdefault((path, connections, name), []).append(row)
    table = Table(
        title=f"Medians of {ROUNDS} rounds of {SECONDS:.0f} s, alternating", title_justify="left"
    )
    columns = [*next(iter(found.values()))[0]]
    for heading in ("", "connections", "", *columns, "ratio"):
        table.add_column(heading, justify="right" if heading else "left")
    for (path, connections, name), rows in found.items():
        medians = [statistics.median(each[column] for each in rows) for column in columns]
        other = statistics.median(each["requests/s"] for each in found[path, connections, "Caddy"])
        table.add_row(path, str(connections), name, *(f"{each:,.1f}" for each in medians),
                      f"{medians[0] / other:.2f}")  # fmt: skip
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
