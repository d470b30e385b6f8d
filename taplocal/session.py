"""What the commands have in common: project, emulator and state of one environment."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from taplocal import emulator as emulators
from taplocal import keeper, page
from taplocal.cloud import Cloud
from taplocal.emulator import Emulator
from taplocal.errors import TapLocalError, of_folder
from taplocal.project import Project
from taplocal.state import Deployed, State, forget, locked
from taplocal.steps import Step, Summary

FOLDER = ".taplocal"


@dataclass(frozen=True)
class Session:
    """An environment that is deployed and running."""

    cloud: Cloud
    state: State

    @property
    def folder(self) -> Path:
        """The data folder."""
        return self.state.path.parents[1]

    @property
    def outputs(self) -> dict[str, Any]:
        """The stack's outputs."""
        return self.state.outputs


def folder_of(program: Path) -> Path:
    """The default data folder of a program's local cloud."""
    return program / FOLDER


def state_path(folder: Path, env: str) -> Path:
    """The state file of an environment."""
    return folder / "env" / f"{env}.json"


def deployed_environments(folder: Path) -> list[str]:
    """The environments that have a state, sorted by name."""
    return sorted(path.stem for path in (folder / "env").glob("*.json"))


def up(
    program: Path,
    env: str,
    *,
    folder: Path | None = None,
    emulator: str | None = None,
    config: Mapping[str, str] | None = None,
    ignore_protect: bool = False,
    say: Callable[[str], None],
    report: Callable[[Step], None],
) -> tuple[Session, Summary]:
    """Deploys an environment of the program, and starts the emulator if it is not running.

    `emulator` is the data folder of another local cloud, whose emulator to use instead. `say`
    prints a message, `report` a finished step. Raises TapLocalError; if the program fails before
    its first resource, nothing is started or written. Unless told to `ignore_protect`, changed
    settings that would replace or delete what is protected are an error before anything changes.
    """
    # Pulumi takes most of a second to import, and few commands need it.
    from taplocal.engine import Deployment, Plan

    folder = (folder or folder_of(program)).resolve()
    project = Project.load(program.resolve(), env, config)
    if not ignore_protect and state_path(folder, env).exists():
        with locked(folder):
            deployed = State(state_path(folder, env))
        if deployed.settings != project.config:
            Plan(deployed, project.region).check(project)
    other = emulators.found(emulator) if emulator else None
    with ExitStack() as held:

        def connect() -> tuple[Cloud, State]:
            try:
                held.enter_context(locked(folder))
                cloud, state = _connect(folder, env, project.region, other, say)
            except OSError as error:
                raise of_folder(error) from None
            state.program, state.settings = str(project.main), project.config
            return cloud, state

        deployment = Deployment(connect, project.region, report, ignore_protect)
        summary = deployment.up(project)
    session = Session(*deployment.connection)
    if session.cloud.emulator.owned:
        keeper.wait(folder, session.cloud.emulator.running)
    return session, summary


def _connect(
    folder: Path, env: str, region: str, other: Emulator | None, say: Callable[[str], None]
) -> tuple[Cloud, State]:
    """The emulator, started if it is not running, and the state, emptied if that was restarted."""
    (folder / ".gitignore").write_text("*\n")
    before = emulators.recorded(folder)
    if before and before.owned and not other and not before.running():
        keeper.tell(folder, say)
    emulator = emulators.attach(folder, other) if other else emulators.ensure(folder, region)
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
            say(f"the emulator was restarted: creating its {len(state.resources)} resources again")
        state.reset(cloud.emulator.marker, region)
    return cloud, state


def _marked(folder: Path, emulator: Emulator, region: str) -> Cloud:
    """The cloud with its marker stored in it; a restarted emulator gets a new marker."""
    cloud = Cloud(emulator, region)
    if not cloud.marked():
        fresh = replace(emulator, marker=uuid.uuid4().hex)
        emulators.record(folder, fresh)
        cloud = Cloud(fresh, region)
        cloud.mark()
    return cloud


def opened(program: Path, env: str, folder: Path | None = None) -> Session:
    """A deployed environment; raises TapLocalError if it is not deployed or not running."""
    folder = (folder or folder_of(program)).resolve()
    found, state, emulator = condition(folder, env)
    if found == "none" or emulator is None:
        others = [each for each in deployed_environments(folder) if each != env]
        hint = f"; deployed: {', '.join(others)} (--env)" if others else ""
        raise TapLocalError(
            f"{env} is not deployed: run `python -m taplocal up --env {env}` first{hint}"
        )
    if found == "dead":
        raise TapLocalError(
            "the emulator is not running: `python -m taplocal up` starts it with its data"
        )
    if found == "stale":
        raise TapLocalError(
            f"the emulator has lost {env}: `python -m taplocal up --env {env}` creates it again"
        )
    return Session(Cloud(emulator, state.region), state)


def down(
    program: Path,
    env: str | None,
    *,
    folder: Path | None = None,
    report: Callable[[Step], None],
) -> list[str]:
    """Deletes one environment, or all if `env` is None; with the last one, stops an owned emulator.

    Its state goes with it, and so all resources at once. Returns the deleted environments.
    """
    folder = (folder or folder_of(program)).resolve()
    if not folder.exists():
        return []
    with locked(folder):
        environments, emulator = deployed_environments(folder), emulators.recorded(folder)
        deleted = [each for each in environments if env in (None, each)]
        last = deleted == environments
        if emulator and emulator.owned and not emulator.running() and deleted and not last:
            region = State(state_path(folder, deleted[0])).region
            emulator = emulators.ensure(folder, region)  # the others' data stay
        if emulator and emulator.running() and not (last and emulator.owned):
            for each in deleted:
                _delete(folder, each, emulator, report)
        for each in deleted:
            forget(state_path(folder, each))
        if last:
            emulators.stop(folder)
            (folder / page.PORT).unlink(missing_ok=True)
        return deleted


def stop(program: Path, folder: Path | None = None) -> list[str]:
    """Stops this folder's own emulator; the environments, which are returned, keep their data."""
    folder = (folder or folder_of(program)).resolve()
    emulator = own(folder)
    keeper.wait(folder, emulator.running)
    with locked(folder):
        emulators.kill(folder, emulator.pid)
    return deployed_environments(folder)


def own(folder: Path) -> Emulator:
    """This folder's own emulator, which has run; raises TapLocalError if there is none."""
    emulator = emulators.recorded(folder) if deployed_environments(folder) else None
    if emulator is None:
        raise TapLocalError("nothing is deployed: run `python -m taplocal up` first")
    if not emulator.owned:
        raise TapLocalError(
            f"the emulator at {emulator.url} was started by someone else, who has its data"
        )
    if not emulator.running() and not keeper.kept(folder):
        raise TapLocalError("the emulator is not running: run `python -m taplocal up` first")
    return emulator


def condition(folder: Path, env: str) -> tuple[str, State, Emulator | None]:
    """How an environment is, with its state and emulator.

    none (not deployed), dead (its emulator does not run), stale (the emulator has lost it), partial
    (a run did not reach its end), complete.
    """
    state, emulator = State(state_path(folder, env)), emulators.recorded(folder)
    if not state.resources or emulator is None:
        return "none", state, emulator
    if not emulator.running():
        return "dead", state, emulator
    if state.marker != emulator.marker or not Cloud(emulator, state.region).marked():
        return "stale", state, emulator
    return "complete" if state.complete else "partial", state, emulator


def web_group(state: State) -> Deployed:
    """The Auto Scaling group behind the load balancer; TapLocalError if there is none.

    Bastions and NAT instances have groups, too, but no target group.
    """
    for each in state.resources.values():
        if each.type == "aws:autoscaling/group:Group" and each.inputs.get("targetGroupArns"):
            return each
    raise TapLocalError("the stack has no group behind a load balancer: it has no web environment")


def web_parts(cloud: Cloud, state: State) -> list[str]:
    """The parts of the web environment that run, each with its state, as AWS's API tells it."""
    parts = []
    for each in state.resources.values():
        if each.type == "aws:lb/targetGroup:TargetGroup":
            health = cloud.client("elbv2").describe_target_health(TargetGroupArn=each.id)
            for found in health["TargetHealthDescriptions"]:
                parts.append(f"{found['Target']['Id']} {found['TargetHealth']['State']}")
        elif each.type == "aws:rds/instance:Instance":
            described = cloud.client("rds").describe_db_instances(DBInstanceIdentifier=each.id)
            (instance,) = described["DBInstances"]
            port = instance["Endpoint"]["Port"]
            parts.append(f"{each.id} {instance['DBInstanceStatus']}, port {port}")
    return parts


def _delete(folder: Path, env: str, emulator: Emulator, report: Callable[[Step], None]) -> None:
    """Deletes the resources of one environment, unless the emulator was restarted."""
    from taplocal.engine import Deployment

    state = State(state_path(folder, env))
    cloud = Cloud(emulator, state.region)
    if state.marker == emulator.marker and cloud.marked():
        Deployment(lambda: (cloud, state), state.region, report).down()
