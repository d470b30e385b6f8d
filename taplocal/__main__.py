"""The command line: `python -m taplocal`, or `taplocal` where the package is installed."""

from __future__ import annotations

import sys

from taplocal import ready

EXTRA = """error: {} is not installed: the local cloud needs the extra `local`, of a checkout
    uvx --from 'FOLDER[local]' taplocal up      or      pip install 'FOLDER[local]'"""


def main(name: str = "taplocal") -> None:
    """Runs a command; says how to install what it needs, which a component's user does not."""
    if (status := ready.run(name)) is not None:
        sys.exit(status)
    try:
        from taplocal import commands
    except ModuleNotFoundError as error:
        sys.exit(EXTRA.format(error.name))
    commands.main(name)


if __name__ == "__main__":
    main("python -m taplocal")
