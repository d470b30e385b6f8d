"""What a call of DynamoDB costs, by our transport and by the SDK: `python -m benchmarks.sdk [ROUNDS]`.

GET /items/tea by whole handlers, each in a fresh process, taking turns, against a server on this machine
that answers GetItem at once, over TLS. CPU is the handler's process alone, from its first import. Both
sides trust the SDK's own bundle of authorities and the server's certificate in the same file. "traced"
is ours in a sampled invocation, with X-Ray's daemon: the difference is what one subsegment costs.
"""

from __future__ import annotations

import datetime
import ipaddress
import json
import os
import socket
import ssl
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from benchmarks.apps.stub import STORED, Context

ROOT = Path(__file__).resolve().parents[1]
CALLS = 300
ENVIRONMENT = {
    "TABLE_NAME": "items",
    "PAGING_KEY": "key",
    "IDEMPOTENCY_SECONDS": "86400",
    "ENVIRONMENT": "dev",
    "METRICS_NAMESPACE": "tap-stack",
    "AWS_REGION": "eu-west-1",
    "AWS_DEFAULT_REGION": "eu-west-1",
    "AWS_ACCESS_KEY_ID": "AKIA",
    "AWS_SECRET_ACCESS_KEY": "secret",
    "AWS_SESSION_TOKEN": "token",
    "AWS_LAMBDA_FUNCTION_NAME": "api",
    "POWERTOOLS_SERVICE_NAME": "items",
    "POWERTOOLS_METRICS_NAMESPACE": "tap-stack",
    "AWS_XRAY_CONTEXT_MISSING": "IGNORE_ERROR",
}

Handler = Callable[[dict[str, Any]], Any]


# The handlers; what each imports counts


def shipped() -> dict[str, Any]:
    """Our function as Lambda gets it."""
    index: dict[str, Any] = {"__name__": "index"}
    exec(compile(Path(os.environ["BUNDLE"]).read_text(), "index.py", "exec"), index)  # noqa: S102
    return index


def ours() -> Handler:
    index = shipped()
    index["open_services"]()
    return lambda event: index["api"](event, Context())


def ours_traced() -> Handler:
    os.environ["_X_AMZN_TRACE_ID"] = (
        "Root=1-581cf771-a006649127e371903a2de979;Parent=53995c3f42cd8ad8;Sampled=1"
    )
    return ours()


def ours_with(make: Callable[[str], Any]) -> Handler:
    """The same code with clients of the SDK, made in the init phase as well."""
    index = shipped()
    clients = {name: make(name) for name in ("dynamodb", "ssm")}
    index["service"] = clients.get
    return lambda event: index["api"](event, Context())


def ours_on_boto3() -> Handler:
    import boto3

    return ours_with(lambda name: boto3.client(name, config=bounded()))


def ours_on_default_boto3() -> Handler:
    """Without any configuration of the client."""
    import boto3

    return ours_with(boto3.client)


def ours_on_botocore() -> Handler:
    """Without boto3 and its session: what `lazy parts` of the SDK come to."""
    from botocore.session import get_session

    session = get_session()
    return ours_with(
        lambda name: session.create_client(name, region_name="eu-west-1", config=bounded())
    )


def bounded() -> Any:
    from botocore.config import Config

    retries = {"mode": "standard", "total_max_attempts": 3}
    return Config(retries=retries, connect_timeout=1, read_timeout=3)


def plain_boto3() -> Handler:
    """What a sample does: a client, a call, an answer; no check, no log line, no metric."""
    import boto3

    client = boto3.client("dynamodb")

    def handler(event: dict[str, Any]) -> Any:
        key = {"id": {"S": event["pathParameters"]["id"]}}
        item = client.get_item(TableName="items", Key=key)["Item"]["content"]["M"]
        body = {"id": "tea", "name": item["name"]["S"], "price": int(item["price"]["N"])}
        return {"statusCode": 200, "body": json.dumps(body)}

    return handler


def powertools() -> Handler:
    """Router, Logger, Metrics and Tracer with their defaults, and the SDK's resource."""
    import boto3
    from aws_lambda_powertools import Logger, Metrics, Tracer
    from aws_lambda_powertools.event_handler import APIGatewayHttpResolver

    from benchmarks.apps.powertools import Context

    app, logger, metrics, tracer = APIGatewayHttpResolver(), Logger(), Metrics(), Tracer()
    table = boto3.resource("dynamodb").Table("items")

    @app.get("/items/<item_id>")
    @tracer.capture_method
    def get(item_id: str) -> dict[str, Any]:
        content: Any = table.get_item(Key={"id": item_id})["Item"]["content"]
        return {"id": item_id, "name": content["name"], "price": int(content["price"])}

    @metrics.log_metrics
    @tracer.capture_lambda_handler
    def handler(event: dict[str, Any], context: Any) -> Any:
        answer = app.resolve(event, context)
        logger.info("request", extra={"status": answer["statusCode"]})
        metrics.add_metric("ItemsRead", "Count", 1)
        return answer

    return lambda event: handler(event, Context())


APPS: dict[str, Callable[[], Handler]] = {
    "tap-stack": ours,
    "tap-stack, traced": ours_traced,
    "tap-stack on botocore": ours_on_botocore,
    "tap-stack on boto3": ours_on_boto3,
    "the same, not configured": ours_on_default_boto3,
    "plain boto3": plain_boto3,
    "Powertools": powertools,
}


def child(name: str) -> dict[str, Any]:
    """One app in this fresh process."""
    from benchmarks.measure import event, peak_mib

    request = event("v2", "GET", "/items/tea")
    begun, cpu = time.perf_counter(), time.process_time()
    handler = APPS[name]()
    ready = time.perf_counter()
    answer = handler(request)
    first, first_cpu = time.perf_counter(), time.process_time()
    for _ in range(CALLS):
        handler(request)
    warm = (time.process_time() - first_cpu) / CALLS
    body = json.loads(answer["body"])
    assert [body[key] for key in ("id", "name", "price")] == ["tea", "Earl Grey", 4], answer
    return {
        "init_ms": (ready - begun) * 1000,
        "first_ms": (first - ready) * 1000,
        "cold_ms": (first - begun) * 1000,
        "cold_cpu_ms": (first_cpu - cpu) * 1000,
        "warm_cpu_us": warm * 1e6,
        "mib": peak_mib(),
    }


class GetItem(BaseHTTPRequestHandler):
    """DynamoDB with one item."""

    protocol_version, wbufsize, disable_nagle_algorithm = "HTTP/1.1", -1, True
    BODY = json.dumps({"Item": STORED, "ConsumedCapacity": {"CapacityUnits": 1.0}}).encode()

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        self.send_response(200)
        self.send_header("content-length", str(len(self.BODY)))
        self.end_headers()
        self.wfile.write(self.BODY)

    def log_message(self, *_: Any) -> None:
        """Quiet."""


def certify(folder: Path) -> None:
    """A certificate for this machine, and the authorities that a client trusts with it."""
    from botocore.httpsession import DEFAULT_CA_BUNDLE
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import rsa

    key = rsa.generate_private_key(65537, 2048)
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "benchmark")])
    now = datetime.datetime.now(datetime.UTC)
    here = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
    serial = 0x066C9F << 128 | 1  # like Amazon's authorities, among which ours looks first
    made = (
        x509.CertificateBuilder(name, name, key.public_key(), serial)
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(here, critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    kind = serialization.PrivateFormat.TraditionalOpenSSL
    certificate = made.public_bytes(pem)
    secret = key.private_bytes(pem, kind, serialization.NoEncryption())
    (folder / "server.pem").write_bytes(certificate + secret)
    (folder / "trusted.pem").write_bytes(Path(DEFAULT_CA_BUNDLE).read_bytes() + certificate)


def serve(folder: Path) -> None:
    """Answers until it is killed."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), GetItem)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(folder / "server.pem")
    server.socket = context.wrap_socket(server.socket, server_side=True)
    print(f"https://127.0.0.1:{server.server_port}", flush=True)
    server.serve_forever()


def daemon() -> tuple[str, list[int]]:
    """Takes packets as X-Ray's daemon would; returns its address and the sizes of the packets."""
    received = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    received.bind(("127.0.0.1", 0))
    sizes: list[int] = []

    def listen() -> None:
        while True:
            sizes.append(len(received.recv(65_536)))

    threading.Thread(target=listen, daemon=True).start()
    return f"127.0.0.1:{received.getsockname()[1]}", sizes


def measure(name: str, environment: dict[str, str]) -> dict[str, float]:
    command = [sys.executable, "-m", "benchmarks.sdk", "--child", name]
    done = subprocess.run(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, check=True)
    return dict(json.loads(done.stdout.splitlines()[-1]))


def main(rounds: int = 7) -> None:
    from rich.console import Console
    from rich.table import Table

    import tap_stack

    table = Table(
        title=f"GET /items/tea with a real call (medians of {rounds} fresh processes, alternating)",
        title_justify="left",
    )
    headings = ("", "init ms", "first answer ms", "both ms", "ratio", "both, CPU ms", "ratio",
                "warm CPU us", "ratio", "peak MiB")  # fmt: skip
    for heading in headings:
        table.add_column(heading, justify="right" if heading else "left")
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in APPS}
    address, sizes = daemon()
    with tempfile.TemporaryDirectory() as folder:
        certify(Path(folder))
        bundle, trusted = Path(folder, "index.py"), str(Path(folder, "trusted.pem"))
        bundle.write_text(tap_stack.bundle(tap_stack.api, tap_stack.open_services))
        command = [sys.executable, "-m", "benchmarks.sdk", "--serve", folder]
        serving = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
        assert serving.stdout
        environment = {
            **os.environ, **ENVIRONMENT, "BUNDLE": str(bundle),
            "AWS_ENDPOINT_URL": serving.stdout.readline().strip(),
            "SSL_CERT_FILE": trusted, "AWS_CA_BUNDLE": trusted,
            "AWS_XRAY_DAEMON_ADDRESS": address,
        }  # fmt: skip
        try:
            for _ in range(rounds):
                for name in APPS:
                    runs[name].append(measure(name, environment))
        finally:
            serving.kill()
    of = {
        name: {key: statistics.median(run[key] for run in each) for key in each[0]}
        for name, each in runs.items()
    }
    own = of["tap-stack"]
    for name, found in of.items():
        ratio = {key: f"{found[key] / own[key]:.1f}" for key in found}
        table.add_row(
            name, f"{found['init_ms']:.0f}", f"{found['first_ms']:.1f}",
            f"{found['cold_ms']:.0f}", ratio["cold_ms"], f"{found['cold_cpu_ms']:.0f}",
            ratio["cold_cpu_ms"], f"{found['warm_cpu_us']:.0f}", ratio["warm_cpu_us"],
            f"{found['mib']:.0f}",
        )  # fmt: skip
    Console(width=130).print(table)
    cost = of["tap-stack, traced"]["warm_cpu_us"] - own["warm_cpu_us"]
    size = f"{len(sizes)} arrived, {statistics.mean(sizes):.0f} bytes each"
    print(f"A subsegment costs {cost:.0f} us of CPU; {size}.")


if __name__ == "__main__":
    if "--serve" in sys.argv:
        serve(Path(sys.argv[-1]))
    elif "--child" in sys.argv:
        print(json.dumps(child(sys.argv[-1])))
    else:
        main(*map(int, sys.argv[1:]))
