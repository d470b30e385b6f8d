"""EventBridge Scheduler: schedules."""

from __future__ import annotations

from typing import Any

from taplocal.cloud import Cloud
from taplocal.resources.base import Inputs, Named, Outputs, given, pascal


class Schedule(Named):
    uses = "name description scheduleExpression flexibleTimeWindow kmsKeyArn target"
    replace_on = "name"
    tag_operation = "scheduler get_schedule Name -"

    def create(self, cloud: Cloud, inputs: Inputs) -> tuple[str, Outputs]:
        arn = cloud.client("scheduler").create_schedule(**_schedule(inputs))["ScheduleArn"]
        return inputs["name"], {"arn": arn}

    def update(
        self, cloud: Cloud, resource_id: str, old: Inputs, new: Inputs, outputs: Outputs
    ) -> Outputs:
        cloud.client("scheduler").update_schedule(**_schedule(new))
        return outputs

    def delete(self, cloud: Cloud, resource_id: str, inputs: Inputs, outputs: Outputs) -> None:
        cloud.client("scheduler").delete_schedule(Name=resource_id)

    def find(self, cloud: Cloud, inputs: Inputs) -> str | None:
        if self.tags(cloud, inputs) is None:
            return None
        target = cloud.client("scheduler").get_schedule(Name=inputs["name"])["Target"]
        same = target["RoleArn"] == inputs["target"]["roleArn"]  # a role of this stack's own
        return str(inputs["name"]) if same else None


def _schedule(inputs: Inputs) -> dict[str, Any]:
    target, retry = inputs["target"], inputs["target"].get("retryPolicy")
    return given(
        Name=inputs["name"],
        Description=inputs.get("description"),
        ScheduleExpression=inputs["scheduleExpression"],
        FlexibleTimeWindow=pascal(inputs["flexibleTimeWindow"]),
        KmsKeyArn=inputs.get("kmsKeyArn"),
        Target=given(
            Arn=target["arn"],
            RoleArn=target["roleArn"],
            Input=target.get("input"),
            RetryPolicy=retry and {_RETRY[key]: value for key, value in retry.items()},
        ),
    )


_RETRY = {
    "maximumRetryAttempts": "MaximumRetryAttempts",
    "maximumEventAgeInSeconds": "MaximumEventAgeInSeconds",
}
