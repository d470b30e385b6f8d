"""SQS: queues and their policies."""

from __future__ import annotations

from taplocal.cloud import Cloud
from taplocal.resources.base import Handler, Inputs, Named, Outputs, removed_tags


class Queue(Named):
    uses = "name kmsMasterKeyId messageRetentionSeconds tags"
    replace_on = "name"
    overwrites = True
    tag_operation = "sqs list_queue_tags QueueUrl Tags"

    def name(self, cloud: Cloud, inputs: Inputs) -> str:
        return f"{cloud.emulator.url}/{cloud.account}/{inputs['name']}"

    resource_id = name

    def create(self, cloud: Cloud, inputs: Inputs) -> tuple[str, Outputs]:
        url = cloud.client("sqs").create_queue(
            QueueName=inputs["name"], Attributes=_attributes(inputs), tags=inputs.get("tags") or {}
        )["QueueUrl"]
        return url, {"url": url, "arn": cloud.arn("sqs", inputs["name"])}

    def update(
        self, cloud: Cloud, resource_id: str, old: Inputs, new: Inputs, outputs: Outputs
    ) -> Outputs:
        sqs = cloud.client("sqs")
        sqs.set_queue_attributes(QueueUrl=resource_id, Attributes=_attributes(new))
        if removed := removed_tags(old, new):
            sqs.untag_queue(QueueUrl=resource_id, TagKeys=removed)
        sqs.tag_queue(QueueUrl=resource_id, Tags=new.get("tags") or {})
        return outputs

    def delete(self, cloud: Cloud, resource_id: str, inputs: Inputs, outputs: Outputs) -> None:
        cloud.client("sqs").delete_queue(QueueUrl=resource_id)


class QueuePolicy(Handler):
    uses = "queueUrl policy"
    replace_on = "queueUrl"

    def create(self, cloud: Cloud, inputs: Inputs) -> tuple[str, Outputs]:
        cloud.client("sqs").set_queue_attributes(
            QueueUrl=inputs["queueUrl"], Attributes={"Policy": inputs["policy"]}
        )
        return inputs["queueUrl"], {}

    def delete(self, cloud: Cloud, resource_id: str, inputs: Inputs, outputs: Outputs) -> None:
        cloud.client("sqs").set_queue_attributes(QueueUrl=resource_id, Attributes={"Policy": ""})


def _attributes(inputs: Inputs) -> dict[str, str]:
    names = {
        "kmsMasterKeyId": "KmsMasterKeyId",
        "messageRetentionSeconds": "MessageRetentionPeriod",
    }
    return {name: str(inputs[key]) for key, name in names.items() if key in inputs}
