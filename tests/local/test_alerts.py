"""Alerts that are sent: from a metric to whoever subscribed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from taplocal import session
from taplocal.session import Session
from tests.local.conftest import ROOT
from tests.local.small import eventually
from tests.local.test_policies import API


def subscribed(stack: Session, output: str) -> Callable[[str], bool]:
    """Subscribes a queue to a topic; returns what tells whether an alarm of this name came."""
    sqs, sns = stack.cloud.client("sqs"), stack.cloud.client("sns")
    url, topic = sqs.create_queue(QueueName=f"of-{output}")["QueueUrl"], stack.outputs[output]
    queue = stack.cloud.arn("sqs", f"of-{output}")
    allow = (
        '{"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Principal": {"Service": "sns.amazonaws.com"},'
        f' "Action": "sqs:SendMessage", "Resource": "{queue}"}}]}}'
    )
    sqs.set_queue_attributes(QueueUrl=url, Attributes={"Policy": allow})
    sns.subscribe(TopicArn=topic, Protocol="sqs", Endpoint=queue)
    bodies: list[str] = []

    def heard(alarm: str) -> bool:
        received = sqs.receive_message(QueueUrl=url, MaxNumberOfMessages=10).get("Messages", [])
        bodies.extend(message["Body"] for message in received)
        return any(f'{state}: \\"{alarm}' in x for x in bodies for state in ("ALARM", "OK"))

    return heard


def test_an_alarm_reaches_a_subscriber(deployed: Session) -> None:
    heard = subscribed(deployed, "alerts_topic_arn")
    through = {"FunctionName": API, "Resource": f"{API}:live"}
    dimensions = [{"Name": name, "Value": value} for name, value in through.items()]
    deployed.cloud.client("cloudwatch").put_metric_data(
        Namespace="AWS/Lambda",
        MetricData=[{"MetricName": "Errors", "Dimensions": dimensions, "Value": 3}],
    )
    eventually(lambda: heard("tap-stack-api-errors-dev"))


# Objectives, on a stack of their own: dev has none


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Session]:
    """The API with objectives of 99.9 % and 99 %."""
    folder = tmp_path_factory.mktemp("objectives")
    quiet: Any = {"say": lambda _: None, "report": lambda _: None}
    config = {"systems": "api", "availability_objective": "99.9", "latency_objective": "99"}
    try:
        yield session.up(ROOT, "dev", folder=folder, config=config, **quiet)[0]
    finally:
        session.down(ROOT, None, folder=folder, report=lambda _: None)


def put(watched: Session, minutes_ago: float, **values: float) -> None:
    """Requests to the API: their number, how many failed, and the latency of all, in ms."""
    metrics = watched.cloud.client("cloudwatch")
    stage = {"ApiId": watched.outputs["api_url"].rpartition("/")[2], "Stage": "$default"}
    dimensions = [{"Name": name, "Value": value} for name, value in stage.items()]
    at = datetime.now(UTC) - timedelta(minutes=minutes_ago)
    total, failed, latency = values["requests"], values.get("failed", 0), values.get("latency", 10)
    series = {
        "Count": ([1], [total]),
        "5xx": ([1, 0], [failed, total - failed]),
        "Latency": ([latency], [total]),
    }
    data = [
        {"MetricName": name, "Dimensions": dimensions, "Timestamp": at, "Values": of, "Counts": n}
        for name, (of, n) in series.items()
    ]
    metrics.put_metric_data(Namespace="AWS/ApiGateway", MetricData=data)


def states(watched: Session) -> dict[str, str]:
    """Burn-rate alarm -> its state."""
    found = watched.cloud.client("cloudwatch").describe_alarms(AlarmTypes=["CompositeAlarm"])
    return {x["AlarmName"]: x["StateValue"] for x in found["CompositeAlarms"]}


FAST, MIDDLE, SLOW = (f"tap-stack-api-{x}-dev" for x in ("fast-burn", "burn", "slow-burn"))


def test_burn_rates_page_for_what_users_feel_and_open_tickets_for_the_rest(
    watched: Session,
) -> None:
    put(watched, 50, requests=10_000)
    assert set(states(watched).values()) == {"OK"}
    assert states(watched).keys() == {FAST, MIDDLE, SLOW}
    put(watched, 40, requests=1_000, failed=4)  # 0.04 % of an hour, and they have ended
    assert set(states(watched).values()) == {"OK"}
    put(watched, 2, requests=1_000, failed=5)  # 0.08 %, within the budget
    assert set(states(watched).values()) == {"OK"}
    put(watched, 1, requests=1_000, failed=100)  # 0.8 %: 8 times the budget
    assert states(watched) == {FAST: "OK", MIDDLE: "ALARM", SLOW: "ALARM"}
    put(watched, 1, requests=1_000, failed=150)  # 1.9 %
    assert set(states(watched).values()) == {"ALARM"}


def test_pages_wait_while_a_release_is_watched(watched: Session) -> None:
    metrics, heard = watched.cloud.client("cloudwatch"), subscribed(watched, "pages_topic_arn")
    here = [{"Name": "Environment", "Value": "dev"}]
    releasing = {"MetricName": "Releasing", "Dimensions": here, "Value": 1}
    put(watched, 1, requests=1_000_000)  # what has failed is within the budget again
    assert set(states(watched).values()) == {"OK"}
    metrics.put_metric_data(Namespace="tap-stack", MetricData=[releasing])
    put(watched, 1, requests=400_000, latency=5_000)
    assert states(watched)[FAST] == "ALARM"
    assert not heard(FAST)


def test_a_ticket_is_no_page(watched: Session) -> None:
    assert watched.outputs["pages_topic_arn"] != watched.outputs["alerts_topic_arn"]
    alarms = watched.cloud.client("cloudwatch").describe_alarms(AlarmTypes=["CompositeAlarm"])
    told = {x["AlarmName"]: x["AlarmActions"] for x in alarms["CompositeAlarms"]}
    assert told[FAST] == told[MIDDLE] == [watched.outputs["pages_topic_arn"]]
    assert told[SLOW] == [watched.outputs["alerts_topic_arn"]]


def test_pages_arrive_also_while_the_key_of_all_data_is_disabled(watched: Session) -> None:
    metrics, kms = watched.cloud.client("cloudwatch"), watched.cloud.client("kms")
    tickets, pages = subscribed(watched, "alerts_topic_arn"), subscribed(watched, "pages_topic_arn")
    alarms = ("tap-stack-alerts-undelivered-dev", "tap-stack-pages-undelivered-dev")
    kms.disable_key(KeyId=watched.outputs["key_arn"])
    try:
        for name in alarms:
            for state in ("OK", "ALARM"):
                metrics.set_alarm_state(AlarmName=name, StateValue=state, StateReason="a test")
        eventually(lambda: pages(alarms[0]))
        assert not tickets(alarms[1])
    finally:
        kms.enable_key(KeyId=watched.outputs["key_arn"])


def test_a_muted_alarm_is_heard_after_its_rule_if_it_still_holds(watched: Session) -> None:
    metrics, heard = watched.cloud.client("cloudwatch"), subscribed(watched, "alerts_topic_arn")
    muted, other = "tap-stack-api-errors-dev", "tap-stack-api-throttles-dev"
    schedule = {"Expression": f"at({datetime.now(UTC):%Y-%m-%dT%H:%M})", "Duration": "PT1H"}
    metrics.put_alarm_mute_rule(
        Name="maintenance", Rule={"Schedule": schedule}, MuteTargets={"AlarmNames": [muted]}
    )
    function = {"Name": "FunctionName", "Value": API}
    live = {"Name": "Resource", "Value": f"{API}:live"}
    data = [
        {"MetricName": "Errors", "Dimensions": [function, live], "Value": 9},
        {"MetricName": "Throttles", "Dimensions": [function], "Value": 9},
    ]
    metrics.put_metric_data(Namespace="AWS/Lambda", MetricData=data)
    eventually(lambda: heard(other))
    assert not heard(muted)
    found = metrics.describe_alarms(AlarmNames=[muted])["MetricAlarms"]
    assert [each["StateValue"] for each in found] == ["ALARM"]
    metrics.delete_alarm_mute_rule(AlarmMuteRuleName="maintenance")
    eventually(lambda: heard(muted))
