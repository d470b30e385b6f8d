"""RDS's API over databases that run: MiniStack's own starts none without Docker.

An instance is created, changed, rebooted and copied by the supervisor
(`taplocal/web/postgres.py`), which reads here what is wanted and writes what is there. The
master's secret is RDS's own: made, rotated and deleted with the instance. Runs in the emulator's
process, in the scope of a request.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import secrets
import uuid
from collections.abc import Callable, Mapping
from typing import Any

from ministack.core import iam_evaluator, rds_iam
from ministack.core.responses import get_account_id, get_region, request_scope
from ministack.services import rds, secretsmanager

from taplocal.server.rights import denial

Json = dict[str, Any]
SECRET = "rds!db-"  # noqa: S105 - how the name of the secret begins
WAIT_SECONDS = 0.05  # between two looks at whether a task is done
#: Account and region -> ids of databases and ARNs of snapshots whose files are to be deleted.
gone: dict[tuple[str, str], list[str]] = {}
#: Operation of RDS -> MiniStack's function.
original: Mapping[str, Callable[[Json], Any]] = dict(rds._ACTION_MAP)
_rotate, _instance_xml = secretsmanager._rotate_secret, rds._instance_xml


def host(identifier: str) -> str:
    """The name of a database's endpoint, which its certificate has."""
    return f"{identifier}.local.{get_region()}.rds.amazonaws.com"


def instance_of(parameters: Json) -> Json | None:
    """The record that a request names."""
    name = rds._p(parameters, "DBInstanceIdentifier")
    found: Json | None = rds._instances.get(name)
    return found


#: Family of a parameter group, a parameter -> what its list may have, of those that changed.
ALLOWED = {
    ("postgres18", "log_connections"): (
        "receipt", "authentication", "authorization", "setup_durations", "all",
    ),
}  # fmt: skip


def modify_parameters(parameters: Json) -> Any:
    """ModifyDBParameterGroup: refuses a value that the family does not know, as far as ALLOWED."""
    group = rds._param_groups.get(rds._p(parameters, "DBParameterGroupName"), {})
    prefix = rds._parameter_member_prefix(parameters)
    for number in itertools.count(1):
        if not (name := rds._p(parameters, f"{prefix}.{number}.ParameterName")):
            break
        value = rds._p(parameters, f"{prefix}.{number}.ParameterValue")
        allowed = ALLOWED.get((group.get("DBParameterGroupFamily"), name), ())
        if allowed and not {*value.split(",")} <= {*allowed}:
            why = f"Invalid parameter value: {value} for: {name} allowed values are: "
            return rds._error("InvalidParameterValue", why + ",".join(allowed), 400)
    return original["ModifyDBParameterGroup"](parameters)


def shown(operation: str, instance: Json) -> Any:
    """The response of an operation on an instance."""
    return rds._single_instance_response(f"{operation}Response", f"{operation}Result", instance)


def begin(instance: Json, parameters: Json, key: str = "") -> None:
    """Has the supervisor make an instance, with a secret of its own if RDS manages the password."""
    name = instance["DBInstanceIdentifier"]
    instance |= {"DBInstanceStatus": "creating", "Tasks": []}
    instance["Endpoint"] |= {"Address": host(name)}
    if rds._p(parameters, "ManageMasterUserPassword") == "true":
        instance["_MasterUserPassword"] = secrets.token_urlsafe(24)
        text = secret_text(instance)
        arn, _ = secretsmanager._store_new_secret(
            f"{SECRET}{instance['DbiResourceId'].removeprefix('db-').lower()}",
            secret_string=text,
            description=f"The master password of {name}",
            kms_key_id=rds._p(parameters, "MasterUserSecretKmsKeyId") or None,
        )
        instance["MasterUserSecret"] = {"SecretArn": arn, "SecretStatus": "active"}
    else:
        given = rds._p(parameters, "MasterUserPassword") or key
        instance["_MasterUserPassword"] = given or secrets.token_urlsafe(24)


def secret_text(instance: Json) -> str:
    """The master's secret, as RDS writes it."""
    user, password = instance["MasterUsername"], instance["_MasterUserPassword"]
    return json.dumps({"username": user, "password": password})


def create(parameters: Json) -> Any:
    """CreateDBInstance."""
    response = original["CreateDBInstance"](parameters)
    instance = instance_of(parameters)
    if response[0] != 200 or instance is None:
        return response
    begin(instance, parameters)
    instance["PerformanceInsightsKMSKeyId"] = rds._p(parameters, "PerformanceInsightsKMSKeyId")
    return shown("CreateDBInstance", instance)


def restore(parameters: Json) -> Any:
    """RestoreDBInstanceFromDBSnapshot: the copy becomes an instance of its own."""
    response = original["RestoreDBInstanceFromDBSnapshot"](parameters)
    instance = instance_of(parameters)
    if response[0] != 200 or instance is None:
        return response
    snapshot = rds._snapshots[rds._p(parameters, "DBSnapshotIdentifier")]
    begin(instance, parameters, snapshot.get("Password", ""))
    instance["Snapshot"] = snapshot["DBSnapshotArn"]
    instance["IAMDatabaseAuthenticationEnabled"] = (
        rds._p(parameters, "EnableIAMDatabaseAuthentication") == "true"
    )
    if group := rds._p(parameters, "DBParameterGroupName"):
        instance["DBParameterGroups"] = [{"DBParameterGroupName": group}]
    return shown("RestoreDBInstanceFromDBSnapshot", instance)


def delete(parameters: Json) -> Any:
    """DeleteDBInstance: its secret goes, too, and the supervisor deletes its files."""
    instance = instance_of(parameters)
    response = original["DeleteDBInstance"](parameters)
    if response[0] == 200 and instance:
        here = get_account_id(), get_region()
        gone.setdefault(here, []).append(instance["DbiResourceId"])
        if secret := instance.get("MasterUserSecret"):
            secretsmanager.delete_secret_in_process(secret["SecretArn"])
    return response


def modify(parameters: Json) -> Any:
    """ModifyDBInstance: it is available again when the change is made, a new standby included."""
    response = original["ModifyDBInstance"](parameters)
    instance = instance_of(parameters)
    if response[0] != 200 or not instance or instance["DBInstanceStatus"] != "available":
        return response
    instance["DBInstanceStatus"] = "modifying"
    instance["Tasks"].append({"id": str(uuid.uuid4()), "kind": "modify"})
    return shown("ModifyDBInstance", instance)


def reboot(parameters: Json) -> Any:
    """RebootDBInstance, with a failover where that is asked for."""
    instance = instance_of(parameters)
    if instance is None or instance["DBInstanceStatus"] != "available":
        return original["RebootDBInstance"](parameters)  # the error
    failover = rds._p(parameters, "ForceFailover") == "true"
    if failover and not instance["MultiAZ"]:
        why = f"{instance['DBInstanceIdentifier']} has no standby to fail over to"
        return rds._error("InvalidParameterCombination", why, 400)
    instance["DBInstanceStatus"] = "rebooting"
    instance["Tasks"].append(
        {"id": str(uuid.uuid4()), "kind": "failover" if failover else "reboot"}
    )
    return shown("RebootDBInstance", instance)


def set_running(operation: str, wish: str) -> Callable[[Json], Any]:
    """StartDBInstance or StopDBInstance."""

    def called(parameters: Json) -> Any:
        instance = instance_of(parameters)
        if instance is None:
            return original[operation](parameters)
        instance["Wish"] = wish
        instance["DBInstanceStatus"] = "stopping" if wish == "stopped" else "starting"
        return shown(operation, instance)

    return called


def create_snapshot(parameters: Json) -> Any:
    """CreateDBSnapshot: a copy of this moment's bytes, available when it is complete."""
    response = original["CreateDBSnapshot"](parameters)
    snapshot = rds._snapshots.get(rds._p(parameters, "DBSnapshotIdentifier"))
    instance = instance_of(parameters)
    if response[0] != 200 or snapshot is None or instance is None:
        return response
    snapshot |= {"Status": "creating", "PercentProgress": 0}
    snapshot["Password"] = instance.get("_MasterUserPassword", "")
    task = {"id": str(uuid.uuid4()), "kind": "snapshot", "snapshot": snapshot["DBSnapshotArn"]}
    instance["Tasks"].append(task)
    text = f"<CreateDBSnapshotResult><DBSnapshot>{rds._snapshot_xml(snapshot)}</DBSnapshot>"
    return rds._xml(200, "CreateDBSnapshotResponse", f"{text}</CreateDBSnapshotResult>")


def delete_snapshot(parameters: Json) -> Any:
    """DeleteDBSnapshot: the supervisor deletes its files."""
    snapshot = rds._snapshots.get(rds._p(parameters, "DBSnapshotIdentifier"))
    if snapshot and snapshot["Status"] == "creating":
        why = f"Snapshot {snapshot['DBSnapshotIdentifier']} is being created."
        return rds._error("InvalidDBSnapshotState", why, 400)
    response = original["DeleteDBSnapshot"](parameters)
    if response[0] == 200 and snapshot:
        here = get_account_id(), get_region()
        gone.setdefault(here, []).append(snapshot["DBSnapshotArn"])
    return response


def shared(operation: str) -> Callable[[Json], Any]:
    """DescribeDBSnapshotAttributes or ModifyDBSnapshotAttribute: what others may restore."""

    def called(parameters: Json) -> Any:
        name = rds._p(parameters, "DBSnapshotIdentifier")
        if (snapshot := rds._snapshots.get(name)) is None:
            return rds._error("DBSnapshotNotFound", f"DBSnapshot not found: {name}", 404)
        added, removed = (
            {rds._p(parameters, key) for key in parameters if key.startswith(f"{each}.")}
            for each in ("ValuesToAdd", "ValuesToRemove")
        )
        snapshot["Shared"] = sorted(({*snapshot.get("Shared", ())} | added) - removed)
        values = "".join(
            f"<AttributeValue>{rds._esc(x)}</AttributeValue>" for x in snapshot["Shared"]
        )
        text = f"<AttributeName>restore</AttributeName><AttributeValues>{values}</AttributeValues>"
        text = f"<DBSnapshotAttribute>{text}</DBSnapshotAttribute>"
        text = f"<DBSnapshotAttributes>{text}</DBSnapshotAttributes>"
        text = f"<DBSnapshotIdentifier>{rds._esc(name)}</DBSnapshotIdentifier>{text}"
        text = f"<DBSnapshotAttributesResult>{text}</DBSnapshotAttributesResult>"
        return rds._xml(
            200, f"{operation}Response", f"<{operation}Result>{text}</{operation}Result>"
        )

    return called


async def restore_in_place(identifier: str, region: str, snapshot: str) -> Json:
    """Has an instance go back to a snapshot of its own, as AWS cannot; `error` says why not."""
    with request_scope(get_account_id(), region):
        instance, found = rds._instances.get(identifier), rds._snapshots.get(snapshot)
        if not instance or instance["DBInstanceStatus"] != "available":
            return {"error": f"it is {instance['DBInstanceStatus'] if instance else 'gone'}"}
        if not found or found["Status"] != "available":
            return {"error": f"there is no snapshot {snapshot} that is available"}
        task: Json = {
            "id": str(uuid.uuid4()),
            "kind": "restore",
            "snapshot": found["DBSnapshotArn"],
        }
        instance["DBInstanceStatus"] = "modifying"
        instance["Tasks"].append(task)
        while task in instance["Tasks"] and rds._instances.get(identifier) is instance:
            await asyncio.sleep(WAIT_SECONDS)
    return {"error": task.get("error", "it was deleted meanwhile")}


def rotate(data: Json) -> Any:
    """RotateSecret: the database has its master's new password first, then the secret."""
    _, secret = secretsmanager._resolve(data.get("SecretId"))
    found = [
        each
        for each in rds._instances.values()
        if secret and each.get("MasterUserSecret", {}).get("SecretArn") == secret["ARN"]
    ]
    if not found:
        return _rotate(data)
    password = secrets.token_urlsafe(24)
    task = {"id": str(uuid.uuid4()), "kind": "rotate", "password": password}
    found[0]["Tasks"].append(task)
    return secretsmanager.json_response(
        {"ARN": secret["ARN"], "Name": secret["Name"], "VersionId": task["id"]}
    )


OPERATIONS: Mapping[str, Callable[[Json], Any]] = {
    "CreateDBInstance": create,
    "RestoreDBInstanceFromDBSnapshot": restore,
    "DeleteDBInstance": delete,
    "ModifyDBInstance": modify,
    "ModifyDBParameterGroup": modify_parameters,
    "RebootDBInstance": reboot,
    "StartDBInstance": set_running("StartDBInstance", "available"),
    "StopDBInstance": set_running("StopDBInstance", "stopped"),
    "CreateDBSnapshot": create_snapshot,
    "DeleteDBSnapshot": delete_snapshot,
    "DescribeDBSnapshotAttributes": shared("DescribeDBSnapshotAttributes"),
    "ModifyDBSnapshotAttribute": shared("ModifyDBSnapshotAttribute"),
}


def install() -> None:
    """Has MiniStack answer with these operations."""
    rds._ACTION_MAP |= OPERATIONS
    rds._instance_xml = with_secret
    secretsmanager._rotate_secret = rotate


def with_secret(instance: Json) -> str:
    """An instance in XML, with its master's secret."""
    text: str = _instance_xml(instance)
    if secret := instance.get("MasterUserSecret"):
        inner = "".join(f"<{key}>{value}</{key}>" for key, value in secret.items())
        text += f"<MasterUserSecret>{inner}</MasterUserSecret>"
    return text


def registered() -> Json:
    """The databases of the request's scope, with all that the supervisor needs, by identifier."""
    here = get_account_id(), get_region()
    found = {}
    for name, instance in rds._instances.items():
        if "Tasks" in instance:
            groups = [each["DBParameterGroupName"] for each in instance["DBParameterGroups"]]
            values = (rds._param_groups.get(each, {}).get("Parameters", {}) for each in groups)
            parameters = {key: each for group in values for key, each in group.items()}
            found[name] = {
                "resource_id": instance["DbiResourceId"],
                "host": host(name),
                "port": instance["Endpoint"]["Port"] if instance.get("Port") else 0,
                "engine_version": instance["EngineVersion"],
                "user": instance["MasterUsername"],
                "password": instance["_MasterUserPassword"],
                "database": instance["DBName"],
                "multi_az": instance["MultiAZ"],
                "parameters": parameters,
                "status": instance["DBInstanceStatus"],
                "wish": instance.get("Wish", "available"),
                "snapshot": instance.get("Snapshot", ""),
                "tasks": instance["Tasks"],
            }
    return {"instances": found, "gone": gone.get(here, [])}


def report(name: str, told: Mapping[str, Any]) -> None:
    """Writes what the supervisor says of a database: its status, its port, what it has done."""
    instance = rds._instances.get(name)
    if not instance or instance["DbiResourceId"] != told["resource_id"]:
        return
    if told["port"]:
        instance["Endpoint"]["Port"] = instance["Port"] = told["port"]
    for task in list(instance["Tasks"]):
        if task["id"] in told["done"]:
            finish(instance, task, told["done"][task["id"]])
            instance["Tasks"].remove(task)
    if not instance["Tasks"] or told["status"] not in ("available", "stopped"):
        instance["DBInstanceStatus"] = told["status"]


def finish(instance: Json, task: Json, error: str) -> None:
    """What follows from a task: `error` is empty for one that went well."""
    task["error"] = error
    if task["kind"] == "rotate" and not error:
        instance["_MasterUserPassword"] = task["password"]
        arn = instance["MasterUserSecret"]["SecretArn"]
        secretsmanager.put_secret_value_in_process(arn, secret_text(instance))
    if task["kind"] == "snapshot":
        for each in rds._snapshots.values():
            if each["DBSnapshotArn"] == task["snapshot"]:
                each |= {"Status": "failed" if error else "available"}
                each["PercentProgress"] = 0 if error else 100


def ended() -> None:
    """What runs the databases has ended: they start again with the next supervisor."""
    for instance in list(rds._instances._data.values()):
        if "Tasks" in instance and instance["DBInstanceStatus"] == "available":
            instance["DBInstanceStatus"] = "starting"


def deleted(ids: list[str]) -> None:
    """The files of these databases are gone."""
    here = get_account_id(), get_region()
    left = [each for each in gone.get(here, []) if each not in ids]
    gone[here] = left
    if not left:
        del gone[here]


def valid_token(identifier: str, region: str, user: str, token: str) -> bool:
    """Whether IAM lets the holder of a token into a database as a user: rds-db:connect."""
    account = get_account_id()
    with request_scope(account, region):
        instance = rds._instances.get(identifier)
        if not instance or not instance["IAMDatabaseAuthenticationEnabled"]:
            return False
        port, name = instance["Endpoint"]["Port"], host(identifier)
        verified = rds_iam.verify_rds_iam_token(
            token, hostname=name, port=port, db_user=user, region=region, account_id=account
        )
        if isinstance(verified, rds_iam.RdsIamTokenError):
            return False
        principal = iam_evaluator.resolve_principal(verified.access_key_id, account)
        if isinstance(principal, iam_evaluator.AuthError):
            return False
        who = f"dbuser:{instance['DbiResourceId']}/{user}"
        resource = f"arn:aws:rds-db:{region}:{account}:{who}"
        return denial(principal, "rds-db:connect", resource) is None
