"""The bootstrap program: who may assume its roles, and what a workflow can never reach."""

from __future__ import annotations

import functools
import json
import re
from typing import Any

import pytest

from bootstrap import permissions
from bootstrap.account import BootstrapArgs
from tap_stack import SettingsError, TapStackArgs
from taplocal.errors import TapLocalError
from taplocal.program import Registration, run
from taplocal.project import Project
from tests.stack.conftest import ACCOUNT, REGION, ROOT, Recorder, statements

GITHUB = "token.actions.githubusercontent.com"
REPOSITORY = "acme/tap-stack"
DEPLOY = (ROOT / "docs" / "deploy.md").read_text()


@functools.cache
def bootstrap(stack: str = "prod-bootstrap", **config: str) -> list[Registration]:
    """What the program registers with these settings."""
    recorder, folder = Recorder(), ROOT / "bootstrap"
    name = "tap-stack-bootstrap"  # and not what a user has set in the file of the stack
    given = {f"{name}:{key}": x for key, x in {"repository": REPOSITORY, **config}.items()}
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT))
        run(Project(folder, name, folder / "account.py", stack, given), recorder)
    return recorder.resources


def of(kind: str, **config: str) -> dict[str, Any]:
    """Name -> inputs of the resources of a type."""
    found = [each for each in bootstrap(**config) if each.type.endswith(f":{kind}")]
    return {str(each.inputs.get("name", each.name)): each.inputs for each in found}


def subjects(**config: str) -> dict[str, str]:
    """Role -> the subject of the tokens of GitHub that may assume it."""
    found = {}
    for name, role in of("Role", **config).items():
        (trusted,) = statements(role["assumeRolePolicy"])
        if "Federated" in trusted["Principal"]:
            claims = trusted["Condition"]["StringEquals"]
            assert claims.keys() == {f"{GITHUB}:aud", f"{GITHUB}:sub"}
            assert claims[f"{GITHUB}:aud"] == "sts.amazonaws.com"
            found[name] = claims[f"{GITHUB}:sub"]
    return found


def test_each_role_is_for_one_kind_of_workflow_of_one_repository() -> None:
    claims = {"plan": "pull_request", "drift": "ref:refs/heads/main"}
    expected = {}
    for env in ("dev", "staging", "prod"):
        for role, claim in {**claims, "deploy": f"environment:{env}"}.items():
            expected[f"tap-stack-{env}-{role}"] = f"repo:{REPOSITORY}:{claim}"
    assert subjects() == expected


def test_a_role_of_deployment_has_keys_for_three_hours_and_others_for_one() -> None:
    for name, role in of("Role").items():
        hours = 3 if name.endswith("-deploy") else 1
        assert int(role["maxSessionDuration"]) == hours * 3600, name


def test_subjects_have_the_ids_of_a_newer_repository() -> None:
    found = subjects(repository_ids="12/345", environments="dev")
    assert found["tap-stack-dev-deploy"] == "repo:acme@12/tap-stack@345:environment:dev"


def test_an_account_that_has_githubs_provider_keeps_it() -> None:
    (provider,) = of("OpenIdConnectProvider").values()
    assert provider["url"] == f"https://{GITHUB}"
    assert of("OpenIdConnectProvider", github_provider="false") == {}
    trusted = [
        statements(x["assumeRolePolicy"]) for x in of("Role", github_provider="false").values()
    ]
    named = {each["Principal"].get("Federated") for (each,) in trusted}
    assert named == {None, f"arn:aws:iam::{ACCOUNT}:oidc-provider/{GITHUB}"}


def test_policies_fit_and_are_all_attached() -> None:
    policies, attached = of("Policy"), of("RolePolicyAttachment")
    roles: dict[str, int] = {}
    for each in attached.values():
        roles[each["role"]] = roles.get(each["role"], 0) + 1
    assert max(roles.values()) <= permissions.ATTACHED
    for name, each in policies.items():
        assert permissions.size(json.loads(each["policy"])) <= permissions.DOCUMENT_CHARACTERS
        assert "region-name-1" not in each["policy"], name  # the key's ARN is in its place
    boundaries = sum(name.endswith("-boundary") for name in policies)
    assert len(policies) - boundaries == len(attached) - 1  # the emergency role has AWS's own


def test_a_role_of_deployment_cannot_widen_what_it_may_do() -> None:
    account = "111122223333"
    for env in ("dev", "staging", "prod"):
        denied = [
            each
            for name, policy in of("Policy").items()
            if name.startswith(f"tap-stack-{env}-deploy")
            for each in statements(policy["policy"])
            if each["Effect"] == "Deny" and each.get("Action") == ["iam:*"]
        ]
        (guarded,) = denied
        assert guarded["Resource"] == [
            f"arn:aws:iam::{account}:policy/tap-stack-{env}-boundary",
            f"arn:aws:iam::{account}:role/tap-stack-{env}-*",
            f"arn:aws:iam::{account}:oidc-provider/{GITHUB}",
        ]


def test_the_emergency_role_wants_a_second_factor_and_tells_everybody() -> None:
    config = {"alarm_emails": "ops@acme.io"}
    role = of("Role", **config)["tap-stack-emergency-prod-bootstrap"]
    (trusted,) = statements(role["assumeRolePolicy"])
    assert trusted["Condition"] == {
        "Bool": {"aws:MultiFactorAuthPresent": "true"},
        "NumericLessThan": {"aws:MultiFactorAuthAge": "3600"},
        "StringEquals": {"aws:RequestedRegion": REGION},
    }
    assert int(role["maxSessionDuration"]) == 3600
    (rule,) = of("EventRule", **config).values()
    pattern = json.loads(rule["eventPattern"])
    assert pattern["detail"]["eventName"] == ["AssumeRole"]
    (arn,) = pattern["detail"]["requestParameters"]["roleArn"]
    assert "emergency" in arn
    # EventBridge, receiving read-only management events: AssumeRole is its example.
    assert rule["state"] == "ENABLED_WITH_ALL_CLOUDTRAIL_MANAGEMENT_EVENTS"
    (target,) = of("EventTarget", **config).values()
    (topic,) = of("TopicPolicy", **config).values()
    assert target["arn"] == topic["arn"]
    (email,) = of("TopicSubscription", **config).values()
    assert email["endpoint"] == "ops@acme.io"


def test_the_budget_of_the_account_is_the_sum_of_its_environments() -> None:
    (budget,) = re.findall(r"pulumi config set budget_usd (\d+)", DEPLOY)
    environments = BootstrapArgs(repository=REPOSITORY).environments
    assert int(budget) == sum(TapStackArgs(environment_suffix=x).budget_usd for x in environments)


def test_who_needs_the_emergency_role_finds_its_name_in_the_document() -> None:
    (name,) = (each for each in of("Role") if "emergency" in each)
    assert f"--role-arn arn:aws:iam::<account>:role/{name} " in DEPLOY


def trusting(document: str, service: str) -> dict[str, Any]:
    """The statement of a resource policy about a service."""
    (found,) = (
        each
        for each in statements(document)
        if each["Principal"].get("Service") == f"{service}.amazonaws.com"
    )
    return found


def test_a_rule_publishes_to_the_encrypted_topic_without_conditions_that_it_cannot_meet() -> None:
    """SNS, key management; EventBridge, resource-based policies."""
    (topic,) = of("TopicPolicy").values()
    assert "Condition" not in trusting(topic["policy"], "events")
    (key,) = of("Key").values()
    (name,) = of("Topic")
    arn = f"arn:aws:sns:{REGION}:{ACCOUNT}:{name}"
    assert trusting(key["policy"], "events")["Condition"] == {
        "StringEquals": {"kms:EncryptionContext:aws:sns:topicArn": arn}
    }
    for document in (topic["policy"], key["policy"]):
        condition = trusting(document, "budgets")["Condition"]
        assert condition == {"StringEquals": {"aws:SourceAccount": ACCOUNT}}


@pytest.mark.parametrize(
    ("config", "error"),
    [
        ({"repository": ""}, 'repository must be a repository of GitHub such as acme/tap-stack, not ""'),
        ({"repository": "https://github.com/acme/x"}, "repository must be a repository of GitHub"),
        ({"repository_ids": "12"}, 'repository_ids must be ids such as 1234/5678, or empty, not "12"'),
        ({"environments": "test"}, 'environments must be environments such as dev or prod-eu, not ["test"]'),
        ({"repositry": "a/b"}, "there is no setting repositry: did you mean repository?"),
    ],
)  # fmt: skip
def test_a_wrong_setting_is_an_error_that_names_it(config: dict[str, str], error: str) -> None:
    with pytest.raises((TapLocalError, SettingsError)) as raised:
        bootstrap(**config)
    assert error in str(raised.value)
