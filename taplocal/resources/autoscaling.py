"""Auto Scaling groups, and Application Auto Scaling; the emulator does not have the latter."""

from __future__ import annotations

from typing import Any

from taplocal.cloud import Cloud
from taplocal.resources.base import (
    OWNER,
    Handler,
    Inputs,
    Named,
    Outputs,
    Recorded,
    given,
    pascal,
    tag_map,
)


class Target(Recorded):
    uses = "serviceNamespace resourceId scalableDimension minCapacity maxCapacity tags"
    not_emulated = {"resourceId": "nothing is scaled"}


class Policy(Recorded):
    uses = """name policyType serviceNamespace resourceId scalableDimension
        targetTrackingScalingPolicyConfiguration"""
    not_emulated = {"targetTrackingScalingPolicyConfiguration": "nothing is scaled"}


class Group(Named):
    uses = """name minSize maxSize vpcZoneIdentifiers mixedInstancesPolicy capacityRebalance
        targetGroupArns healthCheckType healthCheckGracePeriod defaultInstanceWarmup
        initialLifecycleHooks waitForCapacityTimeout minElbCapacity
        enabledMetrics metricsGranularity serviceLinkedRoleArn tags"""
    replace_on = "name"
    not_emulated = {
        "mixedInstancesPolicy": "no instance runs",
        "initialLifecycleHooks": "no instance runs",
        "healthCheckType": "nothing is checked",
        "enabledMetrics": "nothing is measured",
    }

    def create(self, cloud: Cloud, inputs: Inputs) -> tuple[str, Outputs]:
        name = inputs["name"]
        cloud.client("autoscaling").create_auto_scaling_group(**self._arguments(inputs))
        arn = cloud.arn("autoscaling", f"autoScalingGroup:*:autoScalingGroupName/{name}")
        return name, {"arn": arn}

    def update(
        self, cloud: Cloud, resource_id: str, old: Inputs, new: Inputs, outputs: Outputs
    ) -> Outputs:
        arguments = self._arguments(new)
        arguments.pop("Tags"), arguments.pop("TargetGroupARNs", None)
        cloud.client("autoscaling").update_auto_scaling_group(**arguments)
        return outputs

    def delete(self, cloud: Cloud, resource_id: str, inputs: Inputs, outputs: Outputs) -> None:
        cloud.client("autoscaling").delete_auto_scaling_group(
            AutoScalingGroupName=resource_id, ForceDelete=True
        )

    def owned(self, inputs: Inputs, owner: str) -> Inputs:
        tag = {"key": OWNER, "value": owner, "propagateAtLaunch": False}
        return {**inputs, "tags": [*inputs.get("tags", []), tag]}

    def find(self, cloud: Cloud, inputs: Inputs) -> str | None:
        name, owner = str(inputs["name"]), inputs["tags"][-1]["value"]
        groups = cloud.client("autoscaling").describe_auto_scaling_groups(
            AutoScalingGroupNames=[name]
        )["AutoScalingGroups"]
        tags = [tag for each in groups for tag in each["Tags"]]
        return name if tag_map(tags).get(OWNER) == owner else None

    @staticmethod
    def _arguments(inputs: Inputs) -> dict[str, Any]:
        mixed = inputs["mixedInstancesPolicy"]["launchTemplate"]["launchTemplateSpecification"]
        template = {"LaunchTemplateId": mixed["launchTemplateId"], "Version": mixed["version"]}
        tags = [
            {
                "ResourceId": inputs["name"],
                "ResourceType": "auto-scaling-group",
                "Key": each["key"],
                "Value": each["value"],
                "PropagateAtLaunch": each["propagateAtLaunch"],
            }
            for each in inputs.get("tags", [])
        ]
        return given(
            AutoScalingGroupName=inputs["name"],
            MinSize=inputs["minSize"],
            MaxSize=inputs["maxSize"],
            VPCZoneIdentifier=",".join(inputs["vpcZoneIdentifiers"]),
            LaunchTemplate=template,
            TargetGroupARNs=inputs.get("targetGroupArns"),
            HealthCheckType=inputs["healthCheckType"],
            HealthCheckGracePeriod=inputs["healthCheckGracePeriod"],
            Tags=tags,
        )


class FleetRollout(Recorded):
    """The program's dynamic resource."""

    uses = "group version preferences __provider"
    ignored = "__provider"
    not_emulated = {"version": "no instance is replaced"}

    def create(self, cloud: Cloud, inputs: Inputs) -> tuple[str, Outputs]:
        return inputs["group"], {}


class GroupPolicy(Handler):
    uses = "name autoscalingGroupName policyType targetTrackingConfiguration"
    replace_on = "name autoscalingGroupName"
    not_emulated = {"targetTrackingConfiguration": "nothing is scaled"}

    def create(self, cloud: Cloud, inputs: Inputs) -> tuple[str, Outputs]:
        tracking = pascal(inputs["targetTrackingConfiguration"])
        made = cloud.client("autoscaling").put_scaling_policy(
            AutoScalingGroupName=inputs["autoscalingGroupName"],
            PolicyName=inputs["name"],
            PolicyType=inputs["policyType"],
            TargetTrackingConfiguration=tracking,
        )
        return inputs["name"], {"arn": made["PolicyARN"]}

    def delete(self, cloud: Cloud, resource_id: str, inputs: Inputs, outputs: Outputs) -> None:
        cloud.client("autoscaling").delete_policy(
            AutoScalingGroupName=inputs["autoscalingGroupName"], PolicyName=resource_id
        )


class Schedule(Handler):
    uses = """scheduledActionName autoscalingGroupName recurrence minSize maxSize
        desiredCapacity"""
    id_input = "scheduledActionName"
    replace_on = "scheduledActionName autoscalingGroupName"
    not_emulated = {"recurrence": "nothing is scaled"}

    def create(self, cloud: Cloud, inputs: Inputs) -> tuple[str, Outputs]:
        cloud.client("autoscaling").put_scheduled_update_group_action(
            AutoScalingGroupName=inputs["autoscalingGroupName"],
            ScheduledActionName=inputs["scheduledActionName"],
            Recurrence=inputs["recurrence"],
            MinSize=inputs["minSize"],
            MaxSize=inputs["maxSize"],
            DesiredCapacity=inputs["desiredCapacity"],
        )
        return inputs["scheduledActionName"], {}

    def delete(self, cloud: Cloud, resource_id: str, inputs: Inputs, outputs: Outputs) -> None:
        cloud.client("autoscaling").delete_scheduled_action(
            AutoScalingGroupName=inputs["autoscalingGroupName"], ScheduledActionName=resource_id
        )
