"""Auto Scaling's API over groups that run: MiniStack's own has no launch, refresh or activity.

A group with target groups is run by the supervisor (`taplocal/web/fleet.py`), which reads here
what is wanted and writes what is there. The others, bastions and NAT instances, stay records, as
MiniStack has them. Runs in the emulator's process, in the scope of a request.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping
from typing import Any

from ministack.core.responses import get_account_id, request_scope
from ministack.services import autoscaling, cloudwatch, ec2, iam

from taplocal.web.fleet import ACTIVITIES, specification_of, stamp

Json = dict[str, Any]
OPEN = ("Pending", "InProgress", "Baking", "RollbackInProgress", "Cancelling")


def answer(operation: str, **result: Any) -> Any:
    """A response of the query protocol."""
    shown = autoscaling._member_xml(result)
    text = f"<{operation}Result>{shown}</{operation}Result>"
    return autoscaling._xml(200, f"{operation}Response", text)


def runs(group: Mapping[str, Any]) -> bool:
    """Whether the supervisor runs a group."""
    return bool(group.get("TargetGroupARNs"))


def of(parameters: Json) -> Json:
    """The record of the group that a request names; KeyError if there is none."""
    group: Json = autoscaling._asgs[autoscaling._p(parameters, "AutoScalingGroupName")]
    return group


def member_of(parameters: Json) -> tuple[Json, Json]:
    """Group and record of the instance that a request names; KeyError if there is none."""
    wanted = autoscaling._p(parameters, "InstanceId")
    for group in autoscaling._asgs.values():
        for each in group["Instances"]:
            if each["InstanceId"] == wanted:
                return group, each
    raise KeyError(wanted)


def create(parameters: Json) -> Any:
    """CreateAutoScalingGroup: with what MiniStack leaves out."""
    policy = autoscaling._parse_nested(parameters, "MixedInstancesPolicy")
    template = policy.get("LaunchTemplate", {}).get("LaunchTemplateSpecification", {})
    flat = {f"LaunchTemplate.{key}": value for key, value in template.items()}
    arns = autoscaling._parse_member_list(parameters, "TargetGroupARNs")
    response = _create({**parameters, **flat})
    if response[0] == 200:
        group = of(parameters)
        group["Instances"] = [] if arns else group["Instances"]
        hooks = autoscaling._parse_nested(parameters, "LifecycleHookSpecificationList")
        group |= {"MixedInstancesPolicy": policy, "TargetGroupARNs": arns, "Hooks": hooks or []}
        group |= {"Activities": [], "InstanceRefreshes": [], "Results": {}}
        group["CapacityRebalance"] = autoscaling._p(parameters, "CapacityRebalance") == "true"
        group["DefaultInstanceWarmup"] = int(
            autoscaling._p(parameters, "DefaultInstanceWarmup") or 300
        )
    return response


_create, reconcile = autoscaling._create_asg, autoscaling._reconcile_instances
_update = autoscaling._update_asg


def resize(group: Json) -> None:
    """Replaces MiniStack's _reconcile_instances: what runs is the supervisor's."""
    if not runs(group):
        reconcile(group)


def update(parameters: Json) -> Any:
    """UpdateAutoScalingGroup: the desired capacity stays within the limits."""
    response = _update(parameters)
    if response[0] == 200:
        group = of(parameters)
        policy = autoscaling._parse_nested(parameters, "MixedInstancesPolicy")
        group |= {"MixedInstancesPolicy": policy} if policy else {}
        if rebalance := autoscaling._p(parameters, "CapacityRebalance"):
            group["CapacityRebalance"] = rebalance == "true"
        within = min(max(group["DesiredCapacity"], group["MinSize"]), group["MaxSize"])
        group["DesiredCapacity"] = within
        resize(group)
    return response


def describe(parameters: Json) -> Any:
    """DescribeAutoScalingGroups."""
    names = autoscaling._parse_member_list(parameters, "AutoScalingGroupNames")
    hidden = {"Activities", "InstanceRefreshes", "Results", "Hooks", "LaunchConfigurationName"}
    found = []
    for name, group in autoscaling._asgs.items():
        if not names or name in names:
            shown = {
                key: value for key, value in group.items() if key not in hidden and value != ""
            }
            if group.get("MixedInstancesPolicy"):
                shown.pop("LaunchTemplate", None)
            found.append({**shown, "Instances": [_public(each) for each in group["Instances"]]})
    return answer("DescribeAutoScalingGroups", AutoScalingGroups=found)


def _public(instance: Json) -> Json:
    return {key: value for key, value in instance.items() if key[0].isupper() and value != ""}


def describe_activities(parameters: Json) -> Any:
    """DescribeScalingActivities, the newest first."""
    return answer("DescribeScalingActivities", Activities=of(parameters).get("Activities", []))


def start_refresh(parameters: Json) -> Any:
    """StartInstanceRefresh: one at a time; the supervisor does it."""
    group = of(parameters)
    if refreshing(group):
        return autoscaling._error(
            "InstanceRefreshInProgress", "An Instance Refresh is already in progress", 400
        )
    preferences = autoscaling._parse_nested(parameters, "Preferences")
    cloudwatch._evaluate_all_alarms()
    named = preferences.get("AlarmSpecification", {}).get("Alarms", [])
    if firing := [x for x in named if cloudwatch._alarms.get(x, {}).get("StateValue") == "ALARM"]:
        why = f"The alarms of the specification must not be in ALARM: {', '.join(firing)}"
        return autoscaling._error("ValidationError", why, 400)
    wanted = autoscaling._parse_nested(parameters, "DesiredConfiguration")
    refresh = {
        "InstanceRefreshId": str(uuid.uuid4()),
        "AutoScalingGroupName": group["AutoScalingGroupName"],
        "Status": "Pending",
        "StartTime": stamp(),
        "PercentageComplete": 0,
        "InstancesToUpdate": len(group["Instances"]),
        "Preferences": preferences,
        "DesiredConfiguration": wanted or {},
    }
    if not runs(group):  # records have any version at once
        refresh |= {"Status": "Successful", "PercentageComplete": 100, "EndTime": stamp()}
        bring(group, wanted_version(refresh, specification_of(group)), refresh)
    group["InstanceRefreshes"].insert(0, refresh)
    del group["InstanceRefreshes"][ACTIVITIES:]
    return answer("StartInstanceRefresh", InstanceRefreshId=refresh["InstanceRefreshId"])


def describe_refreshes(parameters: Json) -> Any:
    """DescribeInstanceRefreshes, the newest first."""
    wanted = autoscaling._parse_member_list(parameters, "InstanceRefreshIds")
    found = [
        _public(each)
        for each in of(parameters)["InstanceRefreshes"]
        if not wanted or each["InstanceRefreshId"] in wanted
    ]
    return answer("DescribeInstanceRefreshes", InstanceRefreshes=found)


def end_refresh(operation: str, wish: str) -> Callable[[Json], Any]:
    """CancelInstanceRefresh or RollbackInstanceRefresh."""

    def ended(parameters: Json) -> Any:
        opened = [x for x in of(parameters)["InstanceRefreshes"] if x["Status"] in OPEN]
        if not opened:
            return autoscaling._error(
                "ActiveInstanceRefreshNotFound", "No in progress or pending Instance Refresh", 400
            )
        opened[0]["wish"] = wish
        return answer(operation, InstanceRefreshId=opened[0]["InstanceRefreshId"])

    return ended


def complete_action(parameters: Json) -> Any:
    """CompleteLifecycleAction: CONTINUE or ABANDON, by instance id."""
    group = of(parameters)
    instance_id = autoscaling._p(parameters, "InstanceId")
    if instance_id not in {each["InstanceId"] for each in group["Instances"]}:
        return autoscaling._error("ValidationError", "No active Lifecycle Action found", 400)
    group["Results"][instance_id] = autoscaling._p(parameters, "LifecycleActionResult")
    return answer("CompleteLifecycleAction")


def set_health(parameters: Json) -> Any:
    """SetInstanceHealth."""
    _, instance = member_of(parameters)
    if autoscaling._p(parameters, "HealthStatus") == "Unhealthy":
        instance["wish"] = "unhealthy"
    return answer("SetInstanceHealth")


def terminate(parameters: Json) -> Any:
    """TerminateInstanceInAutoScalingGroup."""
    group, instance = member_of(parameters)
    instance["wish"] = "terminate"
    if autoscaling._p(parameters, "ShouldDecrementDesiredCapacity") == "true":
        group["DesiredCapacity"] = max(group["DesiredCapacity"] - 1, group["MinSize"])
    return answer("TerminateInstanceInAutoScalingGroup", Activity={"ActivityId": str(uuid.uuid4())})


def interrupt(name: str, region: str, instance: str = "") -> Json:
    """Has EC2 take a Spot instance of a group back, with the notice that it gives."""
    with request_scope(get_account_id(), region):
        members = {x["InstanceId"]: x for x in autoscaling._asgs.get(name, {}).get("Instances", [])}
        able = [
            key for key, x in members.items() if x["LifecycleState"] == "InService" and x["spot"]
        ]
        if instance not in (*able, ""):
            what = "not a Spot instance in service" if instance in members else "not of the group"
            return {"error": f"{instance} is {what}; there are: {', '.join(able) or 'none'}"}
        if not able:
            return {"error": f"{name} has no Spot instance in service"}
        chosen = members[instance or able[0]]
        chosen["wish"] = "interrupt"
        return {"instance": chosen["InstanceId"], "error": ""}


OPERATIONS: Mapping[str, Callable[[Json], Any]] = {
    "CreateAutoScalingGroup": create,
    "UpdateAutoScalingGroup": update,
    "DescribeAutoScalingGroups": describe,
    "DescribeScalingActivities": describe_activities,
    "StartInstanceRefresh": start_refresh,
    "DescribeInstanceRefreshes": describe_refreshes,
    "CancelInstanceRefresh": end_refresh("CancelInstanceRefresh", "cancel"),
    "RollbackInstanceRefresh": end_refresh("RollbackInstanceRefresh", "rollback"),
    "CompleteLifecycleAction": complete_action,
    "SetInstanceHealth": set_health,
    "TerminateInstanceInAutoScalingGroup": terminate,
}


def found_or_error(operation: Callable[[Json], Any]) -> Callable[[Json], Any]:
    """The operation, whose KeyError is AWS's error."""

    def called(parameters: Json) -> Any:
        try:
            return operation(parameters)
        except KeyError as error:
            return autoscaling._error("ValidationError", f"not found: {error}", 400)

    return called


def install() -> None:
    """Has MiniStack answer with these operations."""
    autoscaling._reconcile_instances = resize
    autoscaling._ACTION_MAP |= {key: found_or_error(each) for key, each in OPERATIONS.items()}


def template_data(specification: Mapping[str, str], version: str) -> Json:
    """The data of a version of a launch template."""
    for each in ec2._launch_templates.values():
        if specification.get("LaunchTemplateId") == each["LaunchTemplateId"]:
            for found in each["Versions"]:
                if str(found["VersionNumber"]) == version:
                    data = dict(found["LaunchTemplateData"])
                    return {**data, "Role": role_of(data.get("IamInstanceProfile", {}))}
    return {}


def role_of(profile: Mapping[str, str]) -> str:
    """The name of the role of an instance profile; empty if there is none."""
    name = profile.get("Name") or profile.get("Arn", "").rpartition("/")[2]
    found = iam._instance_profiles.get(name, {}).get("Roles", [])
    return str(found[0]) if found else ""


def registered() -> Json:
    """The groups of the request's scope that run, with all that the supervisor needs, by name."""
    groups = {}
    for name, group in autoscaling._asgs.items():
        if runs(group):
            specification = specification_of(group)
            versions = {specification.get("Version", ""), *map(_version, group["Instances"])}
            for each in group["InstanceRefreshes"]:
                if each["Status"] in OPEN:
                    versions.add(wanted_version(each, specification))
            templates = {each: template_data(specification, each) for each in versions}
            groups[name] = {**group, "Templates": templates, "Policies": policies(name)}
    return groups


def refreshing(group: Mapping[str, Any]) -> bool:
    """Whether a refresh of a group is under way."""
    return any(each["Status"] in OPEN for each in group["InstanceRefreshes"])


def policies(name: str) -> list[Json]:
    """A group's policies of target tracking."""
    found = autoscaling._policies.values()
    return [each for each in found if each["AutoScalingGroupName"] == name]


def wanted_version(refresh: Mapping[str, Any], specification: Mapping[str, str]) -> str:
    """The version that a refresh brings."""
    wanted = specification_of(refresh.get("DesiredConfiguration") or {})
    return str(wanted.get("Version") or specification.get("Version", ""))


def _version(instance: Mapping[str, Any]) -> str:
    return str(instance.get("LaunchTemplate", {}).get("Version", ""))


def bring(group: Json, version: str, refresh: Mapping[str, Any]) -> None:
    """Gives a group a version of its template, and the policy that a refresh has brought."""
    policy = (refresh.get("DesiredConfiguration") or {}).get("MixedInstancesPolicy")
    group["MixedInstancesPolicy"] = policy or group["MixedInstancesPolicy"]
    mixed = group["MixedInstancesPolicy"]["LaunchTemplate"]["LaunchTemplateSpecification"]
    for each in (mixed, group["LaunchTemplate"]):
        each["Version"] = version


def report(name: str, told: Mapping[str, Any]) -> None:
    """Writes what the supervisor says of a group."""
    group = autoscaling._asgs.get(name)
    if not group:
        return
    before = {each["InstanceId"]: each for each in group["Instances"]}
    for each in told["Instances"]:
        earlier = before.get(each["InstanceId"], {})
        if "wish" in earlier:
            each["wish"] = earlier["wish"]
    group["Instances"], group["Activities"] = told["Instances"], told["Activities"]
    alive = {each["InstanceId"] for each in group["Instances"]}
    group["Results"] = {key: each for key, each in group["Results"].items() if key in alive}
    for each in group["InstanceRefreshes"]:
        each |= told["Refreshes"].get(each["InstanceRefreshId"], {})
    if told.get("Version"):
        succeeded = (x for x in group["InstanceRefreshes"] if x["Status"] == "Successful")
        bring(group, told["Version"], next(succeeded))
    if told.get("DesiredCapacity") is not None:
        group["DesiredCapacity"] = told["DesiredCapacity"]
