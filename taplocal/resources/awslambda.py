"""Lambda: functions, aliases, permissions, retry settings, invocations."""

from __future__ import annotations

import base64
import io
import time
import zipfile
from collections.abc import Mapping
from typing import Any

from botocore.exceptions import BotoCoreError, ClientError
from google.protobuf import struct_pb2
from pulumi.runtime.rpc import deserialize_properties

from taplocal.cloud import Cloud
from taplocal.emulator import time_scale
from taplocal.errors import TapLocalError
from taplocal.resources.base import Handler, Inputs, Named, Outputs, given, pascal, removed_tags


class Function(Named):
    uses = """name description runtime architectures handler code role memorySize timeout publish
        environment.variables kmsKeyArn tracingConfig.mode loggingConfig
        reservedConcurrentExecutions tags"""
    replace_on = "name"
    tag_operation = "lambda list_tags Resource Tags"

    def name(self, cloud: Cloud, inputs: Inputs) -> str:
        return cloud.arn("lambda", f"function:{inputs['name']}")

    def create(self, cloud: Cloud, inputs: Inputs) -> tuple[str, Outputs]:
        made = cloud.client("lambda").create_function(
            Code={"ZipFile": zipped(inputs["code"])},
            Publish=bool(inputs.get("publish")),
            Architectures=inputs.get("architectures", ["x86_64"]),
            Tags=inputs.get("tags") or {},
            **_configuration(inputs),
        )
        self._reserve(cloud, inputs)
        return inputs["name"], _outputs(made)

    def update(
        self, cloud: Cloud, resource_id: str, old: Inputs, new: Inputs, outputs: Outputs
    ) -> Outputs:
        functions = cloud.client("lambda")
        if _configuration(old) != _configuration(new):
            functions.update_function_configuration(**_configuration(new))
        if (old["code"], old.get("architectures")) != (new["code"], new.get("architectures")):
            functions.update_function_code(
                FunctionName=resource_id,
                ZipFile=zipped(new["code"]),
                **given(Architectures=new.get("architectures")),
            )
        self._reserve(cloud, new)
        arn = outputs["arn"]
        if removed := removed_tags(old, new):
            functions.untag_resource(Resource=arn, TagKeys=removed)
        functions.tag_resource(Resource=arn, Tags=new.get("tags") or {})
        if not new.get("publish"):
            return outputs
        return {
            **outputs,
            **_outputs(functions.publish_version(FunctionName=resource_id)),
            "arn": arn,
        }

    def delete(self, cloud: Cloud, resource_id: str, inputs: Inputs, outputs: Outputs) -> None:
        cloud.client("lambda").delete_function(FunctionName=resource_id)

    @staticmethod
    def _reserve(cloud: Cloud, inputs: Inputs) -> None:
        functions, name = cloud.client("lambda"), inputs["name"]
        reserved = inputs.get("reservedConcurrentExecutions", -1)
        if reserved >= 0:  # 0 stops the function
            functions.put_function_concurrency(
                FunctionName=name, ReservedConcurrentExecutions=reserved
            )
        else:
            functions.delete_function_concurrency(FunctionName=name)


class Alias(Handler):
    uses = "name description functionName functionVersion"
    replace_on = "name functionName"

    def create(self, cloud: Cloud, inputs: Inputs) -> tuple[str, Outputs]:
        arn = cloud.client("lambda").create_alias(**_alias(inputs))["AliasArn"]
        return arn, {"arn": arn, "invokeArn": invoke_arn(cloud, arn)}

    def update(
        self, cloud: Cloud, resource_id: str, old: Inputs, new: Inputs, outputs: Outputs
    ) -> Outputs:
        cloud.client("lambda").update_alias(**_alias(new))
        return outputs

    def delete(self, cloud: Cloud, resource_id: str, inputs: Inputs, outputs: Outputs) -> None:
        cloud.client("lambda").delete_alias(
            FunctionName=inputs["functionName"], Name=inputs["name"]
        )


class Rollout(Handler):
    """The program's dynamic resource; its provider runs in this process."""

    uses = """function alias version probes percent bake_seconds alarms failures latency_bound_ms
        inconclusive guard_role versions_kept __provider"""
    replace_on = "function"
    ignored = "__provider"
    time_scale = staticmethod(time_scale)  # how many seconds of a rollout take one

    def create(self, cloud: Cloud, inputs: Inputs) -> tuple[str, Outputs]:
        import dill

        provider = dill.loads(base64.b64decode(inputs["__provider"]))  # noqa: S301 - made by this run
        provider.client = lambda service, **_plan: cloud.client(service)
        provider.clock = Clock(self.time_scale())
        sent = struct_pb2.Struct()  # in which the engine hands inputs over: each number is a float
        sent.update({key: inputs[key] for key in inputs if key != "__provider"})
        try:
            made = provider.create(deserialize_properties(sent))
        except (ClientError, BotoCoreError):
            raise
        except Exception as error:
            raise TapLocalError(str(error)) from error
        return made.id, {"verdict": made.outs["verdict"]}

    def delete(self, cloud: Cloud, resource_id: str, inputs: Inputs, outputs: Outputs) -> None:
        """Nothing to delete: the alias is a resource of its own."""

    def find(self, cloud: Cloud, inputs: Inputs) -> str | None:
        return None


class ProvisionedConcurrency(Handler):
    uses = "functionName qualifier provisionedConcurrentExecutions"
    replace_on = "functionName qualifier"

    def create(self, cloud: Cloud, inputs: Inputs) -> tuple[str, Outputs]:
        cloud.client("lambda").put_provisioned_concurrency_config(
            ProvisionedConcurrentExecutions=inputs["provisionedConcurrentExecutions"],
            **self._qualified(inputs),
        )
        return f"{inputs['functionName']},{inputs['qualifier']}", {}

    def delete(self, cloud: Cloud, resource_id: str, inputs: Inputs, outputs: Outputs) -> None:
        cloud.client("lambda").delete_provisioned_concurrency_config(**self._qualified(inputs))

    def find(self, cloud: Cloud, inputs: Inputs) -> str | None:
        return f"{inputs['functionName']},{inputs['qualifier']}"

    @staticmethod
    def _qualified(inputs: Inputs) -> dict[str, str]:
        return {"FunctionName": inputs["functionName"], "Qualifier": inputs["qualifier"]}


class Permission(Handler):
    uses = "statementId action principal function qualifier sourceArn sourceAccount"
    id_input = "statementId"
    replace_on = uses

    def create(self, cloud: Cloud, inputs: Inputs) -> tuple[str, Outputs]:
        cloud.client("lambda").add_permission(
            FunctionName=inputs["function"],
            StatementId=inputs["statementId"],
            Action=inputs["action"],
            Principal=inputs["principal"],
            **given(
                Qualifier=inputs.get("qualifier"),
                SourceArn=inputs.get("sourceArn"),
                SourceAccount=inputs.get("sourceAccount"),
            ),
        )
        return inputs["statementId"], {}

    def delete(self, cloud: Cloud, resource_id: str, inputs: Inputs, outputs: Outputs) -> None:
        cloud.client("lambda").remove_permission(
            FunctionName=inputs["function"],
            StatementId=resource_id,
            **given(Qualifier=inputs.get("qualifier")),
        )


class EventInvokeConfig(Handler):
    uses = """functionName qualifier maximumRetryAttempts maximumEventAgeInSeconds
        destinationConfig.onFailure.destination"""
    replace_on = "functionName qualifier"

    def create(self, cloud: Cloud, inputs: Inputs) -> tuple[str, Outputs]:
        cloud.client("lambda").put_function_event_invoke_config(
            FunctionName=inputs["functionName"],
            Qualifier=inputs["qualifier"],
            MaximumRetryAttempts=inputs["maximumRetryAttempts"],
            MaximumEventAgeInSeconds=inputs["maximumEventAgeInSeconds"],
            **given(DestinationConfig=pascal(inputs.get("destinationConfig"))),
        )
        return f"{inputs['functionName']}:{inputs['qualifier']}", {}

    def delete(self, cloud: Cloud, resource_id: str, inputs: Inputs, outputs: Outputs) -> None:
        cloud.client("lambda").delete_function_event_invoke_config(
            FunctionName=inputs["functionName"], Qualifier=inputs["qualifier"]
        )


class Invocation(Handler):
    uses = "functionName qualifier input triggers"
    replace_on = "functionName qualifier input triggers"

    def create(self, cloud: Cloud, inputs: Inputs) -> tuple[str, Outputs]:
        response = cloud.client("lambda").invoke(
            FunctionName=inputs["functionName"],
            Qualifier=inputs["qualifier"],
            Payload=inputs["input"].encode(),
        )
        result = response["Payload"].read().decode()
        if "FunctionError" in response:
            raise TapLocalError(f"the invocation of {inputs['functionName']} failed: {result}")
        return f"{inputs['functionName']}_{inputs['qualifier']}", {"result": result}

    def delete(self, cloud: Cloud, resource_id: str, inputs: Inputs, outputs: Outputs) -> None:
        """Nothing to delete: an invocation has happened."""


class Clock:
    """The time of a release, which passes faster here; dates stay real."""

    time = staticmethod(time.time)

    def __init__(self, scale: int):
        self.scale = scale

    def monotonic(self) -> float:
        """Seconds since some moment."""
        return time.monotonic() * self.scale

    def sleep(self, seconds: float) -> None:
        """Waits for so many seconds of a release."""
        time.sleep(seconds / self.scale)


def invoke_arn(cloud: Cloud, arn: str) -> str:
    """The ARN by which API Gateway invokes a function."""
    return f"arn:aws:apigateway:{cloud.region}:lambda:path/2015-03-31/functions/{arn}/invocations"


def zipped(files: Mapping[str, str]) -> bytes:
    """A deployment package; the same files give the same bytes."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, text in sorted(files.items()):
            entry = zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0))
            entry.external_attr = 0o644 << 16
            archive.writestr(entry, text, zipfile.ZIP_DEFLATED)
    return buffer.getvalue()


def _configuration(inputs: Inputs) -> dict[str, Any]:
    return given(
        FunctionName=inputs["name"],
        Role=inputs["role"],
        Runtime=inputs["runtime"],
        Handler=inputs["handler"],
        Description=inputs.get("description"),
        MemorySize=inputs.get("memorySize"),
        Timeout=inputs.get("timeout"),
        Environment={"Variables": inputs.get("environment", {}).get("variables", {})},
        KMSKeyArn=inputs.get("kmsKeyArn"),
        TracingConfig=pascal(inputs.get("tracingConfig")),
        LoggingConfig=pascal(inputs.get("loggingConfig")),
    )


def _outputs(made: Mapping[str, Any]) -> Outputs:
    arn, version = made["FunctionArn"], made["Version"]
    unqualified = ":".join(arn.split(":")[:7])
    return {"arn": unqualified, "version": version, "qualifiedArn": f"{unqualified}:{version}"}


def _alias(inputs: Inputs) -> dict[str, Any]:
    return {
        "FunctionName": inputs["functionName"],
        "Name": inputs["name"],
        "FunctionVersion": inputs["functionVersion"],
        "Description": inputs.get("description", ""),
    }
