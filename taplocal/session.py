"""What every command works with: project, emulator, state of one environment."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from taplocal import emulator as emulators
from taplocal.cloud import Cloud
from taplocal.emulator import Emulator
from taplocal.errors import TapLocalError
from taplocal.project import Project
from taplocal.state import State, forget, locked
from taplocal.steps import Step, Summary

FOLDER = ".taplocal"


@dataclass(frozen=True)
class Session:
    """One environment that is deployed and running."""

    cloud: Cloud
    state: State

    @property
    def outputs(self) -> dict[str, Any]:
        """The stack's outputs."""
        return self.state.outputs


def folder_of(program: Path) -> Path:
    """Where a program's local cloud keeps its data."""
    return program / FOLDER


def state_path(folder: Path, env: str) -> Path:
    """The state file of an environment."""
    return folder / "env" / f"{env}.json"


def deployed_environments(folder: Path) -> list[str]:
    """The environments that have a state, in the order of their names."""
    return sorted(path.stem for path in (folder / "env").glob("*.json"))


def up(
    program: Path,
    env: str,
    *,
    folder: Path | None = None,
    emulator_url: str | None = None,
    config: Mapping[str, str] | None = None,
    say: Callable[[str], None],
    report: Callable[[Step], None],
) -> tuple[Session, Summary]:
    """Deploys an environment of the program, starting the emulator where it is needed."""
    # Pulumi takes most of a second to import, and few commands need it.
    from taplocal.engine import Deployment

    folder = (folder or folder_of(program)).resolve()
    project = Project.load(program.resolve(), env, config)
    if emulator_url:
        emulators.loopback_url(emulator_url)
    with ExitStack() as held:

        def connect() -> tuple[Cloud, State]:
            held.enter_context(locked(folder))
            return _connect(folder, env, project.region, emulator_url, say)

        deployment = Deployment(connect, project.region, report)
        summary = deployment.up(project)
        return Session(*deployment.connection), summary


def _connect(
    folder: Path, env: str, region: str, emulator_url: str | None, say: Callable[[str], None]
) -> tuple[Cloud, State]:
    """The emulator, started if need be, and the state, emptied if the emulator has lost it."""
    (folder / ".gitignore").write_text("*\n")
    before = emulators.recorded(folder)
    emulator = (
        emulators.attach(folder, emulator_url) if emulator_url else emulators.ensure(folder, region)
    )
    state = State(state_path(folder, env))
    cloud = _marked(folder, emulator, region)
    if emulator != before:
        say(
            f"emulator started at {emulator.url}"
            if emulator.owned
            else f"using the emulator at {emulator.url}"
        )
    if state.marker != cloud.emulator.marker:
        if state.resources:
            say(f"the emulator has lost its {len(state.resources)} resources: rebuilding them")
        state.reset(cloud.emulator.marker, region)
    return cloud, state


def _marked(folder: Path, emulator: Emulator, region: str) -> Cloud:
    """The cloud with its marker in it; one that has lost it is somebody new and gets a new one."""
    cloud = Cloud(emulator, region)
    if not cloud.marked():
        fresh = replace(emulator, marker=uuid.uuid4().hex)
        emulators.record(folder, fresh)
        cloud = Cloud(fresh, region)
        cloud.mark()
    return cloud


def opened(program: Path, env: str, folder: Path | None = None) -> Session:
    """A deployed environment, or an error that says how to get one."""
    folder = (folder or folder_of(program)).resolve()
    state, emulator = State(state_path(folder, env)), emulators.recorded(folder)
    if not state.resources or emulator is None:
        others = [each for each in deployed_environments(folder) if each != env]
        hint = f"; deployed: {', '.join(others)} (--env)" if others else ""
        raise TapLocalError(
            f"{env} is not deployed here: run `python -m taplocal up --env {env}` first{hint}"
        )
    if not emulator.running():
        raise TapLocalError(
            "the emulator does not run any more: `python -m taplocal up` starts and fills it again"
        )
    return Session(Cloud(emulator, state.region), state)


def down(
    program: Path,
    env: str | None,
    *,
    folder: Path | None = None,
    report: Callable[[Step], None],
) -> list[str]:
    """Takes one environment down, or all without a name; with the last one our emulator ends too.

    Its memory is all there is of what was deployed, so ending it deletes everything at once.
    Returns the environments that are gone.
    """
    folder = (folder or folder_of(program)).resolve()
    if not folder.exists():
        return []
    with locked(folder):
        environments, emulator = deployed_environments(folder), emulators.recorded(folder)
        gone = [each for each in environments if env in (None, each)]
        last = gone == environments
        if emulator and emulator.running() and not (last and emulator.owned):
            for each in gone:
                _delete(folder, each, emulator, report)
        for each in gone:
            forget(state_path(folder, each))
        if last:
            emulators.stop(folder)
        return gone


def _delete(folder: Path, env: str, emulator: Emulator, report: Callable[[Step], None]) -> None:
    """Deletes the resources of one environment, unless the emulator has lost them already."""
    from taplocal.engine import Deployment

    state = State(state_path(folder, env))
    cloud = Cloud(emulator, state.region)
    if state.marker == emulator.marker and cloud.marked():
        Deployment(lambda: (cloud, state), state.region, report).down()
