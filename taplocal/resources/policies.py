"""Policies for the emulator: changed where it would deny what AWS allows, and reported."""

from __future__ import annotations

import json
from typing import Any


def adapted(policy: str) -> tuple[str, list[str]]:
    """The policy for the emulator, and the list of its changes.

    AWS authorizes log writes on `<log group>:*`; the emulator uses the ARN without the suffix. A
    statement that denies requests without TLS would deny all requests: the emulator speaks plain
    HTTP on loopback.
    """
    document, changes = json.loads(policy), []
    statements: list[dict[str, Any]] = []
    for statement in document["Statement"]:
        if _denies_plain_http(statement):
            changes.append("the statement that denies requests without TLS is left out")
            continue
        log_groups = _log_groups(statement)
        if log_groups:
            changes.append("log writes are allowed on the log group as well as on <log group>:*")
            statement = {**statement, "Resource": [statement["Resource"], *log_groups]}
        statements.append(statement)
    return json.dumps({**document, "Statement": statements}), changes


def policy_notes(policy: str) -> list[tuple[str, str]]:
    """The changes as notes of the resource."""
    return [("policy", f"adapted: {change}") for change in adapted(policy)[1]]


def _denies_plain_http(statement: dict[str, Any]) -> bool:
    condition = statement.get("Condition", {}).get("Bool", {})
    return bool(statement["Effect"] == "Deny" and condition == {"aws:SecureTransport": "false"})


def _log_groups(statement: dict[str, Any]) -> list[str]:
    resource = statement.get("Resource")
    is_log_group = isinstance(resource, str) and ":logs:" in resource and resource.endswith(":*")
    return [str(resource).removesuffix(":*")] if is_log_group else []
