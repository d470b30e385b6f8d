"""The emulator's copy of a policy: where it would wrongly deny, it is adapted, and that is said."""

from __future__ import annotations

import json
from typing import Any


def adapted(policy: str) -> tuple[str, list[str]]:
    """The policy as the emulator gets it, and what was changed in it.

    AWS authorises log writes on `<group>:*`; the emulator names the group without the suffix. And
    a refusal of requests without TLS would refuse all of them here: loopback is plain HTTP.
    """
    document, changes = json.loads(policy), []
    statements: list[dict[str, Any]] = []
    for statement in document["Statement"]:
        if _wants_tls(statement):
            changes.append("the refusal of requests without TLS is left out")
            continue
        groups = _log_groups(statement)
        if groups:
            changes.append("log writes are allowed on the group as well as on <group>:*")
            statement = {**statement, "Resource": [statement["Resource"], *groups]}
        statements.append(statement)
    return json.dumps({**document, "Statement": statements}), changes


def policy_notes(policy: str) -> list[tuple[str, str]]:
    """The changes as notes on the resource."""
    return [("policy", f"adapted: {change}") for change in adapted(policy)[1]]


def _wants_tls(statement: dict[str, Any]) -> bool:
    condition = statement.get("Condition", {}).get("Bool", {})
    return bool(statement["Effect"] == "Deny" and condition == {"aws:SecureTransport": "false"})


def _log_groups(statement: dict[str, Any]) -> list[str]:
    resource = statement.get("Resource")
    is_group = isinstance(resource, str) and ":logs:" in resource and resource.endswith(":*")
    return [str(resource).removesuffix(":*")] if is_group else []
