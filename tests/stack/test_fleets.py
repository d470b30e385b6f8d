"""Fleets as they are registered: instances that are locked down, and replaced on a change."""

from __future__ import annotations

import base64

from tests.stack.conftest import (
    Graph,
)


def test_every_instance_is_locked_down(graph: Graph) -> None:
    assert len(graph.of("LaunchTemplate")) >= 2
    for each in graph.of("LaunchTemplate"):
        template = each.inputs
        options = template["metadataOptions"]
        assert (options["httpTokens"], options["httpPutResponseHopLimit"]) == ("required", 1)
        assert template["imageId"].startswith("ami-")
        assert "keyName" not in template
        (interface,) = template["networkInterfaces"]
        public = interface["associatePublicIpAddress"] == "true"
        assert public is ("web" not in each.name)
        assert len(base64.b64decode(template["userData"])) <= 16_384


def test_a_changed_template_replaces_the_instances_and_goes_back_on_alarms(graph: Graph) -> None:
    names = {each.inputs["name"] for each in graph.of("MetricAlarm")}
    for each in graph.of("aws:autoscaling/group:Group"):
        group = each.inputs
        refresh = group["instanceRefresh"]
        assert refresh["strategy"] == "Rolling"
        assert refresh["preferences"]["autoRollback"] is True
        template = group["mixedInstancesPolicy"]["launchTemplate"]["launchTemplateSpecification"]
        assert template["version"] == "1"  # a number: $Latest would start no refresh
        alarms = refresh["preferences"].get("alarmSpecification", {}).get("alarms", [])
        assert set(alarms) <= names
        if each.name == "web-fleet-group":
            assert len(alarms) == 2
            assert group["healthCheckType"] == "ELB"
