"""EventBridge Scheduler: schedules and their groups."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from taplocal.cloud import Cloud
from taplocal.resources.base import Inputs, Named, Outputs, given, pascal, removed_tags, tag_list


class ScheduleGroup(Named):
    uses = "name tags"
    replace_on = "name"
    tag_operation = "scheduler list_tags_for_resource ResourceArn Tags"

    def name(self, cloud: Cloud, inputs: Inputs) -> str:
        return cloud.arn("scheduler", f"schedule-group/{inputs['name']}")

    def create(self, cloud: Cloud, inputs: Inputs) -> tuple[str, Outputs]:
        cloud.client("scheduler").create_schedule_group(
            Name=inputs["name"], Tags=tag_list(inputs.get("tags"))
        )
        return inputs["name"], {"arn": self.name(cloud, inputs)}

    def update(
        self, cloud: Cloud, resource_id: str, old: Inputs, new: Inputs, outputs: Outputs
    ) -> Outputs:
        scheduler, arn = cloud.client("scheduler"), outputs["arn"]
        if removed := removed_tags(old, new):
            scheduler.untag_resource(ResourceArn=arn, TagKeys=removed)
        scheduler.tag_resource(ResourceArn=arn, Tags=tag_list(new.get("tags")))
        return outputs

    def delete(self, cloud: Cloud, resource_id: str, inputs: Inputs, outputs: Outputs) -> None:
        cloud.client("scheduler").delete_schedule_group(Name=resource_id)


class Schedule(Named):
    uses = "name groupName description scheduleExpression flexibleTimeWindow kmsKeyArn target"
    replace_on = "name groupName"

    def create(self, cloud: Cloud, inputs: Inputs) -> tuple[str, Outputs]:
        arn = cloud.client("scheduler").create_schedule(**_schedule(inputs))["ScheduleArn"]
        return inputs["name"], {"arn": arn}

    def update(
        self, cloud: Cloud, resource_id: str, old: Inputs, new: Inputs, outputs: Outputs
    ) -> Outputs:
        cloud.client("scheduler").update_schedule(**_schedule(new))
        return outputs

    def delete(self, cloud: Cloud, resource_id: str, inputs: Inputs, outputs: Outputs) -> None:
        cloud.client("scheduler").delete_schedule(**_key(inputs))

    def tags(self, cloud: Cloud, inputs: Inputs) -> Mapping[str, str] | None:
        return None if self._role(cloud, inputs) is None else {}

    def find(self, cloud: Cloud, inputs: Inputs) -> str | None:
        same = self._role(cloud, inputs) == inputs["target"]["roleArn"]  # of this stack's own
        return str(inputs["name"]) if same else None

    def _role(self, cloud: Cloud, inputs: Inputs) -> str | None:
        """The role of the schedule of this name, which has no tags; None if there is none."""
        scheduler = cloud.client("scheduler")
        try:
            return str(scheduler.get_schedule(**_key(inputs))["Target"]["RoleArn"])
        except scheduler.exceptions.ResourceNotFoundException:
            return None


def _key(inputs: Inputs) -> dict[str, str]:
    return {"Name": inputs["name"], "GroupName": inputs.get("groupName", "default")}


def _schedule(inputs: Inputs) -> dict[str, Any]:
    target, retry = inputs["target"], inputs["target"].get("retryPolicy")
    return given(
        **_key(inputs),
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
