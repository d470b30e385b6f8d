"""What instances ask AWS: the metadata service (IMDSv2 only) and a few operations of its API.

The API answers on the lab's internet, so that only who gets out reaches it, allows what the role of
the caller's fleet allows in the registered graph, and changes the VPC as AWS would.
"""

from __future__ import annotations

import base64
import datetime
import fnmatch
import json
import re
import ssl
import threading
import urllib.parse
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.serialization import Encoding

from tests.lab.image import HOSTS, INTERNET, TLS
from tests.lab.vpc import METADATA, Machine, Vpc, inside
from tests.local.postgres import SECRET_KEY, certificate, pem
from tests.stack.conftest import ACCOUNT, REGION, statements

CONDITION_KEYS = {"tag": "aws:ResourceTag/Name", "unchecked": "ec2:Attribute/SourceDestCheck"}


class DeniedError(Exception):
    """An operation that the role does not allow, or that AWS would refuse."""


class Aws:
    """Both services of a VPC, running; `calls` has what was called, `states` each instance's."""

    def __init__(self, vpc: Vpc):
        self.vpc = vpc
        #: `database`, and of an instance that gets another one.
        self.secrets: dict[str, str] = {}
        self.calls: list[tuple[str, str]] = []  # instance, operation
        #: Instance -> its lifecycle action's result, or its health.
        self.states: dict[str, str] = {}
        self.keys: dict[
            str, str
        ] = {}  # user -> the public key that EC2 Instance Connect has for it
        self.denied: set[str] = set()  # actions, whatever the role says
        self.late = 0  # how often an instance asks before AWS knows of its lifecycle action
        self.page = ""  # what any address with TLS answers
        self.servers: list[ThreadingHTTPServer] = []

    def __enter__(self) -> Aws:
        self.serve(self.vpc.space, METADATA, 80, self._metadata)
        self.serve(self.vpc.internet, INTERNET, 443, self._api)
        authority, key = certificate("the lab's authority", None, None)
        own, own_key = certificate(HOSTS[0], authority, key, *HOSTS[1:])
        self.vpc.authority = authority.public_bytes(Encoding.PEM)
        both = self.vpc.folder / "internet.pem"
        both.write_bytes(pem(own_key) + own.public_bytes(Encoding.PEM))
        self.serve(self.vpc.internet, TLS, 443, lambda _: (200, self.page), both)
        return self

    def __exit__(self, *_: object) -> None:
        for each in self.servers:
            each.shutdown()
            each.server_close()

    def serve(self, space: str, address: str, port: int, respond: Any, keys: Path | None = None) -> None:  # fmt: skip
        """Answers HTTP in a namespace by `respond(request)`, which returns status and body."""

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            timeout = 60

            def answer(self) -> None:
                self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0)).decode()
                try:
                    status, body = respond(self)
                except DeniedError as error:
                    status, body = 403, refusal(str(error))
                self.send_response(status)
                self.send_header("Content-Length", str(len(body.encode())))
                self.end_headers()
                self.wfile.write(body.encode())

            do_GET = do_PUT = do_POST = answer  # noqa: N815

            def log_message(self, *_: Any) -> None:
                pass

        server = inside(space, lambda: ThreadingHTTPServer((address, port), Handler))
        server.daemon_threads = True
        if keys:
            context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
            context.load_cert_chain(keys)
            server.socket = context.wrap_socket(server.socket, server_side=True)
        self.servers.append(server)
        threading.Thread(target=server.serve_forever, daemon=True).start()

    # Metadata

    def _metadata(self, request: Any) -> tuple[int, str]:
        if request.command == "PUT" and request.path == "/latest/api/token":
            return 200, "token"
        if request.headers.get("X-aws-ec2-metadata-token") != "token":
            return 401, ""
        machine = self.vpc.by_address(request.client_address[0])
        _, _, path = request.path.strip("/").partition("/")  # of any version
        found: Any = self._about(machine)
        for part in filter(None, path.split("/")):
            found = found.get(part) if isinstance(found, dict) else None
        if isinstance(found, dict):
            return 200, "\n".join(k + "/" * isinstance(v, dict) for k, v in found.items())
        return (404, "") if found is None else (200, found)

    def _about(self, machine: Machine) -> dict[str, Any]:
        template = self.vpc.graph.one("LaunchTemplate", f"{machine.fleet}-template").inputs
        zone = f"{REGION}{'abc'[int(machine.subnet[-1])]}"
        document = {"instanceId": machine.id, "region": REGION, "accountId": ACCOUNT}
        end = datetime.datetime.now(datetime.UTC) + datetime.timedelta(hours=6)
        role = {
            "Code": "Success",
            "Type": "AWS-HMAC",
            "AccessKeyId": machine.id,
            "SecretAccessKey": SECRET_KEY,
            "Token": "session",
            "Expiration": end.strftime("%Y-%m-%dT%H:%M:%SZ"),
        }
        interface = {
            "device-number": "0",
            "interface-id": f"eni-{machine.id[2:]}",
            "local-ipv4s": machine.address,
            "mac": machine.mac,
            "subnet-ipv4-cidr-block": str(self.vpc.subnets[machine.subnet]),
        }
        return {
            "dynamic": {"instance-identity": {"document": json.dumps(document)}},
            "meta-data": {
                "ami-id": template["imageId"],
                "hostname": machine.name,
                "iam": {"security-credentials": {"role": json.dumps(role)}},
                "instance-id": machine.id,
                "instance-type": template["instanceType"],
                "local-hostname": machine.name,
                "local-ipv4": machine.address,
                "managed-ssh-keys": {"active-keys": self.keys},
                "mac": machine.mac,
                "network": {"interfaces": {"macs": {machine.mac: interface}}},
                "placement": {"availability-zone": zone, "region": REGION},
            },
            "user-data": base64.b64decode(template["userData"]).decode(),
        }

    # API

    def _api(self, request: Any) -> tuple[int, str]:
        if request.command == "GET":
            return 200, request.client_address[0]  # who it takes the caller for
        scope = request.headers.get("Authorization", "")
        found = re.search(r"Credential=(i-\w+)/\d+/[\w-]+/(\w+)/", scope)
        if not found:
            raise DeniedError("no credentials")
        machine = next(each for each in self.vpc.machines if each.id == found[1])
        if target := request.headers.get("X-Amz-Target"):
            operation, arguments = target.partition(".")[2], json.loads(request.body)
        else:
            arguments = dict(urllib.parse.parse_qsl(request.body))
            operation = arguments["Action"]
        self.calls.append((machine.name, operation))
        with self.vpc.lock:
            return 200, OPERATIONS[operation](self, machine, arguments)

    def authorize(
        self, machine: Machine, action: str, resources: list[str], **condition_keys: str
    ) -> None:
        """Raises DeniedError unless the role of the machine's fleet allows an action on all resources."""
        role = self.vpc.graph.one("RolePolicy", f"{machine.fleet}-role-policy").inputs["policy"]
        known = {CONDITION_KEYS[key]: value for key, value in condition_keys.items()}
        for resource in resources:
            given = any(allows(each, action, resource, known) for each in statements(role))
            if action in self.denied or not given:
                raise DeniedError(f"{machine.fleet} may not {action} on {resource} with {known}")


def allows(statement: dict[str, Any], action: str, resource: str, context: dict[str, str]) -> bool:
    """Whether a statement of a role allows an action."""
    patterns = statement["Resource"]
    patterns = patterns if isinstance(patterns, list) else [patterns]
    equal = statement.get("Condition", {}).get("StringEquals", {})
    return (
        action in statement["Action"]
        and any(fnmatch.fnmatchcase(resource, each) for each in patterns)
        and all(context.get(key) == value for key, value in equal.items())
    )


def refusal(why: str) -> str:
    """AWS's XML for an error."""
    error = f"<Error><Code>AccessDenied</Code><Message>{why}</Message></Error>"
    return f"<Response><Errors>{error}</Errors>{error}</Response>"


def arn(service: str, resource: str) -> str:
    return f"arn:aws:{service}:{REGION}:{ACCOUNT}:{resource}"


def modify_instance_attribute(aws: Aws, machine: Machine, arguments: dict[str, str]) -> str:
    instance = arn("ec2", f"instance/{arguments['InstanceId']}")
    action = "ec2:ModifyInstanceAttribute"
    aws.authorize(machine, action, [instance], unchecked="false", tag=machine.tag)
    assert arguments["SourceDestCheck.Value"] == "false"
    machine.checked = False
    aws.vpc.apply()
    return "<R><return>true</return></R>"


def associate_address(aws: Aws, machine: Machine, arguments: dict[str, str]) -> str:
    allocation = arguments["AllocationId"]
    assert arguments["InstanceId"] == machine.id
    address = registered("Eip", allocation.removesuffix("-allocation"))
    resources = [address, arn("ec2", f"instance/{machine.id}")]
    aws.authorize(machine, "ec2:AssociateAddress", resources, tag=machine.tag)
    before = aws.vpc.elastic[allocation]
    if before not in (None, machine) and arguments.get("AllowReassociation") != "true":
        raise DeniedError("Resource.AlreadyAssociated")
    if before and before is not machine:
        before.public = ""  # with one interface AWS gives no other address
    aws.vpc.elastic[allocation] = machine
    machine.public = f"203.0.113.{1 + list(aws.vpc.elastic).index(allocation)}"
    aws.vpc.apply()
    return "<R><associationId>eipassoc-1</associationId></R>"


def change_route(aws: Aws, machine: Machine, arguments: dict[str, str]) -> str:
    table, operation = arguments["RouteTableId"], arguments["Action"]
    aws.authorize(
        machine, f"ec2:{operation}", [registered("RouteTable", table.removesuffix("-id"))]
    )
    exists = table.removesuffix("-id") in aws.vpc.defaults
    if exists is (operation == "CreateRoute"):
        raise DeniedError("RouteAlreadyExists" if exists else "InvalidParameterValue")
    aws.vpc.route_table(table.removesuffix("-id"), machine)
    return "<R><return>true</return></R>"


def complete_lifecycle_action(aws: Aws, machine: Machine, arguments: dict[str, str]) -> str:
    group = arguments["AutoScalingGroupName"]
    aws.authorize(machine, "autoscaling:CompleteLifecycleAction", [group_arn(group)])
    assert arguments["InstanceId"] == machine.id
    if aws.calls.count((machine.name, "CompleteLifecycleAction")) <= aws.late:
        raise DeniedError("No active Lifecycle Action found")
    aws.states[machine.name] = arguments["LifecycleActionResult"]
    return "<R><CompleteLifecycleActionResult/></R>"


def set_instance_health(aws: Aws, machine: Machine, arguments: dict[str, str]) -> str:
    group = aws.vpc.graph.one("aws:autoscaling/group:Group", f"{machine.fleet}-group")
    aws.authorize(machine, "autoscaling:SetInstanceHealth", [group_arn(group.inputs["name"])])
    assert arguments["InstanceId"] == machine.id
    assert arguments["ShouldRespectGracePeriod"] == "false"  # or AWS may leave it at that
    aws.states[machine.name] = arguments["HealthStatus"]
    return "<R/>"


def registered(kind: str, name: str) -> str:
    """The ARN that the recorder gave a resource."""
    return arn("test", f"{kind}/{name}")


def group_arn(name: str) -> str:
    return arn("autoscaling", f"autoScalingGroup:1-2-3:autoScalingGroupName/{name}")


def get_secret_value(aws: Aws, machine: Machine, arguments: dict[str, str]) -> str:
    aws.authorize(machine, "secretsmanager:GetSecretValue", [arguments["SecretId"]])
    secret = aws.secrets.get(machine.name, aws.secrets["database"])
    return json.dumps({"ARN": arguments["SecretId"], "SecretString": secret})


OPERATIONS: dict[str, Callable[[Aws, Machine, dict[str, str]], str]] = {
    "ModifyInstanceAttribute": modify_instance_attribute,
    "AssociateAddress": associate_address,
    "CreateRoute": change_route,
    "ReplaceRoute": change_route,
    "CompleteLifecycleAction": complete_lifecycle_action,
    "SetInstanceHealth": set_instance_health,
    "GetSecretValue": get_secret_value,
}
