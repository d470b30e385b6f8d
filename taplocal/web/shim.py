"""What commands of an instance do that AWS's image has and a laptop lacks: `aws` and `systemctl`.

A program: shim.py aws ec2 describe-tags --filters .... `aws` makes any operation of any service
by its model, with the instance's role; its high-level commands (`s3 cp`, `wait`) are not there.
Every other name is a command for the supervisor, which does it and says what to print.
"""

from __future__ import annotations

import json
import os
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

SECONDS = 300  # for a unit to stop, say
#: Options of the AWS CLI itself that have a value.
GLOBAL = """region output query endpoint-url profile cli-connect-timeout cli-read-timeout color
    ca-bundle""".split()
FLAGS = ("no-cli-pager", "debug", "no-paginate", "no-sign-request", "no-verify-ssl")


def ask(arguments: list[str]) -> int:
    """Has the supervisor do a command; returns its status. `http.client` alone takes 30 ms."""
    address = urlsplit(os.environ["AWS_EC2_METADATA_SERVICE_ENDPOINT"])
    body = json.dumps(arguments).encode()
    head = f"POST {address.path}command HTTP/1.1\r\nContent-Length: {len(body)}\r\n\r\n"
    with socket.create_connection((address.hostname, address.port or 80), SECONDS) as connection:
        connection.sendall(head.encode() + body)
        with connection.makefile("rb") as file:
            said, _, content = file.read().partition(b"\r\n\r\n")
    if not said.startswith(b"HTTP/1.1 200 "):
        sys.exit(f"{arguments[0]}: the supervisor of the instances does not answer")
    status, text = json.loads(content)
    if text:
        print(text, file=sys.stderr if status else sys.stdout)
    return int(status)


def aws(arguments: list[str]) -> int:
    """Makes one call as the AWS CLI does; returns its exit status."""
    import botocore.session
    from botocore.exceptions import BotoCoreError, ClientError, UnknownServiceError

    words, options = split(arguments)
    service, command, *more = [*words, "", ""][: max(2, len(words))]
    session = botocore.session.get_session()
    try:
        client = session.create_client(
            service.replace("elasticloadbalancing", "elb"), **given(options)
        )
        method = command.replace("-", "_")
        if more or method not in client.meta.method_to_api_mapping:
            sys.exit(f"aws: {' '.join(words)}: only operations run here, as ec2 describe-tags")
        operation = client.meta.service_model.operation_model(
            client.meta.method_to_api_mapping[method]
        )
        shape = operation.input_shape
        allowed = {*GLOBAL, *FLAGS, *(call_names(shape) if shape else ())}
        if unknown := [f"--{each}" for each in options if each not in allowed]:
            sys.exit(f"aws: Unknown options: {', '.join(unknown)}")
        call = dict(members(shape, options)) if shape else {}
        response = getattr(client, method)(**call)
    except UnknownServiceError:
        sys.exit(f"aws: {service} is no service")
    except ClientError as error:
        print(f"\n{error}", file=sys.stderr)
        return 254
    except BotoCoreError as error:
        print(f"\n{error}", file=sys.stderr)
        return 253
    response.pop("ResponseMetadata", None)
    show(response, options)
    return 0


def split(arguments: list[str]) -> tuple[list[str], dict[str, list[str]]]:
    """The words before and between options, and each option with its values."""
    words: list[str] = []
    options: dict[str, list[str]] = {}
    values = words
    for each in arguments:
        if each.startswith("--"):
            name, sign, value = each[2:].partition("=")
            values = options[name] = [value] if sign else []
        elif values is not words and (current := list(options)[-1]) in (*GLOBAL, *FLAGS):
            # One value, or none; then the service and the operation.
            (words if current in FLAGS or values else values).append(each)
        else:
            values.append(each)
    return words, options


def given(options: dict[str, list[str]]) -> dict[str, Any]:
    """The arguments of a client that options of the CLI say."""
    from botocore.config import Config

    timeouts = {
        name: float(options[f"cli-{key}-timeout"][0])
        for name, key in (("connect_timeout", "connect"), ("read_timeout", "read"))
        if f"cli-{key}-timeout" in options
    }
    chosen: dict[str, Any] = {"config": Config(**timeouts)}
    if not any(each in os.environ for each in ("AWS_REGION", "AWS_DEFAULT_REGION")):
        chosen["region_name"] = os.environ["INSTANCE_REGION"]  # AWS's CLI asks the metadata
    for name, key in (("region_name", "region"), ("endpoint_url", "endpoint-url")):
        if key in options:
            chosen[name] = options[key][0]
    return chosen


def call_names(shape: Any) -> set[str]:
    """The options that an operation has."""
    from botocore import xform_name

    names = {xform_name(each, "-") for each in shape.members}
    return names | {f"no-{each}" for each in names} | {"cli-input-json"}


def members(shape: Any, options: dict[str, list[str]]) -> Iterator[tuple[str, Any]]:
    """The arguments of an operation."""
    from botocore import xform_name

    if "cli-input-json" in options:
        yield from json.loads(text_of(options["cli-input-json"][0])).items()
    for name, member in shape.members.items():
        option = xform_name(name, "-")
        if f"no-{option}" in options:
            yield name, value(member, ["false"])
        elif option in options:
            yield name, value(member, options[option])


def text_of(word: str) -> str:
    """A word, or the file that it names by file://."""
    return Path(word.removeprefix("file://")).read_text() if word.startswith("file://") else word


def value(shape: Any, words: list[str]) -> Any:
    """What words say for a shape: JSON, the CLI's shorthand, or the plain value."""
    text = text_of(words[0]) if words else ""
    kind = shape.type_name
    if kind in ("structure", "list", "map") and text[:1] in ("{", "["):
        return json.loads(text)
    if kind == "list":
        return [value(shape.member, [each]) for each in words]
    if kind == "structure" and "=" not in text and set(shape.members) == {"Value"}:
        return {"Value": value(shape.members["Value"], words)}
    if kind in ("structure", "map"):
        return shorthand(shape, text)
    if kind == "boolean":
        return text.lower() != "false"
    if kind == "blob":
        path = words[0].removeprefix("fileb://")
        return Path(path).read_bytes() if path != words[0] else text.encode()
    convert: Any = {"integer": int, "long": int, "float": float, "double": float}.get(kind, str)
    return convert(text)


def shorthand(shape: Any, text: str) -> dict[str, Any]:
    """A structure or map as `Name=a,Values=b,c`."""
    made: dict[str, list[str]] = {}
    for part in text.split(","):
        key, sign, first = part.partition("=")
        if sign:
            made[key] = [first]
        elif made:
            made[list(made)[-1]].append(part)
        else:
            sys.exit(f"aws: {text!r} is neither JSON nor Key=value,...")
    shapes = getattr(shape, "members", None)
    if shapes is None:
        return {key: value(shape.value, words) for key, words in made.items()}
    if unknown := set(made) - set(shapes):
        sys.exit(f"aws: {text!r}: there is no {', '.join(sorted(unknown))}")
    return {key: value(shapes[key], words) for key, words in made.items()}


def show(response: Any, options: dict[str, list[str]]) -> None:
    """Prints a response: what --query chooses, as JSON or text."""
    import jmespath  # type: ignore[import-untyped]

    found = jmespath.search(options["query"][0], response) if "query" in options else response
    if found in ({}, None) and "query" not in options:
        return
    if options.get("output", ["json"])[0] != "text":
        print(json.dumps(found, indent=4, default=str))
        return
    rows = found if isinstance(found, list) else [found]
    lines = rows if rows and isinstance(rows[0], list) else [rows]
    for line in lines:
        print("\t".join("None" if each is None else str(each) for each in line))


if __name__ == "__main__":
    sys.exit(aws(sys.argv[2:]) if sys.argv[1] == "aws" else ask(sys.argv[1:]))
