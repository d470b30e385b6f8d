"""Runs the Pulumi program in this process against a resource monitor of ours.

The program is the same file that `pulumi up` runs, as `__main__`, with the same configuration files. Every
resource that it registers is handed to a `Backend` once its inputs are known; whatever the backend answers
becomes the resource's outputs. The local cloud's backend deploys, the tests' backends record.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import runpy
import sys
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Protocol

import pulumi
import yaml
from google.protobuf import empty_pb2, json_format, struct_pb2
from pulumi.runtime import config as pulumi_config
from pulumi.runtime import mocks, rpc, settings, stack
from pulumi.runtime.proto import resource_pb2

from taplocal.errors import TapLocalError, Unsupported

PARALLEL = 16  # resources at work at once; each waits for the emulator most of its time
STACK = "pulumi:pulumi:Stack"


@dataclass(frozen=True)
class Registration:
    """A resource that the program registered, its inputs as plain values without secrets' wrapping."""

    urn: str
    type: str
    name: str
    inputs: dict[str, Any]
    parent: str = ""
    custom: bool = True
    protect: bool = False
    ignore_changes: tuple[str, ...] = ()
    dependencies: tuple[str, ...] = ()


class Backend(Protocol):
    """What makes of a registration an id and outputs, and answers the program's data sources."""

    def register(self, resource: Registration) -> tuple[str, dict[str, Any]]: ...

    def invoke(self, token: str, arguments: Mapping[str, Any]) -> dict[str, Any]: ...


@dataclass(frozen=True)
class Project:
    """A Pulumi project folder and the configuration of one of its stacks."""

    folder: Path
    name: str
    main: Path
    stack: str
    config: dict[str, str] = field(default_factory=dict)

    @property
    def region(self) -> str:
        """The AWS region of the stack."""
        return self.config.get("aws:region", "us-east-1")

    @classmethod
    def load(cls, folder: Path, stack_name: str, overrides: Mapping[str, str] | None = None) -> Project:
        """Reads Pulumi.yaml and Pulumi.<stack>.yaml as the Pulumi CLI does; overrides win."""
        project = _yaml(folder / "Pulumi.yaml")
        own = _yaml(folder / f"Pulumi.{stack_name}.yaml").get("config") or {}
        declared = project.get("config") or {}
        name = str(project["name"])
        config = {_full(name, key): _text(value) for key, each in declared.items() if (value := _default(each)) is not None}
        config.update({_full(name, key): _text(value) for key, value in {**own, **(overrides or {})}.items()})
        known = {_full(name, key) for key in declared}
        if unknown := sorted(key for key in config if key.startswith(f"{name}:") and key not in known):
            choices = ", ".join(sorted(key for key in declared if ":" not in key))
            raise TapLocalError(f"there is no setting {unknown[0].split(':')[1]!r}; Pulumi.yaml declares {choices}")
        return cls(folder, name, folder / project["main"], stack_name, config)


def _yaml(path: Path) -> dict[str, Any]:
    try:
        return dict(yaml.safe_load(path.read_text()) or {})
    except FileNotFoundError:
        stacks = ", ".join(sorted(each.stem.removeprefix("Pulumi.") for each in path.parent.glob("Pulumi.*.yaml")))
        raise TapLocalError(f"there is no {path.name} in {path.parent}; the environments here are: {stacks or 'none'}") from None
    except (yaml.YAMLError, ValueError) as error:
        raise TapLocalError(f"{path} is not valid YAML: {error}") from None


def _full(project: str, key: str) -> str:
    return key if ":" in key else f"{project}:{key}"


def _default(declaration: Any) -> Any:
    """The value of a configuration key in Pulumi.yaml: plain, or in a typed declaration."""
    if isinstance(declaration, dict):
        return declaration.get("value", declaration.get("default"))
    return declaration


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def plain(value: Any) -> Any:
    """A property value as plain data: whole numbers as int, secrets opened, archives as their texts."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, list):
        return [plain(each) for each in value]
    if not isinstance(value, dict):
        return value
    kind = value.get(rpc._special_sig_key)
    if kind == rpc._special_secret_sig:
        return plain(value["value"])
    if kind == rpc._special_archive_sig:
        return {name: each["text"] for name, each in value["assets"].items()}
    if kind is not None:
        raise Unsupported(f"a property value of the kind {kind} is not known to the local cloud")
    return {key: plain(each) for key, each in value.items() if each is not None}


class Monitor(mocks.MockMonitor):
    """The engine's side of the conversation with the program."""

    def __init__(self, backend: Backend):
        super().__init__(mocks=None)  # type: ignore[arg-type]  # every method that would use it is ours
        self.backend = backend
        self.outputs: dict[str, Any] = {}
        self.failure: BaseException | None = None

    def RegisterResource(self, request: Any) -> Any:
        urn = self.make_urn(request.parent, request.type, request.name)
        if request.type == STACK:
            return resource_pb2.RegisterResourceResponse(urn=urn)
        if self.failure:
            raise self.failure  # one resource has failed: begin no other
        try:
            registration = _registration(urn, request)
            identity, outputs = self.backend.register(registration)
        except BaseException as error:
            self.failure = self.failure or error
            raise
        body = struct_pb2.Struct()
        body.CopyFrom(request.object)  # inputs come back as outputs, in the program's own encoding
        body.update(outputs)
        return resource_pb2.RegisterResourceResponse(urn=urn, id=identity, object=body)

    def RegisterResourceOutputs(self, request: Any) -> Any:
        if request.urn.split("::")[2] == STACK:
            self.outputs = plain(json_format.MessageToDict(request.outputs))
        return empty_pb2.Empty()

    def Invoke(self, request: Any) -> Any:
        answer = self.backend.invoke(request.tok, plain(json_format.MessageToDict(request.args)))
        return resource_pb2.ResourceInvokeResponse(**{"return": json_format.ParseDict(answer, struct_pb2.Struct())})


def _registration(urn: str, request: Any) -> Registration:
    if request.remote or request.transforms or request.importId:
        raise Unsupported(f"{request.type} {request.name}: remote components, transforms and imports cannot run here")
    return Registration(
        urn=urn,
        type=request.type,
        name=request.name,
        inputs=plain(json_format.MessageToDict(request.object)),
        parent=request.parent,
        custom=request.custom,
        protect=request.protect,
        ignore_changes=tuple(request.ignoreChanges),
        dependencies=tuple(sorted(request.dependencies)),
    )


def run(project: Project, backend: Backend, preview: bool = False) -> dict[str, Any]:
    """Runs the program to its end and returns the stack's outputs; the first failure is raised."""
    monitor = Monitor(backend)
    pulumi_config.set_all_config(dict(project.config), [])
    settings.configure(
        mocks.MockSettings(
            monitor=monitor,
            monitor_features=set(monitor.GetDeploymentInfo(None).supportedFeatures),
            engine=SimpleNamespace(Log=_log),
            project=project.name,
            stack=project.stack,
            dry_run=preview,
            organization="organization",
            callbacks=None,
            root_directory=str(project.folder),
        )
    )

    async def main() -> None:
        asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(PARALLEL))
        await stack.run_in_stack(lambda: runpy.run_path(str(project.main), run_name="__main__") and None)

    try:
        with _inside(project.folder):
            asyncio.run(main())
    except Exception as error:
        failure = monitor.failure or error
        if isinstance(failure, pulumi.RunError):
            raise TapLocalError(str(failure)) from None
        raise failure from None
    return monitor.outputs


def _log(request: Any) -> Any:
    if request.severity >= 2:  # warnings and errors of the program
        print(request.message, file=sys.stderr)
    return empty_pb2.Empty()


@contextlib.contextmanager
def _inside(folder: Path) -> Iterator[None]:
    """The program's own folder as working directory and first import path, as the Pulumi CLI runs it."""
    before, path = Path.cwd(), list(sys.path)
    os.chdir(folder)
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        os.chdir(before)
        sys.path[:] = path
