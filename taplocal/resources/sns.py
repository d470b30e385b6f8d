"""SNS: topics, their policies and subscriptions."""

from __future__ import annotations

from taplocal.cloud import Cloud
from taplocal.resources.base import Handler, Inputs, Named, Outputs, given, removed_tags, tag_list


class Topic(Named):
    uses = "name kmsMasterKeyId tags"
    replace_on = "name"
    overwrites = True
    tag_operation = "sns list_tags_for_resource ResourceArn Tags"

    def name(self, cloud: Cloud, inputs: Inputs) -> str:
        return cloud.arn("sns", inputs["name"])

    resource_id = name

    def create(self, cloud: Cloud, inputs: Inputs) -> tuple[str, Outputs]:
        arn = cloud.client("sns").create_topic(
            Name=inputs["name"],
            Attributes=given(KmsMasterKeyId=inputs.get("kmsMasterKeyId")),
            Tags=tag_list(inputs.get("tags")),
        )["TopicArn"]
        return arn, {"arn": arn}

    def update(
        self, cloud: Cloud, resource_id: str, old: Inputs, new: Inputs, outputs: Outputs
    ) -> Outputs:
        sns = cloud.client("sns")
        key = new.get("kmsMasterKeyId", "")
        sns.set_topic_attributes(
            TopicArn=resource_id, AttributeName="KmsMasterKeyId", AttributeValue=key
        )
        if removed := removed_tags(old, new):
            sns.untag_resource(ResourceArn=resource_id, TagKeys=removed)
        sns.tag_resource(ResourceArn=resource_id, Tags=tag_list(new.get("tags")))
        return outputs

    def delete(self, cloud: Cloud, resource_id: str, inputs: Inputs, outputs: Outputs) -> None:
        cloud.client("sns").delete_topic(TopicArn=resource_id)


class TopicPolicy(Handler):
    uses = "arn policy"
    replace_on = "arn"

    def create(self, cloud: Cloud, inputs: Inputs) -> tuple[str, Outputs]:
        cloud.client("sns").set_topic_attributes(
            TopicArn=inputs["arn"],
            AttributeName="Policy",
            AttributeValue=inputs["policy"],
        )
        return inputs["arn"], {}

    def delete(self, cloud: Cloud, resource_id: str, inputs: Inputs, outputs: Outputs) -> None:
        """AWS deletes it with its topic."""


class TopicSubscription(Handler):
    uses = "topic protocol endpoint"
    replace_on = "topic protocol endpoint"

    def create(self, cloud: Cloud, inputs: Inputs) -> tuple[str, Outputs]:
        arn = cloud.client("sns").subscribe(
            TopicArn=inputs["topic"],
            Protocol=inputs["protocol"],
            Endpoint=inputs["endpoint"],
            ReturnSubscriptionArn=True,
        )["SubscriptionArn"]
        return arn, {"arn": arn}

    def find(self, cloud: Cloud, inputs: Inputs) -> str | None:
        pages = cloud.client("sns").get_paginator("list_subscriptions_by_topic")
        wanted = inputs["protocol"], inputs["endpoint"]
        for page in pages.paginate(TopicArn=inputs["topic"]):
            for each in page["Subscriptions"]:
                if (each["Protocol"], each["Endpoint"]) == wanted:
                    return str(each["SubscriptionArn"])
        return None

    def delete(self, cloud: Cloud, resource_id: str, inputs: Inputs, outputs: Outputs) -> None:
        cloud.client("sns").unsubscribe(SubscriptionArn=resource_id)
