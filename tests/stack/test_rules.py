"""The security rules of policy/rules.py: all graphs follow them, and each rule can fail."""

from __future__ import annotations

import copy
import functools
import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from policy import rules
from policy.scan import EVERYTHING
from taplocal.program import Registration, run
from taplocal.project import Project
from tests.stack.conftest import ENVIRONMENTS, ROOT, Recorder, graph_of
from tests.stack.test_bootstrap import bootstrap

EXAMPLES = sorted(path.name for path in (ROOT / "examples").iterdir())


@functools.cache
def graphs() -> dict[str, list[Registration]]:
    """What environments, prod with everything, examples and bootstraps register in AWS."""
    found = {env: graph_of(env).resources for env in ENVIRONMENTS}
    found["prod-everything"] = graph_of("prod", **EVERYTHING).resources
    for name in EXAMPLES:
        found[f"dev-{name}"] = example(name)
    for env in ("dev", "prod"):  # of an account for dev alone, and of one for all environments
        more = {"environments": "dev"} if env == "dev" else {}
        config = {"alarm_emails": "ops@tap.dev", **more}
        found[f"{env}-bootstrap"] = bootstrap(stack=f"{env}-bootstrap", **config)
    return {
        name: [x for x in resources if x.type.startswith("aws:")]
        for name, resources in found.items()
    }


def example(name: str) -> list[Registration]:
    """What an example registers."""
    recorder = Recorder()
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT))
        run(Project.load(ROOT / "examples" / name, "dev", {}), recorder)
    return recorder.resources


@functools.cache
def violations() -> list[tuple[str, str, str]]:
    """Each broken rule, exempted or not: its id, the resource's name, the tier."""
    return [
        (rule.id, resource.name, rules.tier_of(name))
        for name, resources in graphs().items()
        for rule, resource in rules.violations(resources)
    ]


def test_every_resource_follows_the_rules_or_has_an_exemption() -> None:
    assert [each for each in violations() if not rules.exemption(*each)] == []


def test_every_exemption_is_needed_in_each_of_its_tiers() -> None:
    needed = {(rules.exemption(*each), each[2]) for each in violations()}
    wanted = {(each, tier) for each in rules.EXEMPTIONS for tier in each.tiers.split()}
    assert wanted - needed == set()


def test_every_resource_type_has_a_rule_or_a_reason() -> None:
    registered = {each.type for resources in graphs().values() for each in resources}
    ruled = {rules.token(each.type) for group in (rules.RULES, rules.COMPANIONS) for each in group}
    without = {rules.token(kind) for kind in rules.WITHOUT_RULE}
    assert registered - ruled - without == set()
    assert (ruled | without) - registered == set()
    assert ruled & without == set()


def test_every_policy_document_has_rules() -> None:
    documents = {
        (each.type, field)
        for resources in graphs().values()
        for each in resources
        for field in {"policy", "assumeRolePolicy"} & each.inputs.keys()
    }
    assert documents == {
        (rules.token(each.type), each.path) for each in rules.RULES if each.bad == rules.OPEN
    }


def changed(inputs: Any, path: str, value: Any) -> Any:
    """Inputs with another value at a path, in the first element of each list on its way."""
    step, _, rest = path.partition(".")
    if not path:
        return {**inputs, **value}
    key = step.removesuffix("[]")
    inner = (inputs or {}).get(key)
    if step.endswith("[]"):
        first, *others = inner or [{}]
        return {**inputs, key: [changed(first, rest, value), *others]}
    return {**(inputs or {}), key: changed(inner, rest, value) if rest else value}


@pytest.mark.parametrize("rule", rules.RULES, ids=lambda rule: rule.name)
def test_each_rule_of_inputs_can_be_followed_and_broken(rule: rules.Rule) -> None:
    found = [x for each in graphs().values() for x in each if x.type == rules.token(rule.type)]
    followed = [each for each in found if not rule.broken(each.inputs)]
    if not followed:  # by nobody: then it is what exemptions are about
        assert any(each.rule == rule.id for each in rules.EXEMPTIONS)
    for each in followed or found:
        assert rule.broken(changed(copy.deepcopy(each.inputs), rule.path, rule.bad)), each.name


@pytest.mark.parametrize(
    ("condition", "broken"),
    [
        ({"StringEquals": {"idp.example:aud": "sts", "idp.example:sub": "repo:a/b:x"}}, False),
        ({"StringEquals": {"idp.example:aud": "sts"}}, True),
        ({"StringEquals": {"idp.example:sub": "repo:a/b:x"}}, True),
        ({"StringLike": {"idp.example:aud": "sts", "idp.example:sub": "repo:a/*"}}, True),
        ({}, True),
    ],
)
def test_a_federated_identity_is_trusted_by_audience_and_subject(
    condition: dict[str, Any], broken: bool
) -> None:
    (rule,) = (each for each in rules.RULES if each.id == "TAP.24")
    trusted = {"Effect": "Allow", "Principal": {"Federated": "idp"}, "Condition": condition}
    document = json.dumps({"Statement": [trusted]})
    assert rule.broken({"assumeRolePolicy": document}) is broken


STATEMENT = {"Effect": "Allow", "Action": "s3:GetObject", "Resource": "arn:aws:s3:::a/*"}
PLAIN = {"Bool": {"aws:SecureTransport": "false"}}
DENY = {"Effect": "Deny", "Principal": {"AWS": "*"}, "Condition": PLAIN}


@pytest.mark.parametrize(
    ("rule", "kind", "inputs", "broken"),
    [
        ("IAM.21", "iam/rolePolicy", STATEMENT, False),
        ("IAM.21", "iam/rolePolicy", {**STATEMENT, "Action": "s3:*"}, True),
        ("IAM.21", "iam/rolePolicy", {"Effect": "Allow", "NotAction": "s3:*", "Resource": "a"}, True),
        ("IAM.21", "iam/rolePolicy", {**STATEMENT, "NotResource": "arn:aws:s3:::b/*"}, True),
        ("S3.5", "s3/bucketPolicy", {**DENY, "Action": "s3:*"}, False),
        ("S3.5", "s3/bucketPolicy", {**DENY, "Action": "s3:PutObject"}, True),
        ("Lambda.1", "lambda/permission", {"principal": "s3.amazonaws.com"}, True),
        ("Lambda.1", "lambda/permission", {"principal": "s3.amazonaws.com", "sourceAccount": "1"}, False),
        ("Lambda.1", "lambda/permission", {"principal": "scheduler.amazonaws.com"}, False),
        ("ELB.17", "lb/listener", {"protocol": "HTTP"}, False),
        ("ELB.17", "lb/listener", {"protocol": "HTTPS"}, True),
        ("ELB.17", "lb/listener", {"protocol": "HTTPS", "sslPolicy": rules.TLS_1_2[0]}, False),
    ],
)  # fmt: skip
def test_a_rule_sees_what_is_only_nearly_right(
    rule: str, kind: str, inputs: dict[str, Any], broken: bool
) -> None:
    (found,) = (x for x in rules.RULES if (x.id, x.type) == (rule, kind))
    policy = {"policy": json.dumps({"Statement": [inputs]})} if "Effect" in inputs else inputs
    assert found.broken(policy) is broken


def without_references(resources: list[Registration], kind: str) -> Iterator[Registration]:
    for each in resources:
        yield replace(each, references={}) if each.type == rules.token(kind) else each


@pytest.mark.parametrize("rule", rules.COMPANIONS, ids=lambda rule: rule.name)
def test_each_rule_of_companions_is_broken_without_them(rule: rules.Companion) -> None:
    followed = 0
    for resources in graphs().values():
        subjects = [each.urn for each in resources if each.type == rules.token(rule.type)]
        followed += len(subjects) - len(rule.lacking(resources))
        without = rule.lacking(without_references(resources, rule.companion))
        assert [each.urn for each in without] == subjects
    assert followed or any(each.rule == rule.id for each in rules.EXEMPTIONS)


def test_the_names_of_rules_are_unique_as_policies_must_be() -> None:
    names = [x.name for group in (rules.RULES, rules.COMPANIONS) for x in group]
    assert len(set(names)) == len(names)


def test_an_environment_has_the_exemptions_of_its_tier_and_an_unknown_one_those_of_prod() -> None:
    assert [rules.tier_of(x) for x in ("dev-jane", "staging", "prod-eu", "live")] == [
        "dev", "staging", "prod", "prod",
    ]  # fmt: skip
