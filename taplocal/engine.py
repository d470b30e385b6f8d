"""Deploys the program's resources to the emulator, as Pulumi's engine does to AWS.

A resource that is new is created; one whose inputs changed is updated in place, or replaced where
AWS would replace it; one that the program no longer registers is deleted at the end. Each step is
recorded before and after it, so that the next run can finish one that was killed.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import replace
from typing import Any

from botocore.exceptions import BotoCoreError, ClientError

from taplocal.cloud import Cloud, data_source
from taplocal.errors import TapLocalError
from taplocal.program import Registration, run
from taplocal.project import Project
from taplocal.resources import Handler, handler_of
from taplocal.state import Deployed, State
from taplocal.steps import Step, Summary


class Deployment:
    """The backend that deploys to an emulator and records the state.

    `connect` starts or finds the emulator and reads the state. It is called once, when the first
    resource needs them: a program that fails before that leaves nothing behind.
    """

    def __init__(
        self,
        connect: Callable[[], tuple[Cloud, State]],
        region: str,
        report: Callable[[Step], None],
    ):
        self._connect, self._connection = connect, Future[tuple[Cloud, State]]()
        self._connecting = threading.Lock()
        self.region, self.report = region, report
        self.seen: set[str] = set()
        self.summary = Summary()
        self._lock = threading.Lock()
        self._force = False

    @property
    def connection(self) -> tuple[Cloud, State]:
        """The emulator and the state; other threads wait while the first one connects."""
        with self._connecting:
            if not self._connection.done():
                try:
                    self._connection.set_result(self._connect())
                except BaseException as error:  # noqa: BLE001 - raised in each thread, by result()
                    self._connection.set_exception(error)
        return self._connection.result()

    @property
    def cloud(self) -> Cloud:
        """The emulator's API."""
        return self.connection[0]

    @property
    def state(self) -> State:
        """What is deployed."""
        return self.connection[1]

    def up(self, project: Project) -> Summary:
        """Deploys the program; raises the first error, with all finished steps in the state."""
        started = time.monotonic()
        outputs = run(project, self)
        for urn in [urn for urn in reversed(self.state.resources) if urn not in self.seen]:
            self._delete(urn)
        self.state.finish(outputs)
        self.summary.not_emulated.sort(key=lambda each: (each["resource"], each["what"]))
        self.summary.seconds = time.monotonic() - started
        return self.summary

    def down(self) -> Summary:
        """Deletes all resources, newest first, protected or not, with their data."""
        self._force = True
        for urn in list(reversed(self.state.resources)):
            self._delete(urn, protected=False)
        return self.summary

    def register(self, resource: Registration) -> tuple[str, dict[str, Any]]:
        """Deploys one resource and returns its id and outputs; a component is only a name."""
        if not resource.custom:
            return "", {}
        with self._lock:
            if resource.urn in self.seen:
                raise TapLocalError(
                    f"two resources have the type {resource.type} and the name {resource.name}"
                )
            self.seen.add(resource.urn)
        handler = handler_of(resource.type, resource.name)
        handler.check(resource.name, resource.inputs)
        try:
            deployed = self._apply(handler, resource)
        except (ClientError, BotoCoreError) as error:
            raise TapLocalError(f"{resource.type} {resource.name}: {error}") from error
        self._note(handler, resource)
        return deployed.id, deployed.outputs

    def invoke(self, token: str, _arguments: Mapping[str, Any]) -> dict[str, Any]:
        """The result of a data source, for which no emulator is needed."""
        return data_source(token, self.region)

    def _apply(self, handler: Handler, resource: Registration) -> Deployed:
        old = self.state.resources.get(resource.urn)
        started = time.monotonic()
        if old and old.pending in ("create", "delete"):
            self._delete_remains(handler, old)
            self.state.remove(resource.urn)
            old = None
        if old is None:
            return self._create(
                handler, resource, Step("created", resource.type, resource.name), started
            )
        for path in resource.ignore_changes:
            inputs = _with_old_value(
                path.replace("[*]", ".*").split("."), old.inputs, resource.inputs
            )
            resource = replace(resource, inputs=inputs)
        changed = tuple(_changes(old.inputs, resource.inputs, handler.ignored.split()))
        replace_on = {*handler.replaces(), *resource.replace_on_changes}
        if replacing := tuple(key for key in changed if key in replace_on):
            self._check_protected(old)
            self._mark_pending(resource.urn, old, "delete")
            self._delete_remains(handler, old)
            self.state.remove(resource.urn)
            step = Step("replaced", resource.type, resource.name, why=replacing)
            return self._create(handler, resource, step, started)
        if not changed and not old.pending:
            self._report(Step("unchanged", resource.type, resource.name))
            if old.protect != resource.protect:
                old.protect = resource.protect
                self.state.put(resource.urn, old)
            return old
        return self._update(handler, resource, old, changed, started)

    def _create(
        self, handler: Handler, resource: Registration, step: Step, started: float
    ) -> Deployed:
        new = Deployed(
            resource.type,
            resource.name,
            "",
            resource.inputs,
            protect=resource.protect,
            pending="create",
        )
        self.state.put(resource.urn, new)
        new.id, new.outputs = handler.create(self.cloud, resource.inputs)
        new.pending = ""
        self.state.put(resource.urn, new)
        self._report(step, started)
        return new

    def _update(
        self,
        handler: Handler,
        resource: Registration,
        old: Deployed,
        changed: tuple[str, ...],
        started: float,
    ) -> Deployed:
        self._mark_pending(resource.urn, old, "update")
        inputs, protect = resource.inputs, resource.protect
        outputs = handler.update(self.cloud, old.id, old.inputs, inputs, old.outputs)
        new = Deployed(resource.type, resource.name, old.id, inputs, outputs, protect)
        self.state.put(resource.urn, new)
        self._report(Step("updated", resource.type, resource.name, why=changed), started)
        return new

    def _delete(self, urn: str, protected: bool = True) -> None:
        old, started = self.state.resources[urn], time.monotonic()
        if protected:
            self._check_protected(old)
        self._mark_pending(urn, old, "delete")
        try:
            self._delete_remains(handler_of(old.type, old.name), old)
        except (ClientError, BotoCoreError) as error:
            raise TapLocalError(f"{old.type} {old.name} cannot be deleted: {error}") from error
        self.state.remove(urn)
        self._report(Step("deleted", old.type, old.name), started)

    def _mark_pending(self, urn: str, resource: Deployed, step: str) -> None:
        resource.pending = resource.pending if resource.pending == "create" else step
        self.state.put(urn, resource)

    def _delete_remains(self, handler: Handler, old: Deployed) -> None:
        """Deletes a resource, or what an interrupted run created of it."""
        inputs = {**old.inputs, "forceDestroy": True} if self._force else old.inputs
        resource_id = old.id or handler.find(self.cloud, inputs)
        if resource_id:
            handler.remove(self.cloud, resource_id, inputs, old.outputs)

    def _check_protected(self, old: Deployed) -> None:
        if old.protect:
            raise TapLocalError(
                f"{old.type} {old.name} is protected, and this run would delete it: "
                "set deletion_protection to false and run `up` first, "
                "or run `python -m taplocal down`"
            )

    def _note(self, handler: Handler, resource: Registration) -> None:
        notes = handler.notes(resource.inputs)
        with self._lock:
            self.summary.not_emulated += [
                {"resource": resource.name, "what": what, "why": why} for what, why in notes
            ]

    def _report(self, step: Step, started: float | None = None) -> None:
        if started is not None:
            step = Step(step.action, step.type, step.name, time.monotonic() - started, step.why)
        with self._lock:
            self.summary.steps.append(step)
            self.report(step)


def _with_old_value(path: list[str], old: Any, new: Any) -> Any:
    """The new inputs with the old value at a path; * in it stands for all elements of a list."""
    name, *below = path
    if name == "*" and len(old) == len(new):
        return [
            _with_old_value(below, before, after) for before, after in zip(old, new, strict=True)
        ]
    if name not in old or name not in new:
        return new
    return {**new, name: _with_old_value(below, old[name], new[name]) if below else old[name]}


def _changes(old: Mapping[str, Any], new: Mapping[str, Any], ignored: list[str]) -> list[str]:
    keys = (old.keys() | new.keys()) - set(ignored)
    return sorted(key for key in keys if old.get(key) != new.get(key))
