"""Fleets as they are registered: instances that are locked down, and replaced on a change."""

from __future__ import annotations

import base64

from tests.stack.conftest import Graph, graph_of, statements, user_data

#: What the rollout gives a group. Not its template: a group of another name has its own.
POLICY = {
    "mixedInstancesPolicy.instancesDistribution",
    "mixedInstancesPolicy.launchTemplate.overrides",
    "mixedInstancesPolicy.launchTemplate.launchTemplateSpecification.version",
}


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


def test_an_instance_comes_into_service_when_its_user_data_ends_well(graph: Graph) -> None:
    for each in graph.of("aws:autoscaling/group:Group"):
        (hook,) = each.inputs["initialLifecycleHooks"]
        assert hook["lifecycleTransition"] == "autoscaling:EC2_INSTANCE_LAUNCHING"
        assert hook["defaultResult"] == "ABANDON"
        script = user_data(graph, each.name.removesuffix("-group"))
        assert script.endswith("\nfor _ in {1..30}; do finish CONTINUE && break; sleep 5; done\n")
        assert f"--auto-scaling-group-name {each.inputs['name']} " in script
        role = graph.one("RolePolicy", each.name.replace("-group", "-role-policy")).inputs
        (statement,) = [
            each
            for each in statements(role["policy"])
            if "autoscaling:CompleteLifecycleAction" in each["Action"]
        ]
        assert statement["Resource"].endswith(f":autoScalingGroupName/{each.inputs['name']}")
        # Its rollout waits. The provider's wait is for an exact number, where a minimum changes.
        assert each.inputs["waitForCapacityTimeout"] == "0"


def test_a_changed_template_is_rolled_out_and_the_group_knows_the_old_one_till_then(
    graph: Graph,
) -> None:
    names = {each.inputs["name"] for each in graph.of("MetricAlarm")}
    rollouts = {each.name: each.inputs for each in graph.of("FleetRollout")}
    for each in graph.of("aws:autoscaling/group:Group"):
        assert "instanceRefresh" not in each.inputs  # AWS would go back to the new one
        assert set(each.ignore_changes) >= POLICY
        rollout = rollouts[each.name.replace("-group", "-rollout")]
        assert rollout["version"] == "1"  # a number: AWS cannot go back from $Latest
        assert rollout["max_healthy_percent"] == (110 if each.inputs["maxSize"] > 1 else 200)
        alarms = rollout["alarms"]
        assert set(alarms) <= names
        if each.name == "web-fleet-group":
            assert len(alarms) == 2
            assert each.inputs["healthCheckType"] == "ELB"


def test_another_image_is_moved_to_on_purpose_only() -> None:
    for image, ignored in (("", ("imageId",)), ("ami-0aaaaaaaaaaaaaaaa", ())):
        graph = graph_of("dev", image_id=image)
        assert graph.one("LaunchTemplate", "web-fleet-template").ignore_changes == ignored
