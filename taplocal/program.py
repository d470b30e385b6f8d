"""Runs the Pulumi program in this process, with a resource monitor of our own.

The program is the same file that `pulumi up` runs, as `__main__`, with the same configuration
files. Every resource that it registers is handed to a `Backend` once its inputs are known; whatever
the backend returns becomes the resource's outputs. The local cloud's backend deploys, that of the
tests records.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import pickle
import runpy
import signal
import sys
import threading
import traceback
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from types import FunctionType, SimpleNamespace
from typing import Any, Protocol

import pulumi
from google.protobuf import empty_pb2, json_format, struct_pb2
from pulumi.runtime import config as pulumi_config
from pulumi.runtime import mocks, rpc, settings, stack
from pulumi.runtime import resource as resources
from pulumi.runtime.proto import resource_pb2, source_pb2

from taplocal.errors import TapLocalError, UnsupportedError
from taplocal.project import Project

PARALLEL = 16  # resources deployed at once; each mostly waits for the emulator
STACK = "pulumi:pulumi:Stack"
PACKAGES = str(Path(pulumi.__file__).parents[1])  # Pulumi's and its providers' folder
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
    depends_on: tuple[str, ...] = ()  # URNs, those of its inputs among them
    custom: bool = True
    protect: bool = False
    ignore_changes: tuple[str, ...] = ()
    replace_on_changes: tuple[str, ...] = ()
    retain_on_delete: bool = False
    secret_outputs: tuple[str, ...] = ()  # which the engine encrypts in its state
    references: Mapping[str, tuple[str, ...]] = field(default_factory=dict)  # input -> URNs


class Backend(Protocol):
    """Gives each registered resource an id and outputs, and each data source a result."""

    def register(self, resource: Registration, /) -> tuple[str, dict[str, Any]]: ...

    def invoke(self, token: str, arguments: Mapping[str, Any], /) -> dict[str, Any]: ...


def plain(value: Any) -> Any:
    """A property value as plain data: integers, secrets unwrapped, archives as their texts."""
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
            f"the local cloud does not support property values of the kind {kind}"
        )
    return {key: plain(value[key]) for key in sorted(value) if value[key] is not None}


class Monitor(mocks.MockMonitor):
    """The resource monitor that the program talks to."""

    def __init__(self, backend: Backend):
        super().__init__(mocks=None)  # type: ignore[arg-type]  # all methods that would use it are overridden
        self.backend = backend
        self.outputs: dict[str, Any] = {}
        self.failure: BaseException | None = None
        self.failed_at: tuple[str, int] | None = None  # where the program makes the resource

    def RegisterResource(self, request: Any) -> Any:
        urn = self.make_urn(request.parent, request.type, request.name)
        if request.type == STACK:
            return resource_pb2.RegisterResourceResponse(urn=urn)
        if self.failure:
            raise self.failure  # one resource has failed: start no other
        try:
            registration = _registration(urn, request)
            resource_id, outputs = self.backend.register(registration)
        except BaseException as error:
            if not self.failure:
                place = request.sourcePosition
                self.failure, self.failed_at = error, (place.uri, place.line)
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
        result = self.backend.invoke(request.tok, plain(json_format.MessageToDict(request.args)))
        response: Any = resource_pb2.ResourceInvokeResponse()
        getattr(response, "return").update(result)  # the field's name is a keyword
        return response


def _registration(urn: str, request: Any) -> Registration:
    if request.remote or request.transforms or request.importId:
        raise UnsupportedError(
            f"{request.type} {request.name}: "
            "the local cloud does not support remote components, transforms and imports"
        )
    return Registration(
        urn=urn,
        type=request.type,
        name=request.name,
        inputs=plain(json_format.MessageToDict(request.object)),
        parent=request.parent,
        depends_on=tuple(sorted(request.dependencies)),
        custom=request.custom,
        protect=request.protect,
        ignore_changes=tuple(request.ignoreChanges),
        replace_on_changes=tuple(request.replaceOnChanges),
        retain_on_delete=request.retainOnDelete,
        secret_outputs=tuple(request.additionalSecretOutputs),
        references={
            k: tuple(sorted(v.urns)) for k, v in request.propertyDependencies.items() if v.urns
        },
    )


def run(project: Project, backend: Backend, preview: bool = False) -> dict[str, Any]:
    """Runs the program and returns the stack's outputs; the first failure is a TapLocalError."""
    monitor = Monitor(backend)
    mock_settings: Any = mocks.MockSettings  # Pulumi leaves it untyped
    settings.SETTINGS.outputs.clear()  # of an earlier run in this process that failed
    # As for a provider of the real engine that is to reach another cloud.
    pulumi_config.set_all_config({"aws:endpoints": "[]", **project.config}, [])
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

    modules: list[dict[str, Any]] = []

    async def main() -> None:
        loop = asyncio.get_running_loop()
        loop.set_default_executor(ThreadPoolExecutor(PARALLEL))
        # The first failure is raised below; asyncio need not log those that follow from it.
        loop.set_exception_handler(lambda *_: None)
        await stack.run_in_stack(lambda: modules.append(_execute(project.main)))

    try:
        with working_directory(project.folder), _interruptible(), _optimized():
            asyncio.run(main())
    except Exception as error:  # noqa: BLE001 - whatever the program raises becomes one clear error
        failure = monitor.failure or error
        at = monitor.failed_at or _location(project, failure)
        if isinstance(failure, pulumi.RunError):  # is about a setting: its message says which
            raise TapLocalError(str(failure)) from None
        if isinstance(failure, TapLocalError):
            raise TapLocalError(str(failure), at) from None
        where = f" ({Path(at[0]).name}:{at[1]})" if at else ""
        problem = getattr(failure, "msg", failure)  # a SyntaxError itself says where, otherwise
        raise TapLocalError(
            f"the program failed: {type(failure).__name__}: {problem}{where}", at
        ) from failure
    finally:
        for names in modules:
            names.clear()  # Pulumi remembers the program's classes for good, and by them all of it
    return monitor.outputs


def _execute(path: Path) -> dict[str, Any]:
    """Runs the program; the names of its module, of which `runpy` returns a copy."""
    made = runpy.run_path(str(path), run_name="__main__").values()
    own = (x for x in made if isinstance(x, FunctionType) and x.__module__ == "__main__")
    return next((each.__globals__ for each in own), {})


def _location(project: Project, failure: BaseException) -> tuple[str, int] | None:
    """The line of the program's own files that failed."""
    if isinstance(failure, SyntaxError) and failure.filename:
        return failure.filename, failure.lineno or 1
    frames = traceback.extract_tb(failure.__traceback__)
    own = [frame for frame in frames if Path(frame.filename).parent == project.folder]
    return (own[-1].filename, own[-1].lineno or 1) if own else None


def _position() -> source_pb2.StackTrace:
    """The line of the program that makes a resource, of the whole stack trace that Pulumi takes."""
    frame = sys._getframe(1)
    while frame.f_back and frame.f_code.co_filename.startswith(PACKAGES):
        frame = frame.f_back
    place = source_pb2.SourcePosition(uri=frame.f_code.co_filename, line=frame.f_lineno)
    return source_pb2.StackTrace(frames=[source_pb2.StackFrame(pc=place)])


def _log(request: Any) -> Any:
    if request.severity >= 2:  # warnings and errors of the program
        sys.stderr.write(f"{request.message}\n")
    return empty_pb2.Empty()


async def _wait_for_rpcs() -> None:
    """Replaces Pulumi's, which looks at all outstanding tasks whenever one has finished."""
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
def _interruptible() -> Iterator[None]:
    """Has Ctrl-C end the run: asyncio's own handler cancels a task, which Pulumi may ignore."""

    def interrupt(*_signal: object) -> None:
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


@contextlib.contextmanager
def _optimized() -> Iterator[None]:
    """Switches off what takes half of the time of a run without use: see benchmarks/README.md.

    Of the stack trace of each resource, which serves errors, one line is enough. Few objects of a
    run are garbage before its end. Pulumi wraps a method of pickle at each dynamic resource and
    never restores it.
    """
    patched: list[tuple[Any, str, Any]] = [
        (stack, "wait_for_rpcs", _wait_for_rpcs),
        (resources, "_get_stack_trace", _position),
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
def working_directory(folder: Path) -> Iterator[None]:
    """The program's folder as working directory and first import path, as in the Pulumi CLI."""
    before, path = Path.cwd(), list(sys.path)
    os.chdir(folder)
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        os.chdir(before)
        sys.path[:] = path
