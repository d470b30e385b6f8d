"""Auto Scaling groups, and Application Auto Scaling; the emulator does not have the latter."""

from __future__ import annotations

from typing import Any

from taplocal.cloud import Cloud
from taplocal.errors import TapLocalError
from taplocal.resources.awslambda import Rollout
from taplocal.resources.base import (
    OWNER,
    Handler,
    Inputs,
    Named,
    Outputs,
    Recorded,
    given,
    pascal,
    settled,
    tag_map,
)
from taplocal.web import SCALE

CAPACITY_SECONDS = 300  # a guard against hanging: an instance takes one or two
CAPACITY_FAILURES = 3  # launches that failed


class Target(Recorded):
    uses = "serviceNamespace resourceId scalableDimension minCapacity maxCapacity tags"


class Policy(Recorded):
    uses = """name policyType serviceNamespace resourceId scalableDimension
        targetTrackingScalingPolicyConfiguration"""


class Group(Named):
    uses = """name minSize maxSize vpcZoneIdentifiers mixedInstancesPolicy capacityRebalance
        targetGroupArns healthCheckType healthCheckGracePeriod defaultInstanceWarmup
        initialLifecycleHooks waitForCapacityTimeout
        enabledMetrics metricsGranularity serviceLinkedRoleArn tags"""
    replace_on = "name"

    def create(self, cloud: Cloud, inputs: Inputs) -> tuple[str, Outputs]:
        name = inputs["name"]
        cloud.client("autoscaling").create_auto_scaling_group(**self._arguments(inputs))
        arn = cloud.arn("autoscaling", f"autoScalingGroup:*:autoScalingGroupName/{name}")
        return name, {"arn": arn}

    def update(
        self, cloud: Cloud, resource_id: str, old: Inputs, new: Inputs, outputs: Outputs
    ) -> Outputs:
        arguments = self._arguments(new)
        tags = arguments.pop("Tags")
        for key in ("TargetGroupARNs", "LifecycleHookSpecificationList"):
            arguments.pop(key, None)
        if new["mixedInstancesPolicy"] == old["mixedInstancesPolicy"]:
            del arguments["MixedInstancesPolicy"]  # as the provider: a refresh may have changed it
        scaling = cloud.client("autoscaling")
        scaling.update_auto_scaling_group(**arguments)
        kept = {each["Key"] for each in tags}
        gone = [each for each in self._arguments(old)["Tags"] if each["Key"] not in kept]
        if gone:
            scaling.delete_tags(Tags=gone)
        scaling.create_or_update_tags(Tags=tags)
        return outputs

    def settle(self, cloud: Cloud, inputs: Inputs) -> None:
        """Waits for the minimum, healthy; TapLocalError with AWS's reason."""
        scaling, elb = cloud.client("autoscaling"), cloud.client("elbv2")
        name, least = inputs["name"], inputs["minSize"]
        groups = inputs.get("targetGroupArns") or ()
        before = {each["ActivityId"] for each in self._failed(cloud, name)}

        def look() -> str:
            found = scaling.describe_auto_scaling_groups(AutoScalingGroupNames=[name])
            (group,) = found["AutoScalingGroups"]
            serving = [x for x in group["Instances"] if x["LifecycleState"] == "InService"]
            healthy = [
                [
                    each
                    for each in elb.describe_target_health(TargetGroupArn=arn)[
                        "TargetHealthDescriptions"
                    ]
                    if each["TargetHealth"]["State"] == "healthy"
                ]
                for arn in groups
            ]
            if all(len(each) >= least for each in (serving, *healthy)):
                return ""
            failed = [x for x in self._failed(cloud, name) if x["ActivityId"] not in before]
            why = failed[0]["StatusMessage"] if failed else "they do not become healthy"
            why = f"{name} has {len(serving)} of {least} instances in service: {why}"
            if len(failed) >= CAPACITY_FAILURES:
                raise TapLocalError(why)
            return why

        settled(look, CAPACITY_SECONDS)

    @staticmethod
    def _failed(cloud: Cloud, name: str) -> list[Any]:
        """The launches of a group that failed, the newest first."""
        client = cloud.client("autoscaling")
        told = client.describe_scaling_activities(AutoScalingGroupName=name)["Activities"]
        return [each for each in told if each["StatusCode"] == "Failed"]

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
        policy = pascal(inputs["mixedInstancesPolicy"])
        template = policy["LaunchTemplate"]
        template["Overrides"] = template.pop("Overrides", [])
        template["LaunchTemplateSpecification"].pop("LaunchTemplateName", None)
        hooks = [
            {
                "LifecycleHookName": each["name"],
                "LifecycleTransition": each["lifecycleTransition"],
                "DefaultResult": each["defaultResult"],
                "HeartbeatTimeout": each["heartbeatTimeout"],
            }
            for each in inputs.get("initialLifecycleHooks", [])
        ]
        return given(
            AutoScalingGroupName=inputs["name"],
            MinSize=inputs["minSize"],
            MaxSize=inputs["maxSize"],
            VPCZoneIdentifier=",".join(inputs["vpcZoneIdentifiers"]),
            MixedInstancesPolicy=policy,
            TargetGroupARNs=inputs.get("targetGroupArns"),
            LifecycleHookSpecificationList=hooks,
            DefaultInstanceWarmup=inputs.get("defaultInstanceWarmup"),
            CapacityRebalance=inputs.get("capacityRebalance"),
            HealthCheckType=inputs["healthCheckType"],
            HealthCheckGracePeriod=inputs["healthCheckGracePeriod"],
            Tags=tags,
        )


class FleetRollout(Rollout):
    """The program's dynamic resource; its provider runs in this process."""

    uses = "group version types spot_percent max_healthy_percent alarms __provider"
    replace_on = "group"
    time_scale = staticmethod(lambda: SCALE)


class GroupPolicy(Handler):
    uses = "name autoscalingGroupName policyType targetTrackingConfiguration"
    replace_on = "name autoscalingGroupName"

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
    uses = """scheduledActionName autoscalingGroupName recurrence timeZone startTime endTime
        minSize maxSize desiredCapacity"""
    id_input = "scheduledActionName"
    replace_on = "scheduledActionName autoscalingGroupName"

    def create(self, cloud: Cloud, inputs: Inputs) -> tuple[str, Outputs]:
        sizes = {key: inputs.get(key, -1) for key in ("minSize", "maxSize", "desiredCapacity")}
        optional = ("recurrence", "timeZone", "startTime", "endTime")
        cloud.client("autoscaling").put_scheduled_update_group_action(
            AutoScalingGroupName=inputs["autoscalingGroupName"],
            ScheduledActionName=inputs["scheduledActionName"],
            **pascal({key: inputs[key] for key in optional if key in inputs}),
            **pascal({key: size for key, size in sizes.items() if size >= 0}),  # -1: as it is
        )
        return inputs["scheduledActionName"], {}

    def delete(self, cloud: Cloud, resource_id: str, inputs: Inputs, outputs: Outputs) -> None:
        cloud.client("autoscaling").delete_scheduled_action(
            AutoScalingGroupName=inputs["autoscalingGroupName"], ScheduledActionName=resource_id
        )
