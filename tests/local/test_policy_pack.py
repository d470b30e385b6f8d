"""The policy pack, started and asked as Pulumi's engine does: the rules of policy/rules.py."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf import empty_pb2
from pulumi.runtime.proto import analyzer_pb2, analyzer_pb2_grpc

from policy import rules
from taplocal.program import Registration
from tests.environments import ROOT, address_of, as_struct, clean, locked_packages
from tests.stack.conftest import graph_of

UNKNOWN = "04da6b54-80e4-46f7-96ec-b56ff0331ba9"  # what the engine sends for a text not yet known
ENGINE = {"PULUMI_PROJECT": "tap-stack", "PULUMI_STACK": "prod", "PULUMI_DRY_RUN": "true"}


@pytest.fixture(scope="module")
def pack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """The pack's process, in an environment of its own, for the stack prod."""
    folder = tmp_path_factory.mktemp("pack") / "environment"
    python = locked_packages(folder, Path(sys.executable), "requirements-policy.txt")
    process = subprocess.Popen(
        [python, "-u", "-m", "pulumi.policy", "127.0.0.1:1", ROOT / "policy"],
        cwd=ROOT / "policy", env=clean(**ENGINE), stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        with grpc.insecure_channel(address_of(process)) as channel:
            yield analyzer_pb2_grpc.AnalyzerStub(channel)
    finally:
        process.kill()
        process.wait()


def resource(kind: str, name: str) -> Registration:
    return graph_of("prod").one(rules.token(kind), name)


def said(pack: Any, each: Registration, **changes: Any) -> list[tuple[str, Any]]:
    """What the pack says of a resource with changed inputs: policy, level."""
    request = analyzer_pb2.AnalyzeRequest(
        type=each.type, name=each.name, urn=each.urn, properties=as_struct(each.inputs | changes)
    )
    found = pack.Analyze(request).diagnostics
    return [(x.policyName, x.enforcementLevel) for x in found]


def test_each_rule_is_a_mandatory_policy(pack: Any) -> None:
    info = pack.GetAnalyzerInfo(empty_pb2.Empty()).policies
    assert [each.name for each in info] == [
        rule.name for group in (rules.RULES, rules.COMPANIONS) for rule in group
    ]
    assert {each.enforcementLevel for each in info} == {analyzer_pb2.MANDATORY}


def test_a_broken_rule_ends_the_deployment_unless_it_is_exempted(pack: Any) -> None:
    database = resource("rds/instance", "database-instance")
    assert said(pack, database) == []  # with its port, which is exempted
    broken = said(pack, database, multiAz=False)  # which is exempted in dev only
    assert broken == [("RDS.5-rds-instance-multiAz", analyzer_pb2.MANDATORY)]


def test_what_is_not_known_yet_is_named_and_ends_nothing(pack: Any) -> None:
    policy = resource("s3/bucketPolicy", "storage-assets-policy")
    assert said(pack, policy) == []
    unknown = dict(said(pack, policy, policy=UNKNOWN))
    assert unknown == {
        rule.name: analyzer_pb2.ADVISORY
        for rule in rules.RULES
        if rules.token(rule.type) == policy.type
    }


def test_a_bucket_without_its_companions_ends_the_deployment(pack: Any) -> None:
    def lacking(*resources: Registration) -> set[str]:
        request = analyzer_pb2.AnalyzeStackRequest()
        for each in resources:
            sent = request.resources.add(
                type=each.type, name=each.name, urn=each.urn, properties=as_struct(each.inputs)
            )
            for key, urns in each.references.items():
                sent.propertyDependencies[key].urns.extend(urns)
        return {each.policyName for each in pack.AnalyzeStack(request).diagnostics}

    everything = [x for x in graph_of("prod").custom() if x.type.startswith("aws:s3/")]
    assert lacking(*everything) == set()
    public = rules.token("s3/bucketPublicAccessBlock")
    rest = [each for each in everything if each.type != public]
    assert lacking(*rest) == {"S3.8-s3-bucket-has-bucketPublicAccessBlock"}
