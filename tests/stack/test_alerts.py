"""Alerts as they are registered: the topic, who may publish to it, its subscribers, the budget."""

from __future__ import annotations

import pytest

import tap_stack
from tests.stack.conftest import (
    ACCOUNT,
    REGION,
    Graph,
    graph_of,
    recorded,
    statements,
)


def test_the_topic_is_encrypted_so_that_cloudwatch_can_publish(graph: Graph) -> None:
    publishers = set(tap_stack.PUBLISHERS)
    for name, services in (("topic", publishers), ("pages", {tap_stack.PUBLISHERS[0]})):
        topic = statements(graph.one("TopicPolicy", f"alerts-{name}-policy").inputs["policy"])
        allowed = {each["Principal"]["Service"] for each in topic if each["Effect"] == "Allow"}
        assert allowed == services
        key = graph.one("Key", f"encryption-{'pages-key' if name == 'pages' else 'key'}")
        uses = [x for x in statements(key.inputs["policy"]) if "Service" in x["Principal"]]
        users = {each["Principal"]["Service"]: each for each in uses}
        for service in services:
            assert set(users[service]["Action"]) == {"kms:Decrypt", "kms:GenerateDataKey"}
            assert users[service]["Condition"] == {"StringEquals": {"aws:SourceAccount": ACCOUNT}}
        others = [] if name == "pages" else [f"logs.{REGION}.amazonaws.com"]
        assert [*users.keys() - services] == others


@pytest.mark.parametrize(("paged", "woken"), [("[]", "ann bob"), ("cat@example.com", "cat")])
def test_each_address_is_subscribed(paged: str, woken: str) -> None:
    both = '["ann@example.com", "bob@example.com"]'
    graph = graph_of("dev", alarm_emails=both, page_emails=paged)
    found: dict[str, list[str]] = {}
    for each in graph.of("TopicSubscription"):
        person = each.inputs["endpoint"].partition("@")[0]
        found.setdefault(each.inputs["topic"], []).append(person)
    assert sorted(found[graph.outputs["alerts_topic_arn"]]) == ["ann", "bob"]
    assert sorted(found[graph.outputs["pages_topic_arn"]]) == woken.split()


def test_the_budget_warns_the_topic(graph: Graph) -> None:
    budget = graph.one("Budget").inputs
    kinds = {each["notificationType"]: each for each in budget["notifications"]}
    assert {kind: each["threshold"] for kind, each in kinds.items()} == {
        "ACTUAL": 80,
        "FORECASTED": 100,
    }
    for each in kinds.values():
        assert each["subscriberSnsTopicArns"] == [graph.outputs["alerts_topic_arn"]]


@pytest.mark.parametrize(
    ("env", "emails", "warned"),
    [
        ("prod", "[]", True),
        ("prod-eu", "[]", True),
        ("prod", "a@b.de", False),
        ("dev", "[]", False),
    ],
)
def test_alarms_of_prod_that_notify_nobody_are_warned_of_at_each_run(
    env: str, emails: str, warned: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    for _ in range(2):
        graph = recorded(env, alarm_emails=emails, systems="api")
        alarms = (*graph.of("MetricAlarm"), *graph.of("CompositeAlarm"))
        count = sum(bool(each.inputs["alarmActions"]) for each in alarms)
        expected = f"alarm_emails is empty: the {count} alarms of {env} notify nobody."
        assert (expected in capsys.readouterr().err) is warned
