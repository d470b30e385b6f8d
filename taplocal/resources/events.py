"""EventBridge: pipes, rules of the default event bus and their targets."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from taplocal.cloud import Cloud
from taplocal.errors import UnsupportedError
from taplocal.resources.base import Handler, Inputs, Named, Outputs, given, pascal, tag_list


class Pipe(Named):
    """A pipe from the stream of a table to an event bus."""

    uses = """name description roleArn source sourceParameters.filterCriteria.filters.pattern
        sourceParameters.dynamodbStreamParameters.startingPosition target
        targetParameters.eventbridgeEventBusParameters.source
        targetParameters.eventbridgeEventBusParameters.detailType
        targetParameters.inputTemplate tags"""
    replace_on = "name source"
    tag_operation = "pipes list_tags_for_resource resourceArn tags"

    def name(self, cloud: Cloud, inputs: Inputs) -> str:
        return cloud.arn("pipes", f"pipe/{inputs['name']}")

    def create(self, cloud: Cloud, inputs: Inputs) -> tuple[str, Outputs]:
        read = inputs["sourceParameters"]
        start = {"DynamoDBStreamParameters": pascal(read["dynamodbStreamParameters"])}
        settings = _pipe(inputs)
        settings["SourceParameters"] |= start
        made = cloud.client("pipes").create_pipe(
            Source=inputs["source"], Tags=inputs.get("tags", {}), **settings
        )
        return inputs["name"], {"arn": made["Arn"]}

    def update(
        self, cloud: Cloud, resource_id: str, old: Inputs, new: Inputs, outputs: Outputs
    ) -> Outputs:
        before, after = (x["sourceParameters"]["dynamodbStreamParameters"] for x in (old, new))
        if before != after:
            raise UnsupportedError(
                f"{resource_id}: the local cloud does not change startingPosition; remove it, "
                "`up`, and add it again"
            )
        cloud.client("pipes").update_pipe(**_pipe(new))
        return outputs

    def delete(self, cloud: Cloud, resource_id: str, inputs: Inputs, outputs: Outputs) -> None:
        cloud.client("pipes").delete_pipe(Name=resource_id)


def _pipe(inputs: Inputs) -> dict[str, Any]:
    read, target = inputs["sourceParameters"], inputs.get("targetParameters", {})
    bus = target.get("eventbridgeEventBusParameters")
    return given(
        Name=inputs["name"],
        Description=inputs.get("description"),
        RoleArn=inputs["roleArn"],
        Target=inputs["target"],
        SourceParameters={"FilterCriteria": pascal(read.get("filterCriteria", {}))},
        TargetParameters=given(
            InputTemplate=target.get("inputTemplate"),
            EventBridgeEventBusParameters=bus and pascal(bus),
        ),
    )


class Rule(Named):
    """A rule of the default event bus that events match by a pattern."""

    uses = "name description eventPattern state tags"
    replace_on = "name"
    overwrites = True
    tag_operation = "events list_tags_for_resource ResourceARN Tags"

    def name(self, cloud: Cloud, inputs: Inputs) -> str:
        return cloud.arn("events", f"rule/{inputs['name']}")

    def tags(self, cloud: Cloud, inputs: Inputs) -> Mapping[str, str] | None:
        rules = cloud.client("events").list_rules(NamePrefix=inputs["name"])["Rules"]
        if inputs["name"] not in [each["Name"] for each in rules]:
            return None
        return super().tags(cloud, inputs)

    def create(self, cloud: Cloud, inputs: Inputs) -> tuple[str, Outputs]:
        rule = given(
            Name=inputs["name"],
            Description=inputs.get("description"),
            EventPattern=inputs["eventPattern"],
            State=inputs.get("state"),
            Tags=tag_list(inputs.get("tags")),
        )
        return inputs["name"], {"arn": cloud.client("events").put_rule(**rule)["RuleArn"]}

    def delete(self, cloud: Cloud, resource_id: str, inputs: Inputs, outputs: Outputs) -> None:
        cloud.client("events").delete_rule(Name=resource_id)


class Target(Handler):
    """What a rule invokes, a function; the policy of that must allow it."""

    uses = "rule targetId arn"
    replace_on = "rule targetId"

    def create(self, cloud: Cloud, inputs: Inputs) -> tuple[str, Outputs]:
        target = {"Id": inputs["targetId"], "Arn": inputs["arn"]}
        cloud.client("events").put_targets(Rule=inputs["rule"], Targets=[target])
        return f"{inputs['rule']}-{inputs['targetId']}", {}

    def delete(self, cloud: Cloud, resource_id: str, inputs: Inputs, outputs: Outputs) -> None:
        cloud.client("events").remove_targets(Rule=inputs["rule"], Ids=[inputs["targetId"]])

    def find(self, cloud: Cloud, inputs: Inputs) -> str:
        return f"{inputs['rule']}-{inputs['targetId']}"
