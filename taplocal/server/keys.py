"""Customer-managed keys: who uses what is encrypted needs its key as well.

MiniStack checks a key's policy for calls of KMS only. Here, as on AWS, a call that reads or writes
what such a key encrypts needs the key by the caller's policies or a grant, and by the key's policy,
with `kms:ViaService`, the service's encryption context and the key's tags; services that deliver on
their own need the key's policy. A key that is disabled or goes is refused to everybody.
"""

from __future__ import annotations

import contextvars
import json
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from ministack.core import iam_actions, iam_evaluator, lambda_runtime
from ministack.core.iam_evaluator import AuthError, PrincipalInfo
from ministack.core.responses import get_account_id, get_region
from ministack.services import (
    cloudwatch,
    cloudwatch_logs,
    dynamodb,
    kms,
    s3,
    secretsmanager,
    sns,
    sqs,
    ssm,
)

from taplocal.server import rights

#: What a call gives: its JSON, or to S3 method, headers and condition keys.
Body = Mapping[str, Any]
#: A key as its user names it (ARN, id or alias), and the encryption context.
Encrypted = tuple[str | None, dict[str, str]]

SSE = "x-amz-server-side-encryption"
SSE_KEY = "x-amz-server-side-encryption-aws-kms-key-id"
NO_BODY: Body = MappingProxyType({})
#: Method, headers and body of the request that MiniStack is about to check.
asked: contextvars.ContextVar[tuple[str, Mapping[str, str], bytes]] = contextvars.ContextVar(
    "asked", default=("", NO_BODY, b"")
)
#: Who it is from, as MiniStack found out.
caller: contextvars.ContextVar[PrincipalInfo | None] = contextvars.ContextVar("caller")
CLOUDWATCH = "cloudwatch.amazonaws.com"
TO_SEND = ("kms:GenerateDataKey", "kms:Decrypt")
OF_LOGS = (*TO_SEND, "kms:Encrypt", "kms:ReEncryptFrom", "kms:ReEncryptTo")
OF_ITEMS = (
    "BatchGetItem BatchWriteItem ConditionCheckItem DeleteItem GetItem PartiQLDelete PartiQLInsert "
    "PartiQLSelect PartiQLUpdate PutItem Query Scan UpdateItem"
)
#: Service -> the codes of its errors without the right, and with a key in another state.
CODES = {
    "dynamodb": ("AccessDeniedException", "AccessDeniedException"),
    "lambda": ("KMSAccessDeniedException", "KMSDisabledException"),
    "s3": ("AccessDenied", "KMS.DisabledException"),
    "sqs": ("KMS.AccessDeniedException", "KMS.DisabledException"),
    "sns": ("KMSAccessDenied", "KMSDisabled"),
    "ssm": ("AccessDeniedException", "InvalidKeyId"),
    "secretsmanager": ("AccessDeniedException", "DecryptionFailure"),
    "scheduler": ("AccessDeniedException", "AccessDeniedException"),
}


def of_new_object(arn: str, body: Body) -> Encrypted:
    """The key that a request puts an object under: the one that it names, or the bucket's."""
    bucket = arn.removeprefix("arn:aws:s3:::").partition("/")[0]
    form = body.get(f"s3:{SSE_KEY}")
    key = form or body.get(SSE_KEY) or s3._bucket_default_sse_headers(bucket).get(SSE_KEY)
    return None if body.get(f"s3:{SSE}") == "AES256" else key, _of_s3(bucket, arn)


def of_object(arn: str, body: Body) -> Encrypted:
    """The key of an object; nothing of it is decrypted for HEAD."""
    bucket, _, name = arn.removeprefix("arn:aws:s3:::").partition("/")
    found = s3._buckets.get(bucket, {}).get("objects", {}).get(name)
    if body.get("method") == "HEAD":
        return None, {}
    stored = s3._stored_sse_headers(found) if found else s3._bucket_default_sse_headers(bucket)
    return stored.get(SSE_KEY), _of_s3(bucket, arn)


def _of_s3(bucket: str, arn: str) -> dict[str, str]:
    with_bucket_key = "<BucketKeyEnabled>true" in (s3._bucket_encryption.get(bucket) or "")
    return {"aws:s3:arn": f"arn:aws:s3:::{bucket}" if with_bucket_key else arn}


def of_queue(arn: str, _body: Body = NO_BODY) -> Encrypted:
    """The key of a queue."""
    found = sqs._queue_by_arn(arn) or {}
    return found.get("attributes", {}).get("KmsMasterKeyId"), {"aws:sqs:arn": arn}


def of_topic(arn: str, _body: Body = NO_BODY) -> Encrypted:
    """The key of a topic."""
    found = sns._topics.get(arn) or {}
    return found.get("attributes", {}).get("KmsMasterKeyId"), {"aws:sns:topicArn": arn}


def of_table(arn: str, _body: Body = NO_BODY) -> Encrypted:
    """The key of a table and its indexes, which decrypts the table's own: to write, too."""
    name = arn.partition(":table/")[2].partition("/")[0]
    found = (dynamodb._tables.get(name) or {}).get("SSEDescription") or {}
    context = {"aws:dynamodb:tableName": name, "aws:dynamodb:subscriberId": get_account_id()}
    return found.get("KMSMasterKeyArn"), context


def of_secret(arn: str, body: Body) -> Encrypted:
    """The key of a secret, or the one that a call gives it."""
    _name, found = secretsmanager._resolve(arn)
    return body.get("KmsKeyId") or (found or {}).get("KmsKeyId"), {"SecretARN": arn}


def of_parameter(arn: str, body: Body) -> Encrypted:
    """The key of a parameter that is to be decrypted."""
    name = arn.partition(":parameter")[2]
    found = ssm._parameters.get(name) or ssm._parameters.get(name.removeprefix("/")) or {}
    key = found.get("KeyId") if body.get("WithDecryption") else None
    return key, {"PARAMETER_ARN": arn}


def of_new_parameter(arn: str, body: Body) -> Encrypted:
    """The key that a parameter is put under."""
    return body.get("KeyId") if body.get("Type") == "SecureString" else None, {"PARAMETER_ARN": arn}


#: Action -> what finds the key of its resource, and what the caller must be allowed on that.
USES: Mapping[str, tuple[Callable[[str, Body], Encrypted], tuple[str, ...]]] = {
    "s3:PutObject": (of_new_object, ("kms:GenerateDataKey",)),
    "s3:GetObject": (of_object, ("kms:Decrypt",)),
    "s3:GetObjectVersion": (of_object, ("kms:Decrypt",)),
    "sqs:SendMessage": (of_queue, TO_SEND),
    "sqs:ReceiveMessage": (of_queue, ("kms:Decrypt",)),
    "sns:Publish": (of_topic, TO_SEND),
    "ssm:GetParameter": (of_parameter, ("kms:Decrypt",)),
    "ssm:GetParameters": (of_parameter, ("kms:Decrypt",)),
    "ssm:PutParameter": (of_new_parameter, ("kms:Encrypt",)),
    "secretsmanager:GetSecretValue": (of_secret, ("kms:Decrypt",)),
    "secretsmanager:PutSecretValue": (of_secret, TO_SEND),
    "secretsmanager:CreateSecret": (of_secret, TO_SEND),
    "secretsmanager:UpdateSecret": (of_secret, TO_SEND),
    **{f"dynamodb:{each}": (of_table, ("kms:Decrypt",)) for each in OF_ITEMS.split()},
}


def denial(principal: PrincipalInfo, action: str, arn: str, body: Body) -> AuthError | None:
    """Why the key of what an action is on is not the principal's to use; None if it is."""
    if action not in USES:
        return None
    find, actions = USES[action]
    service = action.partition(":")[0]
    return refused(principal, service, find(arn, body), actions)


def refused(
    principal: PrincipalInfo, service: str, encrypted: Encrypted, actions: tuple[str, ...]
) -> AuthError | None:
    """Why a principal may not use a key through a service; None if it may."""
    reference, context = encrypted
    if not (key := kms._resolve_key(reference)):
        return None  # none, or one of AWS's own
    denied, unusable = CODES[service]
    if key["KeyState"] != "Enabled":
        return AuthError(unusable, f"{key['Arn']} is {key['KeyState']}.")
    keys = {
        "kms:ViaService": f"{service}.{get_region()}.amazonaws.com",
        "kms:CallerAccount": principal.account,
        **{f"aws:ResourceTag/{x['TagKey']}": x["TagValue"] for x in key.get("Tags", [])},
        **{f"kms:EncryptionContext:{name}": value for name, value in context.items()},
    }
    for each in actions:
        refusal = rights.denial(principal, each, key["Arn"], **keys)
        if refusal and (refusal.decision == "Deny" or not granted(principal, each, key["Arn"])):
            return AuthError(
                denied,
                f"User: {principal.arn} is not authorized to perform: {each} on resource: "
                f"{key['Arn']} because no identity-based policy allows the {each} action",
            )
    return None


def granted(principal: PrincipalInfo, action: str, key: str) -> bool:
    """Whether a grant of a key lets a principal do something."""
    role = principal.arn.replace(":sts:", ":iam:").replace(":assumed-role/", ":role/")
    names = {principal.arn, role.rpartition("/")[0]}
    return any(
        each["KeyId"] == key
        and each["GranteePrincipal"] in names
        and action.removeprefix("kms:") in each["Operations"]
        for each in kms._grants.values()
    )


def service_may(
    encrypted: Encrypted, service: str, source: str, actions: tuple[str, ...] = TO_SEND
) -> bool:
    """Whether a service may use a key for a source, by the key's policy."""
    reference, context = encrypted
    if not (key := kms._resolve_key(reference)):
        return True
    keys = {f"kms:EncryptionContext:{name}": value for name, value in context.items()}
    return key["KeyState"] == "Enabled" and all(
        rights.service_may(key["Policy"], service, each, key["Arn"], source, **keys)
        for each in actions
    )


def check_callers() -> None:
    """Makes a request that MiniStack allows need the key, too."""
    enforce, find_resource = iam_evaluator.enforce, iam_actions.extract_resource_arn
    resolve = iam_evaluator.resolve_principal

    def resource(
        service: str, method: str, path: str, headers: Any, sent: bytes, *more: Any
    ) -> Any:
        asked.set((method, headers, sent))
        return find_resource(service, method, path, headers, sent, *more)

    def resolved(*arguments: Any) -> Any:
        found = resolve(*arguments)
        caller.set(None if isinstance(found, AuthError) else found)
        return found

    def enforced(
        access_key: str, action: str, service: str, region: str, resource_arn: str = "*",
        service_context: Mapping[str, Any] | None = None,
    ) -> Any:  # fmt: skip
        caller.set(None)  # anybody, as S3 allows
        refusal = enforce(access_key, action, service, region, resource_arn, service_context)
        if refusal or action not in USES or not (principal := caller.get()):
            return refusal
        method, headers, sent = asked.get()
        if service == "s3":
            body: Body = {"method": method, **headers, **(service_context or {})}
        else:  # a form of the query protocol names no key
            body = json.loads(sent) if sent.startswith(b"{") else {}
        return denial(principal, action, resource_arn, body)

    iam_actions.extract_resource_arn = resource
    iam_evaluator.resolve_principal = resolved
    iam_evaluator.enforce = enforced


def check_services() -> None:
    """Makes alarms, and what S3 and SNS deliver to queues, need the key's policy; logs, too."""
    dispatch, allows = cloudwatch._dispatch_alarm_actions, sqs.queue_policy_allows
    create = cloudwatch_logs._create_log_group

    def dispatched(alarm: dict[str, Any], *states: str) -> None:
        source = alarm.get("AlarmArn", "")
        lists = ("AlarmActions", "OKActions", "InsufficientDataActions")
        may = {
            each: [x for x in alarm.get(each) or [] if service_may(of_topic(x), CLOUDWATCH, source)]
            for each in lists
        }
        dispatch({**alarm, **may}, *states)

    def allowed(queue: str, service: str, source: str, account: str) -> bool:
        return allows(queue, service, source, account) and service_may(
            of_queue(queue), service, source
        )

    def created(data: Body) -> Any:
        group = cloudwatch_logs._make_group_arn_no_star(data.get("logGroupName"))
        encrypted = data.get("kmsKeyId"), {"aws:logs:arn": group}
        if service_may(encrypted, f"logs.{get_region()}.amazonaws.com", group, OF_LOGS):
            return create(data)
        why = f"The specified KMS key does not exist or is not allowed to be used with '{group}'"
        return cloudwatch_logs.error_response_json("InvalidParameterException", why, 400)

    cloudwatch._dispatch_alarm_actions = dispatched
    sqs.queue_policy_allows = allowed
    cloudwatch_logs._create_log_group = created


def check_functions() -> None:
    """Makes a function's environment start only if its role may decrypt the variables."""
    spawn = lambda_runtime.Worker._spawn

    def spawned(worker: Any) -> None:
        function = worker.config["FunctionArn"]
        role = rights.of_role(worker.config["Role"], "lambda.amazonaws.com", function)
        key = worker.config.get("KMSKeyArn"), {"aws:lambda:FunctionArn": function}
        if refusal := refused(role, "lambda", key, ("kms:Decrypt",)):
            raise RuntimeError(
                "Lambda was unable to decrypt the environment variables because KMS access was "
                f"denied. KMS Message: {refusal.message}"
            )
        spawn(worker)

    lambda_runtime.Worker._spawn = spawned


def install() -> None:
    """Replaces MiniStack's functions; before the starts of environments are limited."""
    check_callers()
    check_services()
    check_functions()
