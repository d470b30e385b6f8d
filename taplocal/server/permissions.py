"""Who invokes a function needs its permission, and a schedule the rights of its role.

Services need a statement in the policy of the function (AddPermission) that names them, and the
source if it has conditions. Without it, as on AWS, the gateway answers 500, S3 refuses the
notification, or does not deliver if the permission went later, and topics and rules do not deliver:
the log of the local cloud tells what S3 and SNS drop, rules have a metric for it.
A schedule acts with its role, which must trust the scheduler and may do what it does.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from typing import Any

from ministack.services import apigateway, eventbridge, lambda_svc, s3, sns

from taplocal.server import gateway, keys, rights
from taplocal.server.exports import EXPORT_TABLE
from taplocal.server.metrics import count
from taplocal.server.releases import UPDATE_ALIAS

LOG = logging.getLogger("permissions")
SERVICES = ("apigateway", "s3", "sns", "events", "scheduler", "lambda")
GATEWAY, S3, SNS, EVENTS, SCHEDULER, LAMBDA = (f"{each}.amazonaws.com" for each in SERVICES)
NO_PERMISSION = (
    "The IAM role configured on the integration or API Gateway doesn't have permissions to call "
    "the integration. Check the permissions and try again."
)
#: Service of a schedule's target -> what its role must be allowed; others are not checked.
OF_TARGETS = {"lambda": "lambda:InvokeFunction", "sqs": "sqs:SendMessage", "sns": "sns:Publish"}


def guard_apis() -> None:
    """Makes the gateway need a permission for the method and the path of the route."""
    invoke = apigateway._invoke_lambda_proxy

    async def invoked(
        integration: Mapping[str, Any], api_id: str, stage: str, path: str, method: str,
        *request: Any, owner_account_id: str, owner_region: str, **more: Any,
    ) -> Any:  # fmt: skip
        function = apigateway._extract_lambda_ref_from_integration_uri(
            integration["integrationUri"]
        )
        call = gateway.current.get()
        key = str(call.route["routeKey"]) if call and call.route else "$default"
        place = f"{api_id}/{stage}/{key if key == '$default' else method + key.partition(' ')[2]}"
        source = f"arn:aws:execute-api:{owner_region}:{owner_account_id}:{place}"
        if not rights.may_invoke(function, GATEWAY, source):
            return gateway.integration_failure(500, "Internal Server Error", NO_PERMISSION)
        return await invoke(
            integration, api_id, stage, path, method, *request,
            owner_account_id=owner_account_id, owner_region=owner_region, **more,
        )  # fmt: skip

    apigateway._invoke_lambda_proxy = invoked


def guard_notifications() -> None:
    """Makes S3 and SNS need a permission."""
    validate, deliver, publish = (
        s3._validate_notification_configs,
        s3._deliver_event_to_lambda,
        sns._deliver_to_lambda,
    )

    def validated(
        configs: list[dict[str, Any]],
        region: str,
        bucket: str = "",
        skip_destination_validation: bool = False,
    ) -> Any:
        if refusal := validate(configs, region, bucket, skip_destination_validation):
            return refusal
        functions = [each["arn"] for each in configs if each["type"] == "lambda"]
        forbidden = [x for x in functions if not rights.may_invoke(x, S3, f"arn:aws:s3:::{bucket}")]
        if not forbidden or skip_destination_validation:
            return None
        return s3._invalid_notification_config(
            f"Unable to validate the following destination configurations: {', '.join(forbidden)}"
        )

    def delivered(function: str, event: Mapping[str, Any], region: str) -> None:
        if _may_invoke(function, S3, event["Records"][0]["s3"]["bucket"]["arn"]):
            deliver(function, event, region)

    def published(function: str, envelope: str, topic: str, *message: Any) -> None:
        if _may_invoke(function, SNS, topic):
            publish(function, envelope, topic, *message)

    s3._validate_notification_configs = validated
    s3._deliver_event_to_lambda = delivered
    sns._deliver_to_lambda = published


def _may_invoke(function: str, service: str, source: str) -> bool:
    may = rights.may_invoke(function, service, source)
    if not may:
        LOG.error("%s: %s may not invoke %s", source, service, function)
    return may


def guard_roles() -> None:
    """Makes a function need a role that Lambda may assume."""
    create = lambda_svc._create_function

    def created(data: dict[str, Any]) -> Any:
        function = lambda_svc._func_arn(data.get("FunctionName", ""))
        if data.get("Role") and not rights.trusts(data["Role"], LAMBDA, function):
            why = "The role defined for the function cannot be assumed by Lambda."
            return lambda_svc.error_response_json("InvalidParameterValueException", why, 400)
        return create(data)

    lambda_svc._create_function = created


def guard_rules() -> None:
    """Makes rules need a permission, and schedules their role's rights."""
    invoke = eventbridge._invoke_target

    def invoked(
        target: Mapping[str, Any], event: Any, rule: Mapping[str, Any], view: Any = None
    ) -> None:
        if "ScheduleExpressionTimezone" in rule or "FlexibleTimeWindow" in rule:
            if not _schedule_may(target, rule):
                group = {"ScheduleGroup": rule.get("GroupName", "default")}
                count("AWS/Scheduler", group, TargetErrorCount=1, InvocationDroppedCount=1)
                return
        elif ":lambda:" in target["Arn"] and not rights.may_invoke(
            target["Arn"], EVENTS, rule["Arn"]
        ):
            count("AWS/Events", {"RuleName": rule["Name"]}, FailedInvocations=1)
            return
        invoke(target, event, rule, view)

    eventbridge._invoke_target = invoked


def _schedule_may(target: Mapping[str, Any], schedule: Mapping[str, Any]) -> bool:
    arn = target["Arn"]
    role = rights.of_role(target.get("RoleArn", ""), SCHEDULER, schedule["Arn"])
    action = OF_TARGETS.get(arn.split(":")[2])
    if arn == UPDATE_ALIAS:
        action, arn = "lambda:UpdateAlias", function_arn(json.loads(target["Input"]))
    elif arn == EXPORT_TABLE:
        action, arn = "dynamodb:ExportTableToPointInTime", json.loads(target["Input"])["TableArn"]
    key = schedule.get("KmsKeyArn"), {"aws:scheduler:schedule:arn": schedule["Arn"]}
    if keys.refused(role, "scheduler", key, ("kms:Decrypt",)):
        return False
    return not action or rights.denial(role, action, arn) is None


def function_arn(call: Mapping[str, str]) -> str:
    """The ARN of the function that a call names."""
    name = call["FunctionName"]
    return name if name.startswith("arn:") else str(lambda_svc._func_arn(name))


def install() -> None:
    """Replaces MiniStack's functions, after those that adapt what schedules do."""
    guard_apis()
    guard_notifications()
    guard_roles()
    guard_rules()
