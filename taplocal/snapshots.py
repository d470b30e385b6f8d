"""Snapshots: of all that a data folder has, and those that RDS has of a database alone."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from taplocal import emulator as emulators
from taplocal import keeper, web
from taplocal.cloud import Cloud
from taplocal.emulator import Emulator
from taplocal.errors import TapLocalError
from taplocal.session import condition, deployed_environments, folder_of, own, state_path
from taplocal.state import State, locked

KINDS = EVERYTHING, DATABASE = "everything", "database"
RESTORE_SECONDS = 600  # a guard against hanging: a small database takes one


@dataclass(frozen=True)
class Snapshot:
    """A snapshot that can be restored; `of` is a database, or the environments, with commas."""

    name: str
    kind: str
    of: str
    created: str  #: ISO 8601, in UTC


def take(program: Path, name: str, folder: Path | None = None) -> Path:
    """Copies the data of all environments as they are now, under a name; returns the copy.

    With databases everything is stopped for a moment: their files are copied as they are. Raises
    TapLocalError; then there is no snapshot, and what was stopped runs again.
    """
    folder = (folder or folder_of(program)).resolve()
    emulator, target = own(folder), _path(folder, name)
    if target.exists():
        raise TapLocalError(f"there is a snapshot {name}: choose another name, or delete {target}")
    keeper.wait(folder, emulator.running)
    with locked(folder):
        stops = web.has_data(web.home(folder)) and emulator.running()
        if stops:
            emulators.kill(folder, emulator.pid)
        try:
            _copy(folder, target)
        except OSError as error:
            raise TapLocalError(f"{name} is not taken: {_why(error)}") from None
        finally:
            if stops:
                _start(folder, emulator)
    return target


def _copy(folder: Path, target: Path) -> None:
    """Copies all to a snapshot, which has its name when it is whole."""
    new = target.with_name(f".{target.name}.new")
    shutil.rmtree(new, ignore_errors=True)  # of a command that was killed
    try:
        new.mkdir(mode=0o700, parents=True)  # in it are files that others may read
        keeper.copy(folder, new / keeper.STATE)
        web.copy(web.home(folder), new / web.FOLDER)
        shutil.copy(folder / emulators.RECORD, new / emulators.RECORD)
        new.rename(target)
    except BaseException:
        shutil.rmtree(new, ignore_errors=True)
        raise


def listed(program: Path, folder: Path | None = None) -> list[Snapshot]:
    """All snapshots, the oldest first; those of databases only while the emulator runs."""
    folder = (folder or folder_of(program)).resolve()
    of_databases = [found for _, found in _of_databases(folder)]
    return sorted([*_of_everything(folder), *of_databases], key=lambda each: each.created)


def restore(program: Path, name: str, folder: Path | None = None, kind: str = "") -> Snapshot:
    """Goes back to a snapshot: what is there now, or in its database, is deleted.

    `kind` says which of two with this name. A database stays the instance that it is, with its
    master's password of now. Raises TapLocalError.
    """
    folder = (folder or folder_of(program)).resolve()
    path = _path(folder, name)
    every = listed(program, folder)
    found = [each for each in every if each.name == name and kind in ("", each.kind)]
    if not found:
        known = ", ".join(f"{each.name} ({each.kind})" for each in every) or "none"
        raise TapLocalError(f"there is no snapshot {name}; there are: {known}")
    if len(found) > 1:
        shown = " and ".join(f"one of {each.kind} ({each.of})" for each in found)
        raise TapLocalError(f"{name} is two snapshots, {shown}: choose one with --kind")
    (snapshot,) = found
    with locked(folder):
        if snapshot.kind == DATABASE:
            _restore_database(folder, snapshot)
        else:
            _restore_everything(folder, path)
    return snapshot


def _restore_everything(folder: Path, source: Path) -> None:
    emulators.stop(folder)
    try:
        shutil.copytree(source / keeper.STATE, folder / keeper.STATE, symlinks=True)
        web.copy(source / web.FOLDER, web.make_home(folder))
        keeper.go_back(folder)
    except OSError as error:
        emulators.stop(folder)  # half of it would be taken for all
        why = f"{source.name} is not restored: {_why(error)}; make room, then restore it again"
        raise TapLocalError(why) from None
    _start(folder, emulators.recorded(source))


def _why(error: OSError) -> str:
    """Why something was not copied; of many files that were not, the first one's reason."""
    return str(error.args[0][0][2] if isinstance(error, shutil.Error) else error)


def _restore_database(folder: Path, snapshot: Snapshot) -> None:
    cloud = next(cloud for cloud, each in _of_databases(folder) if each == snapshot)
    told = {"identifier": snapshot.of, "region": cloud.region, "snapshot": snapshot.name}
    if why := cloud.own("restore", told, RESTORE_SECONDS)["error"]:
        raise TapLocalError(f"{snapshot.of} is not restored: {why}")


def _of_everything(folder: Path) -> Iterator[Snapshot]:
    for path in (folder / "snapshots").glob("[!.]*"):
        if created := keeper.kept(path):
            states = (path / keeper.STATE / keeper.CURRENT / "env").glob("*.json")
            environments = ", ".join(sorted(each.stem for each in states))
            at = datetime.fromtimestamp(created, UTC)
            yield Snapshot(path.name, EVERYTHING, environments, at.isoformat(timespec="seconds"))


def _of_databases(folder: Path) -> Iterator[tuple[Cloud, Snapshot]]:
    """The snapshots of the deployed environments' databases."""
    for env in deployed_environments(folder):
        found, state, emulator = condition(folder, env)
        name = state.outputs.get("database_name")
        if name and emulator and found in ("complete", "partial"):
            cloud = Cloud(emulator, state.region)
            pages = (
                cloud.client("rds")
                .get_paginator("describe_db_snapshots")
                .paginate(DBInstanceIdentifier=name)
            )
            for each in (x for page in pages for x in page["DBSnapshots"]):
                if each["Status"] == "available":
                    at = each["SnapshotCreateTime"].astimezone(UTC).isoformat(timespec="seconds")
                    yield cloud, Snapshot(each["DBSnapshotIdentifier"], DATABASE, name, at)


def _start(folder: Path, last: Emulator | None) -> None:
    """Starts the emulator again, in the region of what is deployed."""
    region = State(state_path(folder, deployed_environments(folder)[0])).region
    emulators.start(folder, region, last)


def _path(folder: Path, name: str) -> Path:
    if not re.fullmatch(r"[\w-][\w.-]{0,99}", name):
        raise TapLocalError(
            f'a snapshot has a name of letters, digits, "-", "_" and ".", not {json.dumps(name)}'
        )
    return folder / "snapshots" / name
