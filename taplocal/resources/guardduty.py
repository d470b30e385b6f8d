"""GuardDuty: plans that protect buckets against malware."""

from __future__ import annotations

import hashlib
import json

from taplocal.cloud import Cloud
from taplocal.errors import UnsupportedError
from taplocal.resources.base import Handler, Inputs, Outputs, has_owner, tag_list, tag_map

MANAGED_RULE = "DO-NOT-DELETE-AmazonGuardDutyMalwareProtectionS3-"
VALIDATION_OBJECT = "malware-protection-resource-validation-object"


class MalwareProtectionPlan(Handler):
    """A plan, which is a managed rule of the bus: `taplocal/server/malware.py` is its target."""

    uses = "role protectedResource.s3Bucket.bucketName actions.taggings.status tags"
    replace_on = "protectedResource"

    def create(self, cloud: Cloud, inputs: Inputs) -> tuple[str, Outputs]:
        bucket, events = (
            inputs["protectedResource"]["s3Bucket"]["bucketName"],
            cloud.client("events"),
        )
        if inputs.get("actions") != [{"taggings": [{"status": "ENABLED"}]}]:
            raise UnsupportedError("the local cloud has no plan of GuardDuty without tags")
        plan = plan_id(inputs)
        arn = cloud.arn("guardduty", f"malware-protection-plan/{plan}")
        detail = {"bucket": {"name": [bucket]}}
        pattern = {"source": ["aws.s3"], "detail-type": ["Object Created"], "detail": detail}
        events.put_rule(
            Name=rule_name(inputs),
            Description="GuardDuty's, of a plan for malware protection",
            EventPattern=json.dumps(pattern),
            Tags=tag_list(inputs.get("tags")),
        )
        target = {"Id": plan, "Arn": arn, "RoleArn": inputs["role"]}
        events.put_targets(Rule=rule_name(inputs), Targets=[target])
        cloud.client("s3").put_object(Bucket=bucket, Key=VALIDATION_OBJECT, Body=b"")
        return plan, {"arn": arn, "status": "ACTIVE"}

    def delete(self, cloud: Cloud, resource_id: str, inputs: Inputs, outputs: Outputs) -> None:
        events, rule = cloud.client("events"), rule_name(inputs)
        events.remove_targets(Rule=rule, Ids=[resource_id])
        events.delete_rule(Name=rule)

    def find(self, cloud: Cloud, inputs: Inputs) -> str | None:
        events, rule = cloud.client("events"), rule_name(inputs)
        for each in events.list_rules(NamePrefix=rule)["Rules"]:
            tags = events.list_tags_for_resource(ResourceARN=each["Arn"])["Tags"]
            if has_owner(tag_map(tags), inputs):
                return plan_id(inputs)
        return None


def plan_id(inputs: Inputs) -> str:
    """The id of a bucket's plan: there is one at most."""
    bucket = inputs["protectedResource"]["s3Bucket"]["bucketName"]
    return hashlib.sha256(bucket.encode()).hexdigest()[:20]


def rule_name(inputs: Inputs) -> str:
    """The name of the managed rule, of 64 characters at most."""
    return f"{MANAGED_RULE}{plan_id(inputs)[:12]}"
