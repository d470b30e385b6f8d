"""Whether a role or a service may do something: for what MiniStack's services do for somebody.

MiniStack checks the requests that it gets. What its services do on their own, an invocation or a
dead letter, it does not. The policies are evaluated by its code.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ministack.core import iam_evaluator
from ministack.core.iam_evaluator import EvalContext, EvalResult, PrincipalInfo
from ministack.core.responses import get_account_id, get_region
from ministack.services import iam, lambda_svc


def trusts(role: str, service: str, source: str) -> bool:
    """Whether a role lets a service assume it for a source."""
    found = iam._roles.get_scoped(get_account_id(), None, role.rpartition("/")[2]) or {}
    trust = found.get("AssumeRolePolicyDocument")
    return service_may(trust, service, "sts:AssumeRole", "*", source)


def of_role(role: str, service: str, source: str) -> PrincipalInfo:
    """A role as a service has it for a source; without any right if it does not trust that."""
    account, name = get_account_id(), role.rpartition("/")[2]
    assumed = trusts(role, service, source)
    return PrincipalInfo(
        f"arn:aws:sts::{account}:assumed-role/{name}/{service}",
        "AssumedRole",
        account,
        iam_evaluator._gather_role_policies(name, account) if assumed else [],
        limits=iam_evaluator._permissions_boundary(iam._roles, name, account),
    )


def denial(principal: PrincipalInfo, action: str, resource: str, **keys: str) -> EvalResult | None:
    """Why a principal may not do something; None if it may. `keys` are those of conditions."""
    if principal.policies is None:  # the root of the account
        return None
    context = _context(principal, action, resource, keys)
    result = iam_evaluator.evaluate(context, principal.policies, *principal.limits)
    service = action.split(":")[0]
    if own := iam_evaluator._resource_policy(service, resource):
        required = service in iam_evaluator._POLICY_REQUIRED
        result = iam_evaluator.combine_resource_policy(
            result, context, *own, required=required, limits=tuple(principal.limits)
        )
    return None if result.decision == "Allow" else result


def service_may(
    policy: Any, service: str, action: str, resource: str, source: str, **keys: str
) -> bool:
    """Whether the policy of a resource lets a service act for a source of this account."""
    principal = PrincipalInfo(service, "Service", get_account_id(), [])
    of_source = {"aws:SourceArn": source, "aws:SourceAccount": get_account_id()}
    context = _context(principal, action, resource, {**of_source, **keys})
    found = iam_evaluator.evaluate_resource_policy(policy, context, service=service)
    return bool(found.decision == "Allow")


def may_invoke(function: str, service: str, source: str) -> bool:
    """Whether the policy of a function, or of its alias, lets a service invoke it for a source."""
    found = lambda_svc._get_base_func_record_for_ref(function)[0]
    policy = (found or {}).get("policy")
    return service_may(policy, service, "lambda:InvokeFunction", function, source)


def _context(
    principal: PrincipalInfo, action: str, resource: str, keys: Mapping[str, str]
) -> EvalContext:
    return EvalContext(
        principal.arn,
        principal.type,
        principal.account,
        action,
        resource,
        get_region(),
        service_context={name.lower(): value for name, value in keys.items()},
        principal_keys=principal.keys,
    )
