"""Policies as they are registered, beyond the rules of policy/rules.py: who may use the key for what."""

from __future__ import annotations

from tests.stack.conftest import ACCOUNT, REGION, Graph, statements


def test_a_role_may_use_the_key_only_through_services_that_it_may_call(graph: Graph) -> None:
    key, functions = graph.outputs["key_arn"], f"arn:aws:lambda:{REGION}:{ACCOUNT}:function:"
    names = {each.inputs["name"] for each in graph.of("aws:lambda/function:Function")}
    uses = 0
    for each in graph.of("RolePolicy"):
        allowed = statements(each.inputs["policy"])
        services = {action.split(":")[0] for x in allowed for action in x["Action"]}
        for statement in (x for x in allowed if x["Resource"] == key):
            uses += 1
            condition = statement["Condition"]
            if condition.keys() == {"StringLike"}:
                # The environment of the function whose role this is, and of no other.
                own = functions + each.inputs["name"]
                context = "kms:EncryptionContext:aws:lambda:FunctionArn"
                assert condition["StringLike"] == {context: [own, f"{own}:*"]}, each.name
                assert each.inputs["name"] in names
                continue
            ((name, value),) = condition["StringEquals"].items()
            service = value.removesuffix(f".{REGION}.amazonaws.com")
            assert (name, service in services | {"scheduler"}) == ("kms:ViaService", True), (
                each.name
            )
    assert uses > len(names)
