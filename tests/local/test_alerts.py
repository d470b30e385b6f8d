"""Alerts that are sent: from a metric to whoever subscribed."""

from __future__ import annotations

from taplocal.session import Session
from tests.local.test_policies import API


def test_an_alarm_reaches_a_subscriber(deployed: Session) -> None:
    sqs, sns, metrics = (deployed.cloud.client(each) for each in ("sqs", "sns", "cloudwatch"))
    url = sqs.create_queue(QueueName="pager")["QueueUrl"]
    queue, topic = deployed.cloud.arn("sqs", "pager"), deployed.outputs["alerts_topic_arn"]
    allow = (
        '{"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Principal": {"Service": "sns.amazonaws.com"},'
        f' "Action": "sqs:SendMessage", "Resource": "{queue}"}}]}}'
    )
    sqs.set_queue_attributes(QueueUrl=url, Attributes={"Policy": allow})
    subscription = sns.subscribe(
        TopicArn=topic, Protocol="sqs", Endpoint=queue, ReturnSubscriptionArn=True
    )
    through = {"FunctionName": API, "Resource": f"{API}:live"}
    dimensions = [{"Name": name, "Value": value} for name, value in through.items()]
    metrics.put_metric_data(
        Namespace="AWS/Lambda",
        MetricData=[{"MetricName": "Errors", "Dimensions": dimensions, "Value": 3}],
    )
    bodies = ""
    for _ in range(5):
        received = sqs.receive_message(QueueUrl=url, WaitTimeSeconds=2, MaxNumberOfMessages=10).get(
            "Messages", []
        )
        bodies += "".join(message["Body"] for message in received)
        if "tap-stack-api-errors-dev" in bodies:
            break
    assert "tap-stack-api-errors-dev" in bodies
    sns.unsubscribe(SubscriptionArn=subscription["SubscriptionArn"])
    sqs.delete_queue(QueueUrl=url)
