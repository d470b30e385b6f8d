"""Deploys the program's resources to the emulator, as Pulumi's engine does to AWS.

A resource that is new is created; one whose inputs changed is updated in place, or replaced where
AWS would replace it; one that the program no longer registers is deleted at the end. Each step is
recorded before and after it, so that the next run can finish one that was killed.
"""

from __future__ import annotations

import re
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future
from dataclasses import replace
from types import MappingProxyType
from typing import Any

from botocore.exceptions import BotoCoreError, ClientError

from taplocal.cloud import Cloud, data_source
from taplocal.differences import touched_by
from taplocal.errors import TapLocalError
from taplocal.program import Registration, run
from taplocal.project import Project
from taplocal.resources import Handler, handler_of
from taplocal.resources.base import Named
from taplocal.state import Deployed, State
from taplocal.steps import BEGUN, Step, Summary

REPLACED = "#"  # in the state, behind the URN of what is deleted at the end of the run


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
        ignore_protect: bool = False,
    ):
        self._connect, self._connection = connect, Future[tuple[Cloud, State]]()
        self._connecting = threading.Lock()
        self.region, self.report = region, report
        self.seen: set[str] = set()
        self.summary = Summary()
        self._lock = threading.Lock()
        self._force, self._ignore_protect = False, ignore_protect

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
        self.end(run(project, self))
        self.summary.seconds = time.monotonic() - started
        return self.summary

    def end(self, outputs: dict[str, Any]) -> None:
        """Deletes what the program no longer registers, and records the outputs."""
        for urn in [urn for urn in reversed(self.state.resources) if urn not in self.seen]:
            self._delete(urn)
        for each in self.state.resources.values():
            handler_of(each.type, each.name).settle(self.cloud, each.inputs)
        self.state.finish(outputs)

    def down(self) -> Summary:
        """Deletes all resources, newest first, protected or not, with their data."""
        self._force = True
        for urn in list(reversed(self.state.resources)):
            self._delete(urn)
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
        self._begin(resource.type, resource.name)
        try:
            deployed = self._apply(handler, resource)
        except (ClientError, BotoCoreError) as error:
            raise TapLocalError(f"{resource.type} {resource.name}: {error}") from error
        self._note(resource)
        return deployed.id, deployed.outputs

    def invoke(self, token: str, _arguments: Mapping[str, Any]) -> dict[str, Any]:
        """The result of a data source, for which no emulator is needed."""
        return data_source(token, self.region)

    def _apply(self, handler: Handler, resource: Registration) -> Deployed:
        old = self.state.resources.get(resource.urn)
        started = time.monotonic()
        if old and old.pending in ("create", "delete"):
            self._delete_remains(resource.urn, old)
            old = self._take_back(resource.urn)
        if old is None:
            return self._create(
                handler, resource, Step("created", resource.type, resource.name), started
            )
        registered, resource = resource, _with_ignored(resource, old)
        changed = tuple(_changes(old.inputs, resource.inputs, handler.ignored.split()))
        if replacing := _replacing(handler, resource, changed):
            if resource.protect:
                self._check_protected(old, *replacing)
            if self._swap_back(handler, resource, old):
                return self._apply(handler, registered)
            return self._replace(handler, resource, old, replacing, started)
        if not changed and not old.pending:
            self._report(Step("unchanged", resource.type, resource.name))
            if (old.protect, old.retain) != (resource.protect, resource.retain_on_delete):
                old.protect, old.retain = resource.protect, resource.retain_on_delete
                self.state.put(resource.urn, old)
            return old
        return self._update(handler, resource, old, changed, started)

    def _replace(
        self,
        handler: Handler,
        resource: Registration,
        old: Deployed,
        why: tuple[str, ...],
        started: float,
    ) -> Deployed:
        waiting = {}
        if set(why).isdisjoint(handler.distinct.split()):
            self._delete_remains(resource.urn, old)
            self.state.remove(resource.urn)
        else:
            waiting = {f"{resource.urn}{REPLACED}{old.owner}": old}
        step = Step("replaced", resource.type, resource.name, why=why)
        return self._create(handler, resource, step, started, waiting)

    def _swap_back(self, handler: Handler, resource: Registration, old: Deployed) -> bool:
        """Whether what an interrupted run replaced is what is wanted now: it has the data still.

        If not, it is deleted here, as its name may be wanted.
        """
        for key in self._waiting(resource.urn):
            earlier = self.state.resources[key]
            changed = _changes(earlier.inputs, resource.inputs, handler.ignored.split())
            if not _replacing(handler, resource, changed):
                waiting = f"{resource.urn}{REPLACED}{old.owner}"
                self.state.change({key: None, waiting: old, resource.urn: earlier})
                return True
            self._delete(key)
        return False

    def _create(
        self,
        handler: Handler,
        resource: Registration,
        step: Step,
        started: float,
        waiting: Mapping[str, Deployed] = MappingProxyType({}),
    ) -> Deployed:
        owner = f"{resource.urn.split(':')[2]}/{resource.type}/{resource.name}/{uuid.uuid4().hex}"
        inputs = handler.owned(resource.inputs, owner)
        if (
            isinstance(handler, Named)
            and handler.overwrites
            and handler.tags(self.cloud, inputs) is not None
        ):
            raise TapLocalError(_taken(resource, handler.name(self.cloud, inputs)))
        new = Deployed(
            resource.type,
            resource.name,
            "",
            resource.inputs,
            protect=resource.protect,
            retain=resource.retain_on_delete,
            pending="create",
            owner=owner,
        )
        self.state.change({**waiting, resource.urn: new})
        try:
            new.id, new.outputs = handler.create(self.cloud, inputs)
        except ClientError as error:
            if re.search("already (exist|in use)|Duplicate", str(error), re.IGNORECASE):
                raise TapLocalError(_taken(resource, str(error))) from None
            raise
        new.pending, new.changed = "", time.time()
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
        before, after = (handler.owned(x, old.owner) for x in (old.inputs, resource.inputs))
        outputs = handler.update(self.cloud, old.id, before, after, old.outputs)
        new = replace(
            old,
            inputs=resource.inputs,
            outputs=outputs,
            protect=resource.protect,
            retain=resource.retain_on_delete,
            pending="",
            changed=time.time(),
        )
        self.state.put(resource.urn, new)
        self._report(Step("updated", resource.type, resource.name, why=changed), started)
        return new

    def _delete(self, urn: str) -> None:
        old, started = self.state.resources[urn], time.monotonic()
        if not self._force and REPLACED not in urn:  # else it was looked at when it was replaced
            self._check_protected(old)
        kept = old.retain and not old.pending and not self._force
        self._begin(old.type, old.name)
        try:
            if not kept:
                self._delete_remains(urn, old)
        except (ClientError, BotoCoreError) as error:
            raise TapLocalError(f"{old.type} {old.name} cannot be deleted: {error}") from error
        self.state.remove(urn)
        if REPLACED not in urn:  # else its replacement was reported
            self._report(Step("kept" if kept else "deleted", old.type, old.name), started)

    def _mark_pending(self, urn: str, resource: Deployed, step: str) -> None:
        resource.pending = resource.pending if resource.pending == "create" else step
        self.state.put(urn, resource)

    def _delete_remains(self, urn: str, old: Deployed) -> None:
        """Deletes a resource, or what an interrupted run of this stack left of it.

        Since an interrupted run another stack may have made a resource of the same name: what has
        the name is looked at, and is deleted only if this stack made it.
        """
        handler, doubtful = handler_of(old.type, old.name), old.pending in ("create", "delete")
        self._mark_pending(urn, old, "delete")
        inputs = {**old.inputs, "forceDestroy": True} if self._force else old.inputs
        resource_id: str | None = old.id
        if not old.id or (doubtful and isinstance(handler, Named)):
            resource_id = handler.remains(self.cloud, handler.owned(inputs, old.owner))
        if resource_id:
            handler.remove(self.cloud, resource_id, inputs, old.outputs)

    def _take_back(self, urn: str) -> Deployed | None:
        """What an interrupted replacement was to replace: the run goes on from there."""
        waiting = self._waiting(urn)
        if not waiting:
            self.state.remove(urn)
            return None
        old = self.state.resources[waiting[-1]]
        self.state.change({urn: old, waiting[-1]: None})
        return old

    def _waiting(self, urn: str) -> list[str]:
        """The keys of what was replaced under a URN and is not deleted yet, oldest first."""
        return [key for key in list(self.state.resources) if key.startswith(urn + REPLACED)]

    def _check_protected(self, old: Deployed, *replacing: str) -> None:
        if old.protect and not self._ignore_protect:
            raise TapLocalError(f"{_refusal(old, *replacing)}. {WAY_ON}")

    def _note(self, resource: Registration) -> None:
        with self._lock:
            for key in touched_by(resource.type, resource.inputs):
                self.summary.differences.setdefault(key, []).append(resource.name)

    def _begin(self, kind: str, name: str) -> None:
        with self._lock:
            self.report(Step(BEGUN, kind, name))

    def _report(self, step: Step, started: float | None = None) -> None:
        if started is not None:
            step = Step(step.action, step.type, step.name, time.monotonic() - started, step.why)
        with self._lock:
            self.summary.steps.append(step)
            self.report(step)


class Plan:
    """A run that changes nothing, as `pulumi preview`: finds what is protected and would go.

    What is deployed has the outputs of the state, what is new has none.
    """

    def __init__(self, state: State, region: str):
        self.state, self.region = state, region
        self.seen = {each for each in state.resources if REPLACED in each}  # is gone already
        self.refused: list[str] = []

    def check(self, project: Project) -> None:
        """Raises TapLocalError with all that is protected and would be replaced or deleted."""
        run(project, self, preview=True)
        gone = [x for urn, x in self.state.resources.items() if urn not in self.seen and x.protect]
        self.refused += map(_refusal, gone)
        if self.refused:
            before, now = self.state.settings, project.config
            changed = sorted(
                key for key in before.keys() | now.keys() if before.get(key) != now.get(key)
            )
            raise TapLocalError(
                "\n".join(
                    (
                        f"data would be lost, so nothing was changed. Settings that changed: "
                        f"{', '.join(changed)}.",
                        *(f"  - {each}" for each in sorted(self.refused)),
                        WAY_ON,
                    )
                )
            )

    def register(self, resource: Registration) -> tuple[str, dict[str, Any]]:
        """The id and the outputs of what is deployed."""
        self.seen.add(resource.urn)
        old = self.state.resources.get(resource.urn)
        if old is None:
            return "", {}
        if old.protect and resource.protect:
            handler, new = handler_of(old.type, old.name), _with_ignored(resource, old)
            changed = _changes(old.inputs, new.inputs, handler.ignored.split())
            if replacing := _replacing(handler, resource, changed):
                self.refused.append(_refusal(old, *replacing))
        return old.id, old.outputs

    def invoke(self, token: str, _arguments: Mapping[str, Any]) -> dict[str, Any]:
        """The result of a data source."""
        return data_source(token, self.region)


WAY_ON = (
    "Take the data along first (docs/operations.md, moving data); "
    "`--ignore-protect` goes on without it"
)


def _refusal(old: Deployed, *replacing: str) -> str:
    why = f", as these inputs change: {', '.join(replacing)}" if replacing else ""
    verb = "replaced" if replacing else "deleted"
    return f"{old.type} {old.name} ({old.id}) is protected and would be {verb}{why}"


def _with_ignored(resource: Registration, old: Deployed) -> Registration:
    """The registration with the old values where it ignores changes."""
    for path in resource.ignore_changes:
        names = path.replace("[*]", ".*").split(".")
        resource = replace(resource, inputs=_with_old_value(names, old.inputs, resource.inputs))
    return resource


def _replacing(handler: Handler, resource: Registration, changed: Iterable[str]) -> tuple[str, ...]:
    """Those of the changed inputs that replace the resource."""
    replace_on = {*handler.replaces(), *resource.replace_on_changes}
    return tuple(key for key in changed if key in replace_on)


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


def _taken(resource: Registration, name: str) -> str:
    return (
        f"{resource.type} {resource.name}: its name is taken by a resource that this stack did not "
        f"make ({name}): choose another name, or delete that resource"
    )


def _changes(old: Mapping[str, Any], new: Mapping[str, Any], ignored: list[str]) -> list[str]:
    keys = (old.keys() | new.keys()) - set(ignored)
    return sorted(key for key in keys if old.get(key) != new.get(key))
