"""A sample of `make prove-iam`: a grant is needed, or found to be in vain."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from taplocal.session import Session
from tests import needs
from tests.local import proof
from tests.local.proof import Proof

SAMPLE = (
    "item get",
    "item put",
    "file content",
    "file upload",
    "file record",
    "file gone",
    "version gone",
)


@pytest.fixture(scope="module")
def stack(deployed: Session) -> Proof:
    return Proof(deployed)


def test_without_a_grant_its_step_fails(stack: Proof) -> None:
    results = [*proof.prove(stack, SAMPLE)]
    assert {each.need.step for each in results} == set(SAMPLE)
    assert [each.grant for each in results if not each.outcome] == []
    for each in results:
        assert proof.run(stack, each.need.step, each.grant) == ""


def test_each_step_of_the_table_is_there() -> None:
    steps = {need.step for rows in needs.NEEDS.values() for need in rows if need.step}
    assert steps == proof.STEPS.keys()
    forbidden = {need.forbidden for rows in needs.NEEDS.values() for need in rows}
    assert forbidden - {""} == proof.FORBIDDEN.keys()


def test_a_grant_that_its_step_does_not_need_is_found(stack: Proof) -> None:
    (role,) = (x for x in stack.holders if x.name == "api-items-role-policy")
    granted = [*needs.granted(role)]
    read = next(each for each in granted if each.action == "dynamodb:GetItem")
    vain = read._replace(action="dynamodb:Scan")
    policy = json.dumps({"Statement": [proof.listed(each) for each in (*granted, vain)]})
    wider = replace(role, inputs={**role.inputs, "policy": policy})
    of_vain = {needs.plain(vain, stack.names): needs.Need(vain.action, step="item get")}
    stack.holders, stack.table = [wider], {**of_vain}
    (result,) = proof.prove(stack)
    stack.write(role, granted)
    assert (result.grant.action, result.outcome) == ("dynamodb:Scan", "")


def test_what_a_condition_forbids_is_done_without_it(deployed: Session) -> None:
    results = [*proof.prove_conditions(Proof(deployed))]
    assert {each.need.forbidden for each in results} == proof.FORBIDDEN.keys()
    assert [each.grant for each in results if not each.outcome] == []
