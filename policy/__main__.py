"""The policy pack that Pulumi's engine starts: `pulumi preview --policy-pack policy`.

Each row of rules.py is a mandatory policy: a broken one ends the preview or the deployment.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import pulumi
from pulumi_policy import (
    EnforcementLevel,
    Policy,
    PolicyPack,
    ReportViolation,
    ResourceValidationArgs,
    ResourceValidationPolicy,
    StackValidationArgs,
    StackValidationPolicy,
)
from rules import COMPANIONS, RULES, Companion, Rule, exemption, tier_of, token


@dataclass(frozen=True)
class StackResource:
    """A resource of the engine, as rules.py reads it."""

    type: str
    name: str
    urn: str
    inputs: Mapping[str, Any]
    references: Mapping[str, Iterable[str]]


def exempt(rule: Rule | Companion, name: str) -> bool:
    """Whether a resource need not follow a rule in the stack that is deployed."""
    return exemption(rule.id, name, tier_of(pulumi.get_stack())) is not None


def of_inputs(rule: Rule) -> Policy:
    """The policy of a rule for one resource's inputs."""

    def validate(args: ResourceValidationArgs, report: ReportViolation) -> None:
        if args.resource_type != token(rule.type) or exempt(rule, args.name):
            return
        if rule.broken(args.props):
            report(f"{args.name}: {rule.text}, or a row of EXEMPTIONS in policy/rules.py", None)

    return ResourceValidationPolicy(rule.name, f"{rule.id} ({rule.source})", validate)


def of_stack(rule: Companion) -> Policy:
    """The policy of a rule for a resource beside another."""

    def validate(args: StackValidationArgs, report: ReportViolation) -> None:
        resources = [
            StackResource(
                each.resource_type,
                each.name,
                each.urn,
                each.props,
                {k: [x.urn for x in found] for k, found in each.property_dependencies.items()},
            )
            for each in args.resources
        ]
        for each in rule.lacking(resources):
            if not exempt(rule, each.name):
                report(f"{each.name}: {rule.text}", each.urn)

    return StackValidationPolicy(rule.name, f"{rule.id} ({rule.source})", validate)


PolicyPack(
    "tap-stack",
    [*map(of_inputs, RULES), *map(of_stack, COMPANIONS)],
    enforcement_level=EnforcementLevel.MANDATORY,
)
