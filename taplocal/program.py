"""Runs the Pulumi program in this process against a resource monitor of ours.

The program is the same file that `pulumi up` runs, as `__main__`, with the same configuration
files. Every resource that it registers is handed to a `Backend` once its inputs are known; whatever
the backend answers becomes the resource's outputs. The local cloud's backend deploys, the tests'
backends record.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import pickle
import runpy
import sys
import traceback
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Protocol

import pulumi
from google.protobuf import empty_pb2, json_format, struct_pb2
from pulumi.runtime import config as pulumi_config
from pulumi.runtime import mocks, rpc, settings, stack
from pulumi.runtime import resource as resources
from pulumi.runtime.proto import resource_pb2, source_pb2

from taplocal.errors import TapLocalError, UnsupportedError
from taplocal.project import Project

PARALLEL = 16  # resources at work at once; each waits for the emulator most of its time
STACK = "pulumi:pulumi:Stack"
FEATURES = (
    resource_pb2.RESOURCE_MONITOR_FEATURE_SECRETS,
    resource_pb2.RESOURCE_MONITOR_FEATURE_RESOURCE_REFERENCES,
    resource_pb2.RESOURCE_MONITOR_FEATURE_ALIAS_SPECS,
)


@dataclass(frozen=True)
class Registration:
    """A resource that the program registered, its inputs as plain values."""

    urn: str
    type: str
    name: str
    inputs: dict[str, Any]
    parent: str = ""
    custom: bool = True
    protect: bool = False
    ignore_changes: tuple[str, ...] = ()


class Backend(Protocol):
    """What makes of a registration an id and outputs, and answers the program's data sources."""

    def register(self, resource: Registration, /) -> tuple[str, dict[str, Any]]: ...

    def invoke(self, token: str, arguments: Mapping[str, Any], /) -> dict[str, Any]: ...


def plain(value: Any) -> Any:
    """A property value as plain data: whole numbers, opened secrets, archives as texts."""
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
        raise UnsupportedError(
            f"a property value of the kind {kind} is not known to the local cloud"
        )
    return {key: plain(value[key]) for key in sorted(value) if value[key] is not None}


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
            resource_id, outputs = self.backend.register(registration)
        except BaseException as error:
            self.failure = self.failure or error
            raise
        body = struct_pb2.Struct()
        body.CopyFrom(request.object)  # inputs come back as outputs, in the program's own encoding
        body.update(outputs)
        return resource_pb2.RegisterResourceResponse(urn=urn, id=resource_id, object=body)

    def RegisterResourceOutputs(self, request: Any) -> Any:
        if request.urn.split("::")[2] == STACK:
            self.outputs = plain(json_format.MessageToDict(request.outputs))
        return empty_pb2.Empty()

    def Invoke(self, request: Any) -> Any:
        answer = self.backend.invoke(request.tok, plain(json_format.MessageToDict(request.args)))
        response: Any = resource_pb2.ResourceInvokeResponse()
        getattr(response, "return").update(answer)  # the field has a keyword's name
        return response


def _registration(urn: str, request: Any) -> Registration:
    if request.remote or request.transforms or request.importId:
        raise UnsupportedError(
            f"{request.type} {request.name}: "
            "remote components, transforms and imports cannot run here"
        )
    return Registration(
        urn=urn,
        type=request.type,
        name=request.name,
        inputs=plain(json_format.MessageToDict(request.object)),
        parent=request.parent,
        custom=request.custom,
        protect=request.protect,
        ignore_changes=tuple(request.ignoreChanges),
    )


def run(project: Project, backend: Backend, preview: bool = False) -> dict[str, Any]:
    """Runs the program to its end and returns the stack's outputs; the first failure is raised."""
    monitor = Monitor(backend)
    mock_settings: Any = mocks.MockSettings  # Pulumi leaves it untyped
    settings.SETTINGS.outputs.clear()  # what an earlier run in this process left unfinished
    pulumi_config.set_all_config(dict(project.config), [])
    settings.configure(
        mock_settings(
            monitor=monitor,
            monitor_features=set(FEATURES),
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
        loop = asyncio.get_running_loop()
        loop.set_default_executor(ThreadPoolExecutor(PARALLEL))
        # The first failure is raised below; what failed because of it needs no log of asyncio's.
        loop.set_exception_handler(lambda *_: None)
        await stack.run_in_stack(lambda: _execute(project.main))

    try:
        with _inside(project.folder), _quickly():
            asyncio.run(main())
    except Exception as error:  # noqa: BLE001 - whatever the program raises becomes one clear error
        failure = monitor.failure or error
        if isinstance(failure, TapLocalError | pulumi.RunError):
            raise TapLocalError(str(failure)) from None
        raise TapLocalError(
            f"the program failed: {type(failure).__name__}: {failure}{_place(project, failure)}"
        ) from failure
    return monitor.outputs


def _execute(path: Path) -> None:
    runpy.run_path(str(path), run_name="__main__")


def _place(project: Project, failure: BaseException) -> str:
    """Where in the program's own files it failed, for the error."""
    frames = traceback.extract_tb(failure.__traceback__)
    own = [frame for frame in frames if Path(frame.filename).parent == project.folder]
    return f" ({Path(own[-1].filename).name}, line {own[-1].lineno})" if own else ""


def _log(request: Any) -> Any:
    if request.severity >= 2:  # warnings and errors of the program
        sys.stderr.write(f"{request.message}\n")
    return empty_pb2.Empty()


async def _wait_for_rpcs() -> None:
    """Takes the place of Pulumi's, which after each thing done looks at all that is outstanding."""
    manager, outputs = settings.SETTINGS.rpc_manager, settings.SETTINGS.outputs
    while manager.rpcs or outputs:
        await asyncio.sleep(0)
        with settings.SETTINGS.lock:
            waiting = [*manager.rpcs, *outputs]
            manager.rpcs.clear()
            outputs.clear()
        await asyncio.gather(*waiting)
    if manager.unhandled_exception:
        raise manager.unhandled_exception.with_traceback(manager.exception_traceback)


@contextlib.contextmanager
def _quickly() -> Iterator[None]:
    """Without what is half of the time of a run, and of no use here: benchmarks/README.md.

    The place of each resource in the program is for the real engine's errors. Few of the objects
    that a run makes can be collected before its end. Pulumi wraps a method of pickle's at each
    dynamic resource and leaves it so.
    """
    patched: list[tuple[Any, str, Any]] = [
        (stack, "wait_for_rpcs", _wait_for_rpcs),
        (resources, "_get_stack_trace", source_pb2.StackTrace),
        (pickle._Pickler, "_batch_setitems", pickle._Pickler._batch_setitems),  # type: ignore[attr-defined]
    ]
    before = [getattr(owner, name) for owner, name, _ in patched]
    collecting = gc.isenabled()
    gc.disable()
    for owner, name, value in patched:
        setattr(owner, name, value)
    try:
        yield
    finally:
        for (owner, name, _), value in zip(patched, before, strict=True):
            setattr(owner, name, value)
        if collecting:
            gc.enable()


@contextlib.contextmanager
def _inside(folder: Path) -> Iterator[None]:
    """The program's folder as working directory and first import path, as the CLI does it."""
    before, path = Path.cwd(), list(sys.path)
    os.chdir(folder)
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        os.chdir(before)
        sys.path[:] = path
